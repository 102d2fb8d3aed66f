//! Batches in, changes of incidents out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use evidence::{Attempt, Batch, ClockReading, Coverage, Observation, Observer, ServerRole, WallTime};

use crate::causes::{self, Cause, Judgement};
use crate::config::Config;
use crate::incident::{Confidence, Incident, Scope, Severity};
use crate::open::Open;
use crate::symptom::{Failure, Kind, Query, Symptom, TroubledLookup};
use crate::view::{Ended, View};

/// Joins evidence into incidents. Feed it batches and the time.
#[derive(Debug)]
pub struct Correlator {
    config: Config,
    view: View,
    /// Symptoms that wait for their cause.
    symptoms: VecDeque<Symptom>,
    /// Likely symptoms, too few yet to open an incident.
    waiting: BTreeMap<&'static str, VecDeque<(Symptom, Judgement)>>,
    open: BTreeMap<&'static str, Open>,
    /// What became of troubled lookups: by vantage and number.
    fates: Bounded<(String, u64), Fate>,
    counts: BTreeMap<(&'static str, Confidence), u64>,
    /// Symptoms and batches that did not fit into their caps.
    overflowed: u64,
    last_sequence: HashMap<(String, evidence::Role, String), u64>,
    lost_batches: u64,
    opened: u64,
}

/// What happened to an incident.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new one.
    Opened(Incident),
    /// Its figures, confidence or proof changed.
    Updated(Incident),
    /// It is over, or went on in a wider or graver one (`closed_into`).
    Closed(Incident),
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

#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    cause: Option<&'static str>,
    /// When it ended, and whether with an answer.
    ended: Option<(WallTime, bool)>,
}

