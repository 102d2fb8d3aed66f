//! `nslookout correlator`: the evidence of all nodes in one place, until Ctrl-C or SIGTERM.
//!
//! What [`crate::run`] does with its own observers, done with what agents send. It scrapes the servers' metrics itself.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::alive::{self, Alive, Pulse};
use crate::config::Config;
use crate::kubernetes::Keeper;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, REPORTS};
use crate::run::{Bench, Past, Signals, judge};
use crate::store::Store;
use crate::transport::Reviewer;
use crate::transport::api_server::ApiReviewer;
use crate::transport::authority::Authority;
use crate::transport::desk::Desk;
use crate::transport::figures::ServerFigures;
use crate::transport::ledger::Ledger;
use crate::transport::outlook::Outlooks;
use crate::transport::refusal::Refusals;
use crate::transport::reviews::Reviews;
use crate::transport::roster::Roster;
use crate::transport::server::{self, Limits};
use crate::transport::token_file::TokenFile;
use crate::{alertmanager, http, inventory, kubernetes, observers};

/// Runs until a signal, on the caller's `LocalSet`. What makes the whole pointless is an error: nobody who reviews
/// tokens, an address that is taken, no certificate.
pub async fn run(config: Config) -> Result<()> {
    let signals = Signals::new()?;
    raise_descriptors();
    let metrics = Metrics::new().context("the metrics registry")?;
    let figures = ServerFigures::new(&metrics).context("the metrics registry")?;
    let reviewer = reviewer(&config, &figures).await?;
    let (status_out, status) = watch::channel(String::from("{}"));
    let page = http::bind(config.metrics.listen)
        .await
        .with_context(|| format!("metrics.listen: {} can't be listened on", config.metrics.listen))?;
    tokio::spawn(http::serve(page, metrics.clone(), status));

    let (out, reports) = mpsc::channel(REPORTS);
    let followed = inventory::follow(&config.cluster, out.clone());
    observers::servers(&config, followed.inventory.clone(), out);
    let (batches_out, batches) = mpsc::channel(REPORTS);
    let desk = Desk {
        reviews: Reviews::new(reviewer, figures.reviews.clone()),
        outlooks: Outlooks::new(followed),
        roster: Roster::new(config.prober.clone(), Instant::now()),
        out: batches_out,
        figures: figures.clone(),
        refusals: Refusals::new(figures.clone()),
        ledger: Ledger::default(),
        body_time: BODY_TIME,
    };
    listen(&config, desk).await?;

    let pulse = Pulse::default();
    pulse.beat();
    let socket = alive::listen(&config.alive.socket).context("alive.socket")?;
    tokio::spawn(alive::serve(socket, {
        let (pulse, figures) = (pulse.clone(), figures.clone());
        move || Alive {
            alive: pulse.beats(),
            part: "correlator".to_owned(),
            state: format!("{} agents connected", figures.connections.get()),
        }
    }));
    let (store, found) = Store::open(&config.store, &config.cluster.name);
    let past = Past::of(found, config.alertmanagers.lasting);
    let pusher = alertmanager::of(&config, past.legacy(), &metrics);
    let pipeline = Pipeline::of(&config, reports, batches);
    let bench = Bench { metrics, status_out, pusher, store, past };
    judge(&config, pipeline, bench, signals, |pipeline| {
        pulse.beat();
        figures.missing.set(i64::try_from(pipeline.correlator().lost().1).unwrap_or(i64::MAX));
    })
    .await;
    Ok(())
}

/// Who reviews tokens.
async fn reviewer(config: &Config, figures: &ServerFigures) -> Result<Arc<dyn Reviewer>> {
    let parts = &config.correlator;
    if let Some(path) = &parts.tokens {
        return Ok(Arc::new(TokenFile::new(path.clone())));
    }
    let api = kubernetes::connect(&config.cluster)
        .await
        .context("nobody reviews tokens: correlator.tokens is not set, and the API server can't be asked")?;
    Ok(Arc::new(ApiReviewer::start(api, parts.accounts.clone(), figures.unreviewed.clone())))
}

/// Serves agents as soon as the authority is there: one that the API server keeps may be late.
async fn listen(config: &Config, desk: Desk) -> Result<()> {
    let parts = config.correlator.clone();
    let listener = server::bind(parts.listen)
        .await
        .with_context(|| format!("correlator.listen: {} can't be listened on", parts.listen))?;
    let limits =
        Limits { connections: parts.connections, per_address: parts.connections_per_address, first: FIRST };
    let desk = Arc::new(desk);
    let told = format!("agents report to {}, checked against {}", parts.listen, parts.ca.display());
    let Some(kept) = parts.authority.clone() else {
        let authority = Authority::load(parts.keys.as_deref(), &parts.name).context("correlator.keys")?;
        let tls = tls(authority, &parts.ca)?;
        tracing::info!("{told}");
        tokio::spawn(server::serve(listener, tls, desk, limits));
        return Ok(());
    };
    let api = kubernetes::connect(&config.cluster).await.context("correlator.authority")?;
    tokio::spawn(async move {
        let beside = parts.ca.with_file_name("keys");
        let folder = parts.keys.as_deref().unwrap_or(&beside);
        let keeper = Keeper::new(&api, &kept);
        let mut known = String::new();
        let mut told_of = |error: anyhow::Error| {
            let words = format!("{error:#}");
            if words != known {
                tracing::warn!("correlator.authority: {words}");
                known = words;
            }
        };
        let tls = loop {
            let authority = keeper.authority(folder, &parts.name).await;
            match authority.and_then(|authority| tls(authority, &parts.ca)) {
                Ok(tls) => break tls,
                Err(error) => told_of(error),
            }
            sleep(ASK_AGAIN).await;
        };
        tracing::info!("{told}");
        tokio::spawn(server::serve(listener, tls, desk, limits));
        // Somebody may delete them, or the cluster itself, with a Deployment that was replaced: new agents need them.
        loop {
            let kept = keeper.keep(folder).await;
            let pause = if kept.is_ok() { KEEP_AGAIN } else { ASK_AGAIN };
            if let Err(error) = kept {
                told_of(error);
            }
            sleep(pause).await;
        }
    });
    Ok(())
}

/// The server's side of TLS by this authority, whose certificate is written where agents read it.
fn tls(authority: Authority, ca: &Path) -> Result<Arc<ServerConfig>> {
    if let Some(folder) = ca.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("correlator.ca: {}", folder.display()))?;
    }
    authority.publish(ca).context("correlator.ca")?;
    authority.server_config().context("correlator.name")
}

/// Each agent keeps a connection; the usual limit is 1024 until a process asks for more.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("no more than {soft} connections: {error}");
    }
}

const ASK_AGAIN: Duration = Duration::from_secs(2);
const KEEP_AGAIN: Duration = Duration::from_secs(30);
/// For a body, from its head to its end: a largest one at 25 kB/s.
const BODY_TIME: Duration = Duration::from_secs(10);
/// For a handshake, and for a first proper batch; longer than a body, so that a slow one gets its answer.
const FIRST: Duration = Duration::from_secs(15);
