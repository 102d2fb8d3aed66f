//! What may an operator set?

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The node's view of conntrack and drops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Whether conntrack's counters are read.
    pub counters: bool,
    /// Whether conntrack's entries of DNS are read.
    pub table: bool,
    /// Whether the drop helper (BPF) is loaded.
    pub drops: bool,
    /// How often counters and totals are read and reported.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub interval: Duration,
    /// How soon the table is read a second time after endpoints changed, and how often entries that lead to no endpoint are
    /// looked at again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub dump_interval: Duration,
    /// How often the table is read otherwise.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub quiet_dump_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            counters: true,
            table: true,
            drops: true,
            // A batch leaves within a second of what it tells.
            interval: Duration::from_secs(1),
            // Two readings show that an entry is in use; a stale one is to be named within ten seconds.
            dump_interval: Duration::from_secs(2),
            // The kernel walks all 262,144 buckets, empty or not: 10 ms of CPU each time, 0.1 % of a core.
            quiet_dump_interval: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_words_and_unknown_keys_are_mistakes() {
        let config: Config = serde_json::from_str(r#"{"dumpInterval": "5s", "drops": false}"#).unwrap();
        assert_eq!((config.dump_interval, config.drops), (Duration::from_secs(5), false));
        assert_eq!(config.interval, Duration::from_secs(1));
        assert!(serde_json::from_str::<Config>(r#"{"dumpIntervall": "5s"}"#).is_err());
    }
}
