//! What does the API server say of DNS, and how is it asked while DNS is dead?
//!
//! The correlator alone asks it. `connect.rs` reaches it by address, `watches.rs` follows Services, EndpointSlices,
//! pods and nodes, `source.rs` makes the inventory of them. `reviewer.rs` says who it is that shows a service account
//! token, `authority.rs` keeps the certificate authority. `alertmanagers.rs` finds Alertmanagers by their Services,
//! `pager.rs` says which of them need cluster DNS themselves.

mod alertmanagers;
mod authority;
mod connect;
mod health;
mod jwks;
mod notes;
mod pager;
mod reviewer;
mod source;
mod store;
mod token;
mod token_review;
mod trouble;
mod watches;

pub use alertmanagers::know as alertmanagers;
pub use authority::Keeper;
pub use connect::{ApiServer, ConnectError, Pod, connect};
pub use jwks::{Keys, Published};
pub use reviewer::Reviewer;
pub(crate) use source::follow;
pub use token::{Expected, Identity, Refusal};
pub use token_review::review;
