//! How does a query leave, and what comes back: an answer with the kernel's timestamp, or an ICMP error?
//!
//! A socket is made inside the vantage's namespace and then used from anywhere. Both kinds have IP_RECVERR
//! set. For glibc's connected socket that is the library's own choice. musl's socket is not connected and
//! never learns of ICMP; here the errors are read so that they can be told as evidence, and the profile
//! goes on as musl would.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use evidence::{BootTime, ClockReading, WallTime};
use netns::Namespace;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SetSockOpt, SockFlag, SockType, SockaddrIn, SockaddrIn6,
    SockaddrStorage, bind, connect, getsockname, recvmsg, send, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::Error;

/// A UDP socket for lookups.
#[derive(Debug)]
pub(crate) struct Socket {
    udp: UdpSocket,
    connected: bool,
    v6: bool,
    buffer: usize,
    sources: Vec<(SocketAddr, SocketAddr)>,
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A packet, no longer than the profile's buffer.
    Packet { from: SocketAddr, at: BootTime, bytes: Vec<u8> },
    /// An error that the network reported, for the query with this ID if the report quotes it.
    Unreachable { errno: i32, server: Option<SocketAddr>, query_id: Option<u16> },
}

/// A connected socket, or the reason of the kernel why there is no way to the server.
pub(crate) type Connected = Result<Socket, Errno>;

impl Socket {
    /// A socket connected to one server, as glibc has it.
    pub(crate) async fn connected(
        namespace: &Namespace,
        server: SocketAddr,
        buffer: usize,
    ) -> Result<Connected, Error> {
        let made = namespace.run(move || make_connected(server)).await??;
        match made {
            Ok((fd, source)) => {
                let sources = vec![(server, source)];
                Ok(Ok(Self { udp: watch(fd)?, connected: true, v6: server.is_ipv6(), buffer, sources }))
            }
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// A socket bound to any address and connected to none, as musl has it. One IPv6 server makes it an
    /// IPv6 socket that sends to IPv4 servers by mapped addresses.
    pub(crate) async fn unconnected(
        namespace: &Namespace,
        servers: &[SocketAddr],
        buffer: usize,
    ) -> Result<Self, Error> {
        let v6 = servers.iter().any(SocketAddr::is_ipv6);
        let servers = servers.to_vec();
        let (fd, sources) = namespace.run(move || make_unconnected(&servers, v6)).await??;
        Ok(Self { udp: watch(fd)?, connected: false, v6, buffer, sources })
    }

    /// The address that the kernel puts into packets for this server.
    pub(crate) fn source(&self, server: SocketAddr) -> SocketAddr {
        self.sources.iter().find(|(to, _)| *to == server).map_or(unspecified(server), |(_, source)| *source)
    }

    /// Sends one packet. The error is what the library's own send would have got.
    pub(crate) fn send(&self, server: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let first = self.send_once(server, bytes);
        // An ICMP error of an earlier packet is handed to the next call on the socket. musl's socket would not
        // have it, so it is set aside: the error queue still holds it for `receive`. EPERM is never ICMP's, and
        // a second try would be a second packet in a rule's counter.
        match first {
            Err(errno) if !self.connected && errno != Errno::EPERM => self.send_once(server, bytes),
            Ok(()) | Err(_) => first,
        }
    }

    /// Waits for the next packet or ICMP error. May be dropped while waiting.
    pub(crate) async fn receive(&self) -> Result<Arrival, Error> {
        let fd = self.udp.as_raw_fd();
        self.udp
            .async_io(Interest::READABLE | Interest::ERROR, || self.receive_once(fd))
            .await
            .map_err(Error::Watch)
    }

    fn send_once(&self, server: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let fd = self.udp.as_raw_fd();
        if self.connected {
            return send(fd, bytes, MsgFlags::MSG_NOSIGNAL).map(drop);
        }
        let to = SockaddrStorage::from(if self.v6 { mapped(server) } else { server });
        sendto(fd, bytes, &to, MsgFlags::MSG_NOSIGNAL).map(drop)
    }

    fn receive_once(&self, fd: RawFd) -> io::Result<Arrival> {
        match read_packet(fd, self.buffer, MsgFlags::empty()) {
            Err(Errno::EAGAIN) => Ok(read_packet(fd, self.buffer, MsgFlags::MSG_ERRQUEUE)?),
            // The same error waits in the error queue, there with the packet that it is about.
            Err(errno) => Ok(read_packet(fd, self.buffer, MsgFlags::MSG_ERRQUEUE)
                .unwrap_or(Arrival::Unreachable { errno: errno as i32, server: None, query_id: None })),
            Ok(arrival) => Ok(arrival),
        }
    }
}

/// Whether there is no way to the server, or nobody there: by ICMP's word, by routing's, or for want of the
/// whole address family.
pub(crate) fn is_unreachable(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::EHOSTDOWN
            | Errno::EACCES
            | Errno::EADDRNOTAVAIL
            | Errno::EAFNOSUPPORT
    )
}

/// The address that stands for "none yet" in the family of `like`.
pub(crate) fn unspecified(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn make_connected(server: SocketAddr) -> Result<Result<(OwnedFd, SocketAddr), Errno>, Error> {
    let fd = match make(server.is_ipv6()) {
        Err(Error::Socket { errno: errno @ Errno::EAFNOSUPPORT, .. }) => return Ok(Err(errno)),
        made => made?,
    };
    if let Err(errno) = connect(fd.as_raw_fd(), &SockaddrStorage::from(server)) {
        return Ok(Err(errno));
    }
    let source = local_address(&fd).unwrap_or_else(|| unspecified(server));
    Ok(Ok((fd, source)))
}

fn make_unconnected(
    servers: &[SocketAddr],
    v6: bool,
) -> Result<(OwnedFd, Vec<(SocketAddr, SocketAddr)>), Error> {
    let fd = make(v6)?;
    if v6 {
        set(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    let any =
        if v6 { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any))
        .map_err(|errno| Error::Socket { step: "bind", errno })?;
    let port = local_address(&fd).map_or(0, |address| address.port());
    let sources =
        servers.iter().map(|&server| (server, SocketAddr::new(route_source(server), port))).collect();
    Ok((fd, sources))
}

fn make(v6: bool) -> Result<OwnedFd, Error> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Datagram, flags, None)
        .map_err(|errno| Error::Socket { step: "open", errno })?;
    set(&fd, sockopt::ReceiveTimestampns, &true)?;
    if v6 {
        set(&fd, sockopt::Ipv6RecvErr, &true)?;
    }
    // An IPv6 socket takes the IPv4 option too: mapped addresses need it.
    set(&fd, sockopt::Ipv4RecvErr, &true)?;
    Ok(fd)
}

fn set<O: SetSockOpt>(fd: &OwnedFd, option: O, value: &O::Val) -> Result<(), Error> {
    setsockopt(fd, option, value).map_err(|errno| Error::Socket { step: "configure", errno })
}

/// The source address that routing picks for this server. Connecting a UDP socket sends nothing.
fn route_source(server: SocketAddr) -> IpAddr {
    let family = if server.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .ok()
        .filter(|fd| connect(fd.as_raw_fd(), &SockaddrStorage::from(server)).is_ok())
        .and_then(|fd| local_address(&fd))
        .map_or(unspecified(server).ip(), |address| address.ip())
}

fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok().as_ref().and_then(plain)
}

