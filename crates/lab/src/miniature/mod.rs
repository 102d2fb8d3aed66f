//! How is a cluster's network raised on one machine, made ready, and taken away again?

pub mod coredns;
pub mod inventory;
pub mod kube_proxy;
mod network;
pub(crate) mod plan;

use std::fs;
use std::ops::Deref;
use std::time::Duration;

use crate::dns::{self, Kind};
use crate::journal::{self, Entry, Journal};
use crate::process::{Daemon, ProcessId};
use crate::{Error, Site, alertmanager, interrupt, programs};

/// What may be chosen about a lab.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: two labs of different names stand side by side.
    pub name: String,
    /// What is drawn from it: node placement, pod addresses, the target port.
    pub seed: u64,
    /// 53 or 5353 in the place of what the seed says.
    pub target_port: Option<u16>,
}

/// A lab that is taken down when this is dropped.
#[derive(Debug)]
pub struct Lab {
    site: Site,
    kept: bool,
}

impl Options {
    /// A lab of this name with this seed.
    pub fn new(name: impl Into<String>, seed: u64) -> Self {
        Self { name: name.into(), seed, target_port: None }
    }
}

impl Lab {
    /// Raises the lab and returns when a pod gets answers through the ClusterIP. What dead labs left is undone
    /// first; if anything fails here, or the process is interrupted, nothing is left.
    pub fn up(options: &Options) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NeedsRoot);
        }
        interrupt::install();
        programs::coredns()?;
        let alertmanager = programs::alertmanager()?;
        let journal = interrupt::step(|| Journal::create(&options.name))?;
        let site = plan::draw(&options.name, options.seed, options.target_port, alertmanager);
        // From here on its Drop cleans up.
        let lab = Self { site, kept: false };
        lab.raise(&journal)?;
        Ok(lab)
    }

    /// Leaves the lab up when this process ends, until `lab down`.
    pub fn keep(mut self) -> Result<Site, Error> {
        self.site.journal()?.add(&Entry::Kept)?;
        self.kept = true;
        Ok(self.site.clone())
    }

    /// Takes the lab down and tells what could not be undone, which a drop can't.
    pub fn down(mut self) -> Result<(), Error> {
        self.kept = true;
        self.undo()
    }

    fn undo(&self) -> Result<(), Error> {
        let site = &self.site;
        let servers = site.servers.iter().map(|server| &server.daemon);
        let daemons = servers.chain([&site.upstream.daemon, &site.alertmanager.daemon]);
        let ids: Vec<_> = daemons.filter_map(Daemon::id).collect();
        let undone = journal::undo(&site.name);
        ids.into_iter().for_each(ProcessId::reap);
        undone
    }

    fn raise(&self, journal: &Journal) -> Result<(), Error> {
        let site = &self.site;
        write_pod_files(site)?;
        coredns::write_files(site)?;
        alertmanager::write_files(site)?;
        site.save()?;
        network::raise(site, journal)?;
        for node in &site.nodes {
            interrupt::step(|| kube_proxy::install(node))?;
        }
        site.change_endpoints(|_all_serve| ())?;
        interrupt::step(|| site.upstream.daemon.start().map(drop))?;
        for server in &site.servers {
            interrupt::step(|| server.daemon.start().map(drop))?;
        }
        interrupt::step(|| site.alertmanager.daemon.start().map(drop))?;
        self.wait()
    }

    fn wait(&self) -> Result<(), Error> {
        let site = &self.site;
        site.upstream.wait_till_answers(DEADLINE)?;
        for server in &site.servers {
            server.wait_till_answers(DEADLINE)?;
        }
        for pod in &site.pods {
            for service in [site.service.v4, site.service.v6] {
                for name in [coredns::CLUSTER_NAME, coredns::OUTER_NAME] {
                    let what = format!("{name} asked by {} of {service}", pod.name);
                    dns::wait_for(&what, DEADLINE, None, || {
                        dns::ask_udp(&pod.netns, service, name, Kind::Aaaa, Duration::from_millis(500))
                            .map_err(|error| error.to_string())
                            .and_then(|it| if it.records > 0 { Ok(()) } else { Err(format!("{it:?}")) })
                    })?;
                }
            }
        }
        for server in &site.servers {
            coredns::wait_till_ready(server, DEADLINE)?;
        }
        site.alertmanager.wait_till_ready(DEADLINE)
    }
}

impl Deref for Lab {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Someone may have taken it down, and someone else raised another of this name.
        if !self.kept
            && journal::is_own(&self.site.name)
            && let Err(error) = self.undo()
        {
            eprintln!("lab {} left something, the next start tries again: {error}", self.site.name);
        }
    }
}

/// Takes down a lab that stands, whoever raised it.
pub fn down(name: &str) -> Result<(), Error> {
    Journal::open(name)?;
    journal::undo(name)
}

/// What the kubelet puts into pods. The machine's own nsswitch.conf may ask systemd-resolved instead of DNS.
fn write_pod_files(site: &Site) -> Result<(), Error> {
    for (path, service) in [(site.resolv_conf(), site.service.v4), (site.resolv_conf_v6(), site.service.v6)] {
        let text = format!(
            "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5\n",
            service.ip(),
        );
        fs::write(&path, text).map_err(Error::file("write", &path))?;
    }
    let path = site.dir.join("nsswitch.conf");
    fs::write(&path, "hosts: files dns\n").map_err(Error::file("write", &path))
}

/// Far more than a busy machine needs.
const DEADLINE: Duration = Duration::from_secs(30);
