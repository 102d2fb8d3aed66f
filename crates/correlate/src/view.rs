//! The last minute of evidence, bounded, in the form in which causes ask for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use evidence::{
    Counters, Coverage, CoverageState, DropClass, DropTotals, Inventory, KernelDrop, Lookup, Mapping,
    NameKind, Observer, Place, ServerRole, ServerSample, WallTime,
};

use crate::symptom::{Failure, Query, TroubledLookup};

/// A lookup that ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub node: String,
    pub started: WallTime,
    pub ended: WallTime,
    pub lookup: Lookup,
}

/// A coverage line and when it was last said.
#[derive(Debug, Clone)]
pub(crate) struct Covered {
    pub coverage: Coverage,
    pub said: WallTime,
    /// It once looked: from then on silence is loss.
    pub looked_once: bool,
    /// When it last said that it lost records.
    pub lost_at: Option<WallTime>,
}

/// What is known of one server from asking it directly.
#[derive(Debug, Clone, Default)]
struct DirectRecord {
    /// Start of the youngest lookup that was answered, by name kind.
    answered: BTreeMap<bool, WallTime>,
    /// Silent lookups that no drop explains, by name kind: (lookup, sent).
    silent: VecDeque<(u64, bool, WallTime)>,
    /// Forwarded lookups answered with a server's error.
    errors: VecDeque<WallTime>,
}

/// Counters and totals as they stood when an incident began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Baseline {
    counters: BTreeMap<String, Counters>,
    totals: BTreeMap<(Place, DropClass), (u64, u64)>,
}

/// The evidence of the last minute.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub now: WallTime,
    pub inventory: Inventory,
    pub inventory_known: bool,
    pub drops: VecDeque<(WallTime, KernelDrop)>,
    pub mappings: BTreeMap<(String, u32), (WallTime, Mapping)>,
    pub counters: BTreeMap<String, VecDeque<(WallTime, Counters)>>,
    pub totals: BTreeMap<(Place, DropClass), VecDeque<(WallTime, DropTotals)>>,
    pub ended: VecDeque<Ended>,
    pub samples: BTreeMap<SocketAddr, VecDeque<(WallTime, ServerSample)>>,
    pub coverage: BTreeMap<(Observer, String), Covered>,
    /// When each address stopped being a serving endpoint.
    departed: BTreeMap<SocketAddr, WallTime>,
    /// Spans in which the Service had no serving endpoint; the last one may be open.
    empty: VecDeque<(WallTime, Option<WallTime>)>,
    inventory_since: Option<WallTime>,
    direct: BTreeMap<SocketAddr, DirectRecord>,
}

impl View {
    /// Forgets what is older than a minute.
    pub fn forget(&mut self) {
        let horizon = self.now.minus(WINDOW);
        trim(&mut self.drops, MOST_DROPS, |(at, _)| *at >= horizon);
        trim(&mut self.ended, MOST_LOOKUPS, |ended| ended.ended >= horizon);
        self.mappings.retain(|_, (at, _)| *at >= horizon);
        for readings in self.counters.values_mut() {
            trim(readings, MOST_READINGS, |(at, _)| *at >= horizon);
        }
        for readings in self.totals.values_mut() {
            trim(readings, MOST_READINGS, |(at, _)| *at >= horizon);
        }
        for readings in self.samples.values_mut() {
            trim(readings, MOST_READINGS, |(at, _)| *at >= horizon);
        }
        self.departed.retain(|_, at| *at >= self.now.minus(DEPARTED_KEPT));
        trim(&mut self.empty, MOST_READINGS, |(_, end)| end.is_none_or(|end| end >= horizon));
        for record in self.direct.values_mut() {
            trim(&mut record.silent, MOST_READINGS, |(_, _, at)| *at >= horizon);
            trim(&mut record.errors, MOST_READINGS, |at| *at >= horizon);
        }
        self.direct.retain(|server, _| self.inventory.endpoints.iter().any(|e| e.address == *server));
    }

    /// Takes a new state of the cluster.
    pub fn learn_inventory(&mut self, at: WallTime, inventory: Inventory) {
        let before = self.serving();
        self.inventory = inventory;
        let after = self.serving();
        for gone in before.difference(&after) {
            self.departed.insert(*gone, at);
        }
        for here in &after {
            self.departed.remove(here);
        }
        let is_empty = after.is_empty();
        match self.empty.back_mut() {
            Some((_, end @ None)) if !is_empty => *end = Some(at),
            Some((_, None)) => {}
            Some((_, Some(_))) | None if is_empty => self.empty.push_back((at, None)),
            Some((_, Some(_))) | None => {}
        }
        let places: BTreeSet<String> =
            self.inventory.endpoints.iter().map(|e| e.address.to_string()).collect();
        self.coverage
            .retain(|(observer, place), _| *observer != Observer::CorednsMetrics || places.contains(place));
        self.inventory_known = true;
        self.inventory_since.get_or_insert(at);
    }

