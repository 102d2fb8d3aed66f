//! Who is told now?
//!
//! The Alertmanagers of the configuration always, those that Services lead to as long as they are there. Each has a task
//! of its own. What people were told is remembered for each Service as a whole: the one pod that comes for another
//! is not told again of what began and ended before it came.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::board::Board;
use super::config::AlertmanagersConfig;
use super::delivery::{Delivery, Question};
use super::found::Found;
use super::target::Target;
use super::{Alert, Legacy, adopt};
use crate::metrics::Metrics;

/// All who are told.
#[derive(Debug)]
pub struct Crew {
    config: AlertmanagersConfig,
    board: watch::Receiver<Arc<Board>>,
    metrics: Metrics,
    past: Past,
    begun: Instant,
    /// A task ends when its sender is dropped.
    members: BTreeMap<Target, oneshot::Sender<()>>,
}

/// What was before this process, and who is to hear what Alertmanagers hold of it.
#[derive(Debug)]
pub struct Past {
    pub cluster: String,
    pub legacy: Legacy,
    pub holds: mpsc::Sender<Vec<Alert>>,
}

/// Those that share what people were told; as text the name of their book.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Group {
    /// By address: nothing is known of others.
    Alone(Target),
    /// By the Service's name.
    Service(String),
}

impl Crew {
    /// Nobody is told yet.
    pub fn new(
        config: AlertmanagersConfig,
        board: watch::Receiver<Arc<Board>>,
        past: Past,
        metrics: Metrics,
    ) -> Self {
        Self { config, board, metrics, past, begun: Instant::now(), members: BTreeMap::new() }
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
        let Past { cluster, legacy, holds } = &self.past;
        let told = legacy.ledger.of(&group.to_string());
        // One that comes later knows of the past what others have told already.
        let asks = legacy.asks && self.begun.elapsed() < ASKED_WITHIN;
        let path = || format!("{}{}", target.prefix, adopt::path(cluster));
        let question = asks.then(|| Question { path: path(), out: holds.clone() });
        let (stay, leave) = oneshot::channel();
        let (board, metrics) = (self.board.clone(), self.metrics.clone());
        match Delivery::new(&self.config, &target, board, told, leave, question, metrics) {
            Ok(delivery) => {
                tracing::info!("alerts go to {target}{found_by}");
                drop(tokio::spawn(delivery.run()));
                self.members.insert(target, stay);
            }
            Err(error) => tracing::error!("alerts can't be sent to {target}: {error}"),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone(target) => write!(f, "{}", target.address),
            Self::Service(service) => f.write_str(service),
        }
    }
}

async fn gone(board: &mut watch::Receiver<Arc<Board>>) {
    while board.changed().await.is_ok() {}
}

/// Alertmanagers of one cluster are a few; a Service that leads to a thousand pods leads to something else.
const MOST: usize = 64;
/// Services are found a moment after the start.
const ASKED_WITHIN: Duration = Duration::from_secs(60);
