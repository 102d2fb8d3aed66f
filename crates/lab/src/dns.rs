//! Does a server answer a question, asked from inside a namespace?
//!
//! Just enough DNS to wait for a server. What resolvers do is the prober's matter.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use netns::Namespace;

use crate::Error;
use crate::process::{Daemon, wait_until};

/// The kinds of question the lab asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A = 1,
    /// IPv6 addresses.
    Aaaa = 28,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// 0 NOERROR, 2 SERVFAIL, 3 NXDOMAIN.
    pub rcode: u8,
    /// Records in the answer section.
    pub records: u16,
}

/// Asks once over UDP, from inside the namespace.
pub fn ask_udp(
    netns: &Path,
    server: SocketAddr,
    name: &str,
    kind: Kind,
    wait: Duration,
) -> Result<Answer, Error> {
    let query = query(name, kind);
    let asked = Namespace::open(netns)?.run_blocking(move || {
        let socket = UdpSocket::bind(any(server))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(wait))?;
        socket.send(&query)?;
        let mut reply = [0; 4096];
        let length = socket.recv(&mut reply)?;
        head(reply.get(..length).unwrap_or_default())
    })?;
    asked.map_err(Error::system(format!("ask {server} for {name}")))
}

/// Asks once over TCP, from inside the namespace.
pub fn ask_tcp(
    netns: &Path,
    server: SocketAddr,
    name: &str,
    kind: Kind,
    wait: Duration,
) -> Result<Answer, Error> {
    let query = query(name, kind);
    let asked = Namespace::open(netns)?.run_blocking(move || {
        let mut stream = TcpStream::connect_timeout(&server, wait)?;
        stream.set_read_timeout(Some(wait))?;
        let mut framed = u16::try_from(query.len()).unwrap_or_default().to_be_bytes().to_vec();
        framed.extend_from_slice(&query);
        stream.write_all(&framed)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        head(&reply)
    })?;
    asked.map_err(Error::system(format!("ask {server} for {name} over TCP")))
}

/// Waits till the server itself answers with a record, asked from its own namespace.
pub fn wait_till_answers(
    daemon: &Daemon,
    server: SocketAddr,
    name: &str,
    deadline: Duration,
) -> Result<(), Error> {
    wait_for(&format!("{} at {server}", daemon.name), deadline, Some(daemon), || {
        ask_udp(&daemon.netns, server, name, Kind::A, Duration::from_millis(300))
            .map_err(|error| error.to_string())
            .and_then(|answer| if answer.records > 0 { Ok(()) } else { Err(format!("{answer:?}")) })
    })
}

/// Asks until the answer is yes, or tells the last answer and the end of the log. A daemon that has ended is
/// told at once.
pub fn wait_for(
    what: &str,
    deadline: Duration,
    daemon: Option<&Daemon>,
    mut ask: impl FnMut() -> Result<(), String>,
) -> Result<(), Error> {
    let mut last = "not asked".to_owned();
    let mut ended = None;
    let begin = Instant::now();
    let ready = wait_until(deadline, || {
        if let Some(Err(error)) = daemon.map(Daemon::running) {
            ended = Some(error);
            return true;
        }
        ask().map_err(|why| last = why).is_ok()
    });
    match ended {
        Some(error) => Err(error),
        None if ready => Ok(()),
        None => Err(Error::NotReady {
            what: what.to_owned(),
            seconds: begin.elapsed().as_secs(),
            last,
            log: daemon.map(Daemon::log_tail).unwrap_or_default(),
        }),
    }
}

fn any(server: SocketAddr) -> SocketAddr {
    match server.ip() {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// RFC 1035, 4.1: header with RD, one question.
fn query(name: &str, kind: Kind) -> Vec<u8> {
    let mut query = vec![0x1a, 0xb0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(u8::try_from(label.len()).unwrap_or_default());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, kind as u8, 0, 1]);
    query
}

fn head(reply: &[u8]) -> std::io::Result<Answer> {
    match reply {
        [_, _, _, flags, _, _, high, low, ..] => {
            Ok(Answer { rcode: flags & 0x0f, records: u16::from_be_bytes([*high, *low]) })
        }
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_laid_out_as_the_rfc_says() {
        let query = query("example.com", Kind::Aaaa);
        assert_eq!(query.get(12..), Some(&b"\x07example\x03com\0\0\x1c\0\x01"[..]));
    }

    #[test]
    fn a_short_reply_is_no_answer() {
        assert!(head(&[0; 5]).is_err());
    }
}
