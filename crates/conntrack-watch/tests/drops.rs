//! Is each dropped packet classed right and counted exactly, by the real kernel's own account? Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::{CLIENT_A, CLIENT_B, CLIENT6_A, Lab, SERVER, SERVER6, SERVICE, SERVICE6, address, query, until};
use conntrack_watch::drops::{Drops, Record};
use conntrack_watch::netlink::Conntrack;
use evidence::{DropClass, KernelDrop, Place, Protocol};

/// The helper, loaded and seeded for the lab's node.
async fn helper(lab: &Lab) -> (Drops, Conntrack, u32) {
    let node = lab.open("node");
    let mut conntrack = Conntrack::open(&node).await.unwrap();
    let mut drops = Drops::load().unwrap();
    drops.seed(node.inode(), &conntrack.cpu_stats().await.unwrap());
    drops.set_dns([SERVICE, SERVICE6, SERVER, SERVER6].map(address));
    (drops, conntrack, node.inode())
}

/// All and DNS drops of a class in a namespace.
fn total(drops: &Drops, namespace: u32, class: DropClass) -> (u64, u64) {
    let totals = drops.totals();
    totals
        .iter()
        .find(|total| (total.namespace, total.class) == (namespace, class))
        .map_or((0, 0), |total| (total.all, total.dns))
}

async fn insert_failed(conntrack: &mut Conntrack) -> u64 {
    conntrack.cpu_stats().await.unwrap().iter().map(|cpu| u64::from(cpu.insert_failed)).sum()
}

/// The next records of one namespace: other tests run on the same kernel.
async fn records(drops: &Drops, namespace: u32, count: usize) -> Vec<KernelDrop> {
    let mut found: Vec<Record> = Vec::new();
    until("records of dropped packets", async || {
        found.extend(drops.take().into_iter().filter(|record| record.namespace == namespace));
        (found.len() >= count).then_some(())
    })
    .await;
    found.into_iter().map(|record| record.at_place(Place::Namespace(namespace))).collect()
}

/// A query padded so that a rule can tell it by its length.
fn long_query(id: u16, length: usize) -> Vec<u8> {
    let mut bytes = query(id, "api.example.com");
    bytes.resize(length, 0);
    bytes
}

