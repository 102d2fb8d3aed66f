//! The symptoms of one cause, as they are told.

use evidence::{Observer, WallTime};
use serde::{Deserialize, Serialize};

/// How sure a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Nothing known fits.
    Unexplained,
    /// Circumstantial.
    Likely,
    /// A direct proof is joined to the symptom.
    Certain,
}

/// Follows harm, never the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Evidence without a sufferer.
    Info,
    /// Lookups are late, or few fail.
    Warning,
    /// Lookups end without an answer.
    Critical,
}

/// Where an incident is. What is absent is not narrowed: all nodes, all servers, all clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// The one node where it happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The one server concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The one client concerned, where the fault lies in its own namespace or entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// Harm done since the incident began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suffers {
    /// One sentence.
    pub summary: String,
    /// DNS packets that the kernel dropped. Each is a lookup that waits for its resend.
    pub dropped_packets: u64,
    /// Probe lookups with a query unanswered for 1 s, refused, or answered with a server's error.
    pub troubled_lookups: u64,
    /// Of these, lookups that ended without an answer so far.
    pub failed_lookups: u64,
    /// Of these, lookups that were answered late so far.
    pub late_lookups: u64,
    /// Conntrack entries in use that lead nowhere.
    pub mappings: u64,
    /// Clients seen to suffer, at most eight by name.
    pub clients: Vec<String>,
    /// Clients beyond the eight (counted up to 4,096 in all).
    pub more_clients: u64,
    /// Nodes where it was seen, at most eight by name.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// A cause that was looked for, and not found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuledOut {
    /// Its id.
    pub cause: String,
    /// What was looked at, and seen.
    pub why: String,
}

/// Signs that seem to speak for another cause, and come from this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The cause they seem to speak for.
    pub cause: String,
    /// How many.
    pub symptoms: u64,
    /// Why they are explained.
    pub why: String,
}

/// What could not be looked at, and which causes it hides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotSeen {
    /// The observer that is missing or lost records.
    pub observer: Observer,
    /// Where.
    pub place: String,
    /// Why.
    pub why: String,
    /// Causes that can't be ruled out for it.
    pub hides: Vec<String>,
}

/// The symptoms of one cause and one scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Unique within one correlator's life and stable over the incident's.
    pub id: String,
    /// The cause's id.
    pub cause: String,
    /// The cause in words, with its kind.
    pub title: String,
    /// How sure.
    pub confidence: Confidence,
    /// How bad. Fixed: an incident that grows worse closes into a new one.
    pub severity: Severity,
    /// Where. Fixed: an incident that spreads closes into a wider one.
    pub scope: Scope,
    /// The first symptom. In JSON RFC 3339.
    #[serde(with = "rfc3339")]
    pub since: WallTime,
    /// The last symptom, once it is over. In JSON RFC 3339.
    #[serde(with = "rfc3339::optional")]
    pub until: Option<WallTime>,
    /// Who suffers, and how much.
    pub suffers: Suffers,
    /// What proves it, one line each.
    pub proof: Vec<String>,
    /// Causes looked for and not found.
    pub ruled_out: Vec<RuledOut>,
    /// Signs for other causes that this one explains.
    pub explained: Vec<Explained>,
    /// What could not be seen.
    pub not_seen: Vec<NotSeen>,
    /// What mends it.
    pub mend: String,
    /// The incident that took this one over, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_into: Option<String>,
}

impl Incident {
    /// Where it is, in words: its scope, or the nodes where it was seen.
    pub fn place(&self) -> String {
        if self.scope == Scope::default() && !self.suffers.nodes.is_empty() {
            return format!("on {}", self.suffers.nodes.join(", "));
        }
        self.scope.words()
    }
}

impl Scope {
    /// The narrowest scope that holds both.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            node: same(&self.node, &other.node),
            server: same(&self.server, &other.server),
            client: same(&self.client, &other.client),
        }
    }

    /// The scope in words, for a heading: "on node-a, client default/app".
    pub fn words(&self) -> String {
        let parts: Vec<String> = [("on", &self.node), ("server", &self.server), ("client", &self.client)]
            .into_iter()
            .filter_map(|(what, value)| value.as_ref().map(|value| format!("{what} {value}")))
            .collect();
        if parts.is_empty() { "in the whole cluster".into() } else { parts.join(", ") }
    }
}

impl Confidence {
    /// The word in JSON and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unexplained => "unexplained",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

impl Severity {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

fn same(one: &Option<String>, other: &Option<String>) -> Option<String> {
    if one == other { one.clone() } else { None }
}

/// Wall time as people and jq read it.
mod rfc3339 {
    use evidence::WallTime;
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    fn text(at: WallTime) -> String {
        Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(|_| "?".into(), |t| format!("{t:.3}"))
    }

    fn time<E: de::Error>(text: &str) -> Result<WallTime, E> {
        let at: Timestamp = text.parse().map_err(E::custom)?;
        i64::try_from(at.as_nanosecond()).map(WallTime).map_err(E::custom)
    }

    pub fn serialize<S: Serializer>(at: &WallTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(*at))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WallTime, D::Error> {
        time(&String::deserialize(deserializer)?)
    }

    pub mod optional {
        use super::{Deserialize, Deserializer, Serializer, WallTime, text, time};

        pub fn serialize<S: Serializer>(at: &Option<WallTime>, serializer: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => serializer.serialize_some(&text(*at)),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WallTime>, D::Error> {
            Option::<String>::deserialize(deserializer)?.as_deref().map(time).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_make_a_wider_scope() {
        let a = Scope { node: Some("a".into()), server: Some("s".into()), client: None };
        let b = Scope { node: Some("b".into()), server: Some("s".into()), client: None };
        assert_eq!(a.union(&b), Scope { node: None, server: Some("s".into()), client: None });
        assert_eq!(a.union(&a), a);
        assert_eq!(a.words(), "on a, server s");
        assert_eq!(Scope::default().words(), "in the whole cluster");
    }
}
