//! Which values are allowed each by itself, and make no sense?

use std::collections::BTreeSet;
use std::time::Duration;

use humantime_serde::re::humantime::format_duration;
use serde_json::Value;

use super::{Alerting, Config};
use crate::alertmanager;

impl Config {
    /// What the schema allows, and would look at nothing, alert on nothing or contradict itself.
    pub(super) fn nonsense(&self) -> Vec<String> {
        let mut mistakes = self.nonsense_durations();
        let Self { cluster, prober, coredns_watch, correlate, agent, correlator, .. } = self;
        for (path, is_zero, so) in [
            ("prober.inFlight", prober.in_flight == 0, "no lookup would ever be made"),
            ("corednsWatch.metricsPort", coredns_watch.metrics_port == 0, "nothing listens there"),
            ("correlate.likelySymptoms", correlate.likely_symptoms == 0, "an incident needs a symptom"),
            (
                "correlate.unexplainedSymptoms",
                correlate.unexplained_symptoms == 0,
                "an incident needs a symptom",
            ),
            ("correlate.criticalLookups", correlate.critical_lookups == 0, "no lookups have no percentage"),
            ("agent.spoolBatches", agent.spool_batches == 0, "nothing could ever be sent"),
            ("agent.spoolBytes", agent.spool_bytes == 0, "nothing could ever be sent"),
            ("correlator.connections", correlator.connections == 0, "nobody could ever report"),
            (
                "correlator.connectionsPerAddress",
                correlator.connections_per_address == 0,
                "nobody could ever report",
            ),
        ] {
            if is_zero {
                mistakes.push(format!("{path}: is 0, but {so}"));
            }
        }
        let percent = correlate.critical_percent;
        if !(percent > 0.0 && percent <= 100.0) {
            mistakes.push(format!("correlate.criticalPercent: {percent} is not above 0 and up to 100"));
        }
        if rustls::pki_types::ServerName::try_from(correlator.name.as_str()).is_err() {
            mistakes.push(format!("correlator.name: {:?} is no name of a server", correlator.name));
        }
        if correlator.tls.is_some() && (correlator.authority.is_some() || correlator.keys.is_some()) {
            mistakes.push(
                "correlator.tls: with a certificate from files there is no authority of its own; leave out \
                 correlator.authority and correlator.keys"
                    .into(),
            );
        }
        if agent.node.as_deref().is_some_and(|node| node.is_empty() || node.contains('/')) {
            mistakes.push("agent.node: is no name of a node".into());
        }
        if cluster.name.is_empty() {
            mistakes.push("cluster.name: is empty; alerts would not tell their cluster".into());
        }
        if cluster.inventory.is_some() && cluster.kubeconfig.is_some() {
            mistakes.push(
                "cluster.kubeconfig: cluster.inventory is set too; one of them can be the source".into(),
            );
        }
        let names =
            [("cluster", Some(&prober.names.cluster)), ("forwarded", prober.names.forwarded.as_ref())];
        for (key, name) in names {
            if let Some(name) = name.filter(|name| !is_domain_name(name)) {
                mistakes.push(format!("prober.names.{key}: {name:?} is no domain name"));
            }
        }
        mistakes.extend(self.alertmanagers.mistakes());
        mistakes.extend(alertmanager::in_vain(&self.alertmanagers, cluster.kubeconfig.is_some()));
        let told = &self.alertmanagers;
        for (key, is_set) in
            [("addresses", !told.addresses.is_empty()), ("services", !told.services.is_empty())]
        {
            if self.alerting == Alerting::Prometheus && is_set {
                mistakes.push(format!(
                    "alertmanagers.{key}: with alerting: prometheus every alert would be told twice; leave it empty"
                ));
            }
        }
        mistakes
    }

