//! Which objects of one kind are there now?

use std::collections::BTreeMap;

use super::watches::Change;
use crate::inventory::list::MAX_OBJECTS;

/// The objects by "namespace/name". While they are listed anew the old ones stay, so that an outage empties nothing.
#[derive(Debug)]
pub(super) struct Store<T> {
    objects: BTreeMap<String, (u64, T)>,
    /// The number of the list that is being read or was read last.
    round: u64,
    listing: bool,
    listed: bool,
    /// Objects that found no room since the last list began.
    lost: u64,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), round: 0, listing: false, listed: false, lost: 0 }
    }
}

impl<T: PartialEq> Store<T> {
    /// Takes a change. True if the present state differs for it.
    pub(super) fn take(&mut self, change: Change<T>) -> bool {
        match change {
            Change::Begin => {
                self.round += 1;
                self.listing = true;
                self.lost = 0;
                false
            }
            Change::Listed(key, object) | Change::Set(key, object) => match object {
                Some(object) => self.set(key, object),
                None => self.objects.remove(&key).is_some(),
            },
            Change::Gone(key) => self.objects.remove(&key).is_some(),
            Change::Done => {
                let before = (self.objects.len(), self.listed);
                self.objects.retain(|_, (round, _)| *round == self.round);
                self.listed = true;
                self.listing = false;
                before != (self.objects.len(), true)
            }
        }
    }

    fn set(&mut self, key: String, object: T) -> bool {
        if self.objects.len() >= MAX_OBJECTS && !self.objects.contains_key(&key) {
            self.lost += 1;
            return false;
        }
        let differs = self.objects.get(&key).is_none_or(|(_, known)| *known != object);
        self.objects.insert(key, (self.round, object));
        differs
    }

    /// The objects, by name.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.objects.values().map(|(_, object)| object)
    }

    /// One object.
    pub(super) fn by_name(&self, key: &str) -> Option<&T> {
        self.objects.get(key).map(|(_, object)| object)
    }

    /// Whether all of them were read once.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// Whether they are followed, and not being listed.
    pub(super) fn is_quiet(&self) -> bool {
        self.listed && !self.listing
    }

    /// Objects that found no room.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str, value: u8) -> Change<u8> {
        Change::Listed(key.to_owned(), Some(value))
    }

    #[test]
    fn a_new_list_keeps_the_old_state_until_it_is_whole() {
        let mut store = Store::default();
        for change in [Change::Begin, listed("a", 1), listed("b", 2), Change::Done] {
            store.take(change);
        }
        assert!(store.is_listed());
        assert!(!store.take(Change::Begin));
        assert!(!store.take(listed("b", 2)), "nothing is new");
        assert_eq!(store.values().count(), 2, "a may still come");
        assert!(store.take(Change::Done));
        assert_eq!(store.values().collect::<Vec<_>>(), [&2]);
    }

    #[test]
    fn an_object_that_no_longer_matters_goes() {
        let mut store = Store::default();
        assert!(store.take(Change::Set("a".into(), Some(1))));
        assert!(!store.take(Change::Set("a".into(), Some(1))));
        assert!(store.take(Change::Set("a".into(), None)));
        assert!(!store.take(Change::Gone("a".into())));
    }
}
