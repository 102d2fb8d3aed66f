//! Does the miniature behave like a cluster's network, and is nothing of it left afterwards? Runs as root.

// Clippy's leave for tests does not reach the helpers beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::dns::{self, Kind};
use lab::{Endpoints, Lab, Options, Site, Uncleaned, alertmanager, command, journal, programs};
use netns::Namespace;

const CLUSTER: &str = "kubernetes.default.svc.cluster.local";
const WAIT: Duration = Duration::from_secs(2);

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn name() -> String {
    format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn raised(target_port: u16) -> Lab {
    let options = Options { target_port: Some(target_port), ..Options::new(name(), u64::from(target_port)) };
    let begin = Instant::now();
    let lab = Lab::up(&options).unwrap();
    println!("lab up took {:.2} s", begin.elapsed().as_secs_f64());
    lab
}

/// Name, then what getaddrinfo said.
fn look_up(site: &Site, pod: &str, libc: &Path, resolv_conf: &Path, name: &str) -> String {
    let netns = &site.pod(pod).unwrap().netns;
    let output = site
        .command_with(netns, resolv_conf, libc.to_str().unwrap())
        .args([name, "--count", "1"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    line.trim().splitn(3, ' ').nth(2).unwrap_or_default().to_owned()
}

/// What CoreDNS itself counted.
fn requests(site: &Site) -> BTreeMap<String, f64> {
    let count = |server: &lab::site::Server| {
        let page = alertmanager::http_get(&server.netns, (server.v4, 9153).into(), "/metrics").unwrap().1;
        page.lines()
            .filter(|line| line.starts_with("coredns_dns_requests_total{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    site.servers.iter().map(|server| (server.name.clone(), count(server))).collect()
}

fn conntrack(site: &Site, node: &str, arguments: &[&str]) -> String {
    let netns = &site.node(node).unwrap().netns;
    command::run(command::inside(netns, "conntrack").args(["-L"]).args(arguments), None).unwrap()
}

/// Namespaces, folders and processes that carry the lab's name.
fn left(name: &str) -> Vec<String> {
    let mut left = Vec::new();
    let prefix = format!("nslab-{name}-");
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let file = entry.file_name().into_string().unwrap();
        if file.starts_with(&prefix) {
            left.push(file);
        }
    }
    if journal::folder(name).exists() {
        left.push("its folder".to_owned());
    }
    // Every process of the lab has the folder or a namespace in its command line.
    let (folder, prefix) = (format!("/{name}/"), prefix.as_str());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&folder) || words.contains(prefix) {
            left.push(words);
        }
    }
    left
}

#[test]
fn real_resolvers_get_answers_from_every_pod_by_both_families() {
    for port in [53, 5353] {
        let lab = raised(port);
        let libcs = [programs::getaddrinfo_glibc().unwrap(), programs::getaddrinfo_musl().unwrap()];
        for libc in &libcs {
            for pod in ["client-a1", "client-a2", "client-b1", "client-b2"] {
                for file in [lab.resolv_conf(), lab.resolv_conf_v6()] {
                    for name in [CLUSTER, "kubernetes.default", "example.com"] {
                        assert_eq!(look_up(&lab, pod, libc, &file, name), "OK 1 1", "{pod} {name} {file:?}");
                    }
                    let unknown = look_up(&lab, pod, libc, &file, "no-such.example.net");
                    assert_eq!(unknown, "EAI_NONAME 0 0", "{pod} {file:?}");
                }
            }
        }
        for service in [lab.service.v4, lab.service.v6] {
            for pod in &lab.pods {
                let answer = dns::ask_tcp(&pod.netns, service, CLUSTER, Kind::Aaaa, WAIT).unwrap();
                assert_eq!((answer.rcode, answer.records), (0, 1), "{} over TCP at {service}", pod.name);
            }
            let answer = dns::ask_udp(&lab.monitor, service, CLUSTER, Kind::A, WAIT).unwrap();
            assert_eq!(answer.records, 1, "the monitor reaches the ClusterIP {service}");
        }
    }
}

#[test]
fn lookups_of_one_pod_reach_the_servers_of_both_nodes() {
    let lab = raised(53);
    let before = requests(&lab);
    let pod = &lab.pods[0];
    for _ in 0..120 {
        dns::ask_udp(&pod.netns, lab.service.v4, CLUSTER, Kind::A, WAIT).unwrap();
    }
    let after = requests(&lab);
    for (server, count) in &after {
        // A third each: fewer than 10 of 120 is a chance of one in ten million.
        assert!(count - before[server] >= 10.0, "{server}: {before:?} {after:?}");
    }
}

#[test]
fn endpoints_that_change_move_the_rules_and_take_their_entries_along() {
    let lab = raised(5353);
    let [first, second] = [&lab.servers[0], &lab.servers[1]];
    let pod = &lab.pods[0];
    let node = pod.node.as_str();
    let service = lab.service.v4;
    let socket = Namespace::open(&pod.netns)
        .unwrap()
        .run_blocking(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 40_000)).unwrap();
            socket.connect(service).unwrap();
            socket.set_read_timeout(Some(WAIT)).unwrap();
            socket
        })
        .unwrap();
    // A question for the root's name servers: any answer will do.
    let ask = || {
        socket.send(&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1]).unwrap();
        socket.recv(&mut [0; 512]).unwrap()
    };
    let leads_to = |server: &lab::site::Server| {
        let table = conntrack(&lab, node, &["-p", "udp", "--orig-port-src", "40000"]);
        table.contains(&format!("src={} ", server.v4))
    };

    let only = |server: &lab::site::Server, uncleaned| {
        let others = lab.servers.iter().filter(|other| other.name != server.name);
        let gone = others.map(|other| other.name.clone()).collect();
        lab.change_endpoints(|all| *all = Endpoints { gone, uncleaned, ..Endpoints::default() }).unwrap();
    };
    only(first, None);
    ask();
    assert!(leads_to(first));

    only(second, Some(Uncleaned { node: node.to_owned(), server: first.name.clone() }));
    ask();
    assert!(leads_to(first), "an entry that is kept goes on leading to the old server");

    only(second, None);
    assert!(!leads_to(first), "a stale entry is deleted");
    ask();
    assert!(leads_to(second));

    let inventory = fs::read_to_string(&lab.inventory).unwrap();
    assert_eq!(inventory.matches("\"targetRef\"").count(), 2, "one endpoint in each family's slice");
}

