//! How is one namespace's conntrack table made full without touching nf_conntrack_max?
//!
//! By ctnetlink: established, assured TCP entries between documentation addresses, which the kernel neither
//! evicts early nor expires soon. All carry one mark, so exactly these are deleted again in one request. Other
//! entries expire and free slots, so whoever wants the table to stay full calls [`Filler::top_up`] again and
//! again.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use netns::Namespace;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The mark of every entry made here: "labf".
pub const MARK: u32 = 0x6c61_6266;

/// How full a namespace's table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Entries in this namespace, of anyone.
    pub entries: u32,
    /// nf_conntrack_max, as the kernel applies it here.
    pub maximum: u32,
}

/// Makes entries in one namespace.
#[derive(Debug)]
pub struct Filler {
    socket: Socket,
    next: u32,
}

impl Filler {
    /// Opens a netlink socket in the namespace. `first` is the number of the first entry: who goes on where
    /// another filler ended passes a number that is not used yet.
    pub fn open(netns: &Path, first: u32) -> Result<Self, Error> {
        Ok(Self { socket: socket_in(netns)?, next: first })
    }

    /// Fills the table, and leaves no entry in it that the kernel could evict for a new connection. Without the
    /// second step every finished lookup's entry lets one more packet in. Gives up after the deadline, with what
    /// was reached.
    pub fn fill_for_good(&mut self, deadline: Duration) -> Result<Occupancy, Error> {
        self.fill(deadline)?;
        let evictable =
            [attribute(CTA_STATUS, &[0; 4]), attribute(CTA_STATUS_MASK, &IPS_ASSURED.to_be_bytes())];
        self.delete(&evictable.concat())?;
        self.fill(deadline)
    }

    /// Fills the table to its maximum. Gives up after the deadline, with what was reached.
    pub fn fill(&mut self, deadline: Duration) -> Result<Occupancy, Error> {
        let end = Instant::now() + deadline;
        let mut now = self.occupancy()?;
        while !now.full() && Instant::now() < end {
            let missing = now.maximum.saturating_sub(now.entries);
            for _ in 0..missing.div_ceil(BATCH) {
                self.insert(BATCH)?;
            }
            now = self.occupancy()?;
        }
        Ok(now)
    }

    /// One round of keeping it full: takes the slots that were freed.
    pub fn top_up(&mut self) -> Result<Occupancy, Error> {
        let now = self.occupancy()?;
        if now.full() { Ok(now) } else { self.fill(Duration::from_secs(5)) }
    }

    /// How full the table is.
    pub fn occupancy(&self) -> Result<Occupancy, Error> {
        let request = message(CT_GET_STATS, NLM_F_REQUEST, &[]);
        self.send(&request)?;
        loop {
            let (reply, _) =
                self.socket.recv_from_full().map_err(Error::system("read conntrack statistics"))?;
            // Refusals of insertions before may still be queued.
            if kind(&reply) == Some(CT_GET_STATS) {
                let attributes = reply.get(HEADERS..).unwrap_or_default();
                let number = |wanted| find_u32(attributes, wanted);
                return match (number(STATS_ENTRIES), number(STATS_MAXIMUM)) {
                    (Some(entries), Some(maximum)) => Ok(Occupancy { entries, maximum }),
                    _ => Err(Error::system("read conntrack statistics")(
                        std::io::ErrorKind::InvalidData.into(),
                    )),
                };
            }
        }
    }

    /// Sends many entries in one message. Those that the kernel refuses (table full) are told by error
    /// messages, which are not read: the count tells.
    fn insert(&mut self, count: u32) -> Result<(), Error> {
        let mut batch = Vec::with_capacity(count as usize * 160);
        for _ in 0..count {
            batch.extend(new_entry(self.next));
            self.next = self.next.wrapping_add(1);
        }
        self.send(&batch)?;
        self.discard_refusals();
        Ok(())
    }

    /// Deletes all entries that the filter matches, in one walk of the kernel's.
    fn delete(&self, filter: &[u8]) -> Result<(), Error> {
        let failed = || Error::system("delete conntrack entries");
        self.discard_refusals();
        self.send(&message(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, filter))?;
        let (reply, _) = self.socket.recv_from_full().map_err(failed())?;
        match reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(errno) => Err(failed()(std::io::Error::from_raw_os_error(errno.saturating_neg()))),
            None => Err(failed()(std::io::ErrorKind::InvalidData.into())),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.socket.send(bytes, 0).map_err(Error::system("send to ctnetlink"))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(Error::system("send to ctnetlink")(std::io::ErrorKind::WriteZero.into()))
        }
    }

    fn discard_refusals(&self) {
        let mut buffer = Vec::with_capacity(4096);
        while self.socket.recv(&mut buffer, DONT_WAIT).is_ok() {
            buffer.clear();
        }
    }
}

