//! Is what nslookout said of a fault right: at the moment of the verdict, and over the whole span?

use super::status::{Incident, Status};
use crate::faults::{Active, Fault, Scope};

/// What a verdict got right and wrong; empty is right.
#[derive(Debug, Clone, Default)]
pub struct Judgement {
    /// One line for each thing that is wrong.
    pub wrong: Vec<String>,
    /// Few symptoms of other causes, none certain and none told as an incident: they are shown, not held against it.
    pub aside: Vec<String>,
}

/// What was seen from before a fault till all is calm again, a status at a time.
#[derive(Debug, Clone)]
pub struct Span {
    cause: &'static str,
    before: Status,
    last: Status,
    /// Incidents of other causes, and how often they were seen.
    others: Vec<(String, u64)>,
    /// The most that was told of the fault's own incident.
    pub dropped: u64,
    /// The same for mappings that lead nowhere.
    pub mappings: u64,
    /// The scope's client, as last told.
    pub client: Option<String>,
    /// The clients that suffer, by name, as last told.
    pub clients: Vec<String>,
}

impl Span {
    /// Begins before the fault.
    pub fn new(fault: &'static Fault, before: Status) -> Self {
        let last = before.clone();
        let cause = fault.expected.cause;
        Self {
            cause,
            before,
            last,
            others: Vec::new(),
            dropped: 0,
            mappings: 0,
            client: None,
            clients: Vec::new(),
        }
    }

    /// Takes a status in. True if the fault's own cause is named.
    pub fn see(&mut self, status: &Status) -> bool {
        for other in status.incidents.iter().filter(|incident| incident.cause != self.cause) {
            let name = format!("{} ({}) {}", other.cause, other.confidence, other.scope);
            match self.others.iter_mut().find(|(known, _)| *known == name) {
                Some((_, times)) => *times += 1,
                None => self.others.push((name, 1)),
            }
        }
        let own = status.incidents.iter().find(|incident| incident.cause == self.cause);
        if let Some(own) = own {
            self.dropped = self.dropped.max(own.suffers.dropped_packets);
            self.mappings = self.mappings.max(own.suffers.mappings);
            self.client = own.at("client").map(str::to_owned);
            self.clients.clone_from(&own.suffers.clients);
        }
        self.last = status.clone();
        own.is_some()
    }

    /// Holds all that came against what may come: no other incident, no other certain symptom, few others.
    pub fn judge(&self) -> Judgement {
        let mut judgement = Judgement::default();
        for (name, times) in &self.others {
            judgement.wrong.push(format!("an incident of {name} was open, too, in {times} looks"));
        }
        for other in self.last.symptoms_since(&self.before) {
            let line = format!("{} symptoms of {} ({})", other.count, other.cause, other.confidence);
            if other.cause == self.cause {
                continue;
            }
            if other.confidence == "certain" || other.count > MOST_ASIDE {
                judgement.wrong.push(format!("{line} came over the span"));
            } else {
                judgement.aside.push(line);
            }
        }
        judgement
    }
}

impl Judgement {
    /// Holds a status against what the fault should show.
    pub fn of(fault: &Fault, active: &Active, status: &Status) -> Self {
        let mut wrong = Vec::new();
        let open: Vec<&str> = status.incidents.iter().map(|incident| incident.cause.as_str()).collect();
        if open.len() != 1 {
            wrong.push(format!("exactly one incident should be open, not {open:?}"));
        }
        let Some(incident) = status.incidents.iter().find(|incident| incident.cause == active.cause) else {
            wrong.push(format!("no incident names {}", active.cause));
            return Self { wrong, aside: Vec::new() };
        };
        let sure =
            incident.confidence == "certain" || (!fault.expected.certain && incident.confidence == "likely");
        if !sure {
            wrong.push(format!("it is only {}", incident.confidence));
        }
        wrong.extend(wrong_scope(fault, active, incident));
        if explains_others(fault) && incident.explained.is_empty() {
            wrong.push(
                "silent lookups that seem to speak for another cause are not listed as explained".into(),
            );
        }
        Self { wrong, aside: Vec::new() }
    }

    /// Whether nothing is wrong.
    pub fn right(&self) -> bool {
        self.wrong.is_empty()
    }
}

