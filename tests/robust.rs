//! What if the parts that watch die while DNS is broken? One fault lasts through all of it: it is told once, and since
//! the same moment.
//!
//! Alertmanager, the correlator's process, its pod, the API server and the correlator's node go away, one after the other
//! (the API server together with the correlator, whose every cache is empty then).

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use e2e::installed::{Installed, NAMESPACE, signal};
use lab::alertmanager::{Alert, http_get};
use lab::command;
use lab::kubernetes::webhook::{self, Webhook};
use lab::kubernetes::{Cluster, Node, Options, Pod, cgroups};
use lab::process::{Daemon, wait_until};
use lab::programs;
use lab::trial::{Incident, Status};

/// Where it listens in the monitor namespace.
const ALERTMANAGER: &str = "172.18.0.9:9093";
/// It dies last; the fault is on the other one.
const DIES: &str = "node-b";
const SUFFERS: &str = "node-a";

#[test]
fn a_fault_is_told_once_whatever_of_the_watchers_dies_meanwhile() {
    let installed = Installed::raise(&Options::new(format!("robust-{}", std::process::id())));
    let cluster = &installed.cluster;
    let webhook = Webhook::listen(&cluster.monitor).unwrap();
    let alertmanager = alertmanager(cluster);
    alertmanager.start().unwrap();
    cluster.run(&["cordon", SUFFERS]).unwrap();
    let address = format!("config.alertmanagers.addresses={{http://{ALERTMANAGER}}}");
    installed.install(&["--set", &address]);
    assert_eq!(correlator(cluster).node, DIES);

    let suffers = cluster.node(SUFFERS).unwrap();
    drop_dns(suffers, "-I");
    let watch = Watch::new(&installed, &webhook);
    let took = watch.begin.elapsed().as_secs_f64();
    println!("the fault is told as critical after {took:.1} s");

    // Alertmanager is scaled to nothing and back; its volume stays.
    end(&alertmanager);
    thread::sleep(Duration::from_secs(10));
    alertmanager.start().unwrap();
    watch.holds("after Alertmanager was away");

    // The correlator's process dies: its state is in the pod's volume.
    let before = correlator(cluster);
    for process in cluster.processes(&before).unwrap() {
        signal("KILL", process.pid);
    }
    watch.goes_on("after the correlator died");
    assert_eq!(correlator(cluster).name, before.name);

    // Its pod is replaced: nothing is left of it but what Alertmanager holds.
    cluster.run(&["delete", "pod", NAMESPACE, "--grace-period=0", "--force", &before.name]).unwrap();
    watch.goes_on("after its pod was replaced");
    let pod = correlator(cluster);
    assert_ne!(pod.name, before.name);

    // The API server hangs, and the correlator begins anew without it: nothing that it ever asked is in its memory.
    let api = cluster.daemon("kube-apiserver").unwrap();
    api.stop().unwrap();
    for process in cluster.processes(&pod).unwrap() {
        signal("KILL", process.pid);
    }
    watch.goes_on("after it died while the API server was away");
    let unreviewed = figure(cluster, "nslookout_wire_unreviewed_total");
    assert!(unreviewed > 0.0, "agents are known by the keys that were kept");
    // Far beyond the correlator's patience for one that has lost its senders.
    thread::sleep(Duration::from_secs(20));
    watch.holds("after a while without an API server");
    api.cont().unwrap();
    watch.goes_on("after the API server came back");

    // The correlator's node dies, and stays dead.
    cluster.run(&["uncordon", SUFFERS]).unwrap();
    let begin = Instant::now();
    die(cluster.node(DIES).unwrap());
    let moved = wait_until(Duration::from_secs(180), || {
        let pods = cluster.pods("app.kubernetes.io/component=correlator").unwrap_or_default();
        pods.iter().any(|pod| pod.node == SUFFERS && pod.ready)
    });
    assert!(moved, "the correlator is not started on the other node");
    println!("the correlator runs on the other node after {:.1} s", begin.elapsed().as_secs_f64());
    watch.goes_on("after its node died");

    // It ends once, too.
    drop_dns(suffers, "-D");
    let over = wait_until(Duration::from_secs(60), || watch.told("resolved") > 0);
    assert!(over, "nobody heard that it is over: {:#?}", webhook.told());
    thread::sleep(Duration::from_secs(5));
    assert_eq!((watch.told("firing"), watch.told("resolved")), (1, 1), "{:#?}", webhook.told());
    installed.cluster.down().unwrap();
}

