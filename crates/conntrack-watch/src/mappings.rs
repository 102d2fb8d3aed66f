//! Which conntrack entries of DNS lead to no server, and does anyone still use them?
//!
//! The kernel keeps no age and no packet count by default, and never tells of entries made before the listener. That an
//! entry is in use shows in its expiry moving on between two dumps. No IO, no clock: dumps come in, rows go out.
//!
//! An entry that was never translated is what every flow looks like where the Service is no affair of netfilter's (Cilium),
//! so by itself it says nothing. But a client that goes on sending and never gets a reply through it may be held by one that
//! was made before kube-proxy's rules were there (<https://github.com/kubernetes/kubernetes/issues/126468>).

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;

use evidence::{BootTime, Inventory, Mapping};

use crate::netlink::Entry;

/// Entries whose expiry is remembered. With more, the rest are reported without `renewed`.
const REMEMBERED: usize = 65_536;
/// Rows reported of one dump.
pub const REPORTED: usize = 256;
/// Remaining time comes in whole seconds, rounded down; jiffies add a little.
const ROUNDING_NS: u64 = 1_010_000_000;

/// What is remembered from dump to dump.
#[derive(Debug, Default)]
pub struct Mappings {
    seen: HashMap<(u32, u64), Seen>,
    dump: u64,
}

/// One dump in the making: rows are added one by one and never kept but for those to be told.
#[derive(Debug)]
pub struct DumpReader<'a> {
    mappings: &'a mut Mappings,
    node: &'a str,
    at: BootTime,
    serving: Vec<SocketAddr>,
    astray: Vec<Mapping>,
    unreplied: Vec<Mapping>,
    untold: u64,
}

/// What a dump showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Rows whose backend does not serve, those never translated only as the head of this file says (all of them, up to the cap), then a sample of those that no reply came through.
    pub rows: Vec<Mapping>,
    /// How many of the rows are of the first kind.
    pub astray: usize,
    /// Rows of the first kind, in use, that the cap left out.
    pub untold: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// It expires then at the latest, unless a packet renews it.
    latest: u64,
    renewed: Option<BootTime>,
    dump: u64,
}

impl Mappings {
    /// Starts a dump at a moment.
    pub fn start<'a>(&'a mut self, node: &'a str, at: BootTime, inventory: &Inventory) -> DumpReader<'a> {
        self.dump += 1;
        let serving = inventory.endpoints.iter().filter(|endpoint| endpoint.serving);
        DumpReader {
            node,
            at,
            serving: serving.map(|endpoint| endpoint.address).collect(),
            mappings: self,
            astray: Vec::new(),
            unreplied: Vec::new(),
            untold: 0,
        }
    }

    /// When the entry was last seen to be renewed, this dump included. The kernel read the row at some moment from
    /// the dump's start till its arrival, and rounds down to seconds: only what no such moment explains is a renewal.
    fn renewed(&mut self, entry: &Entry, from: BootTime, to: BootTime) -> Option<BootTime> {
        let mut hasher = DefaultHasher::new();
        (entry.original, entry.reply).hash(&mut hasher);
        let key = (entry.id, hasher.finish());
        let left = u64::from(entry.expires_secs) * 1_000_000_000;
        let earliest = from.0.saturating_add(left);
        let latest = to.0.saturating_add(left).saturating_add(ROUNDING_NS);
        let full = self.seen.len() >= REMEMBERED;
        let Some(seen) = self.seen.get_mut(&key) else {
            if !full {
                self.seen.insert(key, Seen { latest, renewed: None, dump: self.dump });
            }
            return None;
        };
        seen.dump = self.dump;
        if earliest > seen.latest {
            seen.renewed = Some(from);
            seen.latest = latest;
        } else {
            // Both readings hold; and a new state may have a shorter life (TCP closing).
            seen.latest = seen.latest.min(latest);
        }
        seen.renewed
    }
}

