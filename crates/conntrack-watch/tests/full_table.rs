//! Is a full table told from a rule, and is a scan of it cheap? Needs root and 100 MB of the kernel's memory.
//!
//! The limit is one value for the whole machine and is never written; entries and counters are each namespace's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::{Command, Stdio};
use std::time::Instant;

use common::{CLIENT_A, Lab, SERVER, SERVICE, SERVICE6, address, query, until};
use conntrack_watch::drops::Drops;
use conntrack_watch::netlink::Conntrack;
use evidence::{DropClass, Place};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use netns::Namespace;

#[tokio::test]
async fn a_full_table_drops_as_table_full_beside_raw_rules_and_its_scan_is_cheap() {
    let lab = Lab::new();
    let node = lab.open("node");
    let mut conntrack = Conntrack::open(&node).await.unwrap();
    let _sink = lab.socket("s", SERVER);
    // 100 DNS entries among the many.
    for port in 0..100 {
        let socket = lab.socket("a", &format!("{CLIENT_A}:{}", 30_000 + port));
        socket.send_to(&query(port, "x."), SERVICE).unwrap();
    }
    let max =
        until("a limit", async || Some(conntrack.table_size().await.unwrap().max).filter(|max| *max > 0))
            .await;
    fill(&node, max);

    let services = [address(SERVICE), address(SERVICE6)];
    let size = conntrack.table_size().await.unwrap();
    let started = Instant::now();
    let mut dns = 0;
    let dump = conntrack.entries_to(&services, size.entries, |_| dns += 1).await.unwrap();
    let ours = started.elapsed();
    let started = Instant::now();
    let name = lab.name("node");
    let tool = Command::new("ip")
        .args(["netns", "exec", &name, "conntrack", "-L"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let theirs = started.elapsed();
    println!("{} entries of {max}: {dns} of DNS in {ours:?}, conntrack -L {theirs:?}", size.entries);
    assert!(tool.success());
    assert_eq!((dns, dump.rows), (100, 100), "the kernel filters");

    let mut drops = Drops::load().unwrap();
    drops.seed(node.inode(), &conntrack.cpu_stats().await.unwrap());
    drops.set_dns(services);
    lab.node(&[
        "iptables",
        "-w",
        "-t",
        "raw",
        "-A",
        "PREROUTING",
        "-p",
        "udp",
        "-m",
        "length",
        "--length",
        "150:200",
        "-j",
        "DROP",
    ]);
    let before: u32 = conntrack.cpu_stats().await.unwrap().iter().map(|cpu| cpu.drop).sum();
    let socket = lab.socket("b", "10.244.1.9:4000");
    let mut long = query(1, "x.");
    long.resize(140, 0);
    for id in 0..30 {
        socket.send_to(&query(id, "x."), SERVICE).unwrap();
        socket.send_to(&long, SERVICE).unwrap();
    }
    let mut found = Vec::new();
    until("60 drops", async || {
        found.extend(drops.take().into_iter().filter(|record| record.namespace == node.inode()));
        (found.len() >= 60).then_some(())
    })
    .await;
    let after: u32 = conntrack.cpu_stats().await.unwrap().iter().map(|cpu| cpu.drop).sum();
    assert_eq!(after - before, 30);
    let classes = found.into_iter().map(|record| record.at_place(Place::Node("n".into())).class);
    let (full, rule): (Vec<_>, Vec<_>) = classes.partition(|class| *class == DropClass::TableFull);
    assert_eq!((full.len(), rule.len()), (30, 30));
    assert!(rule.iter().all(|class| *class == DropClass::Rule));
}

/// Assured entries, which the kernel does not evict, until it takes no more.
fn fill(node: &Namespace, max: u32) {
    let mut socket = node.run_blocking(|| Socket::new(NETLINK_NETFILTER)).unwrap().unwrap();
    socket.bind_auto().unwrap();
    let mut batch = Vec::new();
    for number in 0..max {
        batch.extend(create(number));
        if batch.len() > 30_000 || number + 1 == max {
            socket.send_to(&batch, &SocketAddr::new(0, 0), 0).unwrap();
            batch.clear();
        }
    }
}

fn create(number: u32) -> Vec<u8> {
    let client = [172, 16, 0, u8::try_from(number >> 16).unwrap()];
    let (port, server) = (u16::try_from(number & 0xffff).unwrap().to_be_bytes(), [172, 17, 0, 1]);
    let tuple = |source: [u8; 4], destination: [u8; 4], from: [u8; 2], to: [u8; 2]| {
        let ip = [attribute(1, &source), attribute(2, &destination)].concat();
        let proto = [attribute(1, &[17]), attribute(2, &from), attribute(3, &to)].concat();
        [attribute(0x8001, &ip), attribute(0x8002, &proto)].concat()
    };
    let other = 9u16.to_be_bytes();
    let body = [
        attribute(0x8001, &tuple(client, server, port, other)),
        attribute(0x8002, &tuple(server, client, other, port)),
        // Confirmed, which a new entry must say of itself (else EBUSY), assured and replied.
        attribute(3, &0xeu32.to_be_bytes()),
        attribute(7, &600u32.to_be_bytes()),
    ]
    .concat();
    // IPCTNL_MSG_CT_NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, AF_INET.
    let mut message = u32::try_from(20 + body.len()).unwrap().to_ne_bytes().to_vec();
    message.extend(0x100u16.to_ne_bytes());
    message.extend(0x601u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([2, 0, 0, 0]);
    message.extend(body);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
