//! Which nodes, addresses and processes does a cluster have, and which part of it may be chosen?
//!
//! Addresses are the same in each cluster: every one has namespaces of its own, so two never meet. What would meet
//! (names of namespaces and cgroups) carries the cluster's name.

use std::env;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::journal;
use crate::process::Daemon;
use crate::site::Upstream;

/// How kube-proxy writes its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// With iptables-restore.
    Iptables,
    /// With nft.
    Nftables,
}

/// What may be chosen about a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Its name: two clusters of different names stand side by side.
    pub name: String,
    /// kube-proxy's mode.
    pub proxy_mode: ProxyMode,
    /// IPv4 and IPv6, for pods, Services and nodes; otherwise IPv4 alone.
    pub dual_stack: bool,
    /// How many nodes, 2 to 9.
    pub nodes: u8,
    /// Client pods on each node.
    pub clients: u8,
    /// Where CoreDNS listens, the Service's target port: 53 or 5353.
    pub target_port: u16,
}

/// A cluster that stands, as plain data: another process loads it by name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cluster {
    /// What was chosen.
    pub options: Options,
    /// The work folder: state, journal, logs, configurations. Gone after `down`.
    pub dir: PathBuf,
    /// "node-a", "node-b" and so on.
    pub nodes: Vec<Node>,
    /// The namespace of etcd, the API server, the controllers and the scheduler.
    pub control: PathBuf,
    /// The API server's address there; it listens on port 6443.
    pub api: Ipv4Addr,
    /// The namespace that holds the bridge between the nodes.
    pub lan: PathBuf,
    /// A namespace on that bridge for what looks at the cluster from outside of it.
    pub monitor: PathBuf,
    /// The administrator's kubeconfig; its server is reached from the control namespace.
    pub kubeconfig: PathBuf,
    /// Where the cluster's CoreDNS forwards what is not its own.
    pub upstream: Upstream,
    /// etcd, kube-apiserver, kube-controller-manager and kube-scheduler, in this order.
    pub control_plane: Vec<Daemon>,
    /// kubectl.
    pub kubectl: PathBuf,
    /// ctr, for images.
    pub ctr: PathBuf,
}

/// A node: a network namespace and a mount namespace with a containerd, a kubelet and a kube-proxy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// "node-a".
    pub name: String,
    /// Its network namespace's file.
    pub netns: PathBuf,
    /// Its folder: containers, logs, configurations.
    pub dir: PathBuf,
    /// Its cgroup's name below the root; all its pods are in there.
    pub cgroup: String,
    /// Its address on the link between nodes.
    pub v4: Ipv4Addr,
    /// The same for IPv6, of use in a dual-stack cluster.
    pub v6: Ipv6Addr,
    /// The addresses of its pods.
    pub pod_cidr_v4: String,
    /// The same for IPv6.
    pub pod_cidr_v6: String,
    /// The process that holds the mount namespace.
    pub holder: Daemon,
    /// Its container runtime.
    pub containerd: Daemon,
    /// Its kubelet.
    pub kubelet: Daemon,
    /// Its kube-proxy.
    pub kube_proxy: Daemon,
}

impl Options {
    /// Two nodes, IPv4, kube-proxy in iptables mode: what most clusters are.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            proxy_mode: ProxyMode::Iptables,
            dual_stack: false,
            nodes: 2,
            clients: 2,
            target_port: 53,
        }
    }

    /// Of every pod there may be, as kube-proxy's clusterCIDR has it.
    pub fn pod_cidrs(&self) -> Vec<&'static str> {
        if self.dual_stack { vec![PODS_V4, PODS_V6] } else { vec![PODS_V4] }
    }

    /// Of every Service there may be.
    pub fn service_cidrs(&self) -> Vec<&'static str> {
        if self.dual_stack { vec![SERVICES_V4, SERVICES_V6] } else { vec![SERVICES_V4] }
    }

    /// The addresses of the DNS Service.
    pub fn dns_addresses(&self) -> Vec<&'static str> {
        if self.dual_stack { vec![DNS_V4, DNS_V6] } else { vec![DNS_V4] }
    }
}

impl ProxyMode {
    /// As kube-proxy's configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

impl Node {
    /// Its pods' networks, of the families that the cluster has.
    pub fn pod_cidrs(&self, options: &Options) -> Vec<&str> {
        if options.dual_stack { vec![&self.pod_cidr_v4, &self.pod_cidr_v6] } else { vec![&self.pod_cidr_v4] }
    }

    /// Its own addresses, of the families that the cluster has.
    pub fn addresses(&self, options: &Options) -> Vec<String> {
        let (v4, v6) = (self.v4.to_string(), self.v6.to_string());
        if options.dual_stack { vec![v4, v6] } else { vec![v4] }
    }
}

/// The name of a namespace or cgroup of the cluster.
pub fn global_name(cluster: &str, part: &str) -> String {
    format!("nsk8s-{cluster}-{part}")
}

/// The file of a network namespace of the cluster.
pub fn netns(cluster: &str, part: &str) -> PathBuf {
    journal::netns_path(&global_name(cluster, part))
}

/// The names of all network namespaces, for the journal.
pub fn namespaces(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.nodes.iter().map(|node| &node.netns);
    let all =
        [&cluster.lan, &cluster.control, &cluster.upstream.netns, &cluster.monitor].into_iter().chain(nodes);
    all.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
}

/// "node-a" for 0.
pub fn node_name(index: u8) -> String {
    format!("node-{}", char::from(b'a' + index))
}

/// A daemon's log and the file of its id are named after it. Of the environment it gets PATH alone: a proxy for HTTP
/// or a variable that etcd reads as a flag would make another cluster of it.
pub fn daemon(name: &str, netns: &Path, dir: &Path, program: PathBuf, args: Vec<String>) -> Daemon {
    let path = env::var("PATH").unwrap_or_default();
    let words = ["-i".to_owned(), format!("PATH={path}"), program.display().to_string()];
    Daemon {
        name: name.to_owned(),
        netns: netns.to_owned(),
        program: PathBuf::from("env"),
        args: words.into_iter().chain(args).collect(),
        log: dir.join(format!("{name}.log")),
        pid_file: dir.join(format!("{name}.pid")),
    }
}

/// The API server's address on the link between nodes.
pub const API_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
/// The same for IPv6.
pub const API_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x10);
/// The upstream's address.
pub const UPSTREAM_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 53);
/// The same for IPv6.
pub const UPSTREAM_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x53);
/// The monitor's address.
pub const MONITOR_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 9);
/// The same for IPv6.
pub const MONITOR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 9);

/// The ClusterIP of the DNS Service.
pub const DNS_V4: &str = "10.96.0.10";
/// The same for IPv6.
pub const DNS_V6: &str = "fd00:96::a";
/// The first address of the Services' network is the API server's.
pub const KUBERNETES_V4: &str = "10.96.0.1";

const PODS_V4: &str = "10.244.0.0/16";
const PODS_V6: &str = "fd00:244::/32";
const SERVICES_V4: &str = "10.96.0.0/16";
const SERVICES_V6: &str = "fd00:96::/112";
