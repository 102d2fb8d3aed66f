//! Does the correlator's pod run, and where is its page?

use k8s_openapi::api::core::v1::Pod;

/// What keeps it from running, in Kubernetes' own words.
pub(super) fn why_not_running(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    let status = pod.status.clone().unwrap_or_default();
    for container in status.container_statuses.iter().flatten() {
        let Some(state) = &container.state else { continue };
        if let Some(waiting) = &state.waiting {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            return Some(with_message(reason, waiting.message.as_deref()));
        }
        if let Some(ended) = &state.terminated {
            let reason = ended.reason.as_deref().unwrap_or("ended");
            return Some(format!("{reason}, exit code {}", ended.exit_code));
        }
    }
    let phase = status.phase.as_deref().unwrap_or("Unknown");
    if phase == "Running" {
        return None;
    }
    let unmet = status.conditions.iter().flatten().find(|one| one.status == "False" && one.message.is_some());
    Some(unmet.map_or_else(
        || phase.to_owned(),
        |one| with_message(one.reason.as_deref().unwrap_or(phase), one.message.as_deref()),
    ))
}

fn with_message(reason: &str, message: Option<&str>) -> String {
    let message = message.unwrap_or_default().lines().next().unwrap_or_default();
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

/// Where its page is, by the name that the chart gives the port.
pub(super) fn port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter(|port| port.name.as_deref() == Some("metrics"));
    let known = named.filter_map(|port| u16::try_from(port.container_port).ok()).next();
    known.unwrap_or_else(|| crate::config::DEFAULT_LISTEN.port())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "x" }, "status": status })).unwrap()
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let waiting = json!({ "phase": "Pending", "containerStatuses": [{
            "name": "correlator", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImagePull", "message": "not found\nat all" } },
        }] });
        let unscheduled = json!({ "phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available",
        }] });
        for (status, words) in [
            (waiting, Some("ErrImagePull: not found")),
            (unscheduled, Some("Unschedulable: 0/2 nodes are available")),
            (json!({ "phase": "Failed" }), Some("Failed")),
            (json!({ "phase": "Running" }), None),
        ] {
            assert_eq!(why_not_running(&pod(&status)).as_deref(), words, "{status}");
        }
    }

    #[test]
    fn the_port_is_the_one_that_the_chart_names() {
        let named = json!({ "metadata": {}, "spec": { "containers": [{ "name": "correlator", "ports": [
            { "name": "reports", "containerPort": 9854 }, { "name": "metrics", "containerPort": 19853 },
        ] }] } });
        assert_eq!(port(&serde_json::from_value(named).unwrap()), 19853);
        assert_eq!(port(&pod(&json!({}))), 9853);
    }
}
