//! Was the right thing told to the real Alertmanager, and by it to its webhook?

use std::collections::BTreeMap;

use crate::alertmanager::Alert;
use crate::faults::{Active, Fault, Scope};
use crate::kubernetes::webhook::Told;

/// What is wrong with the calls that an incident of this cause made: each of its alerts is told once, and once that it
/// is over. An incident that becomes graver goes on under another alert.
pub fn wrong_calls(told: &[Told], cause: &str) -> Vec<String> {
    let mut counts: BTreeMap<&BTreeMap<String, String>, (u32, u32)> = BTreeMap::new();
    for one in told.iter().filter(|one| one.labels.get("cause").is_some_and(|name| name == cause)) {
        let (firing, over) = counts.entry(&one.labels).or_default();
        *(if one.status == "firing" { firing } else { over }) += 1;
    }
    let wrong = counts.iter().filter(|(_, count)| **count != (1, 1));
    wrong
        .map(|(labels, (firing, over))| {
            format!("the webhook was told {firing} times, and {over} times that it is over: {labels:?}")
        })
        .collect()
}

/// The real Alertmanager has exactly one alert of nslookout's causes, with the labels that the fault should have.
pub fn wrong_alerts(fault: &Fault, active: &Active, alerts: &[Alert]) -> Vec<String> {
    let own: Vec<_> = alerts
        .iter()
        .filter(|alert| alert.labels.get("alertname").is_some_and(|name| name == "NslookoutDNS"))
        .collect();
    let [alert] = own.as_slice() else {
        return vec![format!("Alertmanager should have one alert of NslookoutDNS, not {own:#?}")];
    };
    let server = active.server_addresses.first().map(ToString::to_string);
    let (node, server) = match fault.expected.scope {
        Scope::Node | Scope::Pod => (active.node.clone(), alert.labels.get("server").cloned()),
        Scope::Servers => (None, server),
        Scope::Cluster => (None, None),
    };
    let wanted = [("cause", Some(fault.expected.cause.to_owned())), ("node", node), ("server", server)];
    wanted
        .iter()
        .filter(|(key, value)| alert.labels.get(*key) != value.as_ref())
        .map(|(key, value)| format!("the alert's label {key} should be {value:?}: {:?}", alert.labels))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: &str, severity: &str) -> Told {
        let labels = [("cause", "no-endpoints"), ("severity", severity)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Told { status: status.to_owned(), labels, starts_at: String::new() }
    }

    #[test]
    fn an_alert_that_is_told_twice_is_wrong_and_one_that_becomes_graver_is_not() {
        let graver = [
            told("firing", "warning"),
            told("firing", "critical"),
            told("resolved", "warning"),
            told("resolved", "critical"),
        ];
        assert_eq!(wrong_calls(&graver, "no-endpoints"), Vec::<String>::new());
        let twice = [&graver[..], &[told("firing", "critical")]].concat();
        assert_eq!(wrong_calls(&twice, "no-endpoints").len(), 1);
        assert_eq!(wrong_calls(&twice, "stale-mapping"), Vec::<String>::new());
    }
}
