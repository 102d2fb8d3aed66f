//! How does a vantage keep asking, whatever becomes of its lookups?
//!
//! A lookup starts when it is due, whether or not earlier ones have ended: a dead DNS keeps each waiting for
//! seconds, and that is when the next one matters most.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evidence::{Attempt, Inventory, Lookup, LookupId, NameKind, Observation, Report};
use netns::Namespace;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::Error;
use crate::config::Config;
use crate::diary::{Diary, Unread};
use crate::duty::{Candidates, Duty};
use crate::lookup::{Call, Finding, is_symptom, lookup};
use crate::pace::{Job, Pace};
use crate::profiles::Profile;

/// A place from which lookups are made.
#[derive(Debug, Clone)]
pub struct Vantage {
    /// Its name: what evidence and coverage carry.
    pub name: String,
    /// The node it stands on.
    pub node: String,
    /// The network it asks from.
    pub namespace: Namespace,
    /// What it counted since its start, for metrics.
    pub counts: Arc<Counts>,
}

/// What one vantage counted. All only ever rise.
#[derive(Debug, Default)]
pub struct Counts {
    /// Lookups started.
    pub started: AtomicU64,
    /// Lookups not started, because too many were under way.
    pub skipped: AtomicU64,
    /// Lookups that could not be tried.
    pub failed: AtomicU64,
    /// Packets too short or damaged.
    pub malformed: AtomicU64,
    /// Packets that nobody had asked for.
    pub foreign: AtomicU64,
    /// Symptoms lost between a lookup and its vantage.
    pub lost: AtomicU64,
}

impl Vantage {
    /// A vantage that has counted nothing yet.
    pub fn new(name: impl Into<String>, node: impl Into<String>, namespace: Namespace) -> Self {
        Self { name: name.into(), node: node.into(), namespace, counts: Arc::default() }
    }
}

/// Probes from all vantages until nobody reads `out`. Never waits for `out`: what finds no room there is
/// counted in the vantage's coverage.
pub async fn run(
    config: Config,
    vantages: Vec<Vantage>,
    inventory: watch::Receiver<Arc<Inventory>>,
    duty: watch::Receiver<Duty>,
    out: mpsc::Sender<Report>,
) {
    let config = Arc::new(config);
    let count = vantages.len();
    let all = Arc::new(Candidates::new(vantages.iter().map(|v| v.name.clone())));
    let ids = Arc::new(AtomicU64::new(1));
    let mut posts = JoinSet::new();
    for vantage in vantages {
        let post = Post::new(config.clone(), vantage, (all.clone(), count), ids.clone());
        posts.spawn(post.run(inventory.clone(), duty.clone(), out.clone()));
    }
    while posts.join_next().await.is_some() {}
}

/// One vantage at work.
struct Post {
    config: Arc<Config>,
    profiles: Vec<Profile>,
    vantage: Vantage,
    all: Arc<Candidates>,
    count: usize,
    ids: Arc<AtomicU64>,
    pace: Pace,
    diary: Diary,
    lookups: JoinSet<Result<Finding, Error>>,
    attempts: mpsc::Sender<Attempt>,
    inbox: mpsc::Receiver<Attempt>,
    lost_told: u64,
}

impl Post {
    fn new(
        config: Arc<Config>,
        vantage: Vantage,
        (all, count): (Arc<Candidates>, usize),
        ids: Arc<AtomicU64>,
    ) -> Self {
        let (attempts, inbox) = mpsc::channel(ATTEMPTS);
        Self {
            profiles: config.profiles.iter().map(|&name| name.into()).collect(),
            pace: Pace::new(&config, Instant::now()),
            diary: Diary::new(vantage.node.clone(), vantage.name.clone()),
            lookups: JoinSet::new(),
            config,
            vantage,
            all,
            count,
            ids,
            attempts,
            inbox,
            lost_told: 0,
        }
    }

    async fn run(
        mut self,
        mut inventory: watch::Receiver<Arc<Inventory>>,
        mut duty: watch::Receiver<Duty>,
        out: mpsc::Sender<Report>,
    ) {
        let (mut inventory_lives, mut duty_lives) = (true, true);
        self.aim(&inventory.borrow_and_update().clone(), &duty.borrow_and_update().clone());
        loop {
            let next = self.pace.next();
            tokio::select! {
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.start_due(),
                Some(attempt) = self.inbox.recv() => self.take_attempt(attempt),
                Some(ended) = self.lookups.join_next() => self.take_finding(ended),
                changed = inventory.changed(), if inventory_lives => match changed {
                    Ok(()) => self.aim(&inventory.borrow_and_update().clone(), &duty.borrow().clone()),
                    Err(_) => inventory_lives = false,
                },
                changed = duty.changed(), if duty_lives => match changed {
                    Ok(()) => self.aim(&inventory.borrow().clone(), &duty.borrow_and_update().clone()),
                    Err(_) => duty_lives = false,
                },
                () = sleep_until(self.diary.due()) => {
                    self.count_lost();
                    if self.diary.send(&out) == Err(Unread) {
                        return;
                    }
                }
                () = out.closed() => return,
            }
        }
    }

