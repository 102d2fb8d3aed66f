//! How do alerts reach every Alertmanager, whatever state it is in?
//!
//! `board.rs` keeps the present state of each label set, never a queue. For each Alertmanager one task pushes
//! that state by its v2 API: at once when an alert begins or ends, again and again while it fires or has just
//! ended (`delivery.rs`, `letter.rs`). A slow or dead one so keeps nobody waiting, and gets all when it is back.
//! Alertmanagers are named by address: a name would have to be resolved, and DNS is what is broken. When this
//! process ends nothing is resolved: what fires runs out by its end unless a successor goes on.

mod adopt;
mod board;
mod delivery;
mod ledger;
mod letter;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use evidence::WallTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::config::{Alerting, Config};
use crate::metrics::Metrics;
pub use adopt::incident;
use board::Board;
use delivery::{Delivery, Question};
pub use ledger::{Ledger, ToldAll};

/// The `alertmanagers` part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AlertmanagersConfig {
    /// Each of them as http://IP:PORT, never through a ClusterIP and never by name: both need what may be broken.
    /// Every one gets all alerts; they sort out among themselves who tells.
    pub addresses: Vec<String>,
    /// Firing alerts are sent again so often: a lost Alertmanager knows all again after one interval.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub interval: Duration,
    /// Firing alerts run out so long after they were last sent. Long enough for a correlator whose node has died to be
    /// started on another one: 50 s until Kubernetes gives a node up, 15 s of toleration, and time to start. One that
    /// runs out before that is told as over, and then anew.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub lasting: Duration,
    /// A push that takes longer has failed.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub timeout: Duration,
}

impl Default for AlertmanagersConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            interval: Duration::from_secs(15),
            lasting: Duration::from_secs(180),
            timeout: Duration::from_secs(5),
        }
    }
}

impl AlertmanagersConfig {
    /// What is wrong with it, each with its path.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes: Vec<String> = self
            .addresses
            .iter()
            .enumerate()
            .filter_map(|(i, text)| {
                let problem = Target::parse(text).err()?;
                Some(format!("alertmanagers.addresses[{i}]: {text:?} {problem}"))
            })
            .collect();
        if self.interval < Duration::from_millis(100) {
            mistakes.push("alertmanagers.interval: is below 100ms".into());
        }
        if self.lasting < self.interval * 2 {
            mistakes.push(
                "alertmanagers.lasting: is below two intervals, so alerts would run out while they fire"
                    .into(),
            );
        }
        if self.timeout.is_zero() {
            mistakes.push("alertmanagers.timeout: is zero, so every push would fail".into());
        }
        mistakes
    }
}

/// One alert in its present state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// Its identity: fixed for its life.
    pub labels: BTreeMap<String, String>,
    /// All that changes.
    pub annotations: BTreeMap<String, String>,
    /// When it began; never changes while it fires.
    pub starts_at: WallTime,
    /// When it ended, where it has.
    pub ends_at: Option<WallTime>,
}

/// Takes the present alerts and has them pushed. Once it is dropped the tasks end, and nothing is resolved.
#[derive(Debug)]
pub struct Pusher {
    board: watch::Sender<Arc<Board>>,
    held: mpsc::Receiver<Vec<Alert>>,
}

/// What an earlier process has left.
#[derive(Debug, Clone, Default)]
pub struct Legacy {
    /// What Alertmanagers have taken.
    pub ledger: Ledger,
    /// Nothing else: they are asked what still fires.
    pub asks: bool,
}

impl Pusher {
    /// The present state of all alerts. One that was firing and is not among them is over now. Never waits.
    pub fn set(&self, alerts: Vec<Alert>) {
        let next = self.board.borrow().next(alerts, WallTime::now());
        if let Some(next) = next {
            self.board.send_replace(Arc::new(next));
        }
    }

    /// What an Alertmanager still holds of an earlier process, once for each of them; for ever where none is asked.
    /// Cancel-safe.
    pub async fn held(&mut self) -> Vec<Alert> {
        match self.held.recv().await {
            Some(alerts) => alerts,
            None => std::future::pending().await,
        }
    }
}

