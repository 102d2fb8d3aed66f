//! What a DNS server says of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::BootTime;

/// One upstream as CoreDNS's forward plugin counts it; cumulative since the server's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// Its address as the server prints it.
    pub address: String,
    /// Answers by response code name ("NOERROR", "SERVFAIL").
    pub responses: BTreeMap<String, u64>,
    /// Health checks that failed.
    pub healthcheck_failures: u64,
}

/// One reading of a server's metrics; counters are cumulative since the server's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSample {
    /// The server's DNS address, as in the inventory.
    pub server: SocketAddr,
    /// When it was read.
    pub at: BootTime,
    /// process_start_time_seconds, to tell a restart; zero where the server has it not.
    pub started_unix_secs: u64,
    /// Queries received.
    pub requests: u64,
    /// Answers by response code name.
    pub responses: BTreeMap<String, u64>,
    /// Upstreams by address.
    pub upstreams: Vec<Upstream>,
    /// Times when every upstream failed its health check.
    pub all_upstreams_broken: u64,
    /// Panics recovered.
    pub panics: u64,
}
