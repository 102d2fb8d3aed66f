//! Which of a cluster's objects are its DNS? Reads a v1 List leniently: other kinds are passed over, what is
//! missing has Kubernetes' own default, an object that can't be understood is counted and spoils no other.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use evidence::{DnsService, Endpoint, Inventory, Pod};
use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a list gave.
#[derive(Debug)]
pub struct Found {
    /// The DNS Service, its servers, the pods.
    pub inventory: Inventory,
    /// Objects of known kinds that could not be understood.
    pub broken: u64,
}

/// Why a list gives no inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No Service with one of the addresses, none with a known name.
    NoService,
    /// Every cluster has EndpointSlices; they were not asked for.
    NoSlices,
}

impl Problem {
    /// After "the inventory has".
    pub fn words(self) -> &'static str {
        match self {
            Self::NoService => {
                "no DNS Service: none has one of the addresses in cluster.service.addresses or /etc/resolv.conf, \
                 none is called kube-dns or coredns and has port 53"
            }
            Self::NoSlices => {
                "no EndpointSlices: make it by `kubectl get services,endpointslices,pods,nodes -A -o json`"
            }
        }
    }
}

/// Picks the DNS Service (the one with a wanted address, else by name) with its servers.
pub fn find(list: List, wanted: &[SocketAddr]) -> Result<Found, Problem> {
    let Objects { services, slices, pods, broken } = list.items;
    let service = services
        .iter()
        .find(|service| service.addresses().any(|ip| wanted.iter().any(|address| address.ip() == ip)))
        .or_else(|| by_name(&services))
        .ok_or(Problem::NoService)?;
    if slices.is_empty() {
        return Err(Problem::NoSlices);
    }
    let port = service.dns_port(wanted).ok_or(Problem::NoService)?;
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.is_of(service)) {
        for endpoint in slice.servers(port) {
            // For a moment one endpoint may be in two slices; it serves if one of them says so.
            match endpoints.iter_mut().find(|known| known.address == endpoint.address) {
                Some(known) => known.serving |= endpoint.serving,
                None => endpoints.push(endpoint),
            }
        }
    }
    let addresses = service.addresses().map(|ip| SocketAddr::new(ip, port.port)).collect();
    let service = DnsService { name: service.metadata.name.clone(), addresses, is_virtual: true };
    Ok(Found { inventory: Inventory { service, endpoints, pods, ..Inventory::default() }, broken })
}

fn by_name(services: &[Service]) -> Option<&Service> {
    let named = |service: &&Service| {
        NAMES.contains(&service.metadata.name.as_str())
            && service.addresses().next().is_some()
            && service.ports().iter().any(|port| port.port == 53)
    };
    let system = |service: &&Service| service.metadata.namespace == "kube-system";
    services.iter().filter(named).find(system).or_else(|| services.iter().find(named))
}

/// What the common distributions call it: kubeadm and clouds, Helm, RKE2, OpenShift.
const NAMES: [&str; 4] = ["kube-dns", "coredns", "rke2-coredns-rke2-coredns", "dns-default"];

/// A v1 List.
#[derive(Debug, Deserialize)]
pub struct List {
    #[serde(deserialize_with = "objects")]
    items: Objects,
}

/// The objects that matter, each reduced to what is needed as it is read.
#[derive(Debug, Default)]
struct Objects {
    services: Vec<Service>,
    slices: Vec<Slice>,
    pods: Vec<Pod>,
    broken: u64,
}

fn objects<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Objects, D::Error> {
    struct Items;
    impl<'de> Visitor<'de> for Items {
        type Value = Objects;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of objects")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Objects, A::Error> {
            let mut objects = Objects::default();
            // One object at a time: a large cluster's list never is in memory as a whole.
            while let Some(item) = items.next_element::<Value>()? {
                objects.add(item);
            }
            Ok(objects)
        }
    }
    deserializer.deserialize_seq(Items)
}

impl Objects {
    fn add(&mut self, item: Value) {
        let kind = item.get("kind").and_then(Value::as_str).unwrap_or_default();
        let taken = match kind {
            "Service" => keep(&mut self.services, item, Some),
            "EndpointSlice" => keep(&mut self.slices, item, Some),
            "Pod" => keep(&mut self.pods, item, RawPod::into_pod),
            _ => true,
        };
        self.broken += u64::from(!taken);
    }
}

