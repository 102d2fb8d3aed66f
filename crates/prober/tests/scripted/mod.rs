//! A name server that follows a script and writes down every query, inside a network of its own.
//!
//! The calling thread moves into new network and mount namespaces, and everything it starts from then on is in
//! there too: the server, the real C library's program, the emulation. All of it ends with the thread.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// What the server does with one query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// One address of the type asked for.
    Data,
    /// NOERROR without records, from a server that offers recursion.
    NoData,
    /// NOERROR without records, from one that does not: a lame server.
    Lame,
    /// This response code.
    Code(u8),
    /// One address and the TC flag; over TCP the same without the flag.
    Truncated,
    /// A packet with the right ID that is cut in its question.
    Cut,
    /// First a spoofed answer with another ID, then the data.
    SpoofedThenData,
    /// Nothing.
    Lost,
}

/// What happens to the n-th query (from 0) of a type.
pub type Script = fn(qtype: RecordType, nth: usize) -> Reply;

/// Where a server listens for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transports {
    /// Both.
    UdpAndTcp,
    /// TCP is closed.
    UdpOnly,
}

/// One query as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub at: Instant,
    /// Which of the servers.
    pub server: SocketAddr,
    /// The type asked for.
    pub qtype: RecordType,
    /// Its ID.
    pub id: u16,
    /// The client's port.
    pub port: u16,
    /// Whether it came over TCP.
    pub tcp: bool,
}

/// The server. Ends when dropped.
pub struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Moves the calling thread into a network of its own with loopback up, and a resolv.conf that names these
/// servers. Needs root.
pub fn enter_own_network(servers: &[SocketAddr]) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces (they need root)");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("a private mount namespace");
    let lines: String = servers.iter().map(|server| format!("nameserver {}\n", server.ip())).collect();
    replace("/etc/resolv.conf", &lines);
    if Path::new("/etc/nsswitch.conf").exists() {
        replace("/etc/nsswitch.conf", "hosts: dns\n");
    }
    run("ip", &["link", "set", "lo", "up"]);
}

/// Runs a program to its end and gives what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn replace(path: &str, text: &str) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("writing");
    let real = fs::canonicalize(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    mount(Some(file.path()), &real, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
}

impl Server {
    /// Serves the script at these addresses.
    pub fn start(addresses: &[SocketAddr], transports: Transports, script: Script) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let mut threads = Vec::new();
        for &server in addresses {
            let desk = Desk { server, script, seen: seen.clone(), stop: stop.clone() };
            let udp = UdpSocket::bind(server).expect("UDP port");
            udp.set_read_timeout(Some(TICK)).expect("time-out");
            threads.push(thread::spawn(move || desk.serve_udp(&udp)));
            if transports == Transports::UdpAndTcp {
                let desk = Desk { server, script, seen: seen.clone(), stop: stop.clone() };
                let tcp = TcpListener::bind(server).expect("TCP port");
                tcp.set_nonblocking(true).expect("non-blocking");
                threads.push(thread::spawn(move || desk.serve_tcp(&tcp)));
            }
        }
        Self { seen, stop, threads }
    }

    /// All queries so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One listening socket at work.
struct Desk {
    server: SocketAddr,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Desk {
    fn serve_udp(&self, udp: &UdpSocket) {
        let mut buffer = [0; 1024];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
            let query = Message::from_vec(&buffer[..length]).expect("a query");
            for packet in replies(&query, self.note(&query, from, false), false) {
                udp.send_to(&packet, from).expect("sending");
            }
        }
    }

    fn serve_tcp(&self, tcp: &TcpListener) {
        while !self.stop.load(Ordering::Relaxed) {
            match tcp.accept() {
                Ok((stream, from)) => self.serve_stream(stream, from),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn serve_stream(&self, mut stream: TcpStream, from: SocketAddr) {
        stream.set_nonblocking(false).expect("blocking");
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).expect("a whole query");
            let query = Message::from_vec(&bytes).expect("a query");
            for packet in replies(&query, self.note(&query, from, true), true) {
                let length = u16::try_from(packet.len()).expect("short").to_be_bytes();
                stream.write_all(&[&length, packet.as_slice()].concat()).expect("sending");
            }
        }
    }

    fn note(&self, query: &Message, from: SocketAddr, tcp: bool) -> Reply {
        let qtype = query.queries[0].query_type();
        let mut seen = self.seen.lock().expect("not poisoned");
        let nth = seen.iter().filter(|s| s.qtype == qtype).count();
        let (server, id, port) = (self.server, query.metadata.id, from.port());
        seen.push(Seen { at: Instant::now(), server, qtype, id, port, tcp });
        (self.script)(qtype, nth)
    }
}

fn replies(query: &Message, reply: Reply, tcp: bool) -> Vec<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    let question = query.queries[0].clone();
    message.add_query(question.clone());
    let data = match question.query_type() {
        RecordType::A => RData::A(A(Ipv4Addr::new(192, 0, 2, 1))),
        _ => RData::AAAA(AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
    };
    let record = Record::from_rdata(question.name().clone(), 5, data);
    match reply {
        Reply::Lost => return Vec::new(),
        Reply::NoData => {}
        Reply::Lame => message.metadata.recursion_available = false,
        Reply::Data | Reply::SpoofedThenData => {
            message.add_answer(record);
        }
        Reply::Truncated => {
            message.metadata.truncation = !tcp;
            message.add_answer(record);
        }
        Reply::Code(code) => message.metadata.response_code = ResponseCode::from(0, code),
        Reply::Cut => {
            let whole = message.to_vec().expect("encoding");
            return vec![whole[..whole.len() - 3].to_vec()];
        }
    }
    let whole = message.to_vec().expect("encoding");
    if reply == Reply::SpoofedThenData {
        let mut spoofed = whole.clone();
        spoofed[0] ^= 0x55;
        return vec![spoofed, whole];
    }
    vec![whole]
}

/// How soon the server's threads see that they shall end.
const TICK: Duration = Duration::from_millis(50);
