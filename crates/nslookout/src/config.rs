//! The one configuration tree, and how its mistakes are told: all at once, each with its path.
//!
//! `mistakes.rs` checks a tree against the schema and words what it finds, `sense.rs` finds values that are allowed
//! and make no sense. serde alone would stop at the first mistake.

mod mistakes;
mod near;
mod parts;
mod sense;
mod shape;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use parts::{
    AccountsConfig, AgentConfig, AliveConfig, AuthorityConfig, CorrelatorConfig, DEFAULT_SOCKET, TlsConfig,
};

use crate::alertmanager::AlertmanagersConfig;
use crate::inventory::ClusterConfig;
use crate::store::StoreConfig;

/// All that can be set. Every key has a default that works on one machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The cluster: its name, its DNS Service, where its inventory comes from.
    pub cluster: ClusterConfig,
    /// Nodes to look at. None: this machine, in the namespace in which it runs.
    pub nodes: Vec<NodeConfig>,
    /// Places to probe from. None: this machine, in the namespace in which it runs.
    pub vantages: Vec<VantageConfig>,
    /// Lookups as applications make them.
    pub prober: prober::Config,
    /// Conntrack counters, mappings and dropped packets.
    pub conntrack_watch: conntrack_watch::Config,
    /// CoreDNS's own metrics.
    pub coredns_watch: coredns_watch::Config,
    /// When symptoms become incidents.
    pub correlate: correlate::Config,
    /// Who sends alerts: this process, or Prometheus by config/alerts.yaml. One of them, never both.
    pub alerting: Alerting,
    /// Where alerts are pushed.
    pub alertmanagers: AlertmanagersConfig,
    /// What is kept over restarts.
    pub store: StoreConfig,
    /// The metrics page and the API.
    pub metrics: MetricsConfig,
    /// The agents, where nslookout runs in parts.
    pub agent: AgentConfig,
    /// The correlator, where nslookout runs in parts.
    pub correlator: CorrelatorConfig,
    /// What kubelet's probes ask.
    pub alive: AliveConfig,
}

/// A node whose kernel is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name, as Kubernetes has it.
    pub name: String,
    /// Its network namespace, as a file; none is the one in which nslookout runs.
    #[serde(default)]
    pub netns: Option<PathBuf>,
}

/// A place from which lookups are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VantageConfig {
    /// Its name.
    pub name: String,
    /// The node it is on.
    pub node: String,
    /// Its network namespace, as a file; none is the one in which nslookout runs.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Whether it sees the network as a pod or as the host.
    #[serde(default)]
    pub network: Network,
}

/// Which network a vantage sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// The pods' network.
    #[default]
    Pod,
    /// The node's own.
    Host,
}

/// Who sends alerts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Alerting {
    /// nslookout pushes to the Alertmanagers itself: it works while Prometheus does not.
    #[default]
    Push,
    /// Prometheus does, by the rules in config/alerts.yaml.
    Prometheus,
}

/// The metrics page and the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Address and port for /metrics and /api/v1/status. Loopback by default: the page names pods.
    #[schemars(extend("format" = shape::LISTEN))]
    pub listen: SocketAddr,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: DEFAULT_LISTEN }
    }
}

/// Every mistake of one configuration, with its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} has {}:\n{}", count(.mistakes.len()), .mistakes.iter().map(|m| format!("  {m}")).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes {
    /// The file.
    pub path: String,
    /// "path.to.key: what is wrong", one for each.
    pub mistakes: Vec<String>,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Mistakes {
            path: name.clone(),
            mistakes: vec![format!("can't be read: {error}")],
        })?;
        Self::parse(&text).map_err(|mistakes| Mistakes { path: name, mistakes })
    }

    /// Checks a text; gives all its mistakes.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        // By way of YAML's own values: these refuse a key that is there twice, where JSON's take the last one.
        let value = serde_yaml::from_str::<serde_yaml::Value>(text)
            .map_err(|error| vec![format!("can't be read as YAML: {error}")])?;
        let value =
            serde_json::to_value(value).map_err(|error| vec![format!("is no plain tree: {error}")])?;
        // An empty file, and a section without a value (all its lines commented out), mean the defaults.
        let value = without_empty_sections(if value.is_null() { serde_json::json!({}) } else { value });
        let names = sense::names(&value);
        let (mut mistakes, sound) = mistakes::against_schema(value).map_err(|error| vec![error])?;
        mistakes.extend(names);
        // What has a mistake is left out of `sound`, so that the rest of the file is checked too.
        match serde_json::from_value::<Self>(sound.clone()) {
            Ok(config) => {
                mistakes.extend(config.nonsense());
                if mistakes.is_empty() {
                    return Ok(config);
                }
            }
            Err(_) => mistakes.extend(mistakes::unread(&sound)),
        }
        Err(mistakes)
    }
}

