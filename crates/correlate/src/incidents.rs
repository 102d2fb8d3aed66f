//! When does an incident open, widen, grow graver and close?
//!
//! Symptoms come with their cause. Those of a cause without an open incident wait till they are proven for long enough,
//! or likely and enough. Whatever changes is kept until it is asked for, once a turn.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use evidence::{ServerRole, WallTime};

use crate::causes::{self, Cause, Judgement, UNEXPLAINED};
use crate::config::Config;
use crate::fates::Fates;
use crate::incident::{Confidence, Incident, Scope, Severity};
use crate::open::Open;
use crate::snapshot::Saved;
use crate::symptom::{Kind, Symptom};
use crate::view::View;

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

/// What decisions about incidents are made by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grounds<'a> {
    pub config: &'a Config,
    pub view: &'a View,
    pub fates: &'a Fates,
}

/// One incident at most for each cause, and the symptoms that may become one.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    /// Symptoms that have not yet opened an incident.
    waiting: BTreeMap<&'static str, VecDeque<(Symptom, Judgement)>>,
    open: BTreeMap<&'static str, Open>,
    opened: u64,
    /// Symptoms that did not fit in.
    pub overflowed: u64,
    changes: Vec<Change>,
}

impl Incidents {
    /// Those that are open, the gravest first.
    pub fn list(&self) -> Vec<Incident> {
        let mut incidents: Vec<Incident> = self.open.values().map(|open| open.incident.clone()).collect();
        incidents.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.since.cmp(&b.since)));
        incidents
    }

    /// A symptom has got its one cause.
    pub fn take(&mut self, cause: &'static Cause, symptom: Symptom, judgement: Judgement, grounds: Grounds) {
        let Some(open) = self.open.get_mut(cause.id) else {
            return self.wait(cause, symptom, judgement, grounds.view.now);
        };
        let fate = grounds.fates.end_of(&symptom);
        open.fold(symptom, &judgement, fate, grounds.view);
        let now = &open.incident.scope;
        let scope = judgement.scope.map_or_else(|| now.clone(), |scope| now.union(&scope));
        if scope != *now {
            self.supersede(cause.id, scope, None, grounds.view);
        }
    }

    /// A symptom counted as unexplained has found its cause after all.
    pub fn take_back_unexplained(&mut self) {
        if let Some(waiting) = self.waiting.get_mut(UNEXPLAINED) {
            waiting.pop_front();
        }
        if let Some(open) = self.open.get_mut(UNEXPLAINED) {
            open.retracted += 1;
            open.incident.suffers.troubled_lookups = open.incident.suffers.troubled_lookups.saturating_sub(1);
        }
    }

    /// A lookup of this cause has ended.
    pub fn count_end(&mut self, cause: &'static str, at: WallTime, answered: bool, role: ServerRole) {
        if let Some(open) = self.open.get_mut(cause) {
            open.count_end(at, answered, role);
        }
    }

    /// The wall clock was set back: what waited was of a time that is yet to come.
    pub fn set_back(&mut self, now: WallTime) {
        self.waiting.clear();
        for open in self.open.values_mut() {
            open.last_symptom = open.last_symptom.min(now);
            open.refreshed = open.refreshed.min(now);
        }
    }

    /// What the next process needs to go on.
    pub fn save(&self) -> (u64, Vec<Saved>) {
        (self.opened, self.open.values().map(Saved::of).collect())
    }

    /// Goes on with what an earlier process had open. What is open here already has begun then.
    pub fn restore(&mut self, opened: u64, incidents: Vec<Saved>, now: WallTime) {
        self.opened = self.opened.max(opened);
        for saved in incidents {
            let Some(mut open) = saved.open(now) else { continue };
            if let Some(present) = self.open.get_mut(open.cause.id) {
                present.incident.since = present.incident.since.min(open.incident.since);
                self.changes.push(Change::Updated(present.incident.clone()));
                continue;
            }
            open.last_symptom = open.last_symptom.min(now);
            self.changes.push(Change::Updated(open.incident.clone()));
            self.open.insert(open.cause.id, open);
        }
    }

    /// Opens, closes and refreshes what is due, and tells all that changed since the last turn.
    pub fn turn(&mut self, grounds: Grounds) -> Vec<Change> {
        self.open_due(grounds);
        self.close(grounds);
        self.refresh(grounds);
        without_passing(std::mem::take(&mut self.changes))
    }

    /// A symptom of a cause that has no open incident.
    fn wait(&mut self, cause: &'static Cause, symptom: Symptom, judgement: Judgement, now: WallTime) {
        let horizon = now.minus(Duration::from_secs(30));
        let waiting = self.waiting.entry(cause.id).or_default();
        waiting.retain(|(symptom, _)| symptom.known >= horizon);
        if waiting.len() >= MOST_WAITING {
            self.overflowed += 1;
            return;
        }
        waiting.push_back((symptom, judgement));
    }

    /// Opens the incidents whose symptoms are proven for long enough, or likely and enough.
    fn open_due(&mut self, grounds: Grounds) {
        let (now, config) = (grounds.view.now, grounds.config);
        let enough = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let (likely, unexplained) = (enough(config.likely_symptoms), enough(config.unexplained_symptoms));
        let due = |waiting: &VecDeque<(Symptom, Judgement)>| {
            if is_settling(waiting, grounds) {
                return false;
            }
            let first = |(symptom, _): &(Symptom, Judgement)| symptom.known.plus(config.open_after) <= now;
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
                self.open_incident(cause, group, grounds);
            }
        }
    }

    fn open_incident(
        &mut self,
        cause: &'static Cause,
        group: VecDeque<(Symptom, Judgement)>,
        grounds: Grounds,
    ) {
        let view = grounds.view;
        let Some(since) = group.iter().map(|(symptom, _)| symptom.at).min() else { return };
        let scope = group
            .iter()
            .filter_map(|(_, judgement)| judgement.scope.clone())
            .reduce(|one, other| one.union(&other))
            .unwrap_or_default();
        self.opened += 1;
        let mut open = Open::new(cause, self.next_id(cause, view.now), scope, since, view.baseline(since));
        for (symptom, judgement) in group {
            let fate = grounds.fates.end_of(&symptom);
            open.fold(symptom, &judgement, fate, view);
        }
        open.incident.severity = severity(&open, grounds);
        open.refresh(view);
        self.changes.push(Change::Opened(open.incident.clone()));
        self.open.insert(cause.id, open);
    }

    /// The incident goes on under new labels: a wider scope, a graver severity.
    fn supersede(&mut self, cause: &'static str, scope: Scope, severity: Option<Severity>, view: &View) {
        self.opened += 1;
        let Some(open) = self.open.get(cause) else { return };
        let id = self.next_id(open.cause, view.now);
        let severity = severity.unwrap_or(open.incident.severity);
        let Some(open) = self.open.get_mut(cause) else { return };
        let mut old = open.incident.clone();
        old.until = Some(view.now);
        old.closed_into = Some(id.clone());
        self.changes.push(Change::Closed(old));
        open.incident.id = id;
        open.incident.scope = scope;
        open.incident.severity = severity;
        open.refresh(view);
        self.changes.push(Change::Opened(open.incident.clone()));
    }

    fn next_id(&self, cause: &Cause, now: WallTime) -> String {
        format!("{}-{:x}-{}", cause.id, now.0 / 1_000_000_000, self.opened)
    }

    fn close(&mut self, grounds: Grounds) {
        let now = grounds.view.now;
        // While nobody looks, no symptom comes: that an incident is over would be a guess.
        let watched = grounds.view.sight.watched_since(now);
        let is_over = |open: &Open| {
            let Some(watched) = watched else { return false };
            let close_after = grounds.config.close_after;
            let after = open.restored.map_or(close_after, |_| close_after.max(TAKEN_OVER));
            let from = open.last_symptom.max(watched).max(open.restored.unwrap_or(WallTime(0)));
            now.since(from) >= after || open.retracted >= open.folded
        };
        let over: Vec<&'static str> =
            self.open.iter().filter(|(_, open)| is_over(open)).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(mut open) = self.open.remove(id) {
                open.incident.until = Some(open.last_symptom);
                self.changes.push(Change::Closed(open.incident));
            }
        }
    }

    fn refresh(&mut self, grounds: Grounds) {
        let now = grounds.view.now;
        let graver: Vec<(&'static str, Severity)> = self
            .open
            .iter()
            // What ends badly after the fault is over makes nobody's night worse than it was.
            .filter(|(_, open)| now.since(open.last_symptom) < GRAVER_WITHIN)
            .map(|(id, open)| (*id, severity(open, grounds)))
            .filter(|(id, severity)| self.open.get(id).is_some_and(|open| *severity > open.incident.severity))
            .collect();
        for (id, severity) in graver {
            if let Some(scope) = self.open.get(id).map(|open| open.incident.scope.clone()) {
                self.supersede(id, scope, Some(severity), grounds.view);
            }
        }
        for open in self.open.values_mut() {
            if now.since(open.refreshed) < Duration::from_secs(1) {
                continue;
            }
            let before = open.incident.clone();
            open.refresh(grounds.view);
            if open.incident != before {
                self.changes.push(Change::Updated(open.incident.clone()));
            }
        }
    }
}

