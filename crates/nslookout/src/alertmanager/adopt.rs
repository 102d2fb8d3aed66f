//! What do Alertmanagers remember that this process does not?
//!
//! One that starts without a state asks each of them what of this cluster still fires. It goes on with those incidents,
//! under the same labels and since the same moment; so what is found again is not told again, and what is not is
//! resolved in due time.

use std::collections::{BTreeMap, BTreeSet};

use correlate::{Confidence, Incident, Scope, Severity, Suffers, cause};
use evidence::WallTime;
use serde::Deserialize;

use super::Alert;

/// As the API has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    starts_at: jiff::Timestamp,
}

/// The path, below the prefix, that lists what fires of this cluster.
pub fn path(cluster: &str) -> String {
    // A matcher's value is quoted as in Go.
    let quoted = cluster.replace('\\', "\\\\").replace('"', "\\\"");
    let filters = [format!("cluster=\"{quoted}\""), "alertname=~\"NslookoutDNS|NslookoutBlind\"".to_owned()];
    let filters: Vec<String> = filters.iter().map(|filter| format!("filter={}", percent(filter))).collect();
    format!("/api/v2/alerts?active=true&silenced=true&inhibited=true&unprocessed=true&{}", filters.join("&"))
}

/// The alerts that an Alertmanager has told of. What is no such list is an error for the log.
pub fn read(body: &[u8]) -> Result<Vec<Alert>, serde_json::Error> {
    let held: Vec<Held> = serde_json::from_slice(body)?;
    let alert = |held: Held| Alert {
        labels: held.labels,
        annotations: held.annotations,
        starts_at: WallTime(i64::try_from(held.starts_at.as_nanosecond()).unwrap_or_default()),
        ends_at: None,
    };
    // What ended there while it was away is told late, and over already.
    Ok(held
        .into_iter()
        .take(MOST)
        .map(alert)
        .filter(|alert| !alert.annotations.contains_key("ended"))
        .collect())
}

/// The incident that an alert tells of; nothing for one of another kind, or of a cause that is not known here.
pub fn incident(alert: &Alert) -> Option<Incident> {
    let label = |name: &str| alert.labels.get(name).map(String::as_str);
    let note = |name: &str| alert.annotations.get(name).cloned().unwrap_or_default();
    if label("alertname") != Some("NslookoutDNS") {
        return None;
    }
    let cause = cause(label("cause")?)?;
    let severity = [Severity::Warning, Severity::Critical]
        .into_iter()
        .find(|one| label("severity") == Some(one.as_str()))?;
    let confidence = [Confidence::Certain, Confidence::Likely]
        .into_iter()
        .find(|one| note("confidence") == one.as_str())
        .unwrap_or(Confidence::Unexplained);
    let owned = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut proof: Vec<String> = note("proof").lines().map(str::to_owned).collect();
    let taken_over = "this is what was told before nslookout began anew; figures since then count from there";
    if proof.iter().all(|line| line != taken_over) {
        proof.push(taken_over.to_owned());
    }
    Some(Incident {
        id: owned(&note("incident"))?,
        cause: cause.id.to_owned(),
        title: cause.title.to_owned(),
        confidence,
        severity,
        scope: Scope {
            node: label("node").map(str::to_owned),
            server: label("server").map(str::to_owned),
            client: owned(&note("client")),
        },
        since: alert.starts_at,
        until: None,
        suffers: Suffers { summary: note("suffers"), ..Suffers::default() },
        proof,
        ruled_out: Vec::new(),
        explained: Vec::new(),
        not_seen: Vec::new(),
        mend: note("mend"),
        closed_into: None,
    })
}

/// All that is no unreserved character (RFC 3986, section 2.3).
fn percent(text: &str) -> String {
    let plain: BTreeSet<u8> = b"-._~".iter().copied().collect();
    let escaped = text.bytes().map(|byte| {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    escaped.collect()
}

/// More than there are causes, scopes and severities of one cluster at one time.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use correlate::{Change, Config, Correlator, Snapshot};

    use super::*;
    use crate::alerts::Alerts;

    const HELD: &str = r#"[{"labels": {"alertname": "NslookoutDNS", "cause": "server-silent", "cluster": "c",
        "severity": "critical", "server": "10.0.0.1:53"},
        "annotations": {"incident": "server-silent-1-1", "confidence": "likely", "proof": "one\ntwo", "suffers": "many"},
        "startsAt": "2026-01-02T03:04:05.678Z", "endsAt": "2026-01-02T03:14:05.678Z", "fingerprint": "x"}]"#;

    #[test]
    fn the_path_names_this_cluster_and_no_other() {
        let path = path("a \"b\" & c");
        assert!(path.contains("filter=cluster%3D%22a%20%5C%22b%5C%22%20%26%20c%22"), "{path}");
    }

    #[test]
    fn an_incident_that_an_alert_tells_of_makes_the_same_alert_again() {
        let alerts = read(HELD.as_bytes()).unwrap();
        let told = incident(&alerts[0]).unwrap();
        let mut correlator = Correlator::new(Config::default());
        let now = WallTime::now();
        correlator.restore(Snapshot::told(vec![told]), now);
        let changes = correlator.tick(now);
        assert!(matches!(changes.as_slice(), [Change::Updated(_)]), "{changes:#?}");
        let again = Alerts::new("c".into()).update(&changes, &[], now);
        assert_eq!((&again[0].labels, again[0].starts_at), (&alerts[0].labels, alerts[0].starts_at));
        assert_eq!(again[0].annotations["incident"], "server-silent-1-1");
        assert_eq!(again[0].annotations["suffers"], "many");
    }

    #[test]
    fn what_is_no_alert_of_ours_is_no_incident() {
        for (from, to) in [
            ("NslookoutDNS", "Other"),
            ("server-silent\"", "of-a-later-version\""),
            ("critical", "page"),
            ("server-silent-1-1", ""),
        ] {
            let alerts = read(HELD.replacen(from, to, 1).as_bytes()).unwrap();
            assert_eq!(incident(&alerts[0]), None, "{to}");
        }
        assert!(read(b"<html>").is_err());
        assert!(read(HELD.replace("\"many\"", "\"many\", \"ended\": \"x\"").as_bytes()).unwrap().is_empty());
    }
}