impl Occupancy {
    /// No new connection gets an entry.
    pub fn full(self) -> bool {
        self.entries >= self.maximum
    }
}

/// Deletes every entry that was made here, and no other, in this namespace. Gives the occupancy after it.
pub fn remove(netns: &Path) -> Result<Occupancy, Error> {
    let filler = Filler::open(netns, 0)?;
    let mark = [attribute(CTA_MARK, &MARK.to_be_bytes()), attribute(CTA_MARK_MASK, &[0xff; 4])];
    filler.delete(&mark.concat())?;
    filler.occupancy()
}

fn socket_in(netns: &Path) -> Result<Socket, Error> {
    let mut socket = Namespace::open(netns)?
        .run_blocking(|| Socket::new(NETLINK_NETFILTER))?
        .map_err(Error::system("open a ctnetlink socket"))?;
    let kernel = SocketAddr::new(0, 0);
    socket
        .bind_auto()
        .and_then(|_| socket.connect(&kernel))
        // Refusals come without a copy of the request; those that don't fit are dropped silently.
        .and_then(|()| socket.set_cap_ack(true))
        .and_then(|()| socket.set_no_enobufs(true))
        .map_err(Error::system("set up a ctnetlink socket"))?;
    Ok(socket)
}

/// Entry number n: an established TCP connection inside 198.51.100.0/24.
fn new_entry(number: u32) -> Vec<u8> {
    let [_, _, _, host] = (number % 250).to_be_bytes();
    let [_, _, port_high, port_low] = (10_000 + (number / 250) % 50_000).to_be_bytes();
    let client = Ipv4Addr::new(198, 51, 100, host.saturating_add(1));
    let server = Ipv4Addr::new(198, 51, 100, 254);
    let (client_port, server_port) = ([port_high, port_low], 443u16.to_be_bytes());
    let state = nested(CTA_PROTOINFO, &nested(PROTOINFO_TCP, &attribute(TCP_STATE, &[TCP_ESTABLISHED])));
    let attributes = [
        tuple(CTA_TUPLE_ORIG, client, server, client_port, server_port),
        tuple(CTA_TUPLE_REPLY, server, client, server_port, client_port),
        attribute(CTA_STATUS, &(IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED).to_be_bytes()),
        state,
        attribute(CTA_TIMEOUT, &LIFETIME.to_be_bytes()),
        attribute(CTA_MARK, &MARK.to_be_bytes()),
    ];
    message(CT_NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &attributes.concat())
}

fn tuple(kind: u16, from: Ipv4Addr, to: Ipv4Addr, from_port: [u8; 2], to_port: [u8; 2]) -> Vec<u8> {
    let addresses = [attribute(1, &from.octets()), attribute(2, &to.octets())].concat();
    let ports = [attribute(1, &[IPPROTO_TCP]), attribute(2, &from_port), attribute(3, &to_port)].concat();
    nested(kind, &[nested(CTA_TUPLE_IP, &addresses), nested(CTA_TUPLE_PROTO, &ports)].concat())
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([AF_INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, value)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn kind(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?))
}

fn find_u32(mut attributes: &[u8], wanted: u16) -> Option<u32> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if kind == wanted {
            return Some(u32::from_be_bytes(attributes.get(4..8)?.try_into().ok()?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Entries in one send: well under the socket's send buffer.
const BATCH: u32 = 256;
/// Longer than any test, in seconds.
const LIFETIME: u32 = 3_600;
/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 20;

// linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
const DONT_WAIT: i32 = 0x40;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const SUBSYSTEM: u16 = 1 << 8;
const CT_NEW: u16 = SUBSYSTEM;
const CT_DELETE: u16 = SUBSYSTEM | 2;
const CT_GET_STATS: u16 = SUBSYSTEM | 5;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_ESTABLISHED: u8 = 3;
const STATS_ENTRIES: u16 = 1;
const STATS_MAXIMUM: u16 = 2;
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_CONFIRMED: u32 = 1 << 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_entries_of_a_full_table_are_alike() {
        let mut seen: Vec<_> = (0..300_000).map(new_entry).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 300_000);
    }

    #[test]
    fn a_message_says_its_own_length() {
        let entry = new_entry(1);
        assert_eq!(u32::from_ne_bytes(entry[..4].try_into().unwrap()) as usize, entry.len());
        assert!(entry.len() * (BATCH as usize) < 100_000);
    }
}
