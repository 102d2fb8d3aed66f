//! Batches in, changes of incidents out: what comes in becomes symptoms, and each symptom gets its cause.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use evidence::{Attempt, Batch, ClockReading, Coverage, Observation, Observer, ServerRole, WallTime};

use crate::causes::{self, Cause, Judgement, UNEXPLAINED};
use crate::config::Config;
use crate::fates::Fates;
use crate::incident::{Confidence, Incident};
use crate::incidents::{Change, Grounds, Incidents};
use crate::snapshot::Snapshot;
use crate::symptom::{Failure, Kind, Query, Symptom, TroubledLookup};
use crate::view::{Ended, View};

/// Joins evidence into incidents. Feed it batches and the time.
#[derive(Debug)]
pub struct Correlator {
    config: Config,
    view: View,
    /// Symptoms that wait for their cause.
    symptoms: VecDeque<Symptom>,
    incidents: Incidents,
    fates: Fates,
    counts: BTreeMap<(&'static str, Confidence), u64>,
    /// Symptoms that did not fit in.
    overflowed: u64,
    last_sequence: HashMap<(String, evidence::Role, String), u64>,
    lost_batches: u64,
    /// Until then a proof may still be on its way from an observer that has not spoken yet.
    settled: WallTime,
}

/// An observer that used to look, and no longer does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Blind {
    /// Who.
    pub observer: Observer,
    /// Where.
    pub place: String,
    /// Why.
    pub why: String,
}