/// Faults that make lookups fail in ways that seem to speak for another cause: silence, refusal, a rule's drop.
pub fn explains_others(fault: &Fault) -> bool {
    matches!(fault.name, "conntrack-full" | "no-endpoints" | "forward-drop")
}

/// A scope that is too wide is as wrong as one that is too narrow.
fn wrong_scope(fault: &Fault, active: &Active, incident: &Incident) -> Vec<String> {
    let scope = fault.expected.scope;
    let one_server = match active.server_addresses.as_slice() {
        [server] => Some(server.to_string()),
        [] | [_, _, ..] => None,
    };
    let pinned = active.clients.iter().find(|client| client.port.is_some());
    let node = match scope {
        Scope::Node | Scope::Pod => active.node.as_deref(),
        Scope::Servers | Scope::Cluster => None,
    };
    // An upstream stands behind all servers: it is named in the proof, not in the scope.
    let server = if scope == Scope::Cluster { None } else { one_server.as_deref() };
    let mut wrong = Vec::new();
    let mut hold = |key: &str, right: bool, wanted: Option<&str>| {
        if !right {
            wrong.push(format!("the scope's {key} should be {wanted:?}: {}", incident.scope));
        }
    };
    hold("node", incident.at("node") == node, node);
    hold("server", incident.at("server") == server, server);
    let client = match scope {
        Scope::Pod => active.pod.as_ref().map(|pod| format!("default/{pod}")),
        // The fault's own client, where it is the only one that keeps its port. Others may be hit, too.
        Scope::Node => {
            pinned.filter(|_| incident.at("client").is_some()).map(|client| format!("default/{}", client.pod))
        }
        Scope::Servers | Scope::Cluster => None,
    };
    hold("client", incident.at("client") == client.as_deref(), client.as_deref());
    if let (Scope::Cluster, Some(server)) = (scope, &one_server)
        && !incident.proof.iter().any(|line| line.contains(server))
    {
        wrong.push(format!("the proof should name {server}: {:#?}", incident.proof));
    }
    wrong
}

/// Symptoms of one other cause that a span may have: as many as open no incident of nslookout's by default. Chance
/// makes them: a lookup that a busy machine answered late, or one that was under way as the fault came or went.
const MOST_ASIDE: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults;

    fn status(incidents: &str, symptoms: &str) -> Status {
        let text = format!(
            r#"{{"state": "healthy", "incidents": [{incidents}], "coverage": [], "symptoms": [{symptoms}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn incident(cause: &str) -> String {
        format!(
            r#"{{"id": "1", "cause": "{cause}", "confidence": "certain", "severity": "warning", "scope": {{}},
                "suffers": {{"droppedPackets": 7, "mappings": 0, "clients": [], "moreClients": 0, "nodes": []}},
                "proof": [], "explained": [], "ruledOut": [], "notSeen": []}}"#
        )
    }

    fn symptoms(cause: &str, confidence: &str, count: u64) -> String {
        format!(r#"{{"cause": "{cause}", "confidence": "{confidence}", "count": {count}}}"#)
    }

    fn span() -> Span {
        Span::new(faults::by_name("conntrack-full").unwrap(), status("", ""))
    }

    #[test]
    fn another_incident_that_came_and_went_is_seen() {
        let mut span = span();
        assert!(!span.see(&status(&incident("insert-race"), "")), "it is not the fault's own cause");
        assert!(span.see(&status(&incident("conntrack-full"), "")));
        assert_eq!(span.dropped, 7);
        assert!(span.judge().wrong.iter().any(|line| line.contains("insert-race")));
    }

    #[test]
    fn a_certain_symptom_of_another_cause_is_wrong_and_a_likely_one_is_told_aside() {
        let mut span = span();
        span.see(&status("", &symptoms("upstream-failing", "likely", 1)));
        let judgement = span.judge();
        assert!(judgement.right() && judgement.aside.len() == 1, "{judgement:?}");
        span.see(&status("", &symptoms("policy-drop", "certain", 1)));
        assert!(!span.judge().right());
        span.see(&status("", &symptoms("unexplained", "unexplained", MOST_ASIDE + 1)));
        assert!(!span.judge().right());
        span.see(&status("", &symptoms("conntrack-full", "certain", 500)));
        assert!(span.judge().right(), "its own symptoms are what is wanted");
    }
}
