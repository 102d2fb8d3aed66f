//! Batches in, incidents out: each rule of opening, spreading, closing and counting.

use evidence::{AttemptResult, BootTime, CoverageState, DropClass, LookupId, NameKind, QueryType, Role};

use super::*;
use crate::incident::{Scope, Severity};
use crate::testing::{NOW, inventory, kernel_drop};

struct Bench {
    correlator: Correlator,
    now: WallTime,
    sequence: u64,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self { correlator: Correlator::new(Config::default()), now: NOW, sequence: 0 };
        bench.send(
            vec![Observation::Inventory(inventory(&["10.244.1.2:53", "10.244.2.3:53"]).into())],
            vec![],
        );
        bench
    }

    fn send(&mut self, observations: Vec<Observation>, coverage: Vec<Coverage>) {
        let batch = Batch {
            node: "node-a".into(),
            role: Role::Node,
            boot_id: "b".into(),
            sequence: self.sequence,
            clock: ClockReading { boot: BootTime(0), wall: self.now },
            from: BootTime(0),
            to: BootTime(0),
            observations,
            coverage,
        };
        self.sequence += 1;
        self.correlator.observe(&batch, self.now);
    }

    fn wait(&mut self, secs: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..secs * 5 {
            self.now = self.now.plus(Duration::from_millis(200));
            changes.extend(self.correlator.tick(self.now));
        }
        changes
    }

    /// Time goes by while node-a's observers look.
    fn watch(&mut self, secs: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..secs {
            self.send(vec![], looked("node-a", 0));
            changes.extend(self.wait(1));
        }
        changes
    }

    /// Another correlator, with what this one has written down.
    fn next_process(&self) -> Self {
        let text = serde_json::to_string(&self.correlator.snapshot()).unwrap();
        let snapshot: Snapshot = serde_json::from_str(&text).unwrap();
        let mut next = Self { correlator: Correlator::new(Config::default()), now: self.now, sequence: 0 };
        next.correlator.restore(snapshot, self.now);
        next.send(
            vec![Observation::Inventory(inventory(&["10.244.1.2:53", "10.244.2.3:53"]).into())],
            vec![],
        );
        next
    }

    fn silent(&mut self, id: u64, server: &str, role: ServerRole) {
        self.send(
            vec![Observation::Attempt(Attempt {
                lookup: LookupId(id),
                vantage: "pod-a".into(),
                profile: "musl".into(),
                server: server.parse().unwrap(),
                role,
                source: format!("10.244.1.9:{}", 20_000 + id).parse().unwrap(),
                query_id: 1,
                name: "n.".into(),
                name_kind: NameKind::Cluster,
                qtype: QueryType::A,
                sent: BootTime(0),
                result: AttemptResult::Unanswered { wait_ns: 1_000_000_000 },
            })],
            vec![],
        );
    }
}

fn looked(place: &str, lost: u64) -> Vec<Coverage> {
    Observer::ALL
        .into_iter()
        .map(|observer| Coverage { observer, place: place.into(), state: CoverageState::Looked { lost } })
        .collect()
}

fn dropped(node: &str) -> Observation {
    Observation::KernelDrop(kernel_drop(node, DropClass::InsertRace))
}

#[test]
fn a_proof_opens_one_incident_after_a_second_and_further_ones_fold_into_it() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a")], vec![]);
    assert!(bench.correlator.tick(bench.now).is_empty());
    bench.send(vec![dropped("node-a")], vec![]);
    assert!(matches!(bench.wait(1).as_slice(), [Change::Opened(_)]));
    bench.wait(2);
    let incidents = bench.correlator.incidents();
    assert_eq!(incidents.len(), 1);
    let incident = &incidents[0];
    assert_eq!((incident.cause.as_str(), incident.confidence), ("insert-race", Confidence::Certain));
    assert_eq!(incident.suffers.dropped_packets, 2);
    assert_eq!(incident.suffers.clients, ["default/app (10.244.1.7)"]);
    assert_eq!(incident.severity, Severity::Warning, "a drop is a wait, not a failure");
}

#[test]
fn the_same_cause_on_a_second_node_widens_into_a_new_incident() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a")], vec![]);
    bench.wait(1);
    let first = bench.correlator.incidents()[0].clone();
    bench.send(vec![dropped("node-b")], vec![]);
    let changes = bench.correlator.tick(bench.now);
    let [Change::Closed(old), Change::Opened(wider), ..] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!((&old.id, old.closed_into.as_ref()), (&first.id, Some(&wider.id)));
    assert_eq!(wider.scope, Scope::default());
    assert_eq!(wider.suffers.dropped_packets, 2);
    assert_eq!(bench.correlator.incidents().len(), 1);
}

