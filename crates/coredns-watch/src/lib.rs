//! What do the DNS servers say of themselves?
//!
//! Every CoreDNS pod of the inventory is asked for its metrics page by address, from a given network
//! namespace, at a fixed interval and over a kept connection (`http.rs`). `text.rs` reads the page,
//! `account.rs` understands the metric names of all CoreDNS releases. A server that gives no page is told as
//! such and delays no other. Judging the figures is left to correlate.

mod account;
mod config;
pub mod http;
mod text;
mod watch;

pub use config::Config;
pub use watch::run;
