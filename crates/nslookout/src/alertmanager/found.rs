//! What do Services say of Alertmanagers?

use super::target::Target;
use crate::status::Note;

/// All that is known now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The endpoints of all Services.
    pub alertmanagers: Vec<FoundOne>,
    /// What is wrong with some of the Services.
    pub notes: Vec<Note>,
}

/// An endpoint of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOne {
    /// Where it is.
    pub target: Target,
    /// The Service, as "namespace/name".
    pub service: String,
    /// Its pod, as "namespace/name".
    pub pod: Option<String>,
    /// Whether it serves. One that does not is told still if it was told before: it would resolve what fires.
    pub serving: bool,
}

/// Tells in the log what is new among notes, once, and what is over.
pub fn log(before: &[Note], now: &[Note]) {
    for Note { about, what, mend } in now.iter().filter(|note| !before.contains(note)) {
        tracing::warn!("{about}: {what} → {mend}");
    }
    let is_over = |old: &&Note| now.iter().all(|note| note.about != old.about);
    for Note { about, .. } in before.iter().filter(is_over) {
        tracing::info!("{about}: mended");
    }
}
