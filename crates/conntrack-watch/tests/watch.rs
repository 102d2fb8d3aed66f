//! Do reports tell what the kernel did, in time, and what could not be seen? Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{CLIENT_A, CLIENT6_A, Lab, SERVER, SERVER6, SERVICE, SERVICE6, address, query};
use conntrack_watch::{Config, WatchedNode, run};
use evidence::{
    Coverage, CoverageState, DnsService, DropClass, Endpoint, Inventory, KernelDrop, Mapping, Observation,
    Observer, Place, Report,
};
use netns::Namespace;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

struct Watch {
    reports: mpsc::Receiver<Report>,
    inventory: watch::Sender<Arc<Inventory>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(nodes: Vec<WatchedNode>) -> Self {
        let (out, reports) = mpsc::channel(64);
        let (inventory, receiver) = watch::channel(Arc::new(inventory(true)));
        let task = tokio::spawn(run(Config::default(), nodes, receiver, out));
        Self { reports, inventory, task }
    }

    fn of(lab: &Lab) -> Self {
        Self::start(vec![WatchedNode { name: "node-a".into(), namespace: lab.open("node") }])
    }

    async fn next(&mut self) -> Report {
        timeout(Duration::from_secs(5), self.reports.recv()).await.expect("a report each second").unwrap()
    }

    /// The first report that has it, within ten seconds.
    async fn until<T>(&mut self, what: &str, mut find: impl FnMut(&Report) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let report = self.next().await;
            if let Some(found) = find(&report) {
                return found;
            }
            assert!(Instant::now() < end, "not within 10 s: {what}");
        }
    }
}

fn inventory(serving: bool) -> Inventory {
    let endpoint = |text: &str| Endpoint {
        name: text.into(),
        address: address(text),
        node: None,
        serving,
        leaving: false,
    };
    Inventory {
        service: DnsService {
            name: "kube-dns".into(),
            addresses: vec![address(SERVICE), address(SERVICE6)],
            is_virtual: true,
        },
        endpoints: vec![endpoint(SERVER), endpoint(SERVER6)],
        ..Inventory::default()
    }
}

fn state(report: &Report, observer: Observer) -> Option<CoverageState> {
    report
        .coverage
        .iter()
        .find(|coverage| coverage.observer == observer)
        .map(|coverage| coverage.state.clone())
}

fn drops(report: &Report) -> Vec<KernelDrop> {
    let only = |observation: &Observation| match observation {
        Observation::KernelDrop(drop) => Some(drop.clone()),
        _ => None,
    };
    report.observations.iter().filter_map(only).collect()
}

fn mappings(report: &Report) -> Vec<Mapping> {
    let only = |observation: &Observation| match observation {
        Observation::Mapping(mapping) => Some(mapping.clone()),
        _ => None,
    };
    report.observations.iter().filter_map(only).collect()
}

#[tokio::test]
async fn a_healthy_node_looks_and_loses_nothing() {
    let lab = Lab::new();
    lab.echo();
    let mut watch = Watch::of(&lab);
    let client = lab.socket("a", &format!("{CLIENT_A}:4000"));
    let mut last = None;
    for id in 0..3 {
        client.send_to(&query(id, "x."), SERVICE).unwrap();
        client.recv(&mut [0; 512]).unwrap();
        let report = watch.next().await;
        for observer in [Observer::ConntrackCounters, Observer::ConntrackTable, Observer::Drops] {
            assert_eq!(state(&report, observer), Some(CoverageState::Looked { lost: 0 }), "{observer:?}");
        }
        assert_eq!((report.node.as_str(), report.role), ("node-a", evidence::Role::Node));
        assert!(last.is_none_or(|to| to == report.from) && report.from < report.to);
        last = Some(report.to);
        assert!(drops(&report).is_empty() && mappings(&report).is_empty(), "{report:?}");
        let counters = report.observations.iter().find_map(|observation| match observation {
            Observation::Counters(counters) => Some(counters.clone()),
            _ => None,
        });
        assert!(counters.is_some_and(|counters| counters.max > 0 && counters.entries > 0));
    }
    drop(watch.reports);
    timeout(Duration::from_secs(1), watch.task).await.expect("it ends with its receiver").unwrap();
}

