//! Two pods of a node choose the same source port behind a plain MASQUERADE: one of two queries is dropped.
//!
//! The rule is a CNI's (flannel's without its random flag, ip-masq-agent's): it stands before kube-proxy's own
//! KUBE-POSTROUTING, whose MASQUERADE has --random-fully and would hardly ever clash.

use std::time::Duration;

use super::rule::Rule;
use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;
use crate::miniature::coredns::CLUSTER_NAME;
use crate::traffic::job::{Job, Report};
use crate::traffic::storm::Storm;

pub(super) static FAULT: Fault = Fault {
    name: "same-port-clash",
    title: "two pods of a node clash on a source port behind the CNI's plain MASQUERADE",
    expected: Expected { cause: "insert-race", certain: true, scope: Scope::Node },
    touches_servers: false,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let (site, node) = (injection.site, injection.node()?);
    let pods: Vec<_> = site.pods.iter().filter(|pod| pod.node == node.name).take(2).collect();
    let [first, second] = pods.as_slice() else {
        return Err(Error::NoSuch {
            kind: "second pod of node",
            name: node.name.clone(),
            known: String::new(),
        });
    };
    for pod in [first, second] {
        injection.client(pod, None);
    }
    let rule = if injection.choice.ipv6 {
        let words = format!("-s {} ! -d ff00::/8 -j MASQUERADE", node.pod_cidr_v6);
        Rule::v6(&node.netns, "nat", "POSTROUTING", &words)
    } else {
        let words = format!("-s {} ! -d 224.0.0.0/4 -j MASQUERADE", node.pod_cidr_v4);
        Rule::v4(&node.netns, "nat", "POSTROUTING", &words)
    };
    injection.will(Undo::Rule(rule.clone()))?;
    rule.insert()?;
    let storm = Storm {
        pods: [first.netns.clone(), second.netns.clone()],
        target: injection.service(),
        rounds_per_second: ROUNDS_PER_SECOND,
        first_port: FIRST_PORT,
        ports: 20_000,
        rounds_before: rounds_before(injection),
        name: CLUSTER_NAME.to_owned(),
    };
    let helper = injection.start(&node.netns, &Job::Storm(storm))?;
    let blowing = |report: &Report| report.clients.iter().all(|seen| seen.sent > 0);
    helper.wait_for(Duration::from_secs(10), blowing).map(drop)
}

/// How many ports have been used since the site stands: the next storm goes on behind them.
fn rounds_before(injection: &Injection) -> u64 {
    match injection.last() {
        Some((Job::Storm(storm), report)) => {
            storm.rounds_before + report.clients.iter().map(|seen| seen.sent + seen.unsent).max().unwrap_or(0)
        }
        Some((Job::Pinned(_) | Job::Fill(_), _)) | None => 0,
    }
}

/// 20,000 ports from here lie below the ephemeral range, so that no other client of the pods holds one.
const FIRST_PORT: u16 = 10_000;

/// At this rate 20,000 ports last 100 s: longer than an entry, which lives 30 s.
const ROUNDS_PER_SECOND: u32 = 200;
