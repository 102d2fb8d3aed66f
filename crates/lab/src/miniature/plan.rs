//! Who gets which name and address, and runs where? Drawn from the seed, before anything is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::journal;
use crate::miniature::coredns;
use crate::process::Daemon;
use crate::site::{Alertmanager, Node, Pod, Server, Service, Site, Upstream};

/// The names of the namespaces that a site needs, as `ip netns` knows them.
pub fn namespaces(site: &Site) -> Vec<String> {
    let pods = site.pods.iter().map(|pod| &pod.netns);
    let servers = site.servers.iter().map(|server| &server.netns);
    let nodes = site.nodes.iter().map(|node| &node.netns);
    let paths = nodes.chain(pods).chain(servers).chain([&site.upstream.netns, &site.monitor, &site.lan]);
    paths.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

/// A site of two nodes, four clients, three servers and an upstream. The seed decides the target port, who runs
/// on which node, and the pods' addresses.
pub fn draw(name: &str, seed: u64, target_port: Option<u16>, alertmanager: PathBuf) -> Site {
    let mut random = StdRng::seed_from_u64(seed);
    let dir = journal::folder(name);
    let netns = |part: &str| journal::netns_path(&format!("nslab-{name}-{part}"));
    let target_port = {
        let drawn = if random.random_bool(0.5) { 53 } else { 5353 };
        target_port.unwrap_or(drawn)
    };
    let nodes: Vec<_> = (0..2).map(|index| node(index, &netns)).collect();

    let mut hosts: Vec<u8> = (2..=250).collect();
    hosts.shuffle(&mut random);
    let mut hosts = hosts.into_iter();
    let mut address = move |node: u8| {
        let host = hosts.next().unwrap_or(251);
        (
            Ipv4Addr::new(10, 244, node, host),
            Ipv6Addr::new(0xfd00, 0x244, 0, u16::from(node), 0, 0, 0, u16::from(host)),
        )
    };

    let pods = [("client-a1", 0), ("client-a2", 0), ("client-b1", 1), ("client-b2", 1)]
        .map(|(name, node)| {
            let (v4, v6) = address(node);
            Pod {
                name: name.to_owned(),
                node: node_name(node),
                netns: netns(name),
                veth: format!("v-{name}"),
                v4,
                v6,
            }
        })
        .to_vec();

    // One server on each node at least; the third goes where the seed says.
    let mut places = [0, 1, u8::from(random.random_bool(0.5))];
    places.shuffle(&mut random);
    let upstream = upstream(&dir, netns("upstream"));
    let servers = (1_u8..)
        .zip(places)
        .map(|(number, node)| {
            let name = format!("coredns-{number}");
            let (v4, v6) = address(node);
            Server {
                node: node_name(node),
                netns: netns(&name),
                veth: format!("v-{name}"),
                v4,
                v6,
                port: target_port,
                corefile: dir.join(format!("{name}.corefile")),
                pristine: coredns::server_corefile(target_port, &coredns::cluster_zone(&dir), upstream.v4),
                daemon: coredns::daemon(&name, &netns(&name), &dir),
                name,
            }
        })
        .collect();

    let transient = format!("coredns-{}", random.random_range(1..=places.len()));
    let monitor = netns("monitor");
    Site {
        cluster: None,
        name: name.to_owned(),
        seed,
        nodes,
        pods,
        servers,
        transient,
        upstream,
        service: Service {
            v4: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53),
            v6: SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa)), 53),
            target_port,
        },
        inventory: dir.join("inventory.json"),
        lan: netns("lan"),
        alertmanager: receiver(&dir, &monitor, alertmanager),
        monitor,
        dir,
    }
}

fn node_name(index: u8) -> String {
    if index == 0 { "node-a".to_owned() } else { "node-b".to_owned() }
}

fn node(index: u8, netns: &impl Fn(&str) -> PathBuf) -> Node {
    let name = node_name(index);
    Node {
        netns: netns(&name),
        v4: Ipv4Addr::new(172, 18, 0, 2 + index),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 2 + u16::from(index)),
        pod_cidr_v4: format!("10.244.{index}.0/24"),
        pod_cidr_v6: format!("fd00:244:0:{index}::/64"),
        name,
    }
}

fn upstream(dir: &Path, netns: PathBuf) -> Upstream {
    Upstream {
        v4: Ipv4Addr::new(172, 18, 0, 53),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x53),
        corefile: dir.join("upstream.corefile"),
        pristine: coredns::upstream_corefile(dir),
        daemon: coredns::daemon("upstream", &netns, dir),
        netns,
    }
}

/// Debian's Alertmanager reads its templates from /usr/share at a fixed path, and it is not installed: in a mount
/// namespace of its own it sees its package's /usr/share in the place of the machine's. Each step is an exec, so
/// the process keeps its id.
fn receiver(dir: &Path, netns: &Path, program: PathBuf) -> Alertmanager {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9093);
    let share = program.parent().and_then(Path::parent).map(|usr| usr.join("share")).unwrap_or_default();
    let args = [
        "--mount".to_owned(),
        "--propagation=private".to_owned(),
        "sh".to_owned(),
        "-c".to_owned(),
        "mount --bind \"$1\" /usr/share && shift && exec \"$@\"".to_owned(),
        "lab".to_owned(),
        share.display().to_string(),
        program.display().to_string(),
        format!("--config.file={}", dir.join("alertmanager.yaml").display()),
        format!("--storage.path={}", dir.join("alertmanager").display()),
        format!("--web.listen-address={address}"),
        "--cluster.listen-address=".to_owned(),
    ];
    Alertmanager {
        address,
        daemon: Daemon {
            name: "alertmanager".to_owned(),
            netns: netns.to_owned(),
            program: PathBuf::from("unshare"),
            args: args.to_vec(),
            log: dir.join("alertmanager.log"),
            pid_file: dir.join("alertmanager.pid"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_site() {
        let draw = || serde_json::to_string(&draw("x", 7, None, PathBuf::new())).unwrap();
        assert_eq!(draw(), draw());
    }

    #[test]
    fn every_seed_gives_each_node_a_server_and_each_pod_its_own_address() {
        let mut ports = HashSet::new();
        for seed in 0..50 {
            let site = draw("x", seed, None, PathBuf::new());
            for node in &site.nodes {
                assert!(site.servers.iter().any(|server| server.node == node.name), "seed {seed}");
            }
            let addresses: HashSet<_> = site
                .pods
                .iter()
                .map(|pod| pod.v4)
                .chain(site.servers.iter().map(|server| server.v4))
                .collect();
            assert_eq!(addresses.len(), 7, "seed {seed}");
            ports.insert(site.service.target_port);
        }
        assert_eq!(ports, HashSet::from([53, 5353]));
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let site = draw("x", 1, None, PathBuf::new());
        assert!(site.pods.iter().all(|pod| pod.veth.len() <= 15));
        assert!(site.servers.iter().all(|server| server.veth.len() <= 15));
    }
}
