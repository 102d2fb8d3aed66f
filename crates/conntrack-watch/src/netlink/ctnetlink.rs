//! What do conntrack's netlink messages say?
//!
//! Requests as bytes, answers as values. No IO, and nothing that changes the table: this crate only reads it.
//! Numbers are from `linux/netfilter/nfnetlink_conntrack.h`, which is part of the kernel's stable interface.

use std::net::{IpAddr, SocketAddr};

use evidence::{Protocol, Tuple};

use super::wire::{Attribute, Attributes, Request};

const GET: u16 = SUBSYSTEM | 1;
const GET_STATS_CPU: u16 = SUBSYSTEM | 4;
const GET_STATS: u16 = SUBSYSTEM | 5;
/// `NFNL_SUBSYS_CTNETLINK` in the high octet.
const SUBSYSTEM: u16 = 1 << 8;

/// IPv4, as `nfgenmsg` has it.
pub const AF_INET: u8 = libc::AF_INET as u8;
/// IPv6, as `nfgenmsg` has it.
pub const AF_INET6: u8 = libc::AF_INET6 as u8;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;

/// `CTA_FILTER_FLAG(CTA_FILTER_PROTO_NUM)` and `..PROTO_DST_PORT`, in host byte order unlike all else here.
const FILTER_PROTOCOL_AND_DESTINATION_PORT: u32 = 1 << 3 | 1 << 5;

const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;

/// The counters of one CPU (`struct ip_conntrack_stat` as ctnetlink tells it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// The CPU's number.
    pub cpu: u16,
    /// NAT probed a tuple that was taken.
    pub found: u32,
    /// Packets that no tracker would take.
    pub invalid: u32,
    /// Insertions refused.
    pub insert_failed: u32,
    /// Packets dropped.
    pub drop: u32,
    /// Entries evicted.
    pub early_drop: u32,
    /// Clashes resolved.
    pub clash_resolve: u32,
    /// Insertions refused for a long hash chain.
    pub chain_toolong: u32,
}

/// The table's size and limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableSize {
    /// Entries in it, of this namespace.
    pub entries: u32,
    /// The most allowed. Zero where the kernel (before 5.11) doesn't tell.
    pub max: u32,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The tuple as the first packet had it.
    pub original: Tuple,
    /// The tuple that answers have: its source is where packets really go.
    pub reply: Tuple,
    /// The kernel's id.
    pub id: u32,
    /// `IPS_*` bits.
    pub status: u32,
    /// Seconds until it expires.
    pub expires_secs: u32,
}

impl Entry {
    /// Reads a row. None where it is neither UDP nor TCP over IP, or lacks a part.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (mut original, mut reply, mut id, mut status, mut expires_secs) = (None, None, None, None, None);
        for attribute in Attributes::after_nfgenmsg(payload) {
            match attribute.kind {
                1 => original = tuple(attribute.value),
                2 => reply = tuple(attribute.value),
                3 => status = attribute.be32(),
                7 => expires_secs = attribute.be32(),
                12 => id = attribute.be32(),
                _ => {}
            }
        }
        let ((protocol, original), (_, reply)) = (original?, reply?);
        Some(Self {
            protocol,
            original,
            reply,
            id: id?,
            status: status?,
            expires_secs: expires_secs.unwrap_or(0),
        })
    }

    /// Whether a packet ever came back.
    pub fn replied(&self) -> bool {
        self.status & IPS_SEEN_REPLY != 0
    }

    /// Whether the kernel keeps it even when the table is full.
    pub fn assured(&self) -> bool {
        self.status & IPS_ASSURED != 0
    }
}