impl DumpReader<'_> {
    /// Adds a row that has arrived just now.
    pub fn add(&mut self, entry: &Entry, arrived: BootTime) {
        let renewed = self.mappings.renewed(entry, self.at, arrived);
        let backend = entry.reply.source;
        let translated = backend != entry.original.destination;
        if !translated && (entry.replied() || renewed.is_none()) {
            return;
        }
        let leads_astray = !self.serving.contains(&backend);
        if !leads_astray && entry.replied() {
            return;
        }
        let rows = if leads_astray { &mut self.astray } else { &mut self.unreplied };
        if rows.len() >= REPORTED {
            // Idle leftovers harm nobody: they make room for one that is in use.
            let in_use = leads_astray && renewed.is_some();
            match rows.iter().position(|row| row.renewed.is_none()) {
                Some(idle) if in_use => drop(rows.swap_remove(idle)),
                Some(_) | None => {
                    self.untold += u64::from(in_use);
                    return;
                }
            }
        }
        rows.push(row(self.node, self.at, entry, renewed));
    }

    /// Ends the dump. What it didn't show is forgotten, unless it was interrupted or for single entries: then it may
    /// have missed rows.
    pub fn finish(mut self, partial: bool) -> Found {
        if !partial {
            let dump = self.mappings.dump;
            self.mappings.seen.retain(|_, seen| seen.dump == dump);
        }
        let astray = self.astray.len();
        self.unreplied.truncate(REPORTED - astray);
        self.astray.append(&mut self.unreplied);
        Found { rows: self.astray, astray, untold: self.untold }
    }
}

/// An entry as it is told.
pub fn row(node: &str, at: BootTime, entry: &Entry, renewed: Option<BootTime>) -> Mapping {
    Mapping {
        node: node.to_owned(),
        at,
        protocol: entry.protocol,
        original: entry.original,
        backend: entry.reply.source,
        id: entry.id,
        replied: entry.replied(),
        expires_secs: entry.expires_secs,
        renewed,
    }
}

#[cfg(test)]
mod tests {
    use evidence::{Endpoint, Protocol, Tuple};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn entry(port: u16, backend: &str, expires_secs: u32, replied: bool) -> Entry {
        let source = SocketAddr::new("10.244.1.7".parse().unwrap(), port);
        Entry {
            protocol: Protocol::Udp,
            original: Tuple { source, destination: "10.96.0.10:53".parse().unwrap() },
            reply: Tuple { source: backend.parse().unwrap(), destination: source },
            id: u32::from(port),
            status: if replied { 2 } else { 0 },
            expires_secs,
        }
    }

    fn inventory() -> Inventory {
        let endpoint = |address: &str, serving| Endpoint {
            name: address.into(),
            address: address.parse().unwrap(),
            node: None,
            serving,
            leaving: false,
        };
        Inventory {
            endpoints: vec![endpoint("10.244.1.20:5353", true), endpoint("10.244.2.20:5353", false)],
            ..Inventory::default()
        }
    }

    fn dump(mappings: &mut Mappings, at: u64, entries: &[Entry]) -> Found {
        let mut reader = mappings.start("node-a", BootTime(at * SECOND), &inventory());
        entries.iter().for_each(|entry| reader.add(entry, BootTime(at * SECOND)));
        reader.finish(false)
    }

    #[test]
    fn an_entry_to_a_serving_backend_that_answers_is_not_told() {
        let found = dump(&mut Mappings::default(), 1, &[entry(1, "10.244.1.20:5353", 29, true)]);
        assert_eq!(found, Found::default());
    }

    #[test]
    fn an_entry_to_a_backend_that_does_not_serve_is_told_first() {
        let entries = [entry(1, "10.244.1.20:5353", 29, false), entry(2, "10.244.2.20:5353", 119, true)];
        let found = dump(&mut Mappings::default(), 1, &entries);
        assert_eq!((found.rows.len(), found.astray), (2, 1));
        assert_eq!(found.rows[0].backend, "10.244.2.20:5353".parse().unwrap());
    }

