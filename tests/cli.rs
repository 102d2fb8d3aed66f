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

use e2e::{nslookout, seed};
use lab::{Lab, Options, Site};
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
    let lab = Lab::up(&Options::new("check", seed())).unwrap();
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
    site.servers[0].daemon.cont().unwrap();
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
