//! The unit in which evidence travels.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Attempt, BootTime, ClockReading, Counters, Coverage, DropTotals, Inventory, KernelDrop, Lookup, Mapping,
    ServerSample,
};

/// Which part of nslookout speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Probes.
    Prober,
    /// The node's conntrack table, counters and drops.
    Node,
    /// CoreDNS's own account.
    Servers,
    /// The cluster's inventory.
    Inventory,
}

/// One thing seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Observation {
    /// A query that went wrong or is unanswered for a second.
    Attempt(Attempt),
    /// A lookup that ended.
    Lookup(Lookup),
    /// A DNS packet dropped by the kernel.
    KernelDrop(KernelDrop),
    /// Totals of dropped packets.
    DropTotals(DropTotals),
    /// A conntrack entry that may lead nowhere, or that a probe uses.
    Mapping(Mapping),
    /// Conntrack counters.
    Counters(Counters),
    /// A server's metrics.
    ServerSample(ServerSample),
    /// The cluster's state.
    Inventory(Arc<Inventory>),
}

/// What one part of one node saw in a span. Nothing in it is ever asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// The node (or vantage) that speaks.
    pub node: String,
    /// Which part of it.
    pub role: Role,
    /// The kernel's boot id: boot times of two boots are not comparable.
    pub boot_id: String,
    /// Counts up by one for each batch of one sender's life; a gap is a lost batch.
    pub sequence: u64,
    /// Both clocks at the moment of sending.
    pub clock: ClockReading,
    /// Start of the span that this batch speaks of.
    pub from: BootTime,
    /// End of that span.
    pub to: BootTime,
    /// What was seen.
    pub observations: Vec<Observation>,
    /// Who could look, and how well.
    pub coverage: Vec<Coverage>,
}

/// What an observer hands to its process: a batch not yet sealed with sequence, clocks and boot id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The node (or vantage) that speaks.
    pub node: String,
    /// Which part of it.
    pub role: Role,
    /// Start of the span.
    pub from: BootTime,
    /// End of the span.
    pub to: BootTime,
    /// What was seen.
    pub observations: Vec<Observation>,
    /// Who could look, and how well.
    pub coverage: Vec<Coverage>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CoverageState, DropClass, Observer, Place, Protocol, Tuple, WallTime};

    #[test]
    fn a_batch_survives_json() {
        let tuple = Tuple {
            source: "10.244.1.7:41923".parse().unwrap(),
            destination: "[fd00::10]:53".parse().unwrap(),
        };
        let batch = Batch {
            node: "node-a".into(),
            role: Role::Node,
            boot_id: "b".into(),
            sequence: 7,
            clock: ClockReading { boot: BootTime(1), wall: WallTime(2) },
            from: BootTime(0),
            to: BootTime(1),
            observations: vec![Observation::KernelDrop(KernelDrop {
                at: BootTime(1),
                place: Place::Node("node-a".into()),
                class: DropClass::InsertRace,
                protocol: Protocol::Udp,
                packet: tuple,
                original: Some(tuple),
                reply: None,
                interface: Some("eth0".into()),
                mark: 0x4000,
                question: None,
            })],
            coverage: vec![Coverage {
                observer: Observer::Drops,
                place: "node-a".into(),
                state: CoverageState::Denied { missing: "CAP_BPF".into() },
            }],
        };
        let json = serde_json::to_string(&batch).unwrap();
        assert_eq!(serde_json::from_str::<Batch>(&json).unwrap(), batch);
    }
}
