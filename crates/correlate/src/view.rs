//! The last minute of evidence, bounded, in the form in which causes ask for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use evidence::{
    Counters, DropClass, DropTotals, Inventory, KernelDrop, Lookup, Mapping, NameKind, Observer, Place,
    ServerRole, ServerSample, WallTime,
};

use crate::servers::Servers;
use crate::sight::Sight;
use crate::symptom::{Query, TroubledLookup};

/// A lookup that ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub node: String,
    pub started: WallTime,
    pub ended: WallTime,
    pub lookup: Lookup,
}

/// A conntrack entry of DNS, as last seen.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// When it was first told.
    pub first: WallTime,
    pub at: WallTime,
    pub mapping: Mapping,
    /// The renewal that was last taken for a symptom.
    pub told: Option<WallTime>,
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
    pub mappings: BTreeMap<(String, u32), Entry>,
    pub counters: BTreeMap<String, VecDeque<(WallTime, Counters)>>,
    pub totals: BTreeMap<(Place, DropClass), VecDeque<(WallTime, DropTotals)>>,
    pub ended: VecDeque<Ended>,
    pub samples: BTreeMap<SocketAddr, VecDeque<(WallTime, ServerSample)>>,
    pub sight: Sight,
    pub direct: Servers,
    /// When each address stopped being a serving endpoint.
    departed: BTreeMap<SocketAddr, WallTime>,
    /// Spans in which the Service had no serving endpoint; the last one may be open.
    empty: VecDeque<(WallTime, Option<WallTime>)>,
    /// Addresses outside the inventory that answer new flows: the inventory is old, not the mapping.
    alive: BTreeMap<SocketAddr, WallTime>,
    inventory_since: Option<WallTime>,
}

impl View {
    /// Forgets what is older than a minute.
    pub fn forget(&mut self) {
        let horizon = self.now.minus(WINDOW);
        trim(&mut self.drops, MOST_DROPS, |(at, _)| *at >= self.now.minus(JOINED_WITHIN));
        trim(&mut self.ended, MOST_LOOKUPS, |ended| ended.ended >= horizon);
        self.mappings.retain(|_, entry| entry.at >= horizon);
        while self.mappings.len() > MOST_MAPPINGS {
            self.mappings.pop_first();
        }
        for readings in self.counters.values_mut() {
            trim(readings, MOST_READINGS, |(at, _)| *at >= horizon);
        }
        for readings in self.totals.values_mut() {
            trim(readings, MOST_READINGS, |(at, _)| *at >= horizon);
        }
        for readings in self.samples.values_mut() {
            trim(readings, MOST_READINGS, |(at, _)| *at >= horizon);
        }
        self.counters.retain(|_, readings| !readings.is_empty());
        self.totals.retain(|_, readings| !readings.is_empty());
        self.samples.retain(|_, readings| !readings.is_empty());
        self.departed.retain(|_, at| *at >= self.now.minus(DEPARTED_KEPT));
        self.alive.retain(|_, at| *at >= horizon);
        trim(&mut self.empty, MOST_READINGS, |(_, end)| end.is_none_or(|end| end >= horizon));
        self.direct.forget(horizon, &self.inventory);
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
        self.sight.forget_servers(&places);
        self.inventory_known = true;
        self.inventory_since.get_or_insert(at);
    }

    /// Takes an entry of the table. Gives its renewal if that is news and came so long after its backend left.
    pub fn learn_mapping(
        &mut self,
        at: WallTime,
        renewed: Option<WallTime>,
        mapping: &Mapping,
        stale_after: Duration,
    ) -> Option<WallTime> {
        let departed = self.departed(mapping).map(|(departed, _)| departed);
        let key = (mapping.node.clone(), mapping.id);
        let entry = self.mappings.entry(key).or_insert_with(|| Entry {
            first: at,
            at,
            mapping: mapping.clone(),
            told: None,
        });
        entry.at = at;
        entry.mapping = mapping.clone();
        let departed = departed?;
        if mapping.replied && entry.first >= departed.plus(NEW_FLOW) {
            self.alive.insert(mapping.backend, at);
            return None;
        }
        let news = renewed.filter(|renewed| {
            entry.told.is_none_or(|told| *renewed > told) && *renewed >= departed.plus(stale_after)
        })?;
        entry.told = Some(news);
        Some(news)
    }

