//! A node's conntrack table is full: no new connection gets an entry, so no new query gets through.
//!
//! nf_conntrack_max is one value for the whole machine and is never written; the table is filled up to it.

use std::time::Duration;

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;
use crate::traffic::job::Job;

pub(super) static FAULT: Fault = Fault {
    name: "conntrack-full",
    title: "a node's conntrack table is filled to its maximum",
    expected: Expected { cause: "conntrack-full", certain: true, scope: Scope::Node },
    touches_servers: false,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let node = injection.node()?;
    injection.will(Undo::Entries(node.netns.clone()))?;
    let helper = injection.start(&node.netns, &Job::Fill(node.netns.clone()))?;
    let full = |occupancy: crate::traffic::fill::Occupancy| occupancy.full();
    injection.active.truth =
        helper.wait_for(Duration::from_secs(60), |report| report.occupancy.is_some_and(full))?;
    Ok(())
}
