//! From evidence to verdicts: who suffers, why, what proves it, what mends it.
//!
//! [`Correlator::observe`] takes batches, [`Correlator::tick`] gives what changed. No IO, no clock of its own:
//! the caller says what time it is, so every decision can be replayed in a test.
//!
//! A failed or crawling lookup, a lost DNS packet and a mapping that leads nowhere are symptoms
//! (`symptom.rs`). Each gets exactly one cause (`causes/`, one file each) or is counted as unexplained.
//! The symptoms of one cause are one incident (`incident.rs`; `incidents.rs` says when it opens and closes).

mod causes;
mod config;
mod correlator;
mod fates;
mod incident;
mod incidents;
mod open;
mod servers;
mod sight;
mod snapshot;
mod symptom;
#[cfg(test)]
mod testing;
mod view;

pub use causes::{Cause, all as causes, by_id as cause};
pub use config::Config;
pub use correlator::{Blind, Correlator};
pub use incident::{Confidence, Explained, Incident, NotSeen, RuledOut, Scope, Severity, Suffers};
pub use incidents::Change;
pub use snapshot::Snapshot;
pub use view::time_of_day;
