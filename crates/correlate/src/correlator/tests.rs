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
        bench.send(vec![Observation::Inventory(inventory(&["10.244.1.2:53", "10.244.2.3:53"]))], vec![]);
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
    bench.send(vec![dropped("node-a")], vec![]);
    bench.wait(29);
    assert_eq!(bench.correlator.incidents().len(), 1);
    let changes = bench.wait(2);
    assert!(changes.iter().any(|change| matches!(change, Change::Closed(i) if i.until == Some(NOW))));
    assert!(bench.correlator.incidents().is_empty());
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
    bench.wait(16);
    assert_eq!(bench.correlator.blind().len(), Observer::ALL.len());
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