#[tokio::test]
async fn a_drop_by_a_rule_in_any_table_is_a_rule_with_its_tuple_and_question() {
    let rules: [(&str, &[&str], &str); 5] = [
        (
            "raw",
            &["iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "DROP"],
            SERVICE,
        ),
        (
            "mangle",
            &[
                "iptables",
                "-w",
                "-t",
                "mangle",
                "-A",
                "PREROUTING",
                "-p",
                "udp",
                "--dport",
                "53",
                "-j",
                "DROP",
            ],
            SERVICE,
        ),
        (
            "forward",
            &["iptables", "-w", "-A", "FORWARD", "-p", "udp", "--dport", "5353", "-j", "DROP"],
            SERVER,
        ),
        (
            "mangle postrouting",
            &[
                "iptables",
                "-w",
                "-t",
                "mangle",
                "-A",
                "POSTROUTING",
                "-p",
                "udp",
                "--dport",
                "5353",
                "-j",
                "DROP",
            ],
            SERVER,
        ),
        (
            "reject",
            &["iptables", "-w", "-A", "FORWARD", "-p", "udp", "--dport", "5353", "-j", "REJECT"],
            SERVER,
        ),
    ];
    for (name, rule, died_at) in rules {
        let lab = Lab::new();
        let (drops, _conntrack, node) = helper(&lab).await;
        lab.node(rule);
        let client = lab.socket("a", &format!("{CLIENT_A}:4000"));
        for id in 0..5 {
            client.send_to(&query(id, "api.example.com"), SERVICE).unwrap();
        }
        let records = records(&drops, node, 5).await;
        assert_eq!(total(&drops, node, DropClass::Rule), (5, 5), "{name}");
        for record in &records {
            assert_eq!((record.class, record.protocol), (DropClass::Rule, Protocol::Udp), "{name}");
            assert_eq!(record.packet.source, address(&format!("{CLIENT_A}:4000")), "{name}");
            assert_eq!(record.packet.destination, address(died_at), "{name}");
            assert_eq!(record.original.is_some(), name != "raw", "{name}");
            if let Some(original) = record.original {
                assert_eq!(original.destination, address(SERVICE), "{name}");
            }
            assert_eq!(record.question.as_ref().unwrap().name, "api.example.com.", "{name}");
        }
    }
}

#[tokio::test]
async fn a_rule_after_source_nat_is_a_rule_for_both_families() {
    let lab = Lab::new();
    let (drops, _conntrack, node) = helper(&lab).await;
    masquerade(&lab);
    drop_after_source_nat(&lab);
    for (client, service, server) in
        [(format!("{CLIENT_A}:4000"), SERVICE, SERVER), (format!("[{CLIENT6_A}]:4000"), SERVICE6, SERVER6)]
    {
        let socket = lab.socket("a", &client);
        for id in 0..30 {
            socket.send_to(&long_query(id, 150), service).unwrap();
        }
        let records = records(&drops, node, 30).await;
        for record in records {
            assert_eq!(record.class, DropClass::Rule);
            assert_eq!(record.packet.destination, address(server));
            let original = record.original.unwrap();
            assert_eq!((original.source, original.destination), (address(&client), address(service)));
            assert_eq!(record.reply.unwrap().source, address(server));
        }
    }
    assert_eq!(total(&drops, node, DropClass::Rule), (60, 60));
    assert_eq!(total(&drops, node, DropClass::InsertRace), (0, 0));
}

#[tokio::test]
async fn a_drop_in_a_pods_own_namespace_is_told_by_its_place() {
    let lab = Lab::new();
    let (drops, _conntrack, node) = helper(&lab).await;
    let pod = lab.open("a").inode();
    lab.run("a", &["iptables", "-w", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "DROP"]);
    let socket = lab.socket("a", &format!("{CLIENT_A}:4000"));
    for id in 0..5 {
        assert!(socket.send_to(&query(id, "x."), SERVICE).is_err(), "the sender is told EPERM");
    }
    let records = records(&drops, pod, 5).await;
    assert!(records.iter().all(|record| record.class == DropClass::Rule));
    assert_eq!(total(&drops, pod, DropClass::Rule), (5, 5));
    assert_eq!(total(&drops, node, DropClass::Rule), (0, 0));
}

#[tokio::test]
async fn tcp_is_told_like_udp_and_a_retransmission_stays_in_its_namespace() {
    let lab = Lab::new();
    let (drops, _conntrack, node) = helper(&lab).await;
    let pod = lab.open("a").inode();
    lab.node(&["iptables", "-w", "-A", "FORWARD", "-p", "tcp", "--dport", "5353", "-j", "DROP"]);
    lab.run("b", &["iptables", "-w", "-A", "OUTPUT", "-p", "tcp", "--dport", "53", "-j", "DROP"]);
    let threads = ["a", "b"].map(|pod| {
        let namespace = lab.open(pod);
        let connect = || std::net::TcpStream::connect_timeout(&address(SERVICE), Duration::from_millis(1500));
        thread::spawn(move || namespace.run_blocking(connect).unwrap().is_err())
    });
    // Each SYN is sent again after a second.
    let routed = records(&drops, node, 2).await;
    let refused = lab.open("b").inode();
    until("both of the pod's own", async || {
        (total(&drops, refused, DropClass::Rule) == (2, 2)).then_some(())
    })
    .await;
    for record in routed {
        assert_eq!((record.class, record.protocol), (DropClass::Rule, Protocol::Tcp));
        assert_eq!(record.packet.destination, address(SERVER));
        assert_eq!(record.original.unwrap().destination, address(SERVICE));
        assert_eq!(record.question, None);
    }
    assert_eq!(drops.owner(refused), Some(node), "a pod's namespace hangs on its node's");
    assert_eq!(total(&drops, pod, DropClass::Rule), (0, 0));
    for thread in threads {
        assert!(thread.join().unwrap());
    }
}

#[tokio::test]
async fn drops_that_are_not_dns_are_counted_but_not_as_dns() {
    let lab = Lab::new();
    let (drops, _conntrack, node) = helper(&lab).await;
    lab.node(&["iptables", "-w", "-A", "FORWARD", "-p", "udp", "-j", "DROP"]);
    let socket = lab.socket("a", &format!("{CLIENT_A}:53"));
    for id in 0..7 {
        // To port 53 of a stranger, and to another port of the DNS server: neither is DNS here.
        socket.send_to(&query(id, "x."), "10.244.1.9:53").unwrap();
        socket.send_to(&query(id, "x."), "10.244.1.20:8080").unwrap();
    }
    socket.send_to(&query(1, "x."), SERVICE).unwrap();
    let records = records(&drops, node, 1).await;
    assert_eq!(records[0].original.unwrap().destination, address(SERVICE));
    assert_eq!(total(&drops, node, DropClass::Rule), (15, 1));
}

#[tokio::test]
async fn a_service_that_is_told_later_is_dns_from_then_on() {
    let lab = Lab::new();
    let (mut drops, _conntrack, node) = helper(&lab).await;
    lab.node(&["iptables", "-w", "-A", "FORWARD", "-p", "udp", "-j", "DROP"]);
    let socket = lab.socket("a", &format!("{CLIENT_A}:4000"));
    drops.set_dns([]);
    socket.send_to(&query(1, "x."), SERVICE).unwrap();
    until("the first drop", async || (total(&drops, node, DropClass::Rule).0 == 1).then_some(())).await;
    drops.set_dns([address(SERVER)]);
    socket.send_to(&query(2, "x."), SERVICE).unwrap();
    until("the second drop", async || (total(&drops, node, DropClass::Rule) == (2, 1)).then_some(())).await;
}

#[tokio::test]
async fn insert_drops_equal_the_rise_of_insert_failed() {
    let lab = Lab::new();
    let _sink = lab.socket("s", SERVER);
    masquerade(&lab);
    let (drops, mut conntrack, node) = helper(&lab).await;
    let before = insert_failed(&mut conntrack).await;
    let mut found = Vec::new();
    let mut port = 10_000;
    let expected = loop {
        race(&lab, port, 300);
        port += 300;
        found.extend(drops.take().into_iter().filter(|record| record.namespace == node));
        let rise = insert_failed(&mut conntrack).await - before;
        if rise >= 20 || port > 50_000 {
            break rise;
        }
    };
    assert!(expected > 0, "no race in {} pairs", port - 10_000);
    settled(&drops, node).await;
    let rise = insert_failed(&mut conntrack).await - before;
    assert_eq!(total(&drops, node, DropClass::InsertRace), (rise, rise), "{:?}", drops.trouble());
    assert_eq!(total(&drops, node, DropClass::Rule), (0, 0));
    assert_eq!(total(&drops, node, DropClass::Unknown), (0, 0));
    found.extend(drops.take().into_iter().filter(|record| record.namespace == node));
    assert_eq!(found.len(), usize::try_from(rise).unwrap());
    let mut held = 0;
    for record in &found {
        let (protocol, wanted) = record.wanted().unwrap();
        assert_eq!(wanted.source, address(SERVER));
        let drop = record.clone().at_place(Place::Node("n".into()));
        assert_eq!(wanted.destination.port(), drop.original.unwrap().source.port());
        // The one who won is the other pod, by the same port.
        if let Some(holder) = conntrack.holder(protocol, wanted).await.unwrap() {
            assert_ne!(holder.original.source, drop.original.unwrap().source);
            assert_eq!(holder.original.source.port(), drop.original.unwrap().source.port());
            held += 1;
        }
    }
    println!("{rise} insertion failures in {} pairs, {held} holders found", port - 10_000);
    assert!(held > 0);
}

#[tokio::test]
async fn rules_during_a_race_are_counted_apart_exactly() {
    let lab = Lab::new();
    let _sink = lab.socket("s", SERVER);
    masquerade(&lab);
    drop_after_source_nat(&lab);
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
        "300:400",
        "-j",
        "DROP",
    ]);
    let (drops, mut conntrack, node) = helper(&lab).await;
    let before = insert_failed(&mut conntrack).await;
    let (mut port, mut ruled) = (10_000, 0u64);
    loop {
        // From both pods, new ports as well as old ones, among the racing packets.
        let noise: Vec<_> = [("a", CLIENT_A), ("b", CLIENT_B)]
            .into_iter()
            .map(|(pod, client)| {
                let namespace = lab.open(pod);
                thread::spawn(move || {
                    namespace
                        .run_blocking(move || {
                            for at in 0..500u16 {
                                let socket =
                                    std::net::UdpSocket::bind((client, 2_000 + at)).expect("a free port");
                                let length = if at % 2 == 0 { 150 } else { 320 };
                                socket.send_to(&long_query(at, length), SERVICE).unwrap();
                                thread::sleep(Duration::from_micros(200));
                            }
                        })
                        .unwrap();
                })
            })
            .collect();
        race(&lab, port, 2_000);
        for thread in noise {
            thread.join().unwrap();
        }
        ruled += 1_000;
        port += 2_000;
        if insert_failed(&mut conntrack).await - before >= 20 || port > 50_000 {
            break;
        }
    }
    settled(&drops, node).await;
    let rise = insert_failed(&mut conntrack).await - before;
    println!("{rise} insertion failures beside {ruled} packets dropped by rules: {:?}", drops.totals());
    assert!(rise > 0, "no race in {} pairs", port - 10_000);
    assert_eq!(total(&drops, node, DropClass::InsertRace), (rise, rise), "{:?}", drops.trouble());
    assert_eq!(total(&drops, node, DropClass::Rule), (ruled, ruled), "{:?}", drops.trouble());
    assert_eq!(total(&drops, node, DropClass::Unknown), (0, 0));
}

