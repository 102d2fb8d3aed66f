//! Claims about what the page says after batches.

use super::*;
use correlate::{Scope, Severity, Suffers};
use evidence::{BootTime, ClockReading, LookupId, NameKind, Outcome, WallTime};

fn batch(observations: Vec<Observation>, coverage: Vec<Coverage>) -> Batch {
    Batch {
        node: "node-a".into(),
        role: Role::Node,
        boot_id: "b".into(),
        sequence: 1,
        clock: ClockReading { boot: BootTime(1), wall: WallTime(1) },
        from: BootTime(0),
        to: BootTime(1),
        observations,
        coverage,
    }
}

fn incident(cause: &str, node: Option<&str>) -> Incident {
    Incident {
        id: cause.into(),
        cause: cause.into(),
        title: cause.into(),
        confidence: Confidence::Certain,
        severity: Severity::Critical,
        scope: Scope { node: node.map(Into::into), server: None, client: None },
        since: WallTime(1),
        until: None,
        suffers: Suffers::default(),
        proof: Vec::new(),
        ruled_out: Vec::new(),
        explained: Vec::new(),
        not_seen: Vec::new(),
        mend: String::new(),
        closed_into: None,
    }
}

fn totals(place: Place, all: u64, dns: u64) -> Observation {
    Observation::DropTotals(DropTotals { place, class: DropClass::InsertRace, all, dns })
}

fn page(metrics: &Metrics) -> String {
    String::from_utf8(metrics.page()).unwrap()
}

#[track_caller]
fn has(metrics: &Metrics, line: &str) {
    let page = page(metrics);
    assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
}

#[test]
fn drops_of_a_nodes_places_are_one_sum_that_only_rises() {
    let metrics = Metrics::new().unwrap();
    let node = || Place::Node("node-a".into());
    metrics.record(&batch(vec![totals(node(), 10, 4), totals(Place::Namespace(7), 3, 3)], vec![]));
    metrics.record(&batch(vec![totals(node(), 12, 5), totals(Place::Namespace(7), 3, 3)], vec![]));
    has(&metrics, r#"nslookout_dropped_packets_total{class="insert-race",dns="true",node="node-a"} 8"#);
    has(&metrics, r#"nslookout_dropped_packets_total{class="insert-race",dns="false",node="node-a"} 7"#);
    metrics.record(&batch(vec![totals(node(), 1, 1)], vec![]));
    has(&metrics, r#"nslookout_dropped_packets_total{class="insert-race",dns="true",node="node-a"} 9"#);
    has(&metrics, r#"nslookout_batches_total{node="node-a",role="node"} 3"#);
}

#[test]
fn kernel_counters_are_told_as_they_are() {
    let metrics = Metrics::new().unwrap();
    let counters = |insert_failed| {
        let counters =
            Counters { node: "node-a".into(), insert_failed, entries: 3, max: 9, ..Counters::default() };
        Observation::Counters(counters)
    };
    for value in [5, 7] {
        metrics.record(&batch(vec![counters(value)], vec![]));
        has(
            &metrics,
            &format!(r#"nslookout_conntrack_stat_total{{counter="insert_failed",node="node-a"}} {value}"#),
        );
    }
    has(&metrics, r#"nslookout_conntrack_entries{node="node-a"} 3"#);
    has(&metrics, r#"nslookout_conntrack_max{node="node-a"} 9"#);
}

#[test]
fn lookups_are_counted_by_outcome_and_their_waits_kept() {
    let metrics = Metrics::new().unwrap();
    let lookup = Lookup {
        id: LookupId(1),
        vantage: "pod-1".into(),
        profile: "musl".into(),
        server: "10.96.0.10:53".parse().unwrap(),
        role: ServerRole::Service,
        name: "a.".into(),
        name_kind: NameKind::Cluster,
        started: BootTime(0),
        ended: BootTime(2_500_000_000),
        outcome: Outcome::Addresses,
        packets: 3,
    };
    metrics.record(&batch(vec![Observation::Lookup(lookup)], vec![]));
    has(
        &metrics,
        r#"nslookout_lookups_total{outcome="addresses",profile="musl",role="service",vantage="pod-1"} 1"#,
    );
    has(&metrics, r#"nslookout_lookup_duration_seconds_bucket{profile="musl",role="service",le="2.5"} 1"#);
    has(&metrics, r#"nslookout_lookup_duration_seconds_bucket{profile="musl",role="service",le="1"} 0"#);
}

#[test]
fn an_observer_is_up_denied_or_not_told() {
    let metrics = Metrics::new().unwrap();
    let coverage = |state| Coverage { observer: Observer::Drops, place: "node-a".into(), state };
    metrics.record(&batch(vec![], vec![coverage(CoverageState::Looked { lost: 2 })]));
    has(&metrics, r#"nslookout_observer_up{observer="drops",place="node-a"} 1"#);
    has(&metrics, r#"nslookout_observer_lost_total{observer="drops",place="node-a"} 2"#);
    metrics.record(&batch(vec![], vec![coverage(CoverageState::Denied { missing: "CAP_BPF".into() })]));
    has(&metrics, r#"nslookout_observer_up{observer="drops",place="node-a"} 0"#);
    metrics.record(&batch(vec![], vec![coverage(CoverageState::Unsupported { why: "x".into() })]));
    assert!(!page(&metrics).contains("nslookout_observer_up{"));
}

#[test]
fn incidents_that_closed_are_told_no_more() {
    let metrics = Metrics::new().unwrap();
    let race = incident("insert-race", Some("node-a"));
    metrics.set_incidents(&[race.clone(), incident("no-endpoints", None)]);
    has(
        &metrics,
        r#"nslookout_incident_open{cause="insert-race",node="node-a",server="",severity="critical"} 1"#,
    );
    has(&metrics, r#"nslookout_incident_open{cause="no-endpoints",node="",server="",severity="critical"} 1"#);
    metrics.set_incidents(&[race]);
    let page = page(&metrics);
    assert!(page.contains("insert-race") && !page.contains("no-endpoints"), "{page}");
}

#[test]
fn symptoms_and_sends_are_counted() {
    let metrics = Metrics::new().unwrap();
    for total in [3, 5] {
        metrics.set_symptoms([("insert-race", Confidence::Certain, total)].into_iter());
    }
    has(&metrics, r#"nslookout_symptoms_total{cause="insert-race",confidence="certain"} 5"#);
    metrics.count_send("10.0.0.1:9093", SendResult::Failed);
    has(&metrics, r#"nslookout_alertmanager_sends_total{alertmanager="10.0.0.1:9093",result="failed"} 1"#);
}

#[test]
fn a_flood_of_places_fills_one_bucket() {
    let metrics = Metrics::new().unwrap();
    let coverage: Vec<Coverage> = (0..3000)
        .map(|i| Coverage {
            observer: Observer::CorednsMetrics,
            place: format!("10.0.{i}"),
            state: CoverageState::Looked { lost: 1 },
        })
        .collect();
    metrics.record(&batch(vec![], coverage));
    let lines = page(&metrics).lines().filter(|line| line.starts_with("nslookout_observer_up{")).count();
    assert_eq!(lines, bounds::MAX_VALUES + 1);
    has(
        &metrics,
        &format!(
            r#"nslookout_observer_lost_total{{observer="coredns-metrics",place="other"}} {}"#,
            3000 - bounds::MAX_VALUES
        ),
    );
}
