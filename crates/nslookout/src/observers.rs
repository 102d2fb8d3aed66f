//! Which observers start, and what of them can't?
//!
//! `run` and `check` start all of them in one process, an agent its own part. What can't be entered is told again and
//! again as evidence that is missing; the rest works.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evidence::{BootTime, Coverage, CoverageState, Inventory, Observer, Report, Role};
use netns::Namespace;
use prober::Duty;
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

use crate::config::{Config, NodeConfig, VantageConfig};

/// Lookups from these places, so many as the duty allows.
pub fn prober(
    config: &Config,
    vantages: Vec<VantageConfig>,
    inventory: watch::Receiver<Arc<Inventory>>,
    duty: watch::Receiver<Duty>,
    out: mpsc::Sender<Report>,
) {
    let mut entered = Vec::new();
    for vantage in vantages {
        match open(vantage.netns.as_deref()) {
            Ok(namespace) => entered.push(prober::Vantage::new(vantage.name, vantage.node, namespace)),
            Err(error) => {
                let refused = vec![denied(Observer::Prober, &vantage.name, &error)];
                tokio::task::spawn_local(repeat(vantage.node, Role::Prober, refused, out.clone()));
            }
        }
    }
    tokio::task::spawn_local(prober::run(config.prober.clone(), entered, inventory, duty, out));
}

/// Conntrack and drops of these nodes.
pub fn nodes(
    config: &Config,
    nodes: Vec<NodeConfig>,
    inventory: watch::Receiver<Arc<Inventory>>,
    out: mpsc::Sender<Report>,
) {
    let mut entered = Vec::new();
    for node in nodes {
        match open(node.netns.as_deref()) {
            Ok(namespace) => entered.push(conntrack_watch::WatchedNode { name: node.name, namespace }),
            Err(error) => no_node(node.name, &error, &out),
        }
    }
    tokio::task::spawn_local(conntrack_watch::run(config.conntrack_watch.clone(), entered, inventory, out));
}

/// Nothing of a node can be seen: its three observers say why, again and again.
pub fn no_node(node: String, why: &dyn std::fmt::Display, out: &mpsc::Sender<Report>) {
    let refused = NODE_OBSERVERS.map(|observer| denied(observer, &node, why));
    tokio::task::spawn_local(repeat(node, Role::Node, refused.into(), out.clone()));
}

/// The servers' own metrics.
pub fn servers(config: &Config, inventory: watch::Receiver<Arc<Inventory>>, out: mpsc::Sender<Report>) {
    match Namespace::current() {
        Ok(here) => {
            let config = config.coredns_watch.clone();
            tokio::task::spawn_local(coredns_watch::run(config, here, inventory, out));
        }
        Err(error) => {
            let refused = vec![denied(Observer::CorednsMetrics, "everywhere", &error)];
            tokio::task::spawn_local(repeat(this_node(), Role::Servers, refused, out));
        }
    }
}

/// The nodes of the configuration, or this machine.
pub fn node_configs(config: &Config) -> Vec<NodeConfig> {
    if config.nodes.is_empty() {
        vec![NodeConfig { name: this_node(), netns: None }]
    } else {
        config.nodes.clone()
    }
}

/// The vantages of the configuration, or this machine.
pub fn vantage_configs(config: &Config) -> Vec<VantageConfig> {
    if config.vantages.is_empty() {
        let node = node_configs(config).first().map_or_else(this_node, |node| node.name.clone());
        return vec![VantageConfig {
            name: this_node(),
            node,
            netns: None,
            network: crate::config::Network::Host,
        }];
    }
    config.vantages.clone()
}

/// This machine's name, by the kernel: never by asking DNS.
pub fn this_node() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "this-node".into())
}

/// The kernel's boot id; empty where it can't be read.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn open(path: Option<&Path>) -> Result<Namespace, netns::Error> {
    match path {
        Some(path) => Namespace::open(&PathBuf::from(path)),
        None => Namespace::current(),
    }
}

fn denied(observer: Observer, place: &str, error: &dyn std::fmt::Display) -> Coverage {
    Coverage { observer, place: place.into(), state: CoverageState::Denied { missing: error.to_string() } }
}

/// Says again and again what could not be entered, so that it never looks like silence.
async fn repeat(node: String, role: Role, coverage: Vec<Coverage>, out: mpsc::Sender<Report>) {
    let mut turn = interval(Duration::from_secs(5));
    loop {
        turn.tick().await;
        let now = BootTime::now();
        let report = Report {
            node: node.clone(),
            role,
            from: now,
            to: now,
            observations: Vec::new(),
            coverage: coverage.clone(),
        };
        if out.send(report).await.is_err() {
            return;
        }
    }
}

const NODE_OBSERVERS: [Observer; 3] =
    [Observer::ConntrackCounters, Observer::ConntrackTable, Observer::Drops];
