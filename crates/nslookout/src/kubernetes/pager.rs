//! Could each Alertmanager find its pager while cluster DNS is down?
//!
//! A pod asks cluster DNS unless its spec says otherwise, and a receiver is mostly a host name: so the alert that DNS is
//! down would end in Alertmanager. Nobody can see that on the day itself; its pod's spec shows it beforehand.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use evidence::Inventory;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::Api;
use kube::api::ListParams;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::connect::ApiServer;
use crate::alertmanager::{Found, Target, log};
use crate::metrics::Metrics;
use crate::status::Note;

/// Looks at the pods of Alertmanagers, again and again.
pub(super) struct Watch {
    pub api: ApiServer,
    /// Those that are known by address alone.
    pub addresses: Vec<Target>,
    pub found: watch::Receiver<Arc<Found>>,
    pub inventory: watch::Receiver<Arc<Inventory>>,
    pub metrics: Metrics,
    pub out: watch::Sender<Vec<Note>>,
}

/// What a pod's spec says: its name as "namespace/name", and why it asks nobody but cluster DNS, if that is so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    pod: String,
    needs: Option<String>,
}

impl Watch {
    /// Until nobody wants to know.
    pub(super) async fn run(mut self) {
        let mut verdicts: BTreeMap<SocketAddr, Verdict> = BTreeMap::new();
        loop {
            let found = self.found.borrow_and_update().clone();
            let inventory = self.inventory.borrow().clone();
            let mut present = BTreeMap::new();
            for (address, pod) in self.alertmanagers(&found, &inventory) {
                let looked = timeout(ANSWER, self.look(address, pod.as_deref(), &inventory)).await;
                // What can't be looked at now is as it was.
                let verdict = match looked {
                    Ok(Ok(verdict)) => verdict,
                    Ok(Err(_)) | Err(_) => verdicts.get(&address).cloned(),
                };
                present.extend(verdict.map(|verdict| (address, verdict)));
            }
            verdicts = present;
            self.tell(&verdicts);
            // The first state of the inventory is empty: it is there a moment later.
            let pause = if inventory.pods.is_empty() { SOON } else { AGAIN };
            tokio::select! {
                Ok(()) = self.found.changed() => {}
                () = sleep(pause) => {}
                () = self.out.closed() => return,
            }
        }
    }

    /// All who are told, with their pods as far as Services or the inventory name them.
    fn alertmanagers(&self, found: &Found, inventory: &Inventory) -> BTreeMap<SocketAddr, Option<String>> {
        let of_inventory = |address: SocketAddr| {
            let pod = inventory.pods.iter().find(|pod| pod.addresses.contains(&address.ip()));
            pod.map(|pod| pod.name.clone())
        };
        let plain = self.addresses.iter().map(|target| (target.address, of_inventory(target.address)));
        let of_services = found.alertmanagers.iter().map(|one| (one.target.address, one.pod.clone()));
        plain.chain(of_services).collect()
    }

    /// None is an address of no pod.
    async fn look(
        &self,
        address: SocketAddr,
        pod: Option<&str>,
        inventory: &Inventory,
    ) -> Result<Option<Verdict>, kube::Error> {
        let pod = match pod.and_then(|pod| pod.split_once('/')) {
            Some((namespace, name)) => {
                Api::<Pod>::namespaced(self.api.client.clone(), namespace).get_opt(name).await?
            }
            None => self.in_host_network(address).await?,
        };
        let servers: Vec<IpAddr> = inventory.service.addresses.iter().map(SocketAddr::ip).collect();
        Ok(pod.and_then(|pod| {
            let (namespace, name) = (pod.metadata.namespace?, pod.metadata.name?);
            let needs = asks_nobody_else(&pod.spec?, &servers);
            Some(Verdict { pod: format!("{namespace}/{name}"), needs })
        }))
    }

