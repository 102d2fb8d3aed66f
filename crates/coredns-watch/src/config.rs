//! How often and where the servers' metrics are read.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `corednsWatch` part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Time from one reading of a server to the next. A failing upstream must show in two readings within the
    /// ten seconds, so 2 s; a page costs CoreDNS about 1 ms.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub interval: Duration,
    /// The port of CoreDNS's prometheus plugin, 9153 unless its Corefile says otherwise.
    pub metrics_port: u16,
    /// A server that has not answered by then has not answered. Longer than any page takes, and no longer than
    /// the interval.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), metrics_port: 9153, timeout: Duration::from_secs(2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let config: Config = serde_json::from_str(r#"{"interval": "500ms"}"#).unwrap();
        assert_eq!(config, Config { interval: Duration::from_millis(500), ..Config::default() });
        assert!(serde_json::from_str::<Config>(r#"{"metricPort": 1}"#).is_err());
    }
}
