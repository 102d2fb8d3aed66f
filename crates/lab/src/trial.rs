//! A lab under the eyes of nslookout: does a fault that goes in come out as the right verdict?
//!
//! nslookout runs as a process of its own in the monitor namespace and is told nothing but its configuration and
//! the inventory file; its answers are read the way a user reads them, by `nslookout status` and from the real
//! Alertmanager. The demo, the benchmark and the end-to-end tests are all made of this.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::alertmanager::{Alert, http_get};
use crate::process::ProcessId;
use crate::site::Pod;
use crate::{Error, Site};

pub use judgement::{Judgement, Span, explains_others};
pub use status::{Incident, OBSERVERS, Status, Suffers, Symptoms};

mod judgement;
pub mod kernel;
mod status;

/// nslookout at work on a site.
#[derive(Debug)]
pub struct Trial<'a> {
    /// The site it looks at.
    pub site: &'a Site,
    /// The nslookout binary.
    binary: PathBuf,
    process: Child,
    /// What it said.
    pub log: PathBuf,
}

impl<'a> Trial<'a> {
    /// Starts nslookout on the site and waits till all its observers look and lookups are answered.
    pub fn start(site: &'a Site, binary: &Path) -> Result<Self, Error> {
        Self::start_with(site, binary, "", &[])
    }

    /// The same with more configuration, as YAML, by which these observers (of [`OBSERVERS`]) can't look.
    pub fn start_with(site: &'a Site, binary: &Path, more: &str, blind: &[&str]) -> Result<Self, Error> {
        let config = site.dir.join("nslookout.yaml");
        fs::write(&config, configuration(site) + more).map_err(Error::file("write", &config))?;
        let log = site.dir.join("nslookout.log");
        let output = File::create(&log).map_err(Error::file("write", &log))?;
        let errors = output.try_clone().map_err(Error::file("write", &log))?;
        let mut command = site.command_in(&site.monitor, false, &binary.display().to_string());
        command.args(["run", "--config"]).arg(&config).env("NSLOOKOUT_LOG", "info");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let process = spawn(&mut command)?;
        let mut trial = Self { site, binary: binary.to_owned(), process, log };
        trial.wait_for(
            "nslookout looks everywhere and every lookup is answered",
            READY_WITHIN,
            |status| {
                let looking = status.looking();
                let ready = OBSERVERS.iter().all(|name| blind.contains(name) || looking.contains(name));
                status.state == "healthy" && ready
            },
        )?;
        Ok(trial)
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

    /// The process id of nslookout.
    pub fn pid(&self) -> u32 {
        self.process.id()
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
            if let Ok(Some(code)) = self.process.try_wait() {
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

    /// Waits till no incident is open.
    pub fn wait_till_calm(&mut self, deadline: Duration) -> Result<Status, Error> {
        self.wait_for("no incident is open", deadline, |status| status.incidents.is_empty())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        crate::command::tail(&text, 2000).to_owned()
    }

    fn ask(&self, output: &str) -> Result<String, Error> {
        let mut command = self.site.command_in(&self.site.monitor, false, &self.binary.display().to_string());
        command.args(["status", "--output", output]);
        let answer = crate::command::output(&mut command, None)?;
        if answer.stdout.is_empty() {
            return Err(crate::command::failure(&command, &answer));
        }
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // SIGTERM, as a user would; it may not take longer than a second.
        if let Some(id) = i32::try_from(self.process.id()).ok().and_then(ProcessId::of) {
            drop(id.signal(Signal::SIGTERM));
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        drop(self.process.kill());
        drop(self.process.wait());
    }
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
