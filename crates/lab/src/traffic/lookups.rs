//! What do real applications get, by the real getaddrinfo of two C libraries?
//!
//! One process for each pod and library, 100 lookups a second in all. Each writes a line for each lookup at its
//! end, so these files are the truth of who suffered: a lookup is failed, late, or fine.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Error, Site, programs};

/// The C libraries whose resolvers are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    /// This machine's glibc.
    Glibc,
    /// Debian's musl.
    Musl,
}

/// One call of getaddrinfo that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The pod that called.
    pub pod: String,
    /// The library that resolved.
    pub libc: Libc,
    /// The name asked for.
    pub name: &'static str,
    /// When it was called.
    pub start: SystemTime,
    /// How long the caller waited.
    pub took: Duration,
    /// "OK", "EAI_AGAIN" and so on.
    pub result: String,
}

/// How many calls ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All calls.
    pub made: u64,
    /// Those that ended without an address.
    pub failed: u64,
    /// Those that got an address, but only after [`LATE`] or more.
    pub late: u64,
}

/// A call that takes this long has lost a packet: without a loss it takes milliseconds, and the first resend of
/// any library comes after 2.5 s.
pub const LATE: Duration = Duration::from_secs(1);

/// The processes that look names up.
#[derive(Debug)]
pub(super) struct Lookups {
    callers: Vec<Caller>,
}

#[derive(Debug)]
struct Caller {
    pod: String,
    libc: Libc,
    name: &'static str,
    lines: PathBuf,
    process: Child,
}

impl Lookups {
    pub(super) fn start(site: &Site) -> Result<Self, Error> {
        let folder = site.dir.join("lookups");
        fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        let libcs =
            [(Libc::Glibc, programs::getaddrinfo_glibc()?), (Libc::Musl, programs::getaddrinfo_musl()?)];
        let callers = site.pods.iter().flat_map(|pod| libcs.iter().map(move |libc| (pod, libc)));
        let rate = format!("{}", f64::from(PER_SECOND) / (site.pods.len() * libcs.len()).max(1) as f64);
        // As they are pushed their Drop takes over.
        let mut lookups = Self { callers: Vec::new() };
        for ((pod, (libc, program)), name) in callers.zip(NAMES.iter().cycle()) {
            let lines = folder.join(format!("{}-{libc:?}.lines", pod.name).to_lowercase());
            let file = File::create(&lines).map_err(Error::file("write", &lines))?;
            let process = site
                .command_in(&pod.netns, true, &program.display().to_string())
                .args([name, "--rate", &rate, "--threads", THREADS])
                .stdin(Stdio::null())
                .stdout(file)
                .process_group(0)
                .spawn()
                .map_err(|source| Error::Spawn { program: program.display().to_string(), source })?;
            lookups.callers.push(Caller { pod: pod.name.clone(), libc: *libc, name, lines, process });
        }
        Ok(lookups)
    }

    /// The calls that were begun in this span and have ended. One that fails may take 15 s and more: ask again
    /// later for the whole truth.
    pub(super) fn calls(&self, from: SystemTime, to: SystemTime) -> Result<Vec<Call>, Error> {
        let mut calls = Vec::new();
        for caller in &self.callers {
            let text = fs::read_to_string(&caller.lines).map_err(Error::file("read", &caller.lines))?;
            let ended = text.lines().filter_map(|line| caller.call(line));
            calls.extend(ended.filter(|call| call.start >= from && call.start < to));
        }
        Ok(calls)
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        for caller in &mut self.callers {
            drop(caller.process.kill());
        }
        for caller in &mut self.callers {
            drop(caller.process.wait());
        }
    }
}

impl Caller {
    /// A line: start and duration in nanoseconds, result, addresses. A half-written last line is none.
    fn call(&self, line: &str) -> Option<Call> {
        let mut fields = line.split(' ');
        let start = UNIX_EPOCH + Duration::from_nanos(fields.next()?.parse().ok()?);
        let took = Duration::from_nanos(fields.next()?.parse().ok()?);
        let result = fields.next()?.to_owned();
        fields.nth(1)?;
        Some(Call { pod: self.pod.clone(), libc: self.libc, name: self.name, start, took, result })
    }
}

impl Call {
    /// It ended with an address.
    pub fn answered(&self) -> bool {
        self.result == "OK"
    }
}

impl Tally {
    /// Counts calls.
    pub fn of<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Self {
        calls.into_iter().fold(Self::default(), |tally, call| Self {
            made: tally.made + 1,
            failed: tally.failed + u64::from(!call.answered()),
            late: tally.late + u64::from(call.answered() && call.took >= LATE),
        })
    }
}

/// Lookups a second, of all processes together.
const PER_SECOND: u32 = 100;

/// Free threads are needed to keep the rate while lookups hang: 12.5 a second that take 5 s occupy 63.
const THREADS: &str = "64";

/// Names inside and outside the cluster, whole and short. All exist.
const NAMES: [&str; 4] =
    ["kubernetes.default.svc.cluster.local.", "example.com.", "web-3", "api.example.org."];

#[cfg(test)]
mod tests {
    use super::*;

    fn call(took_ms: u64, result: &str) -> Call {
        Call {
            pod: "client-a1".into(),
            libc: Libc::Musl,
            name: "web-3",
            start: UNIX_EPOCH,
            took: Duration::from_millis(took_ms),
            result: result.into(),
        }
    }

    #[test]
    fn a_failed_call_is_not_counted_as_late_too() {
        let calls = [call(1, "OK"), call(2_500, "OK"), call(5_000, "EAI_AGAIN"), call(1, "EAI_NONAME")];
        assert_eq!(Tally::of(&calls), Tally { made: 4, failed: 2, late: 1 });
    }
}
