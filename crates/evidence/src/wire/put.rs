//! From evidence to messages. Texts that are longer than a reader takes are cut here, at the sender.

use std::collections::BTreeMap;

use super::address::{put as address, put_ip};
use super::messages as m;
use super::numbers::Numbered;
use super::{MAX_TEXT_BYTES, VERSION};
use crate::{
    AttemptResult, Coverage, CoverageState, Inventory, KernelDrop, Mapping, Observation, Place, Tuple,
};

pub(super) fn parcel(parcel: &super::Parcel) -> m::Parcel {
    let batch = &parcel.batch;
    m::Parcel {
        version: VERSION,
        life: parcel.life,
        node: text(&batch.node),
        role: batch.role.number(),
        boot_id: text(&batch.boot_id),
        sequence: batch.sequence,
        clock_boot: batch.clock.boot.0,
        clock_wall: batch.clock.wall.0,
        from: batch.from.0,
        to: batch.to.0,
        observations: batch.observations.iter().map(|o| m::Observation { kind: Some(kind(o)) }).collect(),
        coverage: batch.coverage.iter().map(coverage).collect(),
    }
}

pub(super) fn answer(answer: &super::Answer) -> m::Answer {
    m::Answer {
        version: VERSION,
        sequence: answer.sequence,
        outlook: answer.outlook.as_ref().map(|outlook| m::Outlook {
            tag: outlook.tag,
            age_ms: u64::try_from(outlook.age.as_millis()).unwrap_or(u64::MAX),
            inventory: outlook.inventory.as_ref().map(inventory),
        }),
        duty: answer.duty.as_ref().map(|duty| m::Duty {
            direct: duty.direct.iter().map(|server| address(*server)).collect(),
            extra_in_1000_s: duty.extra_in_1000_s,
        }),
    }
}

fn kind(observation: &Observation) -> m::Kind {
    match observation {
        Observation::Attempt(attempt) => m::Kind::Attempt(m::Attempt {
            lookup: attempt.lookup.0,
            vantage: text(&attempt.vantage),
            profile: text(&attempt.profile),
            server: address(attempt.server),
            role: attempt.role.number(),
            source: address(attempt.source),
            query_id: attempt.query_id.into(),
            name: text(&attempt.name),
            name_kind: attempt.name_kind.number(),
            query_type: attempt.qtype.number(),
            sent: attempt.sent.0,
            result: Some(result(&attempt.result)),
        }),
        Observation::Lookup(lookup) => m::Kind::Lookup(m::Lookup {
            id: lookup.id.0,
            vantage: text(&lookup.vantage),
            profile: text(&lookup.profile),
            server: address(lookup.server),
            role: lookup.role.number(),
            name: text(&lookup.name),
            name_kind: lookup.name_kind.number(),
            started: lookup.started.0,
            ended: lookup.ended.0,
            outcome: lookup.outcome.number(),
            packets: lookup.packets,
        }),
        Observation::KernelDrop(dropped) => m::Kind::KernelDrop(kernel_drop(dropped)),
        Observation::DropTotals(totals) => m::Kind::DropTotals(m::DropTotals {
            place: Some(place(&totals.place)),
            class: totals.class.number(),
            all: totals.all,
            dns: totals.dns,
        }),
        Observation::Mapping(entry) => m::Kind::Mapping(mapping(entry)),
        Observation::Counters(counters) => m::Kind::Counters(m::Counters {
            node: text(&counters.node),
            at: counters.at.0,
            found: counters.found,
            invalid: counters.invalid,
            insert_failed: counters.insert_failed,
            drop: counters.drop,
            early_drop: counters.early_drop,
            clash_resolve: counters.clash_resolve,
            chain_toolong: counters.chain_toolong,
            entries: counters.entries,
            max: counters.max,
        }),
        Observation::ServerSample(sample) => m::Kind::ServerSample(m::ServerSample {
            server: address(sample.server),
            at: sample.at.0,
            started_unix_secs: sample.started_unix_secs,
            requests: sample.requests,
            responses: counts(&sample.responses),
            upstreams: sample
                .upstreams
                .iter()
                .map(|upstream| m::Upstream {
                    address: text(&upstream.address),
                    responses: counts(&upstream.responses),
                    healthcheck_failures: upstream.healthcheck_failures,
                })
                .collect(),
            all_upstreams_broken: sample.all_upstreams_broken,
            panics: sample.panics,
        }),
        Observation::Inventory(state) => m::Kind::Inventory(inventory(state)),
    }
}