/// A node whose lookups are all unanswered so far is about to fail wholly, which is graver: who is told now would be told
/// again in a moment.
fn is_settling(waiting: &VecDeque<(Symptom, Judgement)>, Grounds { config, view, .. }: Grounds) -> bool {
    let is_new = |(symptom, _): &(Symptom, Judgement)| {
        view.now.since(symptom.known) < config.open_after + SETTLES_WITHIN
    };
    if !waiting.front().is_some_and(is_new) {
        return false;
    }
    let mut by_node: BTreeMap<&str, (u64, WallTime)> = BTreeMap::new();
    for (symptom, _) in waiting {
        if matches!(&symptom.kind, Kind::Lookup(lookup) if lookup.role == ServerRole::Service) {
            by_node.entry(&symptom.node).or_insert((0, symptom.at)).0 += 1;
        }
    }
    by_node.retain(|node, (_, since)| !view.answered_since(node, *since));
    !by_node.is_empty() && !are_many(by_node.values().map(|(count, _)| *count))
}

/// Whether nodes of which none gets an answer fail wholly, by how many lookups each has tried. One that tried once may
/// get an answer at the next.
fn are_many(tries: impl Iterator<Item = u64>) -> bool {
    tries.filter(|count| *count > 1).sum::<u64>() >= WHOLE_NODE
}

