//! A lab under the eyes of nslookout: does a fault that goes in come out as the right verdict?
//!
//! On the miniature nslookout runs as a process of its own in the monitor namespace and is told nothing but its
//! configuration and the inventory file; in a real cluster it runs as Helm installed it. Its answers are read the way a
//! user reads them, by `nslookout status` and from the real Alertmanager. The demo, the benchmark and the end-to-end tests are all made of this.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::alertmanager::{Alert, http_get};
use crate::kubernetes::webhook::{Told, Webhook};
use crate::kubernetes::{Cluster, product};
use crate::process::ProcessId;
use crate::site::Pod;
use crate::{Error, Site};

pub use judgement::{Judgement, Span, explains_others};
pub use status::{Incident, OBSERVERS, Status, Suffers, Symptoms};
pub use told::{wrong_alerts, wrong_calls};

mod judgement;
pub mod kernel;
mod status;
mod told;

/// nslookout at work on a site.
#[derive(Debug)]
pub struct Trial {
    /// The site it looks at; of a real cluster as it was when it was last drawn.
    pub site: Site,
    /// The nslookout binary.
    binary: PathBuf,
    runs: Runs,
    /// Who is called by Alertmanager, where it calls anybody.
    pub webhook: Option<Webhook>,
}

/// How nslookout runs.
#[derive(Debug)]
enum Runs {
    /// In one process of the lab's, with the file of what it said.
    Process(Child, PathBuf),
    /// In parts, installed in a cluster; with the namespace of the correlator's pod.
    Installed(Box<Cluster>, PathBuf),
}

impl Trial {
    /// nslookout that is installed in a cluster, together with Alertmanager, which calls this webhook. Waits till all
    /// its observers look and lookups are answered.
    pub fn installed(cluster: &Cluster, binary: &Path, webhook: Webhook) -> Result<Self, Error> {
        let runs = Runs::Installed(Box::new(cluster.clone()), PathBuf::new());
        let mut trial =
            Self { site: cluster.site()?, binary: binary.to_owned(), runs, webhook: Some(webhook) };
        trial.wait_till_ready(&[])?;
        Ok(trial)
    }

    /// Starts nslookout on the site and waits till all its observers look and lookups are answered.
    pub fn start(site: &Site, binary: &Path) -> Result<Self, Error> {
        Self::start_with(site, binary, "", &[])
    }

    /// The same with more configuration, as YAML, by which these observers (of [`OBSERVERS`]) can't look.
    pub fn start_with(site: &Site, binary: &Path, more: &str, blind: &[&str]) -> Result<Self, Error> {
        let config = site.dir.join("nslookout.yaml");
        fs::write(&config, configuration(site) + more).map_err(Error::file("write", &config))?;
        let log = site.dir.join("nslookout.log");
        let output = File::create(&log).map_err(Error::file("write", &log))?;
        let errors = output.try_clone().map_err(Error::file("write", &log))?;
        let mut command = site.command_in(&site.monitor, false, &binary.display().to_string());
        command.args(["run", "--config"]).arg(&config).env("NSLOOKOUT_LOG", "info");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let process = spawn(&mut command)?;
        let runs = Runs::Process(process, log);
        let mut trial = Self { site: site.clone(), binary: binary.to_owned(), runs, webhook: None };
        trial.wait_till_ready(blind)?;
        Ok(trial)
    }

    /// A real cluster's pods may be others than before.
    pub fn draw_anew(&mut self) -> Result<(), Error> {
        if let Runs::Installed(cluster, _) = &self.runs {
            self.site = cluster.site()?;
        }
        Ok(())
    }

    fn wait_till_ready(&mut self, blind: &[&str]) -> Result<(), Error> {
        let what = "nslookout looks everywhere and every lookup is answered";
        let ready = |status: &Status| {
            let looking = status.looking();
            let all = OBSERVERS.iter().all(|name| blind.contains(name) || looking.contains(name));
            status.state == "healthy" && all
        };
        self.wait_for(what, READY_WITHIN, ready).map(drop)
    }

    /// What nslookout says now.
    pub fn status(&mut self) -> Result<Status, Error> {
        let text = self.ask("json")?;
        serde_json::from_str(&text).map_err(|source| Error::Json { path: "nslookout status".into(), source })
    }

    /// What nslookout says now, as a person reads it.
    pub fn verdict(&mut self) -> Result<String, Error> {
        self.ask("table")
    }

    /// The process id of nslookout, where it runs in one process.
    pub fn pid(&self) -> Option<u32> {
        match &self.runs {
            Runs::Process(process, _) => Some(process.id()),
            Runs::Installed(..) => None,
        }
    }

