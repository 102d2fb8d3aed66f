//! How does evidence get from agents to the correlator, and the inventory back?
//!
//! HTTP/2 over TLS, one connection for each agent: POST /v1/batches with a bearer token, a gzip of what
//! [`evidence::wire`] writes. The token's reviewed identity (`reviewer.rs`) binds what a batch may tell (`binding.rs`).
//!
//! | side | files |
//! |---|---|
//! | agent | `gather.rs` reports to batches, `spool.rs` what waits, `line.rs` one connection, `courier.rs` the loop |
//! | correlator | `server.rs` connections, `desk.rs` one request, `reviews.rs` known tokens, `api_server.rs` who reviews them, `token_file.rs` who does outside Kubernetes, `ledger.rs` what was taken, `outlook.rs` a node's inventory, `roster.rs` what probers may do, `authority.rs` its certificate authority, `certificate.rs` what it shows, `vouch.rs` how both go on for years |
//! | both | `pack.rs` compression, `figures.rs` metrics, `refusal.rs` what is not taken |

pub mod api_server;
pub mod authority;
pub mod binding;
pub mod certificate;
pub mod courier;
pub mod desk;
pub mod figures;
pub mod gather;
pub mod ledger;
pub mod line;
pub mod outlook;
pub mod pack;
pub mod refusal;
pub mod reviewer;
pub mod reviews;
pub mod roster;
pub mod server;
pub mod spool;
pub mod token_file;
pub mod vouch;

pub use reviewer::{Identity, Refused, Reviewer, Reviewing};
