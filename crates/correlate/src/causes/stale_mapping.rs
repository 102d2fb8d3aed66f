//! A conntrack entry in use still sends a client to a server that has gone.

use std::time::Duration;

use evidence::{Observer, ServerRole};

use super::{Case, Cause, Judgement, Telling, lookup_line};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Kind, Symptom, TroubledLookup};
use crate::view::{View, time_of_day};

pub(super) static CAUSE: Cause = Cause {
    id: "stale-mapping",
    title: "stale conntrack mapping",
    seen: "One busy client (c-ares, Envoy, a pinned port) gets no answers at all, for minutes or hours, while its \
           neighbours are fine.",
    proves: "Its entry maps the Service to an address that serves in no EndpointSlice, and the client renewed the \
             entry more than 3 s after that server left.",
    against: "All entries in use lead to serving endpoints. Idle leftovers harm nobody: they are counted, no more.",
    mend: "Delete the entry on that node; the client's next packet finds a living server. Then find why kube-proxy \
           left it: does it run, which version (before 1.32 a failed clean-up is never retried)?",
    reads: &[Observer::ConntrackTable, Observer::Inventory],
    drops: None,
    waits_for_resend: false,
    judge,
    looks_like: |symptom| symptom.lookup().is_some_and(|lookup| lookup.failure == Failure::Silent),
    absent: |view| {
        let stale = view
            .mappings
            .values()
            .any(|entry| entry.mapping.renewed.is_some() && view.departed(&entry.mapping).is_some());
        (view.inventory.service.is_virtual && !stale)
            .then(|| "every entry in use leads to a serving endpoint".into())
    },
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    let mapping = match &symptom.kind {
        Kind::Mapping(mapping) => mapping,
        Kind::Lookup(lookup) if lookup.failure == Failure::Silent => match view.mapping_of(lookup) {
            Some(mapping) => mapping,
            None => return led_by_rules(symptom, lookup, view),
        },
        Kind::Lookup(_) | Kind::Drop(_) => return None,
    };
    if !view.inventory.service.is_virtual {
        return None;
    }
    // While nothing serves, kube-proxy keeps all entries: that is the missing endpoints' doing.
    if view.had_no_endpoints(symptom.at) {
        return None;
    }
    let (departed, seen) = view.departed(mapping)?;
    // A lookup's own packet is the renewal; soon after the change, kube-proxy may still be at work. Where others send
    // there long after it, it was not.
    let at_once = matches!(symptom.kind, Kind::Lookup(_)) && symptom.at < departed.plus(RULES_SETTLE);
    if at_once && !view.others_still_send(mapping, departed) {
        return None;
    }
    let client = mapping.original.source;
    let left = if seen {
        format!("which left at {}", time_of_day(departed))
    } else {
        "which the inventory does not have (is it up to date?)".into()
    };
    Some(Judgement {
        confidence: if seen && !at_once { Confidence::Certain } else { Confidence::Likely },
        scope: Some(Scope {
            node: Some(mapping.node.clone()),
            server: Some(mapping.backend.to_string()),
            client: Some(view.client_key(client.ip())),
        }),
        line: format!(
            "{}  {client} still sends to {} by way of {}, {left}",
            time_of_day(symptom.at),
            mapping.original.destination,
            mapping.backend,
        ),
    })
}

/// An entry may be gone before anybody read it. Where other new flows of its node were led to a server that had gone,
/// and nothing else is known of this lookup, it probably was, too.
fn led_by_rules(symptom: &Symptom, lookup: &TroubledLookup, view: &View) -> Option<Judgement> {
    let excused = view.had_no_endpoints(symptom.at) || view.drop_of(&lookup.queries).is_some();
    if lookup.role != ServerRole::Service || !view.inventory.service.is_virtual || excused {
        return None;
    }
    let mapping = view.new_flow_astray(&symptom.node, symptom.at)?;
    let client = lookup.queries.first().map(|query| view.client_key(query.source.ip()));
    Some(Judgement {
        confidence: Confidence::Likely,
        scope: Some(Scope {
            node: Some(mapping.node.clone()),
            server: Some(mapping.backend.to_string()),
            client,
        }),
        line: lookup_line(symptom, view),
    })
}