/// Sections without a value. Deeper down null is a value: `prober.names.forwarded: null` turns these probes off.
fn without_empty_sections(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => map.into_iter().filter(|(_, section)| !section.is_null()).collect(),
        other => other,
    }
}

fn count(mistakes: usize) -> String {
    if mistakes == 1 { "a mistake".into() } else { format!("{mistakes} mistakes") }
}

/// Where `run` listens and `status` asks unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9853);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(Config::parse("prober:\n# all commented out\n").unwrap(), Config::default());
    }

    #[test]
    fn every_mistake_is_told_with_its_path() {
        let mistakes = Config::parse(
            "prober: {interval: fast}\ncorrelate: {likelySymptoms: many}\nnodse: []\nmetrics: {listen: 7}\nnodes: [{netns: /x}]\n",
        )
        .unwrap_err();
        for path in
            ["prober.interval", "correlate.likelySymptoms", "nodse", "metrics.listen", "nodes[0].name"]
        {
            assert!(mistakes.iter().any(|mistake| mistake.contains(path)), "{path} is not in {mistakes:#?}");
        }
    }

    #[test]
    fn values_that_contradict_each_other_are_told_together() {
        let mistakes = Config::parse(
            "nodes: [{name: a}, {name: a}]\nvantages: [{name: v, node: b}, {name: v, node: a}]\n\
             alertmanagers: {addresses: ['http://alertmanager:9093']}\n",
        )
        .unwrap_err();
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    }

    #[test]
    fn mistakes_of_the_schema_and_nonsense_are_told_together() {
        let mistakes = Config::parse(
            "prober: {interval: fast, inFlight: 0}\nnodes: [{name: a}, {name: a}, {}]\ncorrelate: {closeAfter: 0s}\n\
             cluster: {servers: [10.0.0.999]}\n",
        )
        .unwrap_err();
        for path in [
            "prober.interval: ",
            "prober.inFlight: ",
            "nodes[1].name: ",
            "nodes[2].name: ",
            "correlate.closeAfter: ",
            "cluster.servers[0]: ",
        ] {
            assert!(
                mistakes.iter().any(|mistake| mistake.starts_with(path)),
                "{path} is not in {mistakes:#?}"
            );
        }
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
    }

    #[test]
    fn a_key_that_is_there_twice_is_a_mistake() {
        for text in ["prober: {inFlight: 7}\nprober: {inFlight: 8}\n", "prober: {inFlight: 7, inFlight: 8}\n"]
        {
            let mistakes = Config::parse(text).unwrap_err();
            assert!(matches!(mistakes.as_slice(), [m] if m.contains("duplicate")), "{mistakes:#?}");
        }
    }

    #[test]
    fn what_only_serde_refuses_has_its_path_too() {
        let mistakes = Config::parse("prober: {directFrom: 3.0, inFlight: 7}\n").unwrap_err();
        assert!(
            matches!(mistakes.as_slice(), [m] if m == "prober.directFrom: 3.0 is not a whole number"),
            "{mistakes:#?}"
        );
    }

    #[test]
    fn the_committed_default_file_is_the_default() {
        assert_eq!(Config::load(&default_file()).unwrap(), Config::default());
    }

    #[test]
    fn the_committed_default_file_names_every_key() {
        let text = std::fs::read_to_string(default_file()).unwrap();
        let file: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let mut missing = Vec::new();
        not_in(&file, &serde_json::to_value(Config::default()).unwrap(), "", &mut missing);
        assert!(missing.is_empty(), "the file lacks {missing:#?}");
    }

    fn default_file() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/nslookout.yaml")
    }

    /// The pointers of all of `tree` that are not null and not in `file`.
    fn not_in(file: &serde_json::Value, tree: &serde_json::Value, at: &str, missing: &mut Vec<String>) {
        for (key, value) in tree.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            let at = format!("{at}/{key}");
            if file.pointer(&at).is_none_or(serde_json::Value::is_null) {
                missing.push(at.clone());
            }
            not_in(file, value, &at, missing);
        }
    }
}
