//! Who was told what, over restarts?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::letter::Told;

/// What each Alertmanager, or each group of them, has taken; shared with the tasks that tell them.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<String, Arc<Mutex<Told>>>>>);

/// A ledger as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldAll(BTreeMap<String, Told>);

impl Ledger {
    /// As it was kept.
    pub fn restored(all: ToldAll) -> Self {
        let books = all.0.into_iter().take(MOST).map(|(group, told)| (group, Arc::new(Mutex::new(told))));
        Self(Arc::new(Mutex::new(books.collect())))
    }

    /// To be kept.
    pub fn all(&self) -> ToldAll {
        let books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |book: &Arc<Mutex<Told>>| book.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ToldAll(books.iter().map(|(group, book)| (group.clone(), told(book))).collect())
    }

    /// The book of one group.
    pub(super) fn of(&self, group: &str) -> Arc<Mutex<Told>> {
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        books.entry(group.to_owned()).or_default().clone()
    }
}

/// More than there can be Alertmanagers.
const MOST: usize = 128;
