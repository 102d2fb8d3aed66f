//! `lab demo`: each fault goes in for real, and what nslookout makes of it is shown as it happens.

pub mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::alertmanager::Alert;
use crate::faults::{self, Active, Choice, Fault, Scope};
use crate::process::wait_until;
use crate::trial::kernel::{dropped_by_rules, refused_by_full_table, still_sending};
use crate::trial::{Judgement, Span, Trial, explains_others, wrong_alerts, wrong_calls};
use crate::{Error, Lab, Options, Site};

/// One fault's way from injection to Alertmanager.
#[derive(Debug, Clone)]
pub struct Run {
    /// The fault.
    pub fault: &'static Fault,
    /// What was named, with its confidence.
    pub named: String,
    /// From the start of the injection till nslookout named its cause.
    pub verdict: Duration,
    /// From the start of the injection till Alertmanager had the alert.
    pub alert_after: Duration,
    /// The alert as Alertmanager has it.
    pub alert: Option<Alert>,
    /// Till Alertmanager had called its webhook, where it has one and can find it.
    pub called_after: Option<Duration>,
    /// What was wrong, if anything.
    pub wrong: Vec<String>,
    /// Symptoms of other causes over the span: few, none of them certain, none told as an incident.
    pub aside: Vec<String>,
    /// The verdict as a person reads it.
    pub told: String,
    /// Dropped DNS packets, the most that the incident told.
    pub dropped: u64,
    /// Mappings that lead nowhere, the most that the incident told.
    pub mappings: u64,
    /// The client of the incident's scope, as last told.
    pub client: Option<String>,
    /// The clients that suffer, by name, as told before the fault went out: on its way out a stale entry may lead to
    /// a server that answers again and is not yet back in the Service.
    pub clients: Vec<String>,
    /// Queries that the fault's own clients lost, by their own count.
    pub lost: u64,
    /// What the kernel counted itself.
    pub counted: Counted,
    /// The fault as it was put in, with its clients' last counts.
    pub active: Active,
    /// From the start of the injection till all was calm again.
    pub span: (SystemTime, SystemTime),
}

/// What the kernel counted itself over a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets that conntrack of the fault's node refused for want of an entry, DNS or not.
    pub refused: u64,
    /// What the incident told as dropped, and a moment later the packets that the fault's own rules had dropped.
    pub by_rules: Option<(u64, u64)>,
    /// Pods that sent by way of an entry to the server that is gone, by the entries themselves.
    pub still_sending: BTreeSet<String>,
}

/// Runs the faults on the miniature one after the other and shows all of it. True if each verdict was right.
pub fn demo(binary: &Path, only: &[String], seed: u64) -> Result<bool, Error> {
    let faults = chosen(only)?;
    let start = Instant::now();
    println!("seed {seed}\nraising two nodes, seven pods, three CoreDNS, an upstream and Alertmanager ...");
    let lab = Lab::up(&Options::new("demo", seed))?;
    let site: &Site = &lab;
    println!(
        "  up after {:.1} s; kube-dns is {}, its servers listen on {}",
        start.elapsed().as_secs_f64(),
        site.service.v4,
        site.service.target_port
    );
    println!("starting nslookout ...");
    let mut trial = Trial::start(site, binary)?;
    println!("  it looks everywhere, every lookup is answered after {:.1} s", start.elapsed().as_secs_f64());
    let right = show_all(&mut trial, &faults, seed)?;
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    drop(trial);
    lab.down()?;
    Ok(right)
}

/// One fault after the other, then a table of all. True if each verdict was right.
fn show_all(trial: &mut Trial, faults: &[&'static Fault], seed: u64) -> Result<bool, Error> {
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
        let choice = probed(&trial.site, fault, seed.wrapping_add(i as u64));
        let calm_from = std::cell::Cell::new(Instant::now());
        runs.push(one(trial, fault, &choice, |run| {
            show(run);
            calm_from.set(Instant::now());
        })?);
        println!("  fault out; the incident closed after {:.1} s", calm_from.get().elapsed().as_secs_f64());
    }
    println!("\n{}", "─".repeat(100));
    print_table(&runs);
    Ok(runs.iter().all(|run| run.wrong.is_empty()))
}

