//! Does each fault really do what it says, and does off take all of it back? Measured by the kernel's and the
//! clients' own counts, without nslookout. Runs as root.

// Clippy's leave for tests does not reach the helpers beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lab::faults::{self, Active, Choice};
use lab::site::{Node, Pod};
use lab::traffic::{Background, Question, REFUSED_PORT, Tally};
use lab::{Lab, Options, Site, alertmanager, command};
use netns::Namespace;

const CLUSTER: &str = "kubernetes.default.svc.cluster.local";
const OUTER: &str = "example.com";
const WAIT: Duration = Duration::from_millis(500);
/// CoreDNS itself waits up to 2 s for a dead upstream before it answers SERVFAIL.
const FORWARDED: Duration = Duration::from_secs(6);

static NUMBER: AtomicU32 = AtomicU32::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A lab of its own for a test; the seed moves nodes, pods, servers and ports.
fn raised() -> (Lab, Choice, MutexGuard<'static, ()>) {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let seed =
        std::env::var("LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("LAB_SEED={seed}");
    let lab = Lab::up(&Options::new(format!("faults-{}-{number}", std::process::id()), seed)).unwrap();
    (lab, Choice { seed, ..Choice::default() }, turn)
}

fn on(site: &Site, name: &str, choice: &Choice) -> Active {
    let begin = Instant::now();
    let active = faults::by_name(name).unwrap().on(site, choice).unwrap();
    println!("{name} on after {:.2} s", begin.elapsed().as_secs_f64());
    active
}

fn off(site: &Site, name: &str) -> Active {
    let begin = Instant::now();
    let active = faults::by_name(name).unwrap().off(site).unwrap().unwrap();
    println!("{name} off after {:.2} s", begin.elapsed().as_secs_f64());
    assert!(faults::active(site).unwrap().is_empty());
    active
}

/// What became of a question: an rcode, or why there was no answer.
fn ask_of(netns: &Path, server: SocketAddr, name: &str, wait: Duration) -> Result<u8, ErrorKind> {
    let query = Question::for_address(name).unwrap().with_id(rand::random());
    Namespace::open(netns)
        .unwrap()
        .run_blocking(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(wait))?;
            socket.send(&query)?;
            let mut answer = [0; 1500];
            socket.recv(&mut answer)?;
            Ok(answer[3] & 0x0f)
        })
        .unwrap()
        .map_err(|error: std::io::Error| error.kind())
}

fn ask(site: &Site, pod: &Pod, name: &str) -> Result<u8, ErrorKind> {
    ask_of(&pod.netns, site.service.v4, name, if name == OUTER { FORWARDED } else { WAIT })
}

/// How many of so many questions, each from a port of its own, get any answer.
fn answered(site: &Site, pod: &Pod, questions: usize) -> usize {
    (0..questions).filter(|_| ask(site, pod, CLUSTER).is_ok()).count()
}

fn in_node(node: &Node, line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = command::inside(&node.netns, words.next().unwrap());
    command::run(command.args(words), None).unwrap()
}

/// The kernel's counter over all CPUs of this node's namespace.
fn counter(node: &Node, name: &str) -> u64 {
    let word = format!("{name}=");
    let table = in_node(node, "conntrack -S");
    table.split_whitespace().filter_map(|field| field.strip_prefix(&word)?.parse::<u64>().ok()).sum()
}

fn node<'a>(site: &'a Site, active: &Active) -> &'a Node {
    site.node(active.node.as_ref().unwrap()).unwrap()
}

fn pods_of<'a>(site: &'a Site, node: &Node) -> Vec<&'a Pod> {
    site.pods.iter().filter(|pod| pod.node == node.name).collect()
}

fn pod_elsewhere<'a>(site: &'a Site, node: &Node) -> &'a Pod {
    site.pods.iter().find(|pod| pod.node != node.name).unwrap()
}

/// Everyone gets an answer to everything, through the Service.
fn assert_healthy(site: &Site) {
    for pod in &site.pods {
        for name in [CLUSTER, OUTER] {
            for _ in 0..5 {
                assert_eq!(ask(site, pod, name), Ok(0), "{} asks for {name}", pod.name);
            }
        }
    }
}

#[test]
fn same_port_clash_loses_what_the_kernel_counts_as_insert_failed() {
    let (site, choice, _turn) = raised();
    clash(&site, &choice);
}

#[test]
fn same_port_clash_is_the_same_over_ipv6() {
    let (site, choice, _turn) = raised();
    clash(&site, &Choice { ipv6: true, ..choice });
}

