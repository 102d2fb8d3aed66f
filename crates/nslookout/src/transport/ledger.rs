//! Which batches have been taken? One that is sent again, because its answer was lost, counts once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use evidence::Role;
use evidence::wire::Parcel;

/// The last sequence of each sender's life.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<(String, Role), VecDeque<Life>>>);

#[derive(Debug)]
struct Life {
    number: u64,
    sequence: u64,
}

impl Ledger {
    /// Whether the parcel is news, and the last sequence of its life. A sender sends in order, so that all up to the last
    /// one has been there, or will never come.
    pub fn take(&self, parcel: &Parcel) -> (bool, u64) {
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = (parcel.batch.node.clone(), parcel.batch.role);
        if senders.len() >= MOST_SENDERS && !senders.contains_key(&sender) {
            let any = senders.keys().next().cloned();
            any.map(|any| senders.remove(&any));
        }
        let lives = senders.entry(sender).or_default();
        let sequence = parcel.batch.sequence;
        match lives.iter_mut().find(|life| life.number == parcel.life) {
            Some(life) if sequence <= life.sequence => (false, life.sequence),
            Some(life) => {
                life.sequence = sequence;
                (true, sequence)
            }
            None => {
                if lives.len() >= MOST_LIVES {
                    lives.pop_front();
                }
                lives.push_back(Life { number: parcel.life, sequence });
                (true, sequence)
            }
        }
    }
}

/// More than two parts of the largest cluster's nodes.
const MOST_SENDERS: usize = 65_536;

/// A restarted sender's last batches may still be on their way.
const MOST_LIVES: usize = 4;

#[cfg(test)]
mod tests {
    use evidence::{Batch, BootTime, ClockReading, WallTime};

    use super::*;

    fn parcel(node: &str, life: u64, sequence: u64) -> Parcel {
        let batch = Batch {
            node: node.into(),
            role: Role::Node,
            boot_id: String::new(),
            sequence,
            clock: ClockReading { boot: BootTime(0), wall: WallTime(0) },
            from: BootTime(0),
            to: BootTime(0),
            observations: vec![],
            coverage: vec![],
        };
        Parcel { life, batch }
    }

    #[test]
    fn a_batch_that_comes_again_is_no_news_and_a_new_life_begins_anew() {
        let ledger = Ledger::default();
        for (node, life, sequence, expected) in [
            ("a", 1, 1, (true, 1)),
            ("a", 1, 2, (true, 2)),
            ("a", 1, 2, (false, 2)),
            ("a", 1, 1, (false, 2)),
            ("b", 1, 1, (true, 1)),
            ("a", 1, 9, (true, 9)),
            ("a", 2, 1, (true, 1)),
            ("a", 1, 9, (false, 9)),
        ] {
            assert_eq!(ledger.take(&parcel(node, life, sequence)), expected, "{node} {life} {sequence}");
        }
    }
}
