//! What does one node's conntrack show now?
//!
//! Reads counters, totals and the table of one namespace, and knows when the table is due. What fails is coverage, never
//! the end of the rest.

use std::net::SocketAddr;
use std::time::Duration;

use evidence::{
    BootTime, Counters, Coverage, CoverageState, Inventory, KernelDrop, Mapping, Observation, Observer,
};
use netns::Namespace;

use crate::config::Config;
use crate::drops::Record;
use crate::mappings::Mappings;
use crate::netlink::{Conntrack, CpuStats, Error, TableSize};

/// For so long after a sign of trouble the table is read at the shorter interval.
const ALERT: Duration = Duration::from_secs(30);
/// Holders of tuples asked for in one batch of drops.
const HOLDERS: usize = 8;

/// A node whose kernel is watched.
#[derive(Debug, Clone)]
pub struct WatchedNode {
    /// The node's name.
    pub name: String,
    /// Its own network namespace.
    pub namespace: Namespace,
}

/// One node's state between readings.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    /// End of the span last reported.
    pub(crate) reported: BootTime,
    pub(crate) lost: Lost,
    conntrack: Option<Conntrack>,
    size: TableSize,
    mappings: Mappings,
    last_dump: Option<BootTime>,
    alert_until: BootTime,
    table_state: Option<CoverageState>,
}

/// Records missed since the last report that was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) table: u64,
    pub(crate) drops: u64,
}

impl Node {
    pub(crate) fn new(node: WatchedNode) -> Self {
        let now = BootTime::now();
        Self {
            name: node.name,
            namespace: node.namespace,
            reported: now,
            lost: Lost::default(),
            conntrack: None,
            size: TableSize::default(),
            mappings: Mappings::default(),
            last_dump: None,
            // The first reading is made at once; what it finds decides how soon the next is.
            alert_until: now,
            table_state: None,
        }
    }

    /// Something may be wrong: read the table at once, and oftener for a while.
    pub(crate) fn alert(&mut self) {
        self.alert_until = BootTime::now().plus(ALERT);
    }

    /// Endpoints changed: what was right may be stale from now on.
    pub(crate) fn dump_at_once(&mut self) {
        self.alert();
        self.last_dump = None;
    }

    pub(crate) async fn cpu_stats(&mut self) -> Result<Vec<CpuStats>, Error> {
        let answer = self.conntrack().await?.cpu_stats().await;
        self.checked(answer)
    }

    /// Reads counters into observations; the coverage tells how it went.
    pub(crate) async fn read_counters(&mut self, observations: &mut Vec<Observation>) -> Coverage {
        let state = match self.counters().await {
            Ok(counters) => {
                observations.push(Observation::Counters(counters));
                // Cumulative: the next reading has what this one missed.
                CoverageState::Looked { lost: 0 }
            }
            Err(error) => error.coverage(),
        };
        self.coverage(Observer::ConntrackCounters, state)
    }

    /// Reads the table if it is due.
    pub(crate) async fn read_table(
        &mut self,
        config: &Config,
        inventory: &Inventory,
        observations: &mut Vec<Observation>,
    ) -> Coverage {
        let now = BootTime::now();
        let interval = if now < self.alert_until { config.dump_interval } else { config.quiet_dump_interval };
        // A tick that comes a little early is not to cost a whole one.
        let due = self.last_dump.is_none_or(|last| now.since(last) + config.interval / 4 >= interval);
        if due {
            self.last_dump = Some(now);
            let state = match self.dump(inventory, observations).await {
                Ok(_) if inventory.service.addresses.is_empty() => Some(no_dns()),
                Ok(lost) => {
                    self.lost.table += lost;
                    None
                }
                Err(error) => Some(error.coverage()),
            };
            self.table_state = state;
        }
        let looked = CoverageState::Looked { lost: self.lost.table };
        self.coverage(Observer::ConntrackTable, self.table_state.clone().unwrap_or(looked))
    }

    /// The entries that hold what packets dropped in a race wanted, as far as they are there still.
    pub(crate) async fn holders(&mut self, records: &[Record]) -> Vec<Mapping> {
        let mut mappings = Vec::new();
        for (protocol, wanted) in records.iter().filter_map(Record::wanted).take(HOLDERS) {
            let Ok(conntrack) = self.conntrack().await else { break };
            let answer = conntrack.holder(protocol, wanted).await;
            let Ok(Some(entry)) = self.checked(answer) else { continue };
            mappings.push(Mapping {
                node: self.name.clone(),
                at: BootTime::now(),
                protocol,
                original: entry.original,
                backend: entry.reply.source,
                id: entry.id,
                replied: entry.replied(),
                expires_secs: entry.expires_secs,
                renewed: None,
            });
        }
        mappings
    }

