//! May this sender say that? Its node and its part bind it: it reports of its own and of nothing else.

use evidence::{Batch, Coverage, Observation, Observer, Place, Role};

use super::reviewer::Identity;

/// What the batch has that is not the sender's to tell; none where all is.
pub fn foreign(identity: &Identity, batch: &Batch) -> Option<String> {
    let Identity { node, role, .. } = identity;
    if batch.node != *node {
        return Some(format!("a batch of node {:?} by a sender on {node:?}", batch.node));
    }
    if batch.role != *role {
        return Some(format!("a batch of {:?} by a sender that is {role:?}", batch.role));
    }
    let observation = batch.observations.iter().find_map(|o| foreign_observation(*role, node, o));
    observation.or_else(|| batch.coverage.iter().find_map(|line| foreign_coverage(*role, node, line)))
}

fn foreign_observation(role: Role, node: &str, observation: &Observation) -> Option<String> {
    let (of, place) = match observation {
        Observation::Attempt(attempt) => (Role::Prober, Some(attempt.vantage.as_str())),
        Observation::Lookup(lookup) => (Role::Prober, Some(lookup.vantage.as_str())),
        Observation::KernelDrop(dropped) => (Role::Node, own(&dropped.place)),
        Observation::DropTotals(totals) => (Role::Node, own(&totals.place)),
        Observation::Mapping(mapping) => (Role::Node, Some(mapping.node.as_str())),
        Observation::Counters(counters) => (Role::Node, Some(counters.node.as_str())),
        Observation::ServerSample(_) => (Role::Servers, None),
        Observation::Inventory(_) => (Role::Inventory, None),
    };
    if of != role {
        return Some(format!("an observation of {of:?} by a sender that is {role:?}"));
    }
    let place = place.filter(|place| !is_on(node, place))?;
    Some(format!("an observation of {place:?} by a sender on {node:?}"))
}

fn foreign_coverage(role: Role, node: &str, line: &Coverage) -> Option<String> {
    let of = match line.observer {
        Observer::Prober => Role::Prober,
        Observer::ConntrackCounters | Observer::ConntrackTable | Observer::Drops => Role::Node,
        Observer::CorednsMetrics => Role::Servers,
        Observer::Inventory => Role::Inventory,
    };
    let fits = match role {
        // Their places are servers' addresses and files.
        Role::Servers | Role::Inventory => of == role,
        Role::Prober | Role::Node => of == role && is_on(node, &line.place),
    };
    (!fits).then(|| format!("coverage of {} on {:?}", line.observer.as_str(), line.place))
}

/// The node that a place names; a namespace is of the sender's own kernel.
fn own(place: &Place) -> Option<&str> {
    match place {
        Place::Node(node) => Some(node),
        Place::Namespace(_) => None,
    }
}

/// A node's places are itself and "node/anything": no node has a slash in its name.
fn is_on(node: &str, place: &str) -> bool {
    place.strip_prefix(node).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use evidence::{
        BootTime, ClockReading, Counters, CoverageState, DropClass, DropTotals, Inventory, WallTime,
    };

    use super::*;

    fn batch(node: &str, role: Role, observations: Vec<Observation>, places: &[(Observer, &str)]) -> Batch {
        let coverage = places.iter().map(|(observer, place)| Coverage {
            observer: *observer,
            place: (*place).into(),
            state: CoverageState::Looked { lost: 0 },
        });
        Batch {
            node: node.into(),
            role,
            boot_id: String::new(),
            sequence: 1,
            clock: ClockReading { boot: BootTime(0), wall: WallTime(0) },
            from: BootTime(0),
            to: BootTime(0),
            observations,
            coverage: coverage.collect(),
        }
    }

    fn counters(node: &str) -> Vec<Observation> {
        vec![Observation::Counters(Counters { node: node.into(), ..Counters::default() })]
    }

    fn totals(place: Place) -> Vec<Observation> {
        vec![Observation::DropTotals(DropTotals { place, class: DropClass::Rule, all: 1, dns: 1 })]
    }

    #[test]
    fn a_sender_tells_of_its_own_and_of_nothing_else() {
        let identity = |role| Identity {
            node: "node-a".into(),
            role,
            pod_uid: String::new(),
            expires: WallTime(i64::MAX),
        };
        use Observer::{Drops, Prober};
        for (row, role, batch, allowed) in [
            ("own", Role::Node, batch("node-a", Role::Node, counters("node-a"), &[(Drops, "node-a")]), true),
            ("own pods", Role::Node, batch("node-a", Role::Node, totals(Place::Namespace(7)), &[]), true),
            (
                "second vantage",
                Role::Prober,
                batch("node-a", Role::Prober, vec![], &[(Prober, "node-a/host")]),
                true,
            ),
            ("node", Role::Node, batch("node-b", Role::Node, vec![], &[]), false),
            ("longer name", Role::Node, batch("node-ab", Role::Node, vec![], &[]), false),
            ("part", Role::Prober, batch("node-a", Role::Node, vec![], &[]), false),
            ("counters", Role::Node, batch("node-a", Role::Node, counters("node-b"), &[]), false),
            (
                "drops",
                Role::Node,
                batch("node-a", Role::Node, totals(Place::Node("node-b".into())), &[]),
                false,
            ),
            ("place", Role::Node, batch("node-a", Role::Node, vec![], &[(Drops, "node-b")]), false),
            (
                "place with a longer name",
                Role::Prober,
                batch("node-a", Role::Prober, vec![], &[(Prober, "node-ab")]),
                false,
            ),
            ("observer", Role::Prober, batch("node-a", Role::Prober, vec![], &[(Drops, "node-a")]), false),
            (
                "inventory",
                Role::Prober,
                batch("node-a", Role::Prober, vec![Observation::Inventory(Inventory::default().into())], &[]),
                false,
            ),
        ] {
            assert_eq!(foreign(&identity(role), &batch).is_none(), allowed, "{row}");
        }
    }
}
