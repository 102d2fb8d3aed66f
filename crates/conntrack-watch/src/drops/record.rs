//! What does one record of the drop helper say?
//!
//! The other side of `struct record` in `src/bpf/drops.bpf.c`, whose static asserts hold the same offsets.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use evidence::{BootTime, DnsQuestion, DropClass, KernelDrop, Place, Protocol, QueryType, Tuple};
use hickory_proto::op::{Header, Query};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::netlink::{number, protocol_of};

const TUPLE: usize = 36;
const PACKET: usize = 24;
const DEVICE: usize = 132;
const PAYLOAD: usize = 148;
const OWNER: usize = 420;

/// Octets of a key in the helper's map of DNS addresses.
pub const ENDPOINT: usize = 20;

/// A dropped DNS packet, its namespace still a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Inode of the namespace.
    pub namespace: u32,
    /// Inode of the namespace at the other end of its veth: for a pod, its node's. None where there is no veth.
    pub owner: Option<u32>,
    drop: KernelDrop,
}

impl Record {
    /// Reads a record. None where it isn't one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let namespace = u32::from_ne_bytes(array(bytes, 8)?);
        let [class, protocol, _family, has_entry] = array(bytes, 16)?;
        let entry = (has_entry != 0).then_some(());
        let payload_length = usize::from(u16::from_ne_bytes(array(bytes, 20)?));
        let device: [u8; 16] = array(bytes, DEVICE)?;
        let name = device.split(|octet| *octet == 0).next().unwrap_or_default();
        let payload = bytes.get(PAYLOAD..PAYLOAD.checked_add(payload_length)?)?;
        Some(Self {
            namespace,
            owner: Some(u32::from_ne_bytes(array(bytes, OWNER)?)).filter(|owner| *owner != 0),
            drop: KernelDrop {
                at: BootTime(u64::from_ne_bytes(array(bytes, 0)?)),
                place: Place::Namespace(namespace),
                class: class_of(u32::from(class))?,
                protocol: protocol_of(protocol)?,
                packet: tuple(bytes, PACKET)?,
                original: entry.and_then(|()| tuple(bytes, PACKET + TUPLE)),
                reply: entry.and_then(|()| tuple(bytes, PACKET + 2 * TUPLE)),
                interface: (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()),
                mark: u32::from_ne_bytes(array(bytes, 12)?),
                question: question(payload),
            },
        })
    }

    /// The observation, with the place that its namespace is.
    pub fn at_place(self, place: Place) -> KernelDrop {
        KernelDrop { place, ..self.drop }
    }

    /// The reply tuple that another entry held, where that is why the packet died.
    pub fn wanted(&self) -> Option<(Protocol, Tuple)> {
        let race = self.drop.class == DropClass::InsertRace;
        race.then_some(()).and(self.drop.reply).map(|reply| (self.drop.protocol, reply))
    }
}

/// The class of a number: its place in [`DropClass::ALL`].
pub fn class_of(number: u32) -> Option<DropClass> {
    DropClass::ALL.get(usize::try_from(number).ok()?).copied()
}

/// The key of a DNS address in the helper's map.
pub fn endpoint(address: SocketAddr, protocol: Protocol) -> [u8; ENDPOINT] {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut key = [0; ENDPOINT];
    let parts = ip.octets().into_iter().chain(address.port().to_be_bytes()).chain([number(protocol)]);
    key.iter_mut().zip(parts).for_each(|(octet, part)| *octet = part);
    key
}

fn tuple(bytes: &[u8], at: usize) -> Option<Tuple> {
    let address = |at: usize, port: usize| {
        let ip = Ipv6Addr::from(array::<16>(bytes, at)?).to_canonical();
        Some(SocketAddr::new(ip, u16::from_be_bytes(array(bytes, port)?)))
    };
    Some(Tuple { source: address(at, at + 32)?, destination: address(at + 16, at + 34)? })
}

/// The first question. The rest of the message may be cut off, so it is not read.
fn question(payload: &[u8]) -> Option<DnsQuestion> {
    let mut decoder = BinDecoder::new(payload);
    let header = Header::read(&mut decoder).ok()?;
    if header.counts.queries == 0 {
        return None;
    }
    let query = Query::read(&mut decoder).ok()?;
    let qtype = match query.query_type() {
        RecordType::A => Some(QueryType::A),
        RecordType::AAAA => Some(QueryType::Aaaa),
        _ => None,
    };
    Some(DnsQuestion { id: header.metadata.id, name: query.name().to_ascii(), qtype })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 424];
        bytes[..8].copy_from_slice(&5u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&4026u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&0x4000u32.to_ne_bytes());
        bytes[17] = 17;
        bytes[19] = 1;
        bytes[20..22].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_ne_bytes());
        for (at, from, to) in [
            (24, "10.244.1.7:4000", "10.244.1.20:5353"),
            (60, "10.244.1.7:4000", "10.96.0.10:53"),
            (96, "10.244.1.20:5353", "169.254.1.1:4000"),
        ] {
            bytes[at..at + 16].copy_from_slice(&endpoint(from.parse().unwrap(), Protocol::Udp)[..16]);
            bytes[at + 16..at + 32].copy_from_slice(&endpoint(to.parse().unwrap(), Protocol::Udp)[..16]);
            let port = |text: &str| text.parse::<SocketAddr>().unwrap().port().to_be_bytes();
            bytes[at + 32..at + 34].copy_from_slice(&port(from));
            bytes[at + 34..at + 36].copy_from_slice(&port(to));
        }
        bytes[132..136].copy_from_slice(b"eth0");
        bytes[148..148 + payload.len()].copy_from_slice(payload);
        bytes
    }

    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03api\x07example\x00\x00\x1c\x00\x01";

    #[test]
    fn a_record_tells_class_tuples_and_question() {
        let record = Record::decode(&record(QUERY)).unwrap();
        assert_eq!(record.namespace, 4026);
        let reply = record.wanted().unwrap().1;
        assert_eq!(reply.destination, "169.254.1.1:4000".parse().unwrap());
        let drop = record.at_place(Place::Node("node-a".into()));
        assert_eq!(drop.class, DropClass::InsertRace);
        assert_eq!(drop.packet.destination, "10.244.1.20:5353".parse().unwrap());
        assert_eq!(drop.original.unwrap().destination, "10.96.0.10:53".parse().unwrap());
        assert_eq!(drop.interface.as_deref(), Some("eth0"));
        let question = drop.question.unwrap();
        assert_eq!((question.id, question.name.as_str()), (0x1234, "api.example."));
        assert_eq!(question.qtype, Some(QueryType::Aaaa));
    }

    #[test]
    fn a_looping_name_is_no_question() {
        let record =
            Record::decode(&record(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01"))
                .unwrap();
        assert_eq!(record.at_place(Place::Namespace(1)).question, None);
    }

    proptest! {
        #[test]
        fn no_payload_or_damage_panics(
            payload in prop::collection::vec(any::<u8>(), 0..272),
            at in 0usize..424,
            with in any::<u8>(),
            cut in 0usize..=424,
        ) {
            let mut bytes = record(&payload);
            bytes[at] = with;
            bytes.truncate(cut);
            let _ = Record::decode(&bytes);
        }
    }
}
