//! Observers on one side, verdicts on the other: the same for `run` and `check`.
//!
//! Observers hand in reports over one bounded channel; here they are sealed into batches, counted and fed to
//! the correlator.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use correlate::{Change, Correlator};
use evidence::{
    Batch, BootTime, ClockReading, Coverage, CoverageState, Inventory, Lookup, Observation, Observer, Report,
    Role, ServerRole, WallTime,
};
use netns::Namespace;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::config::{Config, NodeConfig, VantageConfig};
use crate::status::{LookupCount, ProfileStatus, SCHEMA, Status, SymptomCount};

/// The observers at work, and what they make of it.
#[derive(Debug)]
pub struct Pipeline {
    correlator: Correlator,
    reports: mpsc::Receiver<Report>,
    sealer: Sealer,
    tick: Interval,
    profiles: BTreeMap<(String, String, bool), ProfileStatus>,
    lookups: usize,
    answered: usize,
}

/// What one step of the pipeline brought.
#[derive(Debug)]
pub enum Step {
    /// A batch of evidence.
    Batch(Box<Batch>),
    /// The correlator's turn, and what it changed.
    Changes(Vec<Change>),
}

impl Pipeline {
    /// Starts all observers that the configuration names, on the caller's runtime (a `LocalSet`). What can't be
    /// entered is told as evidence that is missing; the rest works.
    pub fn start(
        config: &Config,
        inventory: watch::Receiver<Arc<Inventory>>,
        out: mpsc::Sender<Report>,
        reports: mpsc::Receiver<Report>,
    ) -> Self {
        let mut refused = Vec::new();
        let mut nodes = Vec::new();
        for node in node_configs(config) {
            match open(node.netns.as_deref()) {
                Ok(namespace) => nodes.push(conntrack_watch::WatchedNode { name: node.name, namespace }),
                Err(error) => refused.extend(NODE_OBSERVERS.map(|o| denied(o, &node.name, &error))),
            }
        }
        let mut vantages = Vec::new();
        for vantage in vantage_configs(config) {
            match open(vantage.netns.as_deref()) {
                Ok(namespace) => {
                    vantages.push(prober::Vantage::new(vantage.name, vantage.node, namespace));
                }
                Err(error) => refused.push(denied(Observer::Prober, &vantage.name, &error)),
            }
        }
        tokio::task::spawn_local(prober::run(
            config.prober.clone(),
            vantages,
            inventory.clone(),
            out.clone(),
        ));
        tokio::task::spawn_local(conntrack_watch::run(
            config.conntrack_watch.clone(),
            nodes,
            inventory.clone(),
            out.clone(),
        ));
        match Namespace::current() {
            Ok(here) => {
                tokio::task::spawn_local(coredns_watch::run(
                    config.coredns_watch.clone(),
                    here,
                    inventory,
                    out.clone(),
                ));
            }
            Err(error) => refused.push(denied(Observer::CorednsMetrics, "everywhere", &error)),
        }
        if !refused.is_empty() {
            tokio::task::spawn_local(repeat(refused, out));
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            correlator: Correlator::new(config.correlate.clone()),
            reports,
            sealer: Sealer::new(),
            tick,
            profiles: BTreeMap::new(),
            lookups: 0,
            answered: 0,
        }
    }

    /// Waits for the next report or the next turn. Cancel-safe.
    pub async fn step(&mut self) -> Step {
        tokio::select! {
            biased;
            _ = self.tick.tick() => Step::Changes(self.correlator.tick(WallTime::now())),
            Some(report) = self.reports.recv() => {
                let batch = self.sealer.seal(report);
                self.correlator.observe(&batch, WallTime::now());
                for observation in &batch.observations {
                    if let Observation::Lookup(lookup) = observation {
                        self.note(lookup);
                    }
                }
                Step::Batch(Box::new(batch))
            }
        }
    }

    /// The correlator, to read.
    pub fn correlator(&self) -> &Correlator {
        &self.correlator
    }

    /// Lookups that ended so far, and how many of them with an answer.
    pub fn lookups(&self) -> (usize, usize) {
        (self.lookups, self.answered)
    }

