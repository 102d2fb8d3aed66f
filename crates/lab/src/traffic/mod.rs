//! What traffic does the lab make by itself, and what became of it?
//!
//! Traffic of faults runs in helper processes ([`job`]), because a fault is switched on by one command and off
//! by another. All of it counts for itself what was lost: that is the truth that verdicts are held against.

pub mod background;
pub mod fill;
pub mod job;
pub mod lookups;
pub mod pinned;
pub mod question;
pub mod storm;

use std::fs;
use std::path::PathBuf;

use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::Error;

pub use background::{Background, Counts, ECHO_PORT, REFUSED_PORT};
pub use lookups::{Call, LATE, Libc, Tally};
pub use question::Question;

/// What one client saw of its own queries. Once it has stopped, sent = answered + lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Queries that were handed to the kernel.
    pub sent: u64,
    /// Answered within a second.
    pub answered: u64,
    /// No answer within a second.
    pub lost: u64,
    /// Not sent: the port was taken or the kernel refused the send.
    pub unsent: u64,
}

/// `lab traffic`: for the lab's own use.
#[derive(Debug, Subcommand)]
pub enum TrafficCommand {
    /// Run one job until SIGTERM.
    Job {
        /// The job, as JSON.
        spec: PathBuf,
        /// Where to write what it counts.
        report: PathBuf,
    },
}

impl TrafficCommand {
    /// Runs it to its end.
    pub fn run(self) -> Result<(), Error> {
        match self {
            Self::Job { spec, report } => {
                let text = fs::read(&spec).map_err(Error::file("read", &spec))?;
                let job: job::Job =
                    serde_json::from_slice(&text).map_err(|source| Error::Json { path: spec, source })?;
                job.run(&report)
            }
        }
    }
}
