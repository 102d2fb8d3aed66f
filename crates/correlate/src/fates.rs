//! What became of each troubled lookup? It fails now and ends later, or the other way round.

use std::collections::{HashMap, VecDeque};

use evidence::WallTime;

use crate::symptom::{Symptom, TroubledLookup};
use crate::view::Ended;

/// The last troubled lookups, by vantage and number; the oldest are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Fates {
    map: HashMap<Key, Fate>,
    order: VecDeque<Key>,
}

type Key = (String, u64);

#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    cause: Option<&'static str>,
    /// When it ended, and whether with an answer.
    ended: Option<(WallTime, bool)>,
}

impl Fates {
    /// Whether a cause was found for it.
    pub fn has_cause(&self, vantage: &str, number: u64) -> bool {
        self.map.get(&(vantage.to_owned(), number)).is_some_and(|fate| fate.cause.is_some())
    }

    /// A cause was found.
    pub fn set_cause(&mut self, lookup: &TroubledLookup, cause: &'static str) {
        self.entry((lookup.vantage.clone(), lookup.id.0)).cause = Some(cause);
    }

    /// It ended. Gives its cause, if it was in trouble and has one.
    pub fn end(&mut self, ended: &Ended, answered: bool, troubled: bool) -> Option<&'static str> {
        let key = (ended.lookup.vantage.clone(), ended.lookup.id.0);
        if !troubled && !self.map.contains_key(&key) {
            return None;
        }
        let fate = self.entry(key);
        fate.ended = Some((ended.ended, answered));
        fate.cause
    }

    /// When the symptom's lookup ended, and whether with an answer.
    pub fn end_of(&self, symptom: &Symptom) -> Option<(WallTime, bool)> {
        let lookup = symptom.lookup()?;
        self.map.get(&(lookup.vantage.clone(), lookup.id.0))?.ended
    }

    fn entry(&mut self, key: Key) -> &mut Fate {
        if !self.map.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
        }
        self.map.entry(key).or_default()
    }
}

const MOST: usize = 8192;
