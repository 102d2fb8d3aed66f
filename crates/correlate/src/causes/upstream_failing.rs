//! CoreDNS answers for the cluster, and fails on what it forwards.

use std::collections::BTreeSet;

use evidence::{NameKind, Observer, ServerRole};

use super::{Case, Cause, Judgement, Telling, lookup_line};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Symptom};
use crate::view::View;

pub(super) static CAUSE: Cause = Cause {
    id: "upstream-failing",
    title: "the upstream of CoreDNS fails",
    seen: "Names of the cluster resolve, names outside it get SERVFAIL or time out, from every pod.",
    proves: "The same server answered a cluster name after it failed on a forwarded one; its own counters of upstream \
             failures rise.",
    against: "Cluster names fail as well; forwarded names are answered.",
    mend: "Look at the upstream that CoreDNS's forward plugin names: is it up, and can the CoreDNS pods reach it on UDP \
           and TCP 53? A second upstream in the forward line carries over.",
    reads: &[Observer::Prober],
    drops: None,
    waits_for_resend: false,
    judge,
    looks_like: |symptom| symptom.lookup().is_some_and(|lookup| lookup.name_kind == NameKind::Forwarded),
    absent: |view| {
        (view.servers_with_failing_upstream(view.now).is_empty() && view.any_forwarded_answer())
            .then(|| "forwarded names are answered, or fail as cluster names do".into())
    },
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    let lookup = symptom.lookup().filter(|lookup| lookup.name_kind == NameKind::Forwarded)?;
    let failed = match lookup.failure {
        Failure::Rcode(rcode) => rcode == SERVFAIL || rcode == REFUSED,
        Failure::Silent => {
            view.drop_of(&lookup.queries).is_none() && view.silent_servers(symptom.at).is_empty()
        }
        Failure::Refused | Failure::Unreachable(_) | Failure::SendRefused(_) => false,
    };
    let failing = view.servers_with_failing_upstream(symptom.at);
    let known = match lookup.role {
        ServerRole::Direct => failing.contains(&lookup.server),
        ServerRole::Service => !failing.is_empty(),
    };
    (failed && known).then(|| Judgement {
        confidence: Confidence::Likely,
        scope: Some(Scope::default()),
        line: lookup_line(symptom, view),
    })
}

fn tell(case: &Case, view: &View) -> Telling {
    let at = case.symptoms.last().map_or(view.now, |symptom| symptom.at);
    let failing = view.servers_with_failing_upstream(at);
    let names: BTreeSet<String> = failing.iter().map(|server| view.pod_of_server(server)).collect();
    let names: Vec<String> = names.into_iter().collect();
    let mut proof = Vec::new();
    if !names.is_empty() {
        proof.push(format!("answer cluster names and fail on forwarded ones: {}", names.join(", ")));
    }
    let mut upstreams = Vec::new();
    for readings in view.samples.values() {
        let (Some((_, first)), Some((_, last))) = (readings.front(), readings.back()) else { continue };
        let pod = view.pod_of_server(&last.server);
        for upstream in &last.upstreams {
            let before = first.upstreams.iter().find(|u| u.address == upstream.address);
            let then = before.and_then(|u| u.responses.get("SERVFAIL")).copied().unwrap_or(0);
            let servfail = upstream.responses.get("SERVFAIL").copied().unwrap_or(0).saturating_sub(then);
            let checks =
                upstream.healthcheck_failures.saturating_sub(before.map_or(0, |u| u.healthcheck_failures));
            if servfail + checks > 0 {
                upstreams.push(upstream.address.clone());
                proof.push(format!(
                    "{pod} counts for its upstream {}: SERVFAIL +{servfail}, failed health checks +{checks}, in the last minute",
                    upstream.address
                ));
            }
        }
    }
    upstreams.sort();
    upstreams.dedup();
    proof.truncate(5);
    let mend = if upstreams.is_empty() {
        CAUSE.mend.to_owned()
    } else {
        format!(
            "mend or replace the upstream {} (is it up, do the CoreDNS pods reach it on UDP and TCP 53?); a second upstream in the Corefile's forward line carries over",
            upstreams.join(", ")
        )
    };
    Telling { title: CAUSE.title.into(), proof, mend }
}

const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::symptom::Kind;
    use crate::testing::{answered, direct_symptom, inventory_view};

    #[test]
    fn a_forwarded_failure_beside_answered_cluster_names_is_likely() {
        let mut view = inventory_view();
        let mut symptom = direct_symptom(1);
        let Kind::Lookup(lookup) = &mut symptom.kind else { panic!() };
        lookup.name_kind = NameKind::Forwarded;
        lookup.failure = Failure::Rcode(2);
        view.direct.learn_trouble(symptom.at, lookup);
        assert!(judge(&symptom, &view).is_none(), "nothing says that the server is well");
        view.learn_ended(answered(symptom.at.plus(Duration::from_millis(200)), NameKind::Cluster));
        assert_eq!(judge(&symptom, &view).unwrap().confidence, Confidence::Likely);
        let again = symptom.at.plus(Duration::from_millis(300));
        view.learn_ended(answered(again, NameKind::Forwarded));
        assert!(judge(&symptom, &view).is_some(), "it was failing when the symptom came");
        symptom.at = again.plus(Duration::from_secs(1));
        assert!(judge(&symptom, &view).is_none(), "forwarded names are answered again");
    }
}