/// The fault, under watch from when it was told in its final form.
struct Watch<'a> {
    installed: &'a Installed,
    webhook: &'a Webhook,
    alert: Alert,
    begin: Instant,
}

impl<'a> Watch<'a> {
    fn new(installed: &'a Installed, webhook: &'a Webhook) -> Self {
        let begin = Instant::now();
        let mut found = None;
        let is_told = wait_until(Duration::from_secs(60), || {
            let alerts = alerts(&installed.cluster);
            found =
                alerts.into_iter().find(|alert| is_fault(alert) && label(alert, "severity") == "critical");
            found.is_some()
        });
        assert!(is_told, "the fault is not told\n{:#?}\n{}", alerts(&installed.cluster), installed.log());
        let this = Self { installed, webhook, alert: found.unwrap(), begin };
        let heard = wait_until(Duration::from_secs(10), || this.told("firing") == 1);
        assert!(heard, "people hear of it: {:#?}", webhook.told());
        this
    }

    /// How often people were told that it fires, or that it is over.
    fn told(&self, status: &str) -> usize {
        let told = self.webhook.told();
        told.iter().filter(|one| one.status == status && one.labels == self.alert.labels).count()
    }

    /// Alertmanager holds it, as it was, and has told nobody anything new.
    fn holds(&self, when: &str) {
        let mut held = Vec::new();
        let holds = wait_until(Duration::from_secs(30), || {
            held = alerts(&self.installed.cluster);
            held.iter().any(|alert| alert.labels == self.alert.labels)
        });
        assert!(holds, "{when}: {held:#?}");
        let alert = held.iter().find(|alert| alert.labels == self.alert.labels).unwrap();
        assert_eq!(alert.starts_at, self.alert.starts_at, "{when}");
        let others: Vec<_> = held.iter().filter(|alert| is_incident(alert) && !is_fault(alert)).collect();
        // A server on a dead node is silent: that is true, and another matter.
        let wrong = others
            .iter()
            .any(|alert| label(alert, "cause") != "server-silent" || !when.contains("node died"));
        assert!(!wrong, "{when}: {others:#?}");
        assert_eq!(
            (self.told("firing"), self.told("resolved")),
            (1, 0),
            "{when}: {:#?}",
            self.webhook.told()
        );
    }

    /// The correlator has it, since the same moment, and sees it go on.
    fn goes_on(&self, when: &str) {
        let begin = Instant::now();
        let (mut last, mut first) = (None, None);
        let goes_on = wait_until(Duration::from_secs(60), || {
            last = status(&self.installed.cluster);
            let Some(incident) = last.as_ref().and_then(|status| fault_of(status, &self.alert)) else {
                return false;
            };
            let drops = incident.suffers.dropped_packets;
            // What was restored stands still until new symptoms join it.
            drops > *first.get_or_insert(drops)
        });
        assert!(goes_on, "{when}: {last:#?}\n{}", self.installed.log());
        println!("named {when}, {:.1} s later", begin.elapsed().as_secs_f64());
        self.holds(when);
    }
}

fn fault_of<'a>(status: &'a Status, alert: &Alert) -> Option<&'a Incident> {
    status.incidents.iter().find(|incident| {
        incident.cause == "policy-drop"
            && incident.severity == label(alert, "severity")
            && incident.at("node") == alert.labels.get("node").map(String::as_str)
    })
}

fn is_incident(alert: &Alert) -> bool {
    label(alert, "alertname") == "NslookoutDNS"
}

fn is_fault(alert: &Alert) -> bool {
    is_incident(alert) && label(alert, "cause") == "policy-drop" && label(alert, "node") == SUFFERS
}

fn label<'a>(alert: &'a Alert, name: &str) -> &'a str {
    alert.labels.get(name).map_or("", String::as_str)
}

/// None while it does not answer.
fn alerts(cluster: &Cluster) -> Vec<Alert> {
    let answer = http_get(&cluster.monitor, ALERTMANAGER.parse().unwrap(), "/api/v2/alerts");
    answer.ok().and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or_default()
}