/// The plain rule of a CNI: without --random-fully.
fn masquerade(lab: &Lab) {
    for iptables in ["iptables", "ip6tables"] {
        lab.node(&[
            iptables,
            "-w",
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-p",
            "udp",
            "--dport",
            "5353",
            "-j",
            "MASQUERADE",
        ]);
    }
}

/// A chain whose drops leave the same marks on a packet as a failed insertion. Tells packets by their length.
fn drop_after_source_nat(lab: &Lab) {
    lab.node(&["nft", "add table inet late"]);
    lab.node(&["nft", "add chain inet late post { type filter hook postrouting priority 150; }"]);
    lab.node(&["nft", "add rule inet late post udp dport 5353 udp length 100-250 drop"]);
}

/// Two pods send to the Service from the same source port at the same moment, each from a CPU of its own.
fn race(lab: &Lab, first_port: u16, pairs: u16) {
    let turn = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = [("a", CLIENT_A), ("b", CLIENT_B)]
        .into_iter()
        .enumerate()
        .map(|(cpu, (pod, client))| {
            let (namespace, turn) = (lab.open(pod), Arc::clone(&turn));
            thread::spawn(move || {
                namespace
                    .run_blocking(move || {
                        let mut set = nix::sched::CpuSet::new();
                        set.set(cpu).unwrap();
                        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
                        for pair in 0..pairs {
                            let socket = std::net::UdpSocket::bind((client, first_port + pair)).unwrap();
                            socket.connect(SERVICE).unwrap();
                            let packet = query(pair, "x.");
                            let both = (u32::from(pair) + 1) * 2;
                            turn.fetch_add(1, Ordering::AcqRel);
                            while turn.load(Ordering::Acquire) < both {
                                std::hint::spin_loop();
                            }
                            let _ = socket.send(&packet);
                        }
                    })
                    .unwrap();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Waits until no packet is on its way any more: the totals stand still.
async fn settled(drops: &Drops, node: u32) {
    let sum = || drops.totals().iter().filter(|t| t.namespace == node).map(|t| t.all).sum::<u64>();
    let mut last = sum();
    until("traffic at rest", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = sum();
        (std::mem::replace(&mut last, now) == now).then_some(())
    })
    .await;
}