#[test]
fn an_incident_closes_after_its_last_symptom() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a")], looked("node-a", 0));
    bench.watch(29);
    assert_eq!(bench.correlator.incidents().len(), 1);
    let changes = bench.watch(2);
    assert!(changes.iter().any(|change| matches!(change, Change::Closed(i) if i.until == Some(NOW))));
    assert!(bench.correlator.incidents().is_empty());
}

#[test]
fn an_incident_at_which_nobody_looks_stays_open() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a")], looked("node-a", 0));
    bench.watch(10);
    bench.wait(3600);
    assert_eq!(bench.correlator.incidents().len(), 1, "nobody can say that it is over");
    bench.watch(29);
    assert_eq!(bench.correlator.incidents().len(), 1);
    bench.watch(7);
    assert!(bench.correlator.incidents().is_empty());
}

#[test]
fn an_open_incident_goes_on_in_the_next_process() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a"), dropped("node-a")], looked("node-a", 0));
    bench.watch(5);
    let before = bench.correlator.incidents().remove(0);
    let mut next = bench.next_process();
    let taken = next.correlator.incidents().remove(0);
    assert_eq!((&taken.id, &taken.proof, &taken.title), (&before.id, &before.proof, &before.title));
    next.watch(2);
    next.send(vec![dropped("node-a")], vec![]);
    let changes = next.watch(2);
    assert!(!changes.iter().any(|change| matches!(change, Change::Opened(_))), "{changes:#?}");
    let after = next.correlator.incidents().remove(0);
    assert_eq!((&after.id, after.since), (&before.id, before.since));
    assert_eq!(after.suffers.dropped_packets, 3);
    assert_eq!(after.suffers.clients, before.suffers.clients);
    next.send(vec![dropped("node-b")], vec![]);
    let changes = next.watch(1);
    assert!(changes.iter().any(|change| matches!(change, Change::Closed(i) if i.id == before.id)));
    assert_ne!(next.correlator.incidents()[0].id, before.id);
}

#[test]
fn a_total_of_the_kernel_is_counted_on_where_its_beginning_is_known_and_from_the_first_reading_where_not() {
    let totals = |dns: u64| {
        let totals = evidence::DropTotals {
            place: evidence::Place::Node("node-a".into()),
            class: DropClass::InsertRace,
            all: dns,
            dns,
        };
        Observation::DropTotals(totals)
    };
    let mut bench = Bench::new();
    bench.send(vec![totals(100)], looked("node-a", 0));
    bench.watch(1);
    bench.send(vec![dropped("node-a"), totals(110)], vec![]);
    bench.watch(3);
    let mut known = bench.next_process();
    known.send(vec![totals(115)], vec![]);
    known.watch(1);
    known.send(vec![dropped("node-a"), totals(120)], vec![]);
    known.watch(2);
    assert_eq!(known.correlator.incidents()[0].suffers.dropped_packets, 10);

    let mut told = Bench::new();
    told.now = bench.now;
    told.correlator.restore(Snapshot::told(bench.correlator.incidents()), bench.now);
    told.send(vec![totals(115)], vec![]);
    told.watch(2);
    told.send(vec![dropped("node-a"), totals(140)], vec![]);
    told.watch(2);
    let incident = &told.correlator.incidents()[0];
    assert_eq!((incident.suffers.dropped_packets, incident.since), (25, NOW.plus(Duration::from_secs(1))));
}

#[test]
fn a_restored_incident_without_a_new_symptom_closes_once_somebody_has_looked_for_long_enough() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a")], looked("node-a", 0));
    bench.watch(25);
    let mut next = bench.next_process();
    next.wait(600);
    assert_eq!(next.correlator.incidents().len(), 1, "no agent has come back yet");
    next.watch(29);
    assert_eq!(next.correlator.incidents().len(), 1);
    let changes = next.watch(2);
    assert!(changes.iter().any(|change| matches!(change, Change::Closed(i) if i.until == Some(NOW))));
}

#[test]
fn what_others_remember_gives_an_incident_its_beginning() {
    let mut bench = Bench::new();
    bench.send(vec![dropped("node-a")], looked("node-a", 0));
    bench.watch(3);
    let mut old = bench.correlator.incidents().remove(0);
    old.since = NOW.minus(Duration::from_secs(100));
    bench.correlator.restore(Snapshot::told(vec![old]), bench.now);
    assert_eq!(bench.correlator.incidents().len(), 1);
    assert_eq!(bench.correlator.incidents()[0].since, NOW.minus(Duration::from_secs(100)));
}

