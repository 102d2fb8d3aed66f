//! Where something is refused to nslookout in a real cluster: does the rest work, and is it told what is missing?

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how a test fails")]

use e2e::installed::{Installed, NAMESPACE, NODES, sees_everything};
use lab::kubernetes::Options;
use lab::trial::Status;

const CONTAINER: &str = "/spec/template/spec/containers/0";

#[test]
fn what_is_refused_to_an_agent_is_named_and_the_agent_stays_up() {
    let installed = Installed::raise(&Options::new(format!("degraded-{}", std::process::id())));
    installed.install(&[]);

    // Without it no new agent would start: it comes back, as those that start below hold.
    installed.cluster.run(&["delete", "configmap", NAMESPACE, "nslookout-ca"]).unwrap();

    let capabilities = format!("{CONTAINER}/securityContext/capabilities/add");
    change(&installed, &format!(r#"[{{"op":"replace","path":"{capabilities}","value":["NET_ADMIN"]}}]"#));
    installed.wait_for("eBPF is refused on both nodes, netlink is not", |status| {
        NODES.iter().all(|node| {
            state(status, "drops", node) == Some("denied")
                && why(status, "drops", node).contains("CAP_BPF, CAP_PERFMON")
                && state(status, "conntrack-table", node) == Some("looked")
        })
    });

    change(&installed, r#"[{"op":"remove","path":"/spec/template/spec/hostNetwork"}]"#);
    installed.wait_for("no node agent is in its host's network", |status| {
        let observers = ["drops", "conntrack-table", "conntrack-counters"];
        NODES.iter().all(|node| {
            observers.iter().all(|observer| why(status, observer, node).contains("hostNetwork: true"))
                && state(status, "prober", node) == Some("looked")
        })
    });
    // What is left names what it can.
    installed.scale_dns(0);
    installed.named("no-endpoints");
    installed.scale_dns(2);
    installed.calm();

    let pods = installed.cluster.json(&["get", "pods", NAMESPACE, "--output=json"]).unwrap();
    for pod in pods["items"].as_array().unwrap() {
        let container = &pod["status"]["containerStatuses"][0];
        assert_eq!((&container["ready"], &container["restartCount"]), (&true.into(), &0.into()), "{pod:#}");
    }
    // Given back, all is seen again.
    let mut upgrade = installed.helm();
    upgrade.args(["upgrade", "nslookout"]).arg(e2e::installed::chart()).args([NAMESPACE, "--reuse-values"]);
    lab::command::run(&mut upgrade, None).unwrap();
    installed.wait_for("it sees everything again", sees_everything);
    installed.cluster.down().unwrap();
}

fn change(installed: &Installed, patch: &str) {
    let patch = format!("--patch={patch}");
    let words = ["patch", "daemonset", NAMESPACE, "nslookout-node", "--type=json", &patch];
    installed.cluster.run(&words).unwrap();
}

fn state<'a>(status: &'a Status, observer: &str, place: &str) -> Option<&'a str> {
    line(status, observer, place)?["state"].as_str()
}

fn why(status: &Status, observer: &str, place: &str) -> String {
    line(status, observer, place).map(ToString::to_string).unwrap_or_default()
}

fn line<'a>(status: &'a Status, observer: &str, place: &str) -> Option<&'a serde_json::Value> {
    status.coverage.iter().find(|line| line["observer"] == observer && line["place"] == place)
}