impl CpuStats {
    /// Reads one CPU's counters. A counter that this kernel doesn't have stays zero.
    pub fn decode(payload: &[u8]) -> Self {
        // The resource id of nfgenmsg is the CPU's number, big-endian.
        let cpu = payload.get(2..4).and_then(|id| id.try_into().ok()).map_or(0, u16::from_be_bytes);
        let mut stats = Self { cpu, ..Self::default() };
        for attribute in Attributes::after_nfgenmsg(payload) {
            let Some(value) = attribute.be32() else { continue };
            match attribute.kind {
                2 => stats.found = value,
                4 => stats.invalid = value,
                9 => stats.insert_failed = value,
                10 => stats.drop = value,
                11 => stats.early_drop = value,
                14 => stats.clash_resolve = value,
                15 => stats.chain_toolong = value,
                _ => {}
            }
        }
        stats
    }
}

impl TableSize {
    /// Reads the answer to [`table_size`].
    pub fn decode(payload: &[u8]) -> Self {
        let mut size = Self::default();
        for attribute in Attributes::after_nfgenmsg(payload) {
            match attribute.kind {
                1 => size.entries = attribute.be32().unwrap_or(0),
                2 => size.max = attribute.be32().unwrap_or(0),
                _ => {}
            }
        }
        size
    }
}

/// Asks for each CPU's counters.
pub fn cpu_stats(sequence: u32) -> Vec<u8> {
    Request::new(GET_STATS_CPU, DUMP, sequence, 0).finish()
}

/// Asks for the table's size.
pub fn table_size(sequence: u32) -> Vec<u8> {
    Request::new(GET_STATS, REQUEST, sequence, 0).finish()
}

/// Asks for the rows of one protocol whose original destination has this port, chosen by the kernel. Kernels before 5.8
/// know no filter and send all, so each row is to be checked again. Addresses are not asked for: the kernel inverts the
/// filter by an IPv6 address (seen on 6.18). The kernel refuses a filter without a family or without a protocol, so
/// a port takes four dumps.
pub fn entries_to_port(sequence: u32, family: u8, protocol: Protocol, port: u16) -> Vec<u8> {
    let mut request = Request::new(GET, DUMP, sequence, family);
    request
        .nest(1, |tuple| {
            tuple.nest(2, |proto| {
                proto.attribute(1, &[number(protocol)]).attribute(3, &port.to_be_bytes());
            });
        })
        .nest(25, |filter| {
            filter
                .attribute(1, &FILTER_PROTOCOL_AND_DESTINATION_PORT.to_ne_bytes())
                .attribute(2, &0u32.to_ne_bytes());
        });
    request.finish()
}

/// Asks for all rows of both families. Where the table is small this one walk over its buckets is cheaper than four.
pub fn entries(sequence: u32) -> Vec<u8> {
    Request::new(GET, DUMP, sequence, 0).finish()
}

/// Asks for the one entry that holds this tuple, in either direction.
pub fn holder(sequence: u32, protocol: Protocol, tuple: Tuple) -> Vec<u8> {
    let family = if tuple.source.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Request::new(GET, REQUEST, sequence, family);
    request.nest(1, |nest| {
        nest.nest(1, |ip| {
            for (address, v4, v6) in [(tuple.source.ip(), 1, 3), (tuple.destination.ip(), 2, 4)] {
                match address {
                    IpAddr::V4(address) => ip.attribute(v4, &address.octets()),
                    IpAddr::V6(address) => ip.attribute(v6, &address.octets()),
                };
            }
        });
        nest.nest(2, |proto| {
            proto
                .attribute(1, &[number(protocol)])
                .attribute(2, &tuple.source.port().to_be_bytes())
                .attribute(3, &tuple.destination.port().to_be_bytes());
        });
    });
    request.finish()
}

