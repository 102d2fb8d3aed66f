//! Which rules does kube-proxy 1.34 write on a node for the DNS Service, and which entries does it delete?
//!
//! The chains, their names (a hash of the port's name, the protocol and the endpoint) and the rules' order are
//! those of its iptables mode: kubernetes/kubernetes v1.34.4, pkg/proxy/iptables/proxier.go, and for entries
//! pkg/proxy/conntrack/cleanup.go.

use std::fmt::Write;
use std::net::IpAddr;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::site::{Node, Server, Site};
use crate::{Error, command};

/// IPv4 or IPv6: each has its own tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// A port of the Service: its name and its protocol.
struct Port {
    name: &'static str,
    protocol: &'static str,
}

/// Writes what does not depend on endpoints: the jumps from the kernel's chains, masquerade, forward. Once for
/// each node, before the first [`sync`].
pub fn install(node: &Node) -> Result<(), Error> {
    Family::BOTH.into_iter().try_for_each(|family| restore(node, family, FRAME))
}

/// Makes the node's rules lead to exactly these servers, for both families.
pub fn sync(site: &Site, node: &Node, endpoints: &[&Server]) -> Result<(), Error> {
    Family::BOTH.into_iter().try_for_each(|family| restore(node, family, &rules(site, family, endpoints)))
}

/// Deletes the node's UDP entries to the Service that lead to these servers, or to none: those that were made while
/// there was no rule to translate them. kube-proxy asks only whether the reply's source is a serving endpoint.
pub fn delete_stale(site: &Site, node: &Node, out: &[&Server]) -> Result<(), Error> {
    for family in Family::BOTH {
        let service = family.service(site);
        for backend in out.iter().map(|server| family.address(server)).chain([service]) {
            let mut conntrack = command::inside(&node.netns, "conntrack");
            conntrack.args(["-D", "-f", family.name(), "-p", "udp"]);
            conntrack.args(["--orig-dst", &service.to_string(), "--orig-port-dst", "53"]);
            conntrack.args(["--reply-src", &backend.to_string()]);
            delete(&mut conntrack)?;
        }
    }
    Ok(())
}

/// An entry that ends between being read and being deleted ends the whole run of conntrack: in a full table that happens.
/// As kube-proxy does since 1.32, what failed is tried again.
fn delete(conntrack: &mut Command) -> Result<(), Error> {
    let mut last = Ok(());
    for _ in 0..TRIES {
        let output = command::output(conntrack, None)?;
        // conntrack ends with 1 where there was nothing to delete.
        if output.status.success() || String::from_utf8_lossy(&output.stderr).contains(" 0 flow entries") {
            return Ok(());
        }
        last = Err(command::failure(conntrack, &output));
    }
    last
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    fn pods(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:244::/32",
        }
    }

    fn service(self, site: &Site) -> IpAddr {
        match self {
            Self::V4 => site.service.v4.ip(),
            Self::V6 => site.service.v6.ip(),
        }
    }

    fn address(self, server: &Server) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(server.v4),
            Self::V6 => IpAddr::V6(server.v6),
        }
    }

    /// The last rule of KUBE-SERVICES. Over IPv6 localhost has no node ports.
    fn nodeports(self) -> String {
        let but = match self {
            Self::V4 => "",
            Self::V6 => " ! -d ::1/128",
        };
        format!(
            "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in \
             this chain\" -m addrtype --dst-type LOCAL{but} -j KUBE-NODEPORTS\n"
        )
    }

    fn endpoint(self, server: &Server) -> String {
        match self {
            Self::V4 => format!("{}:{}", server.v4, server.port),
            Self::V6 => format!("[{}]:{}", server.v6, server.port),
        }
    }
}

fn restore(node: &Node, family: Family, rules: &str) -> Result<(), Error> {
    // -w: where iptables is the legacy one, another lab may hold the machine's one lock.
    let mut program = command::inside(&node.netns, family.program());
    command::run(program.args(["-w", "10", "--noflush"]), Some(rules)).map(drop)
}

