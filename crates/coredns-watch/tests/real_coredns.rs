//! Is a real CoreDNS read as it should be, and does a server that hangs delay no other?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use coredns_watch::Config;
use evidence::{Coverage, CoverageState, Endpoint, Inventory, Observation, Report, Role, ServerSample};
use netns::Namespace;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// A CoreDNS that dies with its guard.
struct CoreDns(Child);

impl CoreDns {
    fn start(corefile: &str, folder: &std::path::Path) -> Self {
        let path = folder.join("Corefile");
        std::fs::write(&path, corefile).unwrap();
        let child = Command::new(binary()).arg("-conf").arg(path).stdout(Stdio::null()).spawn().unwrap();
        Self(child)
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for CoreDns {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn binary() -> PathBuf {
    let cache = std::env::var_os("NSLOOKOUT_CACHE").map_or_else(
        || {
            let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
                PathBuf::from,
            );
            base.join("nslookout")
        },
        PathBuf::from,
    );
    let binary = cache.join("coredns-1.12.4/coredns");
    assert!(binary.exists(), "{} is missing: run `make setup`", binary.display());
    binary
}

/// A port that is free on all of 127.0.0.0/8 at the moment.
fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

fn inventory(servers: &[SocketAddr]) -> Arc<Inventory> {
    let endpoints = servers
        .iter()
        .map(|address| Endpoint {
            name: address.to_string(),
            address: *address,
            node: None,
            serving: true,
            leaving: false,
        })
        .collect();
    Arc::new(Inventory { endpoints, ..Inventory::default() })
}

/// Sends one query for an A record over UDP; true if it is answered.
fn ask(server: SocketAddr, name: &str) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, server).unwrap();
    socket.recv(&mut [0; 512]).is_ok()
}

async fn next(reports: &mut mpsc::Receiver<Report>) -> Report {
    timeout(Duration::from_secs(10), reports.recv()).await.expect("a report in time").expect("the watch runs")
}

