//! Is the server that the lab started still there, and how is it stopped, continued, killed, started again?
//!
//! What identifies a process is its id and its start time: ids are used again. Both are kept in a file, so that
//! another process (`lab fault`) finds the server that this one started.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::{Error, command};

/// A process that can't be mistaken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// Its start, in clock ticks since boot (field 22 of /proc/PID/stat).
    pub start: u64,
}

/// A program that runs in a namespace of the lab until it is killed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    /// For messages: "coredns-1".
    pub name: String,
    /// The namespace it runs in.
    pub netns: PathBuf,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Where its id is kept.
    pub pid_file: PathBuf,
}

impl ProcessId {
    /// The running process of this id, if there is one that is not a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, start) = stat(pid)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it still runs (a stopped one does).
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it is stopped (SIGSTOP has taken effect).
    pub fn stopped(self) -> bool {
        matches!(stat(self.pid), Some(('T', start)) if start == self.start)
    }

    /// Sends a signal, if it still runs.
    pub fn signal(self, signal: Signal) -> Result<(), Error> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::system(format!("send {signal} to process {}", self.pid))(errno.into())),
        }
    }

    /// Kills it and waits till it is gone, or a zombie that its parent has yet to ask for.
    pub fn end(self) -> Result<(), Error> {
        self.signal(Signal::SIGKILL)?;
        let what = || format!("process {} did not end", self.pid);
        wait_until(Duration::from_secs(10), || !self.alive())
            .then_some(())
            .ok_or_else(|| Error::system(what())(std::io::ErrorKind::TimedOut.into()))
    }
}

impl ProcessId {
    /// Takes the exit of a dead child that nobody else will ask for, so that no zombie stays.
    pub fn reap(self) {
        if !self.alive() {
            let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

impl Daemon {
    /// Starts it in a process group of its own, so that Ctrl-C in a terminal reaches the lab alone, which then
    /// cleans up. Does not wait till it is ready.
    pub fn start(&self) -> Result<ProcessId, Error> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(Error::file("write", &self.log))?;
        let again = log.try_clone().map_err(Error::file("write", &self.log))?;
        let child = command::inside(&self.netns, &self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Spawn { program: self.program.display().to_string(), source })?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let id = ProcessId::of(pid).ok_or_else(|| self.not_running())?;
        let text = format!("{} {}\n", id.pid, id.start);
        fs::write(&self.pid_file, text).map_err(Error::file("write", &self.pid_file))?;
        Ok(id)
    }

    /// The process, if it runs (a stopped one does).
    pub fn id(&self) -> Option<ProcessId> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let id = ProcessId { pid: pid.parse().ok()?, start: start.parse().ok()? };
        id.alive().then_some(id)
    }

    /// The process; an error with the end of its log if it does not run.
    pub fn running(&self) -> Result<ProcessId, Error> {
        self.id().ok_or_else(|| self.not_running())
    }

    /// SIGSTOP, and waits till it has taken effect.
    pub fn stop(&self) -> Result<(), Error> {
        let id = self.running()?;
        id.signal(Signal::SIGSTOP)?;
        let what = || format!("{} did not stop", self.name);
        wait_until(Duration::from_secs(5), || id.stopped())
            .then_some(())
            .ok_or_else(|| Error::system(what())(std::io::ErrorKind::TimedOut.into()))
    }

    /// SIGCONT.
    pub fn cont(&self) -> Result<(), Error> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// SIGKILL, and waits till it is gone. Nothing to do when it does not run.
    pub fn kill(&self) -> Result<(), Error> {
        let Some(id) = self.id() else { return Ok(()) };
        id.end()?;
        id.reap();
        Ok(())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        command::tail(&String::from_utf8_lossy(&text), 2_000).to_owned()
    }

    /// The length of its log now: what comes later is news.
    pub fn log_length(&self) -> u64 {
        File::open(&self.log).and_then(|file| file.metadata()).map_or(0, |data| data.len())
    }

    fn not_running(&self) -> Error {
        Error::NotRunning { name: self.name.clone(), log: self.log_tail() }
    }
}

/// Asks every few milliseconds until the answer is yes; false when the deadline came first.
pub fn wait_until(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// State and start time. The name in between may hold spaces and brackets, so fields count from the last ')'.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_start_time_is_another_process() {
        let own = ProcessId::own().unwrap();
        assert!(own.alive());
        assert!(!ProcessId { start: own.start + 1, ..own }.alive());
    }

    #[test]
    fn an_ended_child_is_not_alive_and_can_be_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        id.end().unwrap();
        assert!(!id.alive());
        id.reap();
        assert!(child.wait().is_err(), "nobody is left to wait for");
    }
}
