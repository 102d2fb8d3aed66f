//! Installed by real Helm in a real Kubernetes, with the chart's own rights: what breaks there is named there.

use e2e::installed::{Installed, NAMESPACE, agents_report, signal};
use lab::command;
use lab::kubernetes::Options;

#[test]
fn what_breaks_in_a_real_cluster_is_named_by_what_helm_installed() {
    let installed = Installed::raise(&Options::new(format!("installed-{}", std::process::id())));
    let cluster = &installed.cluster;

    for (typo, named) in [("config.metrics.port=1", "'port'"), ("node.enable=true", "'enable'")] {
        let output = command::output(&mut installed.helm_install(&["--set", typo]), None).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{typo}: {said}");
        assert!(said.contains("additional properties") && said.contains(named), "{typo}: {said}");
    }
    installed.install(&[]);

    // Without it no new agent would start: it comes back, as the last lines hold.
    cluster.run(&["delete", "configmap", NAMESPACE, "nslookout-ca"]).unwrap();

    // A server hangs while the Service still has it.
    let hung = cluster.pods("k8s-app=kube-dns").unwrap().remove(0);
    let address = format!("{}:53", hung.addresses.first().unwrap());
    for process in cluster.processes(&hung).unwrap() {
        signal("STOP", process.pid);
    }
    let incident = installed.named("server-silent");
    assert_eq!(incident.at("server"), Some(address.as_str()), "{}", incident.scope);
    for process in cluster.processes(&hung).unwrap() {
        signal("CONT", process.pid);
    }
    installed.calm();

    // A rule of one node drops DNS.
    let node = cluster.node("node-b").unwrap();
    let rule = |action: &str| {
        let mut iptables = command::inside(&node.netns, "iptables");
        iptables.args(["-w", "10", action, "FORWARD", "-p", "udp", "--dport", "53", "-j", "DROP"]);
        command::run(&mut iptables, None).unwrap();
    };
    rule("-I");
    let incident = installed.named("policy-drop");
    assert_eq!((incident.at("node"), incident.confidence.as_str()), (Some("node-b"), "certain"));
    rule("-D");
    installed.calm();

    // No servers at all: told by what the API server says, while every lookup fails.
    installed.scale_dns(0);
    let incident = installed.named("no-endpoints");
    assert_eq!((incident.at("node"), incident.confidence.as_str()), (None, "certain"), "{}", incident.scope);
    // The correlator dies in the midst of it: the next one is trusted by the same agents, and names it, too.
    let before = installed.correlator();
    cluster.run(&["delete", "pod", NAMESPACE, "--grace-period=0", "--force", &before]).unwrap();
    let incident = installed.named("no-endpoints");
    assert_eq!(incident.confidence, "certain");
    installed.wait_for("the agents of both nodes report to the new one", agents_report);
    assert_ne!(installed.correlator(), before);
    installed.scale_dns(2);
    installed.calm();
    cluster.run(&["get", "configmap", NAMESPACE, "nslookout-ca"]).unwrap();

    let mut uninstall = installed.helm();
    command::run(uninstall.args(["uninstall", "nslookout", NAMESPACE, "--wait", "--timeout=60s"]), None)
        .unwrap();
    installed.nothing_left();
    installed.cluster.down().unwrap();
}
