//! The DNS Service has no serving endpoint: kube-proxy rejects every query.

use evidence::{DropClass, Observer, ServerRole};

use super::{Case, Cause, Judgement, Telling, drop_line, lookup_line};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Kind, Symptom};
use crate::view::{View, time_of_day};

pub(super) static CAUSE: Cause = Cause {
    id: "no-endpoints",
    title: "the DNS Service has no endpoints",
    seen: "Every lookup fails at once (glibc, Go) or after 5 s (musl), on every node.",
    proves: "No EndpointSlice of the Service has a serving endpoint; kube-proxy's REJECT drops the queries and \
             answers with ICMP port unreachable.",
    against: "At least one endpoint serves.",
    mend: "Bring CoreDNS back: kubectl -n kube-system get pods -l k8s-app=kube-dns, then describe one that is not \
           Ready. If pods are Ready, compare the Service's selector with their labels.",
    reads: &[Observer::Inventory],
    drops: None,
    waits_for_resend: false,
    judge,
    looks_like: |symptom| symptom.lookup().is_some_and(|lookup| lookup.failure == Failure::Refused),
    absent: |view| {
        let servers = view.servers().len();
        (view.inventory.service.is_virtual && servers > 0)
            .then(|| format!("{servers} servers are behind the Service"))
    },
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    if !view.had_no_endpoints(symptom.at) {
        return None;
    }
    let line = match &symptom.kind {
        Kind::Lookup(lookup) if lookup.role == ServerRole::Service => lookup_line(symptom, view),
        Kind::Drop(dropped)
            if dropped.class == DropClass::Rule
                && view
                    .inventory
                    .service
                    .addresses
                    .contains(&dropped.original.unwrap_or(dropped.packet).destination) =>
        {
            drop_line(symptom.at, "rejected by kube-proxy", dropped)
        }
        Kind::Mapping(mapping) => format!(
            "{}  {} still sends by way of {}: entries are kept while nothing serves",
            time_of_day(symptom.at),
            mapping.original.source,
            mapping.backend
        ),
        Kind::Lookup(_) | Kind::Drop(_) => return None,
    };
    Some(Judgement { confidence: Confidence::Certain, scope: Some(Scope::default()), line })
}

fn tell(case: &Case, view: &View) -> Telling {
    let known = view.inventory.endpoints.len();
    let mut proof = vec![format!(
        "Service {}: 0 of {known} endpoints serve",
        if view.inventory.service.name.is_empty() { "of DNS" } else { &view.inventory.service.name }
    )];
    if case.dropped > 0 {
        proof.push(format!("{} queries to its address were rejected by a rule", case.dropped));
    }
    Telling { title: CAUSE.title.into(), proof, mend: CAUSE.mend.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{drop_symptom, inventory, inventory_view, lookup_symptom};

    #[test]
    fn a_lookup_while_nothing_serves_is_certain() {
        let mut view = inventory_view();
        let symptom = lookup_symptom(Failure::Refused);
        assert!(judge(&symptom, &view).is_none(), "endpoints serve");
        view.learn_inventory(view.now, inventory(&[]));
        assert_eq!(judge(&symptom, &view).unwrap().confidence, Confidence::Certain);
    }

    #[test]
    fn the_reject_rule_is_explained_as_ours_and_other_rules_are_not() {
        let mut view = inventory_view();
        view.learn_inventory(view.now, inventory(&[]));
        assert!(judge(&drop_symptom("node-a", DropClass::Rule), &view).is_some());
        assert!(judge(&drop_symptom("node-a", DropClass::InsertRace), &view).is_none());
    }
}
