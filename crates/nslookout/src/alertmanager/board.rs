//! What is the present state of each label set?

use std::collections::BTreeMap;
use std::time::Duration;

use evidence::WallTime;

use super::Alert;

/// What makes an alert the same alert.
pub type Labels = BTreeMap<String, String>;

/// The present state of all label sets. A value: each change makes a new one.
#[derive(Debug, Clone)]
pub struct Board {
    watchdog: Alert,
    alerts: BTreeMap<Labels, Alert>,
    /// Rises when an alert begins or ends, not when its annotations change.
    turns: u64,
}

impl Board {
    /// Nothing but the watchdog.
    pub fn new(watchdog: Alert) -> Self {
        let alerts = BTreeMap::from([(watchdog.labels.clone(), watchdog.clone())]);
        Self { watchdog, alerts, turns: 0 }
    }

    /// The board with these alerts instead; None if that changes nothing.
    ///
    /// An alert that is not among them any more ended now. Those that ended stay for 15 minutes.
    pub fn next(&self, alerts: Vec<Alert>, now: WallTime) -> Option<Self> {
        let mut next: BTreeMap<Labels, Alert> = self
            .alerts
            .iter()
            .map(|(labels, alert)| {
                let ends_at = alert.ends_at.or(Some(now.max(alert.starts_at)));
                (labels.clone(), Alert { ends_at, ..alert.clone() })
            })
            .collect();
        for alert in alerts.into_iter().map(clean) {
            next.insert(alert.labels.clone(), alert);
        }
        next.insert(self.watchdog.labels.clone(), self.watchdog.clone());
        next.retain(|_, alert| alert.ends_at.is_none_or(|end| now.since(end) < OVER_TOLD));
        shed(&mut next);
        if next == self.alerts {
            return None;
        }
        let turned = |labels: &Labels, alert: &Alert| {
            let old = self.alerts.get(labels);
            old.is_none_or(|old| (old.starts_at, old.ends_at) != (alert.starts_at, alert.ends_at))
        };
        let turns = self.turns + u64::from(next.iter().any(|(labels, alert)| turned(labels, alert)));
        Some(Self { watchdog: self.watchdog.clone(), alerts: next, turns })
    }

    /// All alerts, the ended ones too.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values()
    }

    /// Whether the label set is known still.
    pub fn knows(&self, labels: &Labels) -> bool {
        self.alerts.contains_key(labels)
    }

    /// Differs between two boards if an alert began or ended between them.
    pub fn turns(&self) -> u64 {
        self.turns
    }
}

/// To Alertmanager an empty label is no label; an end before the start would be refused; endless texts are cut.
fn clean(mut alert: Alert) -> Alert {
    alert.labels.retain(|_, value| !value.is_empty());
    alert.ends_at = alert.ends_at.map(|end| end.max(alert.starts_at));
    for value in alert.annotations.values_mut().filter(|value| value.len() > MAX_TEXT_BYTES) {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
        value.truncate(end);
        value.push('…');
    }
    alert
}

/// Beyond the cap those that ended first go first, then those that began last.
fn shed(alerts: &mut BTreeMap<Labels, Alert>) {
    let excess = alerts.len().saturating_sub(MAX_ALERTS);
    if excess == 0 {
        return;
    }
    let mut order: Vec<_> = alerts.values().collect();
    order.sort_by_key(|alert| match alert.ends_at {
        Some(end) => (0, end.0),
        None => (1, alert.starts_at.0.saturating_neg()),
    });
    let gone: Vec<Labels> = order.into_iter().take(excess).map(|alert| alert.labels.clone()).collect();
    for labels in gone {
        alerts.remove(&labels);
    }
}

/// So long an end is told, as Prometheus does it.
const OVER_TOLD: Duration = Duration::from_secs(15 * 60);

/// Incidents are few: one for a cause and scope.
const MAX_ALERTS: usize = 1024;

const MAX_TEXT_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(cause: &str, starts_at: i64) -> Alert {
        Alert {
            labels: [("cause".to_owned(), cause.to_owned()), ("node".to_owned(), String::new())].into(),
            annotations: BTreeMap::new(),
            starts_at: WallTime(starts_at),
            ends_at: None,
        }
    }

    fn board() -> Board {
        Board::new(Alert { labels: [("alertname".to_owned(), "w".to_owned())].into(), ..alert("", 0) })
    }

    fn seconds(seconds: u64) -> WallTime {
        WallTime(0).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn an_alert_that_is_missing_has_ended_and_is_told_for_15_minutes() {
        let board = board().next(vec![alert("a", 5)], seconds(1)).unwrap();
        assert!(board.next(vec![alert("a", 5)], seconds(2)).is_none());
        let over = board.next(vec![], seconds(3)).unwrap();
        let ended: Vec<_> = over.alerts().filter_map(|alert| alert.ends_at).collect();
        assert_eq!(ended, [seconds(3)]);
        assert!(over.turns() > board.turns());
        assert!(over.next(vec![], seconds(800)).is_none());
        assert_eq!(over.next(vec![], seconds(904)).unwrap().alerts().count(), 1);
    }

    #[test]
    fn annotations_alone_are_no_turn() {
        let board = board().next(vec![alert("a", 5)], seconds(1)).unwrap();
        let mut told = alert("a", 5);
        told.annotations.insert("proof".into(), "ä".repeat(MAX_TEXT_BYTES));
        let next = board.next(vec![told], seconds(2)).unwrap();
        assert_eq!(next.turns(), board.turns());
        let longest =
            next.alerts().flat_map(|alert| alert.annotations.values()).map(String::len).max().unwrap();
        assert!(longest <= MAX_TEXT_BYTES + '…'.len_utf8());
    }

    #[test]
    fn an_alert_that_begins_anew_is_one_alert() {
        let board = board().next(vec![alert("a", 5)], seconds(1)).unwrap();
        let board = board.next(vec![], seconds(2)).unwrap().next(vec![alert("a", 9)], seconds(3)).unwrap();
        let firing: Vec<_> = board.alerts().map(|alert| (alert.starts_at.0, alert.ends_at)).collect();
        assert_eq!(firing, [(0, None), (9, None)]);
    }

    #[test]
    fn empty_labels_and_ends_before_the_start_are_mended() {
        let wrong = Alert { ends_at: Some(WallTime(1)), ..alert("a", 5) };
        let board = board().next(vec![wrong], WallTime(7)).unwrap();
        let alert = board.alerts().find(|alert| alert.labels.contains_key("cause")).unwrap();
        assert_eq!((alert.labels.len(), alert.ends_at), (1, Some(WallTime(5))));
    }

    #[test]
    fn a_flood_of_alerts_is_cut_and_the_oldest_firing_stay() {
        let flood: Vec<Alert> = (0..3000).map(|i| alert(&i.to_string(), i + 1)).collect();
        let board = board().next(flood, WallTime(9)).unwrap();
        assert_eq!(board.alerts().count(), MAX_ALERTS);
        assert!(board.alerts().all(|alert| alert.starts_at.0 < 1024));
    }
}
