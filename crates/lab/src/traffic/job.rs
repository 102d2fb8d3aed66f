//! How does traffic go on when the command that started it has ended?
//!
//! A [`Job`] is data: `lab traffic job SPEC REPORT` reads it from a file, runs it until SIGTERM (or until its
//! folder is gone), and writes what it counts to the report, by rename, as it changes and once at its end. A [`Helper`] starts such a process inside a namespace of the lab, so that `lab down` ends it in any
//! case, and finds it again from another process.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use super::Seen;
use super::fill::{Filler, Occupancy};
use super::pinned::Pinned;
use super::storm::Storm;
use crate::process::{Daemon, wait_until};
use crate::site::replace;
use crate::{Error, Site};

/// What a helper process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// Two pods' flows clash.
    Storm(Storm),
    /// One client keeps its port.
    Pinned(Pinned),
    /// The table of this namespace is filled, and kept full.
    Fill(PathBuf),
}

/// What a job has counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// By client: a storm has two, a pinned client is the first.
    pub clients: [Seen; 2],
    /// How full the table is, for a job that fills it.
    pub occupancy: Option<Occupancy>,
}

/// A job in a process of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Helper {
    daemon: Daemon,
    report: PathBuf,
}

impl Job {
    /// Runs it until SIGTERM or SIGINT. Call it from a process's only thread: the signals are blocked here, and
    /// threads that were started before would still die of them.
    pub fn run(&self, report: &Path) -> Result<(), Error> {
        let ending = Ending::watch()?;
        match self {
            Self::Storm(storm) => {
                let blowing = storm.start()?;
                ending.report_until(report, COUNTS, || {
                    Ok(Report { clients: blowing.seen(), occupancy: None })
                })?;
                write(report, &Report { clients: blowing.stop(), occupancy: None })
            }
            Self::Pinned(pinned) => {
                let sending = pinned.start()?;
                let one = |seen| Report { clients: [seen, Seen::default()], occupancy: None };
                ending.report_until(report, COUNTS, || Ok(one(sending.seen())))?;
                write(report, &one(sending.stop()))
            }
            Self::Fill(netns) => {
                let mut filler = Filler::open(netns, 0)?;
                filler.fill_for_good(Duration::from_secs(30))?;
                ending.report_until(report, SLOTS, || {
                    let occupancy = Some(filler.top_up()?);
                    Ok(Report { occupancy, ..Report::default() })
                })
            }
        }
    }
}

impl Helper {
    /// Writes the job down for a process inside `netns`. `name` tells it from other helpers of this site. Nothing
    /// runs yet, so that the caller can first write down how to end it.
    pub fn prepare(site: &Site, name: &str, netns: &Path, job: &Job) -> Result<Self, Error> {
        let file = |extension: &str| site.dir.join(format!("{name}.{extension}"));
        let (spec, report) = (file("job.json"), file("report.json"));
        let text =
            serde_json::to_vec_pretty(job).map_err(|source| Error::Json { path: spec.clone(), source })?;
        replace(&spec, &text)?;
        match fs::remove_file(&report) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &report)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let args = ["traffic".into(), "job".into(), spec.display().to_string(), report.display().to_string()];
        let daemon = Daemon {
            name: name.to_owned(),
            netns: netns.to_owned(),
            program: lab_program()?,
            args: args.into(),
            log: file("log"),
            pid_file: file("pid"),
        };
        Ok(Self { daemon, report })
    }

    /// What the helper of this name did when it last ran in this site, if it did.
    pub fn last(site: &Site, name: &str) -> Option<(Job, Report)> {
        let read = |extension: &str| fs::read(site.dir.join(format!("{name}.{extension}"))).ok();
        let job = serde_json::from_slice(&read("job.json")?).ok()?;
        Some((job, serde_json::from_slice(&read("report.json")?).ok()?))
    }

    /// Starts the process.
    pub fn start(&self) -> Result<(), Error> {
        self.daemon.start().map(drop)
    }

    /// What it has counted so far. Nothing yet: all zero.
    pub fn report(&self) -> Report {
        fs::read(&self.report).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Waits until the report is as wanted.
    pub fn wait_for(&self, deadline: Duration, wanted: impl Fn(&Report) -> bool) -> Result<Report, Error> {
        let start = Instant::now();
        let mut last = Report::default();
        loop {
            last = if self.report.exists() { self.report() } else { last };
            if wanted(&last) {
                return Ok(last);
            }
            self.daemon.running()?;
            if start.elapsed() > deadline {
                return Err(Error::NotReady {
                    what: self.daemon.name.clone(),
                    seconds: deadline.as_secs(),
                    last: format!("{last:?}"),
                    log: self.daemon.log_tail(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, waits for its last report, and gives that. A helper that is gone already, or never
    /// started, is no error.
    pub fn finish(&self) -> Result<Report, Error> {
        if let Some(id) = self.daemon.id() {
            id.signal(Signal::SIGTERM)?;
            wait_until(Duration::from_secs(5), || self.daemon.id().is_none());
            id.end()?;
        }
        Ok(self.report())
    }
}

/// SIGTERM and SIGINT, as something to wait for.
struct Ending {
    signals: SignalFd,
}

impl Ending {
    fn watch() -> Result<Self, Error> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()
            .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC))
            .map(|signals| Self { signals })
            .map_err(|errno| Error::system("watch for signals")(errno.into()))
    }

    /// Asks for a report at each tick and writes it when it has changed, until a signal comes or the lab's folder
    /// is gone.
    fn report_until(
        &self,
        path: &Path,
        tick: Duration,
        mut now: impl FnMut() -> Result<Report, Error>,
    ) -> Result<(), Error> {
        let mut written = None;
        loop {
            let report = now()?;
            if path.parent().is_none_or(|folder| !folder.exists()) {
                return Ok(());
            }
            if written != Some(report) {
                write(path, &report)?;
                written = Some(report);
            }
            if self.came_within(tick) {
                return Ok(());
            }
        }
    }

    fn came_within(&self, wait: Duration) -> bool {
        let milliseconds = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
        let mut wanted = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::from(milliseconds)).is_ok_and(|ready| ready > 0)
    }
}

/// How often clients' counts are told.
const COUNTS: Duration = Duration::from_millis(200);
/// How often freed slots of a full table are taken. In between they let packets in.
const SLOTS: Duration = Duration::from_millis(10);

/// The `lab` binary: this process's own, or the one beside it (a test's binary lies in `deps` below it).
/// LAB_PROGRAM names another.
fn lab_program() -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os("LAB_PROGRAM") {
        return Ok(named.into());
    }
    let own = std::env::current_exe().map_err(Error::system("find the lab's own program"))?;
    let candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join("lab"));
    std::iter::once(own.clone())
        .filter(|own| own.file_name().is_some_and(|name| name == "lab"))
        .chain(candidates)
        .find(|program| program.is_file())
        .ok_or_else(|| {
            let missing =
                std::io::Error::new(std::io::ErrorKind::NotFound, "it was not built (cargo build -p lab)");
            Error::Spawn { program: own.with_file_name("lab").display().to_string(), source: missing }
        })
}

fn write(path: &Path, report: &Report) -> Result<(), Error> {
    let text = serde_json::to_vec(report).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    replace(path, &text)
}
