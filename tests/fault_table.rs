//! Each fault of the table, in an order drawn from a seed, under traffic that never rests: real getaddrinfo calls,
//! a clash storm and a dropping rule that are not DNS, endpoints that come and go.

use std::time::Duration;

use e2e::{nslookout, seed};
use lab::faults::Choice;
use lab::traffic::{Background, Tally};
use lab::trial::Trial;
use lab::{Lab, Options, Site, demo, faults};
use rand::SeedableRng;
use rand::seq::SliceRandom;

#[test]
fn each_fault_is_named_with_its_cause_and_scope_and_nothing_else_is() {
    let seed = seed();
    let lab = Lab::up(&Options::new("table", seed)).unwrap();
    let site: &Site = &lab;
    println!("kube-dns leads to port {}", site.service.target_port);
    let mut trial = Trial::start(site, &nslookout()).unwrap();
    let background = Background::start(site, seed).unwrap();
    let mut order = faults::all().to_vec();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    let (mut wrong, mut races) = (Vec::new(), Vec::new());
    for (i, fault) in order.into_iter().enumerate() {
        let choice = Choice { seed: seed.wrapping_add(i as u64), ..Choice::default() };
        let run = demo::one(&mut trial, fault, &choice, |_| ()).unwrap();
        println!(
            "{:<18} {:<40} named {:>5.1} s, alert {:>5.1} s  {}",
            fault.name,
            run.named,
            run.verdict.as_secs_f64(),
            run.alert_after.as_secs_f64(),
            if run.wrong.is_empty() { "right".to_owned() } else { format!("WRONG {:?}", run.wrong) }
        );
        if !run.wrong.is_empty() {
            println!("{}", run.told);
            wrong.push((fault.name, run.wrong.clone()));
        }
        if fault.expected.cause == "insert-race" {
            races.push(run);
        }
    }
    // A glibc call that lost a packet returns after 5 s.
    std::thread::sleep(Duration::from_secs(6));
    for run in races {
        let calls = Tally::of(&background.calls(run.span.0, run.span.1).unwrap());
        println!("{} packets told as dropped; clients lost {}; background {calls:?}", run.dropped, run.lost);
        assert!(run.lost > 0, "the storm lost nothing");
        // Each lost query of the storm is one dropped packet; a call of the background that was late lost one or two.
        assert!(run.dropped >= run.lost, "seed {seed}");
        assert!(run.dropped <= run.lost + 2 * (calls.late + calls.failed), "seed {seed}");
    }
    let counts = background.stop().unwrap();
    println!("background: {counts:?}");
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}
