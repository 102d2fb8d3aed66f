//! The one configuration tree, and how its mistakes are told: all at once, each with its path.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alertmanager::AlertmanagersConfig;
use crate::inventory::ClusterConfig;

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
    /// The metrics page and the API.
    pub metrics: MetricsConfig,
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
        let value: Option<serde_json::Value> =
            serde_yaml::from_str(text).map_err(|error| vec![format!("is not YAML: {error}")])?;
        // An empty file, and a section without a value (all its lines commented out), mean the defaults.
        let value = without_empty_sections(value.unwrap_or_else(|| serde_json::json!({})));
        let mut mistakes = against_schema(&value)?;
        if mistakes.is_empty() {
            match serde_json::from_value::<Self>(value) {
                Ok(config) => {
                    mistakes = config.contradictions();
                    if mistakes.is_empty() {
                        return Ok(config);
                    }
                }
                Err(error) => mistakes.push(error.to_string()),
            }
        }
        Err(mistakes)
    }

    /// What each value alone allows, and together is wrong.
    fn contradictions(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut names = BTreeSet::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if !names.insert(node.name.as_str()) {
                mistakes.push(format!("nodes[{i}].name: {:?} is there twice", node.name));
            }
        }
        let mut vantages = BTreeSet::new();
        for (i, vantage) in self.vantages.iter().enumerate() {
            if !vantages.insert(vantage.name.as_str()) {
                mistakes.push(format!("vantages[{i}].name: {:?} is there twice", vantage.name));
            }
            if !self.nodes.is_empty() && !names.contains(vantage.node.as_str()) {
                mistakes.push(format!("vantages[{i}].node: {:?} is none of nodes", vantage.node));
            }
        }
        mistakes.extend(self.alertmanagers.mistakes());
        if self.alerting == Alerting::Prometheus && !self.alertmanagers.addresses.is_empty() {
            mistakes.push(
                "alertmanagers.addresses: with alerting: prometheus every alert would be told twice; leave it empty"
                    .into(),
            );
        }
        mistakes
    }
}

fn against_schema(value: &serde_json::Value) -> Result<Vec<String>, Vec<String>> {
    let schema =
        serde_json::to_value(schemars::schema_for!(Config)).map_err(|error| vec![error.to_string()])?;
    let validator = jsonschema::validator_for(&schema).map_err(|error| vec![error.to_string()])?;
    let mistakes = validator.iter_errors(value).map(|error| {
        let path = error.instance_path().to_string();
        let path = path.trim_start_matches('/').replace('/', ".");
        let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
        format!("{path}{error}")
    });
    Ok(mistakes.collect())
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
        for path in ["prober.interval", "correlate.likelySymptoms", "nodse", "metrics.listen", "nodes.0"] {
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
    fn the_committed_default_file_is_the_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/nslookout.yaml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
    }
}