    /// Remembers how a server treated a lookup made to it directly.
    pub fn learn_direct(&mut self, at: WallTime, lookup: &TroubledLookup) {
        if lookup.role != ServerRole::Direct {
            return;
        }
        let record = self.direct.entry(lookup.server).or_default();
        match lookup.failure {
            Failure::Silent | Failure::Unreachable => {
                let forwarded = lookup.name_kind == NameKind::Forwarded;
                if !record.silent.iter().any(|(id, _, _)| *id == lookup.id.0) {
                    record.silent.push_back((lookup.id.0, forwarded, at));
                }
            }
            Failure::Rcode(_) => record.errors.push_back(at),
            Failure::SendRefused(_) => {}
        }
    }

    /// Remembers a lookup that ended.
    pub fn learn_ended(&mut self, ended: Ended) {
        if ended.lookup.role == ServerRole::Direct && ended.lookup.outcome.is_answer() {
            let record = self.direct.entry(ended.lookup.server).or_default();
            let forwarded = ended.lookup.name_kind == NameKind::Forwarded;
            let answered = record.answered.entry(forwarded).or_default();
            *answered = (*answered).max(ended.started);
        }
        self.ended.push_back(ended);
    }

    /// A drop explains that lookup's silence: the server is not to blame for it.
    pub fn absolve(&mut self, lookup: &TroubledLookup) {
        if let Some(record) = self.direct.get_mut(&lookup.server) {
            record.silent.retain(|(id, _, _)| *id != lookup.id.0);
        }
    }

    /// Addresses of endpoints that serve.
    pub fn serving(&self) -> BTreeSet<SocketAddr> {
        self.inventory.endpoints.iter().filter(|e| e.serving).map(|e| e.address).collect()
    }

    /// Servers that leave direct queries for cluster names unanswered while no drop explains it: asked twice
    /// or more since their last answer.
    pub fn silent_servers(&self) -> Vec<SocketAddr> {
        let serving = self.serving();
        self.direct
            .iter()
            .filter(|(server, record)| {
                let answered = record.answered.get(&false).copied().unwrap_or_default();
                let asked = record.silent.iter().filter(|(_, forwarded, at)| !forwarded && *at > answered);
                serving.contains(server) && asked.count() >= 2
            })
            .map(|(server, _)| *server)
            .collect()
    }

    /// Servers that answer cluster names, and fail or keep silent on forwarded ones asked meanwhile.
    pub fn servers_with_failing_upstream(&self) -> Vec<SocketAddr> {
        self.direct
            .iter()
            .filter(|(_, record)| {
                let cluster = record.answered.get(&false).copied().unwrap_or_default();
                let forwarded = record.answered.get(&true).copied().unwrap_or_default();
                let failed = record
                    .silent
                    .iter()
                    .filter(|(_, forwarded, _)| *forwarded)
                    .map(|(_, _, at)| *at)
                    .chain(record.errors.iter().copied());
                failed.filter(|at| *at > forwarded && *at < cluster).count() >= 1
            })
            .map(|(server, _)| *server)
            .collect()
    }

    /// Whether the Service had no serving endpoint at that time, give or take the second in which rules and
    /// slices change.
    pub fn had_no_endpoints(&self, at: WallTime) -> bool {
        self.inventory_known
            && self.empty.iter().any(|(from, to)| {
                at >= from.minus(Duration::from_secs(1))
                    && to.is_none_or(|to| at <= to.plus(Duration::from_secs(2)))
            })
    }

    /// When the address stopped serving; for one that was never seen serving, when the inventory was first known.
    pub fn departed(&self, backend: &SocketAddr) -> Option<WallTime> {
        if !self.inventory_known || self.serving().contains(backend) {
            return None;
        }
        self.departed.get(backend).copied().or(self.inventory_since)
    }

    /// The drop that killed one of the lookup's packets: the same query by its ID and name, or the same socket.
    pub fn drop_of(&self, queries: &[Query]) -> Option<&KernelDrop> {
        let same = |query: &Query, at: WallTime, dropped: &KernelDrop| {
            let near = at >= query.sent.minus(Duration::from_millis(100))
                && at <= query.sent.plus(Duration::from_secs(6));
            let question = dropped
                .question
                .as_ref()
                .is_some_and(|q| q.id == query.id && q.name.eq_ignore_ascii_case(&query.name));
            let ends = [Some(dropped.packet), dropped.original, dropped.reply];
            let socket = ends
                .iter()
                .flatten()
                .any(|tuple| tuple.source == query.source || tuple.destination == query.source);
            near && (question || socket)
        };
        self.drops
            .iter()
            .rev()
            .find(|(at, dropped)| queries.iter().any(|query| same(query, *at, dropped)))
            .map(|(_, dropped)| dropped)
    }

