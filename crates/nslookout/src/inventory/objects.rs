//! What do a cluster's objects say, as far as DNS goes?
//!
//! Services, EndpointSlices, pods and nodes, each reduced to the fields that matter as it is read: a page of pods is
//! mostly text that nobody here wants. The same types read a file's List and the API server's watches. What is
//! missing has Kubernetes' own default.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use evidence::{Endpoint, Node, Pod};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::metadata::{Metadata, Reference};

/// A Service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Service {
    metadata: Metadata,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
}

/// A port of a Service or a slice; a slice's may be without a number.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Port<N = u16> {
    name: Option<String>,
    protocol: Option<String>,
    /// Its number.
    pub port: N,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Slice {
    metadata: Metadata,
    // kubectl prints null for a slice without endpoints.
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<Port<Option<u16>>>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    target_ref: Option<Reference>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// A pod as the API has it.
#[derive(Debug, Clone, Deserialize)]
pub struct RawPod {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

/// A node as the API has it. Its metadata are enough.
#[derive(Debug, Clone, Deserialize)]
pub struct RawNode {
    metadata: Metadata,
}

impl Service {
    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace()
    }

    /// Virtual addresses; a headless Service ("None") has none.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let list = self.spec.cluster_ips.as_deref().filter(|list| !list.is_empty());
        list.unwrap_or(self.spec.cluster_ip.as_slice()).iter().filter_map(|ip| ip.parse().ok())
    }

    /// Its ports.
    pub fn ports(&self) -> &[Port] {
        self.spec.ports.as_deref().unwrap_or_default()
    }
}

impl<N> Port<N> {
    /// Its name, empty where it has none.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// "UDP" or "TCP".
    pub fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or("TCP")
    }
}

impl Slice {
    /// Whether it lists endpoints of this Service.
    pub fn is_of(&self, service: &Service) -> bool {
        let owner = self.metadata.label("kubernetes.io/service-name");
        owner == Some(service.name()) && self.metadata.namespace() == service.namespace()
    }

    /// The servers at the port that belongs to the Service's, by its name and protocol.
    pub fn servers(&self, of: &Port) -> Vec<Endpoint> {
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
            leaving: conditions.and_then(|c| c.terminating).unwrap_or(false),
        })
    }
}

impl RawPod {
    /// None for a pod whose addresses don't name it: its node's, or given back when it ended.
    pub fn into_pod(self) -> Option<Pod> {
        let ended = matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || self.spec.host_network == Some(true) {
            return None;
        }
        let texts: Vec<String> = match self.status.pod_ips {
            Some(ips) if !ips.is_empty() => ips.into_iter().filter_map(|ip| ip.ip).collect(),
            _ => self.status.pod_ip.into_iter().collect(),
        };
        let addresses: Vec<IpAddr> = texts.iter().filter_map(|ip| ip.parse().ok()).collect();
        let name = format!("{}/{}", self.metadata.namespace(), self.metadata.name());
        let workload = self.metadata.workload();
        (!addresses.is_empty()).then_some(Pod { name, addresses, node: self.spec.node_name, workload })
    }

    /// Whether one of its containers is a CoreDNS, by its name or its image's.
    pub fn runs_coredns(&self) -> bool {
        let is = |text: &str| text.contains("coredns");
        let image = |image: &String| is(image.rsplit('/').next().unwrap_or_default());
        let containers = self.spec.containers.as_deref().unwrap_or_default();
        containers.iter().any(|container| is(&container.name) || container.image.as_ref().is_some_and(image))
    }
}

impl RawNode {
    /// Its name and zone.
    pub fn into_node(self) -> Node {
        let zones = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
        let zone = zones.iter().find_map(|label| self.metadata.label(label)).map(str::to_owned);
        Node { name: self.metadata.name().to_owned(), zone }
    }
}

/// Lets the API's watches read a type that holds a part of Kubernetes' own.
macro_rules! part_of {
    ($part:ty, $whole:ty, metadata alone: $metadata:literal) => {
        impl kube::Resource for $part {
            type DynamicType = ();
            type Scope = <$whole as kube::Resource>::Scope;

            fn kind((): &()) -> Cow<'_, str> {
                <$whole as kube::Resource>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$whole as kube::Resource>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$whole as kube::Resource>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$whole as kube::Resource>::plural(&())
            }

            fn metadata_api() -> bool {
                $metadata
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata.object
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata.object
            }
        }
    };
}

part_of!(Service, v1::Service, metadata alone: false);
part_of!(Slice, discovery::EndpointSlice, metadata alone: false);
part_of!(RawPod, v1::Pod, metadata alone: false);
part_of!(RawNode, v1::Node, metadata alone: true);
