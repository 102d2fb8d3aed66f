//! The command line as users meet it: bad configuration, `check` in sickness and in health, without root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is how a test fails"
)]

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use e2e::{nslookout, options, seed};
use lab::faults::{Choice, Fault, by_name};
use lab::trial::{Incident, Trial};
use lab::{Lab, Site};
use serde_json::Value;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `nslookout check` in a pod of the lab, as the user with these words before it.
fn check(site: &Site, before: &[&str], args: &[&str]) -> (Output, Value) {
    let pod = &site.pods[0];
    let binary = nslookout().display().to_string();
    let words: Vec<&str> =
        before.iter().copied().chain([binary.as_str(), "check", "--output", "json"]).collect();
    let mut command = site.command_in(&pod.netns, true, words[0]);
    let output = command.args(&words[1..]).args(args).output().unwrap();
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", text(&output.stdout), text(&output.stderr)));
    (output, json)
}

#[test]
fn every_mistake_of_a_configuration_is_told_and_nothing_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.yaml");
    fs::write(
        &path,
        "prober: {interval: fast}\nnodse: []\nalertmanagers: {addresses: ['http://pager:9093']}\n",
    )
    .unwrap();
    let output = Command::new(nslookout()).args(["run", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = text(&output.stderr);
    assert!(said.contains("prober.interval") && said.contains("nodse"), "{said}");
    assert!(!said.contains("looking"), "{said}");
    let missing = Command::new(nslookout()).args(["run", "--config", "/no/such.yaml"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(64));
    assert!(text(&missing.stderr).contains("/no/such.yaml"));
}

#[test]
fn bad_usage_is_64_and_help_is_0() {
    let code = |args: &[&str]| Command::new(nslookout()).args(args).output().unwrap().status.code();
    assert_eq!(code(&["check", "--server", "dns.example"]), Some(64));
    assert_eq!(code(&["explain", "rain"]), Some(64));
    assert_eq!(code(&["explain", "insert-race"]), Some(0));
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["status", "--api", "127.0.0.1:1"]), Some(2), "nobody there: could not look");
}

#[test]
fn check_tells_health_sickness_and_what_it_may_not_see() {
    let lab = Lab::up(&options("check", seed())).unwrap();
    let site: &Site = &lab;

    let (output, json) = check(site, &[], &[]);
    assert_eq!((output.status.code(), json["state"].as_str()), (Some(0), Some("healthy")), "{json:#}");
    assert_eq!(json["schema"], "nslookout/1");
    let mut profiles: Vec<&str> =
        json["profiles"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    profiles.sort_unstable();
    profiles.dedup();
    assert_eq!(profiles, ["glibc", "musl"]);

    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let (output, json) = check(site, &nobody, &[]);
    assert_eq!(output.status.code(), Some(0), "{json:#}");
    let drops = json["coverage"].as_array().unwrap().iter().find(|line| line["observer"] == "drops").unwrap();
    assert_eq!(drops["state"], "denied", "{drops}");

    let server = site.servers[0].address().to_string();
    site.servers[0].daemon.stop().unwrap();
    let (output, json) = check(site, &[], &["--server", &server]);
    assert_eq!(output.status.code(), Some(1), "{json:#}");
    let named: Vec<_> = json["incidents"].as_array().unwrap().iter().map(|i| &i["cause"]).collect();
    assert_eq!(named, ["server-silent"], "{json:#}");
    site.servers[0].daemon.cont().unwrap();

    for fault in ["no-endpoints", "servers-stopped"].map(|name| by_name(name).unwrap()) {
        fault.on(site, &choice(site)).unwrap();
        let (output, json) = check(site, &[], &[]);
        let told = (output.status.code(), json["state"].as_str());
        fault.off(site).unwrap();
        println!("check under {}: {}", fault.name, json["incidents"]);
        assert_eq!(told, (Some(1), Some("unhealthy")), "{}: {json:#}", fault.name);
    }
}

#[test]
fn without_the_drop_helper_a_silent_server_is_named_and_the_gap_is_told() {
    let lab = Lab::up(&options("nohelper", seed())).unwrap();
    let incident =
        named(&lab, "conntrackWatch:\n  drops: false\n", "drops", by_name("server-stopped").unwrap());
    let gap = incident.not_seen.iter().find(|gap| gap["observer"] == "drops").unwrap();
    assert!(gap["why"].as_str().unwrap().contains("conntrackWatch.drops"), "{gap}");
    let hidden: Vec<_> = gap["hides"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(hidden.contains(&"policy-drop") && hidden.contains(&"insert-race"), "{gap}");
    // What was not looked for is never told as absent.
    let absent = incident.ruled_out.iter().find(|cause| hidden.iter().any(|id| cause["cause"] == *id));
    assert!(absent.is_none(), "{absent:?}");
}

#[test]
fn servers_whose_metrics_are_none_of_corednss_are_watched_all_the_same() {
    let lab = Lab::up(&options("nometrics", seed())).unwrap();
    // Nobody listens on the one; the other is CoreDNS's health port, which talks HTTP and has no metrics.
    for port in [1, 8080] {
        let more = format!("corednsWatch:\n  metricsPort: {port}\n");
        let incident = named(&lab, &more, "coredns-metrics", by_name("server-stopped").unwrap());
        let lives = incident.proof.iter().any(|line| line.contains("still answers its metrics"));
        assert!(!lives, "{incident:#?}");
        // The other observers go on.
        assert!(incident.ruled_out.iter().any(|cause| cause["cause"] == "policy-drop"), "{incident:#?}");
    }
}

/// What `run` with one blind observer says of a fault.
fn named(site: &Site, more: &str, blind: &str, fault: &'static Fault) -> Incident {
    let mut trial = Trial::start_with(site, &nslookout(), more, &[blind]).unwrap();
    // A port where nobody listens is told as looked at, with what was lost.
    let status = trial.status().unwrap();
    let own: Vec<_> = status.coverage.iter().filter(|line| line["observer"] == blind).collect();
    let sees = own.iter().any(|line| line["state"] == "looked" && line["lost"] == 0);
    assert!(!own.is_empty() && !sees, "{own:#?}");
    let active = fault.on(site, &choice(site)).unwrap();
    let is_named = |incident: &&Incident| incident.cause == active.cause;
    let status = trial
        .wait_for(&format!("{} is named", active.cause), Duration::from_secs(60), |status| {
            status.incidents.iter().find(is_named).is_some_and(|incident| !incident.proof.is_empty())
        })
        .unwrap();
    println!("{}", trial.verdict().unwrap());
    fault.off(site).unwrap();
    let incident = status.incidents.iter().find(is_named).unwrap();
    let server = active.server_addresses[0].to_string();
    assert_eq!(incident.at("server"), Some(server.as_str()), "{incident:#?}");
    trial.wait_till_calm(Duration::from_secs(60)).unwrap();
    incident.clone()
}

fn choice(site: &Site) -> Choice {
    Choice { seed: site.seed, ..Choice::default() }
}

#[test]
fn ctrl_c_ends_run_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, "metrics: {listen: '127.0.0.1:0'}\ncluster: {service: {addresses: ['127.0.0.9:53']}}\n")
        .unwrap();
    let mut run = Command::new(nslookout()).args(["run", "--config"]).arg(&path).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(run.try_wait().unwrap().is_none(), "it runs");
    let start = Instant::now();
    let pid = run.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let status = run.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
