//! When do reports become a batch, and of what?
//!
//! News (a symptom, a counter of harm that rose, an observer that sees worse or better) leaves at once, and so does all
//! that comes in the half minute after it. Quiet reports are put together for 5 s; of what is cumulative the newest
//! reading stays.

use std::collections::BTreeMap;
use std::time::Duration;

use evidence::wire::{MAX_BYTES, MAX_ENTRIES, Parcel};
use evidence::{
    Batch, ClockReading, Counters, Coverage, CoverageState, DropClass, Observation, Observer, Place, Report,
};
use tokio::time::Instant;

/// Makes batches of one node's and part's reports.
#[derive(Debug)]
pub struct Gatherer {
    life: u64,
    boot_id: String,
    sequence: u64,
    pending: Option<(Report, Instant)>,
    /// Until then nothing waits.
    busy_until: Option<Instant>,
    counters: Option<Counters>,
    drops: BTreeMap<(Place, DropClass), u64>,
    sight: BTreeMap<(Observer, String), CoverageState>,
    /// Records that were lost with batches, not yet told.
    lost: u64,
}

impl Gatherer {
    /// Begins a life.
    pub fn new(boot_id: String) -> Self {
        Self {
            life: rand::random(),
            boot_id,
            sequence: 0,
            pending: None,
            busy_until: None,
            counters: None,
            drops: BTreeMap::new(),
            sight: BTreeMap::new(),
            lost: 0,
        }
    }

    /// Takes a report.
    pub fn take(&mut self, report: Report, now: Instant) {
        if self.is_news(&report) {
            self.busy_until = Some(now + BUSY);
        }
        match &mut self.pending {
            Some((pending, _)) => merge(pending, report),
            None => self.pending = Some((report, now)),
        }
    }

    /// Records were lost with a batch: the next one says so.
    pub fn lose(&mut self, records: u64) {
        self.lost = self.lost.saturating_add(records);
    }

    /// When the next batch is to leave; none while there is nothing.
    pub fn due(&self) -> Option<Instant> {
        let (report, since) = self.pending.as_ref()?;
        let waits = if report.observations.len() >= MAX_ENTRIES / 4 || self.busy_until >= Some(*since) {
            Duration::ZERO
        } else {
            QUIET
        };
        Some(*since + waits)
    }

    /// The batches of what has been gathered: one, unless that is larger than a reader takes.
    pub fn seal(&mut self) -> Vec<(Parcel, Vec<u8>)> {
        let Some((mut report, _)) = self.pending.take() else { return Vec::new() };
        // Told only where somebody says that it looked.
        let mut told = false;
        for line in &mut report.coverage {
            if let CoverageState::Looked { lost } = &mut line.state {
                *lost = lost.saturating_add(self.lost);
                told = true;
            }
        }
        if told {
            self.lost = 0;
        }
        let mut sealed = Vec::new();
        self.seal_into(report, &mut sealed);
        sealed
    }

    fn seal_into(&mut self, mut report: Report, sealed: &mut Vec<(Parcel, Vec<u8>)>) {
        let count = report.observations.len();
        let batch = Batch {
            node: report.node.clone(),
            role: report.role,
            boot_id: self.boot_id.clone(),
            sequence: self.sequence + 1,
            clock: ClockReading::now(),
            from: report.from,
            to: report.to,
            observations: std::mem::take(&mut report.observations),
            coverage: report.coverage.clone(),
        };
        let parcel = Parcel { life: self.life, batch };
        let bytes = parcel.to_bytes();
        if count > 1 && (count > MAX_ENTRIES / 2 || bytes.len() > MAX_BYTES) {
            let mut first = parcel.batch.observations;
            let second = first.split_off(count / 2);
            // Coverage goes with the last of them: until then not all is told.
            let coverage = std::mem::take(&mut report.coverage);
            self.seal_into(Report { observations: first, ..report.clone() }, sealed);
            self.seal_into(Report { observations: second, coverage, ..report }, sealed);
            return;
        }
        self.sequence += 1;
        sealed.push((parcel, bytes));
    }

