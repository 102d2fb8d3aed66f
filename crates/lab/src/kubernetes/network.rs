//! How do namespaces become the machines of a cluster, on one link?
//!
//! Pods are attached later, by the CNI plugin. What is made here is the link, and a route to each node's pods from
//! everywhere on it. The bridge is the nodes' default gateway and forwards nothing: what leaves the cluster ends there.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use crate::journal::{self, Entry, Journal};
use crate::kubernetes::plan::{
    API_V4, API_V6, Cluster, MONITOR_V4, MONITOR_V6, Node, UPSTREAM_V4, UPSTREAM_V6, namespaces,
};
use crate::namespaces::{batch, settings};
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
