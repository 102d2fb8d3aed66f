//! What does a v1 List say of the cluster's DNS?
//!
//! It is read leniently: other kinds are passed over, an object that can't be understood is counted and spoils no
//! other.

use std::fmt;

use evidence::{Inventory, Node, Pod};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::dns::{self, NameServers};
use super::objects::{RawNode, RawPod, Service, Slice};

/// What a list gave.
#[derive(Debug)]
pub struct Found {
    /// The DNS Service, its servers, the pods, the nodes.
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
            Self::NoService => NO_SERVICE,
            Self::NoSlices => {
                "no EndpointSlices: make it by `kubectl get services,endpointslices,pods,nodes -A -o json`"
            }
        }
    }
}

/// Also what is said of an API server.
pub const NO_SERVICE: &str = "no DNS Service: none has one of the addresses in cluster.service.addresses or \
                              resolv.conf, none is called kube-dns or coredns and has port 53";

/// Picks the DNS Service with its servers.
pub fn find(list: List, asked: &NameServers) -> Result<Found, Problem> {
    let Objects { services, slices, pods, nodes, broken } = list.items;
    let service = dns::service(services.iter(), asked).ok_or(Problem::NoService)?;
    if slices.is_empty() {
        return Err(Problem::NoSlices);
    }
    let (service, endpoints) = dns::servers(service, asked, slices.iter()).ok_or(Problem::NoService)?;
    Ok(Found { inventory: Inventory { service, endpoints, pods, nodes }, broken })
}

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
    nodes: Vec<Node>,
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
            "Node" => keep(&mut self.nodes, item, |node: RawNode| Some(node.into_node())),
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
pub const MAX_OBJECTS: usize = 200_000;
