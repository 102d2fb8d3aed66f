//! Which of the kernel's totals may be dropped from its map, and what did they count?
//!
//! Namespaces come and go with their pods, and the kernel doesn't tell this program that one has gone. A total that stands
//! still is taken out of the map and kept here; a namespace whose drops go on later (or a new one with the same inode
//! number) goes on from there, so that no total ever goes down. It is not added to its node's own total: a reader would take
//! the sum for drops of the moment it was added. No IO, no clock.

use std::collections::HashMap;
use std::time::Duration;

use evidence::{BootTime, DropClass};

/// What is counted: drops of one class in one namespace.
pub(super) type Key = (u32, DropClass);

/// So long a total stands still until it is taken out of the map.
const STILL: Duration = Duration::from_secs(600);
/// In a map that is nearly full, totals that stand still for so long make room. Each was told several times.
const STILL_WHEN_FULL: Duration = Duration::from_secs(10);
/// Totals kept here of those taken out, 60 octets each.
const KEPT: usize = 16_384;

/// Packets, all and DNS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Packets {
    pub(super) all: u64,
    pub(super) dns: u64,
}

/// What was counted in the map, and before in elements that were taken out.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: HashMap<Key, Account>,
    /// Elements that the map has room for.
    room: usize,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    /// What elements counted that were taken out.
    before: Packets,
    /// What the element counts that is in the map now. None: there is none.
    element: Option<Packets>,
    changed: BootTime,
}

impl Packets {
    fn plus(self, other: Self) -> Self {
        Self { all: self.all.saturating_add(other.all), dns: self.dns.saturating_add(other.dns) }
    }
}

impl Ledger {
    pub(super) fn new(room: usize) -> Self {
        Self { accounts: HashMap::new(), room }
    }

    /// The whole of an element and those before it.
    pub(super) fn whole(&self, key: Key, element: Packets) -> Packets {
        self.accounts.get(&key).map_or(element, |account| account.before.plus(element))
    }

    /// Takes a reading of an element.
    pub(super) fn read(&mut self, key: Key, element: Packets, now: BootTime) {
        let new = Account { before: Packets::default(), element: None, changed: now };
        let account = self.accounts.entry(key).or_insert(new);
        if account.element != Some(element) {
            account.element = Some(element);
            account.changed = now;
        }
    }

    /// Elements that may be taken out, with what they counted: those that stand still, and when the map is three quarters
    /// full as many of the stillest as leave it half full. Never those of the namespaces to keep.
    pub(super) fn still(&self, keep: &[u32], now: BootTime) -> Vec<(Key, Packets)> {
        let mut elements: Vec<_> = self
            .accounts
            .iter()
            .filter_map(|(key, account)| Some((*key, account.element?, account.changed)))
            .collect();
        let surplus = if elements.len() > self.room / 4 * 3 { elements.len() - self.room / 2 } else { 0 };
        elements.retain(|((namespace, _), _, _)| !keep.contains(namespace));
        elements.sort_by_key(|(_, _, changed)| *changed);
        elements
            .into_iter()
            .enumerate()
            .filter(|(index, (_, _, changed))| {
                let still = now.since(*changed);
                still >= STILL || (*index < surplus && still >= STILL_WHEN_FULL)
            })
            .map(|(_, (key, element, _))| (key, element))
            .collect()
    }

