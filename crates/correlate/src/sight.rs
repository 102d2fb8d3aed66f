//! Who looked where, and how well: what absence is worth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use evidence::{Coverage, CoverageState, Observer, WallTime};

use crate::snapshot::SavedBlind;

/// What observers last said of themselves.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    lines: BTreeMap<(Observer, String), Line>,
    /// The span in which somebody looks who would see symptoms: its beginning, and when one last said so.
    watched: Option<(WallTime, WallTime)>,
}

/// A coverage line and when it was last said.
#[derive(Debug, Clone)]
struct Line {
    coverage: Coverage,
    said: WallTime,
    /// It once looked: from then on silence is loss.
    looked_once: bool,
    /// When it last said that it lost records.
    lost_at: Option<WallTime>,
}

impl Sight {
    /// Takes what an observer says of itself.
    pub fn learn(&mut self, said: WallTime, coverage: &Coverage) {
        let key = (coverage.observer, coverage.place.clone());
        if self.lines.len() >= MOST_PLACES && !self.lines.contains_key(&key) {
            return;
        }
        let (looks, lost) = match coverage.state {
            CoverageState::Looked { lost } => (true, lost > 0),
            CoverageState::Denied { .. } | CoverageState::Unsupported { .. } => (false, false),
        };
        if looks && WITNESSES.contains(&coverage.observer) {
            let begin = self.watched.filter(|(_, last)| *last >= said.minus(STALE)).map(|(begin, _)| begin);
            self.watched = Some((begin.unwrap_or(said), said));
        }
        let line = self.lines.entry(key).or_insert_with(|| Line {
            coverage: coverage.clone(),
            said,
            looked_once: false,
            lost_at: None,
        });
        line.coverage = coverage.clone();
        line.said = line.said.max(said);
        line.looked_once |= looks;
        if lost {
            line.lost_at = Some(said);
        }
    }

    /// Servers that are no longer there are no gap.
    pub fn forget_servers(&mut self, but: &BTreeSet<String>) {
        self.lines
            .retain(|(observer, place), _| *observer != Observer::CorednsMetrics || but.contains(place));
    }

    /// A node that was seen to leave the cluster is no gap from then on.
    pub fn forget_left(&mut self, left: &BTreeSet<&str>) {
        self.lines
            .retain(|(observer, place), _| !OF_NODES.contains(observer) || !left.contains(node_of(place)));
    }

    /// A node that has left the cluster is no gap, once its last word is old. Observers are named after their node.
    pub fn forget_nodes(&mut self, but: &BTreeSet<&str>, now: WallTime) {
        if but.is_empty() {
            return;
        }
        let horizon = now.minus(FORGOTTEN);
        self.lines.retain(|(observer, place), line| {
            line.said >= horizon || !OF_NODES.contains(observer) || but.contains(node_of(place))
        });
    }

    /// Since when somebody has been looking who would see symptoms; nothing if nobody is.
    pub fn watched_since(&self, now: WallTime) -> Option<WallTime> {
        self.watched.filter(|(_, last)| *last >= now.minus(STALE)).map(|(begin, _)| begin)
    }

    /// Who is blind, to be told to the next process.
    pub fn save_blind(&self, now: WallTime) -> Vec<SavedBlind> {
        let blind = self.lines.values().filter(|line| line.looked_once);
        let blind = blind.filter(|line| line.gap(WallTime(i64::MAX), now).is_some());
        blind.map(|line| SavedBlind { coverage: line.coverage.clone(), said: line.said }).collect()
    }

    /// Takes over who was blind. One that has spoken already knows better.
    pub fn restore_blind(&mut self, blind: Vec<SavedBlind>) {
        for SavedBlind { coverage, said } in blind.into_iter().take(MOST_PLACES) {
            let key = (coverage.observer, coverage.place.clone());
            self.lines.entry(key).or_insert(Line { coverage, said, looked_once: true, lost_at: None });
        }
    }

    /// Whether an observer looked everywhere it is known, and lost nothing since then.
    pub fn looked(&self, observer: Observer, since: WallTime, now: WallTime) -> bool {
        let mut lines = self.of(observer).peekable();
        lines.peek().is_some() && lines.all(|line| line.gap(since, now).is_none())
    }

    /// What an observer could not see since then: place and why.
    pub fn gaps(&self, observer: Observer, since: WallTime, now: WallTime) -> Vec<(String, String)> {
        if self.of(observer).next().is_none() {
            return vec![("everywhere".into(), "it does not run".into())];
        }
        self.of(observer)
            .filter_map(|line| Some((line.coverage.place.clone(), line.gap(since, now)?)))
            .collect()
    }

    /// Observers that used to look and no longer do: who, where, why.
    pub fn blind(&self, now: WallTime) -> impl Iterator<Item = (Observer, &str, String)> {
        self.lines.values().filter(|line| line.looked_once).filter_map(move |line| {
            // Lost records are a gap, not blindness.
            let why = line.gap(WallTime(i64::MAX), now)?;
            Some((line.coverage.observer, line.coverage.place.as_str(), why))
        })
    }

    /// All lines as last said; one that has fallen silent says so.
    pub fn coverage(&self, now: WallTime) -> Vec<Coverage> {
        self.lines
            .values()
            .map(|line| {
                let mut coverage = line.coverage.clone();
                if line.is_silent(now) {
                    let why = format!("silent for {} s", now.since(line.said).as_secs());
                    coverage.state = CoverageState::Unsupported { why };
                }
                coverage
            })
            .collect()
    }

    fn of(&self, observer: Observer) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |((o, _), _)| *o == observer).map(|(_, line)| line)
    }
}

impl Line {
    fn gap(&self, since: WallTime, now: WallTime) -> Option<String> {
        match &self.coverage.state {
            CoverageState::Denied { missing } => Some(missing.clone()),
            CoverageState::Unsupported { why } => Some(why.clone()),
            CoverageState::Looked { .. } if self.is_silent(now) => {
                Some(format!("silent for {} s", now.since(self.said).as_secs()))
            }
            CoverageState::Looked { .. } if self.lost_at.is_some_and(|at| at >= since) => {
                Some("records were lost meanwhile".into())
            }
            CoverageState::Looked { .. } => None,
        }
    }

    fn is_silent(&self, now: WallTime) -> bool {
        self.said < now.minus(STALE)
    }
}

fn node_of(place: &str) -> &str {
    place.split('/').next().unwrap_or(place)
}

/// Observers speak every 5 s at least; two missed turns and time to spare are silence. With the turn that finds it and the
/// push lost evidence is told within 15 s.
const STALE: Duration = Duration::from_secs(13);
/// Those whose observations are symptoms.
const WITNESSES: [Observer; 3] = [Observer::Prober, Observer::Drops, Observer::ConntrackTable];
/// Those whose places are nodes, where nslookout runs in parts.
const OF_NODES: [Observer; 4] =
    [Observer::Prober, Observer::Drops, Observer::ConntrackTable, Observer::ConntrackCounters];
/// A node that is replaced under the same name comes back sooner.
const FORGOTTEN: Duration = Duration::from_secs(60);
const MOST_PLACES: usize = 4096;
