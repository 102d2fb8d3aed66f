//! When does what a vantage saw leave, and what does it say of its own losses?

use std::time::Duration;

use evidence::{BootTime, Coverage, CoverageState, Observation, Observer, Report, Role};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

/// What one vantage saw since its last report.
#[derive(Debug)]
pub(crate) struct Diary {
    node: String,
    vantage: String,
    from: BootTime,
    observations: Vec<Observation>,
    last: Instant,
    urgent_since: Option<Instant>,
    lost: u64,
    /// Why no lookup can be tried, as of the last one.
    pub(crate) denied: Option<String>,
    /// Why there is nothing to ask.
    pub(crate) unsupported: Option<String>,
}

/// Nobody reads reports any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unread;

impl Diary {
    pub(crate) fn new(node: String, vantage: String) -> Self {
        Self {
            node,
            vantage,
            from: BootTime::now(),
            observations: Vec::new(),
            last: Instant::now(),
            urgent_since: None,
            lost: 0,
            denied: None,
            unsupported: None,
        }
    }

    /// Writes down one thing seen. A symptom leaves at once, with what comes in the next instant.
    pub(crate) fn note(&mut self, observation: Observation, symptom: bool) {
        if self.observations.len() >= MOST {
            self.lost += 1;
            return;
        }
        self.observations.push(observation);
        if symptom {
            self.urgent_since.get_or_insert_with(Instant::now);
        }
    }

    /// Writes down that things were missed.
    pub(crate) fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// When the next report is due.
    pub(crate) fn due(&self) -> Instant {
        let ordinary = self.last + if self.observations.is_empty() { IDLE } else { ORDINARY };
        self.urgent_since.map_or(ordinary, |since| ordinary.min(since + URGENT))
    }

    /// Sends the report if there is room. What finds no room is lost and counted in the next report.
    pub(crate) fn send(&mut self, out: &Sender<Report>) -> Result<(), Unread> {
        let to = BootTime::now();
        let report = Report {
            node: self.node.clone(),
            role: Role::Prober,
            from: self.from,
            to,
            observations: std::mem::take(&mut self.observations),
            coverage: vec![Coverage {
                observer: Observer::Prober,
                place: self.vantage.clone(),
                state: self.state(),
            }],
        };
        self.last = Instant::now();
        self.urgent_since = None;
        match out.try_send(report) {
            Ok(()) => {
                self.from = to;
                self.lost = 0;
                Ok(())
            }
            Err(TrySendError::Full(report)) => {
                self.lost += u64::try_from(report.observations.len()).unwrap_or(u64::MAX);
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(Unread),
        }
    }

    fn state(&self) -> CoverageState {
        if let Some(missing) = &self.denied {
            CoverageState::Denied { missing: missing.clone() }
        } else if let Some(why) = &self.unsupported {
            CoverageState::Unsupported { why: why.clone() }
        } else {
            CoverageState::Looked { lost: self.lost }
        }
    }
}

/// A report with a symptom waits so long for its siblings: A and AAAA fall silent together.
const URGENT: Duration = Duration::from_millis(50);
/// A report without a symptom.
const ORDINARY: Duration = Duration::from_secs(1);
/// A report of nothing: it shows that somebody looked.
const IDLE: Duration = Duration::from_secs(5);
/// Observations of one report.
const MOST: usize = 4_096;

#[cfg(test)]
mod tests {
    use evidence::Counters;
    use tokio::sync::mpsc;

    use super::*;

    fn something() -> Observation {
        Observation::Counters(Counters::default())
    }

    #[tokio::test]
    async fn a_symptom_leaves_within_50_ms_an_answer_within_a_second_silence_within_five() {
        let mut diary = Diary::new("n".into(), "v".into());
        let start = diary.last;
        assert_eq!(diary.due(), start + IDLE);
        diary.note(something(), false);
        assert_eq!(diary.due(), start + ORDINARY);
        diary.note(something(), true);
        assert!(diary.due() <= Instant::now() + URGENT);
    }

    #[tokio::test]
    async fn what_finds_no_room_is_counted_in_the_next_report() {
        let (out, mut inbox) = mpsc::channel(1);
        let mut diary = Diary::new("n".into(), "v".into());
        for _ in 0..3 {
            diary.note(something(), true);
            diary.send(&out).unwrap();
        }
        inbox.recv().await.unwrap();
        diary.send(&out).unwrap();
        let state = &inbox.recv().await.unwrap().coverage[0].state;
        assert_eq!(*state, CoverageState::Looked { lost: 2 });
        drop(inbox);
        assert_eq!(diary.send(&out), Err(Unread));
    }
}
