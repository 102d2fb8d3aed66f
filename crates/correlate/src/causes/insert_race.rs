//! Two packets want the same conntrack tuple at the same moment; the kernel drops the loser.

use evidence::{DropClass, KernelDrop, Observer, Protocol};

use super::{Case, Cause, Judgement, Telling, drop_line, dropped_as};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Symptom};
use crate::view::View;

pub(super) static CAUSE: Cause = Cause {
    id: "insert-race",
    title: "conntrack insert race",
    seen: "Now and then a lookup takes 2.5 s (musl) or 5 s (glibc, Go), on a node that is otherwise well.",
    proves: "The kernel dropped the packet while it inserted the conntrack entry: insert_failed and drop rose with \
             it, in that namespace and on that CPU.",
    against: "insert_failed doesn't rise, or rises for other traffic alone; the DNS packets reached the server.",
    mend: "Two flows that clash on the reply tuple: give the CNI's MASQUERADE rule --random-fully, or stop \
           masquerading traffic from pods to the Service. One socket's A and AAAA (kernels before 5.6): a newer \
           kernel, or the resolver option single-request-reopen (glibc). NodeLocal DNSCache avoids both.",
    reads: &[Observer::Drops, Observer::ConntrackCounters],
    drops: Some(DropClass::InsertRace),
    waits_for_resend: true,
    judge,
    looks_like: |symptom| symptom.lookup().is_some_and(|lookup| lookup.failure == Failure::Silent),
    absent: |view| {
        (view.recent_drops(DropClass::InsertRace) == 0).then(|| "no DNS packet died at insertion".into())
    },
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    let dropped = dropped_as(symptom, view, DropClass::InsertRace)?;
    let node = match &dropped.place {
        evidence::Place::Node(node) => Some(node.clone()),
        evidence::Place::Namespace(_) => view.node_of_address(view.client_of(dropped).ip()),
    };
    Some(Judgement {
        confidence: Confidence::Certain,
        scope: Some(Scope { node, ..Scope::default() }),
        line: drop_line(symptom.at, "dropped at insertion", dropped),
    })
}

/// The kinds of insert race, told by what NAT did to the source.
enum RaceKind {
    SameFlow,
    AnotherFlow,
    Tcp,
}

fn kind(dropped: &KernelDrop) -> RaceKind {
    let rewritten = match (dropped.original, dropped.reply) {
        (Some(original), Some(reply)) => reply.destination.ip() != original.source.ip(),
        (Some(_) | None, None) | (None, Some(_)) => false,
    };
    match (dropped.protocol, rewritten) {
        (Protocol::Udp, true) => RaceKind::AnotherFlow,
        (Protocol::Udp, false) => RaceKind::SameFlow,
        (Protocol::Tcp, _) => RaceKind::Tcp,
    }
}

fn tell(case: &Case, view: &View) -> Telling {
    let sample =
        case.symptoms.iter().rev().find_map(|symptom| dropped_as(symptom, view, DropClass::InsertRace));
    let (with, mend) = match sample.map(kind) {
        Some(RaceKind::AnotherFlow) => (
            ", with another flow behind the same address",
            "the MASQUERADE rule that rewrites these packets lacks --random-fully: add it, or stop masquerading pods to \
             the Service. Resolver options (single-request-reopen) don't help: the clash is with another flow",
        ),
        Some(RaceKind::SameFlow) => (
            ", between two packets of one flow",
            "resolver option single-request-reopen for glibc clients, a kernel from 5.6 on, or NodeLocal DNSCache",
        ),
        Some(RaceKind::Tcp) => (
            ", of TCP connections",
            "the MASQUERADE rule lacks --random-fully; TCP clashes are never resolved by the kernel",
        ),
        None => ("", CAUSE.mend),
    };
    let mut proof = Vec::new();
    if let Some((dropped, reply)) = sample.and_then(|dropped| Some((dropped, dropped.reply?))) {
        // conntrack-watch fetches the entry that holds the tuple and tells it as a mapping.
        let holder = view.mappings.values().map(|entry| &entry.mapping).find(|mapping| {
            mapping.backend == reply.source
                && mapping.original.source.port() == reply.destination.port()
                && Some(mapping.original) != dropped.original
        });
        let held = holder.map_or("taken".to_owned(), |mapping| {
            let source = mapping.original.source;
            format!("held by {source} ({})", view.client_key(source.ip()))
        });
        proof.push(format!("the reply tuple it wanted, {reply}, was {held}"));
    }
    if let Some(node) = &case.scope.node {
        let (all, dns) = view.total_rise(Some(node), DropClass::InsertRace, case.base);
        if let Some(rise) = view.counter_rise(node, case.base, |counters| counters.insert_failed) {
            let verdict = if rise == all { "equal to" } else { "beside" };
            proof.push(format!(
                "insert_failed on {node}: +{rise}, {verdict} the {all} insertion drops seen there, {dns} of them DNS"
            ));
        }
    }
    Telling { title: format!("conntrack insert race{with}"), proof, mend: mend.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{drop_symptom, inventory_view, lookup_symptom};

    #[test]
    fn a_drop_at_insertion_is_certain_and_scoped_to_its_node() {
        let view = inventory_view();
        let judgement = judge(&drop_symptom("node-a", DropClass::InsertRace), &view).unwrap();
        assert_eq!(judgement.confidence, Confidence::Certain);
        assert_eq!(judgement.scope.unwrap().node.as_deref(), Some("node-a"));
    }

    #[test]
    fn a_silent_lookup_whose_packet_was_dropped_is_joined_to_the_drop() {
        let mut view = inventory_view();
        let dropped = drop_symptom("node-a", DropClass::InsertRace);
        let silent = lookup_symptom(Failure::Silent);
        assert!(judge(&silent, &view).is_none(), "no drop yet");
        view.drops.push_back((dropped.at, dropped.dropped().unwrap().clone()));
        assert_eq!(judge(&silent, &view).unwrap().confidence, Confidence::Certain);
    }

    #[test]
    fn a_drop_by_a_rule_is_not_a_race() {
        assert!(judge(&drop_symptom("node-a", DropClass::Rule), &inventory_view()).is_none());
    }
}
