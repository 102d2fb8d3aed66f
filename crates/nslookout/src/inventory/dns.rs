//! Which Service do pods ask for names, and which servers are behind it?

use std::net::SocketAddr;

use evidence::{DnsService, Endpoint};

use super::objects::{Port, Service, Slice};

/// Whom pods ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServers {
    /// Their addresses.
    pub addresses: Vec<SocketAddr>,
    /// Whether pods certainly ask these: configured, or of a pod's own resolv.conf. Otherwise they may be this
    /// machine's alone, and the Service is also found by its name.
    pub certain: bool,
}

/// The Service that has one of the addresses; else the one with a known name, unless the addresses are certain.
pub fn service<'a>(
    services: impl Iterator<Item = &'a Service> + Clone,
    asked: &NameServers,
) -> Option<&'a Service> {
    let asked_for = |service: &&Service| {
        service.addresses().any(|ip| asked.addresses.iter().any(|address| address.ip() == ip))
    };
    let mut by_address = services.clone().filter(asked_for);
    by_address.next().or_else(|| if asked.certain { None } else { by_name(services) })
}

/// The Service as pods know it, and all its servers. None for a Service without ports.
pub fn servers<'a>(
    service: &Service,
    asked: &NameServers,
    slices: impl Iterator<Item = &'a Slice>,
) -> Option<(DnsService, Vec<Endpoint>)> {
    let port = dns_port(service, asked)?;
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for slice in slices.filter(|slice| slice.is_of(service)) {
        for endpoint in slice.servers(port) {
            // For a moment one endpoint may be in two slices; it serves if one of them says so.
            match endpoints.iter_mut().find(|known| known.address == endpoint.address) {
                Some(known) => {
                    known.serving |= endpoint.serving;
                    known.leaving &= endpoint.leaving;
                }
                None => endpoints.push(endpoint),
            }
        }
    }
    let addresses = service.addresses().map(|ip| SocketAddr::new(ip, port.port)).collect();
    let service = DnsService { name: service.name().to_owned(), addresses, is_virtual: true };
    Some((service, endpoints))
}

/// What stands for name servers that are no Service's: each is its own server.
pub fn plain(asked: &NameServers, name: &str) -> (DnsService, Vec<Endpoint>) {
    let addresses = asked.addresses.clone();
    let endpoints = addresses.iter().map(|address| lone_server(*address)).collect();
    (DnsService { name: name.to_owned(), addresses, is_virtual: false }, endpoints)
}

/// A server of which nothing but the address is known.
pub fn lone_server(address: SocketAddr) -> Endpoint {
    Endpoint { name: address.to_string(), address, node: None, serving: true, leaving: false }
}

fn by_name<'a>(services: impl Iterator<Item = &'a Service> + Clone) -> Option<&'a Service> {
    let named = |service: &&Service| {
        NAMES.contains(&service.name())
            && service.addresses().next().is_some()
            && service.ports().iter().any(|port| port.port == 53)
    };
    let system = |service: &&Service| service.namespace() == "kube-system";
    services.clone().filter(named).find(system).or_else(|| services.clone().find(named))
}

/// The port that clients ask: a wanted one, else 53, else the first; UDP before TCP.
fn dns_port<'a>(service: &'a Service, asked: &NameServers) -> Option<&'a Port> {
    let rank = |port: &&Port| {
        let here = |address: &SocketAddr| service.addresses().any(|ip| ip == address.ip());
        let known = asked.addresses.iter().any(|address| address.port() == port.port && here(address));
        (!known, port.port != 53, port.protocol() != "UDP")
    };
    service.ports().iter().min_by_key(rank)
}

/// What the common distributions call it: kubeadm and clouds, Helm, RKE2, OpenShift.
const NAMES: [&str; 4] = ["kube-dns", "coredns", "rke2-coredns-rke2-coredns", "dns-default"];
