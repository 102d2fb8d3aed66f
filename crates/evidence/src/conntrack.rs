//! What the kernel did to DNS packets: drops with their tuple and class, mappings, counters.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{BootTime, QueryType};

/// Transport protocol of a packet or conntrack entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Number 17.
    Udp,
    /// Number 6.
    Tcp,
}

/// Source and destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
}

/// Why a packet died, by the kernel's own counters of the same CPU and namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropClass {
    /// insert_failed and drop rose: a clash at the entry's insertion.
    InsertRace,
    /// drop alone rose and the packet has no entry: the table is full.
    TableFull,
    /// chaintoolong rose: the hash chain is too long.
    ChainTooLong,
    /// drop alone rose and the packet has an entry: the protocol's tracker refused it.
    TrackerRefused,
    /// No counter rose: a netfilter rule dropped it.
    Rule,
    /// The counters had no base line for this namespace and CPU, or moved by more than one packet.
    Unknown,
}

/// The namespace in which a packet died.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A node's own network namespace, by the node's name.
    Node(String),
    /// Another namespace of the same kernel (a pod's), by its inode.
    Namespace(u32),
}

/// The question of a DNS query packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuestion {
    /// The query's ID.
    pub id: u16,
    /// The name, with its trailing dot.
    pub name: String,
    /// The type, where it is A or AAAA.
    pub qtype: Option<QueryType>,
}

/// One DNS packet that the kernel dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelDrop {
    /// When.
    pub at: BootTime,
    /// Where.
    pub place: Place,
    /// Why.
    pub class: DropClass,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The packet's tuple as it died (after DNAT where that had happened).
    pub packet: Tuple,
    /// The entry's original tuple (before NAT), where the packet had an entry.
    pub original: Option<Tuple>,
    /// The reply tuple that the entry wanted: what another entry held, for an insert race.
    pub reply: Option<Tuple>,
    /// Name of the interface, where the packet had one.
    pub interface: Option<String>,
    /// The packet's mark.
    pub mark: u32,
    /// Its question, where it could be read.
    pub question: Option<DnsQuestion>,
}

/// Drops of one namespace and class since the helper was loaded, from per-CPU kernel maps: exact even
/// when single records were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropTotals {
    /// Where.
    pub place: Place,
    /// Why.
    pub class: DropClass,
    /// Packets of all protocols.
    pub all: u64,
    /// Of these, DNS packets.
    pub dns: u64,
}

/// Conntrack counters of one namespace, summed over its CPUs, cumulative since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// The node's name.
    pub node: String,
    /// When they were read.
    pub at: BootTime,
    /// NAT probed a tuple that was taken.
    pub found: u64,
    /// Packets that no tracker would take.
    pub invalid: u64,
    /// Insertions refused (clash or chain too long).
    pub insert_failed: u64,
    /// Packets dropped: unresolved clash, table full, tracker's refusal.
    pub drop: u64,
    /// Entries evicted to make room.
    pub early_drop: u64,
    /// Clashes resolved.
    pub clash_resolve: u64,
    /// Insertions refused for a long hash chain.
    pub chain_toolong: u64,
    /// Entries in the table.
    pub entries: u64,
    /// The most entries allowed.
    pub max: u64,
}

/// A conntrack entry of DNS whose backend serves the client's packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    /// The node whose table has it.
    pub node: String,
    /// When the table was read.
    pub at: BootTime,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The client's view: client to Service.
    pub original: Tuple,
    /// Where packets really go: the source of the reply tuple.
    pub backend: SocketAddr,
    /// The kernel's id of the entry.
    pub id: u32,
    /// Whether a reply was ever seen (IPS_SEEN_REPLY).
    pub replied: bool,
    /// Seconds until it expires unless a packet renews it.
    pub expires_secs: u32,
    /// When its remaining time was last seen to have risen between two dumps: the client still uses it.
    pub renewed: Option<BootTime>,
}

impl Protocol {
    /// The name in rules and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

impl DropClass {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::InsertRace,
        Self::TableFull,
        Self::ChainTooLong,
        Self::TrackerRefused,
        Self::Rule,
        Self::Unknown,
    ];

    /// The label value of metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InsertRace => "insert-race",
            Self::TableFull => "table-full",
            Self::ChainTooLong => "chain-too-long",
            Self::TrackerRefused => "tracker-refused",
            Self::Rule => "rule",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.source, self.destination)
    }
}
