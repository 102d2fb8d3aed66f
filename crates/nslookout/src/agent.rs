//! `nslookout agent prober` and `nslookout agent node`: one part of one node's views, told to the correlator.
//!
//! An agent that can do nothing stays up and says why: in its log, to `nslookout alive`, on its metrics page.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result};
use evidence::{Inventory, Role};
use prober::Duty;
use tokio::sync::{mpsc, watch};

use crate::alive::{self, Alive};
use crate::config::{Config, Network, NodeConfig, VantageConfig};
use crate::metrics::Metrics;
use crate::observers::{self, boot_id, this_node};
use crate::run::Signals;
use crate::transport::courier::{Baggage, Courier, Delivery};
use crate::transport::figures::AgentFigures;
use crate::transport::line::Target;
use crate::transport::spool::Spool;
use crate::{http, inventory};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Lookups, from the pods' network.
    Prober,
    /// Conntrack and drops, of the node.
    Node,
}

impl Part {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prober => "agent prober",
            Self::Node => "agent node",
        }
    }

    /// What its batches say.
    pub fn role(self) -> Role {
        match self {
            Self::Prober => Role::Prober,
            Self::Node => Role::Node,
        }
    }
}

/// Runs until a signal, on the caller's `LocalSet`.
pub async fn run(config: Config, part: Part) -> Result<()> {
    let mut signals = Signals::new()?;
    let metrics = Metrics::new().context("the metrics registry")?;
    let figures = AgentFigures::new(&metrics).context("the metrics registry")?;
    let node = node_name(&config);
    let (out, reports) = mpsc::channel(REPORTS);
    let (publish, inventory) = watch::channel(inventory::of_agent(&config.cluster, part == Part::Prober));
    let target = Target {
        address: config.correlator.address.or_else(|| of_environment(|name| std::env::var(name).ok())),
        name: config.correlator.name.clone(),
        authority: config.correlator.ca.clone(),
        token: config.agent.token.clone(),
    };
    let (charge, duty) = watch::channel(Duty::untold());
    let baggage = Baggage {
        reports,
        inventory: publish,
        duty: charge,
        figures,
        spool: Spool::new(config.agent.spool_batches, config.agent.spool_bytes),
        boot_id: boot_id(),
    };
    let (courier, delivery) = Courier::new(target, baggage);
    serve(&config, part, &metrics, &inventory, delivery).await;
    match part {
        Part::Prober => observers::prober(&config, vantages(&config, &node), inventory, duty, out),
        Part::Node if in_a_network_of_its_own() => observers::no_node(node.clone(), &NOT_THE_HOSTS, &out),
        Part::Node => observers::nodes(&config, nodes(&config, &node), inventory, out),
    }
    tracing::info!("{} looks on {node}", part.as_str());
    courier.run(signals.any()).await;
    tracing::info!("ended");
    Ok(())
}

/// The pages and the socket. That an address is taken is no reason not to look.
async fn serve(
    config: &Config,
    part: Part,
    metrics: &Metrics,
    inventory: &watch::Receiver<Arc<Inventory>>,
    delivery: watch::Receiver<Delivery>,
) {
    let (status_out, status) = watch::channel(String::from("{}"));
    let page = page(config.metrics.listen);
    match http::bind(page).await {
        Ok(listener) => drop(tokio::spawn(http::serve(listener, metrics.clone(), status))),
        Err(error) => tracing::warn!("no metrics page, metrics.listen: {page}: {error}"),
    }
    let inventory = inventory.clone();
    let mut changes = delivery.clone();
    let answer = move || {
        let delivery = delivery.borrow();
        let way = match &delivery.trouble {
            Some(why) => format!("evidence is kept: {why}"),
            None if delivery.accepted == 0 => "nothing sent yet".to_owned(),
            None => "evidence is accepted".to_owned(),
        };
        let servers = inventory.borrow().endpoints.len();
        Alive {
            alive: delivery.turned.elapsed() < HANGS,
            part: part.as_str().to_owned(),
            state: format!(
                "{way}; {} batches accepted, {} wait; {servers} servers known",
                delivery.accepted, delivery.waiting
            ),
        }
    };
    match alive::listen(&config.alive.socket) {
        Ok(listener) => drop(tokio::task::spawn_local(alive::serve(listener, answer.clone()))),
        Err(error) => tracing::warn!("nobody can ask whether this agent lives, alive.socket: {error}"),
    }
    tokio::task::spawn_local(async move {
        while changes.changed().await.is_ok() {
            changes.mark_unchanged();
            status_out.send_replace(serde_json::to_string(&answer()).unwrap_or_default());
        }
    });
}

