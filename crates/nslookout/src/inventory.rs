//! What servers are there, by the cluster's own account?
//!
//! The account comes from the API server (`crate::kubernetes` watches it), from a file in which somebody writes what
//! `kubectl get services,endpointslices,pods,nodes -A -o json` prints, or from the configuration's own lists.
//! `objects.rs` says what each object comes to, `dns.rs` which of them are DNS: the same for both.

mod address;
mod config;
pub(crate) mod dns;
mod file;
mod kept;
pub(crate) mod list;
mod metadata;
pub(crate) mod objects;
mod told;

use std::net::SocketAddr;
use std::sync::Arc;

use evidence::{CoverageState, DnsService, Inventory, Report, WallTime};
use tokio::sync::{mpsc, watch};

use crate::kubernetes;
use crate::store::KeptFile;
pub use address::ServerAddress;
use config::Source;
pub use config::{ClusterConfig, ServiceConfig};
use dns::NameServers;
pub(crate) use told::{Teller, line};

/// The inventory, followed.
#[derive(Debug)]
pub struct Followed {
    /// The present state; the last one while its source is away.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// When its source last stood by that state. None: never.
    pub as_of: watch::Receiver<Option<WallTime>>,
}

/// Follows the inventory, on the caller's runtime, until `out` is closed. Each new state is told to both channels at
/// once, the present one every 5 s. The state of a file is there when this returns; the API server's comes a moment
/// later.
pub fn follow(config: &ClusterConfig, out: mpsc::Sender<Report>) -> Followed {
    follow_kept(config, None, out)
}

/// As [`follow`]; what the API server said is kept in the file, and told until it says more.
pub fn follow_kept(config: &ClusterConfig, file: Option<KeptFile>, out: mpsc::Sender<Report>) -> Followed {
    let asked = config.name_servers();
    let source = config.source();
    let first = first(config, &asked, &source);
    let (publish, inventory) = watch::channel(first.clone());
    let (stand_by, as_of) = watch::channel(None);
    let teller = Teller::new(publish, stand_by, out);
    match source {
        Source::File(path) => file::start(path, asked, first, teller),
        Source::Api => {
            if let Some(file) = file {
                kept::restore(&file, &teller);
                tokio::spawn(kept::keep(file, inventory.clone(), as_of.clone()));
            }
            tokio::spawn(kubernetes::follow(config.clone(), asked, teller));
        }
        Source::Configuration => {
            tokio::spawn(repeat(config.servers.is_empty(), first, teller));
        }
    }
    Followed { inventory, as_of }
}

/// As [`follow`], for those who don't tell the inventory's age to others.
pub fn watch(config: &ClusterConfig, out: mpsc::Sender<Report>) -> watch::Receiver<Arc<Inventory>> {
    follow(config, out).inventory
}

/// What an agent goes by until the correlator tells it more: the Service's addresses as configured, or as this pod's
/// own resolv.conf names them. A node's resolv.conf names other servers: there it is not asked.
pub fn of_agent(config: &ClusterConfig, in_pod_network: bool) -> Arc<Inventory> {
    let mut asked = config.name_servers();
    if config.service.addresses.is_empty() && !in_pod_network {
        asked.addresses.clear();
    }
    first(config, &asked, &Source::Configuration)
}

/// What the configuration knows before any source was asked.
fn first(config: &ClusterConfig, asked: &NameServers, source: &Source) -> Arc<Inventory> {
    let name = if config.service.addresses.is_empty() { "resolv.conf" } else { "configured" };
    let servers: &[ServerAddress] = if *source == Source::Configuration { &config.servers } else { &[] };
    let endpoints = servers.iter().map(|server| dns::lone_server(server.0)).collect();
    let addresses: Vec<SocketAddr> = asked.addresses.clone();
    let service = DnsService { name: name.into(), addresses, is_virtual: false };
    Arc::new(Inventory { service, endpoints, ..Inventory::default() })
}

/// The configuration's own lists don't change.
async fn repeat(unknown: bool, inventory: Arc<Inventory>, mut teller: Teller) {
    let state = if unknown {
        let why = "neither cluster.inventory nor cluster.servers is set, and this is no pod: which servers are behind \
                   the Service is not known";
        CoverageState::Unsupported { why: why.into() }
    } else {
        CoverageState::Looked { lost: 0 }
    };
    let known = (!unknown).then_some(&inventory);
    while teller.tell(known, vec![line("configuration", state.clone())]).await {
        teller.stand_by(WallTime::now());
        teller.wait_until_due().await;
    }
}

#[cfg(test)]
mod tests;
