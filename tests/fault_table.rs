//! Each fault of the table, in an order drawn from a seed, under traffic that never rests: real getaddrinfo calls,
//! a clash storm and a dropping rule that are not DNS, endpoints that come and go.

use e2e::{nslookout, seed};
use lab::traffic::background::Background;
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
    let mut wrong = Vec::new();
    for (i, fault) in order.into_iter().enumerate() {
        let run = demo::one(&mut trial, fault, seed.wrapping_add(i as u64), false).unwrap();
        println!(
            "{:<18} {:<40} named {:>5.1} s, alert {:>5.1} s  {}",
            run.fault,
            run.named,
            run.verdict.as_secs_f64(),
            run.alert.as_secs_f64(),
            if run.wrong.is_empty() { "right".to_owned() } else { format!("WRONG {:?}", run.wrong) }
        );
        if !run.wrong.is_empty() {
            println!("{}", run.told);
            wrong.push((run.fault, run.wrong));
        }
    }
    let counts = background.stop().unwrap();
    println!("background: {counts:?}");
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}