#[test]
fn without_endpoints_a_lookup_is_refused_at_once() {
    let lab = raised(53);
    let all: BTreeSet<String> = lab.servers.iter().map(|server| server.name.clone()).collect();
    lab.change_endpoints(|endpoints| endpoints.unready = all).unwrap();
    for service in [lab.service.v4, lab.service.v6] {
        let netns = Namespace::open(&lab.pods[3].netns).unwrap();
        let refused = netns
            .run_blocking(move || {
                let any: SocketAddr =
                    if service.is_ipv4() { "0.0.0.0:0".parse() } else { "[::]:0".parse() }.unwrap();
                let socket = UdpSocket::bind(any).unwrap();
                socket.connect(service).unwrap();
                socket.set_read_timeout(Some(WAIT)).unwrap();
                socket.send(&[0; 17]).unwrap();
                socket.recv(&mut [0; 512]).unwrap_err().kind()
            })
            .unwrap();
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{service}");
    }
    lab.change_endpoints(|endpoints| endpoints.unready.clear()).unwrap();
    dns::ask_udp(&lab.pods[3].netns, lab.service.v4, CLUSTER, Kind::A, WAIT).unwrap();
}

#[test]
fn servers_stop_go_on_die_and_change_their_configuration() {
    let lab = raised(5353);
    let server = &lab.servers[0];
    let ask = |name| dns::ask_udp(&server.netns, server.address(), name, Kind::A, Duration::from_millis(300));

    server.daemon.stop().unwrap();
    assert!(ask(CLUSTER).is_err());
    server.daemon.cont().unwrap();
    server.wait_till_answers(WAIT).unwrap();

    let file = server.pristine.lines().find(|line| line.contains("file ")).unwrap();
    server.configure(&server.pristine.replace(file, "    erratic {\n        drop 1\n    }")).unwrap();
    assert!(ask(CLUSTER).is_err());
    assert_eq!(alertmanager::http_get(&server.netns, (server.v4, 8080).into(), "/health").unwrap().0, 200);
    assert!(server.configure("not a corefile {").is_err());
    server.restore().unwrap();
    assert_eq!(ask(CLUSTER).unwrap().records, 1);

    server.daemon.kill().unwrap();
    assert!(server.id().is_none());
    server.daemon.start().unwrap();
    server.wait_till_answers(Duration::from_secs(10)).unwrap();
}

#[test]
fn the_real_alertmanager_takes_an_alert_and_tells_it() {
    let lab = raised(53);
    assert!(lab.alertmanager.alerts().unwrap().is_empty());
    let body = r#"[{"labels":{"alertname":"Try","cause":"none"},"annotations":{"summary":"a try"}}]"#;
    let address = lab.alertmanager.address;
    Namespace::open(&lab.monitor)
        .unwrap()
        .run_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let head = format!("POST /api/v2/alerts HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains(" 200 "), "{answer}");
        })
        .unwrap();
    let alerts = lab.alertmanager.alerts().unwrap();
    assert_eq!(alerts.len(), 1);
    assert_eq!(alerts[0].labels["alertname"], "Try");
    assert_eq!(alerts[0].annotations["summary"], "a try");
}