/// Puts one fault in, waits for its verdict and its alert, shows the run, takes the fault out, waits till all is
/// calm again.
pub fn one(
    trial: &mut Trial,
    fault: &'static Fault,
    choice: &Choice,
    show: impl FnOnce(&Run),
) -> Result<Run, Error> {
    trial.draw_anew()?;
    let site = &trial.site.clone();
    let mut span = Span::new(fault, trial.status()?);
    let refused = refused_by_node(site)?;
    let calls = trial.told_since(0).len();
    let from = SystemTime::now();
    let active = fault.on(site, choice)?;
    let prepared = UNIX_EPOCH + Duration::from_millis(active.began_unix_ms);
    let start =
        Instant::now().checked_sub(prepared.elapsed().unwrap_or_default()).unwrap_or_else(Instant::now);
    let what = format!("{} is named", fault.expected.cause);
    let named = trial.wait_for(&what, LONGEST, |status| span.see(status));
    let verdict = start.elapsed();
    let alert = named.and_then(|_| trial.wait_for_alert(fault.expected.cause, LONGEST));
    let alert_after = start.elapsed();
    // The one name server that could tell where the webhook is, is the one that fails.
    let callable = trial.webhook.is_some() && active.servers != ["upstream"];
    let told = |trial: &Trial, status: &str| {
        let own = |name: &String| name == fault.expected.cause;
        let mut told = trial.told_since(calls).into_iter();
        told.any(|one| one.status == status && one.labels.get("cause").is_some_and(own))
    };
    let called_after =
        callable.then(|| wait_until(LONGEST, || told(trial, "firing")).then(|| start.elapsed()));
    // A cluster's stopped kube-proxy leads new flows astray, too: some of them are to be seen.
    let settle = if site.cluster.is_some() { 3 * SETTLE } else { SETTLE };
    // A moment more, so that the figures of the verdict are those of a second and not of the first packet. A lookup
    // that fails takes a second to be one, so what is explained may come later still.
    let settled = trial.wait_for("the incident stands", EXPLAINED, |status| {
        span.see(status);
        let own = status.incidents.iter().find(|incident| incident.cause == fault.expected.cause);
        let explained = own.is_some_and(|incident| !incident.explained.is_empty());
        start.elapsed() > alert_after + settle && (explained || !explains_others(fault))
    });
    let status = settled.or_else(|_| trial.status())?;
    let judgement = Judgement::of(fault, &active, &status);
    let named: Vec<String> = status
        .incidents
        .iter()
        .map(|incident| format!("{} ({})", incident.cause, incident.confidence))
        .collect();
    let mut run = Run {
        fault,
        named: named.join(", "),
        verdict,
        alert_after,
        wrong: judgement.wrong,
        aside: Vec::new(),
        told: trial.verdict()?,
        dropped: 0,
        mappings: 0,
        client: None,
        clients: Vec::new(),
        lost: 0,
        counted: Counted::default(),
        span: (from, from),
        active,
        alert: None,
        called_after: called_after.flatten(),
    };
    match alert {
        Ok(alert) => run.alert = Some(alert),
        Err(error) => run.wrong.push(error.to_string()),
    }
    if site.cluster.is_some() {
        run.wrong.extend(wrong_alerts(fault, &run.active, &site.alertmanager.alerts()?));
    }
    if callable && run.called_after.is_none() {
        run.wrong.push("the webhook was not called".to_owned());
    }
    show(&run);
    // What is told was counted before it was told, so the rule's own counter can't be behind it.
    span.see(&trial.status()?);
    run.counted.by_rules = dropped_by_rules(site, &run.active)?.map(|packets| (span.dropped, packets));
    run.clients.clone_from(&span.clients);
    if fault.name == "stale-mapping" {
        run.counted.still_sending = still_sending(site, &run.active)?;
    }
    if let Some(active) = fault.off(site)? {
        run.active = active;
    }
    run.lost = run.active.truth.clients.iter().map(|client| client.lost).sum();
    trial.wait_for("no incident is open", CALM, |status| {
        span.see(status);
        status.incidents.is_empty()
    })?;
    run.span.1 = SystemTime::now();
    if callable {
        // That it is over is told, too; then nothing of this incident comes any more.
        let wrong = || wrong_calls(&trial.told_since(calls), fault.expected.cause);
        wait_until(TOLD, || wrong().is_empty());
        run.wrong.extend(wrong());
    }
    run.counted.refused = match &run.active.node {
        Some(node) => rise(&refused, &refused_by_node(site)?, node),
        None => 0,
    };
    let over = span.judge();
    run.wrong.extend(over.wrong);
    run.aside = over.aside;
    (run.dropped, run.mappings) = (span.dropped, span.mappings);
    run.client = span.client;
    Ok(run)
}

