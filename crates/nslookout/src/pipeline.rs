//! Observers on one side, verdicts on the other: the same for `run`, `check` and `correlator`.
//!
//! Observers of this process hand in reports over one bounded channel; here they are sealed into batches, counted and
//! fed to the correlator, together with the batches that agents have sealed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use correlate::{Change, Correlator, Snapshot};
use evidence::{Batch, ClockReading, Inventory, Lookup, Observation, Report, ServerRole, WallTime};
use prober::Duty;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::config::Config;
use crate::observers::{self, boot_id, node_configs, vantage_configs};
use crate::probes::{ProbeLoad, ProbeMeter};
use crate::status::{LookupCount, ProfileStatus, SCHEMA, Status, SymptomCount};

/// The observers at work, and what they make of it.
#[derive(Debug)]
pub struct Pipeline {
    correlator: Correlator,
    reports: mpsc::Receiver<Report>,
    batches: mpsc::Receiver<Batch>,
    sealer: Sealer,
    tick: Interval,
    profiles: BTreeMap<(String, String, bool), ProfileStatus>,
    meter: ProbeMeter,
    lookups: usize,
    answered: usize,
    begun: WallTime,
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
        // Nobody else probes.
        let (_, duty) = watch::channel(Duty::of_all(&config.prober));
        observers::prober(config, vantage_configs(config), inventory.clone(), duty, out.clone());
        observers::nodes(config, node_configs(config), inventory.clone(), out.clone());
        observers::servers(config, inventory, out);
        // Nobody sends over the wire.
        let (_, batches) = mpsc::channel(1);
        Self::of(config, reports, batches)
    }

    /// Of this process' own reports and of batches that were sealed elsewhere.
    pub fn of(config: &Config, reports: mpsc::Receiver<Report>, batches: mpsc::Receiver<Batch>) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            correlator: Correlator::new(config.correlate.clone()),
            reports,
            batches,
            sealer: Sealer::new(),
            tick,
            profiles: BTreeMap::new(),
            meter: ProbeMeter::new(config.prober.clone()),
            lookups: 0,
            answered: 0,
            begun: WallTime::now(),
        }
    }

    /// Waits for the next report or the next turn. Cancel-safe.
    pub async fn step(&mut self) -> Step {
        tokio::select! {
            biased;
            _ = self.tick.tick() => Step::Changes(self.correlator.tick(WallTime::now())),
            Some(report) = self.reports.recv() => {
                let batch = self.sealer.seal(report);
                self.take(batch)
            }
            Some(batch) = self.batches.recv() => self.take(batch),
        }
    }

    fn take(&mut self, batch: Batch) -> Step {
        let now = WallTime::now();
        self.correlator.observe(&batch, now);
        self.meter.take(&batch, Instant::now(), now);
        for observation in &batch.observations {
            if let Observation::Lookup(lookup) = observation {
                self.note(lookup);
            }
        }
        Step::Batch(Box::new(batch))
    }

    /// Goes on with the incidents of an earlier process.
    pub fn restore(&mut self, snapshot: Snapshot, now: WallTime) {
        self.correlator.restore(snapshot, now);
    }

    /// Agents that looked before come by and by.
    pub fn settle(&mut self, within: Duration) {
        self.correlator.settle(WallTime::now().plus(within));
    }

    /// The correlator, to read.
    pub fn correlator(&self) -> &Correlator {
        &self.correlator
    }

    /// Lookups that ended so far, and how many of them with an answer.
    pub fn lookups(&self) -> (usize, usize) {
        (self.lookups, self.answered)
    }

    /// What all probers ask, and may ask.
    pub fn probes(&mut self) -> ProbeLoad {
        self.meter.load(Instant::now())
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
            since: Some(crate::alerts::rfc3339(self.begun)),
            incidents,
            lookups,
            profiles: self.profiles.values().cloned().collect(),
            coverage,
            probes: None,
            symptoms: self
                .correlator
                .counts()
                .map(|(cause, confidence, count)| SymptomCount {
                    cause: cause.into(),
                    confidence: confidence.as_str().into(),
                    count,
                })
                .collect(),
            notes: Vec::new(),
        }
    }

    fn note(&mut self, lookup: &Lookup) {
        self.lookups = self.lookups.saturating_add(1);
        self.answered = self.answered.saturating_add(usize::from(lookup.outcome.is_answer()));
        let key = (lookup.profile.clone(), lookup.vantage.clone(), lookup.role == ServerRole::Service);
        // An agent names profiles and vantages as it likes.
        if self.profiles.len() >= MOST_PROFILES && !self.profiles.contains_key(&key) {
            return;
        }
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
        Self { boot_id: boot_id(), sequences: BTreeMap::new() }
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

/// Five decisions a second: a verdict waits 200 ms for its turn at most.
const TICK: Duration = Duration::from_millis(200);
/// Four for each of 10,000 nodes.
const MOST_PROFILES: usize = 40_000;
/// Room for a burst: a thousand reports are more than a minute of a ten-node miniature.
pub const REPORTS: usize = 1024;
