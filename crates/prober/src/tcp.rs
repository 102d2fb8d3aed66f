//! How are queries asked over TCP: all of them pipelined on one connection?

use std::net::SocketAddr;

use netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::wire::{Answer, Query};

/// Opens one connection, writes every query in one go and reads until each has its answer. Answers come in
/// the order of arrival; those with other IDs are skipped. The errno is that of the step that failed;
/// a connection closed early is ECONNRESET.
pub(crate) async fn ask(
    namespace: &Namespace,
    server: SocketAddr,
    queries: &[Query],
    room: usize,
) -> Result<Vec<Answer>, Errno> {
    let mut stream = open(namespace, server).await?;
    let mut request = Vec::new();
    for query in queries {
        request.extend(u16::try_from(query.bytes.len()).map_err(|_| Errno::EMSGSIZE)?.to_be_bytes());
        request.extend(&query.bytes);
    }
    stream.write_all(&request).await.map_err(errno_of)?;
    let mut waiting: Vec<&Query> = queries.iter().collect();
    let mut answers = Vec::new();
    while !waiting.is_empty() {
        let length = stream.read_u16().await.map_err(errno_of)?;
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await.map_err(errno_of)?;
        bytes.truncate(room);
        let answer = Answer::read(&bytes).filter(|a| a.whole_header).ok_or(Errno::EMSGSIZE)?;
        if let Some(index) = waiting.iter().position(|query| query.has_id_of(&answer)) {
            waiting.remove(index);
            answers.push(answer);
        }
    }
    Ok(answers)
}

async fn open(namespace: &Namespace, server: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if server.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let made = namespace.run(move || socket(family, SockType::Stream, flags, None)).await;
    let fd = made.map_err(|_| Errno::ENETDOWN)??;
    TcpSocket::from_std_stream(fd.into()).connect(server).await.map_err(errno_of)
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::ECONNRESET, Errno::from_raw)
}