    /// Takes symptoms that lookups could not hand over into the diary's losses.
    fn count_lost(&mut self) {
        let lost = self.vantage.counts.lost.load(Ordering::Relaxed);
        self.diary.lose(lost.saturating_sub(self.lost_told));
        self.lost_told = lost;
    }

    fn aim(&mut self, inventory: &Inventory, duty: &Duty) {
        self.diary.unsupported = if self.profiles.is_empty() {
            Some("no profile is configured".to_owned())
        } else if inventory.service.addresses.is_empty() {
            Some("the DNS Service has no known address".to_owned())
        } else {
            None
        };
        let (name, node) = (self.vantage.name.as_str(), self.vantage.node.as_str());
        // One that was told to leave ends soon, and its silence then means nothing.
        let servers = inventory.endpoints.iter().filter(|server| {
            server.serving
                && !server.leaving
                && duty.direct.includes(server, name, node, &self.all, self.config.direct_from)
        });
        let servers: Vec<_> = servers.map(|server| server.address).collect();
        let now = Instant::now();
        self.pace.aim(inventory.service.addresses.clone(), &servers, now);
        #[expect(clippy::cast_precision_loss, reason = "a few vantages")]
        let share = f64::from(duty.extra_in_1000_s) / 1000.0 / self.count.max(1) as f64;
        self.pace.allow(share, now);
    }

    fn start_due(&mut self) {
        for job in self.pace.due(Instant::now()) {
            if self.lookups.len() >= self.config.in_flight {
                self.vantage.counts.skipped.fetch_add(1, Ordering::Relaxed);
                self.diary.lose(1);
            } else {
                self.start(job);
            }
        }
    }

    fn start(&mut self, job: Job) {
        let Some(profile) = self.profiles.get(job.profile).cloned() else { return };
        let names = &self.config.names;
        let name = match (job.name_kind, &names.forwarded) {
            (NameKind::Forwarded, Some(name)) => name.clone(),
            (NameKind::Forwarded, None) | (NameKind::Cluster, _) => names.cluster.clone(),
        };
        let id = LookupId(self.ids.fetch_add(1, Ordering::Relaxed));
        let answer_within = self.config.answer_within;
        let (vantage, attempts) = (self.vantage.clone(), self.attempts.clone());
        self.vantage.counts.started.fetch_add(1, Ordering::Relaxed);
        self.lookups.spawn(async move {
            let call = Call {
                id,
                vantage: &vantage.name,
                servers: &[job.server],
                role: job.role,
                name: &name,
                name_kind: job.name_kind,
                answer_within,
            };
            let tell = |attempt: Attempt| {
                if is_symptom(&attempt, answer_within) && attempts.try_send(attempt).is_err() {
                    vantage.counts.lost.fetch_add(1, Ordering::Relaxed);
                }
            };
            lookup(&profile, &vantage.namespace, &call, tell).await
        });
    }

    fn take_attempt(&mut self, attempt: Attempt) {
        self.pace.symptom(Instant::now());
        self.diary.note(Observation::Attempt(attempt), true);
    }

    fn take_finding(&mut self, ended: Result<Result<Finding, Error>, JoinError>) {
        let counts = &self.vantage.counts;
        match ended {
            Ok(Ok(finding)) => {
                self.diary.denied = None;
                counts.malformed.fetch_add(finding.ignored.malformed, Ordering::Relaxed);
                counts.foreign.fetch_add(finding.ignored.foreign, Ordering::Relaxed);
                let symptom = suffers(&finding.lookup, self.config.answer_within);
                if symptom {
                    self.pace.symptom(Instant::now());
                }
                self.diary.note(Observation::Lookup(finding.lookup), symptom);
            }
            Ok(Err(error)) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                self.diary.denied = Some(error.to_string());
            }
            Err(_) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                self.diary.lose(1);
            }
        }
    }
}

/// Whether the application got no answer, or waited for it.
fn suffers(lookup: &Lookup, answer_within: Duration) -> bool {
    !lookup.outcome.is_answer() || lookup.ended.since(lookup.started) >= answer_within
}

/// Attempts on their way from lookups to their vantage.
const ATTEMPTS: usize = 1_024;
