//! What goes on in a cluster all the time and must never be taken for a DNS fault?
//!
//! Real lookups by real C libraries; a clash storm on a port that is not DNS, so that insert_failed rises; a
//! rule that drops packets that are not DNS, with packets that hit it; and endpoints that change every 20 s, as
//! kube-proxy handles it. Each counts what it did.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use netns::Namespace;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Seen;
use super::lookups::{Call, Lookups, Tally};
use super::storm::{Blowing, Storm};
use crate::faults::Rule;
use crate::{Error, Site};

/// All of it, until it is stopped or dropped.
#[derive(Debug)]
pub struct Background {
    /// The node of the storm that is not DNS and of the rule.
    pub node: String,
    lookups: Lookups,
    storm: Option<Blowing>,
    stop: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
    churned: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
    rules: Vec<Rule>,
    begin: SystemTime,
}

/// What the background did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Real lookups.
    pub lookups: Tally,
    /// The two clients of the storm that is not DNS: what they lost is what their node's insert_failed rose by,
    /// and no DNS.
    pub storm: [Seen; 2],
    /// The node of the storm and of the rule.
    pub node: String,
    /// Packets that were sent into the rule that drops them.
    pub sent_into_rule: u64,
    /// How often a server left the Service and joined again.
    pub churned: u64,
}

impl Background {
    /// Starts all of it. The node and the pods are drawn from the seed.
    pub fn start(site: &Site, seed: u64) -> Result<Self, Error> {
        let mut rng = StdRng::seed_from_u64(seed);
        let nothing = |kind| Error::NoSuch { kind, name: "any".into(), known: String::new() };
        let draw = rng.random_range(0..site.nodes.len().max(1));
        let node = site.nodes.get(draw).ok_or_else(|| nothing("node"))?;
        let own: Vec<_> = site.pods.iter().filter(|pod| pod.node == node.name).collect();
        let [first, second, ..] = own.as_slice() else { return Err(nothing("second pod of a node")) };
        let other = site.pods.iter().find(|pod| pod.node != node.name).ok_or_else(|| nothing("other pod"))?;

        let mut background = Self {
            node: node.name.clone(),
            lookups: Lookups::start(site)?,
            storm: None,
            stop: Arc::default(),
            dropped: Arc::default(),
            churned: Arc::default(),
            threads: Vec::new(),
            rules: Vec::new(),
            begin: SystemTime::now(),
        };
        let service = site.service.v4.ip();
        let to_echo = format!("-d {} -p udp --dport {ECHO_PORT}", other.v4);
        background.add_rules([
            Rule::v4(
                &node.netns,
                "nat",
                "PREROUTING",
                &format!("-d {service} -p udp --dport {ECHO_PORT} -j DNAT --to-destination {}", other.v4),
            ),
            Rule::v4(&node.netns, "nat", "POSTROUTING", &format!("{to_echo} -j MASQUERADE")),
            Rule::v4(&node.netns, "filter", "FORWARD", &format!("-p udp --dport {REFUSED_PORT} -j DROP")),
        ])?;
        background.echo(&other.netns)?;
        background.send_into_rule(&first.netns, other.v4.into())?;
        background.churn(site)?;
        let storm = Storm {
            pods: [first.netns.clone(), second.netns.clone()],
            target: SocketAddr::new(service, ECHO_PORT),
            rounds_per_second: STORM_ROUNDS_PER_SECOND,
            first_port: 2_000,
            ports: 4_000,
            rounds_before: 0,
            name: "not-dns.invalid".into(),
        };
        background.storm = Some(storm.start()?);
        Ok(background)
    }

    /// The lookups that were begun in this span and have ended. One that fails may take 15 s and more: ask again
    /// later for the whole truth.
    pub fn calls(&self, from: SystemTime, to: SystemTime) -> Result<Vec<Call>, Error> {
        self.lookups.calls(from, to)
    }