#[tokio::test]
async fn a_pinned_client_of_a_backend_that_left_is_seen_to_renew_its_mapping() {
    let lab = Lab::new();
    lab.echo();
    let mut watch = Watch::of(&lab);
    let clients = [
        (lab.socket("a", &format!("{CLIENT_A}:4000")), SERVICE, SERVER),
        (lab.socket("a", &format!("[{CLIENT6_A}]:4000")), SERVICE6, SERVER6),
    ];
    // One that sends once and never again: its entry is left over, not in use.
    let idle = lab.socket("b", "10.244.1.9:4000");
    idle.send_to(&query(1, "x."), SERVICE).unwrap();
    let sender = {
        let clients = clients.map(|(socket, service, server)| (Arc::new(socket), service, server));
        let sockets: Vec<_> =
            clients.iter().map(|(socket, service, _)| (Arc::clone(socket), *service)).collect();
        tokio::spawn(async move {
            loop {
                for (socket, service) in &sockets {
                    let _ = socket.send_to(&query(2, "x."), service);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    watch.next().await;
    let started = Instant::now();
    watch.inventory.send(Arc::new(inventory(false))).unwrap();
    let (mut renewed, mut left_over) = (std::collections::BTreeMap::new(), None);
    watch
        .until("both families renewed", |report| {
            for mapping in mappings(report) {
                if mapping.renewed.is_some() {
                    renewed.insert(mapping.original.destination, mapping);
                } else if mapping.original.source == address("10.244.1.9:4000") {
                    left_over = Some(mapping);
                }
            }
            (renewed.len() == 2).then_some(())
        })
        .await;
    println!("renewed mappings told {:?} after the endpoints left", started.elapsed());
    for (service, server) in [(SERVICE, SERVER), (SERVICE6, SERVER6)] {
        let mapping = &renewed[&address(service)];
        assert_eq!(mapping.backend, address(server));
        assert_eq!(mapping.node, "node-a");
    }
    assert_eq!(renewed[&address(SERVICE)].original.source, address(&format!("{CLIENT_A}:4000")));
    assert!(left_over.is_some_and(|mapping| mapping.renewed.is_none()));
    sender.abort();
}

#[tokio::test]
async fn a_dropped_query_is_told_at_once_and_its_total_follows() {
    let lab = Lab::new();
    let mut watch = Watch::of(&lab);
    watch.next().await;
    lab.node(&["iptables", "-w", "-A", "FORWARD", "-p", "udp", "--dport", "5353", "-j", "DROP"]);
    let client = lab.socket("a", &format!("{CLIENT_A}:4000"));
    let sent = evidence::BootTime::now();
    client.send_to(&query(7, "api.example.com"), SERVICE).unwrap();
    let drop = watch.until("the drop", |report| drops(report).into_iter().next()).await;
    let told = evidence::BootTime::now().since(sent);
    println!("told after {told:?}");
    assert!(told < Duration::from_millis(900), "{told:?}");
    assert!(drop.at >= sent);
    assert_eq!((drop.place, drop.class), (Place::Node("node-a".into()), DropClass::Rule));
    assert_eq!(drop.question.unwrap().name, "api.example.com.");
    let total = watch
        .until("the total", |report| {
            report.observations.iter().find_map(|observation| match observation {
                Observation::DropTotals(totals) if totals.place == Place::Node("node-a".into()) => {
                    Some(totals.clone())
                }
                _ => None,
            })
        })
        .await;
    assert_eq!((total.class, total.all, total.dns), (DropClass::Rule, 1, 1));
}

#[tokio::test]
async fn a_drop_in_a_pods_namespace_is_told_by_its_node_and_not_by_another() {
    let (lab, other) = (Lab::new(), Lab::new());
    let node = |name: &str, lab: &Lab| WatchedNode { name: name.into(), namespace: lab.open("node") };
    let third = Lab::new();
    let mut watch = Watch::start(vec![node("node-b", &other), node("node-a", &lab)]);
    watch.next().await;
    // A third cluster on this kernel, with the same addresses, that nobody watches.
    let pod = lab.open("a").inode();
    for lab in [&third, &lab] {
        lab.run("a", &["iptables", "-w", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "DROP"]);
        lab.node(&["iptables", "-w", "-A", "FORWARD", "-p", "udp", "-s", "10.244.1.9", "-j", "DROP"]);
        let client = lab.socket("a", &format!("{CLIENT_A}:4000"));
        assert!(client.send_to(&query(7, "x."), SERVICE).is_err());
        lab.socket("b", "10.244.1.9:4000").send_to(&query(7, "x."), SERVICE).unwrap();
    }
    let mut found = Vec::new();
    watch
        .until("totals of both places", |report| {
            assert!(report.node == "node-a" || drops(report).is_empty(), "{report:?}");
            found.extend(drops(report));
            let totals = report.observations.iter().filter(|o| matches!(o, Observation::DropTotals(_)));
            (totals.count() == 2).then_some(())
        })
        .await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1].place, Place::Node("node-a".into()));
    let drop = found.remove(0);
    assert_eq!((drop.place, drop.class), (Place::Namespace(pod), DropClass::Rule));
    assert_eq!(drop.packet.source, address(&format!("{CLIENT_A}:4000")));
}

#[test]
fn without_capabilities_each_observer_says_what_is_missing() {
    let child = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_without_capabilities", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[tokio::test]
#[ignore = "run by without_capabilities_each_observer_says_what_is_missing"]
async fn child_without_capabilities() {
    let node = WatchedNode { name: "here".into(), namespace: Namespace::current().unwrap() };
    let mut watch = Watch::start(vec![node]);
    let report = watch.next().await;
    let denied = |missing: &str| CoverageState::Denied { missing: missing.into() };
    let expected = [
        (Observer::ConntrackCounters, denied("CAP_NET_ADMIN")),
        (Observer::ConntrackTable, denied("CAP_NET_ADMIN")),
        (Observer::Drops, denied("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN")),
    ]
    .map(|(observer, state)| Coverage { observer, place: "here".into(), state });
    assert_eq!(report.coverage, expected);
    assert!(report.observations.is_empty());
}
