//! nslookout as a library: configuration, wiring, delivery. The binary is a thin command line on it.

pub mod agent;
pub mod alertmanager;
pub mod alerts;
pub mod alive;
pub mod check;
pub mod config;
pub mod correlator;
pub mod explain;
pub mod http;
mod http_client;
pub mod inventory;
pub mod kubernetes;
pub mod metrics;
pub mod observers;
pub mod pipeline;
pub mod probes;
pub mod run;
pub mod status;
pub mod store;
pub mod transport;
