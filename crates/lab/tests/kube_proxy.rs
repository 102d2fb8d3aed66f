//! Does the miniature write the rules that the real kube-proxy writes, and which entries does that one delete? Runs
//! as root.

// Clippy's leave for tests does not reach the helpers beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use lab::kubernetes::{Cluster, Options, Pod, Raised, progress};
use lab::miniature::kube_proxy;
use lab::process::wait_until;
use lab::site::Node;
use lab::{Lab, Site, command};

/// Rules that the real one has beside those for the Service's DNS ports, and why the miniature has not.
const MORE: [(&str, &str); 6] = [
    ("KUBE-FIREWALL", "guards 127.0.0.0/8, which no pod sends to"),
    ("-CANARY", "tells kube-proxy and the kubelet that someone flushed the tables"),
    ("default/kubernetes:https", "another Service"),
    ("kube-system/kube-dns:metrics", "another port, nothing of DNS"),
    ("KUBE-IPTABLES-HINT", "tells the iptables of containers which of its two kinds is in use"),
    (":INPUT ACCEPT", "a chain that is there from the first rule on, whoever writes it"),
];

/// A match that always matches.
const COUNTS: &str = " -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts";

/// Chains and rules of both tables in their order, without what is not about DNS. The names of endpoints' chains hold
/// their addresses, so the same name is the same endpoint.
fn saved(netns: &Path, program: &str) -> Vec<String> {
    let text = command::run(&mut command::inside(netns, program), None).unwrap();
    let mut table = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name.to_owned(),
            None if line.starts_with('#') || line == "COMMIT" || table == "mangle" => (),
            // Where the kernel can, the real one also counts what it drops for its state.
            None => lines.push(format!("{table} {}", line.split(" [").next().unwrap()).replace(COUNTS, "")),
        }
    }
    lines
}

/// Chains that only rules of another port or Service lead to.
fn without_more(lines: &[String]) -> Vec<String> {
    let more = |line: &str| MORE.iter().any(|(word, _)| line.contains(word));
    let others: BTreeSet<&str> = lines
        .iter()
        .filter(|line| more(line))
        .filter_map(|line| {
            line.split(' ').find(|word| word.starts_with("KUBE-SVC-") || word.starts_with("KUBE-SEP-"))
        })
        .collect();
    let of_others = |line: &str| line.split([' ', ':']).any(|word| others.contains(word));
    lines.iter().filter(|line| !more(line) && !of_others(line)).cloned().collect()
}

/// A site whose Service, pods' networks and servers are those of the cluster.
fn as_the_cluster(site: &Site, cluster: &Cluster) -> Site {
    let mut site = site.clone();
    let pods = cluster.pods("k8s-app=kube-dns").unwrap();
    site.servers.truncate(pods.len());
    for (server, pod) in site.servers.iter_mut().zip(&pods) {
        for address in &pod.addresses {
            match address {
                IpAddr::V4(v4) => server.v4 = *v4,
                IpAddr::V6(v6) => server.v6 = *v6,
            }
        }
        server.port = cluster.options.target_port;
    }
    // kube-proxy sorts them so.
    site.servers.sort_by_key(|server| server.v4.to_string());
    site
}

#[test]
fn the_miniature_has_the_rules_of_the_real_kube_proxy() {
    let name = format!("rules-{}", std::process::id());
    let cluster = Raised::up(&Options { dual_stack: true, ..Options::new(&name) }, &mut progress()).unwrap();
    let lab = Lab::up(&lab::Options::new(format!("{name}-mini"), 1)).unwrap();
    let site = as_the_cluster(&lab, &cluster);
    // A pod's namespace has no rules yet, so it can stand for a node.
    let node = Node { netns: lab.pods[0].netns.clone(), ..lab.nodes[0].clone() };
    let endpoints: Vec<_> = site.servers.iter().collect();
    kube_proxy::install(&node).unwrap();
    kube_proxy::sync(&site, &node, &endpoints).unwrap();

    compare("with two endpoints", &cluster.nodes[0].netns, &node.netns);

    cluster.run(&["scale", "--namespace=kube-system", "deployment/coredns", "--replicas=0"]).unwrap();
    // While all of them are leaving and still serve, kube-proxy sends to them.
    let gone =
        || cluster.proxy_rules(&cluster.nodes[0]).unwrap().matches("dns has no endpoints").count() == 2;
    assert!(wait_until(Duration::from_secs(60), gone));
    kube_proxy::sync(&site, &node, &[]).unwrap();
    compare("without endpoints", &cluster.nodes[0].netns, &node.netns);
    cluster.down().unwrap();
}

/// The same rules in the same order, chain by chain, of both families.
fn compare(when: &str, real: &Path, ours: &Path) {
    for program in ["iptables-save", "ip6tables-save"] {
        let [real, ours] = [real, ours].map(|netns| by_chain(&without_more(&saved(netns, program))));
        println!(
            "{when}, {program}: {} chains of {} rules",
            real.len(),
            real.values().map(Vec::len).sum::<usize>()
        );
        assert_eq!(
            real, ours,
            "{when}, {program}: the real kube-proxy's on the left, the miniature's on the right"
        );
    }
}

