//! Is each kind of trouble told as it should be, on a real network, and when?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod scripted;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use evidence::{Attempt, AttemptResult, LookupId, NameKind, Outcome, QueryType, ServerRole};
use netns::Namespace;
use nix::libc::{ECONNREFUSED, ENETUNREACH, EPERM};
use prober::{Call, Finding, Profile, lookup};
use scripted::{Reply, Script, Server, Transports, enter_own_network, run};

/// One lookup: what it found, what it told and after how long, and how long it took.
struct Told {
    finding: Finding,
    attempts: Vec<(Duration, Attempt)>,
    took: Duration,
}

/// Runs in a network of its own, on a thread of its own.
fn in_own_network<T: Send>(job: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        enter_own_network(&[]);
        job()
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

fn ask(profile: &Profile, servers: &[&str]) -> Told {
    ask_beside(profile, servers, async {})
}

/// A lookup on a runtime that something else keeps busy.
fn ask_beside(profile: &Profile, servers: &[&str], busy: impl Future<Output = ()>) -> Told {
    let servers: Vec<SocketAddr> = servers.iter().map(|s| s.parse().unwrap()).collect();
    let call = Call {
        id: LookupId(7),
        vantage: "test",
        servers: &servers,
        role: ServerRole::Direct,
        name: "row.example",
        name_kind: NameKind::Forwarded,
        answer_within: Duration::from_secs(1),
    };
    let start = Instant::now();
    let mut attempts = Vec::new();
    let here = Namespace::current().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let finding = runtime.block_on(async {
        let tell = |attempt| attempts.push((start.elapsed(), attempt));
        tokio::join!(lookup(profile, &here, &call, tell), busy).0.unwrap()
    });
    Told { finding, attempts, took: start.elapsed() }
}

fn start(addresses: &[&str], transports: Transports, script: Script) -> Server {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    Server::start(&addresses, transports, script)
}

fn is_immediate(told: &Told) -> bool {
    told.took < Duration::from_millis(200)
}

#[test]
fn silence_is_told_after_a_second_once_for_each_packet_while_the_lookup_goes_on() {
    let told = in_own_network(|| {
        let _server = start(&["127.0.0.1:53"], Transports::UdpAndTcp, |_, _| Reply::Lost);
        ask(&Profile::MUSL, &["127.0.0.1:53"])
    });
    assert_eq!(told.finding.lookup.outcome, Outcome::TryAgain);
    let when: Vec<_> = told.attempts.iter().map(|(at, a)| (at.as_millis() / 250, a.qtype)).collect();
    let (a, aaaa) = (QueryType::A, QueryType::Aaaa);
    assert_eq!(when, [(4, a), (4, aaaa), (14, a), (14, aaaa)]);
    for (_, attempt) in &told.attempts {
        assert!(matches!(
            attempt.result,
            AttemptResult::Unanswered { wait_ns: 1_000_000_000..1_200_000_000 }
        ));
        assert_eq!((attempt.lookup, attempt.name.as_str()), (LookupId(7), "row.example."));
        assert_eq!(attempt.source.ip().to_string(), "127.0.0.1");
        assert_eq!(attempt.source.port(), told.attempts[0].1.source.port());
    }
}

#[test]
fn an_unreachable_port_ends_glibc_at_once_and_leaves_musl_waiting() {
    let [glibc, musl] =
        [Profile::GLIBC, Profile::MUSL].map(|p| in_own_network(|| ask(&p, &["127.0.0.1:53"])));
    let refused = |(_, a): &(_, Attempt)| a.result == AttemptResult::Unreachable { errno: ECONNREFUSED };
    assert!(is_immediate(&glibc), "{:?}", glibc.took);
    assert_eq!(glibc.finding.lookup.outcome, Outcome::TryAgain);
    assert!(!glibc.attempts.is_empty() && glibc.attempts.iter().all(refused), "{:?}", glibc.attempts);
    assert!(musl.took >= Duration::from_secs(5));
    assert_eq!((musl.finding.lookup.outcome, musl.finding.lookup.packets), (Outcome::TryAgain, 4));
    assert_eq!(musl.attempts.len(), 4);
    assert!(musl.attempts.iter().all(refused) && musl.attempts[0].0 < Duration::from_millis(200));
}

#[test]
fn a_rule_in_output_is_a_refusal_to_send() {
    for profile in [Profile::GLIBC, Profile::MUSL] {
        let told = in_own_network(|| {
            run("iptables", &["-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "DROP"]);
            ask(&profile, &["127.0.0.1:53"])
        });
        assert_eq!(told.finding.lookup.outcome, Outcome::TryAgain);
        assert_eq!(told.finding.lookup.packets, 0);
        assert_eq!(is_immediate(&told), !profile.is_musl());
        let refused = |(_, a): &(_, Attempt)| a.result == AttemptResult::SendRefused { errno: EPERM };
        assert!(!told.attempts.is_empty() && told.attempts.iter().all(refused), "{:?}", told.attempts);
    }
}

#[test]
fn no_route_is_unreachable() {
    for profile in [Profile::GLIBC, Profile::MUSL] {
        let told = in_own_network(|| ask(&profile, &["192.0.2.1:53"]));
        assert_eq!(told.finding.lookup.outcome, Outcome::TryAgain);
        let unreachable =
            |(_, a): &(_, Attempt)| a.result == AttemptResult::Unreachable { errno: ENETUNREACH };
        assert!(!told.attempts.is_empty() && told.attempts.iter().all(unreachable), "{:?}", told.attempts);
    }
}

#[test]
fn waiting_is_measured_to_the_kernels_receive_time_not_to_ours() {
    let told = in_own_network(|| {
        let _server = start(&["127.0.0.1:53"], Transports::UdpAndTcp, |_, _| Reply::Data);
        let busy = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            thread::sleep(Duration::from_millis(300));
        };
        // The first poll of the lookup sends; the answer then waits in the socket for 300 ms.
        ask_beside(&Profile::GLIBC, &["127.0.0.1:53"], async {
            thread::sleep(Duration::from_millis(300));
            busy.await;
        })
    });
    assert_eq!(told.attempts.len(), 2);
    for (at, attempt) in &told.attempts {
        assert!(*at >= Duration::from_millis(300));
        assert!(
            matches!(attempt.result, AttemptResult::Answered { rcode: 0, wait_ns: 1..100_000_000 }),
            "{attempt:?}"
        );
    }
}

#[test]
fn spoofed_and_damaged_answers_are_counted() {
    let script: Script = |_, nth| if nth == 0 { Reply::SpoofedThenData } else { Reply::Data };
    let spoofed = in_own_network(|| {
        let _server = start(&["127.0.0.1:53"], Transports::UdpAndTcp, script);
        ask(&Profile::MUSL, &["127.0.0.1:53"])
    });
    assert_eq!(spoofed.finding.lookup.outcome, Outcome::Addresses);
    assert!(spoofed.finding.ignored.foreign >= 1);
    let cut = in_own_network(|| {
        let _server = start(&["127.0.0.1:53"], Transports::UdpAndTcp, |_, _| Reply::Cut);
        ask(&Profile::MUSL, &["127.0.0.1:53"])
    });
    assert_eq!(cut.finding.ignored.malformed, 2);
}

#[test]
fn truncated_answers_with_tcp_closed_are_told_as_unreachable() {
    let told = in_own_network(|| {
        let _server = start(&["127.0.0.1:53"], Transports::UdpOnly, |_, _| Reply::Truncated);
        ask(&Profile::GLIBC, &["127.0.0.1:53"])
    });
    assert_eq!(told.finding.lookup.outcome, Outcome::TryAgain);
    let refused = AttemptResult::Unreachable { errno: ECONNREFUSED };
    assert!(told.attempts.iter().any(|(_, a)| a.result == refused), "{:?}", told.attempts);
}

#[test]
fn musl_1_2_5_asks_for_each_truncated_answer_on_a_connection_of_its_own() {
    let (told, seen) = in_own_network(|| {
        let server = start(&["127.0.0.1:53"], Transports::UdpAndTcp, |_, _| Reply::Truncated);
        (ask(&Profile::MUSL_1_2_5, &["127.0.0.1:53"]), server.seen())
    });
    assert_eq!(told.finding.lookup.outcome, Outcome::Addresses);
    assert_eq!(told.finding.addresses.len(), 2);
    let ports: Vec<_> = seen.iter().filter(|s| s.tcp).map(|s| s.port).collect();
    assert!(ports.len() == 2 && ports[0] != ports[1], "{ports:?}");
}

#[test]
fn ipv6_servers_are_asked_alike_and_musl_mixes_families_on_one_socket() {
    for (profile, servers) in [
        (Profile::GLIBC, &["[::1]:53"][..]),
        (Profile::MUSL, &["[::1]:53"]),
        (Profile::MUSL, &["127.0.0.1:53", "[::1]:53"]),
    ] {
        let (told, seen) = in_own_network(|| {
            let server = start(servers, Transports::UdpAndTcp, |_, _| Reply::Data);
            (ask(&profile, servers), server.seen())
        });
        assert_eq!(told.finding.lookup.outcome, Outcome::Addresses);
        assert_eq!(told.finding.ignored.malformed, 0);
        assert!(seen.len() <= 2 * servers.len() && seen.iter().all(|s| s.port == seen[0].port), "{seen:?}");
    }
}
