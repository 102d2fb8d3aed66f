//! `nslookout check`: one shot, on any Linux machine, with or without root, with or without Kubernetes.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use evidence::{
    BootTime, Coverage, CoverageState, DnsService, Endpoint, Inventory, Observation, Observer, Report, Role,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::observers::this_node;
use crate::pipeline::{Pipeline, REPORTS, Step};
use crate::status::{State, Status};

/// Why a check can't begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// resolv.conf can't be read.
    #[error("/etc/resolv.conf can't be read: {0}; name a server with --server")]
    ResolvConf(#[source] std::io::Error),
    /// resolv.conf names nobody.
    #[error("/etc/resolv.conf names no server; name one with --server")]
    NoServer,
}

/// Looks for as long as it takes to be sure, `longest` at most.
pub async fn check(servers: &[SocketAddr], name: &str, longest: Duration) -> Result<Status, Error> {
    let text = match std::fs::read_to_string(Path::new("/etc/resolv.conf")) {
        Ok(text) => text,
        Err(_) if !servers.is_empty() => String::new(),
        Err(error) => return Err(Error::ResolvConf(error)),
    };
    let resolv_conf = prober::resolv_conf::ResolvConf::parse(&text, &prober::Profile::GLIBC);
    let named: Vec<SocketAddr> =
        if servers.is_empty() { resolv_conf.servers.clone() } else { servers.to_vec() };
    if named.is_empty() {
        return Err(Error::NoServer);
    }
    let cluster_domain = cluster_domain(&resolv_conf.search);
    // A server that the user names and resolv.conf does not is asked for itself, not as a Service.
    let is_virtual =
        cluster_domain.is_some() && named.iter().all(|server| resolv_conf.servers.contains(server));
    let (config, inventory) = plan(&named, name, cluster_domain.as_deref(), is_virtual);
    let (out, reports) = mpsc::channel(REPORTS);
    let (_keep, inventory_watch) = watch::channel(Arc::new(inventory.clone()));
    // The channel is empty and has room: it was made a line ago.
    drop(out.try_send(inventory_report(inventory)));
    let mut pipeline = Pipeline::start(&config, inventory_watch, out, reports);
    Ok(look(&mut pipeline, longest).await)
}

/// "10.96.0.10", "10.96.0.10:5353" or "[fd00::10]:53" as a server's address.
pub fn server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT)))
        .map_err(|_| {
            format!(
                "{text:?} is no IP address (a name would have to be resolved, and that is what is checked)"
            )
        })
}

/// The zone of the cluster if this looks like a pod: its search list has "svc.ZONE".
fn cluster_domain(search: &[String]) -> Option<String> {
    search.iter().find_map(|domain| domain.trim_end_matches('.').strip_prefix("svc.").map(str::to_owned))
}

fn plan(
    servers: &[SocketAddr],
    name: &str,
    cluster_domain: Option<&str>,
    is_virtual: bool,
) -> (Config, Inventory) {
    let mut config = Config::default();
    let absolute = |name: &str| format!("{}.", name.trim_end_matches('.'));
    config.prober.interval = Duration::from_millis(250);
    match cluster_domain {
        Some(domain) => {
            config.prober.names.cluster = absolute(&format!("kubernetes.default.svc.{domain}"));
            config.prober.names.forwarded = Some(absolute(name));
        }
        // A plain name server knows no cluster: one name is as good as two.
        None => {
            config.prober.names.cluster = absolute(name);
            config.prober.names.forwarded = None;
        }
    }
    let endpoint = |address: &SocketAddr| Endpoint {
        name: address.to_string(),
        address: *address,
        node: None,
        serving: true,
        leaving: false,
    };
    let service = DnsService { name: "resolv.conf".into(), addresses: servers.to_vec(), is_virtual };
    // What is behind a virtual address can't be told from here; a plain name server is the server itself.
    let endpoints = if is_virtual { Vec::new() } else { servers.iter().map(endpoint).collect() };
    (config, Inventory { service, endpoints, ..Inventory::default() })
}

/// A pod's resolv.conf doesn't say which servers are behind the Service: that is not "none".
fn inventory_report(inventory: Inventory) -> Report {
    let now = BootTime::now();
    let (state, observations) = if inventory.service.is_virtual {
        let why = "resolv.conf names a Service; what is behind it only the API server knows".to_owned();
        (CoverageState::Unsupported { why }, Vec::new())
    } else {
        (CoverageState::Looked { lost: 0 }, vec![Observation::Inventory(inventory.into())])
    };
    Report {
        node: this_node(),
        role: Role::Inventory,
        from: now,
        to: now,
        observations,
        coverage: vec![Coverage { observer: Observer::Inventory, place: "resolv.conf".into(), state }],
    }
}

/// Ends early once every lookup is answered for a while, or once an incident has stood long enough to be told
/// with its figures.
async fn look(pipeline: &mut Pipeline, longest: Duration) -> Status {
    let start = Instant::now();
    let mut unhealthy_since = None;
    loop {
        let Ok(step) = tokio::time::timeout_at(start + longest, pipeline.step()).await else {
            return pipeline.status();
        };
        if matches!(step, Step::Batch(_)) {
            continue;
        }
        let (lookups, answered) = pipeline.lookups();
        let status = pipeline.status();
        if status.state == State::Unhealthy {
            let since = *unhealthy_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= SETTLE {
                return status;
            }
        } else if start.elapsed() >= HEALTHY_AFTER && lookups >= ENOUGH && lookups == answered {
            return status;
        }
    }
}

const DNS_PORT: u16 = 53;
/// A lookup of a healthy server takes milliseconds; one lost packet shows after a second.
const HEALTHY_AFTER: Duration = Duration::from_millis(2500);
const ENOUGH: usize = 8;
/// An open incident gathers figures for so long before it is printed.
const SETTLE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_and_never_names() {
        assert_eq!(server("10.96.0.10").unwrap(), "10.96.0.10:53".parse().unwrap());
        assert_eq!(server("fd00::10").unwrap(), "[fd00::10]:53".parse().unwrap());
        assert!(server("dns.google").unwrap_err().contains("no IP address"));
    }

    #[test]
    fn a_pods_search_list_names_the_clusters_zone() {
        let search =
            ["default.svc.k8s.example".to_owned(), "svc.k8s.example".to_owned(), "k8s.example".to_owned()];
        assert_eq!(cluster_domain(&search).as_deref(), Some("k8s.example"));
        assert_eq!(cluster_domain(&["lan".to_owned()]), None);
    }
}