/// A map that forgets its oldest entries.
#[derive(Debug)]
struct Bounded<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl Correlator {
    /// Starts with no evidence.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            view: View::default(),
            symptoms: VecDeque::new(),
            waiting: BTreeMap::new(),
            open: BTreeMap::new(),
            fates: Bounded { map: HashMap::new(), order: VecDeque::new() },
            counts: BTreeMap::new(),
            overflowed: 0,
            last_sequence: HashMap::new(),
            lost_batches: 0,
            opened: 0,
        }
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
        let mut changes = Vec::new();
        self.absolve_servers();
        self.attribute(&mut changes);
        self.open_due(&mut changes);
        self.close(&mut changes);
        self.refresh(&mut changes);
        without_passing(changes)
    }

    /// The incidents that are open, the gravest first.
    pub fn incidents(&self) -> Vec<Incident> {
        let mut incidents: Vec<Incident> = self.open.values().map(|open| open.incident.clone()).collect();
        incidents.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.since.cmp(&b.since)));
        incidents
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
        (self.overflowed, self.lost_batches)
    }

    /// Time goes on. Where the wall clock was set back, evidence from what is now the future is worth nothing.
    fn advance(&mut self, now: WallTime) {
        if now.plus(CLOCK_SLACK) < self.view.now {
            let inventory = std::mem::take(&mut self.view.inventory);
            let known = self.view.inventory_known;
            self.view = View::default();
            self.view.now = now;
            self.symptoms.clear();
            self.waiting.clear();
            if known {
                self.view.learn_inventory(now, inventory);
            }
            for open in self.open.values_mut() {
                open.last_symptom = open.last_symptom.min(now);
                open.refreshed = open.refreshed.min(now);
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
                let key = (totals.place.clone(), totals.class);
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
        let key = (attempt.vantage.clone(), attempt.lookup.0);
        if self.fates.map.get(&key).is_some_and(|fate| fate.cause.is_some()) {
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
        let key = (ended.lookup.vantage.clone(), ended.lookup.id.0);
        let answered = ended.lookup.outcome.is_answer();
        if let Some(fate) = self.fates.map.get_mut(&key) {
            fate.ended = Some((ended.ended, answered));
            let cause = fate.cause;
            if let Some(open) = cause.and_then(|cause| self.open.get_mut(cause)) {
                open.count_end(ended.ended, answered, ended.lookup.role);
            }
        } else if !answered || ended.ended.since(ended.started) >= Duration::from_secs(1) {
            self.fates.insert(key, Fate { cause: None, ended: Some((ended.ended, answered)) });
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

    fn attribute(&mut self, changes: &mut Vec<Change>) {
        let now = self.view.now;
        for mut symptom in std::mem::take(&mut self.symptoms) {
            let age = now.since(symptom.known);
            let claim = causes::judge(&symptom, &self.view);
            match claim {
                Some((cause, judgement))
                    if judgement.confidence == Confidence::Certain || age >= self.config.confirm_after =>
                {
                    if symptom.counted {
                        self.uncount();
                    }
                    self.take(cause, symptom, judgement, changes);
                }
                // Told already, counted only once no cause can come any more: a total never goes down.
                None if age >= self.config.confirm_after + CORROBORATION && !symptom.counted => {
                    symptom.counted = true;
                    self.take_unexplained(&symptom, changes);
                    self.symptoms.push_back(symptom);
                }
                Some(_) | None if age < REJUDGED_FOR => self.symptoms.push_back(symptom),
                Some(_) | None => {
                    *self.counts.entry((UNEXPLAINED, Confidence::Unexplained)).or_default() += 1;
                }
            }
        }
    }

    fn take_unexplained(&mut self, symptom: &Symptom, changes: &mut Vec<Change>) {
        let line = symptom_line(symptom, &self.view);
        let judgement = Judgement { confidence: Confidence::Unexplained, scope: None, line };
        if let Some(cause) = causes::by_id(UNEXPLAINED) {
            self.take(cause, symptom.clone(), judgement, changes);
        }
    }

    /// A symptom counted as unexplained has found its cause after all.
    fn uncount(&mut self) {
        if let Some(waiting) = self.waiting.get_mut(UNEXPLAINED) {
            waiting.pop_front();
        }
        if let Some(open) = self.open.get_mut(UNEXPLAINED) {
            open.retracted += 1;
            open.incident.suffers.troubled_lookups = open.incident.suffers.troubled_lookups.saturating_sub(1);
        }
    }

    /// A symptom gets its one cause.
    fn take(
        &mut self,
        cause: &'static Cause,
        symptom: Symptom,
        judgement: Judgement,
        changes: &mut Vec<Change>,
    ) {
        if judgement.confidence > Confidence::Unexplained {
            *self.counts.entry((cause.id, judgement.confidence)).or_default() += 1;
        }
        if let Some(lookup) = symptom.lookup() {
            self.fates.entry((lookup.vantage.clone(), lookup.id.0)).cause = Some(cause.id);
        }
        let fate = self.fate_of(&symptom);
        let Some(open) = self.open.get_mut(cause.id) else {
            return self.wait(cause, symptom, judgement);
        };
        open.fold(symptom, &judgement, fate, &self.view);
        let now = &open.incident.scope;
        let scope = judgement.scope.map_or_else(|| now.clone(), |scope| now.union(&scope));
        if scope != *now {
            self.supersede(cause.id, scope, None, changes);
        }
    }

    /// A symptom of a cause that has no open incident.
    fn wait(&mut self, cause: &'static Cause, symptom: Symptom, judgement: Judgement) {
        let horizon = self.view.now.minus(Duration::from_secs(30));
        let waiting = self.waiting.entry(cause.id).or_default();
        waiting.retain(|(symptom, _)| symptom.known >= horizon);
        if waiting.len() >= MOST_WAITING {
            self.overflowed += 1;
            return;
        }
        waiting.push_back((symptom, judgement));
    }

    /// Opens the incidents whose symptoms are proven for long enough, or likely and enough.
    fn open_due(&mut self, changes: &mut Vec<Change>) {
        let now = self.view.now;
        let enough = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let (likely, unexplained) =
            (enough(self.config.likely_symptoms), enough(self.config.unexplained_symptoms));
        let due = |waiting: &VecDeque<(Symptom, Judgement)>| {
            let first =
                |(symptom, _): &(Symptom, Judgement)| symptom.known.plus(self.config.open_after) <= now;
            match waiting.iter().map(|(_, judgement)| judgement.confidence).max() {
                Some(Confidence::Certain) => waiting.front().is_some_and(first),
                Some(Confidence::Likely) => waiting.len() >= likely,
                Some(Confidence::Unexplained) => waiting.len() >= unexplained,
                None => false,
            }
        };
        let causes: Vec<&'static str> =
            self.waiting.iter().filter(|(_, waiting)| due(waiting)).map(|(id, _)| *id).collect();
        for id in causes {
            if let (Some(cause), Some(group)) = (causes::by_id(id), self.waiting.remove(id)) {
                self.open_incident(cause, group, changes);
            }
        }
    }

    fn fate_of(&self, symptom: &Symptom) -> Option<(WallTime, bool)> {
        let lookup = symptom.lookup()?;
        self.fates.map.get(&(lookup.vantage.clone(), lookup.id.0))?.ended
    }

    fn open_incident(
        &mut self,
        cause: &'static Cause,
        group: VecDeque<(Symptom, Judgement)>,
        changes: &mut Vec<Change>,
    ) {
        let Some(since) = group.iter().map(|(symptom, _)| symptom.at).min() else { return };
        let scope = group
            .iter()
            .filter_map(|(_, judgement)| judgement.scope.clone())
            .reduce(|one, other| one.union(&other))
            .unwrap_or_default();
        self.opened += 1;
        let mut open = Open::new(cause, self.next_id(cause), scope, since, self.view.baseline(since));
        for (symptom, judgement) in group {
            let fate = self.fate_of(&symptom);
            open.fold(symptom, &judgement, fate, &self.view);
        }
        open.incident.severity = self.severity(&open);
        open.refresh(&self.view);
        changes.push(Change::Opened(open.incident.clone()));
        self.open.insert(cause.id, open);
    }

    /// The incident goes on under new labels: a wider scope, a graver severity.
    fn supersede(
        &mut self,
        cause: &'static str,
        scope: Scope,
        severity: Option<Severity>,
        changes: &mut Vec<Change>,
    ) {
        self.opened += 1;
        let Some(open) = self.open.get(cause) else { return };
        let id = self.next_id(open.cause);
        let severity = severity.unwrap_or(open.incident.severity);
        let now = self.view.now;
        let Some(open) = self.open.get_mut(cause) else { return };
        let mut old = open.incident.clone();
        old.until = Some(now);
        old.closed_into = Some(id.clone());
        changes.push(Change::Closed(old));
        open.incident.id = id;
        open.incident.scope = scope;
        open.incident.severity = severity;
        open.refresh(&self.view);
        changes.push(Change::Opened(open.incident.clone()));
    }

    fn next_id(&self, cause: &Cause) -> String {
        format!("{}-{:x}-{}", cause.id, self.view.now.0 / 1_000_000_000, self.opened)
    }

    fn close(&mut self, changes: &mut Vec<Change>) {
        let now = self.view.now;
        let over: Vec<&'static str> = self
            .open
            .iter()
            .filter(|(_, open)| {
                now.since(open.last_symptom) >= self.config.close_after || open.retracted >= open.folded
            })
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            if let Some(mut open) = self.open.remove(id) {
                open.incident.until = Some(open.last_symptom);
                changes.push(Change::Closed(open.incident));
            }
        }
    }

    fn refresh(&mut self, changes: &mut Vec<Change>) {
        let now = self.view.now;
        let graver: Vec<(&'static str, Severity)> = self
            .open
            .iter()
            // What ends badly after the fault is over makes nobody's night worse than it was.
            .filter(|(_, open)| now.since(open.last_symptom) < GRAVER_WITHIN)
            .map(|(id, open)| (*id, self.severity(open)))
            .filter(|(id, severity)| self.open.get(id).is_some_and(|open| *severity > open.incident.severity))
            .collect();
        for (id, severity) in graver {
            if let Some(scope) = self.open.get(id).map(|open| open.incident.scope.clone()) {
                self.supersede(id, scope, Some(severity), changes);
            }
        }
        for open in self.open.values_mut() {
            if now.since(open.refreshed) < Duration::from_secs(1) {
                continue;
            }
            let before = open.incident.clone();
            open.refresh(&self.view);
            if open.incident != before {
                changes.push(Change::Updated(open.incident.clone()));
            }
        }
    }

    /// Severity follows harm: lookups that ended without an answer, or a node that gets none at all.
    fn severity(&self, open: &Open) -> Severity {
        let suffers = &open.incident.suffers;
        if open.dropped_records + suffers.troubled_lookups + suffers.mappings == 0 {
            return Severity::Info;
        }
        let horizon = self.view.now.minus(Duration::from_secs(30));
        let failed = open.failed.iter().filter(|at| **at >= horizon).count();
        let all = self.view.service_lookups(open.incident.scope.node.as_deref()).max(failed);
        let enough = all >= usize::try_from(self.config.critical_lookups).unwrap_or(usize::MAX);
        #[expect(clippy::cast_precision_loss, reason = "counts of lookups in 30 s are far below 2^52")]
        let percent = if all == 0 { 0.0 } else { 100.0 * failed as f64 / all as f64 };
        let whole_node = open
            .by_node
            .iter()
            .any(|(node, (count, since))| *count >= WHOLE_NODE && !self.view.answered_since(node, *since));
        if (enough && percent >= self.config.critical_percent) || whole_node {
            Severity::Critical
        } else {
            Severity::Warning
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V: Default> Bounded<K, V> {
    fn entry(&mut self, key: K) -> &mut V {
        if !self.map.contains_key(&key) {
            self.insert(key.clone(), V::default());
        }
        self.map.entry(key).or_default()
    }

    fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key.clone(), value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > MOST_FATES
            && let Some(oldest) = self.order.pop_front()
        {
            self.map.remove(&oldest);
        }
    }
}

fn symptom_line(symptom: &Symptom, view: &View) -> String {
    match &symptom.kind {
        Kind::Lookup(_) => causes::lookup_line(symptom, view),
        Kind::Drop(dropped) => causes::drop_line(symptom.at, dropped.class.as_str(), dropped),
        Kind::Mapping(mapping) => format!("{} leads to {}", mapping.original, mapping.backend),
    }
}

/// Incidents that came and went on within one turn (a scope or severity that grew) were never seen by anyone.
fn without_passing(changes: Vec<Change>) -> Vec<Change> {
    let closed: Vec<String> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Closed(incident) => Some(incident.id.clone()),
            Change::Opened(_) | Change::Updated(_) => None,
        })
        .collect();
    let opened: Vec<String> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Opened(incident) => Some(incident.id.clone()),
            Change::Closed(_) | Change::Updated(_) => None,
        })
        .collect();
    let passing = |incident: &Incident| closed.contains(&incident.id) && opened.contains(&incident.id);
    changes
        .into_iter()
        .filter(|change| match change {
            Change::Opened(incident) | Change::Updated(incident) | Change::Closed(incident) => {
                !passing(incident)
            }
        })
        .collect()
}

/// Lookups of one node by the Service, none of them answered: the node fails wholly.
const WHOLE_NODE: u64 = 5;
const GRAVER_WITHIN: Duration = Duration::from_secs(5);
/// Silence needs a second witness: only then is a symptom told as unexplained.
const CORROBORATION: Duration = Duration::from_secs(4);
/// A symptom's proof may come late; after that it stays what it is.
const REJUDGED_FOR: Duration = Duration::from_secs(12);
const UNEXPLAINED: &str = "unexplained";
/// Batches of several threads come in with their times slightly out of order.
const CLOCK_SLACK: Duration = Duration::from_secs(5);
const MOST_SYMPTOMS: usize = 8192;
const MOST_WAITING: usize = 4096;
const MOST_FATES: usize = 8192;

#[cfg(test)]
mod tests;
