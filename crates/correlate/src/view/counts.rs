//! By how much did the kernel's own counts rise?

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use evidence::{Counters, DropClass, DropTotals, Place, WallTime};
use serde::{Deserialize, Serialize};

use super::{TotalsKey, View};

/// Counters and totals as they stood when an incident began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Baseline {
    counters: BTreeMap<String, Counters>,
    totals: BTreeMap<TotalsKey, (u64, u64)>,
    /// How they stood then is not known: they count from their first reading.
    pub is_late: bool,
}

/// A baseline in a form that JSON has room for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedBaseline {
    counters: BTreeMap<String, Counters>,
    totals: Vec<(TotalsKey, (u64, u64))>,
}

impl Baseline {
    /// Counters of these nodes alone: a verdict names no others.
    pub fn save(&self, nodes: &BTreeSet<String>) -> SavedBaseline {
        let counters = self.counters.iter().filter(|(node, _)| nodes.contains(*node));
        SavedBaseline {
            counters: counters.map(|(node, counters)| (node.clone(), counters.clone())).collect(),
            totals: self.totals.iter().map(|(key, total)| (key.clone(), *total)).collect(),
        }
    }

    /// Of a time of which nothing is known.
    pub fn late() -> Self {
        Self { is_late: true, ..Self::default() }
    }

    pub fn restore(saved: SavedBaseline) -> Self {
        Self { counters: saved.counters, totals: saved.totals.into_iter().collect(), is_late: false }
    }

    /// Takes the first readings of what it does not know.
    pub fn complete(&mut self, view: &View) {
        if !self.is_late {
            return;
        }
        for (node, readings) in &view.counters {
            if let Some((_, first)) = readings.front() {
                self.counters.entry(node.clone()).or_insert_with(|| first.clone());
            }
        }
        for (key, readings) in &view.totals {
            if let Some((_, first)) = readings.front() {
                self.totals.entry(key.clone()).or_insert((first.all, first.dns));
            }
        }
    }
}

impl View {
    /// The readings that were newest at that time, to count from.
    pub fn baseline(&self, since: WallTime) -> Baseline {
        let counters = self
            .counters
            .iter()
            .filter_map(|(node, readings)| Some((node.clone(), at(readings, since)?.clone())));
        // A class that was never counted before has no reading: it counts from zero.
        let totals = self.totals.iter().filter_map(|(key, readings)| {
            let (before, total) = readings.iter().rev().find(|(at, _)| *at <= since)?;
            (*before <= since).then(|| (key.clone(), (total.all, total.dns)))
        });
        Baseline { counters: counters.collect(), totals: totals.collect(), is_late: false }
    }

    /// The rise of one conntrack counter of a node since a baseline.
    pub fn counter_rise(&self, node: &str, base: &Baseline, of: fn(&Counters) -> u64) -> Option<u64> {
        Some(of(self.latest_counters(node)?).saturating_sub(of(base.counters.get(node)?)))
    }

    /// The rise of the helper's totals of a class on one node, or on all: (all protocols, DNS).
    pub fn total_rise(&self, node: Option<&str>, class: DropClass, base: &Baseline) -> (u64, u64) {
        let here = |place: &Place| match (node, place) {
            (None, _) => true,
            (Some(node), Place::Node(name)) => name == node,
            (Some(_), Place::Namespace(_)) => false,
        };
        let mut sum = (0, 0);
        for (key, readings) in self.totals.iter().filter(|((_, place, c), _)| *c == class && here(place)) {
            let (all, dns) = base.totals.get(key).copied().unwrap_or((0, 0));
            if let Some((_, now)) = readings.back() {
                sum.0 += now.all.saturating_sub(all);
                sum.1 += now.dns.saturating_sub(dns);
            }
        }
        sum
    }

    /// The node's newest counters.
    pub fn latest_counters(&self, node: &str) -> Option<&Counters> {
        self.counters.get(node)?.back().map(|(_, counters)| counters)
    }

    /// DNS packets of a class dropped in the last minute, by the kernel's totals.
    pub fn recent_drops(&self, class: DropClass) -> u64 {
        let rise = |readings: &VecDeque<(WallTime, DropTotals)>| {
            let (_, first) = readings.front()?;
            let (_, last) = readings.back()?;
            Some(last.dns.saturating_sub(first.dns))
        };
        let told = self.drops.iter().filter(|(_, dropped)| dropped.class == class).count();
        let counted: u64 = self
            .totals
            .iter()
            .filter(|((_, _, c), _)| *c == class)
            .filter_map(|(_, readings)| rise(readings))
            .sum();
        counted.max(u64::try_from(told).unwrap_or(u64::MAX))
    }
}

fn at<T>(readings: &VecDeque<(WallTime, T)>, since: WallTime) -> Option<&T> {
    readings
        .iter()
        .rev()
        .find(|(at, _)| *at <= since)
        .or_else(|| readings.front())
        .map(|(_, reading)| reading)
}
