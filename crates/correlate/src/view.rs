//! The last minute of evidence, bounded, in the form in which causes ask for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
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

/// What is known of one server address from asking it directly, by time of asking.
#[derive(Debug, Clone, Default)]
struct DirectRecord {
    /// Cluster names answered within a second, or the moment of a late answer.
    answered: BTreeSet<WallTime>,
    /// Cluster names unanswered for a second that no drop explains: the lookup and when it was sent.
    silent: BTreeSet<(WallTime, u64)>,
    /// Forwarded names answered.
    forwarded: BTreeSet<WallTime>,
    /// Forwarded names unanswered, or answered with a server's error.
    forwarded_failed: BTreeSet<(WallTime, u64)>,
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
            record.answered.retain(|at| *at >= horizon);
            record.silent.retain(|(at, _)| *at >= horizon);
            record.forwarded.retain(|at| *at >= horizon);
            record.forwarded_failed.retain(|(at, _)| *at >= horizon);
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
        let failed = match (lookup.failure, lookup.name_kind) {
            (Failure::SendRefused(_) | Failure::Unreachable(_), _)
            | (Failure::Rcode(_), NameKind::Cluster) => return,
            (Failure::Silent | Failure::Refused, NameKind::Cluster) => &mut record.silent,
            (Failure::Silent | Failure::Refused | Failure::Rcode(_), NameKind::Forwarded) => {
                &mut record.forwarded_failed
            }
        };
        if failed.len() < MOST_READINGS {
            failed.insert((at, lookup.id.0));
        }
    }

    /// Remembers a lookup that ended.
    pub fn learn_ended(&mut self, ended: Ended) {
        if ended.lookup.role == ServerRole::Direct && ended.lookup.outcome.is_answer() {
            let record = self.direct.entry(ended.lookup.server).or_default();
            // A late answer shows that the server answers now, not that it did when it was asked.
            let quick = ended.ended.since(ended.started) < Duration::from_secs(1);
            let at = if quick { ended.started } else { ended.ended };
            let answered = match ended.lookup.name_kind {
                NameKind::Cluster => &mut record.answered,
                NameKind::Forwarded => &mut record.forwarded,
            };
            if answered.len() >= MOST_READINGS {
                answered.pop_first();
            }
            answered.insert(at);
        }
        self.ended.push_back(ended);
    }

    /// A drop explains that lookup's silence: the server is not to blame for it.
    pub fn absolve(&mut self, lookup: &TroubledLookup) {
        if let Some(record) = self.direct.get_mut(&lookup.server) {
            record.silent.retain(|(_, id)| *id != lookup.id.0);
            record.forwarded_failed.retain(|(_, id)| *id != lookup.id.0);
        }
    }

    /// Addresses of endpoints that serve.
    pub fn serving(&self) -> BTreeSet<SocketAddr> {
        self.inventory.endpoints.iter().filter(|e| e.serving).map(|e| e.address).collect()
    }

    /// Servers (pods) that serve, each with its addresses, IPv4 first.
    pub fn servers(&self) -> BTreeMap<&str, Vec<SocketAddr>> {
        let mut servers: BTreeMap<&str, Vec<SocketAddr>> = BTreeMap::new();
        for endpoint in self.inventory.endpoints.iter().filter(|e| e.serving) {
            servers.entry(&endpoint.name).or_default().push(endpoint.address);
        }
        servers.values_mut().for_each(|addresses| addresses.sort());
        servers
    }

    /// Servers that left direct queries for cluster names unanswered at that time, while no drop explains it: two
    /// or more since the answer before and until the answer after, if there was one. A server is named by its
    /// first address, or by the one that is silent while its others answer.
    pub fn silent_servers(&self, at: WallTime) -> Vec<SocketAddr> {
        self.servers()
            .into_values()
            .filter_map(|addresses| {
                let records = addresses.iter().filter_map(|a| Some((*a, self.direct.get(a)?)));
                let (silent, others): (Vec<_>, Vec<_>) =
                    records.partition(|(_, record)| record.silence(at).is_some());
                let since = silent.iter().filter_map(|(_, record)| record.silence(at)).min()?;
                let others_answer = others.iter().any(|(_, r)| r.answered.range(since..).next().is_some());
                if others_answer {
                    silent.first().map(|(address, _)| *address)
                } else {
                    addresses.first().copied()
                }
            })
            .collect()
    }

    /// Whether this address is of a server that was silent at that time.
    pub fn was_silent(&self, server: &SocketAddr, at: WallTime) -> bool {
        let silent = self.silent_servers(at);
        let name = |address: &SocketAddr| {
            self.inventory.endpoints.iter().find(|e| e.address == *address).map(|e| e.name.as_str())
        };
        silent.contains(server) || silent.iter().any(|s| name(s).is_some() && name(s) == name(server))
    }

    /// Servers that answered cluster names around that time, and failed or kept silent on forwarded ones.
    pub fn servers_with_failing_upstream(&self, at: WallTime) -> Vec<SocketAddr> {
        self.direct
            .iter()
            .filter(|(_, record)| record.upstream_failed(at))
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

    /// The pod that a server's address belongs to, or the address.
    pub fn pod_of_server(&self, server: &SocketAddr) -> String {
        let endpoint = self.inventory.endpoints.iter().find(|e| e.address == *server);
        endpoint.map_or_else(|| server.to_string(), |endpoint| endpoint.name.clone())
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

impl DirectRecord {
    /// The first of the unanswered queries around that time, if there are two or more between two answers.
    fn silence(&self, at: WallTime) -> Option<WallTime> {
        let mut silent = between(&self.answered, &self.silent, at);
        let first = silent.next()?;
        silent.next().map(|_| first)
    }

    /// Forwarded names failed around that time, between two that were answered, while cluster names were
    /// answered right after and not silent right before.
    fn upstream_failed(&self, at: WallTime) -> bool {
        between(&self.forwarded, &self.forwarded_failed, at).any(|failed| {
            let after = (Bound::Excluded(failed), Bound::Included(failed.plus(ASKED_AGAIN)));
            let well = self.answered.range(after).next();
            well.is_some_and(|well| self.silent.range((failed.minus(NEAR), 0)..(*well, 0)).next().is_none())
        })
    }
}

/// Failures around a time: those after the answer before it and before the answer after it.
fn between(
    answered: &BTreeSet<WallTime>,
    failed: &BTreeSet<(WallTime, u64)>,
    at: WallTime,
) -> impl Iterator<Item = WallTime> {
    let before = answered.range(..=at).next_back().copied().unwrap_or_default();
    let after = answered.range((Bound::Excluded(at), Bound::Unbounded)).next().copied();
    let after = after.unwrap_or(WallTime(i64::MAX));
    failed.range((before, u64::MAX)..(after, 0)).map(|(at, _)| *at)
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
/// A calm vantage asks a server for a cluster name every 4 s.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
const NEAR: Duration = Duration::from_secs(2);
const MOST_DROPS: usize = 8192;
const MOST_LOOKUPS: usize = 8192;
const MOST_READINGS: usize = 256;
const MOST_PLACES: usize = 4096;
