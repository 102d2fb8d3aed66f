//! `lab cluster`: raise a real Kubernetes, look at it, use it, take it down.

use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;

use crate::kubernetes::{Cluster, Options, ProxyMode, Raised, down, progress};
use crate::{Error, journal};

/// What can be done with a cluster.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  lab cluster up\n  lab cluster kubectl -- get pods -A -o wide\n  lab cluster down"
)]
pub enum ClusterCommand {
    /// Raise a cluster and leave it up.
    Up {
        /// Which one.
        #[command(flatten)]
        cluster: Named,
        /// How kube-proxy writes its rules.
        #[arg(long, value_enum, default_value = "iptables")]
        proxy_mode: Mode,
        /// IPv6 beside IPv4.
        #[arg(long)]
        dual_stack: bool,
        /// How many nodes, 2 to 9.
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// Client pods on each node.
        #[arg(long, default_value_t = 2)]
        clients: u8,
        /// Where CoreDNS listens: 53 or 5353.
        #[arg(long, default_value_t = 53)]
        target_port: u16,
    },
    /// Tell what runs, and what the cluster says of itself.
    Status {
        /// Which one.
        #[command(flatten)]
        cluster: Named,
    },
    /// Run kubectl as the cluster's administrator.
    Kubectl {
        /// Which one.
        #[command(flatten)]
        cluster: Named,
        /// kubectl's arguments.
        #[arg(last = true)]
        words: Vec<String>,
    },
    /// Take a cluster down; nothing is left.
    Down {
        /// Which one.
        #[command(flatten)]
        cluster: Named,
    },
}

/// A cluster by its name.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// The cluster's name.
    #[arg(long, default_value = "cluster")]
    name: String,
}

/// As the command line has it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Mode {
    /// iptables-restore.
    Iptables,
    /// nft.
    Nftables,
}

impl ClusterCommand {
    /// Does it. What dead labs left has been undone by now.
    pub fn run(self) -> Result<ExitCode, Error> {
        match self {
            Self::Up { cluster, proxy_mode, dual_stack, nodes, clients, target_port } => {
                let proxy_mode = match proxy_mode {
                    Mode::Iptables => ProxyMode::Iptables,
                    Mode::Nftables => ProxyMode::Nftables,
                };
                up(&Options { name: cluster.name, proxy_mode, dual_stack, nodes, clients, target_port })
            }
            Self::Status { cluster } => status(&Cluster::load(&cluster.name)?),
            Self::Kubectl { cluster, words } => kubectl(&Cluster::load(&cluster.name)?, &words),
            Self::Down { cluster } => {
                let begin = Instant::now();
                down(&cluster.name)?;
                let took = begin.elapsed().as_secs_f64();
                println!("cluster {} is down after {took:.1} s, nothing of it is left", cluster.name);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn up(options: &Options) -> Result<ExitCode, Error> {
    let begin = Instant::now();
    let raised = Raised::up(options, &mut progress())?;
    let figures = raised.figures()?;
    raised.keep()?;
    let lab = std::env::args().next().unwrap_or_else(|| "lab".to_owned());
    let name = if options.name == "cluster" { String::new() } else { format!(" --name {}", options.name) };
    println!(
        "cluster {} is up: {} nodes Ready, {} pods Running after {:.1} s; look around with: {lab} cluster kubectl{name} -- get pods -A",
        options.name,
        figures.nodes,
        figures.pods,
        begin.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

fn status(cluster: &Cluster) -> Result<ExitCode, Error> {
    let options = &cluster.options;
    println!(
        "cluster {}  kube-proxy in {} mode  {}",
        options.name,
        options.proxy_mode.name(),
        journal::folder(&options.name).display()
    );
    for daemon in cluster.daemons() {
        match daemon.id() {
            Some(id) if id.stopped() => println!("{:26} stopped (process {})", daemon.name, id.pid),
            Some(id) => println!("{:26} running (process {})", daemon.name, id.pid),
            None => println!("{:26} not running, see {}", daemon.name, daemon.log.display()),
        }
    }
    kubectl(cluster, &["get", "nodes,pods", "-A", "-o", "wide"].map(str::to_owned))
}

fn kubectl(cluster: &Cluster, words: &[String]) -> Result<ExitCode, Error> {
    let status = cluster
        .kubectl()
        .args(words)
        .status()
        .map_err(|source| Error::Spawn { program: cluster.kubectl.display().to_string(), source })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