    #[test]
    fn an_entry_never_translated_leads_astray_if_it_is_renewed_and_brings_no_reply() {
        let service = "10.96.0.10:53";
        for (name, expires_secs, replied, astray) in [
            ("unreplied, in use", 29, false, 1),
            ("unreplied, left over", 27, false, 0),
            ("no NAT by design, in use", 29, true, 0),
            ("no NAT by design, left over", 27, true, 0),
        ] {
            let mut mappings = Mappings::default();
            let first = dump(&mut mappings, 1, &[entry(1, service, 29, replied)]);
            assert_eq!(first, Found::default(), "{name}: one dump can't tell");
            let found = dump(&mut mappings, 3, &[entry(1, service, expires_secs, replied)]);
            assert_eq!((found.rows.len(), found.astray), (astray, astray), "{name}");
        }
    }

    #[test]
    fn renewal_shows_in_an_expiry_that_moves_on() {
        let mut mappings = Mappings::default();
        let gone = "10.244.2.20:5353";
        assert_eq!(dump(&mut mappings, 10, &[entry(1, gone, 119, true)]).rows[0].renewed, None);
        // Nobody sends: time runs down with the clock, give or take a second of rounding.
        assert_eq!(dump(&mut mappings, 12, &[entry(1, gone, 117, true)]).rows[0].renewed, None);
        assert_eq!(dump(&mut mappings, 14, &[entry(1, gone, 116, true)]).rows[0].renewed, None);
        // Somebody sends.
        let renewed = dump(&mut mappings, 16, &[entry(1, gone, 119, true)]).rows[0].renewed;
        assert_eq!(renewed, Some(BootTime(16 * SECOND)));
        // It stays the last time seen.
        assert_eq!(dump(&mut mappings, 18, &[entry(1, gone, 117, true)]).rows[0].renewed, renewed);
    }

    #[test]
    fn a_slow_dump_is_no_renewal() {
        let mut mappings = Mappings::default();
        let row = |mappings: &mut Mappings, start: u64, arrived: u64, expires_secs| {
            let mut reader = mappings.start("node-a", BootTime(start), &inventory());
            reader.add(&entry(1, "10.244.2.20:5353", expires_secs, true), BootTime(arrived));
            reader.finish(false).rows[0].renewed
        };
        // Read 0.9 s after the dump began, when 117.0 s were left, told as 116.
        assert_eq!(row(&mut mappings, 10 * SECOND, 10 * SECOND + 900_000_000, 116), None);
        // Two seconds on, read at once: 116.0 s are left of the same life.
        assert_eq!(row(&mut mappings, 12 * SECOND - 100_000_000, 12 * SECOND - 100_000_000, 116), None);
        assert!(row(&mut mappings, 14 * SECOND, 14 * SECOND, 119).is_some());
    }

    #[test]
    fn the_cap_counts_only_rows_in_use_that_lead_astray() {
        let rows = |backend: &str, expires| -> Vec<Entry> {
            (0..300).map(|port| entry(port, backend, expires, true)).collect()
        };
        let found = dump(&mut Mappings::default(), 1, &rows("10.244.2.20:5353", 9));
        assert_eq!((found.rows.len(), found.untold), (REPORTED, 0), "idle ones are a sample");
        let mut mappings = Mappings::default();
        dump(&mut mappings, 1, &rows("10.244.2.20:5353", 9));
        let found = dump(&mut mappings, 3, &rows("10.244.2.20:5353", 29));
        assert_eq!((found.rows.len(), found.untold), (REPORTED, 44));
    }

    #[test]
    fn a_row_in_use_takes_the_place_of_an_idle_one() {
        let mut entries: Vec<_> = (0..300).map(|port| entry(port, "10.244.2.20:5353", 20, true)).collect();
        let mut mappings = Mappings::default();
        dump(&mut mappings, 1, &entries);
        entries.iter_mut().for_each(|entry| entry.expires_secs = 18);
        entries[299].expires_secs = 120;
        let found = dump(&mut mappings, 3, &entries);
        assert_eq!((found.rows.len(), found.untold), (REPORTED, 0));
        assert!(found.rows.iter().any(|row| row.original.source.port() == 299 && row.renewed.is_some()));
    }
}
