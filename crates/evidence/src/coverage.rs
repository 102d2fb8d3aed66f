//! Who looked where, and how well. "Could not look", "looked and saw nothing" and "does not apply"
//! are three different answers; a cause is ruled out only where its observers looked and lost nothing.

use serde::{Deserialize, Serialize};

/// A kind of evidence that can be there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observer {
    /// Lookups made as an application would.
    Prober,
    /// Per-CPU conntrack counters, by netlink.
    ConntrackCounters,
    /// The dump of DNS entries of the conntrack table, by netlink.
    ConntrackTable,
    /// The drop helper in the kernel.
    Drops,
    /// CoreDNS's own metrics, read from each pod.
    CorednsMetrics,
    /// Endpoints, pods and nodes.
    Inventory,
}

/// What an observer could see in a span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum CoverageState {
    /// It looked. `lost` counts records that it knows it missed: with more than zero, absence proves nothing.
    Looked {
        /// Records known to be missed.
        lost: u64,
    },
    /// It may not look.
    Denied {
        /// What is missing, in the operator's words: "CAP_BPF", "/var/run/netns/node-a: permission denied".
        missing: String,
    },
    /// It can't look here.
    Unsupported {
        /// Why, in the operator's words.
        why: String,
    },
}

/// What one observer could see in one place during a batch's span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// Who looked.
    pub observer: Observer,
    /// Where: a node's or vantage's name, or a server's address.
    pub place: String,
    /// How well.
    #[serde(flatten)]
    pub state: CoverageState,
}

impl Observer {
    /// All observers, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::Prober,
        Self::ConntrackCounters,
        Self::ConntrackTable,
        Self::Drops,
        Self::CorednsMetrics,
        Self::Inventory,
    ];

    /// The label value of metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prober => "prober",
            Self::ConntrackCounters => "conntrack-counters",
            Self::ConntrackTable => "conntrack-table",
            Self::Drops => "drops",
            Self::CorednsMetrics => "coredns-metrics",
            Self::Inventory => "inventory",
        }
    }
}

impl CoverageState {
    /// Whether absence of a sign means absence of the thing.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Looked { lost: 0 })
    }
}
