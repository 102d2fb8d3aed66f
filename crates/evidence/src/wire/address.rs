//! How is an address written? 4 or 16 bytes of IP; with a port 2 bytes more, in network order; a link-local one with
//! its interface another 4. An IPv6 flow label is left out: nobody looks at it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::Error;

pub(super) fn put_ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(super) fn put(address: SocketAddr) -> Vec<u8> {
    let mut bytes = put_ip(address.ip());
    bytes.extend(address.port().to_be_bytes());
    if let SocketAddr::V6(address) = address
        && address.scope_id() != 0
    {
        bytes.extend(address.scope_id().to_be_bytes());
    }
    bytes
}

pub(super) fn take_ip(what: &'static str, bytes: &[u8]) -> Result<IpAddr, Error> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else {
        Err(Error::Malformed { what, problem: "no IP address" })
    }
}

pub(super) fn take(what: &'static str, bytes: &[u8]) -> Result<SocketAddr, Error> {
    let address = match bytes.len() {
        6 | 18 => bytes
            .split_last_chunk::<2>()
            .and_then(|(ip, port)| Some(SocketAddr::new(take_ip(what, ip).ok()?, u16::from_be_bytes(*port)))),
        22 => bytes.split_last_chunk::<4>().and_then(|(rest, scope)| {
            let (ip, port) = rest.split_last_chunk::<2>()?;
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?);
            let (port, scope) = (u16::from_be_bytes(*port), u32::from_be_bytes(*scope));
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        }),
        _ => None,
    };
    address.ok_or(Error::Malformed { what, problem: "no address with a port" })
}
