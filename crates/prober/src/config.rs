//! What can be set of the prober, and why is each default what it is?

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::profiles::ProfileName;

/// The prober's part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Time between two lookups of one vantage, and between two lookups of one server from one vantage. "2s":
    /// a fault is met within two seconds, and a thousand nodes ask no more than 500 times a second.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = DURATION))]
    pub interval: Duration,
    /// Time between two lookups of a vantage that has just seen trouble. "200ms": five a second tell a fault
    /// of every second lookup from chance within a second or two.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = DURATION))]
    pub suspicion_interval: Duration,
    /// Lookups a second that all vantages of the cluster together may add to their regular ones after a symptom. 500:
    /// a hundred nodes ask five times a second, ten thousand that see the same dead DNS don't make it worse.
    pub burst_ceiling: u32,
    /// How long a vantage asks that often. "30s": enough to confirm, too short to burden a sick server.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = DURATION))]
    pub suspicion: Duration,
    /// Silence or an answer that takes longer is a symptom. "1s": far above any healthy answer, and below the
    /// first resend of every C library (2.5 s).
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = DURATION))]
    pub answer_within: Duration,
    /// The C libraries to be imitated, in turn. musl and glibc: nearly every image has one of them.
    #[schemars(length(min = 1))]
    pub profiles: Vec<ProfileName>,
    /// The names to ask for.
    pub names: Names,
    /// How many vantages ask each server directly. 3: one of them may be sick itself, and two still agree.
    pub direct_from: usize,
    /// How many lookups of one vantage may be under way. 64: at five a second a wholly dead DNS keeps about
    /// 40 waiting.
    pub in_flight: usize,
}

/// The names to ask for, each taken as absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Names {
    /// A name of the cluster's own zone. "kubernetes.default.svc.cluster.local.": the one Service that every
    /// cluster has.
    pub cluster: String,
    /// A name that the servers forward. "example.com.": reserved by RFC 2606, so it stays. null: forwarded names
    /// are not probed.
    pub forwarded: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            suspicion_interval: Duration::from_millis(200),
            burst_ceiling: 500,
            suspicion: Duration::from_secs(30),
            answer_within: Duration::from_secs(1),
            profiles: vec![ProfileName::Musl, ProfileName::Glibc],
            names: Names::default(),
            direct_from: 3,
            in_flight: 64,
        }
    }
}

impl Default for Names {
    fn default() -> Self {
        Self {
            cluster: "kubernetes.default.svc.cluster.local.".into(),
            forwarded: Some("example.com.".into()),
        }
    }
}

/// A duration as humantime writes it.
const DURATION: &str = "^([0-9]+ *(ns|us|ms|s|sec|m|min|h|d) *)+$";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_survives_json_with_durations_as_text() {
        let json = serde_json::to_value(Config::default()).unwrap();
        assert_eq!(json["suspicionInterval"], "200ms");
        assert_eq!(serde_json::from_value::<Config>(json).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_a_mistake() {
        assert!(serde_json::from_str::<Config>(r#"{"intervall": "2s"}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"names": {"forwarded": null}}"#).is_ok());
    }

    #[test]
    fn the_schema_knows_durations_as_text() {
        let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap();
        assert_eq!(schema["properties"]["interval"]["type"], "string");
        assert_eq!(schema["properties"]["interval"]["pattern"], DURATION);
    }
}