fn clash(site: &Site, choice: &Choice) {
    let before: Vec<_> = site.nodes.iter().map(|node| counter(node, "insert_failed")).collect();
    let active = on(site, "same-port-clash", choice);
    thread::sleep(Duration::from_secs(6));
    let live = faults::by_name("same-port-clash").unwrap().active(site).unwrap().unwrap();
    assert!(live.truth.clients[0].sent > 0, "the counts can be read while the fault is on: {live:?}");
    let ended = off(site, "same-port-clash");
    let [first, second] = ended.truth.clients;
    let (sent, lost) = (first.sent + second.sent, first.lost + second.lost);
    let mut failed = 0;
    for (node, before) in site.nodes.iter().zip(before) {
        let rise = counter(node, "insert_failed") - before;
        if Some(&node.name) == active.node.as_ref() { failed = rise } else { assert_eq!(rise, 0) }
    }
    println!(
        "{lost} of {sent} queries lost ({:.1} %), insert_failed +{failed}",
        lost as f64 * 100.0 / sent as f64
    );
    assert!(failed >= 10, "it clashes often enough to be seen");
    assert!(lost >= failed, "each drop is a lost query");
    assert!(lost - failed <= sent / 200, "hardly anything else is lost");
    for seen in [first, second] {
        assert_eq!(seen.sent, seen.answered + seen.lost);
        assert_eq!(seen.unsent, 0);
    }
    for program in ["iptables", "ip6tables"] {
        let rules = in_node(node(site, &active), &format!("{program} -t nat -S POSTROUTING"));
        assert!(!rules.contains("MASQUERADE"), "{rules}");
    }
    assert_healthy(site);
}

#[test]
fn same_port_clash_clashes_again_when_it_is_switched_on_again() {
    let (site, choice, _turn) = raised();
    for round in 1..=2 {
        on(&site, "same-port-clash", &choice);
        thread::sleep(Duration::from_secs(4));
        let lost: u64 = off(&site, "same-port-clash").truth.clients.iter().map(|seen| seen.lost).sum();
        println!("time {round}: {lost} lost");
        assert!(lost > 0, "time {round}");
    }
}

#[test]
fn stale_mapping_starves_the_pinned_client_alone() {
    let (site, choice, _turn) = raised();
    stale(&site, &choice, "ipv4");
    stale(&site, &Choice { ipv6: true, ..choice }, "ipv6");
}

fn stale(site: &Site, choice: &Choice, family: &str) {
    let active = on(site, "stale-mapping", choice);
    let fault = faults::by_name("stale-mapping").unwrap();
    let node = node(site, &active);
    let (client, gone) = (&active.clients[0], active.server_addresses[0]);
    thread::sleep(Duration::from_millis(1_500));
    let before = fault.active(site).unwrap().unwrap().truth.clients[0];
    thread::sleep(Duration::from_secs(3));
    let after = fault.active(site).unwrap().unwrap().truth.clients[0];
    println!("pinned client: {before:?}, 3 s later {after:?}");
    assert_eq!(after.answered, before.answered, "not one answer any more");
    assert!(after.lost >= before.lost + 50, "at 20 queries a second for 3 s");
    let entry = in_node(
        node,
        &format!("conntrack -L -f {family} -p udp -s {} --sport {}", client.address, client.port.unwrap()),
    );
    println!("{entry}");
    assert!(entry.contains(&format!("src={} ", gone.ip())), "{entry}");
    let pod = site.pod(&client.pod).unwrap();
    assert_eq!(answered(site, pod, 30), 30, "a fresh port goes to a server that lives");
    let ended = off(site, "stale-mapping");
    println!("in all: {:?}", ended.truth.clients[0]);
    assert_healthy(site);
}

#[test]
fn conntrack_full_drops_every_new_packet_of_one_node_and_goes_without_a_trace() {
    let (site, choice, _turn) = raised();
    // Finished lookups leave entries that the kernel would evict for new ones; and one of someone else's stays.
    for pod in &site.pods {
        assert_eq!(answered(&site, pod, 50), 50);
    }
    let stranger = "conntrack -I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 1000 --dport 2000 --state ESTABLISHED \
                    -u ASSURED,SEEN_REPLY -t 600";
    site.nodes.iter().for_each(|node| drop(in_node(node, stranger)));
    let active = on(&site, "conntrack-full", &choice);
    let node = node(&site, &active);
    println!("{:?}", active.truth.occupancy);
    let before = ["drop", "insert_failed", "early_drop"].map(|name| counter(node, name));
    let pods = pods_of(&site, node);
    assert_eq!(pods.iter().map(|pod| answered(&site, pod, 15)).sum::<usize>(), 0);
    let after = ["drop", "insert_failed", "early_drop"].map(|name| counter(node, name));
    println!("30 queries: drop, insert_failed, early_drop {before:?} -> {after:?}");
    assert!(after[0] >= before[0] + 30);
    assert_eq!(after[1..], before[1..]);
    let other = pod_elsewhere(&site, node);
    // One server of the other node's is asked through its own node alone.
    let near = site.servers.iter().find(|server| server.node == other.node).unwrap();
    assert_eq!(ask_of(&other.netns, near.address(), CLUSTER, WAIT), Ok(0), "the other node is not full");
    off(&site, "conntrack-full");
    let left = in_node(node, "conntrack -C").trim().parse::<u32>().unwrap();
    println!("{left} entries left");
    assert!(left < 2_000);
    assert!(in_node(node, "conntrack -L -p tcp").contains("src=192.0.2.1 "), "the stranger's entry stayed");
    assert_healthy(&site);
}