    fn nonsense_durations(&self) -> Vec<String> {
        let Self { prober, conntrack_watch, coredns_watch, correlate, alertmanagers, .. } = self;
        [
            ("prober.interval", prober.interval, SHORTEST),
            ("prober.suspicionInterval", prober.suspicion_interval, SHORTEST),
            // Zero: never asked more often.
            ("prober.suspicion", prober.suspicion, Duration::ZERO),
            ("prober.answerWithin", prober.answer_within, SHORTEST),
            ("conntrackWatch.interval", conntrack_watch.interval, SHORTEST),
            ("conntrackWatch.dumpInterval", conntrack_watch.dump_interval, SHORTEST),
            ("conntrackWatch.quietDumpInterval", conntrack_watch.quiet_dump_interval, SHORTEST),
            ("corednsWatch.interval", coredns_watch.interval, SHORTEST),
            ("corednsWatch.timeout", coredns_watch.timeout, SHORTEST),
            // Zero: no waiting for better proof.
            ("correlate.confirmAfter", correlate.confirm_after, Duration::ZERO),
            ("correlate.openAfter", correlate.open_after, Duration::ZERO),
            ("correlate.closeAfter", correlate.close_after, SHORTEST),
            ("correlate.staleAfter", correlate.stale_after, Duration::ZERO),
            // Their lower limits are the Alertmanagers' own.
            ("alertmanagers.interval", alertmanagers.interval, Duration::ZERO),
            ("alertmanagers.lasting", alertmanagers.lasting, Duration::ZERO),
            ("alertmanagers.timeout", alertmanagers.timeout, Duration::ZERO),
        ]
        .into_iter()
        .filter_map(|(path, given, shortest)| {
            if given < shortest {
                let (given, shortest) = (format_duration(given), format_duration(shortest));
                Some(format!("{path}: {given} is too short; at least {shortest}"))
            } else if given > LONGEST {
                Some(format!("{path}: {} is too long; at most 1day", format_duration(given)))
            } else {
                None
            }
        })
        .collect()
    }
}

/// Names that are there twice, or nowhere. On the tree itself, so that entries with other mistakes count too.
pub(super) fn names(tree: &Value) -> Vec<String> {
    let entries = |list: &str, key: &'static str| {
        let entries = tree.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let of = |(i, entry): (usize, &'_ Value)| {
            entry.get(key).and_then(Value::as_str).map(|text| (format!("{list}[{i}].{key}"), text.to_owned()))
        };
        entries.iter().enumerate().filter_map(of).collect::<Vec<_>>()
    };
    let mut mistakes = Vec::new();
    for list in ["nodes", "vantages"] {
        let mut seen = BTreeSet::new();
        for (path, name) in entries(list, "name") {
            if name.is_empty() {
                mistakes.push(format!("{path}: is empty"));
            } else if !seen.insert(name.clone()) {
                mistakes.push(format!("{path}: {name:?} is there twice"));
            }
        }
    }
    let nodes: BTreeSet<String> = entries("nodes", "name").into_iter().map(|(_, name)| name).collect();
    for (path, node) in entries("vantages", "node") {
        if !nodes.is_empty() && !nodes.contains(&node) {
            mistakes.push(format!("{path}: {node:?} is none of nodes"));
        }
    }
    mistakes
}

/// By RFC 1035, section 2.3.4; a name without dots is one. Blanks are allowed there, but are a slip here.
fn is_domain_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && !label.contains(char::is_whitespace);
    name.len() <= 253 && name.split('.').all(is_label)
}

/// What the components take at least; they would quietly go by this instead.
const SHORTEST: Duration = Duration::from_millis(10);

