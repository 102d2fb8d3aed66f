//! Has the kube-proxy of each node taken up what the API server says?
//!
//! It gathers changes for up to a second. Whoever looks at a node's rules before that sees those of a cluster in
//! which a server is missing.

use std::net::IpAddr;
use std::time::Duration;

use crate::kubernetes::plan::{Cluster, Node, ProxyMode};
use crate::process::wait_until;
use crate::{Error, command};

impl Cluster {
    /// The rules of a node as the kernel has them, of both families: what iptables-save or nft prints.
    pub fn proxy_rules(&self, node: &Node) -> Result<String, Error> {
        let print = |words: &[&str]| {
            let (program, arguments) = words.split_first().unwrap_or((&"true", &[]));
            command::run(command::inside(&node.netns, program).args(arguments), None)
        };
        match self.options.proxy_mode {
            ProxyMode::Iptables => Ok(print(&["iptables-save"])? + &print(&["ip6tables-save"])?),
            ProxyMode::Nftables => print(&["nft", "list", "ruleset"]),
        }
    }

    /// Waits till every node's rules lead to every ready CoreDNS pod.
    pub fn wait_for_rules(&self, deadline: Duration) -> Result<(), Error> {
        let servers = self.pods("k8s-app=kube-dns")?;
        let ready = servers.iter().filter(|pod| pod.ready).flat_map(|pod| &pod.addresses);
        let wanted: Vec<_> = ready.map(|address| self.destination(*address)).collect();
        for node in &self.nodes {
            let mut last = None;
            let done = wait_until(deadline, || match self.proxy_rules(node) {
                Ok(rules) => {
                    last = wanted.iter().find(|one| !rules.contains(*one)).cloned();
                    last.is_none()
                }
                Err(error) => {
                    last = Some(error.to_string());
                    false
                }
            });
            if !done {
                return Err(Error::NotReady {
                    what: format!("kube-proxy on {}", node.name),
                    seconds: deadline.as_secs(),
                    last: format!("not in its rules: {}", last.unwrap_or_default()),
                    log: node.kube_proxy.log_tail(),
                });
            }
        }
        Ok(())
    }

    /// The DNAT to a server, as the mode prints it.
    fn destination(&self, address: IpAddr) -> String {
        let port = self.options.target_port;
        match (self.options.proxy_mode, address) {
            (ProxyMode::Iptables, IpAddr::V4(v4)) => format!("--to-destination {v4}:{port}\n"),
            (ProxyMode::Iptables, IpAddr::V6(v6)) => format!("--to-destination [{v6}]:{port}\n"),
            (ProxyMode::Nftables, IpAddr::V4(v4)) => format!("dnat to {v4}:{port}\n"),
            (ProxyMode::Nftables, IpAddr::V6(v6)) => format!("dnat to [{v6}]:{port}\n"),
        }
    }
}
