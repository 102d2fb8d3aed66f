//! How is one step of a fault taken back, by any process and as often as asked?

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rule::Rule;
use crate::traffic::fill;
use crate::traffic::job::{Helper, Report};
use crate::{Error, Site};

/// What takes a step back. Each may be run when its step was not done, or was undone already.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Undo {
    /// Deletes a netfilter rule.
    Rule(Rule),
    /// Ends the fault's own traffic.
    Helper(Helper),
    /// Deletes the entries that filled this namespace's table.
    Entries(PathBuf),
    /// Puts the servers behind the Service again, but for the one that the background may have taken out.
    Endpoints,
    /// Starts this server if it doesn't run.
    Start(String),
    /// Lets this stopped server go on.
    Continue(String),
    /// Gives this server its own configuration back.
    Restore(String),
    /// Starts the upstream if it doesn't run.
    StartUpstream,
    /// Gives the upstream its own configuration back.
    RestoreUpstream,
}

impl Undo {
    /// Takes the step back and waits till that is so. A helper gives its last report.
    pub(super) fn run(&self, site: &Site) -> Result<Option<Report>, Error> {
        match self {
            Self::Rule(rule) => rule.delete()?,
            Self::Helper(helper) => return helper.finish().map(Some),
            Self::Entries(netns) => drop(fill::remove(netns)?),
            Self::Endpoints => site.all_servers_serve()?,
            Self::Start(name) => {
                site.start_server(site.server(name)?, READY)?;
            }
            Self::Continue(name) => {
                let server = site.server(name)?;
                server.daemon.cont()?;
                server.wait_till_answers(READY)?;
            }
            Self::Restore(name) => {
                let server = site.server(name)?;
                server.restore()?;
                server.wait_till_answers(READY)?;
            }
            Self::StartUpstream => {
                if site.upstream.daemon.id().is_none() {
                    site.upstream.daemon.start()?;
                }
                site.upstream.wait_till_answers(READY)?;
            }
            Self::RestoreUpstream => {
                site.upstream.restore()?;
                site.upstream.wait_till_answers(READY)?;
            }
        }
        Ok(None)
    }

    /// What a helper has counted so far.
    pub(super) fn report(&self) -> Option<Report> {
        match self {
            Self::Helper(helper) => Some(helper.report()),
            Self::Rule(_)
            | Self::Entries(_)
            | Self::Endpoints
            | Self::Start(_)
            | Self::Continue(_)
            | Self::Restore(_)
            | Self::StartUpstream
            | Self::RestoreUpstream => None,
        }
    }
}

/// CoreDNS starts in well under a second; a busy machine takes longer.
const READY: Duration = Duration::from_secs(20);