    fn is_news(&mut self, report: &Report) -> bool {
        let mut news = false;
        for observation in &report.observations {
            news |= match observation {
                Observation::Attempt(_) | Observation::KernelDrop(_) => true,
                Observation::Lookup(lookup) => {
                    !lookup.outcome.is_answer() || lookup.ended.since(lookup.started) >= SLOW
                }
                Observation::Mapping(mapping) => mapping.renewed.is_some(),
                Observation::Counters(counters) => {
                    let harm = |c: &Counters| [c.insert_failed, c.drop, c.chain_toolong];
                    let before = self.counters.replace(counters.clone());
                    before.is_some_and(|before| harm(&before) != harm(counters))
                }
                Observation::DropTotals(totals) => {
                    if self.drops.len() >= MAX_ENTRIES {
                        self.drops.clear();
                    }
                    let before = self.drops.insert((totals.place.clone(), totals.class), totals.dns);
                    before.unwrap_or(0) < totals.dns
                }
                Observation::ServerSample(_) | Observation::Inventory(_) => false,
            };
        }
        for line in &report.coverage {
            if self.sight.len() >= MAX_ENTRIES {
                self.sight.clear();
            }
            let before = self.sight.insert((line.observer, line.place.clone()), line.state.clone());
            news |= before.as_ref() != Some(&line.state);
        }
        news
    }
}

/// What one report says and then the other.
fn merge(into: &mut Report, next: Report) {
    into.to = into.to.max(next.to);
    into.from = into.from.min(next.from);
    for observation in next.observations {
        let older = into.observations.iter_mut().find(|older| replaces(&observation, older));
        match older {
            Some(older) => *older = observation,
            None => into.observations.push(observation),
        }
    }
    for line in next.coverage {
        let older = into
            .coverage
            .iter_mut()
            .find(|older| older.observer == line.observer && older.place == line.place);
        match older {
            Some(older) => *older = join(older, line),
            None => into.coverage.push(line),
        }
    }
}

/// Whether the newer observation says all that the older one does.
fn replaces(newer: &Observation, older: &Observation) -> bool {
    match (newer, older) {
        (Observation::Counters(newer), Observation::Counters(older)) => newer.node == older.node,
        (Observation::DropTotals(newer), Observation::DropTotals(older)) => {
            newer.place == older.place && newer.class == older.class
        }
        _ => false,
    }
}

/// The newer state, with the losses of both.
fn join(older: &Coverage, mut newer: Coverage) -> Coverage {
    if let (CoverageState::Looked { lost: before }, CoverageState::Looked { lost }) =
        (&older.state, &mut newer.state)
    {
        *lost = lost.saturating_add(*before);
    }
    newer
}

/// What is lost with a batch: its observations, and one record at least.
pub fn records(batch: &Batch) -> u64 {
    u64::try_from(batch.observations.len().max(1)).unwrap_or(u64::MAX)
}

/// Losses that the batch tells of: all lines were lost the same records.
pub fn tells(batch: &Batch) -> u64 {
    let lost = batch.coverage.iter().map(|line| match line.state {
        CoverageState::Looked { lost } => lost,
        CoverageState::Denied { .. } | CoverageState::Unsupported { .. } => 0,
    });
    lost.max().unwrap_or(0)
}