/// An agent may be in its node's own network, where "everywhere" is the world: then its page is for the node alone.
fn page(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port())
    } else {
        listen
    }
}

fn node_name(config: &Config) -> String {
    let of_environment = || std::env::var("NSLOOKOUT_NODE").ok().filter(|name| !name.is_empty());
    config.agent.node.clone().or_else(of_environment).unwrap_or_else(this_node)
}

/// As kubelet tells a pod of a Service called nslookout-correlator. It is an address: nothing is resolved.
fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Option<SocketAddr> {
    let host: IpAddr = variable("NSLOOKOUT_CORRELATOR_SERVICE_HOST")?.parse().ok()?;
    let port = variable("NSLOOKOUT_CORRELATOR_SERVICE_PORT")?.parse().ok()?;
    Some(SocketAddr::new(host, port))
}

/// Whether the pod of a node agent is not in its host's network: a table with nothing in it would pass for calm.
fn in_a_network_of_its_own() -> bool {
    let hosts = std::env::var("NSLOOKOUT_HOST_IP").unwrap_or_default();
    hosts.parse().is_ok_and(|host| !is_ours(host))
}

/// Only an address of one's own network can be bound; nothing is sent.
fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

/// The configured nodes of that name, or the place where the agent runs.
fn nodes(config: &Config, node: &str) -> Vec<NodeConfig> {
    let own: Vec<NodeConfig> = config.nodes.iter().filter(|n| n.name == node).cloned().collect();
    if own.is_empty() { vec![NodeConfig { name: node.to_owned(), netns: None }] } else { own }
}

/// The configured vantages on that node, or the place where the agent runs. Their names begin with the node's: the
/// correlator takes no others from an agent.
fn vantages(config: &Config, node: &str) -> Vec<VantageConfig> {
    let own = config.vantages.iter().filter(|v| v.node == node).cloned();
    let mut own: Vec<VantageConfig> = own
        .map(|mut vantage| {
            if vantage.name != node {
                vantage.name = format!("{node}/{}", vantage.name);
            }
            vantage
        })
        .collect();
    if own.is_empty() {
        own.push(VantageConfig {
            name: node.to_owned(),
            node: node.to_owned(),
            netns: None,
            network: Network::Pod,
        });
    }
    own
}

const NOT_THE_HOSTS: &str = "the host's network (hostNetwork: true of this pod)";

/// Room for a burst between observers and courier.
const REPORTS: usize = 256;

/// A courier turns each second.
const HANGS: std::time::Duration = std::time::Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correlator_is_found_by_address_alone() {
        let with = |host: &str, port: &str| {
            of_environment(|name| {
                Some(if name.ends_with("_HOST") { host.to_owned() } else { port.to_owned() })
            })
        };
        assert_eq!(with("10.96.0.20", "9854"), Some("10.96.0.20:9854".parse().unwrap()));
        assert_eq!(with("fd00::20", "9854"), Some("[fd00::20]:9854".parse().unwrap()));
        assert_eq!(with("correlator", "9854"), None);
        assert_eq!(with("10.96.0.20", "tcp://10.96.0.20:9854"), None);
        assert_eq!(of_environment(|_| None), None);
    }

    #[test]
    fn an_agents_page_is_never_for_the_world() {
        for everywhere in ["0.0.0.0:9853", "[::]:9853"] {
            assert_eq!(page(everywhere.parse().unwrap()), "127.0.0.1:9853".parse().unwrap());
        }
        assert_eq!(page("10.0.0.7:9853".parse().unwrap()), "10.0.0.7:9853".parse().unwrap());
    }

    #[test]
    fn an_address_of_this_network_is_told_from_one_of_another() {
        assert!(is_ours(Ipv4Addr::LOCALHOST.into()));
        // TEST-NET-1 is nobody's.
        assert!(!is_ours(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    #[test]
    fn an_agent_looks_at_its_own_node_only() {
        let config = Config::parse(
            "nodes: [{name: a, netns: /a}, {name: b}]\nvantages: [{name: a, node: a}, {name: pod, node: a}, {name: b, node: b}]\n",
        )
        .unwrap();
        let names: Vec<String> = vantages(&config, "a").into_iter().map(|v| v.name).collect();
        assert_eq!(names, ["a", "a/pod"]);
        assert_eq!(nodes(&config, "a"), config.nodes[..1]);
        assert_eq!(vantages(&config, "c")[0].name, "c");
        assert_eq!(nodes(&config, "c"), [NodeConfig { name: "c".into(), netns: None }]);
    }
}