/// The correlator's pod that runs, by the API server.
fn correlator(cluster: &Cluster) -> Pod {
    let mut found = None;
    let runs = wait_until(Duration::from_secs(60), || {
        let pods = cluster.pods("app.kubernetes.io/component=correlator").unwrap();
        found = pods.into_iter().find(|pod| pod.ready);
        found.is_some()
    });
    assert!(runs, "no correlator runs");
    found.unwrap()
}

/// What the correlator's page says, asked without the API server.
fn page(cluster: &Cluster, path: &str) -> Option<String> {
    // Its address outlives its container, and what the API server said last is as good as what it says.
    let pods = cluster.dir.join("correlators");
    if cluster.daemon("kube-apiserver").unwrap().id().is_some_and(|id| !id.stopped()) {
        let all = cluster.pods("app.kubernetes.io/component=correlator").ok()?;
        let lines = all.iter().flat_map(|pod| pod.addresses.iter().map(ToString::to_string));
        fs::write(&pods, lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
    let known = fs::read_to_string(&pods).ok()?;
    known.lines().find_map(|address| {
        let address = SocketAddr::new(address.parse().ok()?, 9853);
        let (status, body) = http_get(&cluster.monitor, address, path).ok()?;
        (status == 200).then_some(body)
    })
}

fn status(cluster: &Cluster) -> Option<Status> {
    serde_json::from_str(&page(cluster, "/api/v1/status")?).ok()
}

fn figure(cluster: &Cluster, name: &str) -> f64 {
    let page = page(cluster, "/metrics").unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_default()
}

/// A rule of this node drops DNS, or no longer.
fn drop_dns(node: &Node, action: &str) {
    let mut iptables = command::inside(&node.netns, "iptables");
    iptables.args(["-w", "10", action, "FORWARD", "-p", "udp", "--dport", "53", "-j", "DROP"]);
    command::run(&mut iptables, None).unwrap();
}

/// No word leaves the node any more, and nothing runs on it.
fn die(node: &Node) {
    command::run(command::inside(&node.netns, "ip").args(["link", "set", "eth0", "down"]), None).unwrap();
    for daemon in [&node.kubelet, &node.kube_proxy, &node.containerd] {
        daemon.kill().unwrap();
    }
    for path in cgroups::paths(&node.cgroup).unwrap() {
        cgroups::processes(&path).into_iter().for_each(|process| process.end().unwrap());
    }
}

/// As its pod is ended: with time to write down what it told.
fn end(daemon: &Daemon) {
    signal("TERM", daemon.running().unwrap().pid);
    assert!(wait_until(Duration::from_secs(10), || daemon.id().is_none()), "it does not end");
}

/// The real one, in the monitor's namespace; each alert is told by itself, at once.
fn alertmanager(cluster: &Cluster) -> Daemon {
    let program = programs::alertmanager().unwrap();
    let share = program.parent().and_then(Path::parent).unwrap().join("share");
    let config = cluster.dir.join("alertmanager.yaml");
    let text = format!(
        "route: {{receiver: pager, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\n\
         receivers: [{{name: pager, webhook_configs: [{{url: 'http://127.0.0.1:{}/'}}]}}]\n",
        webhook::PORT
    );
    fs::write(&config, text).unwrap();
    let words = [
        "--mount".to_owned(),
        "--propagation=private".to_owned(),
        "sh".to_owned(),
        "-c".to_owned(),
        "mount --bind \"$1\" /usr/share && shift && exec \"$@\"".to_owned(),
        "lab".to_owned(),
        share.display().to_string(),
        program.display().to_string(),
        format!("--config.file={}", config.display()),
        format!("--storage.path={}", cluster.dir.join("alertmanager").display()),
        format!("--web.listen-address={ALERTMANAGER}"),
        "--cluster.listen-address=".to_owned(),
    ];
    Daemon {
        name: "alertmanager".to_owned(),
        netns: cluster.monitor.clone(),
        program: PathBuf::from("unshare"),
        args: words.to_vec(),
        log: cluster.dir.join("alertmanager.log"),
        pid_file: cluster.dir.join("alertmanager.pid"),
    }
}
