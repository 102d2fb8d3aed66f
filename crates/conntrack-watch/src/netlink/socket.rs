//! How does a namespace's conntrack answer?
//!
//! One socket, made inside the namespace, for requests that are answered one after the other. Rows are handed on as
//! they are read: no copy of the table is ever held.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use evidence::{Protocol, Tuple};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use netns::Namespace;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::ctnetlink::{self, AF_INET, AF_INET6, CpuStats, Entry, TableSize};
use super::wire::{Messages, u32_at};
use crate::sys;

/// The largest datagram of a dump is 32 KiB (`NLMSG_GOODSIZE` at its most).
const BUFFER: usize = 64 * 1024;
/// The kernel answers in microseconds, a dump of a full table in tenths of seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rows that cost about as much to copy as one more walk over the buckets (2 us each, 10 ms a walk).
const ROWS_WORTH_A_WALK: u32 = 4096;
const DUMP_INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// Conntrack of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: AsyncFd<Socket>,
    sequence: u32,
    buffer: Vec<u8>,
}

/// How a dump went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dump {
    /// Rows that came, of any kind.
    pub rows: u64,
    /// The table changed under the dump so that rows may be missing or doubled (`NLM_F_DUMP_INTR`), or the socket overran.
    pub interrupted: bool,
}

/// Why conntrack can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller has no right to read it.
    #[error("conntrack may not be read: CAP_NET_ADMIN is missing")]
    Denied,
    /// The kernel has no such thing.
    #[error("conntrack can't be read by netlink: {0} (is nf_conntrack_netlink loaded or built in?)")]
    Unsupported(#[source] io::Error),
    /// The namespace can't be entered.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// Anything else that the kernel said.
    #[error("reading conntrack by netlink: {0}")]
    Io(#[source] io::Error),
    /// No answer in five seconds.
    #[error("conntrack gave no answer by netlink within 5 s")]
    Silent,
}

impl Conntrack {
    /// Opens a socket inside the namespace. Needs no right yet: the first request tells.
    pub async fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.run(open_here).await?.map_err(Error::from_kernel)?;
        let socket = sys::readable(socket).map_err(Error::Io)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Each CPU's counters.
    pub async fn cpu_stats(&mut self) -> Result<Vec<CpuStats>, Error> {
        let mut stats = Vec::new();
        let sequence = self.next_sequence();
        self.ask(&ctnetlink::cpu_stats(sequence), Answer::Dump, |payload| {
            stats.push(CpuStats::decode(payload));
        })
        .await?;
        Ok(stats)
    }

    /// The table's size and limit.
    pub async fn table_size(&mut self) -> Result<TableSize, Error> {
        let mut size = TableSize::default();
        let sequence = self.next_sequence();
        self.ask(&ctnetlink::table_size(sequence), Answer::One, |payload| size = TableSize::decode(payload))
            .await?;
        Ok(size)
    }

    /// Every entry whose original destination is one of these addresses and ports, over UDP or TCP, each once it is read.
    ///
    /// The kernel walks all buckets of its hash for a dump, empty or not (10 ms for 262,144 of them), and its filter wants
    /// one walk for each family and protocol. So a table of few `entries` is read whole, a large one by the filter.
    pub async fn entries_to(
        &mut self,
        services: &[SocketAddr],
        entries: u32,
        mut each: impl FnMut(Entry),
    ) -> Result<Dump, Error> {
        let mut one = |payload: &[u8]| {
            let Some(entry) = Entry::decode(payload) else { return };
            if services.contains(&entry.original.destination) {
                each(entry);
            }
        };
        let kinds: BTreeSet<(u8, u16)> = services.iter().map(|s| (family_of(s), s.port())).collect();
        let walks = u32::try_from(kinds.len()).unwrap_or(u32::MAX).saturating_mul(2);
        if entries < ROWS_WORTH_A_WALK.saturating_mul(walks.saturating_sub(1)) {
            let sequence = self.next_sequence();
            return self.ask(&ctnetlink::entries(sequence), Answer::Dump, one).await;
        }
        let mut all = Dump::default();
        for (family, port) in kinds {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let sequence = self.next_sequence();
                let request = ctnetlink::entries_to_port(sequence, family, protocol, port);
                let dump = self.ask(&request, Answer::Dump, &mut one).await?;
                all.rows += dump.rows;
                all.interrupted |= dump.interrupted;
            }
        }
        Ok(all)
    }

    /// The entry that holds this tuple in either direction, if there is one.
    pub async fn holder(&mut self, protocol: Protocol, tuple: Tuple) -> Result<Option<Entry>, Error> {
        let mut found = None;
        let sequence = self.next_sequence();
        let asked = self
            .ask(&ctnetlink::holder(sequence, protocol, tuple), Answer::One, |payload| {
                found = Entry::decode(payload);
            })
            .await;
        match asked {
            Ok(_) => Ok(found),
            Err(Error::Io(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    async fn ask(
        &mut self,
        request: &[u8],
        answer: Answer,
        mut each: impl FnMut(&[u8]),
    ) -> Result<Dump, Error> {
        let kernel = netlink_sys::SocketAddr::new(0, 0);
        self.socket.get_ref().send_to(request, &kernel, 0).map_err(Error::from_kernel)?;
        let mut dump = Dump::default();
        loop {
            match timeout(PATIENCE, self.receive()).await.map_err(|_| Error::Silent)? {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    dump.interrupted = true;
                    continue;
                }
                Err(error) => return Err(Error::from_kernel(error)),
            }
            for message in Messages::new(&self.buffer) {
                // What is left of an earlier request that was given up.
                if message.sequence != self.sequence {
                    continue;
                }
                dump.interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    NLMSG_ERROR => match error_code(message.payload) {
                        0 => return Ok(dump),
                        code => return Err(Error::from_kernel(io::Error::from_raw_os_error(code))),
                    },
                    NLMSG_DONE => return Ok(dump),
                    _ => {
                        dump.rows += 1;
                        each(message.payload);
                        if answer == Answer::One {
                            return Ok(dump);
                        }
                    }
                }
            }
        }
    }

    async fn receive(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            self.buffer.clear();
            let buffer = &mut self.buffer;
            if let Ok(result) = ready.try_io(|socket| socket.get_ref().recv(buffer, 0)) {
                return result.map(drop);
            }
        }
    }
}

impl Error {
    fn from_kernel(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Denied,
            // EINVAL and EOPNOTSUPP are how nfnetlink says that no such subsystem is registered.
            Some(
                libc::EPROTONOSUPPORT
                | libc::EAFNOSUPPORT
                | libc::ESOCKTNOSUPPORT
                | libc::EOPNOTSUPP
                | libc::EINVAL,
            ) => Self::Unsupported(error),
            _ => Self::Io(error),
        }
    }
}

/// Whether one message or a dump is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    One,
    Dump,
}

fn family_of(address: &SocketAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn open_here() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// `struct nlmsgerr` starts with a negative errno.
fn error_code(payload: &[u8]) -> i32 {
    u32_at(payload, 0).map_or(libc::EBADMSG, |code| code.cast_signed().saturating_neg())
}