#[test]
fn forward_drop_silences_one_node_by_a_rule() {
    let (site, choice, _turn) = raised();
    let active = on(&site, "forward-drop", &choice);
    let node = node(&site, &active);
    let before = counter(node, "drop");
    for pod in pods_of(&site, node) {
        for _ in 0..5 {
            assert_eq!(ask(&site, pod, CLUSTER), Err(ErrorKind::WouldBlock), "silence");
        }
    }
    assert_eq!(counter(node, "drop"), before, "conntrack has no part in it");
    let rules = in_node(node, "iptables -L FORWARD -nvx");
    let hits: u64 = rules
        .lines()
        .find(|line| line.contains("DROP") && line.contains("53"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap();
    println!("10 queries, the rule dropped {hits}");
    assert_eq!(hits, 10);
    off(&site, "forward-drop");
    assert!(!in_node(node, "iptables -S FORWARD").contains("multiport"));
    assert!(!in_node(node, "ip6tables -S FORWARD").contains("multiport"));
    assert_healthy(&site);
}

#[test]
fn pod_drop_refuses_the_send_in_one_pod_alone() {
    let (site, choice, _turn) = raised();
    let active = on(&site, "pod-drop", &choice);
    let name = active.pod.clone().unwrap();
    for pod in &site.pods {
        let expected = if pod.name == name { Err(ErrorKind::PermissionDenied) } else { Ok(0) };
        assert_eq!(ask(&site, pod, CLUSTER), expected, "{}", pod.name);
    }
    off(&site, "pod-drop");
    assert_healthy(&site);
}

#[test]
fn no_endpoints_rejects_everyone_while_the_servers_live() {
    let (site, choice, _turn) = raised();
    on(&site, "no-endpoints", &choice);
    for pod in &site.pods {
        assert_eq!(ask(&site, pod, CLUSTER), Err(ErrorKind::ConnectionRefused), "{}", pod.name);
    }
    for server in &site.servers {
        assert_eq!(ask_of(&site.pods[0].netns, server.address(), CLUSTER, WAIT), Ok(0), "{}", server.name);
    }
    off(&site, "no-endpoints");
    assert_healthy(&site);
}

#[test]
fn server_erratic_is_silent_and_says_it_is_well() {
    let (site, choice, _turn) = raised();
    let active = on(&site, "server-erratic", &choice);
    for server in &site.servers {
        let at_fault = active.servers.contains(&server.name);
        for name in [CLUSTER, OUTER] {
            let expected = if at_fault { Err(ErrorKind::WouldBlock) } else { Ok(0) };
            assert_eq!(
                ask_of(&site.pods[0].netns, server.address(), name, WAIT),
                expected,
                "{}",
                server.name
            );
        }
        let health = (server.v4, 8080).into();
        let page = alertmanager::http_get(&site.pods[0].netns, health, "/health").unwrap();
        assert_eq!(page.1.trim(), "OK", "{}", server.name);
    }
    off(&site, "server-erratic");
    assert_healthy(&site);
}

#[test]
fn stopped_servers_are_silent_until_they_go_on() {
    let (site, choice, _turn) = raised();
    for (fault, count) in [("server-stopped", 1), ("servers-stopped", site.servers.len())] {
        let active = on(&site, fault, &choice);
        assert_eq!(active.servers.len(), count);
        for server in &site.servers {
            let stopped = active.server_addresses.contains(&server.address());
            let expected = if stopped { Err(ErrorKind::WouldBlock) } else { Ok(0) };
            assert_eq!(
                ask_of(&site.pods[0].netns, server.address(), CLUSTER, WAIT),
                expected,
                "{}",
                server.name
            );
        }
        off(&site, fault);
        assert_healthy(&site);
    }
}

#[test]
fn upstream_faults_fail_forwarded_names_alone() {
    let (site, choice, _turn) = raised();
    for fault in ["upstream-dead", "upstream-servfail"] {
        on(&site, fault, &choice);
        for pod in &site.pods {
            assert_eq!(ask(&site, pod, CLUSTER), Ok(0));
            assert_eq!(ask(&site, pod, OUTER), Ok(2), "{fault}: SERVFAIL");
        }
        off(&site, fault);
        assert_healthy(&site);
    }
}

#[test]
fn what_one_process_switched_on_another_switches_off_though_its_helper_was_killed() {
    let (site, choice, _turn) = raised();
    for fault in ["same-port-clash", "stale-mapping", "conntrack-full"] {
        let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
        command::run(lab.args(["fault", "--name", &site.name, fault, "on"]), None).unwrap();
        let again = faults::by_name(fault).unwrap().on(&site, &choice).unwrap_err().to_string();
        assert!(again.contains("on already"), "{again}");
        let pid = std::fs::read_to_string(site.dir.join(format!("fault-{fault}.pid"))).unwrap();
        command::run(Command::new("kill").args(["-KILL", pid.split(' ').next().unwrap()]), None).unwrap();
        off(&site, fault);
        assert_healthy(&site);
    }
}

#[test]
fn two_faults_of_the_servers_are_not_mixed() {
    let (site, choice, _turn) = raised();
    on(&site, "no-endpoints", &choice);
    let refused = faults::by_name("server-stopped").unwrap().on(&site, &choice).unwrap_err().to_string();
    assert!(refused.contains("no-endpoints is on"), "{refused}");
    off(&site, "no-endpoints");
    assert_healthy(&site);
}

#[test]
fn background_traffic_loses_no_lookup_and_raises_the_counters_it_should() {
    let (site, choice, _turn) = raised();
    let before: Vec<_> = site.nodes.iter().map(|node| counter(node, "insert_failed")).collect();
    let begin = SystemTime::now();
    let background = Background::start(&site, choice.seed).unwrap();
    thread::sleep(Duration::from_secs(25));
    let calls = background.calls(begin, SystemTime::now()).unwrap();
    let loser = site.nodes.iter().find(|node| in_node(node, "iptables -S FORWARD").contains("9999"));
    let rules = in_node(loser.unwrap(), "iptables -L FORWARD -nvx");
    let counts = background.stop().unwrap();
    println!("{:?} in 25 s, {counts:?}", Tally::of(&calls));
    for call in calls.iter().filter(|call| !call.answered() || call.took > lab::traffic::LATE) {
        println!("{call:?}");
    }
    assert!(counts.lookups.made >= 2_200, "100 a second: {:?}", counts.lookups);
    assert_eq!((counts.lookups.failed, counts.lookups.late), (0, 0));
    assert!(counts.churned >= 1);
    let lost: u64 = counts.storm.iter().map(|seen| seen.lost).sum();
    for (node, before) in site.nodes.iter().zip(before) {
        let rise = counter(node, "insert_failed") - before;
        println!("{}: insert_failed +{rise}, storm lost {lost}", node.name);
        assert_eq!(rise, if node.name == counts.node { lost } else { 0 });
    }
    assert!(lost > 0, "the storm clashes");
    let hits: u64 = rules
        .lines()
        .find(|line| line.contains(&REFUSED_PORT.to_string()))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap();
    println!("{hits} dropped by the rule, {} sent into it", counts.sent_into_rule);
    assert!(hits > 300 && hits <= counts.sent_into_rule);
    for node in &site.nodes {
        assert!(!in_node(node, "iptables-save").contains("7777"));
        assert!(!in_node(node, "iptables-save").contains("9999"));
    }
    assert_healthy(&site);
}

#[test]
fn a_clash_beside_background_traffic_is_counted_apart_and_real_lookups_go_on() {
    let (site, choice, _turn) = raised();
    let background = Background::start(&site, choice.seed).unwrap();
    let node = site.node(&background.node).unwrap();
    let before = counter(node, "insert_failed");
    on(&site, "same-port-clash", &Choice { node: Some(node.name.clone()), ..choice });
    thread::sleep(Duration::from_secs(8));
    let dns: u64 = off(&site, "same-port-clash").truth.clients.iter().map(|seen| seen.lost).sum();
    let counts = background.stop().unwrap();
    let other: u64 = counts.storm.iter().map(|seen| seen.lost).sum();
    println!("lost: {dns} DNS, {other} not DNS, real lookups {:?}", counts.lookups);
    // The background began before the first reading.
    let rise = counter(node, "insert_failed") - before;
    println!("insert_failed +{rise}");
    assert!(dns > 0 && other > 0);
    assert!(rise <= dns + other && rise + 40 >= dns + other);
    assert!(counts.lookups.failed + counts.lookups.late <= counts.lookups.made / 100);
}
