//! From messages to evidence: nothing passes that can't be.
//!
//! What only a newer version knows is [`Odd::Newer`]: the entry it is in is left out and counted, and where it was an
//! observation, the observers of the batch lost a record. All else that is not as it must be refuses the whole.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use super::address::{take as address, take_ip};
use super::messages as m;
use super::numbers::Numbered;
use super::{Error, MAX_ENTRIES, MAX_TEXT_BYTES, NEWEST, OLDEST, Read, Unknown};
use crate::{
    Attempt, AttemptResult, Batch, BootTime, ClockReading, Counters, Coverage, CoverageState, DnsQuestion,
    DnsService, DropClass, DropTotals, Endpoint, Inventory, KernelDrop, Lookup, LookupId, Mapping, Node,
    Observation, Place, Pod, QueryType, ServerSample, Tuple, Upstream, WallTime,
};

/// Why an entry is not taken.
enum Odd {
    /// Only a newer version knows it.
    Newer,
    /// No version has such.
    Wrong(Error),
}

impl From<Error> for Odd {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

/// Entries are counted before they are made: an empty one takes two bytes on the wire and a hundred times that here.
pub(super) fn count_entries(mut bytes: &[u8]) -> Result<(), Error> {
    let mut entries = 0;
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        entries += usize::from(m::ENTRY_TAGS.contains(&tag));
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
    }
    if entries > MAX_ENTRIES {
        return Err(Error::TooLarge { what: "entries", size: entries, most: MAX_ENTRIES });
    }
    Ok(())
}

pub(super) fn parcel(message: m::Parcel, size: usize) -> Result<Read<super::Parcel>, Error> {
    check_version(message.version)?;
    let mut unknown = unknown_bytes(&message, size);
    let Some(role) = Numbered::of(message.role) else {
        return Err(Error::Malformed { what: "role", problem: "none that is known" });
    };
    if message.node.is_empty() {
        return Err(Error::Malformed { what: "node", problem: "empty" });
    }
    let mut observations = Vec::with_capacity(message.observations.len());
    for observation in message.observations {
        observations.extend(known(observe(observation), &mut unknown)?);
    }
    let lost = unknown.entries;
    let mut lines = Vec::with_capacity(message.coverage.len());
    for line in message.coverage {
        lines.extend(known(coverage(line), &mut unknown)?);
    }
    if lost > 0 {
        for line in &mut lines {
            if let CoverageState::Looked { lost: told } = &mut line.state {
                *told = told.saturating_add(lost);
            }
        }
    }
    let batch = Batch {
        node: text("node", message.node)?,
        role,
        boot_id: text("bootId", message.boot_id)?,
        sequence: message.sequence,
        clock: ClockReading { boot: BootTime(message.clock_boot), wall: WallTime(message.clock_wall) },
        from: BootTime(message.from),
        to: BootTime(message.to),
        observations,
        coverage: lines,
    };
    Ok(Read { value: super::Parcel { life: message.life, batch }, version: message.version, unknown })
}

pub(super) fn answer(message: m::Answer, size: usize) -> Result<Read<super::Answer>, Error> {
    check_version(message.version)?;
    let unknown = unknown_bytes(&message, size);
    let outlook = message.outlook.map(|outlook| {
        Ok::<_, Error>(super::Outlook {
            tag: outlook.tag,
            age: Duration::from_millis(outlook.age_ms),
            inventory: outlook.inventory.map(inventory).transpose()?,
        })
    });
    let duty = message.duty.map(|duty| {
        Ok::<_, Error>(super::Duty {
            direct: duty.direct.iter().map(|bytes| address("direct", bytes)).collect::<Result<_, _>>()?,
            extra_in_1000_s: duty.extra_in_1000_s,
        })
    });
    let value =
        super::Answer { sequence: message.sequence, outlook: outlook.transpose()?, duty: duty.transpose()? };
    Ok(Read { value, version: message.version, unknown })
}

fn check_version(given: u32) -> Result<(), Error> {
    if (OLDEST..=NEWEST).contains(&given) { Ok(()) } else { Err(Error::Version { given }) }
}

/// prost drops unknown fields, so they are what the message lacks of its own bytes.
fn unknown_bytes(message: &impl Message, size: usize) -> Unknown {
    let bytes = size.saturating_sub(message.encoded_len());
    Unknown { bytes: u64::try_from(bytes).unwrap_or(u64::MAX), entries: 0 }
}

