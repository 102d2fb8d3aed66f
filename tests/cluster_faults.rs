//! Each fault on a real cluster, with nslookout as Helm installs it: named right, in the real Alertmanager that runs as
//! a pod, and told once at its webhook.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how a test fails")]

use std::thread;
use std::time::{Duration, Instant};

use e2e::installed::{Installed, NODES, sees_everything};
use e2e::seed;
use lab::demo::{self, cluster};
use lab::faults;
use lab::kubernetes::{Options, ProxyMode};
use lab::trial::Trial;

/// A cluster with kube-proxy in this mode, with Alertmanager and nslookout.
fn installed(proxy_mode: ProxyMode) -> (Installed, Trial) {
    let name = format!("faults-{}-{}", proxy_mode.name(), std::process::id());
    let installed = Installed::raise(&Options { proxy_mode, ..Options::new(name) });
    let (webhook, more) = cluster::told(&installed.cluster).unwrap();
    installed.install(&more.iter().map(String::as_str).collect::<Vec<_>>());
    let trial = Trial::installed(&installed.cluster, &e2e::nslookout(), webhook).unwrap();
    (installed, trial)
}

/// Puts these faults in, one after the other.
fn each_is_named(installed: &Installed, trial: &mut Trial, names: &[&str]) {
    let seed = seed();
    let mut wrong = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let fault = faults::by_name(name).unwrap();
        let choice = demo::probed(&trial.site, fault, seed.wrapping_add(i as u64));
        let begin = Instant::now();
        let run = demo::one(trial, fault, &choice, |_| ()).unwrap();
        println!(
            "{:<16} {:<28} named {:>4.1} s, alert {:>4.1} s, webhook {:?}, {:.1} s in all  {:?}  aside {:?}",
            run.fault.name,
            run.named,
            run.verdict.as_secs_f64(),
            run.alert_after.as_secs_f64(),
            run.called_after,
            begin.elapsed().as_secs_f64(),
            run.wrong,
            run.aside,
        );
        if !run.wrong.is_empty() {
            println!("{}", run.told);
        }
        wrong.extend(run.wrong.into_iter().map(|line| format!("{name}: {line}")));
    }
    let restarts = installed.cluster.restarts("nslookout").unwrap();
    assert!(wrong.is_empty() && restarts.is_empty(), "seed {seed}: {wrong:#?} {restarts:?}");
}

#[test]
fn a_rolling_restart_is_no_incident_and_each_fault_is_named_and_told_once() {
    let (installed, mut trial) = installed(ProxyMode::Iptables);
    let cluster = &installed.cluster;
    cluster.run(&["rollout", "restart", "deployment/coredns", "--namespace=kube-system"]).unwrap();
    let begin = Instant::now();
    while begin.elapsed() < HEALTH {
        let status = trial.status().unwrap();
        assert!(status.incidents.is_empty(), "after {:?}: {:#?}", begin.elapsed(), status.incidents);
        assert!(sees_everything(&status), "after {:?}: {:#?}", begin.elapsed(), status.coverage);
        thread::sleep(Duration::from_millis(500));
    }
    let restarted = ["rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=1s"];
    cluster.run(&restarted).unwrap();
    let faults = [
        "server-stopped",
        "no-endpoints",
        "upstream-dead",
        "forward-drop",
        "same-port-clash",
        "stale-mapping",
        "conntrack-full",
    ];
    each_is_named(&installed, &mut trial, &faults);
    assert_eq!(cluster.nodes.len(), NODES.len());
    drop(trial);
    installed.cluster.down().unwrap();
}

#[test]
fn faults_of_nat_are_named_where_kube_proxy_writes_with_nft() {
    let (installed, mut trial) = installed(ProxyMode::Nftables);
    each_is_named(&installed, &mut trial, &["same-port-clash", "stale-mapping", "conntrack-full"]);
    drop(trial);
    installed.cluster.down().unwrap();
}

/// The restart takes half a minute of it.
const HEALTH: Duration = Duration::from_secs(180);
