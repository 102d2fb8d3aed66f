//! `lab`: raise a cluster's network on this machine, put faults into it, look around, take it down.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::{Parser, Subcommand};
use lab::kubernetes::ClusterCommand;
use lab::traffic::TrafficCommand;
use lab::{Error, Lab, Options, Site, bench, demo, faults, interrupt, journal, miniature, programs};

/// A cluster's network on one machine, with real CoreDNS and real faults.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  lab up --name try\n  lab exec --name try client-a1 -- dig example.com\n  lab down --name try"
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Raise a lab and leave it up.
    Up {
        #[command(flatten)]
        lab: Named,
        /// What placement, addresses and the target port are drawn from; drawn itself when not given.
        #[arg(long)]
        seed: Option<u64>,
        /// Where the servers listen, in the place of what the seed says: 53 or 5353.
        #[arg(long)]
        target_port: Option<u16>,
    },
    /// Tell who is there and whether it runs.
    Status {
        #[command(flatten)]
        lab: Named,
    },
    /// Switch a fault on or off.
    Fault {
        #[command(flatten)]
        lab: Named,
        /// The fault's name.
        fault: String,
        /// on or off.
        switch: Switch,
    },
    /// Run a program in a pod (also: a node, "upstream", "monitor"), with the pod's resolv.conf.
    Exec {
        #[command(flatten)]
        lab: Named,
        /// The pod.
        pod: String,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Take a lab down; nothing is left.
    Down {
        #[command(flatten)]
        lab: Named,
    },
    /// Raise a lab with nslookout looking at it, put in one fault after the other, show what comes out.
    Demo {
        /// The nslookout binary.
        #[arg(long)]
        nslookout: PathBuf,
        /// Only these faults; without any: all.
        #[arg(long)]
        fault: Vec<String>,
        /// What is drawn from it: ports, nodes, victims.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// The same in a real Kubernetes, with nslookout as Helm installs it.
    DemoCluster(demo::cluster::Shown),
    /// Measure: from fault to Alertmanager, memory and CPU of `nslookout run`.
    Bench {
        /// The nslookout binary.
        #[arg(long)]
        nslookout: PathBuf,
        /// Only these faults; without any: all.
        #[arg(long)]
        fault: Vec<String>,
        /// How often each fault.
        #[arg(long, default_value_t = 5)]
        times: u32,
        /// What is drawn from it: ports, nodes, victims.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// The same of nslookout as Helm installs it in a real Kubernetes, part by part.
    BenchCluster(bench::cluster::Measured),
    /// A real Kubernetes of two nodes or more.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Fetch and build the programs that labs run.
    Programs {
        /// Those of the real cluster as well.
        #[arg(long)]
        cluster: bool,
    },
    /// The lab's own traffic, started by the lab itself.
    #[command(subcommand, hide = true)]
    Traffic(TrafficCommand),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The lab's name.
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode, Error> {
    match task {
        // Neither raises a lab: this needs no root, the next is a part of a lab that stands.
        Task::Programs { cluster } => list_programs(cluster),
        Task::Traffic(traffic) => traffic.run().map(|()| ExitCode::SUCCESS),
        other => with_labs(other),
    }
}

fn with_labs(task: Task) -> Result<ExitCode, Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NeedsRoot);
    }
    interrupt::install();
    for name in journal::sweep()? {
        eprintln!("undid what the lab {name} left when its process died");
    }
    match task {
        Task::Up { lab, seed, target_port } => up(&lab.name, seed, target_port),
        Task::Status { lab } => status(&Site::load(&lab.name)?),
        Task::Fault { lab, fault, switch } => switch_fault(&Site::load(&lab.name)?, &fault, switch),
        Task::Exec { lab, pod, words } => exec(&Site::load(&lab.name)?, &pod, &words),
        Task::Down { lab } => {
            miniature::down(&lab.name)?;
            println!("lab {} is down, nothing of it is left", lab.name);
            Ok(ExitCode::SUCCESS)
        }
        Task::Demo { nslookout, fault, seed } => {
            let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
            let right = demo::demo(&nslookout, &fault, seed)?;
            Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Bench { nslookout, fault, times, seed } => {
            let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
            let right = bench::bench(&nslookout, &fault, times, seed)?;
            Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::DemoCluster(shown) => {
            let right = demo::cluster::demo(&shown)?;
            Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::BenchCluster(measured) => {
            let right = bench::cluster::bench(&measured)?;
            Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Cluster(command) => command.run(),
        Task::Programs { .. } | Task::Traffic(_) => Ok(ExitCode::SUCCESS),
    }
}

fn up(name: &str, seed: Option<u64>, target_port: Option<u16>) -> Result<ExitCode, Error> {
    let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let begin = Instant::now();
    let lab = Lab::up(&Options { name: name.to_owned(), seed, target_port })?;
    let site = lab.keep()?;
    println!(
        "lab {name} is up after {:.1} s: seed {seed}, kube-dns {} leads to port {}",
        begin.elapsed().as_secs_f64(),
        site.service.v4,
        site.service.target_port
    );
    Ok(ExitCode::SUCCESS)
}

fn status(site: &Site) -> Result<ExitCode, Error> {
    println!("lab {}  seed {}  {}", site.name, site.seed, site.dir.display());
    println!("kube-dns  {}  {}  to port {}", site.service.v4, site.service.v6, site.service.target_port);
    for node in &site.nodes {
        println!("{}  {}  {}", node.name, node.v4, node.v6);
        for server in site.servers.iter().filter(|server| server.node == node.name) {
            println!("  {:10} {:15} {:20} {}", server.name, server.v4, server.v6, running(&server.daemon));
        }
        for pod in site.pods.iter().filter(|pod| pod.node == node.name) {
            println!("  {:10} {:15} {:20}", pod.name, pod.v4, pod.v6);
        }
    }
    println!("upstream  {}  {}  {}", site.upstream.v4, site.upstream.v6, running(&site.upstream.daemon));
    println!("alertmanager  {}  {}", site.alertmanager.address, running(&site.alertmanager.daemon));
    for fault in faults::active(site)? {
        println!("fault {} is on: a right verdict says {}", fault.fault, fault.cause);
    }
    Ok(ExitCode::SUCCESS)
}

fn running(daemon: &lab::process::Daemon) -> String {
    match daemon.id() {
        Some(id) if id.stopped() => format!("stopped (process {})", id.pid),
        Some(id) => format!("running (process {})", id.pid),
        None => "not running".to_owned(),
    }
}

fn switch_fault(site: &Site, name: &str, switch: Switch) -> Result<ExitCode, Error> {
    let fault = faults::by_name(name)?;
    match switch {
        Switch::On => {
            let active = fault.on(site, &faults::Choice { seed: site.seed, ..faults::Choice::default() })?;
            println!("{name} is on: {}", fault.title);
            println!("expected cause: {}", active.cause);
        }
        Switch::Off => match fault.off(site)? {
            Some(_) => println!("{name} is off"),
            None => println!("{name} was not on"),
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(site: &Site, pod: &str, words: &[String]) -> Result<ExitCode, Error> {
    let Some((program, arguments)) = words.split_first() else { return Ok(ExitCode::FAILURE) };
    let mut command: Command = site.command_in(site.netns(pod)?, true, program);
    let status = command
        .args(arguments)
        .status()
        .map_err(|source| Error::Spawn { program: program.clone(), source })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn list_programs(cluster: bool) -> Result<ExitCode, Error> {
    let begin = Instant::now();
    let all = programs::all()?;
    let mut paths = vec![
        all.coredns,
        all.alertmanager,
        all.prometheus,
        all.promtool,
        all.getaddrinfo_glibc,
        all.getaddrinfo_musl,
    ];
    if cluster {
        paths.extend(programs::cluster::all()?.paths());
        paths.sort();
        paths.dedup();
    }
    paths.iter().for_each(|path| println!("{}", path.display()));
    println!("{} programs ready after {:.1} s", paths.len(), begin.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}
