//! `lab bench`: how long from a fault to Alertmanager, and what `nslookout run` costs.

pub mod cluster;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::demo::{self, Run};
use crate::faults::Fault;
use crate::trial::Trial;
use crate::{Error, Lab, Options, Site};

/// Runs each fault `times` times, measures the cost of looking, prints Markdown tables. True if every verdict
/// was right.
pub fn bench(binary: &Path, only: &[String], times: u32, seed: u64) -> Result<bool, Error> {
    let faults = demo::chosen(only)?;
    println!("seed {seed}, {times} runs of each fault\n");
    let lab = Lab::up(&Options::new("bench", seed))?;
    let site: &Site = &lab;
    let mut trial = Trial::start(site, binary)?;
    let pid = trial.pid().unwrap_or_default();
    let seconds = SPAN.as_secs();
    println!("| nslookout run, two nodes, default settings | |\n|---|---|");
    let rest = || {
        thread::sleep(SPAN);
        Ok(())
    };
    let first = Cost::of(pid, rest)?;
    println!("| CPU in the first {seconds} s | {:.2} % of a core |", first.cpu_percent);
    let calm = Cost::of(pid, rest)?;
    println!("| CPU, calm, over {seconds} s | {:.2} % of a core |", calm.cpu_percent);
    let changing = Cost::of(pid, || change_endpoints(site))?;
    println!(
        "| CPU while endpoints change every {} s, over {seconds} s | {:.2} % of a core |",
        CHANGE.as_secs(),
        changing.cpu_percent
    );
    println!("| resident memory, calm | {:.1} MiB |", calm.resident_mib);
    let runs = repeat(&mut trial, &faults, times, seed)?;
    let peak = status_field(pid, "VmHWM:")?;
    println!("| peak resident memory, over all faults | {:.1} MiB |\n", peak / 1024.0);
    print_times(&faults, &runs);
    Ok(runs.iter().all(|run| run.wrong.is_empty()))
}

/// Each fault so many times.
fn repeat(trial: &mut Trial, faults: &[&'static Fault], times: u32, seed: u64) -> Result<Vec<Run>, Error> {
    let mut runs: Vec<Run> = Vec::new();
    for round in 0..times {
        for (i, fault) in faults.iter().enumerate() {
            let seed = seed.wrapping_add(u64::from(round) * 1000 + i as u64);
            let run = demo::one(trial, fault, &demo::probed(&trial.site.clone(), fault, seed), |_| ())?;
            eprintln!(
                "{} of {times}: {} alert after {:.1} s {}",
                round + 1,
                run.fault.name,
                run.alert_after.as_secs_f64(),
                run.wrong.join("; ")
            );
            runs.push(run);
        }
    }
    Ok(runs)
}

/// Median and worst of each fault.
fn print_times(faults: &[&'static Fault], runs: &[Run]) {
    println!("| fault | cause | fault to Alertmanager, median s | worst s | right |\n|---|---|---|---|---|");
    for fault in faults {
        let mine: Vec<&Run> = runs.iter().filter(|run| run.fault.name == fault.name).collect();
        let mut alerts: Vec<Duration> = mine.iter().map(|run| run.alert_after).collect();
        alerts.sort_unstable();
        let median = alerts.get(alerts.len() / 2).copied().unwrap_or_default();
        let worst = alerts.last().copied().unwrap_or_default();
        let right = mine.iter().filter(|run| run.wrong.is_empty()).count();
        println!(
            "| {} | {} | {:.1} | {:.1} | {right} of {} |",
            fault.name,
            fault.expected.cause,
            median.as_secs_f64(),
            worst.as_secs_f64(),
            mine.len()
        );
    }
}

/// A server leaves the Service and joins it again, over and over.
fn change_endpoints(site: &Site) -> Result<(), Error> {
    for change in 0..SPAN.as_secs() / CHANGE.as_secs() {
        let leaver = (change % 2 == 0).then(|| site.transient.clone());
        site.change_endpoints(|endpoints| endpoints.away = leaver)?;
        thread::sleep(CHANGE);
    }
    Ok(())
}

struct Cost {
    resident_mib: f64,
    cpu_percent: f64,
}

impl Cost {
    /// What a process uses while something is done.
    fn of(pid: u32, done: impl FnOnce() -> Result<(), Error>) -> Result<Self, Error> {
        let (before, start) = (cpu_seconds(pid)?, Instant::now());
        done()?;
        let cpu = cpu_seconds(pid)? - before;
        let cpu_percent = 100.0 * cpu / start.elapsed().as_secs_f64();
        Ok(Self { resident_mib: status_field(pid, "VmRSS:")? / 1024.0, cpu_percent })
    }
}

/// User and system time of a process: fields 14 and 15 of its stat line, after the name in brackets.
fn cpu_seconds(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let fields = text.rsplit(") ").next().unwrap_or_default();
    let ticks: f64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// A line of /proc/PID/status, in KiB.
fn status_field(pid: u32, name: &str) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    Ok(line.split_whitespace().next().and_then(|value| value.parse().ok()).unwrap_or_default())
}

/// A multiple of two changes: at its end all serve.
const SPAN: Duration = Duration::from_secs(40);
const CHANGE: Duration = Duration::from_secs(10);
/// USER_HZ: 100 on every architecture that Kubernetes runs on.
const TICKS_PER_SECOND: f64 = 100.0;
