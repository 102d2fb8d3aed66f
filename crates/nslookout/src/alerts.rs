//! Which alerts the present incidents make.
//!
//! Labels are an alert's identity and fixed for an incident's life; all that changes is an annotation.

use std::collections::BTreeMap;
use std::time::Duration;

use correlate::{Blind, Change, Incident, Severity};
use evidence::WallTime;

use serde::{Deserialize, Serialize};

use crate::alertmanager::Alert;

/// Keeps the alerts of incidents, open and over, and of lost evidence.
#[derive(Debug)]
pub struct Alerts {
    cluster: String,
    open: BTreeMap<String, Alert>,
    over: Vec<Alert>,
    blind_since: Option<WallTime>,
    /// An alert of lost evidence that an Alertmanager remembers, until it is seen again or that time has come.
    held: Option<(Alert, WallTime)>,
}

/// Alerts beside those of open incidents, as they are kept for the next process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    over: Vec<Alert>,
    blind_since: Option<WallTime>,
}

impl Alerts {
    /// None yet, for the cluster of that name.
    pub fn new(cluster: String) -> Self {
        Self { cluster, open: BTreeMap::new(), over: Vec::new(), blind_since: None, held: None }
    }

    /// What the next process must know beside the open incidents.
    pub fn kept(&self) -> Kept {
        Kept { over: self.over.clone(), blind_since: self.blind_since }
    }

    /// Goes on with what an earlier process kept.
    pub fn restore(&mut self, kept: Kept) {
        self.over = kept.over;
        self.blind_since = kept.blind_since;
    }

    /// These incidents of an earlier process ended while nobody was there to see it.
    pub fn end(&mut self, incidents: &[Incident], now: WallTime) {
        for incident in incidents.iter().filter(|incident| incident.severity > Severity::Info) {
            let alert = self.alert(incident);
            self.over.push(Alert { ends_at: Some(now), ..alert });
        }
    }

    /// Takes what an Alertmanager holds and no open incident accounts for: it is over, but for lost evidence, which
    /// first has to be missed again.
    pub fn adopt(&mut self, alerts: Vec<Alert>, open: &[Incident], now: WallTime) {
        let open: Vec<_> = open.iter().map(|incident| self.alert(incident).labels).collect();
        for alert in alerts {
            if alert.labels.get("alertname").is_some_and(|name| name == BLIND) {
                self.held = Some((alert, now.plus(MISSED_AGAIN)));
            } else if !open.contains(&alert.labels)
                && self.over.iter().all(|over| over.labels != alert.labels)
            {
                self.over.push(Alert { ends_at: Some(now), ..alert });
            }
        }
    }

    /// Takes what changed and gives the present state of all alerts.
    pub fn update(&mut self, changes: &[Change], blind: &[Blind], now: WallTime) -> Vec<Alert> {
        for change in changes {
            match change {
                // Evidence without a sufferer is shown, not sent.
                Change::Opened(incident) | Change::Updated(incident)
                    if incident.severity == Severity::Info => {}
                Change::Opened(incident) | Change::Updated(incident) => {
                    self.open.insert(incident.id.clone(), self.alert(incident));
                }
                Change::Closed(incident) => {
                    if let Some(mut alert) = self.open.remove(&incident.id) {
                        // Over since the moment it was found to be over: an end in the past would be dropped by an
                        // Alertmanager that has not yet heard of the alert.
                        alert.ends_at = Some(now);
                        alert.annotations.insert("ended".into(), rfc3339(incident.until.unwrap_or(now)));
                        self.over.push(alert);
                    }
                }
            }
        }
        self.over.retain(|alert| alert.ends_at.is_some_and(|end| now.since(end) < OVER_KEPT));
        let overflow = self.over.len().saturating_sub(MOST_OVER);
        self.over.drain(..overflow);
        self.blind_since = match (blind.is_empty(), self.blind_since) {
            (true, _) => None,
            (false, Some(since)) => Some(since),
            (false, None) => Some(self.held.take().map_or(now, |(alert, _)| alert.starts_at)),
        };
        self.held = self.held.take().filter(|(_, until)| now < *until);
        let held = self.held.iter().map(|(alert, _)| alert.clone());
        let firing: Vec<Alert> =
            self.open.values().cloned().chain(self.blind_alert(blind)).chain(held).collect();
        // The same labels may have been over before: the firing one speaks.
        let over =
            self.over.iter().filter(|old| firing.iter().all(|alert| alert.labels != old.labels)).cloned();
        let over: Vec<Alert> = over.collect();
        firing.into_iter().chain(over).collect()
    }

    fn alert(&self, incident: &Incident) -> Alert {
        let mut labels = BTreeMap::from([
            ("alertname".to_owned(), "NslookoutDNS".to_owned()),
            ("cause".to_owned(), incident.cause.clone()),
            ("severity".to_owned(), incident.severity.as_str().to_owned()),
            ("cluster".to_owned(), self.cluster.clone()),
        ]);
        for (label, value) in [("node", &incident.scope.node), ("server", &incident.scope.server)] {
            if let Some(value) = value {
                labels.insert(label.to_owned(), value.clone());
            }
        }
        let not_seen: Vec<String> = incident
            .not_seen
            .iter()
            .map(|gap| format!("{} on {}: {}", gap.observer.as_str(), gap.place, gap.why))
            .collect();
        let ruled_out: Vec<String> =
            incident.ruled_out.iter().map(|r| format!("{} ({})", r.cause, r.why)).collect();
        let annotations = BTreeMap::from([
            ("summary".to_owned(), format!("{}, {}", incident.title, incident.place())),
            ("client".to_owned(), incident.scope.client.clone().unwrap_or_default()),
            ("confidence".to_owned(), incident.confidence.as_str().to_owned()),
            ("suffers".to_owned(), incident.suffers.summary.clone()),
            ("proof".to_owned(), incident.proof.join("\n")),
            ("ruledOut".to_owned(), ruled_out.join("; ")),
            ("notSeen".to_owned(), not_seen.join("; ")),
            ("mend".to_owned(), incident.mend.clone()),
            ("incident".to_owned(), incident.id.clone()),
        ]);
        let annotations = annotations.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Alert { labels, annotations, starts_at: incident.since, ends_at: None }
    }

    fn blind_alert(&self, blind: &[Blind]) -> Option<Alert> {
        let starts_at = self.blind_since?;
        let lines: Vec<String> = blind
            .iter()
            .take(20)
            .map(|blind| format!("{} on {}: {}", blind.observer.as_str(), blind.place, blind.why))
            .collect();
        Some(Alert {
            labels: BTreeMap::from([
                ("alertname".to_owned(), BLIND.to_owned()),
                ("severity".to_owned(), "warning".to_owned()),
                ("cluster".to_owned(), self.cluster.clone()),
            ]),
            annotations: BTreeMap::from([
                ("summary".to_owned(), format!("{} observers of DNS no longer see", blind.len())),
                ("observers".to_owned(), lines.join("\n")),
            ]),
            starts_at,
            ends_at: None,
        })
    }
}

/// A time as RFC 3339 with milliseconds.
pub fn rfc3339(at: WallTime) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(|_| "?".into(), |t| format!("{t:.3}"))
}

const BLIND: &str = "NslookoutBlind";
/// An observer that is blind still says so, or is missed, within this time.
const MISSED_AGAIN: Duration = Duration::from_secs(30);
/// Resolved alerts are told for 15 minutes.
const OVER_KEPT: Duration = Duration::from_secs(15 * 60);
const MOST_OVER: usize = 1024;
