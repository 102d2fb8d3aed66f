//! What waits for the correlator? Batches in their order, so many and so large at most; the oldest has to go first.

use std::collections::VecDeque;

use bytes::Bytes;

/// A batch as it will be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its number in this life.
    pub sequence: u64,
    /// Packed.
    pub bytes: Bytes,
    /// Records that would be lost with it.
    pub records: u64,
    /// Earlier losses that it tells of: nobody would hear of them.
    pub tells: u64,
}

/// Batches that wait.
#[derive(Debug)]
pub struct Spool {
    letters: VecDeque<Letter>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

/// What had to go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Batches.
    pub letters: u64,
    /// Records in them.
    pub records: u64,
    /// Earlier losses that they would have told of.
    pub tells: u64,
}

impl Spool {
    /// Nothing waits.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { letters: VecDeque::new(), bytes: 0, most: most.max(1), most_bytes }
    }

    /// Puts a letter last, and makes room for it at the other end. One that is too large by itself goes all the same.
    pub fn push(&mut self, letter: Letter) -> Dropped {
        let mut dropped = Dropped::default();
        self.bytes += letter.bytes.len();
        self.letters.push_back(letter);
        while self.letters.len() > self.most || (self.bytes > self.most_bytes && self.letters.len() > 1) {
            let Some(oldest) = self.pop() else { break };
            dropped.letters += 1;
            dropped.records = dropped.records.saturating_add(oldest.records);
            dropped.tells = dropped.tells.saturating_add(oldest.tells);
        }
        dropped
    }

    /// The letter to be sent next.
    pub fn first(&self) -> Option<&Letter> {
        self.letters.front()
    }

    /// Takes out what the correlator has: all up to that sequence.
    pub fn accepted(&mut self, sequence: u64) -> u64 {
        let mut count = 0;
        while self.first().is_some_and(|letter| letter.sequence <= sequence) {
            self.pop();
            count += 1;
        }
        count
    }

    /// Takes out the letter of that sequence if it is the next one still.
    pub fn remove(&mut self, sequence: u64) -> Option<Letter> {
        if self.first().is_some_and(|letter| letter.sequence == sequence) { self.pop() } else { None }
    }

    /// Letters that wait.
    pub fn len(&self) -> usize {
        self.letters.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn pop(&mut self) -> Option<Letter> {
        let letter = self.letters.pop_front()?;
        self.bytes = self.bytes.saturating_sub(letter.bytes.len());
        Some(letter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(sequence: u64, size: usize) -> Letter {
        Letter { sequence, bytes: vec![0; size].into(), records: 10, tells: 1 }
    }

    #[test]
    fn the_oldest_goes_first_by_count_and_by_bytes() {
        let mut spool = Spool::new(3, 100);
        for sequence in 1..=3 {
            assert_eq!(spool.push(letter(sequence, 10)), Dropped::default());
        }
        assert_eq!(spool.push(letter(4, 10)), Dropped { letters: 1, records: 10, tells: 1 });
        assert_eq!(spool.push(letter(5, 90)), Dropped { letters: 2, records: 20, tells: 2 });
        assert_eq!((spool.len(), spool.bytes(), spool.first().unwrap().sequence), (2, 100, 4));
        assert_eq!(spool.push(letter(6, 1000)).letters, 2);
        assert_eq!((spool.len(), spool.bytes()), (1, 1000));
    }

    #[test]
    fn what_is_accepted_goes_and_nothing_else() {
        let mut spool = Spool::new(9, 100);
        for sequence in [2, 3, 5] {
            spool.push(letter(sequence, 1));
        }
        assert_eq!(spool.accepted(1), 0);
        assert_eq!(spool.accepted(3), 2);
        assert_eq!(spool.remove(4), None);
        assert_eq!(spool.remove(5).unwrap().sequence, 5);
        assert!(spool.is_empty());
        assert_eq!(spool.bytes(), 0);
    }
}
