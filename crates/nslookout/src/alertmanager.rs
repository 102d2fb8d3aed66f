//! How do alerts reach every Alertmanager, whatever state it is in?
//!
//! `board.rs` keeps the present state of each label set, never a queue. For each Alertmanager one task pushes
//! that state by its v2 API: at once when an alert begins or ends, again and again while it fires or has just
//! ended (`delivery.rs`, `letter.rs`). A slow or dead one so keeps nobody waiting, and gets all when it is back.
//! Alertmanagers are named by address, or found by a Service's EndpointSlices (`crew.rs`): a name would have to be
//! resolved, and DNS is what is broken. When this process ends nothing is resolved: what fires runs out by its end unless
//! a successor goes on.

mod access;
mod adopt;
mod board;
mod config;
mod crew;
mod delivery;
mod found;
mod ledger;
mod letter;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;

use evidence::{Inventory, WallTime};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::config::{Alerting, Config};
use crate::kubernetes;
use crate::metrics::Metrics;
use crate::status::Note;
pub use adopt::incident;
use board::Board;
pub use config::{AlertmanagersConfig, BasicAuthConfig, ServiceConfig, ServicePort};
use crew::Crew;
pub(crate) use found::log;
pub use found::{Found, FoundOne};
pub use ledger::{Ledger, ToldAll};
pub use target::{Scheme, Target};

/// One alert in its present state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// Its identity: fixed for its life.
    pub labels: BTreeMap<String, String>,
    /// All that changes.
    pub annotations: BTreeMap<String, String>,
    /// When it began; never changes while it fires.
    pub starts_at: WallTime,
    /// When it ended, where it has.
    pub ends_at: Option<WallTime>,
}

/// Takes the present alerts and has them pushed. Once it is dropped the tasks end, and nothing is resolved.
#[derive(Debug)]
pub struct Pusher {
    board: watch::Sender<Arc<Board>>,
    known: Known,
    held: mpsc::Receiver<Vec<Alert>>,
}

/// What the API server says of Alertmanagers, where it is asked.
#[derive(Debug, Clone)]
pub struct Known {
    /// Those that Services lead to.
    pub found: watch::Receiver<Arc<Found>>,
    /// What their pods lack.
    pub pods: watch::Receiver<Vec<Note>>,
}

impl Known {
    /// Nothing is asked.
    pub fn nothing() -> Self {
        Self { found: watch::channel(Arc::default()).1, pods: watch::channel(Vec::new()).1 }
    }
}

/// What an earlier process has left.
#[derive(Debug, Clone, Default)]
pub struct Legacy {
    /// What Alertmanagers have taken.
    pub ledger: Ledger,
    /// Nothing else: they are asked what still fires.
    pub asks: bool,
}

impl Pusher {
    /// The present state of all alerts. One that was firing and is not among them is over now. Never waits.
    pub fn set(&self, alerts: Vec<Alert>) {
        let next = self.board.borrow().next(alerts, WallTime::now());
        if let Some(next) = next {
            self.board.send_replace(Arc::new(next));
        }
    }

    /// What keeps alerts from people, now or once DNS is down.
    pub fn notes(&self) -> Vec<Note> {
        let found = self.known.found.borrow();
        found.notes.iter().chain(self.known.pods.borrow().iter()).cloned().collect()
    }

    /// What an Alertmanager still holds of an earlier process, once for each of them; for ever where none is asked.
    /// Cancel-safe.
    pub async fn held(&mut self) -> Vec<Alert> {
        match self.held.recv().await {
            Some(alerts) => alerts,
            None => std::future::pending().await,
        }
    }
}

/// As the configuration has it: none where Prometheus sends alerts.
pub fn of(
    config: &Config,
    inventory: watch::Receiver<Arc<Inventory>>,
    legacy: Legacy,
    metrics: &Metrics,
) -> Option<Pusher> {
    match config.alerting {
        Alerting::Push => {
            let known = kubernetes::alertmanagers(config, inventory, metrics);
            Some(start(&config.alertmanagers, &config.cluster.name, known, legacy, metrics))
        }
        Alerting::Prometheus => None,
    }
}

/// Starts a task for each Alertmanager on the caller's runtime, and with them the watchdog alert. Addresses that
/// `mistakes` would name are left out.
pub fn start(
    config: &AlertmanagersConfig,
    cluster: &str,
    known: Known,
    legacy: Legacy,
    metrics: &Metrics,
) -> Pusher {
    let (holds, held) = mpsc::channel(MOST_ANSWERS);
    let (board, receiver) = watch::channel(Arc::new(Board::new(watchdog(cluster, WallTime::now()))));
    let past = crew::Past { cluster: cluster.to_owned(), legacy, holds };
    let crew = Crew::new(config.clone(), receiver, past, metrics.clone());
    tokio::spawn(crew.run(known.found.clone()));
    Pusher { board, known, held }
}

/// What is wrong with an address; goes on after the text itself.
pub(crate) fn address_problem(text: &str) -> Option<&'static str> {
    Target::parse(text).err()
}

/// What is wrong with a configuration whose Services nobody could look up.
pub(crate) use config::in_vain;

/// Fires as long as nslookout can push: an outside heartbeat tells when it no longer does.
fn watchdog(cluster: &str, now: WallTime) -> Alert {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    Alert {
        labels: pairs(&[("alertname", "NslookoutWatchdog"), ("severity", "none"), ("cluster", cluster)]),
        annotations: pairs(&[
            ("summary", "nslookout runs and reaches this Alertmanager"),
            (
                "description",
                "It always fires. Route it to an outside heartbeat that calls when it stops coming.",
            ),
        ]),
        starts_at: now,
        ends_at: None,
    }
}

/// Answers that wait while a verdict is being made.
const MOST_ANSWERS: usize = 16;
