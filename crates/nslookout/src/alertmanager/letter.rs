//! What is one Alertmanager told next, given what it was told before?
//!
//! Alertmanager tells nobody of an alert that it first hears of when it is over. So one that began and ended
//! while it was away is told as firing once, with its end in an annotation, and runs out by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use evidence::WallTime;
use serde::{Deserialize, Serialize};

use super::Alert;
use super::board::{Board, Labels};
use crate::alerts::rfc3339;

/// What this Alertmanager has accepted, or one of those that share their notifications: behind one Service each may be
/// replaced by another that remembers what people were told, and not the alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Labels, Mark)>", into = "Vec<(Labels, Mark)>")]
pub struct Told(BTreeMap<Labels, Mark>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    starts_at: WallTime,
    /// It was told once, after its end; nothing is left to say.
    late: bool,
}

/// A push that is not yet accepted.
#[derive(Debug)]
pub struct Letter {
    /// The body of POST /api/v2/alerts.
    pub json: Vec<u8>,
    marks: Vec<(Labels, Mark)>,
}

/// As the API has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Post<'a> {
    labels: &'a BTreeMap<String, String>,
    annotations: BTreeMap<&'a str, String>,
    starts_at: String,
    ends_at: String,
}

impl Letter {
    /// All that is to be said now. `lasting` is how long a firing alert lives without being sent again.
    pub fn write(board: &Board, told: &Told, now: WallTime, lasting: Duration) -> Self {
        let mut posts = Vec::new();
        let mut marks = Vec::new();
        for alert in board.alerts() {
            let before = told.0.get(&alert.labels).filter(|mark| mark.is_of(alert));
            let (ends_at, late) = match (alert.ends_at, before) {
                (None, _) => (now.plus(lasting), false),
                (Some(end), Some(Mark { late: false, .. })) => (end, false),
                (Some(_), Some(Mark { late: true, .. })) => continue,
                (Some(_), None) => (now.plus(lasting), true),
            };
            posts.push(post(alert, ends_at, late));
            marks.push((alert.labels.clone(), Mark { starts_at: alert.starts_at, late }));
        }
        // Maps of strings always have a JSON.
        Self { json: serde_json::to_vec(&posts).unwrap_or_default(), marks }
    }
}

impl From<Vec<(Labels, Mark)>> for Told {
    fn from(marks: Vec<(Labels, Mark)>) -> Self {
        Self(marks.into_iter().collect())
    }
}

impl From<Told> for Vec<(Labels, Mark)> {
    fn from(told: Told) -> Self {
        told.0.into_iter().collect()
    }
}

impl Mark {
    /// To the millisecond: that is what an Alertmanager is told, and what an incident remembers over a restart.
    fn is_of(&self, alert: &Alert) -> bool {
        self.starts_at.0.div_euclid(MILLISECOND) == alert.starts_at.0.div_euclid(MILLISECOND)
    }
}

impl Told {
    /// It says itself that it holds this alert, which fires.
    pub fn holds(&mut self, alert: &Alert) {
        self.0.insert(alert.labels.clone(), Mark { starts_at: alert.starts_at, late: false });
    }

    /// The letter was accepted.
    pub fn accept(&mut self, letter: Letter, board: &Board) {
        self.0.extend(letter.marks);
        self.0.retain(|labels, _| board.knows(labels));
    }
}

fn post(alert: &Alert, ends_at: WallTime, late: bool) -> Post<'_> {
    let mut annotations: BTreeMap<&str, String> =
        alert.annotations.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    if let (true, Some(end)) = (late, alert.ends_at) {
        annotations.entry(ENDED).or_insert_with(|| rfc3339(end));
        annotations.insert(
            "toldLate",
            "this began and ended while this Alertmanager could not be reached; it is told this once".into(),
        );
    }
    Post {
        labels: &alert.labels,
        annotations,
        starts_at: rfc3339(alert.starts_at),
        ends_at: rfc3339(ends_at),
    }
}

const MILLISECOND: i64 = 1_000_000;

/// The annotation with the end of an alert that is told late.
const ENDED: &str = "ended";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const LASTING: Duration = Duration::from_secs(60);

    fn at(second: u64) -> WallTime {
        WallTime(0).plus(Duration::from_secs(second))
    }

    fn alert(name: &str, starts_at: u64, ends_at: Option<u64>) -> Alert {
        Alert {
            labels: [("alertname".to_owned(), name.to_owned())].into(),
            annotations: BTreeMap::new(),
            starts_at: at(starts_at),
            ends_at: ends_at.map(at),
        }
    }

    fn board(alerts: &[Alert], now: u64) -> Board {
        Board::new(alert("w", 0, None)).next(alerts.to_vec(), at(now)).unwrap()
    }

    fn ends(letter: &Letter) -> BTreeMap<String, String> {
        let posts: Vec<Value> = serde_json::from_slice(&letter.json).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        posts.iter().map(|post| (text(&post["labels"]["alertname"]), text(&post["endsAt"]))).collect()
    }

    #[test]
    fn a_firing_alert_lives_for_four_intervals_and_a_resolved_one_has_its_end() {
        let mut told = Told::default();
        let firing = board(&[alert("a", 10, None)], 10);
        let letter = Letter::write(&firing, &told, at(20), LASTING);
        assert_eq!(ends(&letter)["a"], "1970-01-01T00:01:20.000Z");
        assert_eq!(ends(&letter)["w"], "1970-01-01T00:01:20.000Z");
        told.accept(letter, &firing);
        let over = board(&[alert("a", 10, Some(25))], 25);
        for now in [26, 400] {
            let letter = Letter::write(&over, &told, at(now), LASTING);
            assert_eq!(ends(&letter)["a"], "1970-01-01T00:00:25.000Z");
            told.accept(letter, &over);
        }
    }

    #[test]
    fn what_began_and_ended_unseen_is_told_once_with_its_end() {
        let mut told = Told::default();
        let over = board(&[alert("a", 10, Some(25))], 25);
        // Not accepted: nothing was told.
        drop(Letter::write(&over, &told, at(26), LASTING));
        let letter = Letter::write(&over, &told, at(30), LASTING);
        assert_eq!(ends(&letter)["a"], "1970-01-01T00:01:30.000Z");
        assert!(String::from_utf8_lossy(&letter.json).contains(r#""ended":"1970-01-01T00:00:25.000Z""#));
        told.accept(letter, &over);
        assert!(!ends(&Letter::write(&over, &told, at(31), LASTING)).contains_key("a"));
        // The same labels later are another alert.
        let again = board(&[alert("a", 40, None)], 40);
        assert!(ends(&Letter::write(&again, &told, at(41), LASTING)).contains_key("a"));
    }

    #[test]
    fn what_is_forgotten_by_the_board_is_forgotten_here() {
        let mut told = Told::default();
        let first = board(&[alert("a", 10, None)], 10);
        told.accept(Letter::write(&first, &told, at(20), LASTING), &first);
        assert_eq!(told.0.len(), 2);
        let second = board(&[alert("b", 10, None)], 10);
        told.accept(Letter::write(&second, &told, at(20), LASTING), &second);
        let names: Vec<_> = told.0.keys().map(|labels| labels["alertname"].as_str()).collect();
        assert_eq!(names, ["b", "w"]);
    }
}
