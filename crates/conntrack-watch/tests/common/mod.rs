//! A node and its pods as network namespaces, for tests that ask the real kernel.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns::Namespace;

/// Where the Service is, and where its server really listens.
pub const SERVICE: &str = "10.96.0.10:53";
pub const SERVICE6: &str = "[fd00:96::10]:53";
pub const SERVER: &str = "10.244.1.20:5353";
pub const SERVER6: &str = "[fd00:244::20]:5353";
pub const CLIENT_A: &str = "10.244.1.7";
pub const CLIENT_B: &str = "10.244.1.9";
pub const CLIENT6_A: &str = "fd00:244::7";

/// One node with pods `a` and `b` (clients) and `s` (server), all removed at the end, even of a failed test.
pub struct Lab {
    prefix: String,
    made: Vec<String>,
}

impl Lab {
    /// Builds it: the Service is DNATed to the server, as kube-proxy does.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("ct-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { prefix, made: Vec::new() };
        lab.namespace("node");
        for sysctl in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            lab.node(&["sysctl", "-qw", sysctl]);
        }
        for (pod, v4, v6) in
            [("a", CLIENT_A, CLIENT6_A), ("b", CLIENT_B, "fd00:244::9"), ("s", "10.244.1.20", "fd00:244::20")]
        {
            lab.pod(pod, v4, v6);
        }
        for (iptables, service, server) in
            [("iptables", "10.96.0.10", SERVER), ("ip6tables", "fd00:96::10", SERVER6)]
        {
            for protocol in ["udp", "tcp"] {
                lab.node(&[
                    iptables,
                    "-w",
                    "-t",
                    "nat",
                    "-A",
                    "PREROUTING",
                    "-d",
                    service,
                    "-p",
                    protocol,
                    "--dport",
                    "53",
                    "-j",
                    "DNAT",
                    "--to-destination",
                    server,
                ]);
            }
        }
        lab
    }

    pub fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    pub fn open(&self, namespace: &str) -> Namespace {
        Namespace::open(&PathBuf::from("/run/netns").join(self.name(namespace))).unwrap()
    }

    /// Runs a command inside; panics with its words when it fails.
    pub fn run(&self, namespace: &str, command: &[&str]) -> String {
        let name = self.name(namespace);
        let output = ip(&[&["netns", "exec", &name], command].concat());
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn node(&self, command: &[&str]) -> String {
        self.run("node", command)
    }

    /// A UDP socket of a pod; IPv4 and IPv6 by the text of the address.
    pub fn socket(&self, pod: &str, bind: &str) -> UdpSocket {
        let bind: SocketAddr = bind.parse().unwrap();
        let socket = self.open(pod).run_blocking(move || UdpSocket::bind(bind)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    }

    /// Sends back all that comes to the server's port, for as long as the test runs.
    pub fn echo(&self) {
        for bind in [SERVER, SERVER6] {
            let socket = self.socket("s", bind);
            socket.set_read_timeout(None).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            });
        }
    }

    fn namespace(&mut self, name: &str) {
        let full = self.name(name);
        self.made.push(full.clone());
        must(&["netns", "add", &full]);
        must(&["-n", &full, "link", "set", "lo", "up"]);
    }

    fn pod(&mut self, pod: &str, v4: &str, v6: &str) {
        self.namespace(pod);
        let (node, pod_ns, veth) = (self.name("node"), self.name(pod), format!("veth{pod}"));
        must(&["-n", &node, "link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &pod_ns]);
        must(&["-n", &node, "addr", "add", "169.254.1.1/32", "dev", &veth]);
        must(&["-n", &node, "addr", "add", "fe80::1/64", "dev", &veth, "nodad"]);
        must(&["-n", &node, "link", "set", &veth, "up"]);
        must(&["-n", &pod_ns, "addr", "add", &format!("{v4}/32"), "dev", "eth0"]);
        must(&["-n", &pod_ns, "addr", "add", &format!("{v6}/128"), "dev", "eth0", "nodad"]);
        must(&["-n", &pod_ns, "link", "set", "eth0", "up"]);
        must(&["-n", &pod_ns, "route", "add", "169.254.1.1/32", "dev", "eth0", "scope", "link"]);
        must(&["-n", &pod_ns, "route", "add", "default", "via", "169.254.1.1"]);
        must(&["-n", &pod_ns, "route", "add", "default", "via", "fe80::1", "dev", "eth0"]);
        must(&["-n", &node, "route", "add", &format!("{v4}/32"), "dev", &veth]);
        must(&["-n", &node, "route", "add", &format!("{v6}/128"), "dev", &veth]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// A DNS query for an A record.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// Asks again until the answer is there; panics with `what` after ten seconds.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(Instant::now() < end, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn ip_address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn must(arguments: &[&str]) {
    let output = ip(arguments);
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip(arguments: &[&str]) -> Output {
    Command::new("ip").args(arguments).output().expect("the test needs iproute2 and root")
}