fn samples(report: &Report) -> Vec<&ServerSample> {
    report
        .observations
        .iter()
        .map(|observation| match observation {
            Observation::ServerSample(sample) => sample,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn state(report: &Report, server: SocketAddr) -> Option<&CoverageState> {
    report.coverage.iter().find(|c: &&Coverage| c.place == server.to_string()).map(|c| &c.state)
}

#[tokio::test]
async fn a_real_coredns_tells_its_requests_and_its_failing_upstream() {
    let folder = tempfile::tempdir().unwrap();
    let (dns, metrics, upstream) = (free_port(), free_port(), free_port());
    let server: SocketAddr = format!("127.0.0.1:{dns}").parse().unwrap();
    let _coredns = CoreDns::start(
        &format!(
            ".:{dns} {{\n bind 127.0.0.1\n prometheus 127.0.0.1:{metrics}\n\
             hosts {{\n 10.0.0.1 a.cluster.local\n fallthrough\n }}\n\
             forward . 127.0.0.1:{upstream}\n}}\n\
             .:{upstream} {{\n bind 127.0.0.1\n template ANY ANY {{\n rcode SERVFAIL\n }}\n}}\n"
        ),
        folder.path(),
    );
    let config = Config {
        interval: Duration::from_millis(200),
        metrics_port: metrics,
        timeout: Duration::from_secs(2),
    };
    let (_keep, servers) = watch::channel(inventory(&[server]));
    let (out, mut reports) = mpsc::channel(8);
    tokio::spawn(coredns_watch::run(config, Namespace::current().unwrap(), servers, out));

    // Until it listens, readings are refused: one lost each, and nothing that looks like a sample.
    let deadline = Instant::now() + Duration::from_secs(10);
    let started = loop {
        assert!(Instant::now() < deadline, "CoreDNS gave no metrics");
        let report = next(&mut reports).await;
        assert_eq!(report.role, Role::Servers);
        match samples(&report).first() {
            Some(sample) => break (*sample).clone(),
            None => assert_eq!(state(&report, server), Some(&CoverageState::Looked { lost: 1 })),
        }
    };
    assert!(started.started_unix_secs > 1_700_000_000);
    for _ in 0..3 {
        assert!(tokio::task::spawn_blocking(move || ask(server, "a.cluster.local")).await.unwrap());
        assert!(tokio::task::spawn_blocking(move || ask(server, "b.test")).await.unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let sample = loop {
        let report = timeout_at(deadline, reports.recv()).await.expect("six requests in time").unwrap();
        assert_eq!(state(&report, server), Some(&CoverageState::Looked { lost: 0 }));
        let sample = samples(&report)[0].clone();
        if sample.requests == started.requests + 6 && sample.responses.get("SERVFAIL") == Some(&3) {
            break sample;
        }
    };
    assert_eq!(sample.server, server);
    assert_eq!(sample.upstreams.len(), 1);
    assert_eq!(sample.upstreams[0].address, format!("127.0.0.1:{upstream}"));
    assert_eq!(sample.upstreams[0].responses, [("SERVFAIL".to_owned(), 3)].into());
}

#[tokio::test]
async fn a_stopped_server_is_told_as_lost_and_delays_no_other() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (dns, metrics) = (free_port(), free_port());
    let servers: Vec<SocketAddr> =
        (2..4).map(|host| format!("127.0.0.{host}:{dns}").parse().unwrap()).collect();
    let running: Vec<CoreDns> = servers
        .iter()
        .zip(&folders)
        .map(|(server, folder)| {
            let ip = server.ip();
            let corefile = format!(".:{dns} {{\n bind {ip}\n prometheus {ip}:{metrics}\n whoami\n}}\n");
            CoreDns::start(&corefile, folder.path())
        })
        .collect();
    let config = Config {
        interval: Duration::from_millis(200),
        metrics_port: metrics,
        timeout: Duration::from_secs(1),
    };
    let (_keep, inventory) = watch::channel(inventory(&servers));
    let (out, mut reports) = mpsc::channel(8);
    tokio::spawn(coredns_watch::run(config, Namespace::current().unwrap(), inventory, out));
    let both = async { while samples(&next(&mut reports).await).len() < 2 {} };
    timeout(Duration::from_secs(10), both).await.expect("both servers answer");

    running[1].signal("-STOP");
    let (mut healthy, mut lost) = (0, 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        let report = next(&mut reports).await;
        healthy += u32::from(samples(&report).iter().any(|s| s.server == servers[0]));
        lost += u32::from(state(&report, servers[1]) == Some(&CoverageState::Looked { lost: 1 }));
    }
    assert!(healthy >= 10, "{healthy} readings of the healthy server in 4 s");
    assert!((2..=5).contains(&lost), "{lost} readings lost in 4 s with a time-out of 1 s");

    running[1].signal("-CONT");
    let back = async { while !samples(&next(&mut reports).await).iter().any(|s| s.server == servers[1]) {} };
    timeout(Duration::from_secs(10), back).await.expect("the server is read again once it runs");
}

#[tokio::test]
async fn a_page_that_is_not_coredns_is_unsupported_and_says_why() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            drop(stream.read(&mut buffer).await);
            drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n<html>hello, {\"}</html>\n").await);
        }
    });
    let server: SocketAddr = "127.0.0.1:53".parse().unwrap();
    let config = Config { metrics_port, ..Config::default() };
    let (_keep, inventory) = watch::channel(inventory(&[server]));
    let (out, mut reports) = mpsc::channel(8);
    tokio::spawn(coredns_watch::run(config, Namespace::current().unwrap(), inventory, out));
    let report = next(&mut reports).await;
    assert_eq!(samples(&report), Vec::<&ServerSample>::new());
    assert!(
        matches!(state(&report, server), Some(CoverageState::Unsupported { why }) if why.contains("no page of CoreDNS")),
        "{report:?}"
    );
}

#[tokio::test]
async fn the_watch_ends_when_nobody_listens() {
    let (_keep, inventory) = watch::channel(inventory(&[]));
    let (out, mut reports) = mpsc::channel(8);
    let here = Namespace::current().unwrap();
    let task = tokio::spawn(coredns_watch::run(Config::default(), here, inventory, out));
    assert!(matches!(next(&mut reports).await.coverage[0].state, CoverageState::Unsupported { .. }));
    drop(reports);
    timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
}