#[test]
fn two_labs_side_by_side_do_not_meet() {
    let (one, two) = (raised(53), raised(5353));
    one.change_endpoints(|all| all.gone = one.servers.iter().map(|server| server.name.clone()).collect())
        .unwrap();
    one.servers.iter().for_each(|server| server.daemon.kill().unwrap());
    for pod in &two.pods {
        assert_eq!(dns::ask_udp(&pod.netns, two.service.v4, CLUSTER, Kind::A, WAIT).unwrap().records, 1);
    }
    one.down().unwrap();
    for pod in &two.pods {
        assert_eq!(dns::ask_udp(&pod.netns, two.service.v6, CLUSTER, Kind::A, WAIT).unwrap().records, 1);
    }
}

#[test]
fn a_name_that_is_taken_is_refused_and_the_first_lab_stays() {
    let lab = raised(53);
    let error = Lab::up(&Options::new(lab.name.clone(), 1)).unwrap_err().to_string();
    assert!(error.contains("is up already"), "{error}");
    assert!(dns::ask_udp(&lab.pods[0].netns, lab.service.v4, CLUSTER, Kind::A, WAIT).is_ok());
}

#[test]
fn nothing_is_left_after_down_after_a_drop_and_after_a_failed_test() {
    let lab = raised(53);
    let name = lab.name.clone();
    // A stopped server and a client that nobody waits for: both go too.
    lab.servers[0].daemon.stop().unwrap();
    let mut client = lab.command_in(&lab.pods[0].netns, true, "sleep").arg("1000").spawn().unwrap();
    lab.down().unwrap();
    assert!(client.try_wait().unwrap().is_some());
    assert_eq!(left(&name), Vec::<String>::new());

    let lab = raised(53);
    let name = lab.name.clone();
    drop(lab);
    assert_eq!(left(&name), Vec::<String>::new());

    let failed = thread::spawn(|| {
        let lab = raised(53);
        std::panic::resume_unwind(Box::new(lab.name.clone()));
    });
    let name = failed.join().unwrap_err().downcast::<String>().unwrap();
    assert_eq!(left(&name), Vec::<String>::new());
}

#[test]
fn what_a_killed_lab_left_goes_with_the_next_start() {
    for (signal, after) in
        [("KILL", 20), ("KILL", 60), ("KILL", 110), ("KILL", 160), ("TERM", 40), ("INT", 120)]
    {
        let name = name();
        let mut up = Command::new(program())
            .args(["up", "--name", &name, "--seed", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(after));
        let pid = up.id().to_string();
        command::run(Command::new("kill").args(["-s", signal, &pid]), None).unwrap();
        let status = up.wait().unwrap();
        if status.success() {
            // It was done before the signal came.
            println!("up within {after} ms");
            command::run(Command::new(program()).args(["down", "--name", &name]), None).unwrap();
        } else if signal == "KILL" {
            let next = Command::new(program()).args(["status", "--name", &name]).output().unwrap();
            assert!(String::from_utf8_lossy(&next.stderr).contains("there is no lab named"));
        }
        assert_eq!(left(&name), Vec::<String>::new(), "SIG{signal} after {after} ms");
    }
}

#[test]
fn a_kept_lab_stays_and_one_whose_taking_down_was_cut_off_goes() {
    let name = name();
    let run = |words: &[&str]| Command::new(program()).args(words).args(["--name", &name]).output().unwrap();
    assert!(run(&["up", "--seed", "2"]).status.success());
    assert!(run(&["status"]).status.success(), "a start does not take a kept lab down");
    // As `lab down` leaves it when it is killed after its first step.
    journal::Journal::open(&name).unwrap().add(&journal::Entry::Down).unwrap();
    assert!(!run(&["status"]).status.success());
    assert_eq!(left(&name), Vec::<String>::new());
}

#[test]
fn a_lab_is_raised_used_and_taken_down_from_the_command_line() {
    let name = name();
    let lab = |words: &[&str]| {
        let mut command = Command::new(program());
        command.arg(words[0]).args(["--name", &name]).args(&words[1..]);
        command::run(&mut command, None).unwrap()
    };
    let up = lab(&["up", "--seed", "5"]);
    assert!(up.contains("seed 5"), "{up}");
    let status = lab(&["status"]);
    assert_eq!(status.matches("running (process").count(), 5, "{status}");
    let glibc = programs::getaddrinfo_glibc().unwrap();
    let found = lab(&["exec", "client-b2", "--", glibc.to_str().unwrap(), "example.com"]);
    assert!(found.contains("OK 1 1"), "{found}");
    let down = lab(&["down"]);
    assert!(down.contains("nothing of it is left"), "{down}");
    assert_eq!(left(&name), Vec::<String>::new());
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_lab"))
}
