//! Which pods are there, and which of the machine's processes and namespaces are theirs?

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use crate::Error;
use crate::kubernetes::cgroups;
use crate::kubernetes::plan::Cluster;
use crate::process::ProcessId;

/// A pod as the API server has it.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it is bound to.
    pub node: String,
    /// "Running".
    pub phase: String,
    /// Whether it is ready, and not leaving.
    pub ready: bool,
    /// Its addresses, none before it has been started.
    pub addresses: Vec<IpAddr>,
    /// The ids of its containers, in the runtime.
    pub containers: Vec<String>,
}

impl Cluster {
    /// The pods of this label ("k8s-app=kube-dns"), in all namespaces; with "" all of them.
    pub fn pods(&self, label: &str) -> Result<Vec<Pod>, Error> {
        let mut arguments = vec!["get", "pods", "--all-namespaces", "--output=json"];
        let selector = format!("--selector={label}");
        if !label.is_empty() {
            arguments.push(&selector);
        }
        let list = self.json(&arguments)?;
        Ok(list.get("items").and_then(Value::as_array).into_iter().flatten().map(Pod::read).collect())
    }

    /// The processes of a pod's containers, the pause container not among them.
    pub fn processes(&self, pod: &Pod) -> Result<Vec<ProcessId>, Error> {
        let node = self.node(&pod.node)?;
        let roots = cgroups::paths(&node.cgroup)?;
        // A container is in every hierarchy; one of them is enough.
        let root = roots.iter().find(|path| path.to_string_lossy().contains("/pids/")).or(roots.first());
        let found = |id: &String| root.and_then(|root| cgroups::find(root, id));
        Ok(pod.containers.iter().filter_map(found).flat_map(|path| cgroups::processes(&path)).collect())
    }

    /// The file of a pod's network namespace, for as long as its container runs.
    pub fn pod_netns(&self, pod: &Pod) -> Result<PathBuf, Error> {
        let process = self.processes(pod)?.first().copied();
        process.map(|id| PathBuf::from(format!("/proc/{}/ns/net", id.pid))).ok_or_else(|| Error::NotRunning {
            name: format!("pod {}/{}", pod.namespace, pod.name),
            log: format!("its phase is {}", pod.phase),
        })
    }
}

impl Pod {
    fn read(value: &Value) -> Self {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let all = |path: &str| value.pointer(path).and_then(Value::as_array).into_iter().flatten();
        let word =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            node: text("/spec/nodeName"),
            phase: text("/status/phase"),
            ready: value.pointer("/metadata/deletionTimestamp").is_none()
                && all("/status/conditions")
                    .any(|one| word(one, "type") == "Ready" && word(one, "status") == "True"),
            addresses: all("/status/podIPs").filter_map(|one| word(one, "ip").parse().ok()).collect(),
            containers: all("/status/containerStatuses")
                .filter_map(|one| word(one, "containerID").split_once("://").map(|(_, id)| id.to_owned()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_has_not_started_has_no_address_and_no_container() {
        let pod = Pod::read(&serde_json::json!({
            "metadata": { "name": "x", "namespace": "y" },
            "status": { "phase": "Pending", "containerStatuses": [{ "name": "c" }] },
        }));
        assert_eq!((pod.phase.as_str(), pod.ready), ("Pending", false));
        assert!(pod.addresses.is_empty() && pod.containers.is_empty());
    }
}
