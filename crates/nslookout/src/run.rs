//! `nslookout run`: everything in one process, until Ctrl-C or SIGTERM.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use correlate::{Change, Incident};
use evidence::WallTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::alertmanager::Pusher;
use crate::alerts::Alerts;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, REPORTS, Step};
use crate::status::Status;
use crate::{alertmanager, http, inventory};

/// Runs until a signal. Only what makes the whole pointless is an error: a metrics address that is taken.
pub async fn run(config: Config) -> Result<()> {
    let signals = Signals::new()?;
    let metrics = Metrics::new().context("the metrics registry")?;
    let (status_out, status) = watch::channel(String::from("{}"));
    let server = http::bind(config.metrics.listen)
        .await
        .with_context(|| format!("metrics.listen: {} can't be listened on", config.metrics.listen))?;
    tokio::task::spawn_local(http::serve(server, metrics.clone(), status));
    let pusher = alertmanager::of(&config, &metrics);
    let (out, reports) = mpsc::channel(REPORTS);
    let inventory = inventory::watch(&config.cluster, out.clone());
    let pipeline = Pipeline::start(&config, inventory, out, reports);
    judge(&config, pipeline, Bench { metrics, status_out, pusher }, signals, |_| {}).await;
    Ok(())
}

/// The signals that end a process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they are caught.
    pub fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("SIGTERM can't be caught")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT can't be caught")?,
        })
    }

    /// Waits for one of them.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Where verdicts go.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) metrics: Metrics,
    pub(crate) status_out: watch::Sender<String>,
    pub(crate) pusher: Option<Pusher>,
}

/// Takes evidence, judges and tells, until a signal. `turn` is called at each step.
pub(crate) async fn judge(
    config: &Config,
    mut pipeline: Pipeline,
    bench: Bench,
    mut signals: Signals,
    turn: impl Fn(&Pipeline),
) {
    let Bench { metrics, status_out, pusher } = bench;
    let mut alerts = Alerts::new(config.cluster.name.clone());
    let mut published: Option<Instant> = None;
    tracing::info!("looking; metrics and status on http://{}", config.metrics.listen);
    loop {
        let step = tokio::select! {
            step = pipeline.step() => step,
            () = signals.any() => break,
        };
        match step {
            Step::Batch(batch) => {
                metrics.record(&batch);
                turn(&pipeline);
            }
            Step::Changes(changes) => {
                turn(&pipeline);
                changes.iter().for_each(log);
                let probes = pipeline.probes();
                let correlator = pipeline.correlator();
                let now = alerts.update(&changes, &correlator.blind(), WallTime::now());
                if let Some(pusher) = &pusher {
                    pusher.set(now);
                }
                // Figures move with each batch; to write them out for each turn would be most of what a calm minute costs.
                if changes.is_empty() && published.is_some_and(|at| at.elapsed() < PUBLISH) {
                    continue;
                }
                published = Some(Instant::now());
                metrics.set_incidents(&correlator.incidents());
                metrics.set_symptoms(correlator.counts());
                metrics.set_probes(&probes);
                let status = Status { probes: Some(probes), ..pipeline.status() };
                let json = serde_json::to_string(&status).unwrap_or_default();
                status_out.send_replace(json);
            }
        }
    }
    // SIGTERM resolves nothing: alerts end by themselves if nobody takes over.
    tracing::info!("ended by a signal");
}

/// Status and figures are written out at least so often, and at once when an incident changes.
const PUBLISH: Duration = Duration::from_secs(1);

/// Asks a running nslookout for its status.
pub async fn ask_status(api: SocketAddr) -> Result<Status> {
    let body = crate::http_client::get(api, "/api/v1/status", Duration::from_secs(3))
        .await
        .with_context(|| format!("no nslookout answers on {api}: does `nslookout run` run there?"))?;
    serde_json::from_slice(&body).with_context(|| format!("what answers on {api} is no nslookout"))
}

fn log(change: &Change) {
    let words = |incident: &Incident| {
        format!(
            "{} ({}) {}: {}; {}",
            incident.cause,
            incident.confidence.as_str(),
            incident.place(),
            incident.title,
            incident.suffers.summary
        )
    };
    match change {
        Change::Opened(incident) => tracing::warn!("opened {}", words(incident)),
        Change::Updated(incident) => tracing::debug!("updated {}", words(incident)),
        Change::Closed(incident) => tracing::warn!("closed {}", words(incident)),
    }
}
