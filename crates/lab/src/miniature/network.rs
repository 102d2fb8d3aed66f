//! How do namespaces become nodes and pods with a link between the nodes?
//!
//! As the CNI plugin ptp does it: each pod has one address of its own (/32, /128), its node's end of the veth
//! pair is its gateway, and the node has a route to each pod. Nodes reach each other's pods by routes over a
//! bridge, on which the upstream and the monitor are neighbours. The bridge itself is the nodes' default gateway;
//! it forwards nothing, so what leaves the cluster ends there.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use crate::journal::{Entry, Journal};
use crate::miniature::plan;
use crate::namespaces::{batch, settings};
use crate::site::{Node, Site};
use crate::{Error, command, interrupt};

/// A pod as its node sees it.
struct Attached<'a> {
    netns: &'a Path,
    veth: &'a str,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

/// Makes all namespaces, links, addresses and routes of the site.
pub fn raise(site: &Site, journal: &Journal) -> Result<(), Error> {
    let names = plan::namespaces(site);
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
        settings(&crate::journal::netns_path(name), name.contains("-node-"), true)?;
    }
    interrupt::step(|| batch(&site.lan, &lan(site)))?;
    for node in &site.nodes {
        let pods = attached(site, node);
        interrupt::step(|| batch(&node.netns, &node_script(site, node, &pods)))?;
        for pod in pods {
            interrupt::step(|| batch(pod.netns, &pod_script(node, &pod)))?;
        }
    }
    interrupt::step(|| batch(&site.upstream.netns, &neighbour(site, site.upstream.v4, site.upstream.v6)))?;
    interrupt::step(|| batch(&site.monitor, &neighbour(site, MONITOR_V4, MONITOR_V6)))
}

fn attached<'a>(site: &'a Site, node: &Node) -> Vec<Attached<'a>> {
    let pods = site.pods.iter().filter(|pod| pod.node == node.name);
    let servers = site.servers.iter().filter(|server| server.node == node.name);
    let pods = pods.map(|pod| Attached { netns: &pod.netns, veth: &pod.veth, v4: pod.v4, v6: pod.v6 });
    let servers = servers.map(|one| Attached { netns: &one.netns, veth: &one.veth, v4: one.v4, v6: one.v6 });
    pods.chain(servers).collect()
}

fn lan(site: &Site) -> String {
    let mut script = format!(
        "link set lo up\nlink add br0 type bridge\naddr add {GATEWAY_V4}/24 dev br0\naddr add {GATEWAY_V6}/64 dev br0 nodad\nlink set br0 up\n"
    );
    let nodes = site.nodes.iter().map(|node| (node.name.as_str(), &node.netns));
    for (name, netns) in nodes.chain([("upstream", &site.upstream.netns), ("monitor", &site.monitor)]) {
        let netns = netns.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(script, "link add p-{name} type veth peer name eth0 netns {netns}");
        let _ = writeln!(script, "link set p-{name} master br0 up");
    }
    script
}

fn node_script(site: &Site, node: &Node, pods: &[Attached<'_>]) -> String {
    let mut script = uplink(node.v4, node.v6);
    let _ = writeln!(script, "route add default via {GATEWAY_V4}\nroute add ::/0 via {GATEWAY_V6}");
    let others = site.nodes.iter().filter(|other| other.name != node.name);
    others.for_each(|other| script += &routes_to_pods_of(other));
    let gateway = pod_gateway(node);
    for Attached { netns, veth, v4, v6 } in pods {
        let netns = netns.file_name().unwrap_or_default().to_string_lossy();
        let _ = write!(
            script,
            "link add {veth} type veth peer name eth0 netns {netns}
addr add {gateway}/32 dev {veth}
addr add {POD_GATEWAY_V6}/64 dev {veth} nodad
link set {veth} up
route add {v4}/32 dev {veth}
route add {v6}/128 dev {veth}
"
        );
    }
    script
}

fn pod_script(node: &Node, pod: &Attached<'_>) -> String {
    let gateway = pod_gateway(node);
    let Attached { v4, v6, .. } = pod;
    format!(
        "link set lo up
link set eth0 up
addr add {v4}/32 dev eth0
addr add {v6}/128 dev eth0 nodad
route add {gateway}/32 dev eth0
route add default via {gateway} dev eth0
route add ::/0 via {POD_GATEWAY_V6} dev eth0
"
    )
}

/// A machine on the nodes' link: it reaches pods by their nodes, and the ClusterIPs by the first node.
fn neighbour(site: &Site, v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    let mut script = uplink(v4, v6);
    site.nodes.iter().for_each(|node| script += &routes_to_pods_of(node));
    if let Some(node) = site.nodes.first() {
        let _ = writeln!(script, "route add {}/32 via {}", site.service.v4.ip(), node.v4);
        let _ = writeln!(script, "route add {}/128 via {}", site.service.v6.ip(), node.v6);
    }
    script
}

fn uplink(v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    format!("link set lo up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n")
}

fn routes_to_pods_of(node: &Node) -> String {
    format!(
        "route add {} via {}\nroute add {} via {}\n",
        node.pod_cidr_v4, node.v4, node.pod_cidr_v6, node.v6
    )
}

/// The first address of the node's pod network, as host-local gives it.
fn pod_gateway(node: &Node) -> String {
    node.pod_cidr_v4.replace(".0/24", ".1")
}

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1);
const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const MONITOR_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 9);
const MONITOR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 9);
