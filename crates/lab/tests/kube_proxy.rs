//! Does the miniature write the rules that the real kube-proxy writes? Runs as root.

// Clippy's leave for tests does not reach the helpers beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use lab::kubernetes::{Cluster, Options, Raised, progress};
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

/// Table and chain, then its rules. Services come in any order, so those of KUBE-SERVICES are sorted but the last one.
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
        if let (true, Some(last)) = (chain.ends_with("KUBE-SERVICES"), rules.len().checked_sub(1)) {
            rules[..last].sort();
        }
    }
    chains
}
