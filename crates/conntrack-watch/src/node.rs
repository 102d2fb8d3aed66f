//! What does one node's conntrack show now?
//!
//! Reads counters, totals and the table of one namespace, and knows when the table is due. What fails is coverage, never
//! the end of the rest.

use std::net::SocketAddr;

use evidence::{
    BootTime, Counters, Coverage, CoverageState, Inventory, KernelDrop, Mapping, Observation, Observer,
    Protocol, Tuple,
};
use netns::Namespace;

use crate::config::Config;
use crate::drops::Record;
use crate::mappings::{Found, Mappings, REPORTED, row};
use crate::netlink::{Conntrack, CpuStats, Error, TableSize};

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
    /// So many dumps more are made at the shorter interval: what a change of endpoints made stale is in the first, and
    /// what was on its way in the second.
    soon: u8,
    /// The entries that led to no endpoint when last read: these are read again one by one, which costs microseconds
    /// where a dump costs a walk over all buckets.
    astray: Vec<(Protocol, Tuple)>,
    last_look: BootTime,
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
            soon: 0,
            astray: Vec::new(),
            last_look: now,
            table_state: None,
        }
    }

    /// Endpoints changed: what was right may be stale from now on.
    pub(crate) fn dump_at_once(&mut self) {
        self.last_dump = None;
        self.soon = 1;
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

    /// Reads the table if it is due, else the entries that led to no endpoint when they were last read.
    pub(crate) async fn read_table(
        &mut self,
        config: &Config,
        inventory: &Inventory,
        observations: &mut Vec<Observation>,
    ) -> Coverage {
        let now = BootTime::now();
        // One by one is for few.
        let oftener = self.soon > 0 || self.astray.len() >= REPORTED;
        let interval = if oftener { config.dump_interval } else { config.quiet_dump_interval };
        // A tick that comes a little early is not to cost a whole one.
        let due = |last: BootTime, interval| now.since(last) + config.interval / 4 >= interval;
        let answer = if self.last_dump.is_none_or(|last| due(last, interval)) {
            self.soon = if self.last_dump.is_none() { self.soon } else { self.soon.saturating_sub(1) };
            (self.last_dump, self.last_look) = (Some(now), now);
            Some(self.dump(inventory, observations).await)
        } else if !self.astray.is_empty() && due(self.last_look, config.dump_interval) {
            self.last_look = now;
            Some(self.look_again(inventory, observations).await)
        } else {
            None
        };
        match answer {
            None => {}
            Some(Ok(_)) if inventory.service.addresses.is_empty() => self.table_state = Some(no_dns()),
            Some(Ok(lost)) => {
                self.lost.table += lost;
                self.table_state = None;
            }
            Some(Err(error)) => self.table_state = Some(error.coverage()),
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
            mappings.push(row(&self.name, BootTime::now(), &entry, None));
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
        Ok(self.tell(found, observations) + u64::from(interrupted))
    }

    /// Reads the entries that led to no endpoint once more: is anyone still using them?
    async fn look_again(
        &mut self,
        inventory: &Inventory,
        observations: &mut Vec<Observation>,
    ) -> Result<u64, Error> {
        let mut entries = Vec::with_capacity(self.astray.len());
        let from = BootTime::now();
        for (protocol, original) in self.astray.clone() {
            let answer = self.conntrack().await?.holder(protocol, original).await;
            entries.extend(self.checked(answer)?.map(|entry| (entry, BootTime::now())));
        }
        let mut reader = self.mappings.start(&self.name, from, inventory);
        entries.iter().for_each(|(entry, arrived)| reader.add(entry, *arrived));
        let found = reader.finish(true);
        Ok(self.tell(found, observations))
    }

    /// Hands rows on and remembers those that lead astray. How many were missed.
    fn tell(&mut self, found: Found, observations: &mut Vec<Observation>) -> u64 {
        let astray = found.rows.iter().take(found.astray);
        self.astray = astray.map(|row| (row.protocol, row.original)).collect();
        observations.extend(found.rows.into_iter().map(Observation::Mapping));
        found.untold
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