    /// Ends it, undoes what it changed, and tells what it did.
    pub fn stop(mut self) -> Result<Counts, Error> {
        let storm = self.storm.take().map(Blowing::stop).unwrap_or_default();
        let calls = self.lookups.calls(self.begin, SystemTime::now())?;
        self.end()?;
        Ok(Counts {
            lookups: Tally::of(&calls),
            storm,
            node: self.node.clone(),
            sent_into_rule: self.dropped.load(Ordering::Relaxed),
            churned: self.churned.load(Ordering::Relaxed),
        })
    }

    fn end(&mut self) -> Result<(), Error> {
        self.storm = None;
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            drop(thread.join());
        }
        // All are tried, also after one that fails.
        self.rules.drain(..).map(|rule| rule.delete()).fold(Ok(()), Result::and)
    }

    fn add_rules(&mut self, rules: impl IntoIterator<Item = Rule>) -> Result<(), Error> {
        rules.into_iter().try_for_each(|rule| {
            rule.insert()?;
            self.rules.push(rule);
            Ok(())
        })
    }

    /// Answers the storm: the same datagram with the response bit of a DNS header set. A stranger on a port that
    /// is not DNS may well look like DNS.
    fn echo(&mut self, pod: &Path) -> Result<(), Error> {
        let socket = bound(pod, ECHO_PORT)?;
        let wait = socket.set_read_timeout(Some(TICK));
        wait.map_err(Error::system("set a read timeout"))?;
        let stop = Arc::clone(&self.stop);
        self.spawn("echo", move || {
            let mut datagram = [0; 1500];
            while !stop.load(Ordering::Acquire) {
                let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
                if let Some(flags) = datagram.get_mut(2) {
                    *flags |= 0x80;
                }
                drop(socket.send_to(datagram.get(..length).unwrap_or_default(), from));
            }
        })
    }

    fn send_into_rule(&mut self, pod: &Path, to: IpAddr) -> Result<(), Error> {
        let socket = bound(pod, 0)?;
        let (stop, dropped) = (Arc::clone(&self.stop), Arc::clone(&self.dropped));
        self.spawn("into-rule", move || {
            while !stop.load(Ordering::Acquire) {
                if socket.send_to(b"not DNS", (to, REFUSED_PORT)).is_ok() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
                thread::park_timeout(TICK);
            }
        })
    }

    /// One server leaves and joins again, over and over, whatever fault is on.
    fn churn(&mut self, site: &Site) -> Result<(), Error> {
        let (site, stop, churned) = (site.clone(), Arc::clone(&self.stop), Arc::clone(&self.churned));
        self.spawn("churn", move || {
            let mut next = Instant::now() + CHURN_PERIOD / 2;
            let mut away = false;
            loop {
                let stopping = stop.load(Ordering::Acquire);
                if (stopping && away) || Instant::now() >= next {
                    next += CHURN_PERIOD / 2;
                    away = !away;
                    let leaver = away.then(|| site.transient.clone());
                    match site.change_endpoints(|endpoints| endpoints.away = leaver) {
                        Ok(()) => drop(churned.fetch_add(u64::from(!away), Ordering::Relaxed)),
                        Err(error) => eprintln!("endpoint churn: {error}"),
                    }
                }
                if stopping {
                    return;
                }
                thread::park_timeout(TICK);
            }
        })
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(Error::system("start a thread of the background"))?);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the background traffic left something: {error}");
        }
    }
}

fn bound(pod: &Path, port: u16) -> Result<UdpSocket, Error> {
    Namespace::open(pod)?
        .run_blocking(move || UdpSocket::bind(("0.0.0.0", port)))?
        .map_err(Error::system(format!("bind UDP port {port}")))
}

/// Where the storm that is not DNS goes: a port of the DNS Service's own address, but none of its ports.
pub const ECHO_PORT: u16 = 7_777;
/// What the rule drops.
pub const REFUSED_PORT: u16 = 9_999;
/// Some 1 to 4 packets a second are lost at this rate.
const STORM_ROUNDS_PER_SECOND: u32 = 20;
const CHURN_PERIOD: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(50);
