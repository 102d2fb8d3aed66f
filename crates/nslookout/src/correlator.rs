//! `nslookout correlator`: the evidence of all nodes in one place, until Ctrl-C or SIGTERM.
//!
//! What [`crate::run`] does with its own observers, done with what agents send. It scrapes the servers' metrics itself.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
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
use crate::transport::authority::{Authority, Times};
use crate::transport::certificate::{Certificate, Files};
use crate::transport::desk::Desk;
use crate::transport::figures::ServerFigures;
use crate::transport::ledger::Ledger;
use crate::transport::outlook::Outlooks;
use crate::transport::refusal::Refusals;
use crate::transport::reviews::Reviews;
use crate::transport::roster::Roster;
use crate::transport::server::{self, Limits};
use crate::transport::token_file::TokenFile;
use crate::transport::vouch::{self, ASK_AGAIN, Told};
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
    let followed = inventory::follow_kept(&config.cluster, config.store.file("inventory.json"), out.clone());
    let inventory = followed.inventory.clone();
    observers::servers(&config, inventory.clone(), out);
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
    let pusher = alertmanager::of(&config, inventory, past.legacy(), &metrics);
    let mut pipeline = Pipeline::of(&config, reports, batches);
    pipeline.settle(SETTLED);
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
    let file = config.store.file("keys.json");
    Ok(Arc::new(ApiReviewer::start(api, parts.accounts.clone(), figures.unreviewed.clone(), file)))
}

/// Serves agents as soon as there is a certificate: an authority that the API server keeps may be late, and so may files.
async fn listen(config: &Config, desk: Desk) -> Result<()> {
    let parts = config.correlator.clone();
    let listener = server::bind(parts.listen)
        .await
        .with_context(|| format!("correlator.listen: {} can't be listened on", parts.listen))?;
    let limits =
        Limits { connections: parts.connections, per_address: parts.connections_per_address, first: FIRST };
    let desk = Arc::new(desk);
    let serve = move |certificate: &Certificate, by: &str| -> Result<()> {
        let tls = certificate.server_config().context("TLS")?;
        tracing::info!("agents report to {}, and trust {by}", address_of(&listener));
        tokio::spawn(server::serve(listener, tls, desk, limits));
        Ok(())
    };
    if let Some(files) = parts.tls {
        let files = Files { certificate: files.certificate, key: files.key };
        tokio::spawn(async move {
            let mut told = Told::new("correlator.tls");
            let certificate = loop {
                match Certificate::from_files(&files, &parts.name) {
                    Ok(certificate) => break certificate,
                    Err(error) => told.result(Err(error.into())),
                }
                sleep(ASK_AGAIN).await;
            };
            told.result(serve(&certificate, "whoever vouches for its files"));
            vouch::by_files(files, parts.name, certificate).await;
        });
        return Ok(());
    }
    let trusted = parts.ca.display().to_string();
    let Some(kept) = parts.authority.clone() else {
        let (times, now) = (Times::default(), SystemTime::now());
        let authority =
            Authority::load(parts.keys.as_deref(), &parts.name, times, now).context("correlator.keys")?;
        vouch::publish(&authority, &parts.ca)?;
        let certificate = Certificate::of(&authority, now).context("correlator.name")?;
        serve(&certificate, &trusted)?;
        tokio::spawn(vouch::by_authority(authority, certificate, parts.ca, None));
        return Ok(());
    };
    let api = kubernetes::connect(&config.cluster).await.context("correlator.authority")?;
    tokio::spawn(async move {
        let beside = parts.ca.with_file_name("keys");
        let folder = parts.keys.as_deref().unwrap_or(&beside);
        let keeper = Keeper::new(api, kept);
        let mut told = Told::new("correlator.authority");
        let (authority, certificate) = loop {
            let authority = keeper.authority(folder, &parts.name).await;
            let ready = authority.and_then(|authority| {
                vouch::publish(&authority, &parts.ca)?;
                let certificate =
                    Certificate::of(&authority, SystemTime::now()).context("correlator.name")?;
                Ok((authority, certificate))
            });
            match ready {
                Ok(ready) => break ready,
                Err(error) => told.result(Err(error)),
            }
            sleep(ASK_AGAIN).await;
        };
        told.result(serve(&certificate, &trusted));
        // Somebody may delete its objects, or the cluster itself, with a Deployment that was replaced: new agents need
        // them.
        vouch::by_authority(authority, certificate, parts.ca, Some(keeper)).await;
    });
    Ok(())
}

fn address_of(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|_| "its address".to_owned(), |address| address.to_string())
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

/// An agent notices after ten seconds that the correlator's pod is gone for good, and then finds its successor.
const SETTLED: Duration = Duration::from_secs(12);
/// For a body, from its head to its end: a largest one at 25 kB/s.
const BODY_TIME: Duration = Duration::from_secs(10);
/// For a handshake, and for a first proper batch; longer than a body, so that a slow one gets its answer.
const FIRST: Duration = Duration::from_secs(15);