    /// The conntrack entry that carried one of the lookup's packets.
    pub fn mapping_of(&self, queries: &[Query]) -> Option<&Mapping> {
        self.mappings
            .values()
            .map(|(_, mapping)| mapping)
            .find(|mapping| queries.iter().any(|query| mapping.original.source == query.source))
    }

    /// The readings that were newest at that time, to count from.
    pub fn baseline(&self, since: WallTime) -> Baseline {
        let counters = self
            .counters
            .iter()
            .filter_map(|(node, readings)| Some((node.clone(), at(readings, since)?.clone())));
        // A class that was never counted before has no reading: it counts from zero.
        let totals = self.totals.iter().filter_map(|(key, readings)| {
            let (before, total) = readings.iter().rev().find(|(at, _)| *at <= since)?;
            (*before <= since).then(|| (key.clone(), (total.all, total.dns)))
        });
        Baseline { counters: counters.collect(), totals: totals.collect() }
    }

    /// The rise of one conntrack counter of a node since a baseline.
    pub fn counter_rise(&self, node: &str, base: &Baseline, of: fn(&Counters) -> u64) -> Option<u64> {
        Some(of(self.latest_counters(node)?).saturating_sub(of(base.counters.get(node)?)))
    }

    /// The rise of the helper's totals of a class on one node, or on all: (all protocols, DNS).
    pub fn total_rise(&self, node: Option<&str>, class: DropClass, base: &Baseline) -> (u64, u64) {
        let here = |place: &Place| match (node, place) {
            (None, _) => true,
            (Some(node), Place::Node(name)) => name == node,
            (Some(_), Place::Namespace(_)) => false,
        };
        let mut sum = (0, 0);
        for (key, readings) in self.totals.iter().filter(|((place, c), _)| *c == class && here(place)) {
            let (all, dns) = base.totals.get(key).copied().unwrap_or((0, 0));
            if let Some((_, now)) = readings.back() {
                sum.0 += now.all.saturating_sub(all);
                sum.1 += now.dns.saturating_sub(dns);
            }
        }
        sum
    }

    /// The node's newest counters.
    pub fn latest_counters(&self, node: &str) -> Option<&Counters> {
        self.counters.get(node)?.back().map(|(_, counters)| counters)
    }

    /// Lookups by the Service's address that ended in the last 30 s, on one node or on all.
    pub fn service_lookups(&self, node: Option<&str>) -> usize {
        let since = self.now.minus(Duration::from_secs(30));
        self.ended
            .iter()
            .filter(|e| e.ended >= since && e.lookup.role == ServerRole::Service)
            .filter(|e| node.is_none_or(|node| e.node == node))
            .count()
    }

    /// Whether any lookup by the Service's address that began on that node since then was answered.
    pub fn answered_since(&self, node: &str, since: WallTime) -> bool {
        self.ended.iter().any(|e| {
            e.node == node
                && e.started >= since
                && e.lookup.role == ServerRole::Service
                && e.lookup.outcome.is_answer()
        })
    }

    /// Whether any direct query was answered in the last minute.
    pub fn any_direct_answer(&self) -> bool {
        self.ended.iter().any(|e| e.lookup.role == ServerRole::Direct && e.lookup.outcome.is_answer())
    }

    /// Whether any forwarded name was answered in the last minute.
    pub fn any_forwarded_answer(&self) -> bool {
        self.ended.iter().any(|e| e.lookup.name_kind == NameKind::Forwarded && e.lookup.outcome.is_answer())
    }

    /// The name of a server: its pod where known, with the address.
    pub fn server_name(&self, server: &SocketAddr) -> String {
        match self.inventory.endpoints.iter().find(|e| e.address == *server) {
            Some(endpoint) if endpoint.name != server.to_string() => format!("{} ({server})", endpoint.name),
            Some(_) | None => server.to_string(),
        }
    }

    /// The name of a client: its pod where known, with the address.
    pub fn client_name(&self, client: IpAddr) -> String {
        match self.inventory.pods.iter().find(|pod| pod.addresses.contains(&client)) {
            Some(pod) => format!("{} ({client})", pod.name),
            None => client.to_string(),
        }
    }

    /// The client as a scope names it: its pod, or its address.
    pub fn client_key(&self, client: IpAddr) -> String {
        match self.inventory.pods.iter().find(|pod| pod.addresses.contains(&client)) {
            Some(pod) => pod.name.clone(),
            None => client.to_string(),
        }
    }