    /// The state of DNS now.
    pub fn status(&self) -> Status {
        let incidents = self.correlator.incidents();
        let coverage = self.correlator.coverage();
        let lookups = LookupCount { made: self.lookups, answered: self.answered };
        Status {
            schema: SCHEMA.into(),
            state: Status::state_of(&incidents, &coverage, lookups),
            at: crate::alerts::rfc3339(WallTime::now()),
            incidents,
            lookups,
            profiles: self.profiles.values().cloned().collect(),
            coverage,
            symptoms: self
                .correlator
                .counts()
                .map(|(cause, confidence, count)| SymptomCount {
                    cause: cause.into(),
                    confidence: confidence.as_str().into(),
                    count,
                })
                .collect(),
        }
    }

    fn note(&mut self, lookup: &Lookup) {
        self.lookups = self.lookups.saturating_add(1);
        self.answered = self.answered.saturating_add(usize::from(lookup.outcome.is_answer()));
        // Vantages and profiles come from the configuration: their number is bounded.
        let key = (lookup.profile.clone(), lookup.vantage.clone(), lookup.role == ServerRole::Service);
        #[expect(clippy::cast_precision_loss, reason = "waits of seconds, shown with one digit")]
        let wait_ms = lookup.ended.since(lookup.started).as_nanos() as f64 / 1e6;
        self.profiles.insert(
            key,
            ProfileStatus {
                name: lookup.profile.clone(),
                vantage: lookup.vantage.clone(),
                lookup: format!("{} at {}", lookup.name, lookup.server),
                outcome: lookup.outcome.as_str().into(),
                wait_ms,
            },
        );
    }
}

/// Makes batches of reports: sequence, clocks, boot id.
#[derive(Debug)]
struct Sealer {
    boot_id: String,
    sequences: BTreeMap<(String, String), u64>,
}

impl Sealer {
    fn new() -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { boot_id: boot_id.trim().to_owned(), sequences: BTreeMap::new() }
    }

    fn seal(&mut self, report: Report) -> Batch {
        let sequence = self.sequences.entry((report.node.clone(), format!("{:?}", report.role))).or_default();
        *sequence += 1;
        Batch {
            sequence: *sequence,
            boot_id: self.boot_id.clone(),
            clock: ClockReading::now(),
            node: report.node,
            role: report.role,
            from: report.from,
            to: report.to,
            observations: report.observations,
            coverage: report.coverage,
        }
    }
}

/// The nodes of the configuration, or this machine.
fn node_configs(config: &Config) -> Vec<NodeConfig> {
    if config.nodes.is_empty() {
        vec![NodeConfig { name: this_node(), netns: None }]
    } else {
        config.nodes.clone()
    }
}

/// The vantages of the configuration, or this machine.
fn vantage_configs(config: &Config) -> Vec<VantageConfig> {
    if config.vantages.is_empty() {
        let node = node_configs(config).first().map_or_else(this_node, |node| node.name.clone());
        return vec![VantageConfig {
            name: this_node(),
            node,
            netns: None,
            network: crate::config::Network::Host,
        }];
    }
    config.vantages.clone()
}

/// This machine's name, by the kernel: never by asking DNS.
pub fn this_node() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "this-node".into())
}

fn open(path: Option<&Path>) -> Result<Namespace, netns::Error> {
    match path {
        Some(path) => Namespace::open(&PathBuf::from(path)),
        None => Namespace::current(),
    }
}

fn denied(observer: Observer, place: &str, error: &dyn std::fmt::Display) -> Coverage {
    Coverage { observer, place: place.into(), state: CoverageState::Denied { missing: error.to_string() } }
}

/// Says again and again what could not be entered, so that it never looks like silence.
async fn repeat(coverage: Vec<Coverage>, out: mpsc::Sender<Report>) {
    let mut turn = interval(Duration::from_secs(5));
    loop {
        turn.tick().await;
        let now = BootTime::now();
        let report = Report {
            node: this_node(),
            role: Role::Node,
            from: now,
            to: now,
            observations: Vec::new(),
            coverage: coverage.clone(),
        };
        if out.send(report).await.is_err() {
            return;
        }
    }
}

const NODE_OBSERVERS: [Observer; 3] =
    [Observer::ConntrackCounters, Observer::ConntrackTable, Observer::Drops];
/// Five decisions a second: a verdict waits 200 ms for its turn at most.
const TICK: Duration = Duration::from_millis(200);
/// Room for a burst: a thousand reports are more than a minute of a ten-node miniature.
pub const REPORTS: usize = 1024;
