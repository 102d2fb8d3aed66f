//! Which part of the inventory concerns a node, and does it have that already?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use evidence::wire::{Answer, Outlook};
use evidence::{Inventory, Pod};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// The inventory by nodes.
#[derive(Debug)]
pub struct Outlooks {
    inventory: watch::Receiver<Arc<Inventory>>,
    confirmed: Mutex<Instant>,
    index: Mutex<Index>,
}

/// One state of the inventory, so far as it was asked for.
#[derive(Debug, Default)]
struct Index {
    of: Arc<Inventory>,
    pods: HashMap<String, Vec<Pod>>,
    nodes: HashMap<String, (u64, Inventory)>,
    is_fresh: bool,
}

impl Outlooks {
    /// Of an inventory that is true now.
    pub fn new(inventory: watch::Receiver<Arc<Inventory>>) -> Self {
        Self::aged(inventory, Duration::ZERO)
    }

    /// Of an inventory that was true so long ago.
    pub fn aged(inventory: watch::Receiver<Arc<Inventory>>, age: Duration) -> Self {
        let now = Instant::now();
        let confirmed = Mutex::new(now.checked_sub(age).unwrap_or(now));
        Self { inventory, confirmed, index: Mutex::default() }
    }

    /// The inventory's source has just said that it is as it was told last.
    pub fn confirm(&self) {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// What a node is told that has the inventory of that tag. None while neither a Service nor a server is known.
    pub fn of(&self, node: &str, has: u64) -> Option<Outlook> {
        let present = self.inventory.borrow().clone();
        if present.service.addresses.is_empty() && present.endpoints.is_empty() {
            return None;
        }
        let age = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        if !index.is_fresh || !Arc::ptr_eq(&index.of, &present) {
            *index = Index::new(present);
        }
        let (tag, inventory) = index.node(node);
        let inventory = (tag != has).then(|| inventory.clone());
        Some(Outlook { tag, age, inventory })
    }
}

impl Index {
    fn new(of: Arc<Inventory>) -> Self {
        let mut pods: HashMap<String, Vec<Pod>> = HashMap::new();
        for pod in &of.pods {
            if let Some(node) = &pod.node {
                pods.entry(node.clone()).or_default().push(pod.clone());
            }
        }
        Self { of, pods, nodes: HashMap::new(), is_fresh: true }
    }

    fn node(&mut self, node: &str) -> (u64, &Inventory) {
        let Self { of, pods, nodes, .. } = self;
        let (tag, inventory) = nodes.entry(node.to_owned()).or_insert_with(|| {
            let inventory = Inventory {
                service: of.service.clone(),
                endpoints: of.endpoints.clone(),
                pods: pods.remove(node).unwrap_or_default(),
                // An agent knows its own node, and no other concerns it.
                nodes: Vec::new(),
            };
            (tag(&inventory), inventory)
        });
        (*tag, inventory)
    }
}

/// The same for the same content, in every correlator; never zero.
fn tag(inventory: &Inventory) -> u64 {
    let whole = Outlook { inventory: Some(inventory.clone()), ..Outlook::default() };
    let bytes = Answer { sequence: 0, outlook: Some(whole) }.to_bytes();
    let hash: [u8; 32] = Sha256::digest(&bytes).into();
    hash.first_chunk::<8>().map_or(1, |first| u64::from_le_bytes(*first).max(1))
}

#[cfg(test)]
mod tests {
    use evidence::Endpoint;

    use super::*;

    fn pod(name: &str, node: &str) -> Pod {
        Pod { name: name.into(), node: Some(node.into()), ..Pod::default() }
    }

    #[test]
    fn a_node_gets_its_own_pods_and_only_what_it_has_not() {
        let endpoint = Endpoint {
            name: "dns".into(),
            address: "10.0.0.1:53".parse().unwrap(),
            node: None,
            serving: true,
            leaving: false,
        };
        let mut inventory = Inventory {
            endpoints: vec![endpoint],
            pods: vec![pod("p1", "a"), pod("p2", "b")],
            ..Inventory::default()
        };
        let (publish, receiver) = watch::channel(Arc::new(Inventory::default()));
        let outlooks = Outlooks::new(receiver);
        assert_eq!(outlooks.of("a", 0), None, "nothing is known yet");

        publish.send_replace(Arc::new(inventory.clone()));
        let first = outlooks.of("a", 0).unwrap();
        let told = first.inventory.unwrap();
        assert_eq!(told.pods, [pod("p1", "a")]);
        assert_eq!(told.endpoints, inventory.endpoints);
        assert_eq!(outlooks.of("a", first.tag).unwrap().inventory, None);
        assert_ne!(outlooks.of("b", 0).unwrap().tag, first.tag);

        inventory.pods.pop();
        publish.send_replace(Arc::new(inventory.clone()));
        assert_eq!(outlooks.of("a", first.tag).unwrap().inventory, None, "its own part is the same");
        inventory.endpoints[0].serving = false;
        publish.send_replace(Arc::new(inventory));
        assert!(!outlooks.of("a", first.tag).unwrap().inventory.unwrap().endpoints[0].serving);
    }
}
