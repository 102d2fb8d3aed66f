//! Which part of the inventory concerns a node, and does it have that already?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use evidence::wire::{Answer, Outlook};
use evidence::{Inventory, Pod, WallTime};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::inventory::Followed;

/// The inventory by nodes.
#[derive(Debug)]
pub struct Outlooks {
    inventory: watch::Receiver<Arc<Inventory>>,
    as_of: watch::Receiver<Option<WallTime>>,
    index: Mutex<Option<Index>>,
}

/// One state of the inventory, so far as it was asked for.
#[derive(Debug)]
struct Index {
    of: Arc<Inventory>,
    made: Instant,
    /// Places in `of.pods`.
    pods: HashMap<String, Vec<usize>>,
    nodes: HashMap<String, (u64, Inventory)>,
}

impl Outlooks {
    /// Of an inventory that is followed.
    pub fn new(followed: Followed) -> Self {
        let Followed { inventory, as_of } = followed;
        Self { inventory, as_of, index: Mutex::default() }
    }

    /// The whole inventory as it is now.
    pub fn present(&self) -> Arc<Inventory> {
        self.inventory.borrow().clone()
    }

    /// What a node is told that has the inventory of that tag. None while its source has not spoken, or knows neither a
    /// Service nor a server.
    pub fn of(&self, node: &str, has: u64) -> Option<Outlook> {
        let as_of = (*self.as_of.borrow())?;
        let present = self.present();
        if present.service.addresses.is_empty() && present.endpoints.is_empty() {
            return None;
        }
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = index.take().filter(|index| index.serves(&present));
        let index = index.insert(kept.unwrap_or_else(|| Index::new(present)));
        let (tag, inventory) = index.node(node);
        let inventory = (tag != has).then(|| inventory.clone());
        Some(Outlook { tag, age: WallTime::now().since(as_of), inventory })
    }
}

impl Index {
    fn new(of: Arc<Inventory>) -> Self {
        let mut pods: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, pod) in of.pods.iter().enumerate() {
            let Some(node) = &pod.node else { continue };
            match pods.get_mut(node) {
                Some(places) => places.push(place),
                None => drop(pods.insert(node.clone(), vec![place])),
            }
        }
        Self { of, made: Instant::now(), pods, nodes: HashMap::new() }
    }

    /// Whether this is still good for that state. In a large cluster a pod comes or goes all the time, and its name is
    /// not worth a walk over all of them each time; Service and endpoints are never old.
    fn serves(&self, present: &Arc<Inventory>) -> bool {
        Arc::ptr_eq(&self.of, present)
            || self.made.elapsed() < PODS_MAY_BE_OLD
                && self.of.service == present.service
                && self.of.endpoints == present.endpoints
    }

    fn node(&mut self, node: &str) -> (u64, &Inventory) {
        let Self { of, pods, nodes, .. } = self;
        let (tag, inventory) = nodes.entry(node.to_owned()).or_insert_with(|| {
            let places = pods.get(node).map(Vec::as_slice).unwrap_or_default();
            let own: Vec<Pod> = places.iter().filter_map(|place| of.pods.get(*place).cloned()).collect();
            let inventory = Inventory {
                service: of.service.clone(),
                endpoints: of.endpoints.clone(),
                pods: own,
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
    let bytes = Answer { outlook: Some(whole), ..Answer::default() }.to_bytes();
    let hash: [u8; 32] = Sha256::digest(&bytes).into();
    hash.first_chunk::<8>().map_or(1, |first| u64::from_le_bytes(*first).max(1))
}

const PODS_MAY_BE_OLD: Duration = Duration::from_secs(1);

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
        let (stand_by, as_of) = watch::channel(None);
        let outlooks = Outlooks::new(Followed { inventory: receiver, as_of });
        publish.send_replace(Arc::new(inventory.clone()));
        assert_eq!(outlooks.of("a", 0), None, "nobody stands by it yet");

        stand_by.send_replace(Some(WallTime::now().minus(Duration::from_secs(7))));
        let first = outlooks.of("a", 0).unwrap();
        assert_eq!(first.age.as_secs(), 7);
        let told = first.inventory.unwrap();
        assert_eq!(told.pods, [pod("p1", "a")]);
        assert_eq!(told.endpoints, inventory.endpoints);
        assert_eq!(outlooks.of("a", first.tag).unwrap().inventory, None);
        let other = outlooks.of("b", 0).unwrap();
        assert_ne!(other.tag, first.tag);

        inventory.pods.pop();
        publish.send_replace(Arc::new(inventory.clone()));
        assert_eq!(outlooks.of("a", first.tag).unwrap().inventory, None, "its own part is the same");
        inventory.endpoints[0].serving = false;
        publish.send_replace(Arc::new(inventory));
        let other = outlooks.of("b", other.tag).unwrap().inventory.unwrap();
        assert!(other.pods.is_empty(), "with new endpoints all of it is new");
        assert!(!outlooks.of("a", first.tag).unwrap().inventory.unwrap().endpoints[0].serving);
    }
}
