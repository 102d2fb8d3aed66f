//! Which servers exist and who owns an address: the truth that mappings are held against.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The DNS Service: what resolv.conf in pods names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsService {
    /// Its name, "kube-dns" in most clusters.
    pub name: String,
    /// Its virtual addresses with the port, one for each IP family.
    pub addresses: Vec<SocketAddr>,
    /// Whether it is a Kubernetes Service: a virtual address with endpoints behind it. Causes that need one do not
    /// apply to a plain name server.
    pub is_virtual: bool,
}

/// One server behind the Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The pod's name, or the address where no name is known.
    pub name: String,
    /// Where it listens: after DNAT this is what packets carry.
    pub address: SocketAddr,
    /// The node it runs on, where known.
    pub node: Option<String>,
    /// Whether it serves (EndpointSlice conditions.serving, or ready).
    pub serving: bool,
    /// Whether it was told to leave (EndpointSlice conditions.terminating). It may serve on for a while; new queries are
    /// sent to others. Where it ends nobody is to wonder that it is silent.
    #[serde(default)]
    pub leaving: bool,
}

/// A pod, for naming the one who suffers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// "namespace/name".
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on, where known.
    pub node: Option<String>,
    /// What keeps it running, as kind and name: "Deployment/web". None for a pod that stands alone.
    #[serde(default)]
    pub workload: Option<String>,
}

/// A node of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The zone it is in, where it says so (topology.kubernetes.io/zone).
    pub zone: Option<String>,
}

/// The state of the cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// The DNS Service.
    pub service: DnsService,
    /// All its endpoints. None that serves: lookups can't work.
    pub endpoints: Vec<Endpoint>,
    /// Pods, where known.
    pub pods: Vec<Pod>,
    /// Nodes, where known.
    #[serde(default)]
    pub nodes: Vec<Node>,
}
