//! The node's conntrack table is full: no new flow, so no new lookup.

use std::time::Duration;

use evidence::{DropClass, Observer, Place};

use super::{Case, Cause, Judgement, Telling, drop_line, dropped_as, fullest_table, lookup_line};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Symptom};
use crate::view::View;

pub(super) static CAUSE: Cause = Cause {
    id: "conntrack-full",
    title: "conntrack table full",
    seen: "On one node every new connection and every lookup from a new port times out; what was connected goes on.",
    proves: "The kernel dropped a DNS packet for want of an entry (drop rose without insert_failed), while the table \
             stands at nf_conntrack_max.",
    against: "The table has room; drop doesn't rise.",
    mend: "Raise net.netfilter.nf_conntrack_max on that node, and find who fills the table: `conntrack -L` counted \
           by source. Shorter time-outs (nf_conntrack_tcp_timeout_established) empty it sooner.",
    reads: &[Observer::Drops, Observer::ConntrackCounters],
    drops: Some(DropClass::TableFull),
    waits_for_resend: false,
    judge,
    looks_like: |symptom| symptom.lookup().is_some_and(|lookup| lookup.failure == Failure::Silent),
    absent: |view| {
        let full = view
            .counters
            .values()
            .filter_map(|readings| readings.back())
            .any(|(_, c)| is_full(c.entries, c.max));
        let (node, entries, max) = fullest_table(view)?;
        (!full).then(|| format!("table has room ({entries} of {max} entries on {node}, the fullest)"))
    },
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    if let Some(dropped) = dropped_as(symptom, view, DropClass::TableFull) {
        let node = match &dropped.place {
            Place::Node(node) => Some(node.clone()),
            Place::Namespace(_) => view.node_of_address(view.client_of(dropped).ip()),
        };
        return Some(Judgement {
            confidence: Confidence::Certain,
            scope: Some(Scope { node, ..Scope::default() }),
            line: drop_line(symptom.at, "dropped, the table had no room", dropped),
        });
    }
    // Where the helper looks, a packet that the table refused has a record: without one it was not refused.
    if view.looked(Observer::Drops, symptom.at.minus(Duration::from_secs(2))) {
        return None;
    }
    let lookup = symptom.lookup()?;
    let lost = matches!(lookup.failure, Failure::Silent | Failure::SendRefused(_));
    let counters = view.latest_counters(&symptom.node)?;
    (lost && is_full(counters.entries, counters.max)).then(|| Judgement {
        confidence: Confidence::Likely,
        scope: Some(Scope { node: Some(symptom.node.clone()), ..Scope::default() }),
        line: lookup_line(symptom, view),
    })
}

/// Entries come and go between two readings; the kernel refuses within a hair of the maximum.
fn is_full(entries: u64, max: u64) -> bool {
    max > 0 && entries.saturating_mul(1000) >= max.saturating_mul(995)
}

fn tell(case: &Case, view: &View) -> Telling {
    let mut proof = Vec::new();
    if let Some(node) = &case.scope.node {
        if let Some(counters) = view.latest_counters(node) {
            proof.push(format!("{node}: {} entries of {} allowed", counters.entries, counters.max));
        }
        let (all, dns) = view.total_rise(Some(node), DropClass::TableFull, case.base);
        let drop = view.counter_rise(node, case.base, |c| c.drop);
        let failed = view.counter_rise(node, case.base, |c| c.insert_failed);
        if let (Some(drop), Some(failed)) = (drop, failed) {
            proof.push(format!(
                "drop on {node}: +{drop}, insert_failed +{failed}; {all} packets refused for want of room, {dns} of them DNS"
            ));
        }
    }
    let node = case.scope.node.as_deref().unwrap_or("the nodes concerned");
    Telling {
        title: "conntrack table full".into(),
        proof,
        mend: format!(
            "raise net.netfilter.nf_conntrack_max on {node}; find who fills the table: \
             conntrack -L | awk '{{for(i=1;i<=NF;i++)if($i~/^src=/){{print $i;break}}}}' | sort | uniq -c | sort -rn | head"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{counters, drop_symptom, inventory_view, lookup_symptom};

    #[test]
    fn a_drop_for_want_of_room_is_certain() {
        let judgement = judge(&drop_symptom("node-b", DropClass::TableFull), &inventory_view()).unwrap();
        assert_eq!(judgement.confidence, Confidence::Certain);
        assert_eq!(judgement.scope.unwrap().node.as_deref(), Some("node-b"));
    }

    #[test]
    fn a_silent_lookup_on_a_node_with_a_full_table_is_likely() {
        let mut view = inventory_view();
        assert!(judge(&lookup_symptom(Failure::Silent), &view).is_none());
        view.counters
            .entry("node-a".into())
            .or_default()
            .push_back((view.now, counters("node-a", 1000, 1000)));
        assert_eq!(judge(&lookup_symptom(Failure::Silent), &view).unwrap().confidence, Confidence::Likely);
    }

    #[test]
    fn a_table_with_room_is_ruled_out_with_its_figures() {
        let mut view = inventory_view();
        assert!((CAUSE.absent)(&view).is_none(), "nothing was read");
        view.counters
            .entry("node-a".into())
            .or_default()
            .push_back((view.now, counters("node-a", 812, 262_144)));
        assert!((CAUSE.absent)(&view).unwrap().contains("812 of 262144"));
    }
}
