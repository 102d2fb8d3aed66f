//! How do namespaces become the machines of a cluster, on one link?
//!
//! Pods are attached later, by the CNI plugin. What is made here is the link, and a route to each node's pods from
//! everywhere on it. The bridge is the nodes' default gateway and forwards nothing: what leaves the cluster ends there.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use netns::Namespace;

use crate::journal::{self, Entry, Journal};
use crate::kubernetes::plan::{
    API_V4, API_V6, Cluster, MONITOR_V4, MONITOR_V6, Node, UPSTREAM_V4, UPSTREAM_V6, namespaces,
};
use crate::{Error, command, interrupt};

/// Makes all namespaces, links, addresses and routes.
pub fn raise(cluster: &Cluster, journal: &Journal) -> Result<(), Error> {
    let names = namespaces(cluster);
    let entries: Vec<_> = names.iter().cloned().map(Entry::Netns).collect();
    interrupt::step(|| {
        journal.add_all(&entries)?;
        let script = names.iter().fold(String::new(), |script, name| script + "netns add " + name + "\n");
        // When the lab is killed, this must not go on making what nobody undoes.
        let mut ip = Command::new("setpriv");
        ip.args(["--pdeathsig", "KILL", "--", "ip", "-batch", "-"]);
        command::run(&mut ip, Some(&script)).map(drop)
    })?;
    for name in &names {
        let path = journal::netns_path(name);
        let node = cluster.nodes.iter().any(|node| node.netns == path);
        settings(&path, node, cluster.options.dual_stack)?;
    }
    interrupt::step(|| batch(&cluster.lan, &lan(cluster)))?;
    for node in &cluster.nodes {
        let script = uplink(cluster, node.v4, node.v6) + &default_route(cluster);
        interrupt::step(|| batch(&node.netns, &(script + &routes_to_pods(cluster, Some(node)))))?;
    }
    let neighbours = [
        (&cluster.control, API_V4, API_V6),
        (&cluster.upstream.netns, UPSTREAM_V4, UPSTREAM_V6),
        (&cluster.monitor, MONITOR_V4, MONITOR_V6),
    ];
    for (netns, v4, v6) in neighbours {
        let script = uplink(cluster, v4, v6) + &routes_to_pods(cluster, None) + &routes_to_services(cluster);
        interrupt::step(|| batch(netns, &script))?;
    }
    Ok(())
}

/// A new namespace takes some IPv4 settings from the machine's own, so all that matter are written.
fn settings(netns: &Path, node: bool, dual_stack: bool) -> Result<(), Error> {
    let forward = if node { "1" } else { "0" };
    let no_v6 = if dual_stack { "0" } else { "1" };
    let all = [
        ("net/ipv4/ip_forward", forward),
        ("net/ipv6/conf/all/disable_ipv6", no_v6),
        ("net/ipv6/conf/default/disable_ipv6", no_v6),
        ("net/ipv6/conf/all/forwarding", forward),
        // Duplicate address detection would keep addresses unusable for a second.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ];
    Namespace::open(netns)?.run_blocking(move || {
        all.iter().try_for_each(|(key, value)| {
            let path = Path::new("/proc/sys").join(key);
            fs::write(&path, value).map_err(Error::file("write", path))
        })
    })?
}

fn batch(netns: &Path, script: &str) -> Result<(), Error> {
    command::run(command::inside(netns, "ip").args(["-batch", "-"]), Some(script)).map(drop)
}

fn lan(cluster: &Cluster) -> String {
    let mut script = format!("link set lo up\nlink add br0 type bridge\naddr add {GATEWAY_V4}/24 dev br0\n");
    if cluster.options.dual_stack {
        let _ = writeln!(script, "addr add {GATEWAY_V6}/64 dev br0 nodad");
    }
    script += "link set br0 up\n";
    let nodes = cluster.nodes.iter().map(|node| (node.name.as_str(), &node.netns));
    let others =
        [("control", &cluster.control), ("upstream", &cluster.upstream.netns), ("monitor", &cluster.monitor)];
    for (name, netns) in nodes.chain(others) {
        let netns = netns.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(script, "link add p-{name} type veth peer name eth0 netns {netns}");
        let _ = writeln!(script, "link set p-{name} master br0 up");
    }
    script
}

fn uplink(cluster: &Cluster, v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    let mut script = format!("link set lo up\naddr add {v4}/24 dev eth0\n");
    if cluster.options.dual_stack {
        let _ = writeln!(script, "addr add {v6}/64 dev eth0 nodad");
    }
    script + "link set eth0 up\n"
}

fn default_route(cluster: &Cluster) -> String {
    let v6 = format!("route add ::/0 via {GATEWAY_V6}\n");
    format!(
        "route add default via {GATEWAY_V4}\n{}",
        if cluster.options.dual_stack { v6 } else { String::new() }
    )
}

fn routes_to_pods(cluster: &Cluster, but: Option<&Node>) -> String {
    let mut script = String::new();
    for node in cluster.nodes.iter().filter(|node| but.is_none_or(|but| but.name != node.name)) {
        for (cidr, via) in node.pod_cidrs(&cluster.options).iter().zip(node.addresses(&cluster.options)) {
            let _ = writeln!(script, "route add {cidr} via {via}");
        }
    }
    script
}

/// A neighbour of the nodes reaches Services by the first of them.
fn routes_to_services(cluster: &Cluster) -> String {
    let via = cluster.nodes.first().map(|node| node.addresses(&cluster.options)).unwrap_or_default();
    let routes = cluster.options.service_cidrs().into_iter().zip(via);
    routes.fold(String::new(), |script, (cidr, via)| script + &format!("route add {cidr} via {via}\n"))
}

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1);