    /// Remembers a lookup that ended.
    pub fn learn_ended(&mut self, ended: Ended) {
        self.direct.learn_ended(&ended);
        self.ended.push_back(ended);
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

    /// Servers that were silent at that time, each named by its first address, or by the one address that is
    /// silent while its others answer.
    pub fn silent_servers(&self, at: WallTime) -> Vec<SocketAddr> {
        let servers = self.servers();
        let silent = servers.values().filter_map(|addresses| {
            if self.direct.is_silent(addresses, at) {
                return addresses.first().copied();
            }
            addresses.iter().copied().find(|address| self.direct.is_silent(&[*address], at))
        });
        silent.collect()
    }

    /// Whether this address is of a server that was silent at that time.
    pub fn was_silent(&self, server: &SocketAddr, at: WallTime) -> bool {
        let name = self.pod_of_server(server);
        self.silent_servers(at).iter().any(|silent| silent == server || self.pod_of_server(silent) == name)
    }

    /// Servers that answered cluster names around that time, and failed or kept silent on forwarded ones.
    pub fn servers_with_failing_upstream(&self, at: WallTime) -> Vec<SocketAddr> {
        self.direct.asked().into_iter().filter(|server| self.direct.upstream_failed(*server, at)).collect()
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

    /// When the entry's backend stopped serving, and whether that was seen to happen; for one that was never seen
    /// serving, when the inventory was first known. Nothing for a backend that answers new flows, and nothing for an
    /// entry that was never translated: it leads to the Service's own address, which no server left, and comes of rules
    /// that were not yet, or no longer, in place.
    pub fn departed(&self, mapping: &Mapping) -> Option<(WallTime, bool)> {
        let backend = &mapping.backend;
        let translated = *backend != mapping.original.destination;
        let serves = || self.alive.contains_key(backend) || self.serving().contains(backend);
        if !self.inventory_known || !translated || serves() {
            return None;
        }
        let seen = self.departed.get(backend).map(|at| (*at, true));
        seen.or(self.inventory_since.map(|since| (since, false)))
    }

    /// The drop that killed one of the lookup's packets: the same socket, or the same query by its ID and name from
    /// the same client (or one that NAT has renamed).
    pub fn drop_of(&self, queries: &[Query]) -> Option<&KernelDrop> {
        let same = |query: &Query, at: WallTime, dropped: &KernelDrop| {
            let near =
                at >= query.sent.minus(Duration::from_millis(100)) && at <= query.sent.plus(DIES_WITHIN);
            let ends = [Some(dropped.packet), dropped.original, dropped.reply];
            let mut tuples = ends.iter().flatten();
            let socket =
                tuples.any(|tuple| tuple.source == query.source || tuple.destination == query.source);
            let question = dropped
                .question
                .as_ref()
                .is_some_and(|q| q.id == query.id && q.name.eq_ignore_ascii_case(&query.name));
            let client = self.client_of(dropped).ip();
            let renamed = client != query.source.ip()
                && !self.inventory.pods.iter().any(|pod| pod.addresses.contains(&client));
            near && (socket || (question && (client == query.source.ip() || renamed)))
        };
        self.drops
            .iter()
            .rev()
            .find(|(at, dropped)| queries.iter().any(|query| same(query, *at, dropped)))
            .map(|(_, dropped)| dropped)
    }

    /// The conntrack entry that carried one of the lookup's packets: its socket and server, seen since it was sent.
    pub fn mapping_of(&self, lookup: &TroubledLookup) -> Option<&Mapping> {
        let carried = |entry: &Entry, query: &Query| {
            entry.mapping.original.source == query.source
                && entry.mapping.original.destination == lookup.server
                && entry.at >= query.sent
        };
        self.mappings
            .values()
            .find(|entry| lookup.queries.iter().any(|query| carried(entry, query)))
            .map(|entry| &entry.mapping)
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

    /// Whether an observer looked everywhere it is known, and lost nothing since then.
    pub fn looked(&self, observer: Observer, since: WallTime) -> bool {
        self.sight.looked(observer, since, self.now)
    }

    /// DNS packets of a class dropped in the last minute, by the kernel's totals.
    pub fn recent_drops(&self, class: DropClass) -> u64 {
        let rise = |readings: &VecDeque<(WallTime, DropTotals)>| {
            let (_, first) = readings.front()?;
            let (_, last) = readings.back()?;
            Some(last.dns.saturating_sub(first.dns))
        };
        let told = self.drops.iter().filter(|(_, dropped)| dropped.class == class).count();
        let counted: u64 = self
            .totals
            .iter()
            .filter(|((_, c), _)| *c == class)
            .filter_map(|(_, readings)| rise(readings))
            .sum();
        counted.max(u64::try_from(told).unwrap_or(u64::MAX))
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
/// A packet dies within so long of being sent, resends included.
const DIES_WITHIN: Duration = Duration::from_secs(6);
/// So long a drop is kept for lookups to be joined to it.
const JOINED_WITHIN: Duration = Duration::from_secs(10);
/// An entry that first shows so long after its backend left is a new flow: older ones show in the first dumps.
const NEW_FLOW: Duration = Duration::from_secs(15);
const MOST_DROPS: usize = 8192;
const MOST_LOOKUPS: usize = 8192;
const MOST_READINGS: usize = 256;
const MOST_MAPPINGS: usize = 4096;