fn tuple(nest: &[u8]) -> Option<(Protocol, Tuple)> {
    let (mut source, mut destination, mut protocol, mut ports) = (None, None, None, (None, None));
    for attribute in Attributes::new(nest) {
        match attribute.kind {
            1 => {
                for ip in Attributes::new(attribute.value) {
                    match ip.kind {
                        1 | 3 => source = address(&ip),
                        2 | 4 => destination = address(&ip),
                        _ => {}
                    }
                }
            }
            2 => {
                for part in Attributes::new(attribute.value) {
                    match part.kind {
                        1 => protocol = part.octet().and_then(protocol_of),
                        2 => ports.0 = part.be16(),
                        3 => ports.1 = part.be16(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let source = SocketAddr::new(source?, ports.0?);
    let destination = SocketAddr::new(destination?, ports.1?);
    Some((protocol?, Tuple { source, destination }))
}

fn address(attribute: &Attribute<'_>) -> Option<IpAddr> {
    <[u8; 4]>::try_from(attribute.value)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(attribute.value).map(IpAddr::from))
        .ok()
}

/// The IP protocol number.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Udp => 17,
        Protocol::Tcp => 6,
    }
}

/// The protocol of an IP protocol number, where it is one that carries DNS.
pub(crate) fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        17 => Some(Protocol::Udp),
        6 => Some(Protocol::Tcp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::wire::Messages;

    fn put_tuple(request: &mut Request, kind: u16, tuple: Tuple, protocol: u8) {
        request.nest(kind, |nest| {
            nest.nest(1, |ip| {
                let (IpAddr::V6(source), IpAddr::V6(destination)) =
                    (tuple.source.ip(), tuple.destination.ip())
                else {
                    unreachable!("the test speaks IPv6")
                };
                ip.attribute(3, &source.octets()).attribute(4, &destination.octets());
            });
            nest.nest(2, |proto| {
                proto
                    .attribute(1, &[protocol])
                    .attribute(2, &tuple.source.port().to_be_bytes())
                    .attribute(3, &tuple.destination.port().to_be_bytes());
            });
        });
    }

    fn row(protocol: u8) -> Vec<u8> {
        let original = Tuple {
            source: "[fd00::7]:4000".parse().unwrap(),
            destination: "[fd00::10]:53".parse().unwrap(),
        };
        let reply = Tuple {
            source: "[fd00::1:2]:5353".parse().unwrap(),
            destination: "[fd00::7]:4000".parse().unwrap(),
        };
        let mut request = Request::new(SUBSYSTEM, 2, 1, 10);
        put_tuple(&mut request, 1, original, protocol);
        put_tuple(&mut request, 2, reply, protocol);
        request
            .attribute(3, &0x18eu32.to_be_bytes())
            .attribute(7, &29u32.to_be_bytes())
            .attribute(12, &77u32.to_be_bytes());
        request.finish()
    }

    #[test]
    fn a_row_tells_client_service_backend_and_remaining_time() {
        let bytes = row(17);
        let entry = Entry::decode(Messages::new(&bytes).next().unwrap().payload).unwrap();
        assert_eq!(entry.original.destination, "[fd00::10]:53".parse().unwrap());
        assert_eq!(entry.reply.source, "[fd00::1:2]:5353".parse().unwrap());
        assert_eq!((entry.id, entry.expires_secs), (77, 29));
        assert!(entry.replied() && entry.assured());
    }

    #[test]
    fn a_row_of_another_protocol_is_none() {
        let bytes = row(1);
        assert_eq!(Entry::decode(Messages::new(&bytes).next().unwrap().payload), None);
    }

    proptest! {
        #[test]
        fn a_damaged_row_never_panics(at in 0usize..400, with in any::<u8>(), cut in 0usize..400) {
            let mut bytes = row(17);
            let length = bytes.len();
            bytes[at % length] = with;
            bytes.truncate(cut.max(16));
            for message in Messages::new(&bytes) {
                let _ = Entry::decode(message.payload);
                let _ = CpuStats::decode(message.payload);
                let _ = TableSize::decode(message.payload);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Entry::decode(&bytes);
            let _ = CpuStats::decode(&bytes);
            let _ = TableSize::decode(&bytes);
        }
    }
}
