//! Which figures does the way from agents to the correlator have?

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use super::refusal::Reason;
use crate::metrics::Metrics;

/// What the correlator counts of its senders.
#[derive(Debug, Clone)]
pub struct ServerFigures {
    /// Batches taken, `accepted` or `duplicate` (sent again, though they had arrived).
    pub batches: IntCounterVec,
    /// By `reason`.
    pub refusals: IntCounterVec,
    /// What newer senders say that is not understood, in `bytes` and `entries`.
    pub unknown: IntCounterVec,
    /// Bytes of batches as they came.
    pub bytes: IntCounter,
    /// Connections that are open.
    pub connections: IntGauge,
    /// Reviews of tokens.
    pub reviews: IntCounter,
    /// Tokens for which only the API server's keys vouched.
    pub unreviewed: IntCounter,
    /// Batches that never arrived, by the gaps in their sequences.
    pub missing: IntGauge,
}

/// What an agent counts of its batches.
#[derive(Debug, Clone)]
pub struct AgentFigures {
    /// Batches sealed.
    pub sealed: IntCounter,
    /// By what became of them: `accepted`, `refused` (never to be accepted), `dropped` (no room left).
    pub batches: IntCounterVec,
    /// Attempts to send that failed.
    pub failures: IntCounter,
    /// Bytes sent and accepted, compressed.
    pub bytes: IntCounter,
    /// Batches that wait.
    pub spool: IntGauge,
    /// Bytes that wait.
    pub spool_bytes: IntGauge,
    /// Observations and lines of coverage that were lost with dropped and refused batches.
    pub lost: IntCounter,
    /// Age of the inventory, in seconds.
    pub inventory_age: IntGauge,
}

impl ServerFigures {
    /// All at zero. The error is a mistake in the names.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let figures = Self {
            batches: counters(
                metrics,
                "nslookout_wire_batches_total",
                "Batches from agents; a duplicate had arrived before and counts no more.",
                "result",
            )?,
            refusals: counters(
                metrics,
                "nslookout_wire_refusals_total",
                "Requests and connections that were refused.",
                "reason",
            )?,
            unknown: counters(
                metrics,
                "nslookout_wire_unknown_total",
                "What newer agents say that this version does not understand.",
                "unit",
            )?,
            bytes: counter(metrics, "nslookout_wire_bytes_total", "Bytes of batches as they came.")?,
            connections: gauge(metrics, "nslookout_wire_connections", "Open connections of agents.")?,
            reviews: counter(metrics, "nslookout_wire_reviews_total", "Reviews of tokens.")?,
            unreviewed: counter(
                metrics,
                "nslookout_wire_unreviewed_total",
                "Tokens for which only the API server's keys vouched, while it was away.",
            )?,
            missing: gauge(
                metrics,
                "nslookout_wire_missing_batches",
                "Batches that never arrived, by the gaps in their sequences.",
            )?,
        };
        for reason in Reason::ALL {
            figures.refusals.with_label_values(&[reason.as_str()]).reset();
        }
        Ok(figures)
    }
}

impl AgentFigures {
    /// All at zero. The error is a mistake in the names.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        Ok(Self {
            sealed: counter(metrics, "nslookout_agent_sealed_total", "Batches made.")?,
            batches: counters(
                metrics,
                "nslookout_agent_batches_total",
                "Batches accepted by the correlator, refused by it, or dropped because the spool was full.",
                "result",
            )?,
            failures: counter(metrics, "nslookout_agent_failures_total", "Attempts to send that failed.")?,
            bytes: counter(metrics, "nslookout_agent_bytes_total", "Bytes of accepted batches, compressed.")?,
            spool: gauge(metrics, "nslookout_agent_spool_batches", "Batches that wait for the correlator.")?,
            spool_bytes: gauge(
                metrics,
                "nslookout_agent_spool_bytes",
                "Bytes that wait for the correlator.",
            )?,
            lost: counter(
                metrics,
                "nslookout_agent_lost_total",
                "Observations and lines of coverage lost with dropped and refused batches.",
            )?,
            inventory_age: gauge(
                metrics,
                "nslookout_agent_inventory_age_seconds",
                "How long ago the inventory was last known to be true; -1 before there is one.",
            )?,
        })
    }
}

fn counters(
    metrics: &Metrics,
    name: &str,
    help: &str,
    label: &str,
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
    metrics.register(counters.clone())?;
    Ok(counters)
}

fn counter(metrics: &Metrics, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    metrics.register(counter.clone())?;
    Ok(counter)
}

fn gauge(metrics: &Metrics, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    metrics.register(gauge.clone())?;
    Ok(gauge)
}