    /// Waits till the status is as wanted; the error shows the last one.
    pub fn wait_for(
        &mut self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&Status) -> bool,
    ) -> Result<Status, Error> {
        let start = Instant::now();
        loop {
            if let Runs::Process(process, _) = &mut self.runs
                && let Ok(Some(code)) = process.try_wait()
            {
                return Err(Error::NotRunning { name: format!("nslookout ({code})"), log: self.log_tail() });
            }
            let last = match self.status() {
                Ok(status) if wanted(&status) => return Ok(status),
                Ok(status) => format!("{status:#?}"),
                Err(error) => error.to_string(),
            };
            if start.elapsed() > deadline {
                let (seconds, log) = (deadline.as_secs(), self.log_tail());
                return Err(Error::NotReady { what: what.to_owned(), seconds, last, log });
            }
            thread::sleep(POLL);
        }
    }

    /// Waits till the real Alertmanager holds an alert of that cause.
    pub fn wait_for_alert(&self, cause: &str, deadline: Duration) -> Result<Alert, Error> {
        let start = Instant::now();
        loop {
            let alerts = self.site.alertmanager.alerts()?;
            let found =
                alerts.into_iter().find(|alert| alert.labels.get("cause").is_some_and(|c| c == cause));
            if let Some(alert) = found {
                return Ok(alert);
            }
            if start.elapsed() > deadline {
                return Err(Error::NotReady {
                    what: format!("an alert of {cause} in Alertmanager"),
                    seconds: deadline.as_secs(),
                    last: "none".into(),
                    log: self.log_tail(),
                });
            }
            thread::sleep(POLL);
        }
    }

    /// What the webhook was told after the first `before` calls.
    pub fn told_since(&self, before: usize) -> Vec<Told> {
        let told = self.webhook.as_ref().map(Webhook::told).unwrap_or_default();
        told.into_iter().skip(before).collect()
    }

    /// Waits till no incident is open.
    pub fn wait_till_calm(&mut self, deadline: Duration) -> Result<Status, Error> {
        self.wait_for("no incident is open", deadline, |status| status.incidents.is_empty())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = match &self.runs {
            Runs::Process(_, log) => fs::read_to_string(log),
            Runs::Installed(cluster, _) => {
                let words = ["logs", product::NAMESPACE, "deploy/nslookout-correlator", "--tail=20"];
                Ok(cluster.run(&words).unwrap_or_else(|error| error.to_string()))
            }
        };
        crate::command::tail(&text.unwrap_or_default(), 2000).to_owned()
    }

    fn ask(&mut self, output: &str) -> Result<String, Error> {
        let netns = match &mut self.runs {
            Runs::Process(..) => &self.site.monitor,
            Runs::Installed(cluster, netns) => {
                // Where the node's table is full, `kubectl exec` gets no connection to the kubelet: the pod's own
                // loopback is asked from inside its namespace.
                if !netns.exists() {
                    *netns = correlator(cluster)?;
                }
                netns
            }
        };
        let mut command = crate::command::inside(netns, &self.binary);
        command.args(["status", "--output", output]);
        let answer = crate::command::output(&mut command, None)?;
        if answer.stdout.is_empty() {
            return Err(crate::command::failure(&command, &answer));
        }
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let Runs::Process(process, _) = &mut self.runs else { return };
        // SIGTERM, as a user would; it may not take longer than a second.
        if let Some(id) = i32::try_from(process.id()).ok().and_then(ProcessId::of) {
            drop(id.signal(Signal::SIGTERM));
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if matches!(process.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        drop(process.kill());
        drop(process.wait());
    }
}

/// The namespace of the correlator's pod, as long as its container runs.
fn correlator(cluster: &Cluster) -> Result<PathBuf, Error> {
    let pods = cluster.pods("app.kubernetes.io/component=correlator")?;
    let running = pods.iter().find(|pod| pod.phase == "Running");
    let pod = running.ok_or_else(|| Error::NotRunning {
        name: "the correlator".to_owned(),
        log: "it has no pod that runs".to_owned(),
    })?;
    cluster.pod_netns(pod)
}

/// The sum of a metric's samples on nslookout's metrics page; nothing where the page has none.
pub fn metric(site: &Site, name: &str) -> Result<Option<f64>, Error> {
    let (status, page) = http_get(&site.monitor, METRICS, "/metrics")?;
    if status != 200 {
        return Err(Error::system(format!("/metrics answered {status}"))(
            std::io::ErrorKind::InvalidData.into(),
        ));
    }
    let is_sample = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let values =
        page.lines().filter(is_sample).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.reduce(|sum, value| sum + value))
}

/// The pods that are probed from: the first one of each node.
pub fn vantages(site: &Site) -> Vec<&Pod> {
    site.nodes.iter().filter_map(|node| site.pods.iter().find(|pod| pod.node == node.name)).collect()
}

/// The configuration of a trial: both nodes, one vantage on each, Alertmanager; all else by default, but that
/// incidents close soon, so that one fault can follow the other.
fn configuration(site: &Site) -> String {
    let nodes: String = site
        .nodes
        .iter()
        .map(|node| format!("  - {{name: {}, netns: {}}}\n", node.name, node.netns.display()))
        .collect();
    let vantages: String = vantages(site)
        .iter()
        .map(|pod| {
            format!("  - {{name: {}, node: {}, netns: {}}}\n", pod.name, pod.node, pod.netns.display())
        })
        .collect();
    format!(
        "cluster:\n  name: {}\n  inventory: {}\nnodes:\n{nodes}vantages:\n{vantages}correlate:\n  closeAfter: 5s\nalertmanagers:\n  addresses: ['http://{}']\n",
        site.name,
        site.inventory.display(),
        site.alertmanager.address,
    )
}

fn spawn(command: &mut Command) -> Result<Child, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|source| Error::Spawn { program, source })
}

/// nslookout's own default.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9853);
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