/// One atomic change of both tables. A chain that is declared is emptied first.
fn rules(site: &Site, family: Family, endpoints: &[&Server]) -> String {
    let mut filter = "*filter\n:KUBE-SERVICES - [0:0]\n".to_owned();
    let mut nat = "*nat\n:KUBE-SERVICES - [0:0]\n".to_owned();
    let mut dropped = String::new();
    for port in PORTS {
        let svc = port.chain("KUBE-SVC-", "");
        let _ = writeln!(nat, ":{svc} - [0:0]");
        for server in &site.servers {
            let sep = port.chain("KUBE-SEP-", &family.endpoint(server));
            let _ = writeln!(nat, ":{sep} - [0:0]");
            if endpoints.iter().all(|one| one.name != server.name) {
                let _ = writeln!(dropped, "-X {sep}");
            }
        }
        if endpoints.is_empty() {
            let (name, matched) = (port.name, port.matched(site, family));
            let _ = writeln!(
                filter,
                "-A KUBE-SERVICES -m comment --comment \"{name} has no endpoints\" {matched} -j REJECT"
            );
            let _ = writeln!(dropped, "-X {svc}");
        } else {
            nat += &port.rules(site, family, endpoints);
        }
    }
    let nodeports = family.nodeports();
    format!("{filter}COMMIT\n{nat}{nodeports}{dropped}COMMIT\n")
}

impl Port {
    fn matched(&self, site: &Site, family: Family) -> String {
        let protocol = self.protocol;
        format!("-m {protocol} -p {protocol} -d {} --dport 53", family.service(site))
    }

    fn chain(&self, kind: &str, endpoint: &str) -> String {
        let hash = Sha256::new().chain_update(self.name).chain_update(self.protocol).chain_update(endpoint);
        format!("{kind}{}", base32(&hash.finalize(), 16))
    }

    /// The rules of one port with at least one endpoint, in kube-proxy's order.
    fn rules(&self, site: &Site, family: Family, endpoints: &[&Server]) -> String {
        let Self { name, protocol } = self;
        let (svc, matched) = (self.chain("KUBE-SVC-", ""), self.matched(site, family));
        let comment = format!("-m comment --comment \"{name} cluster IP\"");
        let mut rules = format!(
            "-A KUBE-SERVICES {comment} {matched} -j {svc}\n-A {svc} {comment} {matched} ! -s {} -j KUBE-MARK-MASQ\n",
            family.pods()
        );
        for (index, server) in endpoints.iter().enumerate() {
            let endpoint = family.endpoint(server);
            let sep = self.chain("KUBE-SEP-", &endpoint);
            // Each of the n that are left gets 1/n, so all get the same; the last one takes the rest.
            let left = u32::try_from(endpoints.len() - index).unwrap_or(1);
            let chance = match left {
                1 => String::new(),
                _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / f64::from(left)),
            };
            let address = family.address(server);
            let _ = write!(
                rules,
                "-A {svc} -m comment --comment \"{name} -> {endpoint}\" {chance}-j {sep}
-A {sep} -m comment --comment {name} -s {address} -j KUBE-MARK-MASQ
-A {sep} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}
"
            );
        }
        rules
    }
}

/// RFC 4648, the first `length` letters.
fn base32(bytes: &[u8], length: usize) -> String {
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let bits: Vec<u8> = bits.take(length * 5).collect();
    let letter = |five: &[u8]| five.iter().fold(0_u8, |value, bit| value << 1 | bit);
    bits.chunks(5)
        .map(letter)
        .map(|value| char::from(if value < 26 { b'A' + value } else { b'2' + value - 26 }))
        .collect()
}

const TRIES: u32 = 20;

const PORTS: [Port; 2] = [
    Port { name: "kube-system/kube-dns:dns", protocol: "udp" },
    Port { name: "kube-system/kube-dns:dns-tcp", protocol: "tcp" },
];

const FRAME: &str = r#"*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
"#;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::miniature::plan;

    #[test]
    fn chains_have_the_names_that_every_cluster_has() {
        let names = PORTS.map(|port| port.chain("KUBE-SVC-", ""));
        assert_eq!(names, ["KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SVC-ERIFXISQEP7F7OF4"]);
    }

    #[test]
    fn with_three_endpoints_each_has_the_same_chance() {
        let site = plan::draw("x", 1, None, PathBuf::new());
        let all: Vec<_> = site.servers.iter().collect();
        let rules = rules(&site, Family::V4, &all);
        assert_eq!(rules.matches("--probability 0.3333333333 ").count(), 2);
        assert_eq!(rules.matches("--probability 0.5000000000 ").count(), 2);
        assert_eq!(rules.matches("-j REJECT").count(), 0);
    }

    #[test]
    fn without_endpoints_both_protocols_are_rejected_and_no_chain_is_left() {
        let site = plan::draw("x", 1, None, PathBuf::new());
        let rules = rules(&site, Family::V6, &[]);
        assert_eq!(rules.matches("-d fd00:96::a --dport 53 -j REJECT").count(), 2);
        assert_eq!(rules.matches("-X KUBE-S").count(), 8);
    }
}
