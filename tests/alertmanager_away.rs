//! Alertmanager is dead when the fault comes: nothing blocks, nothing is lost, nothing is told twice.

use std::time::Duration;

use e2e::{nslookout, options, seed};
use lab::faults::{Choice, by_name};
use lab::trial::Trial;
use lab::{Lab, Site};

#[test]
fn an_alert_that_nobody_took_arrives_once_when_alertmanager_is_back() {
    let seed = seed();
    let lab = Lab::up(&options("away", seed)).unwrap();
    let site: &Site = &lab;
    let mut trial = Trial::start(site, &nslookout()).unwrap();
    site.alertmanager.daemon.kill().unwrap();
    let fault = by_name("no-endpoints").unwrap();
    fault.on(site, &Choice { seed, ..Choice::default() }).unwrap();
    trial
        .wait_for("the cause is named without Alertmanager", Duration::from_secs(30), |status| {
            status.incidents.iter().any(|incident| incident.cause == "no-endpoints")
        })
        .unwrap();
    site.alertmanager.daemon.start().unwrap();
    site.alertmanager.wait_till_ready(Duration::from_secs(20)).unwrap();
    let alert = trial.wait_for_alert("no-endpoints", Duration::from_secs(30)).unwrap();
    let again = trial.wait_for_alert("no-endpoints", Duration::from_secs(5)).unwrap();
    assert_eq!(alert.starts_at, again.starts_at, "the start is stable");
    let alerts = site.alertmanager.alerts().unwrap();
    let told = alerts.iter().filter(|a| {
        a.labels.get("cause").is_some_and(|cause| cause == "no-endpoints") && a.labels == alert.labels
    });
    assert_eq!(told.count(), 1);
    assert!(alerts.iter().any(|a| a.labels["alertname"] == "NslookoutWatchdog"));
    fault.off(site).unwrap();
    trial.wait_till_calm(Duration::from_secs(60)).unwrap();
}