#[test]
fn who_was_blind_is_so_after_a_restart_until_it_speaks_or_its_node_has_left() {
    let mut bench = Bench::new();
    bench.send(vec![], looked("node-a", 0));
    bench.send(vec![], looked("node-b", 0));
    bench.watch(20);
    let blind: Vec<String> = bench.correlator.blind().into_iter().map(|blind| blind.place).collect();
    assert!(blind.iter().all(|place| place == "node-b") && !blind.is_empty(), "{blind:?}");
    let mut next = bench.next_process();
    next.watch(1);
    // The inventory names no server of that name: its metrics are missed by nobody.
    assert_eq!(next.correlator.blind().len(), blind.len() - 1);
    next.send(vec![], looked("node-b", 0));
    assert!(next.correlator.blind().is_empty());

    let mut next = bench.next_process();
    next.watch(60);
    let mut left = inventory(&["10.244.1.2:53"]);
    left.nodes = vec![evidence::Node { name: "node-a".into(), ..evidence::Node::default() }];
    next.send(vec![Observation::Inventory(left.into())], vec![]);
    let blind = next.correlator.blind();
    assert!(
        blind.iter().all(|blind| !matches!(blind.observer, Observer::Prober | Observer::Drops)),
        "{blind:?}"
    );
}

#[test]
fn a_silent_server_is_named_once_the_wait_for_proof_is_over() {
    let mut bench = Bench::new();
    for id in 0..4 {
        bench.silent(id, "10.244.1.2:53", ServerRole::Direct);
    }
    bench.wait(1);
    assert!(bench.correlator.incidents().is_empty(), "a drop record may still come");
    bench.wait(2);
    let incident = &bench.correlator.incidents()[0];
    assert_eq!((incident.cause.as_str(), incident.confidence), ("server-silent", Confidence::Likely));
    assert_eq!(incident.scope.server.as_deref(), Some("10.244.1.2:53"));
}

#[test]
fn a_server_that_was_told_to_leave_may_fall_silent() {
    let mut bench = Bench::new();
    let mut leaving = inventory(&["10.244.1.2:53", "10.244.2.3:53"]);
    leaving.endpoints[0].leaving = true;
    bench.send(vec![Observation::Inventory(leaving.clone().into())], vec![]);
    for id in 0..9 {
        bench.silent(id, "10.244.1.2:53", ServerRole::Direct);
    }
    leaving.endpoints.remove(0);
    bench.send(vec![Observation::Inventory(leaving.clone().into())], vec![]);
    for id in 9..18 {
        bench.silent(id, "10.244.1.2:53", ServerRole::Direct);
    }
    bench.wait(13);
    assert!(bench.correlator.incidents().is_empty());
    assert_eq!(bench.correlator.counts().count(), 0, "it is not even unexplained");
    // The address is another's by now.
    bench.send(vec![Observation::Inventory(inventory(&["10.244.1.2:53", "10.244.2.3:53"]).into())], vec![]);
    for id in 18..22 {
        bench.silent(id, "10.244.1.2:53", ServerRole::Direct);
    }
    bench.wait(3);
    assert_eq!(bench.correlator.incidents()[0].cause, "server-silent");
}

#[test]
fn until_all_senders_have_come_back_nothing_likely_is_taken_and_nothing_is_lost() {
    let mut bench = Bench::new();
    bench.correlator.settle(bench.now.plus(Duration::from_secs(15)));
    for id in 0..4 {
        bench.silent(id, "10.244.1.2:53", ServerRole::Direct);
        bench.silent(10 + id, "10.96.0.10:53", ServerRole::Service);
    }
    bench.wait(14);
    assert!(bench.correlator.incidents().is_empty());
    assert_eq!(bench.correlator.counts().count(), 0);
    bench.wait(3);
    assert_eq!(bench.correlator.incidents()[0].cause, "server-silent");
    assert_eq!(bench.correlator.counts().map(|(_, _, n)| n).sum::<u64>(), 8);
    let mut bench = Bench::new();
    bench.correlator.settle(bench.now.plus(Duration::from_secs(15)));
    bench.send(vec![dropped("node-a")], vec![]);
    assert!(matches!(bench.wait(2).as_slice(), [Change::Opened(_), ..]), "a proof needs nobody else");
}

#[test]
fn few_symptoms_without_a_cause_are_counted_and_many_open_an_incident() {
    let mut bench = Bench::new();
    for id in 0..4 {
        bench.silent(id, "10.96.0.10:53", ServerRole::Service);
    }
    bench.wait(13);
    assert!(bench.correlator.incidents().is_empty());
    assert_eq!(bench.correlator.counts().collect::<Vec<_>>(), [("unexplained", Confidence::Unexplained, 4)]);
    for id in 4..9 {
        bench.silent(id, "10.96.0.10:53", ServerRole::Service);
    }
    bench.wait(7);
    assert_eq!(bench.correlator.incidents()[0].cause, "unexplained");
}

