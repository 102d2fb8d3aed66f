//! Installed by real Helm in a real Kubernetes, with the chart's own rights: what breaks there is named there.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a panic is how a test fails")]

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use e2e::nslookout;
use lab::kubernetes::image::Image;
use lab::kubernetes::{Cluster, Options, Raised, progress};
use lab::trial::{Incident, OBSERVERS, Status};
use lab::{command, programs};

const NAMESPACE: &str = "--namespace=nslookout";
const NODES: [&str; 2] = ["node-a", "node-b"];

#[test]
fn what_breaks_in_a_real_cluster_is_named_by_what_helm_installed() {
    let programs = programs::cluster::all().unwrap();
    let helm = programs.helm.join("helm");
    let cluster =
        Raised::up(&Options::new(format!("installed-{}", std::process::id())), &mut progress()).unwrap();
    load_image(&cluster);
    cluster.run(&["create", "namespace", "nslookout"]).unwrap();

    for (typo, named) in [("config.metrics.port=1", "'port'"), ("node.enable=true", "'enable'")] {
        let mut refused = cluster.administrator(&helm);
        let words = install(&mut refused, &["--set", typo]);
        let output = command::output(words, None).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{typo}: {said}");
        assert!(said.contains("additional properties") && said.contains(named), "{typo}: {said}");
    }
    let begin = Instant::now();
    let mut helm_install = cluster.administrator(&helm);
    command::run(install(&mut helm_install, &[]), None).unwrap();
    let installed = begin.elapsed().as_secs_f64();
    wait_for(&cluster, "it is healthy and sees everything", |status| {
        status.state == "healthy" && sees_everything(status)
    });
    println!("installed after {installed:.1} s, first verdict after {:.1} s", begin.elapsed().as_secs_f64());

    // Without it no new agent would start: it comes back, as the last lines hold.
    cluster.run(&["delete", "configmap", NAMESPACE, "nslookout-ca"]).unwrap();

    // A server hangs while the Service still has it.
    let hung = cluster.pods("k8s-app=kube-dns").unwrap().remove(0);
    let address = format!("{}:53", hung.addresses.first().unwrap());
    for process in cluster.processes(&hung).unwrap() {
        signal("STOP", process.pid);
    }
    let incident = named(&cluster, "server-silent");
    assert_eq!(incident.at("server"), Some(address.as_str()), "{}", incident.scope);
    for process in cluster.processes(&hung).unwrap() {
        signal("CONT", process.pid);
    }
    calm(&cluster);

    // A rule of one node drops DNS.
    let node = cluster.node("node-b").unwrap();
    let rule = |action: &str| {
        let mut iptables = command::inside(&node.netns, "iptables");
        iptables.args(["-w", "10", action, "FORWARD", "-p", "udp", "--dport", "53", "-j", "DROP"]);
        command::run(&mut iptables, None).unwrap();
    };
    rule("-I");
    let incident = named(&cluster, "policy-drop");
    assert_eq!((incident.at("node"), incident.confidence.as_str()), (Some("node-b"), "certain"));
    rule("-D");
    calm(&cluster);

    // No servers at all: told by what the API server says, while every lookup fails.
    scale(&cluster, 0);
    let incident = named(&cluster, "no-endpoints");
    assert_eq!((incident.at("node"), incident.confidence.as_str()), (None, "certain"), "{}", incident.scope);
    // The correlator dies in the midst of it: the next one is trusted by the same agents, and names it, too.
    let before = correlator(&cluster);
    cluster.run(&["delete", "pod", NAMESPACE, "--grace-period=0", "--force", &before]).unwrap();
    let incident = named(&cluster, "no-endpoints");
    assert_eq!(incident.confidence, "certain");
    wait_for(&cluster, "the agents of both nodes report to the new one", agents_report);
    assert_ne!(correlator(&cluster), before);
    scale(&cluster, 2);
    calm(&cluster);
    cluster.run(&["get", "configmap", NAMESPACE, "nslookout-ca"]).unwrap();

    let mut uninstall = cluster.administrator(&helm);
    command::run(uninstall.args(["uninstall", "nslookout", NAMESPACE, "--wait", "--timeout=60s"]), None)
        .unwrap();
    let kinds = "pods,daemonsets,deployments,services,secrets,configmaps,roles,rolebindings,serviceaccounts,\
                 resourcequotas";
    let begin = Instant::now();
    loop {
        let left = cluster.run(&["get", kinds, NAMESPACE, "--output=name"]).unwrap();
        let global = cluster.run(&["get", "clusterroles,clusterrolebindings", "--output=name"]).unwrap();
        let mut ours =
            left.lines().filter(|name| !name.ends_with("/default") && !name.ends_with("/kube-root-ca.crt"));
        let first = ours.next().or_else(|| global.lines().find(|name| name.contains("nslookout")));
        let Some(first) = first else { break };
        assert!(begin.elapsed() < Duration::from_secs(60), "{first} is left");
        thread::sleep(Duration::from_millis(500));
    }
    cluster.down().unwrap();
}