    /// The node that owns an address, where a pod of the inventory has it.
    pub fn node_of_address(&self, address: IpAddr) -> Option<String> {
        self.inventory
            .pods
            .iter()
            .find(|pod| pod.addresses.contains(&address))
            .and_then(|pod| pod.node.clone())
    }

    /// Whether the address is the Service's or a server's.
    pub fn is_dns(&self, address: &SocketAddr) -> bool {
        self.inventory.service.addresses.contains(address)
            || self.inventory.endpoints.iter().any(|e| e.address == *address)
    }

    /// The client's end of a dropped DNS packet: of a query its source, of an answer its destination.
    pub fn client_of(&self, dropped: &KernelDrop) -> SocketAddr {
        let tuple = dropped.original.unwrap_or(dropped.packet);
        if self.is_dns(&tuple.source) && !self.is_dns(&tuple.destination) {
            tuple.destination
        } else {
            tuple.source
        }
    }

    /// Takes what an observer says of itself.
    pub fn learn_coverage(&mut self, said: WallTime, coverage: &Coverage) {
        let key = (coverage.observer, coverage.place.clone());
        if self.coverage.len() >= MOST_PLACES && !self.coverage.contains_key(&key) {
            return;
        }
        let lost = match coverage.state {
            CoverageState::Looked { lost } => lost > 0,
            CoverageState::Denied { .. } | CoverageState::Unsupported { .. } => false,
        };
        let looks = matches!(coverage.state, CoverageState::Looked { .. });
        let covered = self.coverage.entry(key).or_insert_with(|| Covered {
            coverage: coverage.clone(),
            said,
            looked_once: false,
            lost_at: None,
        });
        covered.coverage = coverage.clone();
        covered.said = covered.said.max(said);
        covered.looked_once |= looks;
        if lost {
            covered.lost_at = Some(said);
        }
    }

    /// Whether an observer looked everywhere it is known, and lost nothing since then.
    pub fn looked(&self, observer: Observer, since: WallTime) -> bool {
        let mut lines = self.lines(observer).peekable();
        lines.peek().is_some() && lines.all(|covered| self.gap(covered, since).is_none())
    }

    /// What an observer could not see since then: place and why.
    pub fn gaps(&self, observer: Observer, since: WallTime) -> Vec<(String, String)> {
        if self.lines(observer).next().is_none() {
            return vec![("everywhere".into(), "it does not run".into())];
        }
        self.lines(observer)
            .filter_map(|covered| Some((covered.coverage.place.clone(), self.gap(covered, since)?)))
            .collect()
    }

    fn lines(&self, observer: Observer) -> impl Iterator<Item = &Covered> {
        self.coverage.iter().filter(move |((o, _), _)| *o == observer).map(|(_, covered)| covered)
    }

    fn gap(&self, covered: &Covered, since: WallTime) -> Option<String> {
        match &covered.coverage.state {
            CoverageState::Denied { missing } => Some(missing.clone()),
            CoverageState::Unsupported { why } => Some(why.clone()),
            CoverageState::Looked { .. } if covered.said < self.now.minus(STALE_COVERAGE) => {
                Some(format!("silent for {} s", self.now.since(covered.said).as_secs()))
            }
            CoverageState::Looked { .. } if covered.lost_at.is_some_and(|at| at >= since) => {
                Some("records were lost meanwhile".into())
            }
            CoverageState::Looked { .. } => None,
        }
    }
}

/// "14:03:09.213", in UTC.
pub fn time_of_day(at: WallTime) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0))
        .map_or_else(|_| "?".into(), |t| t.strftime("%H:%M:%S.%3f").to_string())
}

fn at<T>(readings: &VecDeque<(WallTime, T)>, since: WallTime) -> Option<&T> {
    readings
        .iter()
        .rev()
        .find(|(at, _)| *at <= since)
        .or_else(|| readings.front())
        .map(|(_, reading)| reading)
}

fn trim<T>(queue: &mut VecDeque<T>, most: usize, young: impl Fn(&T) -> bool) {
    while queue.len() > most || queue.front().is_some_and(|first| !young(first)) {
        queue.pop_front();
    }
}

const WINDOW: Duration = Duration::from_secs(60);
const DEPARTED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Observers speak every 5 s at least; three missed turns are silence.
pub(crate) const STALE_COVERAGE: Duration = Duration::from_secs(15);
const MOST_DROPS: usize = 8192;
const MOST_LOOKUPS: usize = 8192;
const MOST_READINGS: usize = 256;
const MOST_PLACES: usize = 4096;
