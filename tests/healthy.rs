//! A minute without a fault: nothing is reported, and the run shows that it was not blind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::{nslookout, seed};
use lab::faults::Choice;
use lab::traffic::Background;
use lab::trial::Trial;
use lab::{Lab, Options, Site, demo, faults};

#[test]
fn a_healthy_minute_opens_no_incident_and_the_next_fault_is_named() {
    let seed = seed();
    let lab = Lab::up(&Options::new("healthy", seed)).unwrap();
    let site: &Site = &lab;
    let mut trial = Trial::start(site, &nslookout()).unwrap();
    let background = Background::start(site, seed).unwrap();
    let before = trial.metric("nslookout_lookups_total").unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let status = trial.status().unwrap();
        assert!(status.incidents.is_empty(), "after {:?}: {:#?}", start.elapsed(), status.incidents);
        let blind: Vec<_> = status.coverage.iter().filter(|line| line["state"] != "looked").collect();
        assert!(blind.is_empty(), "{blind:#?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    let lookups = trial.metric("nslookout_lookups_total").unwrap() - before;
    // Two vantages, each one lookup by the Service and three direct ones every 2 s.
    assert!(lookups >= 200.0, "only {lookups} lookups in a minute");
    let choice = Choice { seed, ..Choice::default() };
    let fault = faults::by_name("server-stopped").unwrap();
    let run =
        demo::one(&mut trial, fault, &choice, |run| assert!(run.told.contains("server-silent"))).unwrap();
    assert!(run.wrong.is_empty(), "{:#?}", run.wrong);
    // Each metric that a Prometheus rule reads is on the page of a real run.
    let rules = include_str!("../config/alerts.yaml");
    let names: BTreeSet<&str> = rules
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("nslookout_"))
        .collect();
    assert!(names.contains("nslookout_incident_open"), "{names:?}");
    for name in names {
        assert!(trial.has_metric(name).unwrap(), "{name} is in config/alerts.yaml and not on /metrics");
    }
    let counts = background.stop().unwrap();
    println!("background: {counts:?}; {lookups} probes");
}
