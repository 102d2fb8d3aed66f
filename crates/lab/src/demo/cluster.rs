//! `lab demo-cluster`: the same in a real Kubernetes, where Helm installs nslookout and Alertmanager runs as a pod.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::show_all;
use crate::faults::{self, Fault};
use crate::kubernetes::webhook::Webhook;
use crate::kubernetes::{Cluster, Options, ProxyMode, Raised, progress};
use crate::trial::Trial;
use crate::{Error, command, programs};

/// What is shown, and of what.
#[derive(Debug, Clone, clap::Args)]
pub struct Shown {
    /// The nslookout binary.
    #[arg(long)]
    pub nslookout: PathBuf,
    /// The chart.
    #[arg(long, default_value = "charts/nslookout")]
    pub chart: PathBuf,
    /// Only these faults; without any: all that a cluster can have.
    #[arg(long)]
    pub fault: Vec<String>,
    /// kube-proxy writes its rules with nft.
    #[arg(long)]
    pub nftables: bool,
    /// What is drawn from it: ports, victims.
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Shown {
    /// The one that was given, or another.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| rand::random_range(0..1_000_000))
    }

    /// How kube-proxy writes its rules.
    pub fn proxy_mode(&self) -> ProxyMode {
        if self.nftables { ProxyMode::Nftables } else { ProxyMode::Iptables }
    }
}

/// Runs the faults one after the other and shows all of it. True if each verdict was right, and no part of nslookout
/// had to be started again.
pub fn demo(shown: &Shown) -> Result<bool, Error> {
    let faults = chosen(&shown.fault)?;
    let seed = shown.seed();
    let start = Instant::now();
    println!("seed {seed}\nraising a Kubernetes of two nodes ...");
    let proxy_mode = shown.proxy_mode();
    let cluster = Raised::up(&Options { proxy_mode, ..Options::new("demo-cluster") }, &mut progress())?;
    println!(
        "  up after {:.1} s; kube-proxy is in {} mode",
        start.elapsed().as_secs_f64(),
        proxy_mode.name()
    );
    println!("Alertmanager starts as a pod, and Helm installs nslookout ...");
    let mut trial = installed(&cluster, &shown.nslookout, &shown.chart)?;
    println!("  it looks everywhere, every lookup is answered after {:.1} s", start.elapsed().as_secs_f64());
    let right = show_all(&mut trial, &faults, seed)?;
    let restarts = cluster.restarts("nslookout")?;
    println!(
        "parts of nslookout that were started again: {}",
        if restarts.is_empty() { "none".to_owned() } else { format!("{restarts:?}") }
    );
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    drop(trial);
    cluster.down()?;
    Ok(right && restarts.is_empty())
}

/// Installs Alertmanager, its webhook and nslookout, and waits till that looks everywhere. The correlator is where
/// Alertmanager is not: what one node's faults do to both ways can be seen.
pub fn installed(cluster: &Cluster, binary: &Path, chart: &Path) -> Result<Trial, Error> {
    let helm = programs::cluster::all()?.helm.join("helm");
    cluster.load_nslookout(binary, env!("CARGO_PKG_VERSION"))?;
    cluster.run(&["create", "namespace", "nslookout"])?;
    let (webhook, more) = told(cluster)?;
    command::run(cluster.helm_install(&helm, chart).args(more), None)?;
    Trial::installed(cluster, binary, webhook)
}

/// Installs Alertmanager and its webhook; with the arguments of Helm by which nslookout tells it.
pub fn told(cluster: &Cluster) -> Result<(Webhook, Vec<String>), Error> {
    let webhook = Webhook::listen(&cluster.monitor)?;
    let [first, .., last] = cluster.nodes.as_slice() else {
        return Err(Error::Machine { missing: "a second node".to_owned() });
    };
    cluster.install_alertmanager(&first.name)?;
    let place = format!("correlator.nodeSelector.kubernetes\\.io/hostname={}", last.name);
    Ok((webhook, vec!["--set".to_owned(), cluster.alertmanager_value()?, "--set".to_owned(), place]))
}

/// The faults of these names; none: all that a cluster can have.
pub fn chosen(only: &[String]) -> Result<Vec<&'static Fault>, Error> {
    if only.is_empty() {
        return Ok(faults::of_cluster().collect());
    }
    let fits = |name: &String| {
        let fault = faults::by_name(name)?;
        let missing = || Error::Machine { missing: format!("{name} is a fault of the miniature alone") };
        fault.on_cluster.then_some(fault).ok_or_else(missing)
    };
    only.iter().map(fits).collect()
}
