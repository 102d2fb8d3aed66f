//! What must an operator know about the inventory, in words?

use std::net::SocketAddr;

use evidence::{CoverageState, DnsService, Endpoint, WallTime};

use super::store::Store;
use super::watches::{Kind, KnownPod};
use crate::inventory::dns::NameServers;
use crate::inventory::list::NO_SERVICE;

/// The API server doesn't answer: since when, and how old the state is.
pub(super) fn away(address: &str, why: &str, as_of: Option<WallTime>) -> CoverageState {
    let state = as_of.map_or_else(
        || "nothing is known of the cluster yet".to_owned(),
        |as_of| {
            let (clock, age) = (correlate::time_of_day(as_of), WallTime::now().since(as_of).as_secs());
            let clock = clock.split('.').next().unwrap_or_default();
            format!("the last state is used, of {clock} UTC, {age} s ago")
        },
    );
    CoverageState::Denied { missing: format!("the API server {address} does not answer: {why}; {state}") }
}

/// No Service has the name servers' address.
pub(super) fn no_service(asked: &NameServers, last: &DnsService) -> CoverageState {
    let list = |addresses: &[SocketAddr]| {
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
    };
    let why = if last.is_virtual {
        format!("the Service {} is gone: no Service has the address {}", last.name, list(&last.addresses))
    } else if asked.certain {
        format!(
            "the name server {} is no Service's ClusterIP: pods ask it as it is, and causes that need a Service do \
             not apply",
            list(&asked.addresses)
        )
    } else {
        NO_SERVICE.to_owned()
    };
    CoverageState::Unsupported { why }
}

/// Not read yet.
pub(super) fn unread(kind: Kind) -> CoverageState {
    CoverageState::Unsupported { why: format!("{} are still being read", kind.resource()) }
}

/// The servers' metrics and log are not CoreDNS's.
pub(super) fn no_coredns(namespace: &str, service: &str) -> CoverageState {
    let why = format!(
        "the servers of {namespace}/{service} are no CoreDNS (none of their containers is called so or made of such an \
         image): causes that read CoreDNS's metrics do not apply"
    );
    CoverageState::Unsupported { why }
}

/// Whether all servers are known pods and none of them is a CoreDNS.
pub(super) fn are_no_coredns(namespace: &str, servers: &[Endpoint], pods: &Store<KnownPod>) -> bool {
    let coredns =
        |server: &Endpoint| pods.by_name(&format!("{namespace}/{}", server.name)).map(|known| known.coredns);
    !servers.is_empty() && servers.iter().all(|server| coredns(server) == Some(false))
}
