//! A netfilter rule drops DNS packets: on the node, or in the pod's own namespace.

use evidence::{DropClass, Observer, Place};

use super::{Case, Cause, Judgement, Telling, drop_line, dropped_as, lookup_line};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Kind, Symptom};
use crate::view::View;

pub(super) static CAUSE: Cause = Cause {
    id: "policy-drop",
    title: "a firewall rule drops DNS",
    seen: "Lookups time out for the pods behind one rule (a NetworkPolicy, a hand-made rule); a send may fail with \
           \"operation not permitted\".",
    proves: "The kernel dropped the DNS packet by a netfilter verdict while none of conntrack's counters rose; or it \
             refused the send with EPERM.",
    against: "No DNS packet died by a verdict; or the Service has no endpoints, and the rule is kube-proxy's REJECT.",
    mend: "Find the rule in the namespace that is named: iptables-save -c or nft list ruleset, the counter that rises. \
           Allow UDP and TCP to the DNS pods' own port, too: after DNAT that is what the packet carries.",
    reads: &[Observer::Drops],
    drops: None,
    waits_for_resend: false,
    judge,
    looks_like: |symptom| {
        symptom.dropped().is_some_and(|dropped| dropped.class == DropClass::Rule)
            || symptom.lookup().is_some_and(|lookup| matches!(lookup.failure, Failure::SendRefused(_)))
    },
    absent: |view| (view.recent_drops(DropClass::Rule) == 0).then(|| "no rule dropped a DNS packet".into()),
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    if let Some(dropped) = dropped_as(symptom, view, DropClass::Rule) {
        let client = view.client_of(dropped);
        let (scope, place) = match &dropped.place {
            Place::Node(node) => (
                Scope { node: Some(node.clone()), ..Scope::default() },
                format!("dropped by a rule on {node}"),
            ),
            Place::Namespace(_) => (
                pod_scope(client.ip(), &symptom.node, view),
                "dropped by a rule in the pod's own namespace".into(),
            ),
        };
        // A packet that dies on a node on its way to the Service's own address may be kube-proxy's REJECT, and the
        // news that nothing serves may still be on its way.
        let perhaps_rejected = matches!(dropped.place, Place::Node(_))
            && view.inventory.service.addresses.contains(&dropped.packet.destination);
        return Some(Judgement {
            confidence: if perhaps_rejected { Confidence::Likely } else { Confidence::Certain },
            scope: Some(scope),
            line: drop_line(symptom.at, &place, dropped),
        });
    }
    match &symptom.kind {
        Kind::Lookup(lookup) => {
            let Failure::SendRefused(errno) = lookup.failure else { return None };
            let source = lookup.queries.first().map(|query| query.source.ip())?;
            (errno == EPERM).then(|| Judgement {
                confidence: Confidence::Likely,
                scope: Some(pod_scope(source, &symptom.node, view)),
                line: lookup_line(symptom, view),
            })
        }
        Kind::Drop(_) | Kind::Mapping(_) => None,
    }
}

fn pod_scope(client: std::net::IpAddr, node: &str, view: &View) -> Scope {
    let node = view.node_of_address(client).unwrap_or_else(|| node.to_owned());
    let client = view.client_key(client);
    Scope { node: Some(node), server: None, client: Some(client) }
}

fn tell(case: &Case, view: &View) -> Telling {
    let place = match (&case.scope.node, &case.scope.client) {
        (_, Some(client)) => format!("in the own namespace of {client}"),
        (Some(node), None) => format!("on {node}"),
        (None, None) => "in several places".into(),
    };
    let mut proof = Vec::new();
    let sample = case.symptoms.iter().rev().find_map(|symptom| dropped_as(symptom, view, DropClass::Rule));
    if let Some(dropped) = sample {
        let stage = match (dropped.original, dropped.reply) {
            (Some(original), Some(_)) if original.destination != dropped.packet.destination => {
                "after DNAT: in FORWARD, INPUT or POSTROUTING"
            }
            (Some(_), _) => "after conntrack saw it: in mangle PREROUTING, FORWARD, OUTPUT or later",
            (None, _) => "before conntrack: in raw PREROUTING or OUTPUT, or in a namespace without conntrack",
        };
        let interface =
            dropped.interface.as_deref().map_or(String::new(), |name| format!(", on interface {name}"));
        proof.push(format!("it died {stage}{interface}, as {}", dropped.packet));
    }
    if let Some(node) = case.scope.node.as_deref().filter(|_| case.scope.client.is_none()) {
        let (all, dns) = view.total_rise(Some(node), DropClass::Rule, case.base);
        if all > 0 {
            proof.push(format!("rules dropped {all} packets on {node}, {dns} of them DNS; no conntrack counter rose with these"));
        }
    }
    Telling { title: format!("a firewall rule drops DNS {place}"), proof, mend: CAUSE.mend.into() }
}

const EPERM: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{drop_symptom, inventory_view, lookup_symptom};

    #[test]
    fn a_rule_on_a_node_is_placed_there() {
        let judgement = judge(&drop_symptom("node-a", DropClass::Rule), &inventory_view()).unwrap();
        let scope = judgement.scope.unwrap();
        assert_eq!((scope.node.as_deref(), scope.client), (Some("node-a"), None));
    }

    #[test]
    fn a_packet_that_dies_undelivered_to_the_service_address_waits_for_the_inventory() {
        let mut symptom = drop_symptom("node-a", DropClass::Rule);
        assert_eq!(judge(&symptom, &inventory_view()).unwrap().confidence, Confidence::Likely);
        if let Kind::Drop(dropped) = &mut symptom.kind {
            dropped.packet.destination = "10.244.1.2:53".parse().unwrap();
        }
        assert_eq!(judge(&symptom, &inventory_view()).unwrap().confidence, Confidence::Certain);
    }

    #[test]
    fn a_rule_in_a_pods_namespace_is_placed_at_that_pod() {
        let mut symptom = drop_symptom("node-a", DropClass::Rule);
        if let Kind::Drop(dropped) = &mut symptom.kind {
            dropped.place = Place::Namespace(4_026_532_999);
        }
        let scope = judge(&symptom, &inventory_view()).unwrap().scope.unwrap();
        assert_eq!(scope.client.as_deref(), Some("default/app"));
        assert_eq!(scope.node.as_deref(), Some("node-a"));
    }

    #[test]
    fn a_refused_send_is_likely_and_other_errors_are_not_a_policy() {
        let view = inventory_view();
        assert_eq!(
            judge(&lookup_symptom(Failure::SendRefused(1)), &view).unwrap().confidence,
            Confidence::Likely
        );
        assert!(judge(&lookup_symptom(Failure::SendRefused(101)), &view).is_none());
    }
}