#[test]
fn a_late_proof_takes_a_symptom_back_from_unexplained() {
    let mut bench = Bench::new();
    bench.silent(1, "10.96.0.10:53", ServerRole::Service);
    bench.wait(4);
    let mut late = kernel_drop("node-a", DropClass::InsertRace);
    late.packet.source = "10.244.1.9:20001".parse().unwrap();
    let sent = bench.now.minus(Duration::from_secs(4));
    let at = bench.now;
    bench.now = sent;
    bench.send(vec![Observation::KernelDrop(late)], vec![]);
    bench.now = at;
    bench.wait(1);
    let counts: BTreeMap<_, _> = bench.correlator.counts().map(|(cause, _, n)| (cause, n)).collect();
    assert_eq!(counts.get("unexplained"), None);
    assert_eq!(counts.get("insert-race"), Some(&2), "the drop and the lookup");
}

#[test]
fn a_cause_is_ruled_out_only_where_its_observers_looked_and_lost_nothing() {
    let ruled_out = |coverage: Vec<Coverage>| {
        let mut bench = Bench::new();
        bench.send(vec![dropped("node-a")], coverage);
        bench.wait(2);
        let incident = bench.correlator.incidents().remove(0);
        let ids: Vec<String> = incident.ruled_out.into_iter().map(|r| r.cause).collect();
        (ids, incident.not_seen)
    };
    let (ids, not_seen) = ruled_out(looked("node-a", 0));
    assert!(ids.contains(&"policy-drop".to_owned()), "{ids:?}");
    assert!(not_seen.is_empty(), "{not_seen:?}");
    let (ids, not_seen) = ruled_out(looked("node-a", 3));
    assert!(ids.is_empty(), "{ids:?}");
    assert!(not_seen.iter().all(|gap| !gap.hides.is_empty()), "a gap that hides nothing is none");
    assert_eq!(not_seen.len(), Observer::ALL.len() - 1, "no cause needs CoreDNS's metrics");
    let (ids, not_seen) = ruled_out(vec![]);
    assert!(ids.is_empty(), "{ids:?}");
    assert!(not_seen.iter().all(|line| line.why == "it does not run"));
}

#[test]
fn an_observer_that_falls_silent_makes_blind_and_one_that_never_looked_does_not() {
    let mut bench = Bench::new();
    let denied = Coverage {
        observer: Observer::Drops,
        place: "node-b".into(),
        state: CoverageState::Denied { missing: "CAP_BPF".into() },
    };
    let mut coverage = looked("node-a", 0);
    coverage.push(denied);
    bench.send(vec![], coverage);
    assert!(bench.correlator.blind().is_empty());
    bench.wait(12);
    assert!(bench.correlator.blind().is_empty(), "two turns may be missed");
    bench.wait(2);
    assert_eq!(bench.correlator.blind().len(), Observer::ALL.len());
}

#[test]
fn a_node_that_left_the_cluster_is_not_blind() {
    let mut bench = Bench::new();
    let with = |names: &[&str]| {
        let node = |name: &&str| evidence::Node { name: (*name).into(), zone: None };
        let servers = ["10.244.1.2:53", "10.244.2.3:53"];
        let nodes = names.iter().map(node).collect();
        Observation::Inventory(evidence::Inventory { nodes, ..inventory(&servers) }.into())
    };
    let of_node = |place: &str| Coverage {
        observer: Observer::Prober,
        place: place.into(),
        state: CoverageState::Looked { lost: 0 },
    };
    let lines = ["node-a", "node-b", "node-b/host", "node-bb"].map(of_node);
    bench.send(vec![with(&["node-a", "node-b", "node-bb"])], lines.into());
    bench.wait(5);
    // It left; the others fall silent, and nobody says which nodes there are.
    bench.send(vec![with(&["node-a", "node-bb"])], vec![]);
    bench.send(vec![with(&[])], vec![]);
    bench.wait(10);
    let blind: Vec<String> = bench.correlator.blind().into_iter().map(|blind| blind.place).collect();
    assert_eq!(blind, ["node-a", "node-bb"]);
}

#[test]
fn attributed_and_unexplained_add_up_to_all_symptoms() {
    let mut bench = Bench::new();
    for id in 0..7 {
        bench.silent(id, "10.96.0.10:53", ServerRole::Service);
    }
    bench.send(vec![dropped("node-a"), dropped("node-a")], vec![]);
    bench.wait(15);
    assert_eq!(bench.correlator.counts().map(|(_, _, n)| n).sum::<u64>(), 9);
}