fn looks(status: &Status, observer: &str, place: &str) -> bool {
    status
        .coverage
        .iter()
        .any(|line| line["observer"] == observer && line["place"] == place && line["state"] == "looked")
}

fn agents_report(status: &Status) -> bool {
    let agents = ["prober", "conntrack-counters", "conntrack-table", "drops"];
    agents.iter().all(|observer| NODES.iter().all(|node| looks(status, observer, node)))
}

fn sees_everything(status: &Status) -> bool {
    let looking = status.looking();
    OBSERVERS.iter().all(|observer| looking.contains(observer)) && agents_report(status)
}

/// The chart as a user installs it, but for where the image is, and that incidents close soon.
fn install<'a>(helm: &'a mut Command, more: &[&str]) -> &'a mut Command {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/nslookout");
    helm.arg("install").arg("nslookout").arg(chart).args([NAMESPACE, "--wait", "--timeout=180s"]);
    helm.args(["--set", "image.repository=docker.io/library/nslookout", "--set", "image.pullPolicy=Never"]);
    helm.args(["--set", "config.correlate.closeAfter=5s"]).args(more)
}

/// The image as `make image` makes it, of the binary that the tests use.
fn load_image(cluster: &Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let (binary, archive) = (folder.path().join("nslookout"), folder.path().join("image.tar"));
    command::run(Command::new("strip").arg("-o").args([&binary, &nslookout()]), None).unwrap();
    let image = Image::new(concat!("docker.io/library/nslookout:", env!("CARGO_PKG_VERSION")));
    image.file("nslookout", binary).entrypoint(&["/nslookout"]).write(&archive).unwrap();
    cluster.load_image(&archive).unwrap();
}

fn status(cluster: &Cluster) -> Option<Status> {
    let mut kubectl = cluster.kubectl();
    kubectl.args([
        "exec",
        NAMESPACE,
        "deploy/nslookout-correlator",
        "--",
        "/nslookout",
        "status",
        "--output=json",
    ]);
    // It ends with 1 where something is wrong.
    serde_json::from_slice(&command::output(&mut kubectl, None).unwrap().stdout).ok()
}

fn wait_for(cluster: &Cluster, what: &str, mut wanted: impl FnMut(&Status) -> bool) -> Status {
    let begin = Instant::now();
    let mut last = None;
    while begin.elapsed() < Duration::from_secs(60) {
        if let Some(status) = status(cluster) {
            if wanted(&status) {
                return status;
            }
            last = Some(status);
        }
        thread::sleep(Duration::from_millis(300));
    }
    let log =
        cluster.run(&["logs", NAMESPACE, "deploy/nslookout-correlator", "--tail=20"]).unwrap_or_default();
    panic!("not within 60 s: {what}\n{last:#?}\n{log}")
}

/// Waits for the one incident, which is of this cause.
fn named(cluster: &Cluster, cause: &str) -> Incident {
    let begin = Instant::now();
    let is_named = |status: &Status| status.incidents.iter().any(|one| one.cause == cause);
    wait_for(cluster, cause, is_named);
    println!("{cause} named after {:.1} s", begin.elapsed().as_secs_f64());
    // What else was open before the proof came is over a moment later.
    let alone = |status: &Status| status.incidents.len() == 1 && is_named(status);
    let status = wait_for(cluster, &format!("{cause} and nothing else"), alone);
    status.incidents.into_iter().next().unwrap()
}

fn calm(cluster: &Cluster) {
    wait_for(cluster, "all is calm", |status| status.incidents.is_empty() && status.state == "healthy");
}

fn scale(cluster: &Cluster, replicas: u32) {
    let replicas = format!("--replicas={replicas}");
    cluster.run(&["scale", "deployment/coredns", "--namespace=kube-system", &replicas]).unwrap();
}

fn correlator(cluster: &Cluster) -> String {
    let pods = cluster.pods("app.kubernetes.io/component=correlator").unwrap();
    pods.into_iter().find(|pod| pod.phase == "Running").map(|pod| pod.name).unwrap()
}

fn signal(name: &str, pid: i32) {
    command::run(Command::new("kill").args(["-s", name, &pid.to_string()]), None).unwrap();
}
