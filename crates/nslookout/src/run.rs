//! `nslookout run`: everything in one process, until Ctrl-C or SIGTERM.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use correlate::{Change, Incident, Snapshot};
use evidence::WallTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::alertmanager::{Alert, Ledger, Legacy, Pusher};
use crate::alerts::Alerts;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, REPORTS, Step};
use crate::status::Status;
use crate::store::{Found, State, Store};
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
    let (out, reports) = mpsc::channel(REPORTS);
    let kept = config.store.file("inventory.json");
    let inventory = inventory::follow_kept(&config.cluster, kept, out.clone()).inventory;
    let (store, found) = Store::open(&config.store, &config.cluster.name);
    let past = Past::of(found, config.alertmanagers.lasting);
    let pusher = alertmanager::of(&config, inventory.clone(), past.legacy(), &metrics);
    let pipeline = Pipeline::start(&config, inventory, out, reports);
    judge(&config, pipeline, Bench { metrics, status_out, pusher, store, past }, signals, |_| {}).await;
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
    pub(crate) store: Option<Store>,
    pub(crate) past: Past,
}

/// What an earlier process has left.
#[derive(Debug)]
pub(crate) struct Past {
    state: Option<State>,
    ledger: Ledger,
    /// Its alerts have run out since: its incidents are over, as far as people were told.
    is_old: bool,
}

impl Past {
    pub(crate) fn of(found: Option<Found<State>>, lasting: Duration) -> Self {
        let now = WallTime::now();
        let is_old = found.as_ref().is_some_and(|found| now.since(found.saved) >= lasting);
        let state = found.map(|found| found.content);
        let told = state.as_ref().map(|state| state.told.clone()).unwrap_or_default();
        Self { state, ledger: Ledger::restored(told), is_old }
    }

    /// What the delivery of alerts needs of it. Alertmanagers are asked where nothing was kept.
    pub(crate) fn legacy(&self) -> Legacy {
        Legacy { ledger: self.ledger.clone(), asks: self.state.is_none() }
    }

    fn restore(&mut self, pipeline: &mut Pipeline, alerts: &mut Alerts, now: WallTime) {
        let Some(State { correlator, alerts: kept, .. }) = self.state.take() else { return };
        alerts.restore(kept);
        let incidents: Vec<Incident> = correlator.incidents().cloned().collect();
        match (incidents.len(), self.is_old) {
            (0, _) => {}
            (many, true) => {
                tracing::warn!("{many} incidents were open too long ago to go on: they are over");
                alerts.end(&incidents, now);
                return;
            }
            (many, false) => tracing::info!("{many} open incidents go on"),
        }
        pipeline.restore(correlator, now);
    }
}

/// Takes evidence, judges and tells, until a signal. `turn` is called at each step.
pub(crate) async fn judge(
    config: &Config,
    mut pipeline: Pipeline,
    bench: Bench,
    mut signals: Signals,
    turn: impl Fn(&Pipeline),
) {
    let Bench { metrics, status_out, mut pusher, mut store, mut past } = bench;
    let mut alerts = Alerts::new(config.cluster.name.clone());
    past.restore(&mut pipeline, &mut alerts, WallTime::now());
    let mut published: Option<Instant> = None;
    tracing::info!("looking; metrics and status on http://{}", config.metrics.listen);
    loop {
        let step = tokio::select! {
            step = pipeline.step() => step,
            held = held(&mut pusher) => {
                adopt(&mut pipeline, &mut alerts, held, WallTime::now());
                continue;
            }
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
                if let Some(store) = store.as_mut().filter(|store| store.is_due()) {
                    store.offer(&state(config, &pipeline, &alerts, &past), WallTime::now());
                }
                // Figures move with each batch; to write them out for each turn would be most of what a calm minute costs.
                if changes.is_empty() && published.is_some_and(|at| at.elapsed() < PUBLISH) {
                    continue;
                }
                published = Some(Instant::now());
                metrics.set_incidents(&correlator.incidents());
                metrics.set_symptoms(correlator.counts());
                metrics.set_probes(&probes);
                let notes = pusher.as_ref().map(Pusher::notes).unwrap_or_default();
                let status = Status { notes, probes: Some(probes), ..pipeline.status() };
                let json = serde_json::to_string(&status).unwrap_or_default();
                status_out.send_replace(json);
            }
        }
    }
    // SIGTERM resolves nothing: alerts end by themselves if nobody takes over.
    if let Some(store) = store {
        store.close(&state(config, &pipeline, &alerts, &past), WallTime::now()).await;
    }
    tracing::info!("ended by a signal");
}

async fn held(pusher: &mut Option<Pusher>) -> Vec<Alert> {
    match pusher {
        Some(pusher) => pusher.held().await,
        None => std::future::pending().await,
    }
}

/// Goes on with what an Alertmanager holds of an earlier process.
fn adopt(pipeline: &mut Pipeline, alerts: &mut Alerts, held: Vec<Alert>, now: WallTime) {
    let incidents: Vec<Incident> = held.iter().filter_map(alertmanager::incident).collect();
    if !held.is_empty() {
        tracing::info!(
            "an Alertmanager holds {} alerts of before, {} of incidents",
            held.len(),
            incidents.len()
        );
    }
    pipeline.restore(Snapshot::told(incidents), now);
    alerts.adopt(held, &pipeline.correlator().incidents(), now);
}

fn state(config: &Config, pipeline: &Pipeline, alerts: &Alerts, past: &Past) -> State {
    State {
        cluster: config.cluster.name.clone(),
        correlator: pipeline.correlator().snapshot(),
        alerts: alerts.kept(),
        told: past.ledger.all(),
    }
}

/// Status and figures are written out at least so often, and at once when an incident changes.
const PUBLISH: Duration = Duration::from_secs(1);

/// Address and port of an API: "127.0.0.1:9853", "[::1]:9853", and "::1:9853", as a pod's `$(..._HOST):$(..._PORT)` gives it.
pub fn api_address(text: &str) -> Result<SocketAddr, String> {
    let bare = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    let parsed = text.parse().ok().or_else(bare);
    parsed.ok_or_else(|| format!("{text:?} is no address with a port, as 127.0.0.1:9853"))
}

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
