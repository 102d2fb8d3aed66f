//! Do more pods than the helper has room for cost a count? Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::until;
use conntrack_watch::drops::Drops;
use evidence::{BootTime, DropClass};
use netns::Namespace;
use nix::sched::{CloneFlags, unshare};

/// Room of the helper, and so many namespaces more come: all of them live to the end, so that no inode number comes twice.
const ROOM: u32 = 64;
const PODS: usize = 200;
/// Namespaces with drops that come between two readings.
const AT_ONCE: usize = 8;

/// A namespace in which nothing can be sent.
fn pod() -> Namespace {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for command in [
            "ip link set lo up",
            "nft add table inet t; add chain inet t o { type filter hook output priority 0; policy drop; }",
        ] {
            let (program, rest) = command.split_once(' ').unwrap();
            let arguments = if program == "nft" { vec![rest] } else { rest.split(' ').collect() };
            assert!(Command::new(program).args(arguments).status().unwrap().success(), "{command}");
        }
        Namespace::open(Path::new("/proc/thread-self/ns/net")).unwrap()
    };
    thread::spawn(make).join().unwrap()
}

fn drop_one(pod: &Namespace) {
    let send = || UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[0; 20], "127.0.0.1:53").is_err();
    assert!(pod.run_blocking(send).unwrap(), "the sender is told EPERM");
}

fn rules(drops: &Drops) -> BTreeMap<u32, u64> {
    let totals = drops.totals().into_iter().filter(|total| total.class == DropClass::Rule);
    totals.map(|total| (total.namespace, total.all)).collect()
}

#[tokio::test]
async fn each_of_many_pods_is_counted_and_one_that_comes_back_goes_on() {
    let mut drops = Drops::load_with_room(ROOM).unwrap();
    // This one takes the part of the node's own namespace.
    let node = pod();
    drop_one(&node);
    let (mut pods, mut now) = (Vec::new(), BootTime::now());
    while pods.len() < PODS {
        let new: Vec<_> = (0..AT_ONCE).map(|_| pod()).collect();
        new.iter().for_each(drop_one);
        drop_one(&node);
        until("the new ones' drops", async || {
            let told = rules(&drops);
            new.iter().all(|pod| told.get(&pod.inode()) == Some(&1)).then_some(())
        })
        .await;
        // To the helper, time is what it is told.
        now = now.plus(Duration::from_secs(15));
        drops.tidy(&[node.inode()], now);
        pods.extend(new);
    }
    let told = rules(&drops);
    assert!(told.len() < usize::try_from(ROOM).unwrap(), "{}", told.len());
    assert_eq!(told.get(&node.inode()), Some(&u64::try_from(1 + PODS / AT_ONCE).unwrap()));
    assert!(!told.contains_key(&pods[0].inode()), "the oldest made room");
    drop_one(&pods[0]);
    until("it goes on", async || (rules(&drops).get(&pods[0].inode()) == Some(&2)).then_some(())).await;
    // An hour later none is left but the node's.
    for seconds in [0, 3600] {
        drops.tidy(&[node.inode()], now.plus(Duration::from_secs(seconds)));
    }
    let told = rules(&drops);
    assert!(pods.iter().all(|pod| !told.contains_key(&pod.inode())), "{told:?}");
    assert!(told.contains_key(&node.inode()));
    assert_eq!(drops.trouble().uncounted, 0, "{:?}", drops.trouble());
}