impl Correlator {
    /// Starts with no evidence.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            view: View::default(),
            symptoms: VecDeque::new(),
            incidents: Incidents::default(),
            fates: Fates::default(),
            counts: BTreeMap::new(),
            overflowed: 0,
            last_sequence: HashMap::new(),
            lost_batches: 0,
            settled: WallTime(0),
        }
    }

    /// Senders find this process only by and by: until then circumstance proves nothing.
    pub fn settle(&mut self, until: WallTime) {
        self.settled = until;
    }

    /// Takes a batch. `now` is the caller's time: when the batch became known.
    pub fn observe(&mut self, batch: &Batch, now: WallTime) {
        self.advance(now);
        let sender = (batch.node.clone(), batch.role, batch.boot_id.clone());
        if let Some(last) = self.last_sequence.insert(sender, batch.sequence) {
            self.lost_batches += batch.sequence.saturating_sub(last.saturating_add(1));
        }
        for coverage in &batch.coverage {
            self.view.sight.learn(now, coverage);
        }
        for observation in &batch.observations {
            self.learn(&batch.node, batch.clock, observation, now);
        }
    }

    /// Looks at what has come in and says what changed. Call it a few times a second.
    pub fn tick(&mut self, now: WallTime) -> Vec<Change> {
        self.advance(now);
        self.view.forget();
        self.absolve_servers();
        self.attribute();
        let grounds = Grounds { config: &self.config, view: &self.view, fates: &self.fates };
        self.incidents.turn(grounds)
    }

    /// What the next process needs for the open incidents to go on.
    pub fn snapshot(&self) -> Snapshot {
        let (opened, incidents) = self.incidents.save();
        Snapshot { opened, incidents, blind: self.view.sight.save_blind(self.view.now) }
    }

    /// Goes on with the incidents of an earlier process, since when they began. The next turn tells them as updated; one
    /// of which no symptom is seen closes.
    pub fn restore(&mut self, snapshot: Snapshot, now: WallTime) {
        self.advance(now);
        self.view.sight.restore_blind(snapshot.blind);
        self.incidents.restore(snapshot.opened, snapshot.incidents, self.view.now);
    }

    /// The incidents that are open, the gravest first.
    pub fn incidents(&self) -> Vec<Incident> {
        self.incidents.list()
    }

    /// Who looks where, as last said.
    pub fn coverage(&self) -> Vec<Coverage> {
        self.view.sight.coverage(self.view.now)
    }

    /// Observers that used to look and no longer do.
    pub fn blind(&self) -> Vec<Blind> {
        let blind = self.view.sight.blind(self.view.now);
        blind.map(|(observer, place, why)| Blind { observer, place: place.to_owned(), why }).collect()
    }

    /// Symptoms by cause and confidence since the start. Their sum and the waiting ones are all symptoms.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, Confidence, u64)> {
        self.counts.iter().map(|((cause, confidence), count)| (*cause, *confidence, *count))
    }

    /// Symptoms that found no room, and batches that never arrived.
    pub fn lost(&self) -> (u64, u64) {
        (self.overflowed + self.incidents.overflowed, self.lost_batches)
    }

    /// Time goes on. Where the wall clock was set back, evidence from what is now the future is worth nothing.
    fn advance(&mut self, now: WallTime) {
        if now.plus(CLOCK_SLACK) < self.view.now {
            let inventory = std::mem::take(&mut self.view.inventory);
            let known = self.view.inventory_known;
            self.view = View::default();
            self.view.now = now;
            self.symptoms.clear();
            self.incidents.set_back(now);
            if known {
                self.view.learn_inventory(now, inventory);
            }
        }
        self.view.now = self.view.now.max(now);
    }

    fn learn(&mut self, node: &str, clock: ClockReading, observation: &Observation, now: WallTime) {
        match observation {
            Observation::Attempt(attempt) => self.learn_attempt(node, clock, attempt, now),
            Observation::Lookup(lookup) => {
                let ended = Ended {
                    node: node.to_owned(),
                    started: clock.wall_of(lookup.started),
                    ended: clock.wall_of(lookup.ended),
                    lookup: lookup.clone(),
                };
                self.learn_end(ended);
            }
            Observation::KernelDrop(dropped) => {
                let at = clock.wall_of(dropped.at);
                self.view.drops.push_back((at, dropped.clone()));
                self.push(Symptom {
                    at,
                    known: now,
                    node: node.to_owned(),
                    kind: Kind::Drop(dropped.clone()),
                    counted: false,
                });
            }
            Observation::DropTotals(totals) => {
                let key = (node.to_owned(), totals.place.clone(), totals.class);
                self.view.totals.entry(key).or_default().push_back((now, totals.clone()));
            }
            Observation::Counters(counters) => {
                let at = clock.wall_of(counters.at);
                self.view
                    .counters
                    .entry(counters.node.clone())
                    .or_default()
                    .push_back((at, counters.clone()));
            }
            Observation::Mapping(mapping) => {
                let renewed = mapping.renewed.map(|renewed| clock.wall_of(renewed));
                let at = clock.wall_of(mapping.at);
                if let Some(at) = self.view.learn_mapping(at, renewed, mapping, self.config.stale_after) {
                    let kind = Kind::Mapping(mapping.clone());
                    self.push(Symptom { at, known: now, node: node.to_owned(), kind, counted: false });
                }
            }
            Observation::ServerSample(sample) => {
                let at = clock.wall_of(sample.at);
                self.view.samples.entry(sample.server).or_default().push_back((at, sample.clone()));
            }
            Observation::Inventory(inventory) => self.view.learn_inventory(now, inventory.clone()),
        }
    }

    fn learn_attempt(&mut self, node: &str, clock: ClockReading, attempt: &Attempt, now: WallTime) {
        let Some(failure) = Failure::of(attempt) else { return };
        let at = clock.wall_of(attempt.sent);
        let query =
            Query { source: attempt.source, id: attempt.query_id, name: attempt.name.clone(), sent: at };
        let known = self.symptoms.iter_mut().find_map(|symptom| match &mut symptom.kind {
            Kind::Lookup(lookup) if lookup.id == attempt.lookup && lookup.vantage == attempt.vantage => {
                Some(lookup)
            }
            Kind::Lookup(_) | Kind::Drop(_) | Kind::Mapping(_) => None,
        });
        if let Some(lookup) = known {
            lookup.queries.push(query);
            return;
        }
        if self.fates.has_cause(&attempt.vantage, attempt.lookup.0) {
            return;
        }
        let lookup = TroubledLookup {
            id: attempt.lookup,
            vantage: attempt.vantage.clone(),
            profile: attempt.profile.clone(),
            server: attempt.server,
            role: attempt.role,
            name_kind: attempt.name_kind,
            failure,
            queries: vec![query],
        };
        self.view.direct.learn_trouble(at, &lookup);
        self.push(Symptom {
            at,
            known: now,
            node: node.to_owned(),
            kind: Kind::Lookup(lookup),
            counted: false,
        });
    }

    fn learn_end(&mut self, ended: Ended) {
        let answered = ended.lookup.outcome.is_answer();
        let troubled = !answered || ended.ended.since(ended.started) >= Duration::from_secs(1);
        if let Some(cause) = self.fates.end(&ended, answered, troubled) {
            self.incidents.count_end(cause, ended.ended, answered, ended.lookup.role);
        }
        self.view.learn_ended(ended);
    }

    fn push(&mut self, symptom: Symptom) {
        if self.symptoms.len() >= MOST_SYMPTOMS {
            self.symptoms.pop_front();
            self.overflowed += 1;
        }
        self.symptoms.push_back(symptom);
    }

    /// A lookup whose packet a drop killed says nothing against its server.
    fn absolve_servers(&mut self) {
        let view = &mut self.view;
        for lookup in
            self.symptoms.iter().filter_map(Symptom::lookup).filter(|l| l.role == ServerRole::Direct)
        {
            if view.drop_of(&lookup.queries).is_some() {
                view.direct.absolve(lookup);
            }
        }
    }

    fn attribute(&mut self) {
        let now = self.view.now;
        for mut symptom in std::mem::take(&mut self.symptoms) {
            let age = now.since(symptom.known);
            let settled = now >= self.settled;
            let claim = causes::judge(&symptom, &self.view);
            match claim {
                Some((cause, judgement))
                    if judgement.confidence == Confidence::Certain
                        || (settled && age >= self.config.confirm_after) =>
                {
                    if symptom.counted {
                        self.incidents.take_back_unexplained();
                    }
                    self.take(cause, symptom, judgement);
                }
                // Told already, counted only once no cause can come any more: a total never goes down.
                None if settled && age >= self.config.confirm_after + CORROBORATION && !symptom.counted => {
                    symptom.counted = true;
                    self.take_unexplained(&symptom);
                    self.symptoms.push_back(symptom);
                }
                Some(_) | None if age < REJUDGED_FOR || !settled => self.symptoms.push_back(symptom),
                Some(_) | None => {
                    *self.counts.entry((UNEXPLAINED, Confidence::Unexplained)).or_default() += 1;
                }
            }
        }
    }

    fn take_unexplained(&mut self, symptom: &Symptom) {
        let line = symptom_line(symptom, &self.view);
        let judgement = Judgement { confidence: Confidence::Unexplained, scope: None, line };
        if let Some(cause) = causes::by_id(UNEXPLAINED) {
            self.take(cause, symptom.clone(), judgement);
        }
    }

    /// A symptom gets its one cause.
    fn take(&mut self, cause: &'static Cause, symptom: Symptom, judgement: Judgement) {
        if judgement.confidence > Confidence::Unexplained {
            *self.counts.entry((cause.id, judgement.confidence)).or_default() += 1;
        }
        if let Some(lookup) = symptom.lookup() {
            self.fates.set_cause(lookup, cause.id);
        }
        let grounds = Grounds { config: &self.config, view: &self.view, fates: &self.fates };
        self.incidents.take(cause, symptom, judgement, grounds);
    }
}

fn symptom_line(symptom: &Symptom, view: &View) -> String {
    match &symptom.kind {
        Kind::Lookup(_) => causes::lookup_line(symptom, view),
        Kind::Drop(dropped) => causes::drop_line(symptom.at, dropped.class.as_str(), dropped),
        Kind::Mapping(mapping) => format!("{} leads to {}", mapping.original, mapping.backend),
    }
}

/// Silence needs a second witness: only then is a symptom told as unexplained.
const CORROBORATION: Duration = Duration::from_secs(4);
/// A symptom's proof may come late; after that it stays what it is.
const REJUDGED_FOR: Duration = Duration::from_secs(12);
/// Batches of several threads come in with their times slightly out of order.
const CLOCK_SLACK: Duration = Duration::from_secs(5);
const MOST_SYMPTOMS: usize = 8192;

#[cfg(test)]
mod tests;
