//! Batches in, changes of incidents out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use evidence::{Attempt, Batch, ClockReading, Coverage, Observation, Observer, ServerRole, WallTime};

use crate::causes::{self, Cause, Judgement};
use crate::config::Config;
use crate::incident::{Confidence, Incident, Scope, Severity};
use crate::open::Open;
use crate::symptom::{Failure, Kind, Query, Symptom, TroubledLookup};
use crate::view::{Ended, STALE_COVERAGE, View};

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
        self.view.now = self.view.now.max(now);
        let sender = (batch.node.clone(), batch.role, batch.boot_id.clone());
        if let Some(last) = self.last_sequence.insert(sender, batch.sequence) {
            self.lost_batches += batch.sequence.saturating_sub(last.saturating_add(1));
        }
        for coverage in &batch.coverage {
            self.view.learn_coverage(now, coverage);
        }
        for observation in &batch.observations {
            self.learn(&batch.node, batch.clock, observation, now);
        }
    }

    /// Looks at what has come in and says what changed. Call it a few times a second.
    pub fn tick(&mut self, now: WallTime) -> Vec<Change> {
        self.view.now = self.view.now.max(now);
        self.view.forget();
        let mut changes = Vec::new();
        self.absolve_servers();
        self.attribute(&mut changes);
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
        self.view.coverage.values().map(|covered| covered.coverage.clone()).collect()
    }

    /// Observers that used to look and no longer do.
    pub fn blind(&self) -> Vec<Blind> {
        self.view
            .coverage
            .values()
            .filter(|covered| covered.looked_once)
            .filter_map(|covered| {
                let silent = covered.said < self.view.now.minus(STALE_COVERAGE);
                let why = match &covered.coverage.state {
                    evidence::CoverageState::Looked { .. } if silent => "it fell silent".to_owned(),
                    evidence::CoverageState::Looked { .. } => return None,
                    evidence::CoverageState::Denied { missing } => missing.clone(),
                    evidence::CoverageState::Unsupported { why } => why.clone(),
                };
                Some(Blind {
                    observer: covered.coverage.observer,
                    place: covered.coverage.place.clone(),
                    why,
                })
            })
            .collect()
    }

    /// Symptoms by cause and confidence since the start. Their sum and the waiting ones are all symptoms.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, Confidence, u64)> {
        self.counts.iter().map(|((cause, confidence), count)| (*cause, *confidence, *count))
    }

    /// Symptoms that found no room, and batches that never arrived.
    pub fn lost(&self) -> (u64, u64) {
        (self.overflowed, self.lost_batches)
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
                let at = clock.wall_of(mapping.at);
                self.view.mappings.insert((mapping.node.clone(), mapping.id), (at, mapping.clone()));
                let renewed = mapping.renewed.map(|renewed| clock.wall_of(renewed));
                let departed = self.view.departed(&mapping.backend);
                if let (Some(renewed), Some(departed)) = (renewed, departed)
                    && renewed >= departed.plus(self.config.stale_after)
                {
                    let kind = Kind::Mapping(mapping.clone());
                    self.push(Symptom {
                        at: renewed,
                        known: now,
                        node: node.to_owned(),
                        kind,
                        counted: false,
                    });
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
        self.view.learn_direct(at, &lookup);
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
                open.count_end(ended.ended, answered);
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
                view.absolve(lookup);
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
                None if age >= self.config.confirm_after + Duration::from_secs(1) && !symptom.counted => {
                    symptom.counted = true;
                    let judgement = Judgement {
                        confidence: Confidence::Unexplained,
                        scope: None,
                        line: symptom_line(&symptom, &self.view),
                    };
                    if let Some(unexplained) = causes::by_id("unexplained") {
                        self.take(unexplained, symptom.clone(), judgement, changes);
                    }
                    self.symptoms.push_back(symptom);
                }
                Some(_) | None if age < REJUDGED_FOR => self.symptoms.push_back(symptom),
                Some(_) | None => {}
            }
        }
    }

    /// A symptom counted as unexplained has found its cause after all.
    fn uncount(&mut self) {
        let key = ("unexplained", Confidence::Unexplained);
        if let Some(count) = self.counts.get_mut(&key) {
            *count = count.saturating_sub(1);
        }
        if let Some(waiting) = self.waiting.get_mut("unexplained") {
            waiting.pop_front();
        }
        if let Some(open) = self.open.get_mut("unexplained") {
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
        *self.counts.entry((cause.id, judgement.confidence)).or_default() += 1;
        if let Some(lookup) = symptom.lookup() {
            self.fates.entry((lookup.vantage.clone(), lookup.id.0)).cause = Some(cause.id);
        }
        let fate = self.fate_of(&symptom);
        let Some(open) = self.open.get_mut(cause.id) else {
            return self.wait(cause, symptom, judgement, changes);
        };
        open.fold(symptom, &judgement, fate, &self.view);
        let now = &open.incident.scope;
        let scope = judgement.scope.map_or_else(|| now.clone(), |scope| now.union(&scope));
        if scope != *now {
            self.supersede(cause.id, scope, None, changes);
        }
    }

    /// A symptom of a cause that has no open incident: opens one once there are enough of them.
    fn wait(
        &mut self,
        cause: &'static Cause,
        symptom: Symptom,
        judgement: Judgement,
        changes: &mut Vec<Change>,
    ) {
        let needed = match judgement.confidence {
            Confidence::Certain => 1,
            Confidence::Likely => self.config.likely_symptoms,
            Confidence::Unexplained => self.config.unexplained_symptoms,
        };
        let horizon = self.view.now.minus(Duration::from_secs(30));
        let waiting = self.waiting.entry(cause.id).or_default();
        waiting.retain(|(symptom, _)| symptom.known >= horizon);
        waiting.push_back((symptom, judgement));
        if waiting.len() >= usize::try_from(needed).unwrap_or(usize::MAX) {
            let group = std::mem::take(waiting);
            self.open_incident(cause, group, changes);
        } else if waiting.len() > MOST_WAITING {
            waiting.pop_front();
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
/// A symptom's proof may come late; after that it stays what it is.
const REJUDGED_FOR: Duration = Duration::from_secs(10);
const MOST_SYMPTOMS: usize = 8192;
const MOST_WAITING: usize = 256;
const MOST_FATES: usize = 8192;

#[cfg(test)]
mod tests {
    use evidence::{AttemptResult, BootTime, CoverageState, DropClass, LookupId, NameKind, QueryType, Role};

    use super::*;
    use crate::testing::{NOW, inventory, kernel_drop};

    struct Bench {
        correlator: Correlator,
        now: WallTime,
        sequence: u64,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench = Self { correlator: Correlator::new(Config::default()), now: NOW, sequence: 0 };
            bench.send(vec![Observation::Inventory(inventory(&["10.244.1.2:53", "10.244.2.3:53"]))], vec![]);
            bench
        }

        fn send(&mut self, observations: Vec<Observation>, coverage: Vec<Coverage>) {
            let batch = Batch {
                node: "node-a".into(),
                role: Role::Node,
                boot_id: "b".into(),
                sequence: self.sequence,
                clock: ClockReading { boot: BootTime(0), wall: self.now },
                from: BootTime(0),
                to: BootTime(0),
                observations,
                coverage,
            };
            self.sequence += 1;
            self.correlator.observe(&batch, self.now);
        }

        fn wait(&mut self, secs: u64) -> Vec<Change> {
            let mut changes = Vec::new();
            for _ in 0..secs * 5 {
                self.now = self.now.plus(Duration::from_millis(200));
                changes.extend(self.correlator.tick(self.now));
            }
            changes
        }

        fn silent(&mut self, id: u64, server: &str, role: ServerRole) {
            self.send(
                vec![Observation::Attempt(Attempt {
                    lookup: LookupId(id),
                    vantage: "pod-a".into(),
                    profile: "musl".into(),
                    server: server.parse().unwrap(),
                    role,
                    source: format!("10.244.1.9:{}", 20_000 + id).parse().unwrap(),
                    query_id: 1,
                    name: "n.".into(),
                    name_kind: NameKind::Cluster,
                    qtype: QueryType::A,
                    sent: BootTime(0),
                    result: AttemptResult::Unanswered { wait_ns: 1_000_000_000 },
                })],
                vec![],
            );
        }
    }

    fn looked(place: &str, lost: u64) -> Vec<Coverage> {
        Observer::ALL
            .into_iter()
            .map(|observer| Coverage { observer, place: place.into(), state: CoverageState::Looked { lost } })
            .collect()
    }

    fn dropped(node: &str) -> Observation {
        Observation::KernelDrop(kernel_drop(node, DropClass::InsertRace))
    }

    #[test]
    fn a_proof_opens_one_incident_at_once_and_further_ones_fold_into_it() {
        let mut bench = Bench::new();
        bench.send(vec![dropped("node-a"), dropped("node-a")], vec![]);
        assert!(matches!(bench.correlator.tick(bench.now).as_slice(), [Change::Opened(_)]));
        bench.wait(2);
        let incidents = bench.correlator.incidents();
        assert_eq!(incidents.len(), 1);
        let incident = &incidents[0];
        assert_eq!((incident.cause.as_str(), incident.confidence), ("insert-race", Confidence::Certain));
        assert_eq!(incident.suffers.dropped_packets, 2);
        assert_eq!(incident.suffers.clients, ["default/app (10.244.1.7)"]);
        assert_eq!(incident.severity, Severity::Warning, "a drop is a wait, not a failure");
    }

    #[test]
    fn the_same_cause_on_a_second_node_widens_into_a_new_incident() {
        let mut bench = Bench::new();
        bench.send(vec![dropped("node-a")], vec![]);
        bench.correlator.tick(bench.now);
        let first = bench.correlator.incidents()[0].clone();
        bench.send(vec![dropped("node-b")], vec![]);
        let changes = bench.correlator.tick(bench.now);
        let [Change::Closed(old), Change::Opened(wider), ..] = changes.as_slice() else {
            panic!("{changes:?}")
        };
        assert_eq!((&old.id, old.closed_into.as_ref()), (&first.id, Some(&wider.id)));
        assert_eq!(wider.scope, Scope::default());
        assert_eq!(wider.suffers.dropped_packets, 2);
        assert_eq!(bench.correlator.incidents().len(), 1);
    }

    #[test]
    fn an_incident_closes_after_its_last_symptom() {
        let mut bench = Bench::new();
        bench.send(vec![dropped("node-a")], vec![]);
        bench.wait(29);
        assert_eq!(bench.correlator.incidents().len(), 1);
        let changes = bench.wait(2);
        assert!(changes.iter().any(|change| matches!(change, Change::Closed(i) if i.until == Some(NOW))));
        assert!(bench.correlator.incidents().is_empty());
    }

    #[test]
    fn a_silent_server_is_named_once_the_wait_for_proof_is_over() {
        let mut bench = Bench::new();
        for id in 0..4 {
            bench.silent(id, "10.244.1.2:53", ServerRole::Direct);
        }
        bench.wait(1);
        assert!(bench.correlator.incidents().is_empty(), "a drop record may still come");
        bench.wait(2);
        let incident = &bench.correlator.incidents()[0];
        assert_eq!((incident.cause.as_str(), incident.confidence), ("server-silent", Confidence::Likely));
        assert_eq!(incident.scope.server.as_deref(), Some("10.244.1.2:53"));
    }

    #[test]
    fn few_symptoms_without_a_cause_are_counted_and_many_open_an_incident() {
        let mut bench = Bench::new();
        for id in 0..4 {
            bench.silent(id, "10.96.0.10:53", ServerRole::Service);
        }
        bench.wait(4);
        assert!(bench.correlator.incidents().is_empty());
        assert_eq!(
            bench.correlator.counts().collect::<Vec<_>>(),
            [("unexplained", Confidence::Unexplained, 4)]
        );
        for id in 4..9 {
            bench.silent(id, "10.96.0.10:53", ServerRole::Service);
        }
        bench.wait(4);
        assert_eq!(bench.correlator.incidents()[0].cause, "unexplained");
    }

    #[test]
    fn a_late_proof_takes_a_symptom_back_from_unexplained() {
        let mut bench = Bench::new();
        bench.silent(1, "10.96.0.10:53", ServerRole::Service);
        bench.wait(4);
        let mut late = kernel_drop("node-a", DropClass::InsertRace);
        late.packet.source = "10.244.1.9:20001".parse().unwrap();
        let sent = bench.now.minus(Duration::from_secs(4));
        let at = bench.now;
        bench.now = sent;
        bench.send(vec![Observation::KernelDrop(late)], vec![]);
        bench.now = at;
        bench.wait(1);
        let counts: BTreeMap<_, _> = bench.correlator.counts().map(|(cause, _, n)| (cause, n)).collect();
        assert_eq!(counts.get("unexplained"), Some(&0));
        assert_eq!(counts.get("insert-race"), Some(&2), "the drop and the lookup");
    }

    #[test]
    fn a_cause_is_ruled_out_only_where_its_observers_looked_and_lost_nothing() {
        let ruled_out = |coverage: Vec<Coverage>| {
            let mut bench = Bench::new();
            bench.send(vec![dropped("node-a")], coverage);
            bench.wait(2);
            let incident = bench.correlator.incidents().remove(0);
            let ids: Vec<String> = incident.ruled_out.into_iter().map(|r| r.cause).collect();
            (ids, incident.not_seen)
        };
        let (ids, not_seen) = ruled_out(looked("node-a", 0));
        assert!(ids.contains(&"policy-drop".to_owned()), "{ids:?}");
        assert!(not_seen.is_empty(), "{not_seen:?}");
        let (ids, not_seen) = ruled_out(looked("node-a", 3));
        assert!(ids.is_empty(), "{ids:?}");
        assert!(not_seen.iter().all(|gap| !gap.hides.is_empty()), "a gap that hides nothing is none");
        assert_eq!(not_seen.len(), Observer::ALL.len() - 1, "no cause needs CoreDNS's metrics");
        let (ids, not_seen) = ruled_out(vec![]);
        assert!(ids.is_empty(), "{ids:?}");
        assert!(not_seen.iter().all(|line| line.why == "it does not run"));
    }

    #[test]
    fn an_observer_that_falls_silent_makes_blind_and_one_that_never_looked_does_not() {
        let mut bench = Bench::new();
        let denied = Coverage {
            observer: Observer::Drops,
            place: "node-b".into(),
            state: CoverageState::Denied { missing: "CAP_BPF".into() },
        };
        let mut coverage = looked("node-a", 0);
        coverage.push(denied);
        bench.send(vec![], coverage);
        assert!(bench.correlator.blind().is_empty());
        bench.wait(16);
        assert_eq!(bench.correlator.blind().len(), Observer::ALL.len());
    }

    #[test]
    fn attributed_and_unexplained_add_up_to_all_symptoms() {
        let mut bench = Bench::new();
        for id in 0..7 {
            bench.silent(id, "10.96.0.10:53", ServerRole::Service);
        }
        bench.send(vec![dropped("node-a"), dropped("node-a")], vec![]);
        bench.wait(15);
        assert_eq!(bench.correlator.counts().map(|(_, _, n)| n).sum::<u64>(), 9);
    }
}
