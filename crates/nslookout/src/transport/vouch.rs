//! How does the correlator stay trusted for as long as it runs, and by the one after it?
//!
//! Its authority goes through its generations, is published to agents and kept by the API server; a certificate is always
//! there that agents can check. What fails is tried again, and said once.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::authority::{Authority, Error};
use super::certificate::{Certificate, Files};
use crate::kubernetes::Keeper;

/// Keeps the certificate good by this authority, whose bundle is written to `ca`, for ever.
pub async fn by_authority(
    mut authority: Authority,
    certificate: Certificate,
    ca: PathBuf,
    keeper: Option<Keeper>,
) {
    let times = authority.times();
    let mut shown = Shown { by: authority.present().to_owned(), since: SystemTime::now() };
    let mut told = Told::new("correlator.authority");
    loop {
        let turned = turn(&mut authority, &certificate, &mut shown, &ca);
        let done = match (turned, &keeper) {
            (Ok(()), Some(keeper)) => keeper.keep(&authority.text(), &authority.bundle()).await,
            (turned, _) => turned,
        };
        let done = done.and_then(|()| Ok(authority.is_published(SystemTime::now())?));
        let pause = if done.is_ok() { times.looked_at } else { times.looked_at.min(ASK_AGAIN) };
        told.result(done);
        sleep(pause).await;
    }
}

/// The certificate that is shown: by which generation, since when.
struct Shown {
    by: String,
    since: SystemTime,
}

fn turn(authority: &mut Authority, certificate: &Certificate, shown: &mut Shown, ca: &Path) -> Result<()> {
    let now = SystemTime::now();
    let turned = authority.turn(now);
    let age = now.duration_since(shown.since).unwrap_or(Duration::MAX);
    if authority.present() != shown.by || age >= authority.times().renewed {
        certificate.renew(authority, now).context("correlator.name")?;
        if authority.present() != shown.by {
            tracing::info!("the next certificate authority vouches for the correlator from now on");
        }
        *shown = Shown { by: authority.present().to_owned(), since: now };
    }
    turned?;
    publish(authority, ca)
}

/// Writes the bundle where agents read it.
pub fn publish(authority: &Authority, ca: &Path) -> Result<()> {
    authority.publish(ca).map_err(|error: Error| anyhow::Error::from(error).context("correlator.ca"))
}

/// Keeps the certificate to what somebody else writes, for ever.
pub async fn by_files(files: Files, name: String, certificate: Certificate) {
    let mut told = Told::new("correlator.tls");
    loop {
        sleep(FILES_READ).await;
        let done = certificate.renew_from_files(&files, &name);
        if matches!(done, Ok(true)) {
            tracing::info!("{}: the next certificate is in use", files.certificate.display());
        }
        told.result(done.map(drop).context("the certificate stays as it is"));
    }
}

/// Says what is wrong, once.
#[derive(Debug)]
pub struct Told {
    what: &'static str,
    known: Option<String>,
}

impl Told {
    /// Nothing said yet.
    pub fn new(what: &'static str) -> Self {
        Self { what, known: None }
    }

    /// How it went this time.
    pub fn result(&mut self, result: Result<()>) {
        match result {
            Ok(()) => self.known = None,
            Err(error) => {
                let words = format!("{error:#}");
                if self.known.as_ref() != Some(&words) {
                    tracing::warn!("{}: {words}", self.what);
                    self.known = Some(words);
                }
            }
        }
    }
}

/// What failed is tried again so soon.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);
/// kubelet itself takes a minute to bring a new one.
const FILES_READ: Duration = Duration::from_secs(10);
