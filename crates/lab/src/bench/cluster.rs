//! `lab bench-cluster`: in a real Kubernetes, how long from Helm to the first verdict and from a fault to Alertmanager,
//! and what does each part cost?

use std::thread;
use std::time::Instant;

use super::{SPAN, cpu_seconds, print_times, repeat, status_field};
use crate::demo::cluster::{Shown, chosen, told};
use crate::kubernetes::{Cluster, Options, Raised, progress};
use crate::trial::Trial;
use crate::{Error, command, programs};

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Measured {
    /// Of what.
    #[command(flatten)]
    pub shown: Shown,
    /// How often each fault.
    #[arg(long, default_value_t = 5)]
    pub times: u32,
}

/// A process of a part.
struct Part {
    pod: String,
    pid: u32,
}

/// Installs nslookout, runs each fault so many times, prints Markdown tables. True if every verdict was right and no part
/// had to be started again.
pub fn bench(measured: &Measured) -> Result<bool, Error> {
    let Measured { shown, times } = measured;
    let faults = chosen(&shown.fault)?;
    let seed = shown.seed();
    let options = Options { proxy_mode: shown.proxy_mode(), ..Options::new("bench-cluster") };
    println!("seed {seed}, {times} runs of each fault, kube-proxy in {} mode\n", options.proxy_mode.name());
    let cluster = Raised::up(&options, &mut progress())?;
    let helm = programs::cluster::all()?.helm.join("helm");
    cluster.load_nslookout(&shown.nslookout, env!("CARGO_PKG_VERSION"))?;
    cluster.run(&["create", "namespace", "nslookout"])?;
    let (webhook, more) = told(&cluster)?;
    let begin = Instant::now();
    command::run(cluster.helm_install(&helm, &shown.chart).args(more), None)?;
    let installed = begin.elapsed().as_secs_f64();
    let mut trial = Trial::installed(&cluster, &shown.nslookout, webhook)?;
    println!("| a real Kubernetes of two nodes | |\n|---|---|");
    println!("| `helm install --wait` | {installed:.1} s |");
    println!(
        "| from its start to the first verdict, all observers looking | {:.1} s |",
        begin.elapsed().as_secs_f64()
    );
    let parts = parts(&cluster)?;
    let cpu = |parts: &[Part]| parts.iter().map(|part| cpu_seconds(part.pid)).collect::<Result<Vec<_>, _>>();
    let (before, start) = (cpu(&parts)?, Instant::now());
    thread::sleep(SPAN);
    let (after, seconds) = (cpu(&parts)?, start.elapsed().as_secs_f64());
    let calm: Vec<_> = parts.iter().map(|part| status_field(part.pid, "VmRSS:")).collect::<Result<_, _>>()?;
    let runs = repeat(&mut trial, &faults, *times, seed)?;
    println!(
        "\n| part | CPU, calm, % of a core | resident memory, calm, MiB | at most, over all faults, MiB |\n|---|---|---|---|"
    );
    for (((part, before), after), calm) in parts.iter().zip(before).zip(after).zip(calm) {
        println!(
            "| {} | {:.2} | {:.1} | {:.1} |",
            part.pod,
            100.0 * (after - before) / seconds,
            calm / 1024.0,
            status_field(part.pid, "VmHWM:")? / 1024.0
        );
    }
    println!();
    print_times(&faults, &runs);
    let restarts = cluster.restarts("nslookout")?;
    drop(trial);
    cluster.down()?;
    Ok(restarts.is_empty() && runs.iter().all(|run| run.wrong.is_empty()))
}

/// The processes of nslookout's pods.
fn parts(cluster: &Cluster) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::new();
    for pod in cluster.pods("app.kubernetes.io/name=nslookout")? {
        for process in cluster.processes(&pod)? {
            parts.push(Part { pod: pod.name.clone(), pid: process.pid.unsigned_abs() });
        }
    }
    Ok(parts)
}
