//! The rounds: who is asked when, and what is told of those who don't answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use evidence::{
    BootTime, Coverage, CoverageState, Inventory, Observation, Observer, Report, Role, ServerSample,
};
use hyper::Method;
use netns::Namespace;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::account;
use crate::config::Config;
use crate::http::{Answer, Ask, Connection, Error, Limits};

/// Reads every server of the inventory at each interval until `out` is closed. `namespace` is where the
/// connections are made; reports carry this machine's name.
///
/// One report tells of all servers that answered within a quarter of a second; a slower one, or one that ran
/// into the time-out, is told in a report of its own, and asked again at the next interval.
pub async fn run(
    config: Config,
    namespace: Namespace,
    inventory: watch::Receiver<Arc<Inventory>>,
    out: mpsc::Sender<Report>,
) {
    // A zero interval would make tokio panic.
    let mut ticks = interval(config.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = Round::new(config, this_machine(), namespace);
    loop {
        let report = tokio::select! {
            () = out.closed() => return,
            _ = ticks.tick() => round.start(&inventory.borrow()),
            Some(done) = round.scrapes.join_next_with_id() => round.finish(done),
            () = sleep_until(round.tell_at), if !round.coverage.is_empty() => round.tell(),
        };
        if let Some(report) = report
            && out.send(report).await.is_err()
        {
            return;
        }
    }
}

/// What is known of the round that runs.
struct Round {
    config: Config,
    node: String,
    namespace: Namespace,
    /// Connections to servers that are not being asked at the moment.
    idle: BTreeMap<SocketAddr, Connection>,
    /// Servers that are being asked.
    asked: BTreeMap<Id, SocketAddr>,
    scrapes: JoinSet<Scrape>,
    observations: Vec<Observation>,
    coverage: Vec<Coverage>,
    from: BootTime,
    tell_at: Instant,
}

/// The end of one reading.
struct Scrape {
    connection: Connection,
    state: CoverageState,
    sample: Option<ServerSample>,
}

impl Round {
    fn new(config: Config, node: String, namespace: Namespace) -> Self {
        Self {
            config,
            node,
            namespace,
            idle: BTreeMap::new(),
            asked: BTreeMap::new(),
            scrapes: JoinSet::new(),
            observations: Vec::new(),
            coverage: Vec::new(),
            from: BootTime::now(),
            tell_at: Instant::now(),
        }
    }

    /// Asks every server that is not being asked still.
    fn start(&mut self, inventory: &Inventory) -> Option<Report> {
        // One address of each server, IPv4 first: it gives the same page on all.
        let mut first: BTreeMap<&str, SocketAddr> = BTreeMap::new();
        for endpoint in &inventory.endpoints {
            first
                .entry(&endpoint.name)
                .and_modify(|address| *address = endpoint.address.min(*address))
                .or_insert(endpoint.address);
        }
        let servers: Vec<SocketAddr> = first.into_values().take(MAX_SERVERS).collect();
        self.idle.retain(|server, _| servers.contains(server));
        // Within the interval, or a hung server would put the report off for ever.
        self.tell_at = Instant::now() + TELL_AFTER.min(self.config.interval / 2);
        for server in &servers {
            if self.asked.values().any(|asked| asked == server) {
                continue;
            }
            let connection = self.idle.remove(server).unwrap_or_else(|| self.connection(*server));
            let task = self.scrapes.spawn(scrape(*server, connection));
            self.asked.insert(task.id(), *server);
        }
        if servers.is_empty() {
            let why =
                "no DNS server is known by address (set cluster.inventory or cluster.servers)".to_owned();
            let state = CoverageState::Unsupported { why };
            self.coverage.push(Coverage {
                observer: Observer::CorednsMetrics,
                place: self.node.clone(),
                state,
            });
            return self.tell();
        }
        None
    }

    fn finish(&mut self, done: Result<(Id, Scrape), JoinError>) -> Option<Report> {
        let id = done.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let server = self.asked.remove(&id)?;
        let (state, sample) = match done {
            Ok((_, scrape)) => {
                self.idle.insert(server, scrape.connection);
                (scrape.state, scrape.sample)
            }
            // A panic in a library; the server is asked again over a new connection.
            Err(_) => (CoverageState::Looked { lost: 1 }, None),
        };
        self.observations.extend(sample.map(Observation::ServerSample));
        self.coverage.push(Coverage { observer: Observer::CorednsMetrics, place: server.to_string(), state });
        let complete = self.scrapes.is_empty() || Instant::now() >= self.tell_at;
        if complete { self.tell() } else { None }
    }

    fn tell(&mut self) -> Option<Report> {
        if self.coverage.is_empty() {
            return None;
        }
        let to = BootTime::now();
        let from = std::mem::replace(&mut self.from, to);
        Some(Report {
            node: self.node.clone(),
            role: Role::Servers,
            from,
            to,
            observations: std::mem::take(&mut self.observations),
            coverage: std::mem::take(&mut self.coverage),
        })
    }

    fn connection(&self, server: SocketAddr) -> Connection {
        let limits = Limits { timeout: self.config.timeout, body_bytes: MAX_PAGE_BYTES };
        let address = SocketAddr::new(server.ip(), self.config.metrics_port);
        Connection::new(self.namespace.clone(), address, limits)
    }
}

async fn scrape(server: SocketAddr, mut connection: Connection) -> Scrape {
    let ask = Ask { method: Method::GET, path: "/metrics", accept: "text/plain;version=0.0.4", body: None };
    let (state, sample) = match connection.ask(&ask).await {
        Ok(answer) => understand(&answer, server, connection.address()),
        Err(error) => (unanswered(&error), None),
    };
    Scrape { connection, state, sample }
}

fn understand(
    answer: &Answer,
    server: SocketAddr,
    address: SocketAddr,
) -> (CoverageState, Option<ServerSample>) {
    if answer.status != 200 {
        let why = format!("http://{address}/metrics answers with status {}", answer.status);
        return (CoverageState::Unsupported { why }, None);
    }
    let account = account::read(&answer.body, server, BootTime::now());
    let state = match account.sample {
        Some(_) => CoverageState::Looked { lost: account.errors },
        None => CoverageState::Unsupported { why: format!("http://{address}/metrics is no page of CoreDNS") },
    };
    (state, account.sample)
}

fn unanswered(error: &Error) -> CoverageState {
    match error {
        // It may come back, or be the very server that is sick: one reading is missing.
        Error::TimedOut { .. } | Error::Connect { .. } => CoverageState::Looked { lost: 1 },
        Error::Tls { .. } | Error::Http { .. } | Error::TooLarge { .. } | Error::Request { .. } => {
            CoverageState::Unsupported { why: error.to_string() }
        }
        Error::Namespace(_) => CoverageState::Denied { missing: error.to_string() },
    }
}

/// By the kernel, never by asking DNS.
fn this_machine() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// A page of a large CoreDNS with many zones is some 200 kB.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Servers asked; nobody runs so many CoreDNS pods.
const MAX_SERVERS: usize = 1024;

/// How long a round waits for all before it tells what it has.
const TELL_AFTER: Duration = Duration::from_millis(250);