fn known<T>(taken: Result<T, Odd>, unknown: &mut Unknown) -> Result<Option<T>, Error> {
    match taken {
        Ok(entry) => Ok(Some(entry)),
        Err(Odd::Newer) => {
            unknown.entries += 1;
            Ok(None)
        }
        Err(Odd::Wrong(error)) => Err(error),
    }
}

fn observe(message: m::Observation) -> Result<Observation, Odd> {
    Ok(match message.kind.ok_or(Odd::Newer)? {
        m::Kind::Attempt(message) => Observation::Attempt(attempt(message)?),
        m::Kind::Lookup(message) => Observation::Lookup(lookup(message)?),
        m::Kind::KernelDrop(message) => Observation::KernelDrop(kernel_drop(message)?),
        m::Kind::DropTotals(message) => Observation::DropTotals(DropTotals {
            place: place(message.place)?,
            class: value(message.class)?,
            all: message.all,
            dns: message.dns,
        }),
        m::Kind::Mapping(message) => Observation::Mapping(mapping(message)?),
        m::Kind::Counters(message) => Observation::Counters(counters(message)?),
        m::Kind::ServerSample(message) => Observation::ServerSample(sample(message)?),
        m::Kind::Inventory(message) => Observation::Inventory(inventory(message)?.into()),
    })
}

fn attempt(message: m::Attempt) -> Result<Attempt, Odd> {
    let result = match message.result.ok_or(Odd::Newer)? {
        m::AttemptResult::Answered(m::Answered { rcode, wait_ns }) => {
            let rcode =
                u8::try_from(rcode).map_err(|_| Error::Malformed { what: "rcode", problem: "above 255" })?;
            AttemptResult::Answered { rcode, wait_ns }
        }
        m::AttemptResult::UnansweredNs(wait_ns) => AttemptResult::Unanswered { wait_ns },
        m::AttemptResult::UnreachableErrno(errno) => AttemptResult::Unreachable { errno },
        m::AttemptResult::SendRefusedErrno(errno) => AttemptResult::SendRefused { errno },
    };
    Ok(Attempt {
        lookup: LookupId(message.lookup),
        vantage: text("vantage", message.vantage)?,
        profile: text("profile", message.profile)?,
        server: address("server", &message.server)?,
        role: value(message.role)?,
        source: address("source", &message.source)?,
        query_id: query_id(message.query_id)?,
        name: text("name", message.name)?,
        name_kind: value(message.name_kind)?,
        qtype: value(message.query_type)?,
        sent: BootTime(message.sent),
        result,
    })
}

fn lookup(message: m::Lookup) -> Result<Lookup, Odd> {
    Ok(Lookup {
        id: LookupId(message.id),
        vantage: text("vantage", message.vantage)?,
        profile: text("profile", message.profile)?,
        server: address("server", &message.server)?,
        role: value(message.role)?,
        name: text("name", message.name)?,
        name_kind: value(message.name_kind)?,
        started: BootTime(message.started),
        ended: BootTime(message.ended),
        outcome: value(message.outcome)?,
        packets: message.packets,
    })
}

fn kernel_drop(message: m::KernelDrop) -> Result<KernelDrop, Odd> {
    let packet = message.packet.ok_or(Error::Malformed { what: "packet", problem: "missing" })?;
    let question = message.question.map(|question| {
        Ok::<_, Error>(DnsQuestion {
            id: query_id(question.id)?,
            name: text("name", question.name)?,
            qtype: QueryType::of(question.query_type),
        })
    });
    Ok(KernelDrop {
        at: BootTime(message.at),
        place: place(message.place)?,
        // A dropped packet is one whatever its class.
        class: DropClass::of(message.class).unwrap_or(DropClass::Unknown),
        protocol: value(message.protocol)?,
        packet: tuple(&packet)?,
        original: message.original.as_ref().map(tuple).transpose()?,
        reply: message.reply.as_ref().map(tuple).transpose()?,
        interface: message.interface.map(|name| text("interface", name)).transpose()?,
        mark: message.mark,
        question: question.transpose()?,
    })
}

fn mapping(message: m::Mapping) -> Result<Mapping, Odd> {
    let original = message.original.ok_or(Error::Malformed { what: "original", problem: "missing" })?;
    Ok(Mapping {
        node: text("node", message.node)?,
        at: BootTime(message.at),
        protocol: value(message.protocol)?,
        original: tuple(&original)?,
        backend: address("backend", &message.backend)?,
        id: message.id,
        replied: message.replied,
        expires_secs: message.expires_secs,
        renewed: message.renewed.map(BootTime),
    })
}