/// Who waits longer watches nothing.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        Config::parse(text).map(|_| Vec::new()).unwrap_or_else(|mistakes| mistakes)
    }

    #[test]
    fn nonsense_is_a_mistake_with_its_path() {
        for (text, path) in [
            ("prober: {interval: 0s}", "prober.interval: 0s is too short; at least 10ms"),
            ("prober: {suspicionInterval: 0s}", "prober.suspicionInterval: 0s"),
            ("prober: {answerWithin: 0ms}", "prober.answerWithin: 0s"),
            ("prober: {suspicion: 2d}", "prober.suspicion: 2days is too long; at most 1day"),
            ("prober: {inFlight: 0}", "prober.inFlight: is 0"),
            ("prober: {profiles: []}", "prober.profiles: has too few entries"),
            ("prober: {names: {cluster: ''}}", "prober.names.cluster: \"\" is no domain name"),
            ("prober: {names: {forwarded: a..b}}", "prober.names.forwarded: \"a..b\" is no domain name"),
            ("cluster: {name: ''}", "cluster.name: is empty"),
            ("conntrackWatch: {interval: 0s}", "conntrackWatch.interval: 0s"),
            ("conntrackWatch: {dumpInterval: 0s}", "conntrackWatch.dumpInterval: 0s"),
            ("conntrackWatch: {quietDumpInterval: 0s}", "conntrackWatch.quietDumpInterval: 0s"),
            ("corednsWatch: {interval: 0s}", "corednsWatch.interval: 0s"),
            ("corednsWatch: {timeout: 0s}", "corednsWatch.timeout: 0s"),
            ("corednsWatch: {metricsPort: 0}", "corednsWatch.metricsPort: is 0"),
            ("correlate: {closeAfter: 0s}", "correlate.closeAfter: 0s"),
            ("correlate: {likelySymptoms: 0}", "correlate.likelySymptoms: is 0"),
            ("correlate: {unexplainedSymptoms: 0}", "correlate.unexplainedSymptoms: is 0"),
            ("correlate: {criticalLookups: 0}", "correlate.criticalLookups: is 0"),
            ("correlate: {criticalPercent: 0}", "correlate.criticalPercent: 0 is not"),
            ("correlate: {criticalPercent: 101}", "correlate.criticalPercent: 101 is not"),
            ("alertmanagers: {interval: 0s}", "alertmanagers.interval: is below 100ms"),
            ("alertmanagers: {timeout: 0s}", "alertmanagers.timeout: is zero"),
            ("agent: {spoolBatches: 0}", "agent.spoolBatches: is 0"),
            ("agent: {spoolBytes: 0}", "agent.spoolBytes: is 0"),
            ("agent: {node: a/b}", "agent.node: is no name"),
            (
                "correlator: {address: correlator}",
                "correlator.address: \"correlator\" is no IP address with a port",
            ),
            ("correlator: {name: ''}", "correlator.name: \"\" is no name"),
            ("correlator: {connections: 0}", "correlator.connections: is 0"),
            ("correlator: {connectionsPerAddress: 0}", "correlator.connectionsPerAddress: is 0"),
            ("nodes: [{name: ''}]", "nodes[0].name: is empty"),
            ("nodes: [{name: a}, {name: a}]", "nodes[1].name: \"a\" is there twice"),
            (
                "nodes: [{name: a}]\nvantages: [{name: v, node: b}]",
                "vantages[0].node: \"b\" is none of nodes",
            ),
            ("cluster: {inventory: /a, kubeconfig: /b}", "cluster.kubeconfig: "),
            (
                "alerting: prometheus\nalertmanagers: {addresses: ['http://10.0.0.5']}",
                "alertmanagers.addresses: ",
            ),
            (
                "alerting: prometheus\ncluster: {kubeconfig: /a}\nalertmanagers: {services: [{namespace: a, name: b}]}",
                "alertmanagers.services: with alerting",
            ),
            (
                "alertmanagers: {services: [{namespace: a, name: b}]}",
                "alertmanagers.services: this is no pod",
            ),
            (
                "cluster: {kubeconfig: /a}\nalertmanagers: {services: [{namespace: a, name: b, port: true}]}",
                "alertmanagers.services[0].port: true is not a whole number or a text",
            ),
            (
                "cluster: {kubeconfig: /a}\nalertmanagers: {services: [{namespace: a, name: b, scheme: ftp}]}",
                "alertmanagers.services[0].scheme: \"ftp\" is none of \"http\", \"https\"",
            ),
            ("alertmanagers: {addresses: ['https://10.0.0.5']}", "alertmanagers.ca: is missing"),
            ("alertmanagers: {basicAuth: {username: a}}", "alertmanagers.basicAuth.passwordFile: is missing"),
        ] {
            let told = told(text);
            assert!(matches!(told.as_slice(), [mistake] if mistake.starts_with(path)), "{text}: {told:#?}");
        }
    }

    #[test]
    fn what_is_odd_but_means_something_is_allowed() {
        for text in [
            "prober: {names: {cluster: kubernetes, forwarded: null}}",
            "prober: {suspicion: 0s, directFrom: 0, interval: 50ms}",
            "correlate: {confirmAfter: 0s, staleAfter: 0s, criticalPercent: 100}",
            "conntrackWatch: {counters: false, table: false, drops: false}",
            "metrics: {listen: '127.0.0.1:0'}",
            "cluster: {kubeconfig: /a}\nalertmanagers: {services: [{namespace: a, name: b, port: web, path: /am}]}",
            "alertmanagers: {addresses: ['https://10.0.0.5/am'], ca: /ca, serverName: am, bearerTokenFile: /token}",
        ] {
            assert_eq!(told(text), Vec::<String>::new(), "{text}");
        }
    }
}