/// Table and chain, then its rules. Services and their ports come in any order, so those of KUBE-SERVICES are sorted.
fn by_chain(lines: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let (table, rest) = line.split_once(' ').unwrap();
        let rule = rest.strip_prefix("-A ").and_then(|rule| rule.split_once(' '));
        let chain = rule.map_or(rest.trim_start_matches(':').split(' ').next().unwrap(), |(chain, _)| chain);
        let rules = chains.entry(format!("{table} {chain}")).or_default();
        rules.extend(rule.map(|(_, rule)| rule.to_owned()));
    }
    for (chain, rules) in &mut chains {
        if chain.ends_with("KUBE-SERVICES") {
            // That to the node ports comes after all Services'.
            rules.sort_by_key(|rule| (rule.contains("KUBE-NODEPORTS"), rule.clone()));
        }
    }
    chains
}

/// Puts an entry into the table of node-a: asked of the Service from this port, answered by `from`.
fn insert(cluster: &Cluster, protocol: &str, port: u16, from: SocketAddr) {
    let (client, service) =
        if from.is_ipv4() { ("10.244.0.77", "10.96.0.10") } else { ("fd00:244::77", "fd00:96::a") };
    let (port, reply_port) = (port.to_string(), from.port().to_string());
    let mut conntrack = command::inside(&cluster.nodes[0].netns, "conntrack");
    conntrack.args(["-I", "-p", protocol, "--orig-src", client, "--orig-dst", service, "--sport", &port]);
    conntrack.args(["--dport", "53", "--reply-src", &from.ip().to_string(), "--reply-dst", client]);
    conntrack.args(["--reply-port-src", &reply_port, "--reply-port-dst", &port, "--timeout", "600"]);
    if protocol == "tcp" {
        conntrack.args(["--state", "ESTABLISHED"]);
    }
    command::run(&mut conntrack, None).unwrap();
}

/// The ports of the entries that are left of those.
fn entries(cluster: &Cluster) -> BTreeSet<u16> {
    let list = |family: &str, client: &str| {
        let mut conntrack = command::inside(&cluster.nodes[0].netns, "conntrack");
        command::run(conntrack.args(["-L", "-f", family, "--orig-src", client]), None).unwrap()
    };
    let text = list("ipv4", "10.244.0.77") + &list("ipv6", "fd00:244::77");
    let port = |line: &str| line.split("sport=").nth(1)?.split(' ').next()?.parse().ok();
    text.lines().filter_map(port).collect()
}

/// pkg/proxy/conntrack/cleanup.go of v1.34.4, as it shows.
#[test]
fn udp_entries_that_lead_to_no_serving_endpoint_go_while_there_is_one() {
    let name = format!("clean-{}", std::process::id());
    let cluster = Raised::up(&Options { dual_stack: true, ..Options::new(&name) }, &mut progress()).unwrap();
    let scale = |replicas: &str| {
        let to = format!("--replicas={replicas}");
        cluster.run(&["scale", "--namespace=kube-system", "deployment/coredns", &to]).unwrap();
    };
    let becomes = |wanted: &[u16]| {
        let wanted: BTreeSet<u16> = wanted.iter().copied().collect();
        let mut seen = BTreeSet::new();
        let deadline = Duration::from_secs(60);
        let same = wait_until(deadline, || {
            seen = entries(&cluster);
            seen == wanted
        });
        assert!(same, "{seen:?} are left, not {wanted:?}");
    };
    let astray = || {
        // Not translated: made while no rule was there.
        insert(&cluster, "udp", 1001, "10.96.0.10:53".parse().unwrap());
        insert(&cluster, "udp", 1002, "[fd00:96::a]:53".parse().unwrap());
        // To an address that is no server's.
        insert(&cluster, "udp", 1003, "10.244.9.9:53".parse().unwrap());
        insert(&cluster, "udp", 1004, "[fd00:244:0:9::9]:53".parse().unwrap());
    };
    let address =
        |pod: &Pod, port| SocketAddr::new(*pod.addresses.iter().find(|one| one.is_ipv4()).unwrap(), port);

    astray();
    insert(&cluster, "tcp", 1005, "10.244.9.9:53".parse().unwrap());
    let servers = cluster.pods("k8s-app=kube-dns").unwrap();
    // To a server, but not to its port.
    insert(&cluster, "udp", 1006, address(&servers[0], 5353));
    insert(&cluster, "udp", 2000, address(&servers[0], 53));
    insert(&cluster, "udp", 2001, address(&servers[1], 53));
    scale("1");
    // The one that leaves serves until it has ended, and keeps its entries until then.
    becomes(&[1005, 2000, 2001]);
    let staying = || cluster.pods("k8s-app=kube-dns").unwrap();
    assert!(wait_until(Duration::from_secs(60), || staying().len() == 1));
    let stays = if staying()[0].name == servers[0].name { 2000 } else { 2001 };
    becomes(&[1005, stays]);

    scale("0");
    let gone =
        || cluster.proxy_rules(&cluster.nodes[0]).unwrap().matches("dns has no endpoints").count() == 2;
    assert!(wait_until(Duration::from_secs(60), gone));
    becomes(&[1005, stays]);
    astray();
    scale("1");
    becomes(&[1005]);
    cluster.down().unwrap();
}
