//! Why does the cluster not even start an agent?
//!
//! PodSecurity, a quota or a webhook refuses a DaemonSet's pods, and no pod is there to say so: only the DaemonSet's
//! events tell. They are read while pods are missing, in this pod's own namespace.

use std::collections::BTreeSet;
use std::time::Duration;

use evidence::{Coverage, CoverageState, Node, Observer, Pod};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::watches::News;

/// Agents that are not started, and the cluster's own words for why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    namespace: String,
    /// The DaemonSet's name.
    name: String,
    observers: &'static [Observer],
    why: String,
}

impl Refused {
    /// What can't be seen for it, on the nodes that have no pod of it.
    pub(super) fn lines<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Node>,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Vec<Coverage> {
        let Self { namespace, name, observers, why } = self;
        let (prefix, workload) = (format!("{namespace}/"), format!("DaemonSet/{name}"));
        let of_it =
            |pod: &&Pod| pod.workload.as_ref() == Some(&workload) && pod.name.starts_with(prefix.as_str());
        let there: BTreeSet<_> = pods.filter(of_it).filter_map(|pod| pod.node.as_deref()).collect();
        let missing =
            format!("no agent runs there: the pods of DaemonSet {namespace}/{name} are refused: {why}");
        let without = nodes.filter(|node| !there.contains(node.name.as_str()));
        let line = |observer: &Observer, node: &Node| Coverage {
            observer: *observer,
            place: node.name.clone(),
            state: CoverageState::Denied { missing: missing.clone() },
        };
        without.flat_map(|node| observers.iter().map(move |observer| line(observer, node))).collect()
    }
}

/// Looks until nobody listens.
pub(super) async fn look(client: Client, out: mpsc::Sender<News>) {
    let mut told = String::new();
    loop {
        match refused(&client).await {
            Ok(found) => {
                let words: Vec<_> =
                    found.iter().map(|one| format!("{}/{}: {}", one.namespace, one.name, one.why)).collect();
                tell(&mut told, "pods of a DaemonSet are refused", words.join("; "));
                if out.send(News::Refused(found)).await.is_err() {
                    return;
                }
            }
            // The API server's absence is told by others.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tell(&mut told, "why agents are not started can't be seen", status.message.clone());
            }
            Err(_) => {}
        }
        sleep(INTERVAL).await;
    }
}

/// Once for each text.
fn tell(told: &mut String, what: &str, words: String) {
    if *told != words {
        if !words.is_empty() {
            tracing::warn!("{what}: {words}");
        }
        *told = words;
    }
}

async fn refused(client: &Client) -> Result<Vec<Refused>, kube::Error> {
    let sets: Api<DaemonSet> = Api::default_namespaced(client.clone());
    let ours = ListParams::default().labels("app.kubernetes.io/name=nslookout");
    let mut found = Vec::new();
    for set in sets.list(&ours).await?.items {
        let is_short = set
            .status
            .as_ref()
            .is_some_and(|status| status.current_number_scheduled < status.desired_number_scheduled);
        let observers = match set.labels().get("app.kubernetes.io/component").map(String::as_str) {
            Some("node") => NODE,
            Some("prober") => PROBER,
            _ => continue,
        };
        if is_short && let Some(why) = last_refusal(client, &set).await? {
            let namespace = set.namespace().unwrap_or_default();
            found.push(Refused { why: words(&why, &namespace), namespace, name: set.name_any(), observers });
        }
    }
    Ok(found)
}

async fn last_refusal(client: &Client, set: &DaemonSet) -> Result<Option<String>, kube::Error> {
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let of_set = format!("involvedObject.uid={},reason=FailedCreate", set.uid().unwrap_or_default());
    let list = events.list(&ListParams::default().fields(&of_set)).await?;
    let when = |event: &Event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or_else(|| event.event_time.as_ref().map(|time| time.0))
    };
    Ok(list.items.into_iter().max_by_key(when).and_then(|event| event.message))
}

/// Without the pod's name, which is another one in each event, and with what mends it.
fn words(message: &str, namespace: &str) -> String {
    let why = message.split_once("is forbidden: ").map_or(message, |(_, why)| why).trim();
    if why.starts_with("violates PodSecurity") {
        let label = "pod-security.kubernetes.io/enforce=privileged";
        return format!("{why}; kubectl label --overwrite namespace {namespace} {label} allows it");
    }
    why.to_owned()
}

const NODE: &[Observer] = &[Observer::ConntrackCounters, Observer::ConntrackTable, Observer::Drops];
const PROBER: &[Observer] = &[Observer::Prober];
/// One short list, and a second one while pods are missing.
const INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "Error creating: pods \"nslookout-node-x7k2p\" is forbidden: violates PodSecurity \
                           \"baseline:latest\": host namespaces (hostNetwork=true)";

    fn pod(name: &str, node: &str, workload: &str) -> Pod {
        Pod {
            name: name.into(),
            node: Some(node.into()),
            workload: Some(workload.into()),
            addresses: Vec::new(),
        }
    }

    #[test]
    fn only_nodes_without_a_pod_of_that_daemonset_are_told_and_the_reason_is_the_clusters() {
        let refused = Refused {
            namespace: "dns".into(),
            name: "nslookout-node".into(),
            observers: NODE,
            why: words(MESSAGE, "dns"),
        };
        let nodes = ["node-a", "node-b", "node-c"].map(|name| Node { name: name.into(), zone: None });
        let pods = [
            pod("dns/nslookout-node-1", "node-a", "DaemonSet/nslookout-node"),
            pod("dns/nslookout-prober-1", "node-b", "DaemonSet/nslookout-prober"),
            pod("else/nslookout-node-1", "node-c", "DaemonSet/nslookout-node"),
        ];
        let lines = refused.lines(nodes.iter(), pods.iter());
        let places: Vec<_> = lines.iter().map(|line| (line.observer, line.place.as_str())).collect();
        let expected: Vec<_> =
            ["node-b", "node-c"].iter().flat_map(|node| NODE.iter().map(move |one| (*one, *node))).collect();
        assert_eq!(places, expected);
        for line in lines {
            let CoverageState::Denied { missing } = line.state else { panic!("{line:?}") };
            assert!(
                missing.contains("are refused: violates PodSecurity \"baseline:latest\": host"),
                "{missing}"
            );
            assert!(missing.contains("label --overwrite namespace dns"), "{missing}");
            assert!(!missing.contains("x7k2p"), "another in each event: {missing}");
        }
    }
}
