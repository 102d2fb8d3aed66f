//! How do two pods' flows come to clash on one reply tuple, and how many queries does that really lose?
//!
//! Two pods behind one plain MASQUERADE send to the same address from the same source port at the same
//! instant. Each packet passes the look-up and the source NAT before the other is confirmed, both are
//! given the node's address with that port, and the kernel drops the one that is confirmed second. It
//! takes two threads on two CPUs that leave a spinning barrier together: one thread that sends twice
//! hardly ever meets the window, which is about a microsecond wide.
//!
//! Every round uses a port that neither pod has used for longer than an entry lives, a socket of its own
//! and one query, never resent. So "lost" is exact: no answer a second after it was sent.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns::Namespace;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Seen;
use super::question::{self, Question};
use crate::Error;

/// What a storm is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Storm {
    /// The two pods' namespaces.
    pub pods: [PathBuf; 2],
    /// Where both send: a Service address, so that the packets are DNATed.
    pub target: SocketAddr,
    /// Rounds a second; each is one query from each pod.
    pub rounds_per_second: u32,
    /// The first source port; the seed moves it.
    pub first_port: u16,
    /// How many ports are used in turn. At this rate they must last longer than an entry lives.
    pub ports: u16,
    /// Rounds that were blown before by an earlier storm of these ports: its last ones still have entries, which
    /// would be used again and could not clash.
    #[serde(default)]
    pub rounds_before: u64,
    /// The name asked for.
    pub name: String,
}

/// A storm that is blowing: two threads.
#[derive(Debug)]
pub struct Blowing {
    stop: Arc<AtomicBool>,
    counts: [Arc<Counts>; 2],
    threads: Vec<thread::JoinHandle<()>>,
}

/// How long a client waits for an answer before the query counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Rounds after each wake-up. The first finds cold caches and rarely clashes; those after it do.
const BURST: u32 = 10;

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    lost: AtomicU64,
    unsent: AtomicU64,
}

/// Both clients arrive, spin, and leave with the same round number at the same instant.
#[derive(Debug, Default)]
struct StartingLine {
    arrived: [AtomicU64; 2],
}

struct Client {
    index: usize,
    namespace: Namespace,
    storm: Storm,
    question: Question,
    line: Arc<StartingLine>,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

struct Waiting {
    socket: UdpSocket,
    id: u16,
    sent: Instant,
}

impl Storm {
    /// Starts both clients. They go on until [`Blowing::stop`].
    pub fn start(&self) -> Result<Blowing, Error> {
        let question = Question::for_address(&self.name)?;
        let stop = Arc::new(AtomicBool::new(false));
        let line = Arc::new(StartingLine::default());
        let counts = [Arc::default(), Arc::default()];
        let mut threads = Vec::new();
        for (index, (pod, counts)) in self.pods.iter().zip(&counts).enumerate() {
            let client = Client {
                index,
                namespace: Namespace::open(pod)?,
                storm: self.clone(),
                question: question.clone(),
                line: Arc::clone(&line),
                stop: Arc::clone(&stop),
                counts: Arc::clone(counts),
            };
            let thread = thread::Builder::new()
                .name(format!("storm-{index}"))
                .spawn(move || client.run())
                .map_err(Error::system("start a thread of the storm"))?;
            threads.push(thread);
        }
        Ok(Blowing { stop, counts, threads })
    }
}

impl Blowing {
    /// What each pod's client has seen so far. Queries younger than a second are sent, but neither answered
    /// nor lost.
    pub fn seen(&self) -> [Seen; 2] {
        self.counts.each_ref().map(|counts| counts.read())
    }

    /// Sends no more, waits out the last second, and tells what each client saw: sent = answered + lost.
    pub fn stop(mut self) -> [Seen; 2] {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Drop for Blowing {
    fn drop(&mut self) {
        self.end();
    }
}

impl Client {
    fn run(self) {
        pin_to_cpu(self.index);
        let period = Duration::from_secs(1) * BURST / self.storm.rounds_per_second.max(1);
        let mut waiting = VecDeque::new();
        let mut next = Instant::now();
        let mut round = self.storm.rounds_before;
        'storm: loop {
            while waiting.front().is_some_and(|query: &Waiting| query.sent.elapsed() >= PATIENCE) {
                if let Some(query) = waiting.pop_front() {
                    self.settle(&query);
                }
            }
            let prepared: Vec<_> = (1..=u64::from(BURST)).map(|step| self.prepare(round + step)).collect();
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next = Instant::now() + period;
            for (socket, id, query) in prepared {
                round += 1;
                if !self.line.leave_together(self.index, round, &self.stop) {
                    break 'storm;
                }
                match socket.and_then(|socket| socket.send(&query).map(|_| socket)) {
                    Ok(socket) => {
                        self.counts.sent.fetch_add(1, Ordering::Relaxed);
                        waiting.push_back(Waiting { socket, id, sent: Instant::now() });
                    }
                    Err(_) => drop(self.counts.unsent.fetch_add(1, Ordering::Relaxed)),
                }
            }
        }
        for query in waiting {
            thread::sleep(PATIENCE.saturating_sub(query.sent.elapsed()));
            self.settle(&query);
        }
    }

    fn prepare(&self, round: u64) -> (std::io::Result<UdpSocket>, u16, Vec<u8>) {
        let id = u16::try_from(round & 0xffff).unwrap_or_default();
        (self.socket(round), id, self.question.with_id(id))
    }

    fn socket(&self, round: u64) -> std::io::Result<UdpSocket> {
        let offset = u16::try_from(round % u64::from(self.storm.ports.max(1))).unwrap_or_default();
        let port = self.storm.first_port.saturating_add(offset);
        let target = self.storm.target;
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.namespace
            .run_blocking(move || {
                let socket = UdpSocket::bind((any, port))?;
                socket.connect(target)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .unwrap_or_else(|gone| Err(std::io::Error::other(gone)))
    }

    /// A second has gone: what is in the socket's buffer is all that came in time.
    fn settle(&self, query: &Waiting) {
        let mut datagram = [0; 1500];
        loop {
            match query.socket.recv(&mut datagram) {
                Ok(length) if question::answers(datagram.get(..length).unwrap_or_default(), query.id) => {
                    self.counts.answered.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing there, or an ICMP error instead of an answer.
                Err(_) => {
                    self.counts.lost.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

impl StartingLine {
    /// Waits for the other client, spinning for the last stretch. False: the storm is over.
    fn leave_together(&self, index: usize, round: u64, stop: &AtomicBool) -> bool {
        let [first, second] = &self.arrived;
        let (own, other) = if index == 0 { (first, second) } else { (second, first) };
        own.store(if stop.load(Ordering::Acquire) { u64::MAX } else { round }, Ordering::Release);
        let arrived = Instant::now();
        loop {
            let there = other.load(Ordering::Acquire);
            if own.load(Ordering::Relaxed) == u64::MAX || there == u64::MAX {
                own.store(u64::MAX, Ordering::Release);
                return false;
            }
            if there >= round {
                return true;
            }
            // The other thread may have lost its CPU for a while: don't burn this one meanwhile.
            if arrived.elapsed() > Duration::from_millis(2) {
                thread::sleep(Duration::from_micros(200));
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl Counts {
    fn read(&self) -> Seen {
        Seen {
            sent: self.sent.load(Ordering::Relaxed),
            answered: self.answered.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            unsent: self.unsent.load(Ordering::Relaxed),
        }
    }
}

/// Best effort: where the affinity can't be set the storm still blows, with fewer clashes.
fn pin_to_cpu(index: usize) {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    if set.set(index % cpus).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
