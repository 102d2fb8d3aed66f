//! What are the messages on the wire? Tags are for ever: a field that goes leaves a gap.
//!
//! Numbers of enums are in `numbers.rs`, bytes of addresses in `address.rs`. Times are nanoseconds as in the crate.

use std::collections::BTreeMap;

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parcel {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(fixed64, tag = "2")]
    pub life: u64,
    #[prost(string, tag = "3")]
    pub node: String,
    #[prost(uint32, tag = "4")]
    pub role: u32,
    #[prost(string, tag = "5")]
    pub boot_id: String,
    #[prost(uint64, tag = "6")]
    pub sequence: u64,
    #[prost(uint64, tag = "7")]
    pub clock_boot: u64,
    #[prost(int64, tag = "8")]
    pub clock_wall: i64,
    #[prost(uint64, tag = "9")]
    pub from: u64,
    #[prost(uint64, tag = "10")]
    pub to: u64,
    #[prost(message, repeated, tag = "11")]
    pub observations: Vec<Observation>,
    #[prost(message, repeated, tag = "12")]
    pub coverage: Vec<Coverage>,
}

/// Where a parcel's repeated entries are, to count them before they are made.
pub(super) const ENTRY_TAGS: [u32; 2] = [11, 12];

#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(message, optional, tag = "3")]
    pub outlook: Option<Outlook>,
    #[prost(message, optional, tag = "4")]
    pub duty: Option<Duty>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Duty {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub direct: Vec<Vec<u8>>,
    #[prost(uint32, tag = "2")]
    pub extra_in_1000_s: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Outlook {
    #[prost(fixed64, tag = "1")]
    pub tag: u64,
    #[prost(uint64, tag = "2")]
    pub age_ms: u64,
    #[prost(message, optional, tag = "3")]
    pub inventory: Option<Inventory>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Observation {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "1")]
    Attempt(Attempt),
    #[prost(message, tag = "2")]
    Lookup(Lookup),
    #[prost(message, tag = "3")]
    KernelDrop(KernelDrop),
    #[prost(message, tag = "4")]
    DropTotals(DropTotals),
    #[prost(message, tag = "5")]
    Mapping(Mapping),
    #[prost(message, tag = "6")]
    Counters(Counters),
    #[prost(message, tag = "7")]
    ServerSample(ServerSample),
    #[prost(message, tag = "8")]
    Inventory(Inventory),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attempt {
    #[prost(uint64, tag = "1")]
    pub lookup: u64,
    #[prost(string, tag = "2")]
    pub vantage: String,
    #[prost(string, tag = "3")]
    pub profile: String,
    #[prost(bytes = "vec", tag = "4")]
    pub server: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub role: u32,
    #[prost(bytes = "vec", tag = "6")]
    pub source: Vec<u8>,
    #[prost(uint32, tag = "7")]
    pub query_id: u32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(uint32, tag = "9")]
    pub name_kind: u32,
    #[prost(uint32, tag = "10")]
    pub query_type: u32,
    #[prost(uint64, tag = "11")]
    pub sent: u64,
    #[prost(oneof = "AttemptResult", tags = "12, 13, 14, 15")]
    pub result: Option<AttemptResult>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AttemptResult {
    #[prost(message, tag = "12")]
    Answered(Answered),
    #[prost(uint64, tag = "13")]
    UnansweredNs(u64),
    #[prost(int32, tag = "14")]
    UnreachableErrno(i32),
    #[prost(int32, tag = "15")]
    SendRefusedErrno(i32),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Answered {
    #[prost(uint32, tag = "1")]
    pub rcode: u32,
    #[prost(uint64, tag = "2")]
    pub wait_ns: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Lookup {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub vantage: String,
    #[prost(string, tag = "3")]
    pub profile: String,
    #[prost(bytes = "vec", tag = "4")]
    pub server: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub role: u32,
    #[prost(string, tag = "6")]
    pub name: String,
    #[prost(uint32, tag = "7")]
    pub name_kind: u32,
    #[prost(uint64, tag = "8")]
    pub started: u64,
    #[prost(uint64, tag = "9")]
    pub ended: u64,
    #[prost(uint32, tag = "10")]
    pub outcome: u32,
    #[prost(uint32, tag = "11")]
    pub packets: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tuple {
    #[prost(bytes = "vec", tag = "1")]
    pub source: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub destination: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Place {
    #[prost(oneof = "Whose", tags = "1, 2")]
    pub whose: Option<Whose>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Whose {
    #[prost(string, tag = "1")]
    Node(String),
    #[prost(uint32, tag = "2")]
    Namespace(u32),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Question {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Zero for another type than A and AAAA.
    #[prost(uint32, tag = "3")]
    pub query_type: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct KernelDrop {
    #[prost(uint64, tag = "1")]
    pub at: u64,
    #[prost(message, optional, tag = "2")]
    pub place: Option<Place>,
    #[prost(uint32, tag = "3")]
    pub class: u32,
    #[prost(uint32, tag = "4")]
    pub protocol: u32,
    #[prost(message, optional, tag = "5")]
    pub packet: Option<Tuple>,
    #[prost(message, optional, tag = "6")]
    pub original: Option<Tuple>,
    #[prost(message, optional, tag = "7")]
    pub reply: Option<Tuple>,
    #[prost(string, optional, tag = "8")]
    pub interface: Option<String>,
    #[prost(uint32, tag = "9")]
    pub mark: u32,
    #[prost(message, optional, tag = "10")]
    pub question: Option<Question>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DropTotals {
    #[prost(message, optional, tag = "1")]
    pub place: Option<Place>,
    #[prost(uint32, tag = "2")]
    pub class: u32,
    #[prost(uint64, tag = "3")]
    pub all: u64,
    #[prost(uint64, tag = "4")]
    pub dns: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Counters {
    #[prost(string, tag = "1")]
    pub node: String,
    #[prost(uint64, tag = "2")]
    pub at: u64,
    #[prost(uint64, tag = "3")]
    pub found: u64,
    #[prost(uint64, tag = "4")]
    pub invalid: u64,
    #[prost(uint64, tag = "5")]
    pub insert_failed: u64,
    #[prost(uint64, tag = "6")]
    pub drop: u64,
    #[prost(uint64, tag = "7")]
    pub early_drop: u64,
    #[prost(uint64, tag = "8")]
    pub clash_resolve: u64,
    #[prost(uint64, tag = "9")]
    pub chain_toolong: u64,
    #[prost(uint64, tag = "10")]
    pub entries: u64,
    #[prost(uint64, tag = "11")]
    pub max: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mapping {
    #[prost(string, tag = "1")]
    pub node: String,
    #[prost(uint64, tag = "2")]
    pub at: u64,
    #[prost(uint32, tag = "3")]
    pub protocol: u32,
    #[prost(message, optional, tag = "4")]
    pub original: Option<Tuple>,
    #[prost(bytes = "vec", tag = "5")]
    pub backend: Vec<u8>,
    #[prost(fixed32, tag = "6")]
    pub id: u32,
    #[prost(bool, tag = "7")]
    pub replied: bool,
    #[prost(uint32, tag = "8")]
    pub expires_secs: u32,
    #[prost(uint64, optional, tag = "9")]
    pub renewed: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Upstream {
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(btree_map = "string, uint64", tag = "2")]
    pub responses: BTreeMap<String, u64>,
    #[prost(uint64, tag = "3")]
    pub healthcheck_failures: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ServerSample {
    #[prost(bytes = "vec", tag = "1")]
    pub server: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub at: u64,
    #[prost(uint64, tag = "3")]
    pub started_unix_secs: u64,
    #[prost(uint64, tag = "4")]
    pub requests: u64,
    #[prost(btree_map = "string, uint64", tag = "5")]
    pub responses: BTreeMap<String, u64>,
    #[prost(message, repeated, tag = "6")]
    pub upstreams: Vec<Upstream>,
    #[prost(uint64, tag = "7")]
    pub all_upstreams_broken: u64,
    #[prost(uint64, tag = "8")]
    pub panics: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Inventory {
    #[prost(string, tag = "1")]
    pub service_name: String,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub service_addresses: Vec<Vec<u8>>,
    #[prost(bool, tag = "3")]
    pub service_is_virtual: bool,
    #[prost(message, repeated, tag = "4")]
    pub endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "5")]
    pub pods: Vec<Pod>,
    #[prost(message, repeated, tag = "6")]
    pub nodes: Vec<Zoned>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub address: Vec<u8>,
    #[prost(string, optional, tag = "3")]
    pub node: Option<String>,
    #[prost(bool, tag = "4")]
    pub serving: bool,
    #[prost(bool, tag = "5")]
    pub leaving: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Pod {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub addresses: Vec<Vec<u8>>,
    #[prost(string, optional, tag = "3")]
    pub node: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub workload: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Zoned {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, optional, tag = "2")]
    pub zone: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Coverage {
    #[prost(uint32, tag = "1")]
    pub observer: u32,
    #[prost(string, tag = "2")]
    pub place: String,
    #[prost(oneof = "CoverageState", tags = "3, 4, 5")]
    pub state: Option<CoverageState>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum CoverageState {
    #[prost(uint64, tag = "3")]
    LookedLost(u64),
    #[prost(string, tag = "4")]
    DeniedMissing(String),
    #[prost(string, tag = "5")]
    UnsupportedWhy(String),
}