    /// A pod with its node's address is known by its port as well, where it is the only one that has it.
    async fn in_host_network(&self, address: SocketAddr) -> Result<Option<Pod>, kube::Error> {
        let pods = Api::<Pod>::all(self.api.client.clone());
        // What the API server has in memory will do.
        let there =
            ListParams::default().fields(&format!("status.podIP={}", address.ip())).match_any().limit(MOST);
        let listens = |pod: &Pod| {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.any(|port| port.container_port == i32::from(address.port()))
        };
        let mut there = pods.list(&there).await?.items.into_iter().filter(listens);
        let first = there.next();
        Ok(if there.next().is_none() { first } else { None })
    }

    fn tell(&self, verdicts: &BTreeMap<SocketAddr, Verdict>) {
        let figures: Vec<_> = verdicts
            .iter()
            .map(|(address, verdict)| (address.to_string(), verdict.needs.is_some()))
            .collect();
        self.metrics
            .set_alertmanagers_need_dns(figures.iter().map(|(address, needs)| (address.as_str(), *needs)));
        let notes: Vec<Note> = verdicts.values().filter_map(Verdict::note).collect();
        self.out.send_if_modified(|present| {
            let differs = *present != notes;
            if differs {
                log(present, &notes);
                *present = notes;
            }
            differs
        });
    }
}

impl Verdict {
    fn note(&self) -> Option<Note> {
        let why = self.needs.as_ref()?;
        Some(Note {
            about: format!("Alertmanager {}", self.pod),
            what: format!(
                "it asks nobody but cluster DNS ({why}): while that is down it can't find a receiver by name"
            ),
            mend: "set dnsPolicy: Default for its pods, or name the receivers' addresses in hostAliases"
                .into(),
        })
    }
}

/// Why a pod asks the cluster's name servers and nobody else, if it does.
fn asks_nobody_else(spec: &PodSpec, servers: &[IpAddr]) -> Option<String> {
    // Whoever wrote down addresses thought of it.
    if spec.host_aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
        return None;
    }
    let own = spec.dns_config.as_ref().and_then(|config| config.nameservers.as_deref()).unwrap_or_default();
    let is_other = |server: &String| server.parse().is_ok_and(|ip: IpAddr| !servers.contains(&ip));
    // Those of dnsConfig are asked, too, when the first are silent.
    if own.iter().any(is_other) {
        return None;
    }
    let in_host_network = spec.host_network == Some(true);
    match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" if in_host_network => None,
        policy @ ("ClusterFirst" | "ClusterFirstWithHostNet") => Some(format!("dnsPolicy {policy}")),
        "None" if !own.is_empty() => {
            Some(format!("dnsPolicy None, dnsConfig.nameservers {}", own.join(", ")))
        }
        _ => None,
    }
}

/// A pod that was made anew under the same name is seen within this time, if no change of endpoints tells it before.
const AGAIN: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(3);
/// Pods in one node's own network.
const MOST: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_asks_cluster_dns_alone_is_told_by_the_pods_spec() {
        let servers = ["10.96.0.10".parse().unwrap()];
        for (what, spec, expected) in [
            ("the default", json!({}), Some("dnsPolicy ClusterFirst")),
            ("on the node", json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"}), None),
            (
                "on the node, yet by the cluster",
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                Some("dnsPolicy ClusterFirstWithHostNet"),
            ),
            ("the node's servers", json!({"dnsPolicy": "Default"}), None),
            ("receivers by address", json!({"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}]}), None),
            (
                "its own servers",
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"]}}),
                None,
            ),
            (
                "its own servers, which are the cluster's",
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.96.0.10"]}}),
                Some("dnsPolicy None, dnsConfig.nameservers 10.96.0.10"),
            ),
            ("another server beside", json!({"dnsConfig": {"nameservers": ["192.0.2.53"]}}), None),
            (
                "no other server beside",
                json!({"dnsConfig": {"searches": ["a"]}}),
                Some("dnsPolicy ClusterFirst"),
            ),
        ] {
            let mut whole: Value = json!({"containers": []});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let spec: PodSpec = serde_json::from_value(whole).unwrap();
            assert_eq!(asks_nobody_else(&spec, &servers).as_deref(), expected, "{what}");
        }
    }
}