/// False if the object can't be understood, or there are too many of its kind.
fn keep<T: DeserializeOwned, K>(kept: &mut Vec<K>, item: Value, reduce: impl Fn(T) -> Option<K>) -> bool {
    let Ok(object) = serde_json::from_value(item) else { return false };
    let Some(object) = reduce(object) else { return true };
    if kept.len() >= MAX_OBJECTS {
        return false;
    }
    kept.push(object);
    true
}

/// Of each kind. Kubernetes is supported up to 150,000 pods.
const MAX_OBJECTS: usize = 200_000;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct Service {
    metadata: Metadata,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
}

/// A port of a Service or a slice; a slice's may be without a number.
#[derive(Debug, Deserialize)]
struct Port<N = u16> {
    name: Option<String>,
    protocol: Option<String>,
    port: N,
}

impl<N> Port<N> {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or("TCP")
    }
}

impl Service {
    /// Virtual addresses; a headless Service ("None") has none.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let list = self.spec.cluster_ips.as_deref().filter(|list| !list.is_empty());
        list.unwrap_or(self.spec.cluster_ip.as_slice()).iter().filter_map(|ip| ip.parse().ok())
    }

    fn ports(&self) -> &[Port] {
        self.spec.ports.as_deref().unwrap_or_default()
    }

    /// The port that clients ask: a wanted one, else 53, else the first; UDP before TCP.
    fn dns_port(&self, wanted: &[SocketAddr]) -> Option<&Port> {
        let rank = |port: &&Port| {
            let known =
                wanted.iter().any(|w| w.port() == port.port && self.addresses().any(|ip| ip == w.ip()));
            (!known, port.port != 53, port.protocol() != "UDP")
        };
        self.ports().iter().min_by_key(rank)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slice {
    metadata: Metadata,
    // kubectl prints null for a slice without endpoints.
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<Port<Option<u16>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    target_ref: Option<Metadata>,
}

#[derive(Debug, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
}

impl Slice {
    fn is_of(&self, service: &Service) -> bool {
        let owner = self.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
        owner == Some(&service.metadata.name) && self.metadata.namespace == service.metadata.namespace
    }

    /// The servers at the port that belongs to the Service's, by its name and protocol.
    fn servers(&self, of: &Port) -> Vec<Endpoint> {
        let ports = self.ports.as_deref().unwrap_or_default();
        let port = ports
            .iter()
            .find(|port| port.name() == of.name() && port.protocol() == of.protocol())
            .and_then(|port| port.port);
        let Some(port) = port else { return Vec::new() };
        let endpoints = self.endpoints.as_deref().unwrap_or_default();
        endpoints.iter().filter_map(|endpoint| endpoint.server(port)).collect()
    }
}

impl SliceEndpoint {
    fn server(&self, port: u16) -> Option<Endpoint> {
        // All addresses of an endpoint stand for the same; consumers use the first (EndpointSlice API). A slice of
        // addressType FQDN has none that parses.
        let ip: IpAddr = self.addresses.as_deref()?.first()?.parse().ok()?;
        let conditions = self.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let address = SocketAddr::new(ip, port);
        let name = self.target_ref.as_ref().map(|target| target.name.clone()).filter(|name| !name.is_empty());
        Some(Endpoint {
            name: name.unwrap_or_else(|| address.to_string()),
            address,
            node: self.node_name.clone(),
            serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        })
    }
}

#[derive(Debug, Deserialize)]
struct RawPod {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

impl RawPod {
    /// None for a pod whose addresses don't name it: its node's, or given back when it ended.
    fn into_pod(self) -> Option<Pod> {
        let ended = matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || self.spec.host_network == Some(true) {
            return None;
        }
        let texts: Vec<String> = match self.status.pod_ips {
            Some(ips) if !ips.is_empty() => ips.into_iter().filter_map(|ip| ip.ip).collect(),
            _ => self.status.pod_ip.into_iter().collect(),
        };
        let addresses: Vec<IpAddr> = texts.iter().filter_map(|ip| ip.parse().ok()).collect();
        let name = format!("{}/{}", self.metadata.namespace, self.metadata.name);
        (!addresses.is_empty()).then_some(Pod {
            name,
            addresses,
            node: self.spec.node_name,
            ..Pod::default()
        })
    }
}