    pub(crate) fn coverage(&self, observer: Observer, state: CoverageState) -> Coverage {
        Coverage { observer, place: self.name.clone(), state }
    }

    async fn counters(&mut self) -> Result<Counters, Error> {
        let stats = self.cpu_stats().await?;
        let answer = self.conntrack().await?.table_size().await;
        self.size = self.checked(answer)?;
        let sum = |of: fn(&CpuStats) -> u32| stats.iter().map(|cpu| u64::from(of(cpu))).sum();
        Ok(Counters {
            node: self.name.clone(),
            at: BootTime::now(),
            found: sum(|cpu| cpu.found),
            invalid: sum(|cpu| cpu.invalid),
            insert_failed: sum(|cpu| cpu.insert_failed),
            drop: sum(|cpu| cpu.drop),
            early_drop: sum(|cpu| cpu.early_drop),
            clash_resolve: sum(|cpu| cpu.clash_resolve),
            chain_toolong: sum(|cpu| cpu.chain_toolong),
            entries: u64::from(self.size.entries),
            max: self.max(),
        })
    }

    /// Kernels before 5.11 don't tell the limit by netlink. It is one value for the whole machine.
    fn max(&self) -> u64 {
        if self.size.max > 0 {
            return u64::from(self.size.max);
        }
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Reads the table, and tells how many rows it missed.
    async fn dump(
        &mut self,
        inventory: &Inventory,
        observations: &mut Vec<Observation>,
    ) -> Result<u64, Error> {
        let answer = self.conntrack().await?.table_size().await;
        self.size = self.checked(answer)?;
        let services: &[SocketAddr] = &inventory.service.addresses;
        if services.is_empty() {
            return Ok(0);
        }
        let entries = self.size.entries;
        let Some(mut conntrack) = self.conntrack.take() else { return Ok(0) };
        let mut reader = self.mappings.start(&self.name, BootTime::now(), inventory);
        let answer = if entries == 0 {
            Ok(crate::netlink::Dump::default())
        } else {
            conntrack.entries_to(services, entries, |entry| reader.add(&entry, BootTime::now())).await
        };
        let interrupted = answer.as_ref().map_or(true, |dump| dump.interrupted);
        let found = reader.finish(interrupted);
        self.conntrack = Some(conntrack);
        self.checked(answer)?;
        if found.astray > 0 {
            self.alert();
        }
        observations.extend(found.rows.into_iter().map(Observation::Mapping));
        Ok(found.untold + u64::from(interrupted))
    }

    /// The socket, opened when it is first wanted and after a failure.
    async fn conntrack(&mut self) -> Result<&mut Conntrack, Error> {
        if self.conntrack.is_none() {
            self.conntrack = Some(Conntrack::open(&self.namespace).await?);
        }
        self.conntrack.as_mut().ok_or(Error::Silent)
    }

    /// A socket that failed is not used again: what is still under way on it would be taken for the next answer.
    fn checked<T>(&mut self, answer: Result<T, Error>) -> Result<T, Error> {
        if answer.is_err() {
            self.conntrack = None;
        }
        answer
    }
}

impl Error {
    /// The same as coverage.
    pub fn coverage(&self) -> CoverageState {
        match self {
            Self::Denied => CoverageState::Denied { missing: "CAP_NET_ADMIN".into() },
            Self::Namespace(error) => CoverageState::Denied { missing: error.to_string() },
            Self::Unsupported(_) | Self::Io(_) | Self::Silent => {
                CoverageState::Unsupported { why: self.to_string() }
            }
        }
    }
}

/// Looking at all of them is not possible without knowing which they are.
pub(crate) fn no_dns() -> CoverageState {
    CoverageState::Unsupported { why: "no address of the DNS Service or its servers is known".into() }
}

/// The span that drops speak of.
pub(crate) fn span(drops: &[KernelDrop], now: BootTime) -> (BootTime, BootTime) {
    (drops.iter().map(|drop| drop.at).min().unwrap_or(now), now)
}
