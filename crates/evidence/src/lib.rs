//! What can be said about a cluster's DNS, as data.
//!
//! Observers (prober, conntrack-watch, coredns-watch, the inventory) put what they saw into a
//! [`Batch`]; correlate reads batches and nothing else. Types here are plain serde values: a batch can
//! be written down as JSON and replayed. No IO but the reading of clocks.

mod batch;
mod clock;
mod conntrack;
mod coverage;
mod inventory;
mod lookup;
mod server;
pub mod wire;

pub use batch::{Batch, Observation, Report, Role};
pub use clock::{BootTime, ClockReading, WallTime};
pub use conntrack::{
    Counters, DnsQuestion, DropClass, DropTotals, KernelDrop, Mapping, Place, Protocol, Tuple,
};
pub use coverage::{Coverage, CoverageState, Observer};
pub use inventory::{DnsService, Endpoint, Inventory, Node, Pod};
pub use lookup::{Attempt, AttemptResult, Lookup, LookupId, NameKind, Outcome, QueryType, ServerRole};
pub use server::{ServerSample, Upstream};
