//! The last minute of evidence, bounded, in the form in which causes ask for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use evidence::{
    Counters, DropClass, DropTotals, Inventory, KernelDrop, Lookup, Mapping, NameKind, Observer, Place,
    ServerRole, ServerSample, WallTime,
};

use crate::servers::Servers;
use crate::sight::Sight;
use crate::symptom::{Query, TroubledLookup};

mod counts;
mod names;

pub(crate) use counts::{Baseline, SavedBaseline};
pub use names::time_of_day;

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

/// Who reported a total, of which place and class: inodes of namespaces are a machine's own.
pub(crate) type TotalsKey = (String, Place, DropClass);

/// The evidence of the last minute.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub now: WallTime,
    pub inventory: Arc<Inventory>,
    pub inventory_known: bool,
    pub drops: VecDeque<(WallTime, KernelDrop)>,
    pub mappings: BTreeMap<(String, u32), Entry>,
    pub counters: BTreeMap<String, VecDeque<(WallTime, Counters)>>,
    pub totals: BTreeMap<TotalsKey, VecDeque<(WallTime, DropTotals)>>,
    pub ended: VecDeque<Ended>,
    pub samples: BTreeMap<SocketAddr, VecDeque<(WallTime, ServerSample)>>,
    pub sight: Sight,
    pub direct: Servers,
    /// When each address stopped being a serving endpoint.
    departed: BTreeMap<SocketAddr, WallTime>,
    /// When each address was told to leave; some serve on for a while.
    leaving: BTreeMap<SocketAddr, WallTime>,
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
        let listed: BTreeSet<_> = self.inventory.endpoints.iter().map(|e| e.address).collect();
        self.leaving.retain(|server, at| listed.contains(server) || *at >= self.now.minus(DEPARTED_KEPT));
        self.alive.retain(|_, at| *at >= horizon);
        trim(&mut self.empty, MOST_READINGS, |(_, end)| end.is_none_or(|end| end >= horizon));
        self.direct.forget(horizon);
    }

    /// Takes a new state of the cluster.
    pub fn learn_inventory(&mut self, at: WallTime, inventory: impl Into<Arc<Inventory>>) {
        let before = self.serving();
        let last = std::mem::replace(&mut self.inventory, inventory.into());
        let nodes_before = &last.nodes;
        let after = self.serving();
        for gone in before.difference(&after) {
            self.departed.insert(*gone, at);
        }
        for here in &after {
            self.departed.remove(here);
        }
        for endpoint in &self.inventory.endpoints {
            if endpoint.leaving {
                self.leaving.entry(endpoint.address).or_insert(at);
            } else {
                self.leaving.remove(&endpoint.address);
            }
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
        let nodes: BTreeSet<&str> = self.inventory.nodes.iter().map(|node| node.name.as_str()).collect();
        self.sight.forget_nodes(&nodes, at);
        // None at all is not known any more.
        if !nodes.is_empty() {
            let left =
                nodes_before.iter().map(|node| node.name.as_str()).filter(|name| !nodes.contains(name));
            self.sight.forget_left(&left.collect());
        }
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

    /// Whether this server had been told to leave at that time. What is asked of it then may meet nobody.
    pub fn was_leaving(&self, server: &SocketAddr, at: WallTime) -> bool {
        self.leaving.get(server).is_some_and(|since| at >= *since)
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

    /// Whether this address is of a server that was silent at that time. One that has left the Service meanwhile is
    /// known by its address alone, and may have left before enough was asked of it: then others' silence speaks for it.
    pub fn was_silent(&self, server: &SocketAddr, at: WallTime) -> bool {
        let silent = self.silent_servers(at);
        if !self.serving().contains(server) {
            return !silent.is_empty() || self.direct.is_silent(&[*server], at);
        }
        let name = self.pod_of_server(server);
        silent.iter().any(|silent| silent == server || self.pod_of_server(silent) == name)
    }

    /// The newest reading of this server's metrics, by whichever of its addresses it was had.
    pub fn sample_of(&self, server: &SocketAddr) -> Option<&(WallTime, ServerSample)> {
        let name = self.pod_of_server(server);
        let own = self.samples.iter().filter(|(address, _)| self.pod_of_server(address) == name);
        own.filter_map(|(_, readings)| readings.back()).max_by_key(|(at, _)| *at)
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

    /// An entry of a flow of this node that began after its backend had left, and was in use around that time: the
    /// node's rules still lead there.
    pub fn new_flow_astray(&self, node: &str, at: WallTime) -> Option<&Mapping> {
        let mut entries = self.mappings.values().filter(|entry| entry.mapping.node == node);
        let found = entries.find(|entry| {
            let began_after = |left: WallTime| entry.first >= left.plus(ASTRAY_AFTER);
            let astray = self.departed(&entry.mapping).is_some_and(|(left, seen)| seen && began_after(left));
            let near = entry.at.plus(ASTRAY_WITHIN) >= at && entry.first <= at.plus(ASTRAY_WITHIN);
            astray && entry.told.is_some() && near
        });
        found.map(|entry| &entry.mapping)
    }

    /// Whether an entry on this one's node was used long after their backend had left.
    pub fn others_still_send(&self, mapping: &Mapping, departed: WallTime) -> bool {
        self.mappings.values().any(|entry| {
            let same = entry.mapping.node == mapping.node && entry.mapping.backend == mapping.backend;
            same && entry.told.is_some_and(|told| told >= departed)
        })
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

    /// Whether an observer looked everywhere it is known, and lost nothing since then.
    pub fn looked(&self, observer: Observer, since: WallTime) -> bool {
        self.sight.looked(observer, since, self.now)
    }
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
/// A flow that first shows so long after its backend left began after that: a busy table is read every 2 s.
const ASTRAY_AFTER: Duration = Duration::from_secs(3);
/// So far from an entry's use the node's rules are taken to be the same.
const ASTRAY_WITHIN: Duration = Duration::from_secs(5);
/// An entry that first shows so long after its backend left is a new flow: older ones show in the first dumps.
const NEW_FLOW: Duration = Duration::from_secs(15);
const MOST_DROPS: usize = 8192;
const MOST_LOOKUPS: usize = 8192;
const MOST_READINGS: usize = 256;
const MOST_MAPPINGS: usize = 4096;