type ByNode = BTreeMap<String, u64>;

fn refused_by_node(site: &Site) -> Result<ByNode, Error> {
    let nodes = site.nodes.iter();
    nodes.map(|node| Ok((node.name.clone(), refused_by_full_table(&node.netns)?))).collect()
}

fn rise(before: &ByNode, after: &ByNode, node: &str) -> u64 {
    let at = |counts: &ByNode| counts.get(node).copied().unwrap_or_default();
    at(after).saturating_sub(at(before))
}

/// Where only the prober sends DNS, a fault of one pod has to befall a pod that it probes from; where every pod
/// makes lookups of its own, the seed may choose any. In a cluster a node is the last one: the correlator is there, and
/// Alertmanager, which must open a connection for each call, is not.
pub fn probed(site: &Site, fault: &Fault, seed: u64) -> Choice {
    if site.cluster.is_some() {
        let node = site.nodes.last().filter(|_| fault.expected.scope == Scope::Node);
        return Choice { seed, node: node.map(|node| node.name.clone()), ..Choice::default() };
    }
    let vantages = crate::trial::vantages(site);
    let index = usize::try_from(seed).unwrap_or_default() % vantages.len().max(1);
    let pod = vantages.get(index).filter(|_| fault.expected.scope == Scope::Pod).map(|pod| pod.name.clone());
    Choice { seed, pod, ..Choice::default() }
}

fn show(run: &Run) {
    let called = run
        .called_after
        .map_or_else(String::new, |after| format!(", its webhook called after {:.1} s", after.as_secs_f64()));
    println!(
        "  injected, named after {:.1} s, with Alertmanager after {:.1} s{called}\n",
        run.verdict.as_secs_f64(),
        run.alert_after.as_secs_f64()
    );
    let incident = run.told.split("\n\n   profile").next().unwrap_or(&run.told);
    println!("{}", indented(incident.trim_end()));
    match &run.alert {
        Some(alert) => {
            let labels: Vec<String> = alert.labels.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
            println!("\n  as Alertmanager has it, since {}:\n    {{{}}}", alert.starts_at, labels.join(", "));
            for name in ["summary", "suffers", "mend"] {
                println!("    {name}: {}", alert.annotations.get(name).map_or("", String::as_str));
            }
        }
        None => println!("\n  Alertmanager has no such alert"),
    }
    run.wrong.iter().for_each(|wrong| println!("  WRONG: {wrong}"));
    drop(std::io::stdout().flush());
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
            run.fault.name,
            run.named,
            run.verdict.as_secs_f64(),
            run.alert_after.as_secs_f64(),
            if run.wrong.is_empty() {
                "right".to_owned()
            } else {
                format!("WRONG: {}", run.wrong.join("; "))
            }
        );
    }
    for run in runs.iter().filter(|run| !run.aside.is_empty()) {
        println!("aside, in no verdict: {} under {}", run.aside.join(", "), run.fault.name);
    }
    let right = runs.iter().filter(|run| run.wrong.is_empty()).count();
    println!("{right} of {} right", runs.len());
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
}

const LONGEST: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(1);
const EXPLAINED: Duration = Duration::from_secs(10);
const TOLD: Duration = Duration::from_secs(10);
const CALM: Duration = Duration::from_secs(60);
