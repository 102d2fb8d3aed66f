//! Does the real cluster work as one, and is nothing of it left afterwards, however it ended? Runs as root.

// Clippy's leave for tests does not reach the helpers beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lab::kubernetes::{Cluster, Options, ProxyMode, Raised, cgroups, progress};
use lab::process::{ProcessId, wait_until};
use lab::{command, journal, programs};

/// Whether the cluster of this name has come so far.
type Reached = fn(&str) -> bool;

const CLUSTER: &str = "kubernetes.default.svc.cluster.local";

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn name() -> String {
    format!("k8s-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn raised(options: &Options) -> Raised {
    Raised::up(options, &mut progress()).unwrap()
}

/// Every process of every pod, by the cgroups.
fn containers(name: &str) -> Vec<ProcessId> {
    let nodes =
        ["node-a", "node-b"].iter().flat_map(|node| cgroups::paths(&format!("nsk8s-{name}-{node}")).unwrap());
    nodes.flat_map(|path| cgroups::processes(&path)).collect()
}

/// Namespaces, folders, cgroups, mounts and processes that carry the cluster's name.
fn left(name: &str) -> Vec<String> {
    let mut left = Vec::new();
    let prefix = format!("nsk8s-{name}-");
    let listed = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let ours = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&prefix);
    let mut places = vec![PathBuf::from("/run/netns"), PathBuf::from("/sys/fs/cgroup")];
    places.extend(listed(Path::new("/sys/fs/cgroup")));
    for path in places.iter().flat_map(|place| listed(place)).filter(ours) {
        left.push(path.display().to_string());
    }
    if journal::folder(name).exists() {
        left.push("its folder".to_owned());
    }
    let folder = format!("/{name}/");
    for process in listed(Path::new("/proc")) {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let mounts = fs::read_to_string(process.join("mounts")).unwrap_or_default();
        if words.contains(&folder) || words.contains(&prefix) || mounts.contains(&folder) {
            left.push(format!("{} {words}", process.display()));
        }
    }
    left
}

/// What belongs to the machine and a kubelet, a runtime or kube-proxy would like to change.
fn machine() -> Vec<String> {
    let settings = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
    // kubectl would keep something there.
    let home = std::env::var("HOME").unwrap();
    let own = ["net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet"];
    let read =
        |key: &&str| format!("{key} {}", fs::read_to_string(format!("/proc/sys/{key}")).unwrap().trim());
    let mut machine: Vec<_> = settings.iter().chain(&own).map(read).collect();
    for folder in ["/run", "/var/lib", "/var/log", "/etc", "/opt", "/usr/libexec", &home] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        machine.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    machine.push(command::run(&mut Command::new("iptables-save"), None).unwrap().lines().count().to_string());
    machine.sort();
    machine
}

fn answered(cluster: &Cluster, pod: &str) -> String {
    let line = cluster.exec(pod, &["getaddrinfo", CLUSTER]).unwrap();
    line.trim().splitn(3, ' ').nth(2).unwrap_or_default().to_owned()
}

fn address(cluster: &Cluster, pod: &str) -> String {
    let pods = cluster.pods("k8s-app=client").unwrap();
    pods.iter().find(|one| one.name == pod).unwrap().addresses[0].to_string()
}

fn conntrack(cluster: &Cluster, node: &str, arguments: &[&str]) -> String {
    let netns = &cluster.node(node).unwrap().netns;
    command::run(command::inside(netns, "conntrack").arg("-L").args(arguments), None).unwrap()
}