/// Severity follows harm: lookups that ended without an answer, or a node that gets none at all.
fn severity(open: &Open, Grounds { config, view, .. }: Grounds) -> Severity {
    let suffers = &open.incident.suffers;
    if open.dropped_records + suffers.troubled_lookups + suffers.mappings == 0 {
        return Severity::Info;
    }
    let horizon = view.now.minus(Duration::from_secs(30));
    let failed = open.failed.iter().filter(|at| **at >= horizon).count();
    let all = view.service_lookups(open.incident.scope.node.as_deref()).max(failed);
    let enough = all >= usize::try_from(config.critical_lookups).unwrap_or(usize::MAX);
    #[expect(clippy::cast_precision_loss, reason = "counts of lookups in 30 s are far below 2^52")]
    let percent = if all == 0 { 0.0 } else { 100.0 * failed as f64 / all as f64 };
    let dead = open.by_node.iter().filter(|(node, (_, since))| !view.answered_since(node, *since));
    if (enough && percent >= config.critical_percent) || are_many(dead.map(|(_, (count, _))| *count)) {
        Severity::Critical
    } else {
        Severity::Warning
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

/// Lookups by the Service of nodes that get no answer at all.
const WHOLE_NODE: u64 = 5;
/// After a first symptom a node probes 5 times a second, within the cluster's ceiling.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);
const GRAVER_WITHIN: Duration = Duration::from_secs(5);
/// All agents find a correlator that began anew within this time: before, one that sees no symptom says little.
const TAKEN_OVER: Duration = Duration::from_secs(20);
const MOST_WAITING: usize = 4096;
