//! What do tests, traffic and faults see of a lab: which nodes, pods and servers are there, and how is one of
//! them acted upon?
//!
//! A site is plain data in a state file, so that `lab fault` in another process works on the lab that `lab up`
//! raised. What changes while it stands (process ids) is kept in files of their own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::journal::Journal;
use crate::kubernetes::Cluster;
use crate::miniature::coredns;
use crate::process::{Daemon, ProcessId};
use crate::{Error, command, dns, journal};

/// A cluster's network with its servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Site {
    /// The lab's name.
    pub name: String,
    /// What node placement and the target port were drawn from.
    pub seed: u64,
    /// The work folder: state, journal, logs, configurations. Gone after `down`.
    pub dir: PathBuf,
    /// "node-a" and "node-b".
    pub nodes: Vec<Node>,
    /// Client pods, two on each node.
    pub pods: Vec<Pod>,
    /// The CoreDNS pods behind the Service.
    pub servers: Vec<Server>,
    /// The server that the background takes out of the Service and puts back: no fault of one server chooses it.
    pub transient: String,
    /// Where the servers forward what is not cluster.local.
    pub upstream: Upstream,
    /// The DNS Service.
    pub service: Service,
    /// What `kubectl get endpointslices,services,pods,nodes -A -o json` would print; replaced by rename.
    pub inventory: PathBuf,
    /// The namespace on the nodes' link in which Alertmanager and nslookout run.
    pub monitor: PathBuf,
    /// The namespace that holds the bridge between the nodes.
    pub lan: PathBuf,
    /// Alertmanager, in the monitor namespace.
    pub alertmanager: Alertmanager,
    /// The real cluster that this is a view of; none: the miniature.
    #[serde(default)]
    pub cluster: Option<Box<Cluster>>,
}

/// A namespace that stands for a node: it routes its pods and has kube-proxy's rules.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// "node-a".
    pub name: String,
    /// Its namespace's file.
    pub netns: PathBuf,
    /// Its address on the link between nodes.
    pub v4: Ipv4Addr,
    /// The same for IPv6.
    pub v6: Ipv6Addr,
    /// The addresses of its pods.
    pub pod_cidr_v4: String,
    /// The same for IPv6.
    pub pod_cidr_v6: String,
}

/// A namespace that stands for a client pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pod {
    /// "client-a1"; its namespace in Kubernetes is "default".
    pub name: String,
    /// The node that routes it.
    pub node: String,
    /// Its namespace's file.
    pub netns: PathBuf,
    /// The interface on the node that leads to it.
    pub veth: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// A CoreDNS pod behind the Service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    /// "coredns-1"; its namespace in Kubernetes is "kube-system".
    pub name: String,
    /// The node that routes it.
    pub node: String,
    /// Its namespace's file.
    pub netns: PathBuf,
    /// The interface on the node that leads to it.
    pub veth: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Where it listens: 53 or 5353, the Service's target port.
    pub port: u16,
    /// Its configuration.
    pub corefile: PathBuf,
    /// The configuration it had at first.
    pub pristine: String,
    /// Its process: start, stop, cont, kill.
    pub daemon: Daemon,
}

/// A CoreDNS of its own behind the cluster's servers, on the link between the nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upstream {
    /// Its namespace's file.
    pub netns: PathBuf,
    /// Its address; it listens on port 53.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Its configuration.
    pub corefile: PathBuf,
    /// The configuration it had at first.
    pub pristine: String,
    /// Its process: start, stop, cont, kill.
    pub daemon: Daemon,
}

/// The DNS Service, kube-system/kube-dns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// The ClusterIP with port 53.
    pub v4: SocketAddr,
    /// The IPv6 ClusterIP with port 53.
    pub v6: SocketAddr,
    /// Where packets go after DNAT: 53 or 5353.
    pub target_port: u16,
}

/// The alert receiver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alertmanager {
    /// Where it listens, in the monitor namespace.
    pub address: SocketAddr,
    /// Its process.
    pub daemon: Daemon,
}

