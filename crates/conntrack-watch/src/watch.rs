//! How do the node's views become reports?
//!
//! One report for each node and interval, and one at once for dropped DNS packets. A consumer that is too slow costs
//! reports, which are counted, and never a wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evidence::{
    BootTime, Coverage, CoverageState, DropTotals, Inventory, KernelDrop, Observation, Observer, Place,
    Report, Role,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::config::Config;
use crate::drops::{Drops, Record};
use crate::node::{Lost, Node, WatchedNode, no_dns, span};

/// Drops come in bursts: so long a burst is gathered into one report.
const GATHER: Duration = Duration::from_millis(20);

/// Watches until the receiver of reports is gone. Whatever can't be looked at is told as coverage.
pub async fn run(
    config: Config,
    nodes: Vec<WatchedNode>,
    inventory: watch::Receiver<Arc<Inventory>>,
    out: mpsc::Sender<Report>,
) {
    let mut watcher = Watcher::start(config, nodes, inventory, out).await;
    let mut ticks = interval(watcher.config.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut inventory_lives = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => watcher.tick().await,
            () = readable(&watcher.drops) => watcher.report_drops().await,
            changed = watcher.inventory.changed(), if inventory_lives => match changed {
                Ok(()) => watcher.take_inventory(),
                // The last one stays true as far as we know.
                Err(_) => inventory_lives = false,
            },
            () = watcher.out.closed() => return,
        }
    }
}

struct Watcher {
    config: Config,
    nodes: Vec<Node>,
    inventory: watch::Receiver<Arc<Inventory>>,
    out: mpsc::Sender<Report>,
    drops: Result<Drops, CoverageState>,
    /// Of the helper's own losses, so many are told.
    told: u64,
}

impl Watcher {
    async fn start(
        config: Config,
        nodes: Vec<WatchedNode>,
        inventory: watch::Receiver<Arc<Inventory>>,
        out: mpsc::Sender<Report>,
    ) -> Self {
        let drops = if config.drops {
            Drops::load().map_err(|error| error.coverage())
        } else {
            Err(CoverageState::Unsupported { why: "conntrackWatch.drops is false".into() })
        };
        let nodes = nodes.into_iter().map(Node::new).collect();
        let mut watcher = Self { config, nodes, inventory, out, drops, told: 0 };
        if let Ok(drops) = &watcher.drops {
            for node in &mut watcher.nodes {
                match node.cpu_stats().await {
                    Ok(stats) => drops.seed(node.namespace.inode(), &stats),
                    Err(error) => {
                        tracing::warn!(node = node.name, %error, "first drops may be of unknown class")
                    }
                }
            }
        }
        watcher.take_inventory();
        watcher
    }

    fn take_inventory(&mut self) {
        let inventory = Arc::clone(&self.inventory.borrow_and_update());
        if let Ok(drops) = &mut self.drops {
            let endpoints = inventory.endpoints.iter().map(|endpoint| endpoint.address);
            drops.set_dns(inventory.service.addresses.iter().copied().chain(endpoints));
        }
        for node in &mut self.nodes {
            node.dump_at_once();
        }
    }