/// `lab cluster up` in a process of its own, up to the moment when `until` is so.
fn begun(name: &str, until: impl Fn() -> bool) -> Child {
    let up = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["cluster", "up", "--name", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(wait_until(Duration::from_secs(60), until), "cluster {name} never came so far");
    up
}

#[test]
fn pods_of_both_nodes_are_answered_each_node_has_its_own_table_and_nothing_is_left() {
    let before = machine();
    let name = name();
    let cluster = raised(&Options::new(&name));

    let figures = cluster.figures().unwrap();
    assert_eq!((figures.nodes, figures.pods), (2, 6));
    let servers = cluster.pods("k8s-app=kube-dns").unwrap();
    assert!(servers.iter().all(|pod| pod.phase == "Running" && pod.ready), "{servers:?}");
    assert_ne!(servers[0].node, servers[1].node, "one on each node");

    for (pod, node, other) in [("client-a1", "node-a", "node-b"), ("client-b1", "node-b", "node-a")] {
        // Pods have the IPv4 address of a cluster of IPv4 alone.
        assert_eq!(answered(&cluster, pod), "OK 1 0", "{pod}");
        let from = address(&cluster, pod);
        let entries = ["-p", "udp", "--orig-src", &from, "--orig-dst", "10.96.0.10"];
        assert_ne!(conntrack(&cluster, node, &entries), "", "{node} translated what {pod} asked");
        assert_eq!(conntrack(&cluster, other, &entries), "", "{other} never saw the Service asked by {pod}");
    }
    let outer = cluster.exec("client-a2", &["getaddrinfo", "example.com"]).unwrap();
    assert!(outer.contains("OK 1 1"), "the upstream is asked: {outer}");
    let log = cluster.run(&["logs", "--namespace=kube-system", &servers[0].name]).unwrap();
    assert!(log.contains("CoreDNS-1."), "{log}");

    let inside = containers(&name);
    assert!(inside.len() >= 12, "six pods, each with a pause process: {inside:?}");
    let process = cluster.processes(&servers[0]).unwrap()[0];
    let program = fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap();
    assert!(program.ends_with("coredns"), "{program:?}");

    cluster.down().unwrap();
    assert_eq!(left(&name), Vec::<String>::new());
    assert!(inside.iter().all(|id| !id.alive()), "every container is gone");
    assert_eq!(machine(), before, "the machine's own settings and folders");
}

#[test]
fn what_a_killed_cluster_left_goes_with_the_next_start_and_its_neighbour_stays() {
    programs::cluster::all().unwrap();
    let neighbour = name();
    let stands = raised(&Options::new(&neighbour));
    let stages: [(&str, Reached); 4] = [
        ("KILL", |name| journal::folder(name).join("etcd.pid").exists()),
        ("KILL", |name| journal::folder(name).join("node-a/mounted").exists()),
        ("INT", |name| journal::folder(name).join("node-b.kubelet.pid").exists()),
        ("KILL", |name| containers(name).len() > 3),
    ];
    for (stage, (signal, until)) in stages.into_iter().enumerate() {
        let name = name();
        let mut up = begun(&name, || until(&name));
        let inside = containers(&name);
        command::run(Command::new("kill").args(["-s", signal, &up.id().to_string()]), None).unwrap();
        assert!(!up.wait().unwrap().success());
        if signal == "KILL" {
            assert!(journal::folder(&name).exists(), "nobody has cleaned up yet");
            journal::sweep().unwrap();
        }
        assert_eq!(left(&name), Vec::<String>::new(), "SIG{signal} at stage {stage}");
        assert!(inside.iter().all(|id| !id.alive()), "every container is gone");
    }
    assert_eq!(answered(&stands, "client-b1"), "OK 1 0");
    assert!(stands.daemons().iter().all(|daemon| daemon.running().is_ok()));
    stands.down().unwrap();
    assert_eq!(left(&neighbour), Vec::<String>::new());
}

#[test]
fn in_nftables_mode_both_families_are_answered_on_port_5353() {
    let name = name();
    let options = Options {
        proxy_mode: ProxyMode::Nftables,
        dual_stack: true,
        target_port: 5353,
        clients: 1,
        ..Options::new(&name)
    };
    let cluster = raised(&options);
    for node in &cluster.nodes {
        let mut nft = command::inside(&node.netns, "nft");
        let tables = command::run(nft.args(["list", "tables"]), None).unwrap();
        assert!(
            tables.contains("table ip kube-proxy") && tables.contains("table ip6 kube-proxy"),
            "{tables}"
        );
    }
    for pod in ["client-a1", "client-b1"] {
        for server in ["10.96.0.10", "fd00:96::a"] {
            let found = cluster.exec(pod, &["nslookup", "example.com", server]).unwrap();
            assert!(found.contains("192.0.2.80") && found.contains("2001:db8::80"), "{pod}: {found}");
        }
    }
    let entries = conntrack(&cluster, "node-a", &["-p", "udp", "--orig-dst", "10.96.0.10"]);
    assert!(entries.contains("sport=5353"), "what is translated comes from port 5353: {entries}");
    drop(cluster);
    assert_eq!(left(&name), Vec::<String>::new());
}
