//! Does a vantage keep its timetable and tell at once, when nothing answers?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use evidence::{
    AttemptResult, BootTime, Coverage, CoverageState, DnsService, Endpoint, Inventory, Observation, Report,
    Role, ServerRole,
};
use netns::Namespace;
use prober::{Config, Duty, Vantage, run};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// A port of loopback where packets arrive and nobody answers. Needs no privilege.
struct Silence(UdpSocket);

impl Silence {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn packets(&self) -> usize {
        let mut buffer = [0; 512];
        std::iter::from_fn(|| self.0.recv(&mut buffer).ok()).count()
    }
}

fn inventory(service: &[SocketAddr], servers: &[SocketAddr]) -> Inventory {
    let endpoint = |&address: &SocketAddr| Endpoint {
        name: address.to_string(),
        address,
        node: None,
        serving: true,
        leaving: false,
    };
    Inventory {
        service: DnsService { name: "kube-dns".into(), addresses: service.to_vec(), is_virtual: true },
        endpoints: servers.iter().map(endpoint).collect(),
        ..Inventory::default()
    }
}

/// Starts the prober with one vantage and a channel of this size.
fn begin(
    config: Config,
    inventory: Inventory,
    room: usize,
) -> (mpsc::Receiver<Report>, watch::Sender<Arc<Inventory>>, Vantage) {
    let (out, reports) = mpsc::channel(room);
    let (tell, inventory) = watch::channel(Arc::new(inventory));
    let vantage = Vantage::new("pod-a", "node-a", Namespace::current().unwrap());
    let (_, duty) = watch::channel(Duty::of_all(&config));
    tokio::spawn(run(config, vec![vantage.clone()], inventory, duty, out));
    (reports, tell, vantage)
}

fn state(report: &Report) -> &CoverageState {
    let [Coverage { place, state, .. }] = report.coverage.as_slice() else { panic!("{report:?}") };
    assert_eq!((place.as_str(), report.node.as_str(), report.role), ("pod-a", "node-a", Role::Prober));
    state
}

#[tokio::test]
async fn a_silent_server_is_told_of_within_a_second_of_the_probe_and_asked_more_often_then() {
    let (service, server) = (Silence::new(), Silence::new());
    let config = Config { interval: Duration::from_millis(400), ..Config::default() };
    let inventory = inventory(&[service.address()], &[server.address()]);
    let (mut reports, _tell, vantage) = begin(config, inventory, 100);
    let first = timeout(Duration::from_millis(1_700), reports.recv()).await.unwrap().unwrap();
    let arrived = BootTime::now();
    let Some(Observation::Attempt(attempt)) = first.observations.first() else { panic!("{first:?}") };
    let wait = arrived.since(attempt.sent);
    assert!((1_000..1_150).contains(&wait.as_millis()), "{wait:?}");
    assert!(matches!(attempt.result, AttemptResult::Unanswered { .. }));
    assert_eq!(*state(&first), CoverageState::Looked { lost: 0 });

    let before = vantage.counts.started.load(std::sync::atomic::Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    let started = vantage.counts.started.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!((9..=12).contains(&started), "{started} lookups in two seconds of suspicion");
    let mut roles = Vec::new();
    while let Ok(report) = reports.try_recv() {
        for observation in report.observations {
            if let Observation::Attempt(attempt) = observation {
                roles.push(attempt.role);
            }
        }
    }
    assert!(roles.contains(&ServerRole::Service) && roles.contains(&ServerRole::Direct));
    assert!(service.packets() > 0 && server.packets() > 0);
}

#[tokio::test]
async fn lookups_start_on_time_though_all_hang_up_to_the_ceiling() {
    let service = Silence::new();
    let config = Config {
        interval: Duration::from_millis(50),
        suspicion_interval: Duration::from_millis(50),
        in_flight: 20,
        ..Config::default()
    };
    let (_reports, _tell, vantage) = begin(config, inventory(&[service.address()], &[]), 100);
    sleep(Duration::from_millis(800)).await;
    let started = service.packets() / 2;
    assert!((13..=17).contains(&started), "{started} lookups in 800 ms");
    sleep(Duration::from_millis(700)).await;
    let counts = &vantage.counts;
    assert_eq!(counts.started.load(std::sync::atomic::Ordering::Relaxed), 20);
    assert!(counts.skipped.load(std::sync::atomic::Ordering::Relaxed) >= 5);
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_nothing_up_and_the_loss_is_told() {
    let service = Silence::new();
    let config = Config { interval: Duration::from_millis(100), ..Config::default() };
    let (mut reports, _tell, _vantage) = begin(config, inventory(&[service.address()], &[]), 1);
    sleep(Duration::from_millis(2_500)).await;
    assert!(service.packets() >= 20);
    reports.recv().await.unwrap();
    let late = reports.recv().await.unwrap();
    assert!(matches!(state(&late), CoverageState::Looked { lost: 1.. }), "{late:?}");
}

#[tokio::test]
async fn without_a_service_address_it_says_that_there_is_nothing_to_ask_and_begins_when_there_is() {
    let (mut reports, tell, _vantage) =
        begin(Config { interval: Duration::from_millis(100), ..Config::default() }, Inventory::default(), 10);
    let idle = timeout(Duration::from_millis(5_500), reports.recv()).await.unwrap().unwrap();
    assert!(matches!(state(&idle), CoverageState::Unsupported { .. }));
    let service = Silence::new();
    tell.send(Arc::new(inventory(&[service.address()], &[]))).unwrap();
    sleep(Duration::from_millis(300)).await;
    assert!(service.packets() > 0);
}

#[tokio::test]
async fn a_server_that_was_told_to_leave_is_asked_no_more() {
    let (service, stays, leaves) = (Silence::new(), Silence::new(), Silence::new());
    let config = Config { interval: Duration::from_millis(50), ..Config::default() };
    let mut inventory = inventory(&[service.address()], &[stays.address(), leaves.address()]);
    let (_reports, tell, _vantage) = begin(config, inventory.clone(), 100);
    sleep(Duration::from_millis(300)).await;
    assert!(leaves.packets() > 0);
    inventory.endpoints[1].leaving = true;
    tell.send(Arc::new(inventory)).unwrap();
    // What is under way is sent again after 2.5 s at the earliest.
    sleep(Duration::from_millis(50)).await;
    let _before = [stays.packets(), leaves.packets()];
    sleep(Duration::from_millis(500)).await;
    assert!(stays.packets() > 0);
    assert_eq!(leaves.packets(), 0);
}