    async fn tick(&mut self) {
        // What waits in the ring came before the totals that are read now.
        self.report_drops().await;
        let inventory = Arc::clone(&self.inventory.borrow());
        let mut totals = self.totals();
        let lost = self.helper_losses();
        self.tidy();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let mut observations: Vec<_> =
                totals.remove(&index).unwrap_or_default().into_iter().map(Observation::DropTotals).collect();
            let mut coverage = Vec::with_capacity(3);
            if self.config.counters {
                coverage.push(node.read_counters(&mut observations).await);
            } else {
                coverage.push(switched_off(node, Observer::ConntrackCounters, "counters"));
            }
            if self.config.table {
                coverage.push(node.read_table(&self.config, &inventory, &mut observations).await);
            } else {
                coverage.push(switched_off(node, Observer::ConntrackTable, "table"));
            }
            node.lost.drops += lost;
            let looked = CoverageState::Looked { lost: node.lost.drops };
            let state = match &self.drops {
                Ok(drops) if drops.knows_dns() => looked,
                Ok(_) => no_dns(),
                Err(state) => state.clone(),
            };
            coverage.push(node.coverage(Observer::Drops, state));
            let now = BootTime::now();
            let report = Report {
                node: node.name.clone(),
                role: Role::Node,
                from: node.reported,
                to: now,
                observations,
                coverage,
            };
            if self.out.try_send(report).is_ok() {
                node.reported = now;
                node.lost = Lost::default();
            } else {
                // The counters are cumulative and come again; rows of the table may not.
                node.lost.table += 1;
            }
        }
    }

    /// Sends the dropped packets that the ring has, those of a burst together.
    async fn report_drops(&mut self) {
        let Ok(drops) = &self.drops else { return };
        let mut records = drops.take();
        if records.is_empty() {
            return;
        }
        sleep(GATHER).await;
        records.extend(drops.take());
        let mut by_node: BTreeMap<usize, Vec<Record>> = BTreeMap::new();
        for record in records {
            if let Some(index) = self.reporter(record.namespace, record.owner) {
                by_node.entry(index).or_default().push(record);
            }
        }
        for (index, records) in by_node {
            let Some(node) = self.nodes.get_mut(index) else { continue };
            let own: Vec<_> =
                records.iter().filter(|record| record.namespace == node.namespace.inode()).cloned().collect();
            let holders = node.holders(&own).await;
            let drops: Vec<KernelDrop> = records
                .into_iter()
                .map(|record| {
                    let place = if record.namespace == node.namespace.inode() {
                        Place::Node(node.name.clone())
                    } else {
                        Place::Namespace(record.namespace)
                    };
                    record.at_place(place)
                })
                .collect();
            let (from, to) = span(&drops, BootTime::now());
            let count = u64::try_from(drops.len()).unwrap_or(u64::MAX);
            let observations = drops
                .into_iter()
                .map(Observation::KernelDrop)
                .chain(holders.into_iter().map(Observation::Mapping))
                .collect();
            // The next regular report tells how well the helper looked.
            let report = Report {
                node: node.name.clone(),
                role: Role::Node,
                from,
                to,
                observations,
                coverage: Vec::<Coverage>::new(),
            };
            if self.out.try_send(report).is_err() {
                node.lost.drops += count;
            }
        }
    }

    /// Totals by the node that reports them.
    fn totals(&self) -> BTreeMap<usize, Vec<DropTotals>> {
        let mut by_node: BTreeMap<usize, Vec<DropTotals>> = BTreeMap::new();
        let Ok(drops) = &self.drops else { return by_node };
        for total in drops.totals() {
            let Some(index) = self.reporter(total.namespace, drops.owner(total.namespace)) else { continue };
            let place = self
                .nodes
                .iter()
                .find(|node| node.namespace.inode() == total.namespace)
                .map_or(Place::Namespace(total.namespace), |node| Place::Node(node.name.clone()));
            by_node.entry(index).or_default().push(DropTotals {
                place,
                class: total.class,
                all: total.all,
                dns: total.dns,
            });
        }
        by_node
    }

    /// Takes the totals of namespaces that may be gone out of the kernel's map. The nodes' own stay.
    fn tidy(&mut self) {
        let own: Vec<_> = self.nodes.iter().map(|node| node.namespace.inode()).collect();
        if let Ok(drops) = &mut self.drops {
            drops.tidy(&own, BootTime::now());
        }
    }

    /// The node that reports a namespace's drops: itself, or the one that the namespace hangs on. The first, where that
    /// can't be known (no veth). None for what hangs on a namespace that is not watched: another cluster on this kernel,
    /// maybe with the same addresses.
    fn reporter(&self, namespace: u32, owner: Option<u32>) -> Option<usize> {
        let watched = |inode: u32| self.nodes.iter().position(|node| node.namespace.inode() == inode);
        watched(namespace).or_else(|| match owner {
            Some(owner) => watched(owner),
            None => (!self.nodes.is_empty()).then_some(0),
        })
    }

    /// What the helper lost since this was last asked.
    fn helper_losses(&mut self) -> u64 {
        let Ok(drops) = &self.drops else { return 0 };
        let lost = drops.trouble().lost();
        lost.saturating_sub(std::mem::replace(&mut self.told, lost))
    }
}

async fn readable(drops: &Result<Drops, CoverageState>) {
    match drops {
        Ok(drops) => drops.readable().await,
        Err(_) => std::future::pending().await,
    }
}

fn switched_off(node: &Node, observer: Observer, key: &str) -> Coverage {
    node.coverage(observer, CoverageState::Unsupported { why: format!("conntrackWatch.{key} is false") })
}