impl Site {
    /// The site of a lab that stands.
    pub fn load(name: &str) -> Result<Self, Error> {
        journal::check_name(name)?;
        let path = journal::folder(name).join("site.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoSuchLab { name: name.to_owned() });
            }
            read => read.map_err(Error::file("read", &path))?,
        };
        serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })
    }

    /// Writes the state file.
    pub fn save(&self) -> Result<(), Error> {
        let path = self.dir.join("site.json");
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Json { path: path.clone(), source })?;
        replace(&path, &text)
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node, Error> {
        named("node", &self.nodes, |node| &node.name, name)
    }

    /// A client pod by its name.
    pub fn pod(&self, name: &str) -> Result<&Pod, Error> {
        named("pod", &self.pods, |pod| &pod.name, name)
    }

    /// A server by its name.
    pub fn server(&self, name: &str) -> Result<&Server, Error> {
        named("server", &self.servers, |server| &server.name, name)
    }

    /// The namespace of a pod, server or node by its name; also "upstream" and "monitor".
    pub fn netns(&self, name: &str) -> Result<&Path, Error> {
        let nodes = self.nodes.iter().map(|node| (node.name.as_str(), &node.netns));
        let pods = self.pods.iter().map(|pod| (pod.name.as_str(), &pod.netns));
        let servers = self.servers.iter().map(|server| (server.name.as_str(), &server.netns));
        let others = [("upstream", &self.upstream.netns), ("monitor", &self.monitor), ("lan", &self.lan)];
        let all: Vec<_> = pods.chain(servers).chain(nodes).chain(others).collect();
        named("namespace", &all, |(name, _)| name, name).map(|(_, path)| path.as_path())
    }

    /// A program inside a namespace; with `pod_resolv_conf` it sees the /etc/resolv.conf and nsswitch.conf of a
    /// real pod. The process keeps its id through all of it (each step is an exec), and whatever runs in a
    /// namespace of the lab is ended by `down`. Start it with `process_group(0)` if Ctrl-C should not reach it.
    pub fn command_in(&self, netns: &Path, pod_resolv_conf: bool, program: &str) -> Command {
        if pod_resolv_conf {
            self.command_with(netns, &self.resolv_conf(), program)
        } else {
            command::inside(netns, program)
        }
    }

    /// The same with a resolv.conf of the caller's.
    pub fn command_with(&self, netns: &Path, resolv_conf: &Path, program: &str) -> Command {
        let mut command = command::inside(netns, "unshare");
        // nscd would answer in the machine's name, not the pod's.
        let script = "mount --bind \"$1\" /etc/resolv.conf && \
                      { [ ! -e /etc/nsswitch.conf ] || mount --bind \"$2\" /etc/nsswitch.conf; } && \
                      { [ ! -d /run/nscd ] || mount -t tmpfs none /run/nscd; } && shift 2 && exec \"$@\"";
        command.args(["--mount", "--propagation=private", "sh", "-c", script, "lab"]);
        command.arg(resolv_conf).arg(self.dir.join("nsswitch.conf")).arg(program);
        command
    }

    /// The resolv.conf that pods have. It names the IPv4 ClusterIP alone, as the kubelet of most clusters is
    /// told to, dual-stack ones too: with both, musl asks both at once and one family's fault is hidden.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// The same with the IPv6 ClusterIP, for [`Site::command_with`].
    pub fn resolv_conf_v6(&self) -> PathBuf {
        self.dir.join("resolv-v6.conf")
    }

    /// What `down` must undo. Write into it BEFORE doing something that outlives the lab's namespaces; what
    /// happens inside them (rules, entries, processes) needs no line: it goes with them.
    pub fn journal(&self) -> Result<Journal, Error> {
        Journal::open(&self.name)
    }
}

impl Server {
    /// The process, if it runs.
    pub fn id(&self) -> Option<ProcessId> {
        self.daemon.id()
    }

    /// Where it serves, over IPv4.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), self.port)
    }

    /// Replaces its configuration and waits till CoreDNS says that it serves by it.
    pub fn configure(&self, corefile: &str) -> Result<(), Error> {
        coredns::configure(&self.daemon, &self.corefile, corefile)
    }

    /// Gives it back the configuration it had at first.
    pub fn restore(&self) -> Result<(), Error> {
        self.configure(&self.pristine)
    }

    /// Waits till it answers a question about cluster.local.
    pub fn wait_till_answers(&self, deadline: Duration) -> Result<(), Error> {
        dns::wait_till_answers(&self.daemon, self.address(), coredns::CLUSTER_NAME, deadline)
    }
}

impl Upstream {
    /// Where it serves, over IPv4.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), 53)
    }

    /// Replaces its configuration and waits till CoreDNS says that it serves by it.
    pub fn configure(&self, corefile: &str) -> Result<(), Error> {
        coredns::configure(&self.daemon, &self.corefile, corefile)
    }

    /// Gives it back the configuration it had at first.
    pub fn restore(&self) -> Result<(), Error> {
        self.configure(&self.pristine)
    }

    /// Waits till it answers a question about example.com.
    pub fn wait_till_answers(&self, deadline: Duration) -> Result<(), Error> {
        dns::wait_till_answers(&self.daemon, self.address(), coredns::OUTER_NAME, deadline)
    }
}

/// Writes a file beside its place and renames it, so that readers see the old or the new one, never a half.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("new");
    fs::write(&beside, content).map_err(Error::file("write", &beside))?;
    fs::rename(&beside, path).map_err(Error::file("rename to", path))
}

fn named<'a, T>(
    kind: &'static str,
    all: &'a [T],
    name_of: impl Fn(&T) -> &str,
    name: &str,
) -> Result<&'a T, Error> {
    all.iter().find(|one| name_of(one) == name).ok_or_else(|| Error::NoSuch {
        kind,
        name: name.to_owned(),
        known: all.iter().map(name_of).collect::<Vec<_>>().join(", "),
    })
}
