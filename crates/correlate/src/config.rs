//! How long correlate waits, and when harm is critical.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `correlate` part of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// How long a symptom waits for direct proof before a circumstantial cause is taken. A drop record leaves
    /// its node at once and a silent probe is told after 1 s, so 2 s cover both and a batch on its way.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub confirm_after: Duration,
    /// A proven cause opens its incident so long after its first symptom. One second shows most of its scope and of
    /// its harm, so that the first alert need not be replaced by a wider or graver one at once.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub open_after: Duration,
    /// An incident closes so long after its last symptom. Probes run five times a second meanwhile; 30 s keep
    /// a fault that comes and goes from opening a new incident each time.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub close_after: Duration,
    /// A mapping to a server that left is counted once its client renewed it so long after: kube-proxy needs
    /// a second or two to delete it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub stale_after: Duration,
    /// Symptoms of one circumstantial cause that open an incident: one lost packet is no fault.
    pub likely_symptoms: u32,
    /// Symptoms without a cause that open an incident.
    pub unexplained_symptoms: u32,
    /// Critical: of at least so many lookups in 30 s ...
    pub critical_lookups: u32,
    /// ... at least so many percent ended without an answer.
    pub critical_percent: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            confirm_after: Duration::from_secs(2),
            open_after: Duration::from_secs(1),
            close_after: Duration::from_secs(30),
            stale_after: Duration::from_secs(3),
            likely_symptoms: 3,
            unexplained_symptoms: 5,
            critical_lookups: 10,
            critical_percent: 1.0,
        }
    }
}
