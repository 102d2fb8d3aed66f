//! Each fault of the table, in an order drawn from a seed, under traffic that never rests: real getaddrinfo calls,
//! a clash storm and a dropping rule that are not DNS, endpoints that come and go.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how a test fails")]

use std::time::{Duration, SystemTime};

use e2e::{nslookout, options, seed};
use lab::demo::Run;
use lab::faults::Choice;
use lab::traffic::{Background, Counts, Tally};
use lab::trial::Trial;
use lab::{Lab, Site, demo, faults};
use rand::SeedableRng;
use rand::seq::SliceRandom;

#[test]
fn each_fault_is_named_with_its_cause_and_scope_and_nothing_else_is() {
    let seed = seed();
    let lab = Lab::up(&options("table", seed)).unwrap();
    let site: &Site = &lab;
    println!("kube-dns leads to port {}", site.service.target_port);
    let mut trial = Trial::start(site, &nslookout()).unwrap();
    let background = Background::start(site, seed).unwrap();
    let begin = SystemTime::now();
    let mut order = faults::all().to_vec();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    let mut runs = Vec::new();
    for (i, fault) in order.into_iter().enumerate() {
        let choice = Choice { seed: seed.wrapping_add(i as u64), ..Choice::default() };
        let run = demo::one(&mut trial, fault, &choice, |_| ()).unwrap();
        println!(
            "{:<18} {:<40} named {:>5.1} s, alert {:>5.1} s  {}{}",
            fault.name,
            run.named,
            run.verdict.as_secs_f64(),
            run.alert_after.as_secs_f64(),
            if run.wrong.is_empty() { "right".to_owned() } else { format!("WRONG {:?}", run.wrong) },
            if run.aside.is_empty() { String::new() } else { format!("  aside {:?}", run.aside) }
        );
        if !run.wrong.is_empty() {
            println!("{}", run.told);
        }
        runs.push(run);
    }
    // A glibc call that lost a packet returns after 5 s.
    std::thread::sleep(Duration::from_secs(6));
    let mut wrong = Vec::new();
    for run in runs {
        let numbers = wrong_numbers(site, &background, &run);
        wrong.extend(run.wrong.iter().chain(&numbers).map(|line| format!("{}: {line}", run.fault.name)));
    }
    let lasted = begin.elapsed().unwrap().as_secs_f64();
    let counts = background.stop().unwrap();
    println!("background over {lasted:.0} s: {counts:?}");
    wrong.extend(wrong_background(&counts, lasted));
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}

/// Holds what the incident told against those who counted for themselves: the fault's own clients, the kernel, and
/// the applications of the background.
fn wrong_numbers(site: &Site, background: &Background, run: &Run) -> Vec<String> {
    let told = run.dropped;
    let (from, to) = run.span;
    let calls = background.calls(from, to).unwrap();
    let node_of = |name: &str| site.pod(name).unwrap().node.as_str();
    let here = |pod: &str| match (&run.active.pod, run.active.fault.as_str()) {
        (Some(own), _) => own == pod,
        // Packets of all pods cross the node with the rule if their server is there.
        (None, "forward-drop") => true,
        (None, _) => run.active.node.as_deref() == Some(node_of(pod)),
    };
    let tally = Tally::of(calls.iter().filter(|call| here(&call.pod)));
    let (lost, all) = (tally.late + tally.failed, Tally::of(&calls));
    println!(
        "{:<18} told {told} dropped, {} mappings; its clients lost {}; {:?}; calls there {tally:?}, all {all:?} {:?}",
        run.fault.name, run.mappings, run.lost, run.counted, run.clients
    );
    let mut wrong = Vec::new();
    let mut hold = |right: bool, what: String| {
        if !right {
            wrong.push(what);
        }
    };
    match run.fault.name {
        "same-port-clash" => {
            hold(run.lost > 0, "the storm lost nothing".into());
            // Each lost query of the storm is one dropped packet; a call of the background that was late lost one
            // or two.
            let most = run.lost + 2 * (all.late + all.failed);
            let right = (run.lost..=most).contains(&told);
            hold(right, format!("{told} dropped packets told; truth is {} to {most}", run.lost));
        }
        "stale-mapping" => {
            hold(run.lost > 0, "the pinned client lost nothing".into());
            hold(run.mappings >= 1, "no mapping is counted".into());
            let pinned = run.active.clients.first().map(|client| format!("default/{}", client.pod));
            // Beside the pinned client only those may be named that the kernel's own entries show to have sent there.
            let named =
                run.clients.iter().filter_map(|name| name.strip_prefix("default/")?.split(' ').next());
            for pod in named {
                let sent = run.counted.still_sending.contains(pod);
                hold(sent, format!("{pod} is named, and no entry shows that it sent: {:?}", run.counted));
            }
            hold(run.client.is_none() || run.client == pinned, format!("{:?} is not {pinned:?}", run.client));
        }
        "conntrack-full" => {
            let refused = run.counted.refused;
            hold(told > 0 && told <= refused, format!("{told} told; conntrack refused {refused} packets"));
        }
        "forward-drop" | "pod-drop" => {
            let (then, packets) = run.counted.by_rules.unwrap();
            hold(then > 0 && then <= packets, format!("{then} told while the rules had dropped {packets}"));
        }
        _ => {}
    }
    // A call that was late or failed has lost one packet at least.
    if matches!(run.fault.name, "conntrack-full" | "forward-drop" | "pod-drop") {
        hold(lost > 0, "no application lost anything".into());
        hold(told >= lost, format!("{told} dropped packets told; {lost} calls of applications lost some"));
    }
    wrong
}

/// The background was there all the time, or its silence in the verdicts proves nothing.
fn wrong_background(counts: &Counts, lasted: f64) -> Vec<String> {
    let rate = counts.lookups.made as f64 / lasted;
    let storm: u64 = counts.storm.iter().map(|seen| seen.lost).sum();
    let mut wrong = Vec::new();
    // While DNS is dead for all, calls wait in every thread there is, and fewer are begun.
    if !(80.0..=110.0).contains(&rate) {
        wrong.push(format!("the background made {rate:.0} lookups a second"));
    }
    if storm == 0 {
        wrong.push("the storm that is not DNS lost nothing".into());
    }
    if counts.sent_into_rule == 0 {
        wrong.push("nothing was sent into the rule that is not DNS".into());
    }
    // One leaves and comes back every 20 s, whatever fault is on.
    let due = lasted / 20.0 - 1.0;
    if (counts.churned as f64) < due {
        wrong.push(format!("endpoints changed {} times of {due:.0}", counts.churned));
    }
    wrong
}
