//! Does our reading of conntrack agree with the kernel's own tools? Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use common::{CLIENT_A, CLIENT6_A, Lab, SERVER, SERVER6, SERVICE, SERVICE6, address, query};
use conntrack_watch::netlink::Conntrack;
use evidence::{Protocol, Tuple};

#[tokio::test]
async fn counters_equal_those_of_conntrack_tool() {
    let lab = Lab::new();
    // A rule that lets conntrack see packets makes the counters move: a truncated TCP header is invalid.
    let client = lab.socket("a", &format!("{CLIENT_A}:4000"));
    for id in 0..20 {
        client.send_to(&query(id, "x."), SERVICE).unwrap();
    }
    let mut conntrack = Conntrack::open(&lab.open("node")).await.unwrap();
    let ours = conntrack.cpu_stats().await.unwrap();
    let theirs = lab.node(&["conntrack", "-S"]);
    assert_eq!(ours.len(), theirs.lines().count(), "{theirs}");
    for (stats, line) in ours.iter().zip(theirs.lines()) {
        let fields: BTreeMap<&str, u32> = line
            .split_whitespace()
            .filter_map(|field| field.split_once('='))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        assert_eq!(fields["cpu"], u32::from(stats.cpu));
        assert_eq!(fields["found"], stats.found);
        assert_eq!(fields["invalid"], stats.invalid);
        assert_eq!(fields["insert_failed"], stats.insert_failed);
        assert_eq!(fields["drop"], stats.drop);
        assert_eq!(fields["early_drop"], stats.early_drop);
        assert_eq!(fields["clash_resolve"], stats.clash_resolve);
        assert_eq!(fields["chaintoolong"], stats.chain_toolong);
    }
    let size = conntrack.table_size().await.unwrap();
    let count = lab.node(&["conntrack", "-C"]);
    assert_eq!(size.entries, count.trim().parse::<u32>().unwrap());
    assert!(size.entries > 0 && size.max >= size.entries, "{size:?}");
}

#[tokio::test]
async fn the_dump_of_dns_rows_equals_that_of_conntrack_tool() {
    let lab = Lab::new();
    lab.echo();
    for (client, service) in [(CLIENT_A.to_owned(), SERVICE), (format!("[{CLIENT6_A}]"), SERVICE6)] {
        for id in 0..50 {
            let socket = lab.socket("a", &format!("{client}:{}", 20_000 + id));
            socket.send_to(&query(id, "x."), service).unwrap();
            let mut buffer = [0; 512];
            assert!(socket.recv(&mut buffer).unwrap() > 0);
        }
    }
    // Rows that are not DNS: another port, and one whose source is port 53.
    let other = lab.socket("a", &format!("{CLIENT_A}:53"));
    other.send_to(b"x", "10.244.1.20:9999").unwrap();

    let mut conntrack = Conntrack::open(&lab.open("node")).await.unwrap();
    let services = [address(SERVICE), address(SERVICE6)];
    let mut ours = BTreeSet::new();
    // A table said to be large is filtered by the kernel, a small one by us: the rows are the same.
    for (entries, rows) in [(u32::MAX, 100), (0, 101)] {
        ours.clear();
        let dump = conntrack
            .entries_to(&services, entries, |entry| {
                assert!(entry.replied(), "{entry:?}");
                assert!(entry.expires_secs <= 120, "{entry:?}");
                let server = if entry.original.source.is_ipv4() { SERVER } else { SERVER6 };
                assert_eq!(entry.reply.source, address(server));
                ours.insert(entry.original.source);
            })
            .await
            .unwrap();
        assert!(!dump.interrupted);
        assert_eq!((dump.rows, ours.len()), (rows, 100));
    }
    let mut theirs = BTreeSet::new();
    for family in ["ipv4", "ipv6"] {
        let text = lab.node(&["conntrack", "-L", "-f", family, "-p", "udp", "--orig-port-dst", "53"]);
        for line in text.lines() {
            let field = |name: &str| line.split_whitespace().find_map(|f| f.strip_prefix(name));
            let source = field("src=").unwrap().parse().unwrap();
            theirs.insert(std::net::SocketAddr::new(source, field("sport=").unwrap().parse().unwrap()));
        }
    }
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn the_holder_of_a_reply_tuple_is_found_and_a_free_tuple_has_none() {
    let lab = Lab::new();
    lab.echo();
    let mut conntrack = Conntrack::open(&lab.open("node")).await.unwrap();
    for (client, service, server) in
        [(format!("{CLIENT_A}:4001"), SERVICE, SERVER), (format!("[{CLIENT6_A}]:4001"), SERVICE6, SERVER6)]
    {
        let socket = lab.socket("a", &client);
        socket.send_to(&query(1, "x."), service).unwrap();
        let mut buffer = [0; 512];
        socket.recv(&mut buffer).unwrap();
        let reply = Tuple { source: address(server), destination: address(&client) };
        let holder = conntrack.holder(Protocol::Udp, reply).await.unwrap().unwrap();
        assert_eq!(holder.original, Tuple { source: address(&client), destination: address(service) });
        let free = Tuple { source: address(server), destination: address(service) };
        assert_eq!(conntrack.holder(Protocol::Udp, free).await.unwrap(), None);
    }
}