/// As the configuration has it: none where Prometheus sends alerts.
pub fn of(config: &Config, legacy: Legacy, metrics: &Metrics) -> Option<Pusher> {
    match config.alerting {
        Alerting::Push => Some(start(&config.alertmanagers, &config.cluster.name, legacy, metrics)),
        Alerting::Prometheus => None,
    }
}

/// Starts a task for each Alertmanager on the caller's runtime, and with them the watchdog alert. Addresses that
/// `mistakes` would name are left out.
pub fn start(config: &AlertmanagersConfig, cluster: &str, legacy: Legacy, metrics: &Metrics) -> Pusher {
    let (holds, held) = mpsc::channel(MOST_ANSWERS);
    let (board, receiver) = watch::channel(Arc::new(Board::new(watchdog(cluster, WallTime::now()))));
    for target in config.addresses.iter().filter_map(|text| Target::parse(text).ok()) {
        let told = legacy.ledger.of(&target.address.to_string());
        let question = legacy.asks.then(|| Question {
            path: format!("{}{}", target.prefix, adopt::path(cluster)),
            out: holds.clone(),
        });
        match Delivery::new(config, target, receiver.clone(), told, question, metrics.clone()) {
            Ok(delivery) => drop(tokio::spawn(delivery.run())),
            Err(error) => tracing::error!("alerts can't be sent: {error}"),
        }
    }
    Pusher { board, held }
}

/// Fires as long as nslookout can push: an outside heartbeat tells when it no longer does.
fn watchdog(cluster: &str, now: WallTime) -> Alert {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    Alert {
        labels: pairs(&[("alertname", "NslookoutWatchdog"), ("severity", "none"), ("cluster", cluster)]),
        annotations: pairs(&[
            ("summary", "nslookout runs and reaches this Alertmanager"),
            (
                "description",
                "It always fires. Route it to an outside heartbeat that calls when it stops coming.",
            ),
        ]),
        starts_at: now,
        ends_at: None,
    }
}

/// One Alertmanager.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    address: SocketAddr,
    /// Where it is served under a prefix (--web.route-prefix); without the last slash.
    prefix: String,
}

impl Target {
    /// The error goes on after the text itself.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err("is https, which is not supported yet; use http://IP:PORT"),
            Some(_) | None => return Err("is not http://IP:PORT"),
        };
        let (host, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len())).unwrap_or((rest, ""));
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let address = host
            .parse()
            .or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)))
            .map_err(
                |_| "is no IP address: a host name can't be resolved while DNS is down; use http://IP:PORT",
            )?;
        let proper = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
        if !path.chars().all(proper) {
            return Err("has a path that is no plain prefix; use http://IP:PORT");
        }
        Ok(Self { address, prefix: path.trim_end_matches('/').to_owned() })
    }
}

/// Answers that wait while a verdict is being made.
const MOST_ANSWERS: usize = 16;

/// Alertmanager's own.
const DEFAULT_PORT: u16 = 9093;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_taken() {
        for (text, expected) in [
            ("http://10.0.0.5:9093", Some(("10.0.0.5:9093", ""))),
            ("http://10.0.0.5", Some(("10.0.0.5:9093", ""))),
            ("http://[fd00::5]:1/", Some(("[fd00::5]:1", ""))),
            ("http://[fd00::5]/am/", Some(("[fd00::5]:9093", "/am"))),
            ("http://alertmanager:9093", None),
            ("https://10.0.0.5:9093", None),
            ("10.0.0.5:9093", None),
            ("http://10.0.0.5:9093/a b", None),
            ("", None),
        ] {
            let target = Target::parse(text).ok();
            let expected = expected.map(|(address, prefix)| Target {
                address: address.parse().unwrap(),
                prefix: prefix.to_owned(),
            });
            assert_eq!(target, expected, "{text}");
        }
        let config = AlertmanagersConfig {
            addresses: vec!["http://10.0.0.5:9093".into(), "http://alertmanager".into()],
            timeout: Duration::ZERO,
            ..AlertmanagersConfig::default()
        };
        let mistakes = config.mistakes();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with("alertmanagers.addresses[1]: \"http://alertmanager\" is no IP address")
        );
    }
}