/// Quiet nodes speak so often; three missed turns are silence to the correlator.
const QUIET: Duration = Duration::from_secs(5);
/// After news all leaves at once for so long: as long as a prober asks more often.
const BUSY: Duration = Duration::from_secs(30);
/// A lookup that takes longer is a symptom.
const SLOW: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use evidence::{BootTime, DropTotals, Role};

    use super::*;

    fn report(observations: Vec<Observation>, lost: u64) -> Report {
        Report {
            node: "a".into(),
            role: Role::Node,
            from: BootTime(1),
            to: BootTime(2),
            observations,
            coverage: vec![Coverage {
                observer: Observer::Drops,
                place: "a".into(),
                state: CoverageState::Looked { lost },
            }],
        }
    }

    fn counters(found: u64, insert_failed: u64) -> Observation {
        Observation::Counters(Counters { node: "a".into(), found, insert_failed, ..Counters::default() })
    }

    fn totals(place: u32, dns: u64) -> Observation {
        Observation::DropTotals(DropTotals {
            place: Place::Namespace(place),
            class: DropClass::Rule,
            all: dns,
            dns,
        })
    }

    /// Past the news that every beginning is.
    fn calm() -> (Gatherer, Instant) {
        let mut gatherer = Gatherer::new("b".into());
        let start = Instant::now();
        gatherer.take(report(vec![counters(0, 0)], 0), start);
        assert_eq!(gatherer.due(), Some(start));
        assert_eq!(gatherer.seal().len(), 1);
        (gatherer, start + BUSY + SLOW)
    }

    #[tokio::test]
    async fn quiet_reports_are_one_batch_with_the_newest_readings() {
        let (mut gatherer, now) = calm();
        for second in 0..5 {
            gatherer.take(report(vec![counters(second, 0)], 0), now + Duration::from_secs(second));
        }
        assert_eq!(gatherer.due(), Some(now + QUIET));
        let sealed = gatherer.seal();
        let [(parcel, _)] = sealed.as_slice() else { panic!("{sealed:?}") };
        assert_eq!(parcel.batch.sequence, 2);
        assert_eq!(parcel.batch.observations, [counters(4, 0)]);
        assert_eq!(parcel.batch.coverage.len(), 1);
        assert_eq!(gatherer.due(), None);
    }

    #[tokio::test]
    async fn news_leaves_at_once_with_what_waits_and_so_does_what_follows() {
        for (row, news) in [
            ("insert_failed rose", report(vec![counters(0, 1)], 0)),
            ("a dropped DNS packet", report(vec![totals(7, 1)], 0)),
            ("records lost", report(vec![], 3)),
        ] {
            let (mut gatherer, now) = calm();
            gatherer.take(report(vec![counters(0, 0), totals(7, 0)], 0), now);
            assert_eq!(gatherer.due(), Some(now + QUIET), "{row}");
            gatherer.take(news, now + SLOW);
            assert!(gatherer.due().unwrap() <= now + SLOW, "{row}");
            gatherer.seal();
            gatherer.take(report(vec![counters(1, 1)], 0), now + SLOW * 2);
            assert!(gatherer.due().unwrap() <= now + SLOW * 2, "{row}");
        }
    }

    #[tokio::test]
    async fn what_was_lost_is_told_by_the_next_batch_once() {
        let (mut gatherer, now) = calm();
        gatherer.lose(7);
        for expected in [7, 0] {
            gatherer.take(report(vec![], 0), now);
            let sealed = gatherer.seal();
            assert_eq!(sealed[0].0.batch.coverage[0].state, CoverageState::Looked { lost: expected });
        }
    }

    #[tokio::test]
    async fn more_than_a_reader_takes_becomes_several_batches() {
        let (mut gatherer, now) = calm();
        let many: Vec<Observation> = (0..).map(|place| totals(place, 0)).take(MAX_ENTRIES + 1).collect();
        gatherer.take(report(many, 0), now);
        let sealed = gatherer.seal();
        let sequences: Vec<u64> = sealed.iter().map(|(parcel, _)| parcel.batch.sequence).collect();
        assert_eq!(sequences, [2, 3, 4]);
        let count: usize = sealed.iter().map(|(parcel, _)| parcel.batch.observations.len()).sum();
        assert_eq!(count, MAX_ENTRIES + 1);
        let with_coverage = sealed.iter().filter(|(parcel, _)| !parcel.batch.coverage.is_empty());
        assert_eq!(with_coverage.count(), 1);
        for (parcel, bytes) in &sealed {
            assert_eq!(Parcel::from_bytes(bytes).unwrap().value, *parcel);
        }
    }
}
