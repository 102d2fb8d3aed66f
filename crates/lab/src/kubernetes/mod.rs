//! How is a real Kubernetes raised on one machine, and taken away again?
//!
//! A control plane and two nodes or more, each in network namespaces of its own: so each node has its own conntrack
//! table, counters and kube-proxy rules, and nothing reaches the machine's own network. All programs are the real
//! ones. Everything carries the cluster's name, is journaled before it is made, and is undone by `down`, by Drop, by
//! Ctrl-C, and by the next start of any lab command when its owner was killed.

pub mod alertmanager;
pub mod cgroups;
mod control;
pub mod image;
pub mod images;
mod kubectl;
mod manifests;
mod network;
mod node;
mod node_files;
mod pki;
mod plan;
mod pods;
pub mod product;
mod requirements;
mod rules;
mod site;
mod subcommand;
mod upstream;
pub mod webhook;

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub use kubectl::Figures;
pub use plan::{Cluster, Node, Options, ProxyMode};
pub use pods::Pod;
pub use subcommand::ClusterCommand;

use crate::journal::{self, Entry, Journal};
use crate::kubernetes::pki::Authority;
use crate::process::{Daemon, ProcessId};
use crate::programs::cluster::{self, ClusterPrograms};
use crate::{Error, interrupt};

/// A cluster that is taken down when this is dropped.
#[derive(Debug)]
pub struct Raised {
    cluster: Cluster,
    guard: Guard,
}

/// Undoes the cluster of this name when dropped, however far its making went.
#[derive(Debug)]
struct Guard {
    name: String,
    daemons: Vec<Daemon>,
    done: bool,
}

impl Raised {
    /// Raises a cluster and returns when all its nodes are Ready, all its pods are Running, and a pod of each node gets
    /// an answer through the ClusterIP. `tell` gets each milestone with the time since the start. If anything
    /// fails, or the process is interrupted, nothing is left.
    pub fn up(options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NeedsRoot);
        }
        interrupt::install();
        requirements::check(options)?;
        let programs = cluster::all()?;
        let journal = interrupt::step(|| Journal::create(&options.name))?;
        // From here on its Drop cleans up.
        let mut guard = Guard { name: options.name.clone(), daemons: Vec::new(), done: false };
        let dir = journal::folder(&options.name);
        let authority = Authority::create(&dir.join("pki"))?;
        let cluster = draw(options, &programs, &authority)?;
        guard.daemons = cluster.daemons();
        let raised = Self { cluster, guard };
        raised.raise(&journal, &programs, &authority, tell)?;
        Ok(raised)
    }

    /// Leaves the cluster up when this process ends, until `down`.
    pub fn keep(mut self) -> Result<Cluster, Error> {
        Journal::open(&self.cluster.options.name)?.add(&Entry::Kept)?;
        self.guard.done = true;
        Ok(self.cluster.clone())
    }

    /// Takes the cluster down and tells what could not be undone, which a drop can't.
    pub fn down(mut self) -> Result<(), Error> {
        self.guard.undo()
    }

    fn raise(
        &self,
        journal: &Journal,
        programs: &ClusterPrograms,
        authority: &Authority,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let cluster = &self.cluster;
        cluster.save()?;
        network::raise(cluster, journal)?;
        for node in &cluster.nodes {
            node_files::write(node, &cluster.options, programs, authority, &control::server())?;
            make_cgroups(node, journal)?;
        }
        upstream::write_files(&cluster.upstream, &cluster.dir)?;
        interrupt::step(|| cluster.upstream.daemon.start().map(drop))?;
        let [etcd, api, rest @ ..] = cluster.control_plane.as_slice() else { return Ok(()) };
        for daemon in [etcd, api] {
            interrupt::step(|| daemon.start().map(drop))?;
        }
        tell("namespaces and certificates made, etcd and the API server started");
        let archives = images::archives(programs)?;
        for node in &cluster.nodes {
            node::start_runtime(node)?;
        }
        // Of all nodes at once; a thread's panic would be the lab's own mistake.
        thread::scope(|scope| {
            let loads: Vec<_> = cluster
                .nodes
                .iter()
                .map(|node| {
                    scope.spawn(|| archives.iter().try_for_each(|one| cluster.load_image_on(node, one)))
                })
                .collect();
            loads.into_iter().try_for_each(|load| load.join().unwrap_or(Ok(())))
        })?;
        tell("containerd runs on each node and has the images");
        cluster.wait_for_api(DEADLINE)?;
        tell("the API server is ready");
        for daemon in rest {
            interrupt::step(|| daemon.start().map(drop))?;
        }
        cluster.create(&manifests::system(cluster))?;
        for node in &cluster.nodes {
            interrupt::step(|| node.kubelet.start().map(drop))?;
            interrupt::step(|| node.kube_proxy.start().map(drop))?;
        }
        cluster.wait_for_default_account(DEADLINE)?;
        cluster.create(&manifests::clients(cluster))?;
        cluster.wait_for_nodes(DEADLINE)?;
        tell("all nodes are Ready");
        cluster.wait_for_pods(DEADLINE)?;
        tell("all pods are Running");
        cluster.wait_for_rules(DEADLINE)?;
        cluster.wait_for_answers(DEADLINE)?;
        tell("a pod of each node gets an answer through the ClusterIP");
        Ok(())
    }
}

