//! CoreDNS pods take queries and don't answer, while the network delivers.

use std::net::SocketAddr;
use std::time::Duration;

use evidence::{Observer, ServerRole};

use super::{Case, Cause, Judgement, Telling, lookup_line};
use crate::incident::{Confidence, Scope};
use crate::symptom::{Failure, Symptom};
use crate::view::{View, time_of_day};

pub(super) static CAUSE: Cause = Cause {
    id: "server-silent",
    title: "DNS servers are silent",
    seen: "A share of all lookups, as large as the share of silent servers, waits for the resend or fails; health \
           checks may stay green.",
    proves: "Direct queries to that server's own address go unanswered from more than one try, no netfilter drop has \
             them, and other servers answer meanwhile (or none does).",
    against: "The server answers direct queries; or its packets were dropped on the way.",
    mend: "Restart the silent pod: kubectl -n kube-system delete pod NAME; look at its CPU limit and its log before.",
    reads: &[Observer::Prober, Observer::Drops],
    drops: None,
    waits_for_resend: false,
    judge,
    looks_like: |symptom| {
        symptom
            .lookup()
            .is_some_and(|lookup| lookup.role == ServerRole::Direct && lookup.failure == Failure::Silent)
    },
    absent: |view| {
        let servers = view.servers().len();
        (view.silent_servers(view.now).is_empty() && servers > 0 && view.any_direct_answer())
            .then(|| format!("all {servers} servers answer direct queries that reach them"))
    },
    tell,
};

fn judge(symptom: &Symptom, view: &View) -> Option<Judgement> {
    let lookup = symptom.lookup()?;
    if !matches!(lookup.failure, Failure::Silent | Failure::Refused)
        || view.drop_of(&lookup.queries).is_some()
    {
        return None;
    }
    let silent = view.silent_servers(symptom.at);
    let server: Option<SocketAddr> = match lookup.role {
        ServerRole::Direct => Some(lookup.server),
        ServerRole::Service => view.mapping_of(lookup).map(|mapping| mapping.backend),
    };
    let to_blame = match server {
        Some(server) => view.was_silent(&server, symptom.at),
        // Which server it was is not known: one that is silent now is the likely one.
        None => !silent.is_empty(),
    };
    // One that has left since is none of those that serve: where they answer, it alone is meant.
    let alone: Vec<SocketAddr> = server.filter(|_| silent.is_empty()).into_iter().collect();
    let blamed = if silent.is_empty() { &alone } else { &silent };
    to_blame.then(|| Judgement {
        confidence: Confidence::Likely,
        scope: Some(Scope { node: None, server: one_of(blamed), client: None }),
        line: lookup_line(symptom, view),
    })
}

fn one_of(silent: &[SocketAddr]) -> Option<String> {
    match silent {
        [one] => Some(one.to_string()),
        [] | [_, _, ..] => None,
    }
}

fn tell(case: &Case, view: &View) -> Telling {
    // As of the last symptom: after recovery the verdict still says who it was.
    let silent = view.silent_servers(case.symptoms.last().map_or(view.now, |symptom| symptom.at));
    let serving = view.servers().len();
    let names: Vec<String> = match (&case.scope.server, silent.is_empty()) {
        (Some(server), true) => vec![server.clone()],
        (_, _) => silent.iter().map(|server| view.server_name(server)).collect(),
    };
    let which = if names.len() == serving { "all of them".into() } else { names.join(", ") };
    let looked = view.looked(Observer::Drops, case.since);
    let no_drop = if looked { "; no netfilter drop has those queries" } else { "" };
    let mut proof = Vec::new();
    if !names.is_empty() {
        proof.push(format!(
            "{} of {serving} servers leave direct queries unanswered: {which}{no_drop}",
            names.len()
        ));
    }
    for server in silent.iter().take(3) {
        proof.push(match view.sample_of(server) {
            // A reading from before the silence says nothing.
            Some((at, _)) if *at > case.since.plus(Duration::from_secs(1)) => format!(
                "{} still answers its metrics port ({}): it lives and the network delivers",
                view.server_name(server),
                time_of_day(*at)
            ),
            Some((at, _)) => {
                format!(
                    "{} has not answered its metrics port since {}",
                    view.server_name(server),
                    time_of_day(*at)
                )
            }
            None => continue,
        });
    }
    let refused =
        case.symptoms.iter().filter_map(Symptom::lookup).all(|lookup| lookup.failure == Failure::Refused);
    let who = if names.is_empty() { "the silent servers".into() } else { names.join(", ") };
    let mend = if view.inventory.service.is_virtual {
        format!(
            "restart {who} (kubectl -n kube-system delete pod ...); before that keep its log and look at its CPU limit"
        )
    } else if refused {
        format!("start the DNS server on {who}, or name another one in resolv.conf: nobody listens there")
    } else {
        format!(
            "see whether {who} is up and can be reached (its host, its route, its firewall); else name another server in resolv.conf"
        )
    };
    let what = if refused { "DNS servers refuse" } else { "DNS servers silent" };
    Telling { title: format!("{what}, {} of {serving}", names.len().max(1)), proof, mend }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symptom::Kind;
    use crate::testing::{direct_symptom, drop_symptom, inventory_view, lookup_symptom};
    use evidence::DropClass;

    fn silence(view: &mut View, id: u64) -> Symptom {
        let symptom = direct_symptom(id);
        let lookup = symptom.lookup().unwrap().clone();
        view.direct.learn_trouble(symptom.at.plus(Duration::from_millis(id)), &lookup);
        symptom
    }

    #[test]
    fn one_unanswered_query_blames_nobody_and_two_do() {
        let mut view = inventory_view();
        let symptom = silence(&mut view, 1);
        assert!(judge(&symptom, &view).is_none());
        let symptom = silence(&mut view, 2);
        let judgement = judge(&symptom, &view).unwrap();
        assert_eq!(judgement.confidence, Confidence::Likely);
        assert_eq!(judgement.scope.unwrap().server.as_deref(), Some("10.244.1.2:53"));
        assert!(
            judge(&lookup_symptom(Failure::Silent), &view).is_some(),
            "a lookup by the Service is drawn in"
        );
    }

    #[test]
    fn a_server_that_has_left_since_is_still_known_for_its_silence() {
        let mut view = inventory_view();
        silence(&mut view, 1);
        let symptom = silence(&mut view, 2);
        view.learn_inventory(
            view.now.plus(Duration::from_secs(1)),
            crate::testing::inventory(&["10.244.2.3:53"]),
        );
        view.forget();
        let judgement = judge(&symptom, &view).unwrap();
        assert_eq!(judgement.confidence, Confidence::Likely);
        assert_eq!(judgement.scope.unwrap().server.as_deref(), Some("10.244.1.2:53"), "it alone is meant");
    }

    #[test]
    fn a_dropped_query_does_not_speak_against_the_server() {
        let mut view = inventory_view();
        let symptom = silence(&mut view, 1);
        silence(&mut view, 2);
        let mut dropped = drop_symptom("node-a", DropClass::Rule).dropped().unwrap().clone();
        dropped.packet.source = symptom.lookup().unwrap().queries[0].source;
        view.drops.push_back((symptom.at, dropped));
        assert!(judge(&symptom, &view).is_none());
        let Kind::Lookup(lookup) = &symptom.kind else { panic!() };
        view.direct.absolve(lookup);
        assert!(view.silent_servers(view.now.plus(Duration::from_secs(1))).is_empty());
    }
}
