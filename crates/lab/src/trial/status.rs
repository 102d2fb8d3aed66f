//! What does `nslookout status --output json` say, as far as trials read it?

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The verdict's JSON.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// "healthy", "unhealthy" or "unknown".
    pub state: String,
    /// Open incidents.
    pub incidents: Vec<Incident>,
    /// Who looked where.
    pub coverage: Vec<Value>,
    /// Symptoms by cause since the start.
    pub symptoms: Vec<Symptoms>,
}

/// Symptoms of one cause and confidence since nslookout started: they only grow.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Symptoms {
    /// The cause's id.
    pub cause: String,
    /// "certain", "likely" or "unexplained".
    pub confidence: String,
    /// How many.
    pub count: u64,
}

/// An incident's JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Its id.
    pub id: String,
    /// Its cause's id.
    pub cause: String,
    /// "certain", "likely" or "unexplained".
    pub confidence: String,
    /// "critical", "warning" or "info".
    pub severity: String,
    /// node, server, client where narrowed.
    pub scope: Value,
    /// Counts.
    pub suffers: Suffers,
    /// Lines.
    pub proof: Vec<String>,
    /// Other causes that seem to speak.
    pub explained: Vec<Value>,
    /// Causes not found.
    pub ruled_out: Vec<Value>,
    /// What could not be looked at.
    pub not_seen: Vec<Value>,
}

/// An incident's counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suffers {
    /// DNS packets that the kernel dropped.
    pub dropped_packets: u64,
    /// Conntrack entries in use that lead nowhere.
    pub mappings: u64,
    /// Clients, at most eight by name.
    pub clients: Vec<String>,
    /// Clients beyond these.
    pub more_clients: u64,
    /// Nodes where it was seen.
    pub nodes: Vec<String>,
}

impl Status {
    /// Symptoms that came since an earlier status.
    pub fn symptoms_since(&self, earlier: &Self) -> Vec<Symptoms> {
        let key = |line: &Symptoms| (line.cause.clone(), line.confidence.clone());
        let before: BTreeMap<_, _> = earlier.symptoms.iter().map(|line| (key(line), line.count)).collect();
        self.symptoms
            .iter()
            .map(|line| {
                let count = line.count.saturating_sub(before.get(&key(line)).copied().unwrap_or_default());
                Symptoms { count, ..line.clone() }
            })
            .filter(|line| line.count > 0)
            .collect()
    }

    /// The observers that look in every place where they are.
    pub fn looking(&self) -> Vec<&str> {
        let is = |line: &Value, key: &str, value: &str| line.get(key).and_then(Value::as_str) == Some(value);
        let mut names: Vec<&str> = self
            .coverage
            .iter()
            .filter_map(|line| line.get("observer").and_then(Value::as_str))
            .filter(|name| {
                let mut own = self.coverage.iter().filter(|line| is(line, "observer", name));
                own.all(|line| is(line, "state", "looked"))
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Incident {
    /// A part of its scope: "node", "server" or "client".
    pub fn at(&self, key: &str) -> Option<&str> {
        self.scope.get(key).and_then(Value::as_str)
    }
}

/// All that a run has: lookups, counters, table, drops, CoreDNS metrics, inventory.
pub const OBSERVERS: [&str; 6] =
    ["conntrack-counters", "conntrack-table", "coredns-metrics", "drops", "inventory", "prober"];

#[cfg(test)]
mod tests {
    use super::*;

    fn status(symptoms: &str, coverage: &str) -> Status {
        let text = format!(
            r#"{{"state": "healthy", "incidents": [], "coverage": {coverage}, "symptoms": {symptoms}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn only_what_has_grown_came_since() {
        let before = status(r#"[{"cause": "insert-race", "confidence": "certain", "count": 3}]"#, "[]");
        let after = status(
            r#"[{"cause": "insert-race", "confidence": "certain", "count": 3},
                {"cause": "policy-drop", "confidence": "likely", "count": 2}]"#,
            "[]",
        );
        let came = after.symptoms_since(&before);
        assert_eq!(came.len(), 1);
        assert_eq!((came[0].cause.as_str(), came[0].count), ("policy-drop", 2));
    }

    #[test]
    fn an_observer_that_is_blind_in_one_place_does_not_look() {
        let status = status(
            "[]",
            r#"[{"observer": "drops", "place": "a", "state": "looked"},
                {"observer": "drops", "place": "b", "state": "denied"},
                {"observer": "prober", "place": "a", "state": "looked"}]"#,
        );
        assert_eq!(status.looking(), ["prober"]);
    }
}