fn tell(case: &Case, view: &View) -> Telling {
    let mut proof = Vec::new();
    let mut mend = CAUSE.mend.to_owned();
    if let Some(Kind::Mapping(mapping)) = case.symptoms.last().map(|symptom| &symptom.kind) {
        proof.push(format!(
            "its entry on {} is renewed by each packet it sends, so it never expires while the client goes on; {} others serve",
            mapping.node,
            view.servers().len()
        ));
        mend = format!(
            "on {}: conntrack -D -p {} --orig-src {} --orig-dst {} --sport {} --dport {}   then see why kube-proxy left the entry (does it run? from 1.32 on it cleans again by itself)",
            mapping.node,
            mapping.protocol.as_str(),
            mapping.original.source.ip(),
            mapping.original.destination.ip(),
            mapping.original.source.port(),
            mapping.original.destination.port(),
        );
    }
    Telling { title: "stale conntrack mapping to a server that has gone".into(), proof, mend }
}

const RULES_SETTLE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use evidence::Mapping;

    use super::*;
    use crate::testing::{inventory, inventory_view, lookup_symptom, mapping_symptom};

    #[test]
    fn a_renewed_entry_to_a_departed_server_is_certain() {
        let mut view = inventory_view();
        let symptom = mapping_symptom(view.now.plus(Duration::from_secs(9)));
        assert!(judge(&symptom, &view).is_none(), "the server still serves");
        view.learn_inventory(view.now.plus(Duration::from_secs(2)), inventory(&["10.244.2.3:53"]));
        let judgement = judge(&symptom, &view).unwrap();
        assert_eq!(judgement.confidence, Confidence::Certain);
        let scope = judgement.scope.unwrap();
        assert_eq!(scope.node.as_deref(), Some("node-a"));
        assert_eq!(scope.server.as_deref(), Some("10.244.1.2:53"));
        assert_eq!(scope.client.as_deref(), Some("default/app"));
    }

    #[test]
    fn a_lookup_right_after_the_change_is_drawn_in_where_the_entry_outlives_it() {
        let mut view = inventory_view();
        view.learn_inventory(view.now, inventory(&["10.244.2.3:53"]));
        let renewed = view.now.plus(Duration::from_secs(9));
        let stale = mapping_symptom(renewed);
        let Kind::Mapping(mapping) = &stale.kind else { panic!() };
        let mut symptom = lookup_symptom(Failure::Silent);
        let Kind::Lookup(lookup) = &mut symptom.kind else { panic!() };
        lookup.queries[0].source = mapping.original.source;
        (symptom.at, lookup.queries[0].sent) = (view.now, view.now);
        view.learn_mapping(view.now.plus(Duration::from_secs(1)), None, mapping, RULES_SETTLE);
        assert!(view.mapping_of(symptom.lookup().unwrap()).is_some());
        assert!(judge(&symptom, &view).is_none(), "kube-proxy may still be at work");
        view.learn_mapping(renewed, Some(renewed), mapping, RULES_SETTLE);
        assert_eq!(judge(&symptom, &view).unwrap().confidence, Confidence::Likely);
    }

    #[test]
    fn a_lookup_without_an_entry_is_drawn_in_where_new_flows_of_its_node_are_led_astray() {
        let later = |view: &View, secs| view.now.plus(Duration::from_secs(secs));
        let mapping = match mapping_symptom(crate::testing::NOW).kind {
            Kind::Mapping(mapping) => Mapping { replied: false, ..mapping },
            Kind::Lookup(_) | Kind::Drop(_) => panic!(),
        };
        for (first, drawn_in) in [(1, false), (6, true)] {
            let mut view = inventory_view();
            view.learn_inventory(view.now, inventory(&["10.244.2.3:53"]));
            let renewed = later(&view, 7);
            view.learn_mapping(later(&view, first), None, &mapping, RULES_SETTLE);
            view.learn_mapping(renewed, Some(renewed), &mapping, RULES_SETTLE);
            let mut symptom = lookup_symptom(Failure::Silent);
            symptom.at = later(&view, 8);
            let Kind::Lookup(lookup) = &mut symptom.kind else { panic!() };
            (lookup.queries[0].sent, lookup.queries[0].source) =
                (symptom.at, "10.244.1.8:4".parse().unwrap());
            let judgement = judge(&symptom, &view);
            assert_eq!(
                judgement.is_some(),
                drawn_in,
                "an old flow, as of a pinned port, says nothing of others"
            );
            let far = Symptom { node: "node-b".into(), ..symptom };
            assert!(judge(&far, &view).is_none());
        }
    }

    #[test]
    fn an_entry_that_was_never_translated_is_not_stale() {
        let view = inventory_view();
        let mut symptom = mapping_symptom(view.now.plus(Duration::from_secs(9)));
        if let Kind::Mapping(mapping) = &mut symptom.kind {
            mapping.backend = mapping.original.destination;
        }
        assert!(judge(&symptom, &view).is_none());
    }

    #[test]
    fn without_an_inventory_no_mapping_is_called_stale() {
        let view = View::default();
        assert!(judge(&mapping_symptom(view.now), &view).is_none());
    }
}
