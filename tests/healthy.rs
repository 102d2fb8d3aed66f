//! A minute without a fault: nothing is reported, and the run shows that it was not blind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use e2e::{nslookout, options, seed};
use lab::faults::Choice;
use lab::traffic::{Background, Tally};
use lab::trial::{OBSERVERS, Trial, metric};
use lab::{Lab, Site, demo, faults};

#[test]
fn a_healthy_minute_opens_no_incident_and_the_next_fault_is_named() {
    let seed = seed();
    let lab = Lab::up(&options("healthy", seed)).unwrap();
    let site: &Site = &lab;
    let mut trial = Trial::start(site, &nslookout()).unwrap();
    let background = Background::start(site, seed).unwrap();
    let at_first = trial.status().unwrap();
    let from = SystemTime::now();
    let before = metric(site, "nslookout_lookups_total").unwrap().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let status = trial.status().unwrap();
        assert!(status.incidents.is_empty(), "after {:?}: {:#?}", start.elapsed(), status.incidents);
        let blind: Vec<_> = status.coverage.iter().filter(|line| line["state"] != "looked").collect();
        assert!(blind.is_empty(), "{blind:#?}");
        // CoreDNS may be slow to give a page on a busy machine; what the kernel tells is not to be lost.
        let kernels = ["conntrack-counters", "conntrack-table", "drops"];
        let mut kernel = status.coverage.iter().filter(|line| kernels.iter().any(|k| line["observer"] == *k));
        assert!(kernel.all(|line| line["lost"] == 0), "{:#?}", status.coverage);
        assert_eq!(status.looking(), OBSERVERS);
        std::thread::sleep(Duration::from_secs(1));
    }
    let lookups = metric(site, "nslookout_lookups_total").unwrap().unwrap() - before;
    let to = SystemTime::now();
    // No cause gained a symptom, certain or not: fewer than open an incident are wrong here, too.
    let symptoms = trial.status().unwrap().symptoms_since(&at_first);
    assert!(symptoms.is_empty(), "{symptoms:#?}");
    // Two vantages, each one lookup by the Service and three direct ones every 2 s.
    assert!(lookups >= 200.0, "only {lookups} lookups in a minute");
    let choice = Choice { seed, ..Choice::default() };
    let fault = faults::by_name("server-stopped").unwrap();
    let run = demo::one(&mut trial, fault, &choice, |_| {
        // Each metric that a Prometheus rule reads is on the page of a real run.
        let rules = include_str!("../config/alerts.yaml");
        let names: BTreeSet<&str> = rules
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("nslookout_"))
            .collect();
        assert!(names.contains("nslookout_incident_open"), "{names:?}");
        for name in names {
            assert!(
                metric(site, name).unwrap().is_some(),
                "{name} is in config/alerts.yaml and not on /metrics"
            );
        }
    })
    .unwrap();
    assert!(run.wrong.is_empty(), "{:#?}", run.wrong);
    // By now each call of the healthy minute has ended, also one that lost its packets.
    let calls = Tally::of(&background.calls(from, to).unwrap());
    let counts = background.stop().unwrap();
    println!("the minute: {calls:?}; {lookups} probes; background: {counts:?}");
    assert_eq!((calls.failed, calls.late), (0, 0), "{calls:?}");
    let rate = calls.made as f64 / to.duration_since(from).unwrap().as_secs_f64();
    assert!((90.0..=110.0).contains(&rate), "{rate} lookups a second");
    assert!(counts.storm.iter().any(|seen| seen.lost > 0), "the storm that is not DNS lost nothing");
    assert!(counts.sent_into_rule > 0 && counts.churned >= 1, "{counts:?}");
}
