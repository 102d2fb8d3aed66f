//! `lab demo`: each fault goes in for real, and what nslookout makes of it is shown as it happens.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::faults::{self, Choice, Fault, Scope};
use crate::trial::{Judgement, Trial};
use crate::{Error, Lab, Options};

/// One fault's way from injection to Alertmanager.
#[derive(Debug, Clone)]
pub struct Run {
    /// The fault.
    pub fault: &'static str,
    /// The cause that was to be named.
    pub expected: &'static str,
    /// What was named.
    pub named: String,
    /// From the fault being complete till nslookout named it.
    pub verdict: Duration,
    /// From the fault being complete till Alertmanager had the alert.
    pub alert: Duration,
    /// What was wrong, if anything.
    pub wrong: Vec<String>,
    /// The verdict as a person reads it.
    pub told: String,
}

/// Runs the faults one after the other and shows all of it. True if each verdict was right.
pub fn demo(binary: &Path, only: &[String], seed: u64) -> Result<bool, Error> {
    let faults = chosen(only)?;
    let start = Instant::now();
    println!("seed {seed}\nraising two nodes, seven pods, three CoreDNS, an upstream and Alertmanager ...");
    let lab = Lab::up(&Options::new("demo", seed))?;
    let site: &crate::Site = &lab;
    println!(
        "  up after {:.1} s; kube-dns is {}, its servers listen on {}",
        start.elapsed().as_secs_f64(),
        site.service.v4,
        site.service.target_port
    );
    println!("starting nslookout ...");
    let mut trial = Trial::start(site, binary)?;
    println!("  it looks everywhere, every lookup is answered after {:.1} s", start.elapsed().as_secs_f64());
    let mut runs = Vec::new();
    for (i, fault) in faults.iter().enumerate() {
        println!(
            "\n{}\nfault {} of {}: {}: {}",
            "─".repeat(100),
            i + 1,
            faults.len(),
            fault.name,
            fault.title
        );
        runs.push(one(&mut trial, fault, seed.wrapping_add(i as u64), true)?);
    }
    println!("\n{}", "─".repeat(100));
    print_table(&runs);
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    drop(trial);
    lab.down()?;
    Ok(runs.iter().all(|run| run.wrong.is_empty()))
}

/// Puts one fault in, waits for its verdict and its alert, takes it out, waits till all is calm again.
pub fn one(trial: &mut Trial, fault: &'static Fault, seed: u64, show: bool) -> Result<Run, Error> {
    let site = trial.site;
    let active =
        fault.on(site, &Choice { seed, pod: victim(trial, fault, seed, show), ..Choice::default() })?;
    let start = Instant::now();
    let named = trial.wait_for("an incident is open", LONGEST, |status| !status.incidents.is_empty());
    let verdict = start.elapsed();
    let alert = named.is_ok().then(|| trial.wait_for_alert(fault.expected.cause, LONGEST)).transpose();
    let alert_after = start.elapsed();
    // A moment more, so that the figures of the verdict are those of a second and not of the first packet.
    let settled =
        trial.wait_for("the incident stands", SETTLE, |_| start.elapsed() > alert_after + SETTLE / 2);
    let status = settled.or_else(|_| trial.status())?;
    let judgement = Judgement::of(fault, &active, &status);
    let told = trial.verdict()?;
    if show {
        println!(
            "  injected, named after {:.1} s, with Alertmanager after {:.1} s\n",
            verdict.as_secs_f64(),
            alert_after.as_secs_f64()
        );
        let incident = told.split("\n\n  profile").next().unwrap_or(&told);
        println!("{}", indented(incident.trim_end()));
        match &alert {
            Ok(Some(alert)) => {
                let labels: Vec<String> = alert.labels.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
                println!(
                    "\n  as Alertmanager has it, since {}:\n    {{{}}}",
                    alert.starts_at,
                    labels.join(", ")
                );
                println!("    summary: {}", alert.annotations.get("summary").map_or("", String::as_str));
            }
            Ok(None) | Err(_) => println!("\n  Alertmanager has no such alert"),
        }
        judgement.wrong.iter().for_each(|wrong| println!("  WRONG: {wrong}"));
        drop(std::io::stdout().flush());
    }
    let mut wrong = judgement.wrong;
    if let Err(error) = &alert {
        wrong.push(error.to_string());
    }
    fault.off(site)?;
    let calm_from = Instant::now();
    trial.wait_till_calm(CALM)?;
    if show {
        println!("  fault out; the incident closed after {:.1} s", calm_from.elapsed().as_secs_f64());
    }
    Ok(Run {
        fault: fault.name,
        expected: fault.expected.cause,
        named: status
            .incidents
            .iter()
            .map(|incident| format!("{} ({})", incident.cause, incident.confidence))
            .collect::<Vec<_>>()
            .join(", "),
        verdict,
        alert: alert_after,
        wrong,
        told,
    })
}

/// Where only the prober sends DNS, a fault of one pod has to befall a pod that it probes from; with the
/// background's real lookups in every pod the seed may choose any.
fn victim(trial: &Trial, fault: &Fault, seed: u64, quiet: bool) -> Option<String> {
    let vantages = crate::trial::vantages(trial.site);
    let index = usize::try_from(seed).unwrap_or_default() % vantages.len().max(1);
    (quiet && fault.expected.scope == Scope::Pod).then(|| vantages.get(index).map(|pod| pod.name.clone()))?
}

/// The faults of these names; none: all.
pub fn chosen(only: &[String]) -> Result<Vec<&'static Fault>, Error> {
    if only.is_empty() {
        Ok(faults::all().to_vec())
    } else {
        only.iter().map(|name| faults::by_name(name)).collect()
    }
}

fn print_table(runs: &[Run]) {
    println!("{:<18} {:<36} {:>9} {:>9}  verdict", "fault", "cause named", "named s", "alert s");
    for run in runs {
        println!(
            "{:<18} {:<36} {:>9.1} {:>9.1}  {}",
            run.fault,
            run.named,
            run.verdict.as_secs_f64(),
            run.alert.as_secs_f64(),
            if run.wrong.is_empty() {
                "right".to_owned()
            } else {
                format!("WRONG: {}", run.wrong.join("; "))
            }
        );
    }
    let right = runs.iter().filter(|run| run.wrong.is_empty()).count();
    println!("{right} of {} right", runs.len());
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
}

const LONGEST: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_secs(60);