    /// An element was taken out of the map with the count last read.
    pub(super) fn take_out(&mut self, key: Key) {
        if let Some(account) = self.accounts.get_mut(&key) {
            account.before = account.before.plus(account.element.take().unwrap_or_default());
        }
        let out = |account: &Account| account.element.is_none();
        if self.accounts.values().filter(|account| out(account)).count() > KEPT {
            let mut oldest: Vec<_> =
                self.accounts.values().filter(|a| out(a)).map(|account| account.changed).collect();
            oldest.sort_unstable();
            // Half of them at once, so that this is not done each time.
            let until = oldest.get(KEPT / 2).copied().unwrap_or(BootTime(0));
            self.accounts.retain(|_, account| !out(account) || account.changed > until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: DropClass = DropClass::Rule;
    const POD: Key = (7, RULE);

    fn at(secs: u64) -> BootTime {
        BootTime(secs * 1_000_000_000)
    }

    fn packets(all: u64, dns: u64) -> Packets {
        Packets { all, dns }
    }

    fn keys(ledger: &Ledger, keep: &[u32], now: u64) -> Vec<u32> {
        ledger.still(keep, at(now)).into_iter().map(|((namespace, _), _)| namespace).collect()
    }

    #[test]
    fn a_total_goes_on_where_its_element_was_taken_out() {
        let mut ledger = Ledger::new(1024);
        ledger.read(POD, packets(5, 2), at(1));
        assert_eq!(ledger.whole(POD, packets(5, 2)), packets(5, 2));
        assert_eq!(ledger.still(&[], at(601)), [(POD, packets(5, 2))]);
        ledger.take_out(POD);
        assert_eq!(ledger.still(&[], at(9999)), [], "it is out already");
        ledger.read(POD, packets(1, 1), at(700));
        assert_eq!(ledger.whole(POD, packets(1, 1)), packets(6, 3));
        ledger.take_out(POD);
        ledger.read(POD, packets(3, 0), at(2000));
        assert_eq!(ledger.whole(POD, packets(3, 0)), packets(9, 3));
        assert_eq!(ledger.whole((7, DropClass::TableFull), packets(4, 4)), packets(4, 4), "classes apart");
    }

    #[test]
    fn only_what_stands_still_for_ten_minutes_is_taken_out() {
        let mut ledger = Ledger::new(1024);
        for (second, count) in [(0, 1), (300, 2), (301, 2)] {
            ledger.read(POD, packets(count, count), at(second));
        }
        assert_eq!(keys(&ledger, &[], 899), [0; 0]);
        assert_eq!(keys(&ledger, &[], 900), [7]);
    }

    #[test]
    fn the_same_count_in_a_new_element_is_news() {
        let mut ledger = Ledger::new(1024);
        ledger.read(POD, packets(1, 1), at(0));
        ledger.take_out(POD);
        ledger.read(POD, packets(1, 1), at(600));
        assert_eq!(keys(&ledger, &[], 601), [0; 0]);
    }

    #[test]
    fn watched_nodes_are_kept_however_still_they_stand() {
        let mut ledger = Ledger::new(4);
        (0..4).for_each(|namespace| ledger.read((namespace, RULE), packets(1, 1), at(0)));
        assert_eq!(keys(&ledger, &[0, 1, 2, 3], 9999), [0; 0]);
    }

    #[test]
    fn a_map_nearly_full_makes_room_with_the_stillest() {
        let mut ledger = Ledger::new(8);
        (0..6).for_each(|n| ledger.read((n, RULE), packets(1, 1), at(u64::from(10 - n))));
        assert_eq!(keys(&ledger, &[], 100), [0; 0], "three quarters: room enough");
        ledger.read((6, RULE), packets(1, 1), at(95));
        assert_eq!(keys(&ledger, &[], 100), [5, 4, 3]);
        assert_eq!(keys(&ledger, &[5], 100), [4, 3, 2]);
        assert_eq!(keys(&ledger, &[], 15), [5], "the others changed just now");
    }

    #[test]
    fn totals_taken_out_are_forgotten_when_they_are_too_many() {
        let mut ledger = Ledger::new(1024);
        let most = u32::try_from(KEPT).unwrap();
        for namespace in 0..=most {
            ledger.read((namespace, RULE), packets(1, 1), at(u64::from(namespace)));
            ledger.take_out((namespace, RULE));
        }
        assert!(ledger.accounts.len() <= KEPT / 2, "{}", ledger.accounts.len());
        assert_eq!(ledger.whole((most, RULE), packets(1, 1)), packets(2, 2), "the youngest stay");
        assert_eq!(ledger.whole((0, RULE), packets(1, 1)), packets(1, 1));
    }
}