impl Deref for Raised {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Guard {
    fn undo(&mut self) -> Result<(), Error> {
        self.done = true;
        let ids: Vec<_> = self.daemons.iter().filter_map(Daemon::id).collect();
        let undone = journal::undo(&self.name);
        ids.into_iter().for_each(ProcessId::reap);
        undone
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Someone may have taken it down, and someone else raised another of this name.
        if !self.done
            && journal::is_own(&self.name)
            && let Err(error) = self.undo()
        {
            eprintln!("cluster {} left something, the next start tries again: {error}", self.name);
        }
    }
}

impl Cluster {
    /// The cluster of this name that stands.
    pub fn load(name: &str) -> Result<Self, Error> {
        journal::check_name(name)?;
        let path = journal::folder(name).join(STATE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoSuchLab { name: name.to_owned() });
            }
            read => read.map_err(Error::file("read", &path))?,
        };
        serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node, Error> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| Error::NoSuch {
            kind: "node",
            name: name.to_owned(),
            known: self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Imports an image into every node; a pod then needs `imagePullPolicy: Never` or `IfNotPresent`.
    pub fn load_image(&self, archive: &Path) -> Result<(), Error> {
        self.nodes.iter().try_for_each(|node| self.load_image_on(node, archive))
    }

    /// Every process that the lab itself started for it.
    pub fn daemons(&self) -> Vec<Daemon> {
        let nodes = self
            .nodes
            .iter()
            .flat_map(|node| [&node.holder, &node.containerd, &node.kubelet, &node.kube_proxy]);
        self.control_plane.iter().chain([&self.upstream.daemon]).chain(nodes).cloned().collect()
    }

    /// A process of the lab by its name: "etcd", "kube-apiserver", "node-a.kubelet", "node-b.kube-proxy", "upstream".
    /// It can be stopped, continued, killed and started again.
    pub fn daemon(&self, name: &str) -> Result<Daemon, Error> {
        let all = self.daemons();
        let known = all.iter().map(|daemon| daemon.name.as_str()).collect::<Vec<_>>().join(", ");
        all.iter().find(|daemon| daemon.name == name).cloned().ok_or_else(|| Error::NoSuch {
            kind: "process",
            name: name.to_owned(),
            known,
        })
    }

    fn load_image_on(&self, node: &Node, archive: &Path) -> Result<(), Error> {
        node::load_image(node, &self.ctr, archive)
    }

    fn save(&self) -> Result<(), Error> {
        let path = self.dir.join(STATE);
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Json { path: path.clone(), source })?;
        crate::site::replace(&path, &text)
    }
}

/// Takes down a cluster that stands, whoever raised it.
pub fn down(name: &str) -> Result<(), Error> {
    Cluster::load(name)?;
    journal::undo(name)
}

/// A teller of progress: each line with the seconds since now, on standard error.
pub fn progress() -> impl FnMut(&str) {
    let begin = Instant::now();
    move |line: &str| eprintln!("  {:5.1} s  {line}", begin.elapsed().as_secs_f64())
}

fn draw(options: &Options, programs: &ClusterPrograms, authority: &Authority) -> Result<Cluster, Error> {
    let dir = journal::folder(&options.name);
    let files = control::write_files(authority)?;
    Ok(Cluster {
        options: options.clone(),
        nodes: (0..options.nodes).map(|index| node::plan(options, programs, index)).collect(),
        control: plan::netns(&options.name, "control"),
        api: plan::API_V4,
        lan: plan::netns(&options.name, "lan"),
        monitor: plan::netns(&options.name, "monitor"),
        upstream: upstream::plan(options, programs, &dir),
        control_plane: control::daemons(options, programs, &dir, &files),
        kubeconfig: files.admin,
        kubectl: programs.kubernetes.join("kubectl"),
        ctr: programs.containerd.join("ctr"),
        dir,
    })
}

fn make_cgroups(node: &Node, journal: &Journal) -> Result<(), Error> {
    let paths = cgroups::paths(&node.cgroup)?;
    let entries: Vec<_> = paths.iter().cloned().map(Entry::Cgroup).collect();
    interrupt::step(|| {
        journal.add_all(&entries)?;
        paths.iter().try_for_each(|path| cgroups::make(path))
    })
}

/// The state file's name in the cluster's folder.
const STATE: &str = "cluster.json";

/// For each thing that is waited for; a quiet machine needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(120);
