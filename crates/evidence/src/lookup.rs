//! A lookup as an application would make it, and each packet of it that tells something.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::BootTime;

/// Number of a lookup, unique within one prober's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LookupId(pub u64);

/// What was asked: the Service's address, or one server directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServerRole {
    /// The address that resolv.conf names: in Kubernetes a ClusterIP.
    Service,
    /// One DNS server by its own address.
    Direct,
}

/// Who must know the answer: the server itself, or an upstream of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NameKind {
    /// A name of the cluster's own zone.
    Cluster,
    /// A name that the server forwards.
    Forwarded,
}

/// The two record types of an address lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QueryType {
    /// IPv4 address, type 1.
    A,
    /// IPv6 address, type 28.
    #[serde(rename = "AAAA")]
    Aaaa,
}

/// What became of one query of a lookup, as known when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum AttemptResult {
    /// An answer came that the profile accepts or counts as a server's error.
    Answered {
        /// The DNS response code.
        rcode: u8,
        /// From sending to the kernel's receive timestamp, in nanoseconds.
        wait_ns: u64,
    },
    /// No answer for so long; sent once the wait reaches one second.
    Unanswered {
        /// The wait so far in nanoseconds.
        wait_ns: u64,
    },
    /// ICMP said unreachable (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH on the socket).
    Unreachable {
        /// The errno.
        errno: i32,
    },
    /// The kernel refused to send (EPERM where a rule dropped it in OUTPUT).
    SendRefused {
        /// The errno.
        errno: i32,
    },
}

/// One query packet of a lookup. Only the tell-tale ones are reported: an error, a silence of a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The lookup it belongs to.
    pub lookup: LookupId,
    /// The vantage's name.
    pub vantage: String,
    /// The profile's name.
    pub profile: String,
    /// Where it was sent.
    pub server: SocketAddr,
    /// Whether that is the Service or a server itself.
    pub role: ServerRole,
    /// The socket's own address, as the kernel chose it.
    pub source: SocketAddr,
    /// The query's ID.
    pub query_id: u16,
    /// The name asked for, with its trailing dot.
    pub name: String,
    /// Who must know it.
    pub name_kind: NameKind,
    /// The type asked for.
    pub qtype: QueryType,
    /// When it was sent.
    pub sent: BootTime,
    /// What became of it.
    #[serde(flatten)]
    pub result: AttemptResult,
}

/// What the application would be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Addresses.
    Addresses,
    /// The name does not exist (EAI_NONAME). An answer, not a failure of DNS.
    NoName,
    /// The name has no address (EAI_NODATA). An answer, not a failure of DNS.
    NoData,
    /// EAI_AGAIN: nobody gave a usable answer in time.
    TryAgain,
    /// EAI_FAIL: a server's final refusal.
    Failed,
}

impl Outcome {
    /// Whether the application got an answer, be it that there is none.
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Addresses | Self::NoName | Self::NoData)
    }

    /// The name in JSON and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::NoName => "noName",
            Self::NoData => "noData",
            Self::TryAgain => "tryAgain",
            Self::Failed => "failed",
        }
    }
}

/// A lookup that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lookup {
    /// Its number.
    pub id: LookupId,
    /// The vantage's name.
    pub vantage: String,
    /// The profile's name.
    pub profile: String,
    /// The server asked (first, where there are several).
    pub server: SocketAddr,
    /// Whether that is the Service or a server itself.
    pub role: ServerRole,
    /// The name asked for, with its trailing dot.
    pub name: String,
    /// Who must know it.
    pub name_kind: NameKind,
    /// When the application called.
    pub started: BootTime,
    /// When the application got its result.
    pub ended: BootTime,
    /// The result.
    pub outcome: Outcome,
    /// Query packets sent.
    pub packets: u32,
}

impl QueryType {
    /// The name in zone files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
        }
    }
}