fn counters(message: m::Counters) -> Result<Counters, Error> {
    Ok(Counters {
        node: text("node", message.node)?,
        at: BootTime(message.at),
        found: message.found,
        invalid: message.invalid,
        insert_failed: message.insert_failed,
        drop: message.drop,
        early_drop: message.early_drop,
        clash_resolve: message.clash_resolve,
        chain_toolong: message.chain_toolong,
        entries: message.entries,
        max: message.max,
    })
}

fn sample(message: m::ServerSample) -> Result<ServerSample, Error> {
    let upstreams = message.upstreams.into_iter().map(|upstream| {
        Ok(Upstream {
            address: text("address", upstream.address)?,
            responses: counts(upstream.responses)?,
            healthcheck_failures: upstream.healthcheck_failures,
        })
    });
    Ok(ServerSample {
        server: address("server", &message.server)?,
        at: BootTime(message.at),
        started_unix_secs: message.started_unix_secs,
        requests: message.requests,
        responses: counts(message.responses)?,
        upstreams: upstreams.collect::<Result<_, Error>>()?,
        all_upstreams_broken: message.all_upstreams_broken,
        panics: message.panics,
    })
}

fn inventory(message: m::Inventory) -> Result<Inventory, Error> {
    let addresses = message.service_addresses.iter().map(|bytes| address("service", bytes));
    let endpoints = message.endpoints.into_iter().map(|endpoint| {
        Ok(Endpoint {
            name: text("endpoint", endpoint.name)?,
            address: address("endpoint", &endpoint.address)?,
            node: endpoint.node.map(|node| text("node", node)).transpose()?,
            serving: endpoint.serving,
            leaving: endpoint.leaving,
        })
    });
    let pods = message.pods.into_iter().map(|pod| {
        Ok(Pod {
            name: text("pod", pod.name)?,
            addresses: pod
                .addresses
                .iter()
                .map(|bytes| take_ip("pod", bytes))
                .collect::<Result<_, Error>>()?,
            node: pod.node.map(|node| text("node", node)).transpose()?,
            workload: pod.workload.map(|workload| text("workload", workload)).transpose()?,
        })
    });
    let nodes = message.nodes.into_iter().map(|node| {
        Ok(Node {
            name: text("node", node.name)?,
            zone: node.zone.map(|zone| text("zone", zone)).transpose()?,
        })
    });
    Ok(Inventory {
        service: DnsService {
            name: text("service", message.service_name)?,
            addresses: addresses.collect::<Result<_, Error>>()?,
            is_virtual: message.service_is_virtual,
        },
        endpoints: endpoints.collect::<Result<_, Error>>()?,
        pods: pods.collect::<Result<_, Error>>()?,
        nodes: nodes.collect::<Result<_, Error>>()?,
    })
}

fn coverage(message: m::Coverage) -> Result<Coverage, Odd> {
    Ok(Coverage {
        observer: value(message.observer)?,
        place: text("place", message.place)?,
        state: match message.state.ok_or(Odd::Newer)? {
            m::CoverageState::LookedLost(lost) => CoverageState::Looked { lost },
            m::CoverageState::DeniedMissing(missing) => {
                CoverageState::Denied { missing: text("missing", missing)? }
            }
            m::CoverageState::UnsupportedWhy(why) => CoverageState::Unsupported { why: text("why", why)? },
        },
    })
}

fn place(message: Option<m::Place>) -> Result<Place, Odd> {
    let message = message.ok_or(Error::Malformed { what: "place", problem: "missing" })?;
    Ok(match message.whose.ok_or(Odd::Newer)? {
        m::Whose::Node(node) => Place::Node(text("place", node)?),
        m::Whose::Namespace(inode) => Place::Namespace(inode),
    })
}

fn tuple(message: &m::Tuple) -> Result<Tuple, Error> {
    Ok(Tuple {
        source: address("source", &message.source)?,
        destination: address("destination", &message.destination)?,
    })
}

fn value<T: Numbered>(number: u32) -> Result<T, Odd> {
    T::of(number).ok_or(Odd::Newer)
}

fn query_id(id: u32) -> Result<u16, Error> {
    u16::try_from(id).map_err(|_| Error::Malformed { what: "query id", problem: "above 65535" })
}

fn counts(counts: BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, Error> {
    counts.into_iter().map(|(name, count)| Ok((text("rcode", name)?, count))).collect()
}

fn text(what: &'static str, text: String) -> Result<String, Error> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Error::TooLarge { what, size: text.len(), most: MAX_TEXT_BYTES });
    }
    Ok(text)
}
