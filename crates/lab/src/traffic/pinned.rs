//! What does a client with a pinned source port go through?
//!
//! c-ares, Envoy and other resolvers keep one socket for all their queries. Each query renews the port's
//! conntrack entry, so the entry lives for as long as the client sends, wherever it leads.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netns::Namespace;
use serde::{Deserialize, Serialize};

use super::Seen;
use super::question::{self, Question};
use super::storm::PATIENCE;
use crate::Error;

/// A client with one socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pinned {
    /// The pod's namespace.
    pub pod: PathBuf,
    /// The Service address it asks.
    pub target: SocketAddr,
    /// Its source port, for ever.
    pub port: u16,
    /// Queries a second.
    pub queries_per_second: u32,
    /// The name asked for.
    pub name: String,
}

/// A pinned client that sends.
#[derive(Debug)]
pub struct Sending {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Client {
    socket: UdpSocket,
    question: Question,
    period: Duration,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

/// Asks once from this port and tells whether an answer came in time. The entry that this makes in the node's
/// table is the one a client pinned to the port will use.
pub fn ask_once(pod: &Path, target: SocketAddr, port: u16, question: &Question) -> Result<bool, Error> {
    let socket = socket(pod, target, port)?;
    socket.set_nonblocking(false).map_err(Error::system("make a socket block"))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(Error::system("set a read timeout"))?;
    let mut datagram = [0; 1500];
    let answer = socket.send(&question.with_id(port)).and_then(|_| socket.recv(&mut datagram));
    Ok(answer.is_ok_and(|length| question::answers(datagram.get(..length).unwrap_or_default(), port)))
}

impl Pinned {
    /// Starts the client. It goes on until [`Sending::stop`].
    pub fn start(&self) -> Result<Sending, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let client = Client {
            socket: socket(&self.pod, self.target, self.port)?,
            question: Question::for_address(&self.name)?,
            period: Duration::from_secs(1) / self.queries_per_second.max(1),
            stop: Arc::clone(&stop),
            seen: Arc::clone(&seen),
        };
        let thread = thread::Builder::new()
            .name("pinned".into())
            .spawn(move || client.run())
            .map_err(Error::system("start a thread for a pinned client"))?;
        Ok(Sending { stop, seen, thread: Some(thread) })
    }
}

impl Sending {
    /// What the client has seen so far. Queries younger than a second are sent, but neither answered nor lost.
    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends no more, waits out the last second, and tells what the client saw.
    pub fn stop(mut self) -> Seen {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.end();
    }
}

impl Client {
    fn run(self) {
        let mut waiting: Vec<(u16, Instant)> = Vec::new();
        let mut next = Instant::now();
        let mut id = 0u16;
        loop {
            // Reading first takes a pending ICMP error off the socket, which would else eat the next send.
            self.receive(&mut waiting);
            let stopped = self.stop.load(Ordering::Acquire);
            if stopped && waiting.is_empty() {
                return;
            }
            if !stopped && Instant::now() >= next {
                next += self.period;
                id = id.wrapping_add(1);
                let sent = self.socket.send(&self.question.with_id(id)).is_ok();
                self.count(|seen| if sent { seen.sent += 1 } else { seen.unsent += 1 });
                if sent {
                    waiting.push((id, Instant::now()));
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn receive(&self, waiting: &mut Vec<(u16, Instant)>) {
        let mut datagram = [0; 1500];
        loop {
            match self.socket.recv(&mut datagram) {
                Ok(length) => {
                    let datagram = datagram.get(..length).unwrap_or_default();
                    let before = waiting.len();
                    waiting.retain(|(id, _)| !question::answers(datagram, *id));
                    self.count(|seen| seen.answered += (before - waiting.len()) as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // An ICMP error: the query stays unanswered.
                Err(_) => {}
            }
        }
        let before = waiting.len();
        waiting.retain(|(_, sent)| sent.elapsed() < PATIENCE);
        self.count(|seen| seen.lost += (before - waiting.len()) as u64);
    }

    fn count(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn socket(pod: &Path, target: SocketAddr, port: u16) -> Result<UdpSocket, Error> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let made = Namespace::open(pod)?.run_blocking(move || {
        let socket = UdpSocket::bind((any, port))?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    made.map_err(Error::system(format!("make a client socket on port {port}")))
}