fn result(result: &AttemptResult) -> m::AttemptResult {
    match *result {
        AttemptResult::Answered { rcode, wait_ns } => {
            m::AttemptResult::Answered(m::Answered { rcode: rcode.into(), wait_ns })
        }
        AttemptResult::Unanswered { wait_ns } => m::AttemptResult::UnansweredNs(wait_ns),
        AttemptResult::Unreachable { errno } => m::AttemptResult::UnreachableErrno(errno),
        AttemptResult::SendRefused { errno } => m::AttemptResult::SendRefusedErrno(errno),
    }
}

fn kernel_drop(dropped: &KernelDrop) -> m::KernelDrop {
    m::KernelDrop {
        at: dropped.at.0,
        place: Some(place(&dropped.place)),
        class: dropped.class.number(),
        protocol: dropped.protocol.number(),
        packet: Some(tuple(&dropped.packet)),
        original: dropped.original.as_ref().map(tuple),
        reply: dropped.reply.as_ref().map(tuple),
        interface: dropped.interface.as_deref().map(text),
        mark: dropped.mark,
        question: dropped.question.as_ref().map(|question| m::Question {
            id: question.id.into(),
            name: text(&question.name),
            query_type: question.qtype.map_or(0, Numbered::number),
        }),
    }
}

fn mapping(entry: &Mapping) -> m::Mapping {
    m::Mapping {
        node: text(&entry.node),
        at: entry.at.0,
        protocol: entry.protocol.number(),
        original: Some(tuple(&entry.original)),
        backend: address(entry.backend),
        id: entry.id,
        replied: entry.replied,
        expires_secs: entry.expires_secs,
        renewed: entry.renewed.map(|renewed| renewed.0),
    }
}

fn inventory(state: &Inventory) -> m::Inventory {
    m::Inventory {
        service_name: text(&state.service.name),
        service_addresses: state.service.addresses.iter().copied().map(address).collect(),
        service_is_virtual: state.service.is_virtual,
        endpoints: state
            .endpoints
            .iter()
            .map(|endpoint| m::Endpoint {
                name: text(&endpoint.name),
                address: address(endpoint.address),
                node: endpoint.node.as_deref().map(text),
                serving: endpoint.serving,
                leaving: endpoint.leaving,
            })
            .collect(),
        pods: state
            .pods
            .iter()
            .map(|pod| m::Pod {
                name: text(&pod.name),
                addresses: pod.addresses.iter().copied().map(put_ip).collect(),
                node: pod.node.as_deref().map(text),
                workload: pod.workload.as_deref().map(text),
            })
            .collect(),
        nodes: state
            .nodes
            .iter()
            .map(|node| m::Zoned { name: text(&node.name), zone: node.zone.as_deref().map(text) })
            .collect(),
    }
}

fn coverage(line: &Coverage) -> m::Coverage {
    m::Coverage {
        observer: line.observer.number(),
        place: text(&line.place),
        state: Some(match &line.state {
            CoverageState::Looked { lost } => m::CoverageState::LookedLost(*lost),
            CoverageState::Denied { missing } => m::CoverageState::DeniedMissing(text(missing)),
            CoverageState::Unsupported { why } => m::CoverageState::UnsupportedWhy(text(why)),
        }),
    }
}

fn place(place: &Place) -> m::Place {
    m::Place {
        whose: Some(match place {
            Place::Node(node) => m::Whose::Node(text(node)),
            Place::Namespace(inode) => m::Whose::Namespace(*inode),
        }),
    }
}

fn tuple(tuple: &Tuple) -> m::Tuple {
    m::Tuple { source: address(tuple.source), destination: address(tuple.destination) }
}

fn counts(counts: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| (text(name), *count)).collect()
}

/// The text, or as much of it as a reader takes.
fn text(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_TEXT_BYTES)).unwrap_or_default().to_owned()
}