fn watch(fd: OwnedFd) -> Result<UdpSocket, Error> {
    UdpSocket::from_std(StdSocket::from(fd)).map_err(Error::Watch)
}

fn read_packet(fd: RawFd, room: usize, flags: MsgFlags) -> Result<Arrival, Errno> {
    let mut bytes = vec![0; room];
    let mut control = nix::cmsg_space!(TimeSpec, libc::sock_extended_err, libc::sockaddr_in6, [u8; 64]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags)?;
    let peer = message.address.as_ref().and_then(plain);
    let length = message.bytes;
    let mut stamp = None;
    let mut refused = None;
    for part in message.cmsgs().into_iter().flatten() {
        match part {
            ControlMessageOwned::ScmTimestampns(time) => stamp = Some(time),
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                refused = i32::try_from(error.ee_errno).ok();
            }
            _ => {}
        }
    }
    bytes.truncate(length);
    if let Some(errno) = refused {
        let query_id = bytes.first_chunk().map(|id| u16::from_be_bytes(*id));
        return Ok(Arrival::Unreachable { errno, server: peer, query_id });
    }
    let clock = ClockReading::now();
    // A stamp ahead of the clock means that the clock was set back in between.
    let at = stamp.map_or(clock.boot, |time| clock.boot_of(wall_time(time))).min(clock.boot);
    let from = peer.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
    Ok(Arrival::Packet { from, at, bytes })
}

fn wall_time(time: TimeSpec) -> WallTime {
    WallTime(time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec()))
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

/// A kernel's address as ours, mapped IPv4 as IPv4.
fn plain(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a: &SockaddrIn| SocketAddr::from(*a));
    let v6 = || address.as_sockaddr_in6().map(|a: &SockaddrIn6| SocketAddr::from(*a));
    v4.or_else(v6).map(|a| match (a.ip().to_canonical(), a) {
        (IpAddr::V4(ip), _) => (ip, a.port()).into(),
        (IpAddr::V6(_), same) => same,
    })
}
