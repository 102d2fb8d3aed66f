//! Who is told now?
//!
//! The Alertmanagers of the configuration always, those that Services lead to as long as they are there. Each has a task
//! of its own. What people were told is remembered for each Service as a whole: the one pod that comes for another
//! is not told again of what began and ended before it came.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};

use super::board::Board;
use super::config::AlertmanagersConfig;
use super::delivery::Delivery;
use super::found::Found;
use super::letter::Told;
use super::target::Target;
use crate::metrics::Metrics;

/// All who are told.
#[derive(Debug)]
pub struct Crew {
    config: AlertmanagersConfig,
    board: watch::Receiver<Arc<Board>>,
    metrics: Metrics,
    told: BTreeMap<Group, Arc<Mutex<Told>>>,
    /// A task ends when its sender is dropped.
    members: BTreeMap<Target, oneshot::Sender<()>>,
}

/// Those that share what people were told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// By address: nothing is known of others.
    Alone(Target),
    /// By the Service's name.
    Service(String),
}

impl Crew {
    /// Nobody is told yet.
    pub fn new(config: AlertmanagersConfig, board: watch::Receiver<Arc<Board>>, metrics: Metrics) -> Self {
        Self { config, board, metrics, told: BTreeMap::new(), members: BTreeMap::new() }
    }

    /// Starts and ends tasks until nobody sets alerts any more.
    pub async fn run(mut self, mut found: watch::Receiver<Arc<Found>>) {
        loop {
            let present = found.borrow_and_update().clone();
            self.gather(&present);
            tokio::select! {
                // Where nothing is looked up this is never so.
                Ok(()) = found.changed() => {}
                () = gone(&mut self.board) => return,
            }
        }
    }

    fn gather(&mut self, found: &Found) {
        let mut wanted: BTreeMap<Target, Group> = BTreeMap::new();
        for one in &found.alertmanagers {
            if one.serving || self.members.contains_key(&one.target) {
                wanted.entry(one.target.clone()).or_insert_with(|| Group::Service(one.service.clone()));
            }
        }
        // One that is there under both is always told.
        wanted.extend(self.config.targets().map(|target| (target.clone(), Group::Alone(target))));
        self.members.retain(|target, _| {
            let stays = wanted.contains_key(target);
            if !stays {
                tracing::info!("Alertmanager {target} has gone: it is told no more");
            }
            stays
        });
        for (target, group) in wanted {
            if !self.members.contains_key(&target) {
                self.join(target, group);
            }
        }
    }

    fn join(&mut self, target: Target, group: Group) {
        if self.members.len() >= MOST {
            tracing::error!("{target} is told nothing: there are {MOST} Alertmanagers already");
            return;
        }
        let found_by = match &group {
            Group::Alone(_) => String::new(),
            Group::Service(service) => format!(", by the Service {service}"),
        };
        let told = self.told.entry(group).or_default().clone();
        let (stay, leave) = oneshot::channel();
        let (board, metrics) = (self.board.clone(), self.metrics.clone());
        match Delivery::new(&self.config, &target, board, told, leave, metrics) {
            Ok(delivery) => {
                tracing::info!("alerts go to {target}{found_by}");
                drop(tokio::spawn(delivery.run()));
                self.members.insert(target, stay);
            }
            Err(error) => tracing::error!("alerts can't be sent to {target}: {error}"),
        }
    }
}

async fn gone(board: &mut watch::Receiver<Arc<Board>>) {
    while board.changed().await.is_ok() {}
}

/// Alertmanagers of one cluster are a few; a Service that leads to a thousand pods leads to something else.
const MOST: usize = 64;
