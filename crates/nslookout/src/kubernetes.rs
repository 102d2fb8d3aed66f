//! What does the API server say of DNS, and how is it asked while DNS is dead?
//!
//! The correlator alone asks it. `connect.rs` reaches it by address, `watches.rs` follows Services, EndpointSlices,
//! pods and nodes, `source.rs` makes the inventory of them.

mod connect;
mod health;
mod notes;
mod source;
mod store;
mod trouble;
mod watches;

pub use connect::{ApiServer, ConnectError, Pod, connect};
pub(crate) use source::follow;
