//! What is told on /metrics, and how is it kept bounded?
//!
//! Counters of the kernel and of other parts come as totals and are told as they come. Each label has a cap of
//! distinct values; what is beyond goes to "other", so that names from the network can't fill the memory.

mod bounds;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use correlate::{Confidence, Incident};
use evidence::{
    Batch, Counters, Coverage, CoverageState, DropClass, DropTotals, Lookup, Observation, Observer, Place,
    Role, ServerRole,
};
use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use bounds::Bounds;

use crate::probes::ProbeLoad;

/// All metrics of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    registry: Registry,
    memory: Mutex<Memory>,
    incident_open: IntGaugeVec,
    symptoms: IntCounterVec,
    lookups: IntCounterVec,
    lookup_duration: HistogramVec,
    dropped_packets: IntCounterVec,
    conntrack_entries: IntGaugeVec,
    conntrack_max: IntGaugeVec,
    conntrack_stat: IntCounterVec,
    observer_up: IntGaugeVec,
    observer_lost: IntCounterVec,
    alertmanager_sends: IntCounterVec,
    alertmanager_endpoints: IntGaugeVec,
    alertmanager_needs_dns: IntGaugeVec,
    batches: IntCounterVec,
    probes: Gauge,
    probe_ceiling: Gauge,
}

/// What must be remembered from one batch to the next.
#[derive(Debug, Default)]
struct Memory {
    bounds: Bounds,
    incidents: BTreeSet<[String; 4]>,
    /// The last totals of each place: places of one node are told as one sum.
    drops: HashMap<(String, Place, DropClass), Told>,
    /// When an observer last spoke of a place. Places go away with their pods.
    spoke: HashMap<(Observer, String), Instant>,
}

/// Totals of a place as last told, and when.
#[derive(Debug)]
struct Told {
    dns: u64,
    other: u64,
    at: Instant,
}

/// How a push to an Alertmanager ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendResult {
    /// It took the alerts.
    Accepted,
    /// It answered with an error status.
    Refused,
    /// No proper answer in time.
    Failed,
}

impl Metrics {
    /// A registry of their own. The error is a mistake in the names, not in the environment.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let plain = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let durations = HistogramOpts::new(
            "nslookout_lookup_duration_seconds",
            "How long an application would have waited for a lookup.",
        )
        .buckets(WAITS.to_vec());
        let lookup_duration = HistogramVec::new(durations, &["profile", "role"])?;
        registry.register(Box::new(lookup_duration.clone()))?;
        Ok(Self(Arc::new(Families {
            incident_open: gauge(
                "nslookout_incident_open",
                "Open incidents; an absent node or server means all of them.",
                &["cause", "severity", "node", "server"],
            )?,
            symptoms: counter(
                "nslookout_symptoms_total",
                "Failed or slow lookups, lost DNS packets and mappings that lead nowhere, by their cause.",
                &["cause", "confidence"],
            )?,
            lookups: counter(
                "nslookout_lookups_total",
                "Lookups made, by what the application would have been told.",
                &["vantage", "profile", "role", "outcome"],
            )?,
            lookup_duration,
            dropped_packets: counter(
                "nslookout_dropped_packets_total",
                "Packets that netfilter or conntrack dropped on the node and in its pods.",
                &["node", "class", "dns"],
            )?,
            conntrack_entries: gauge(
                "nslookout_conntrack_entries",
                "Entries in the conntrack table.",
                &["node"],
            )?,
            conntrack_max: gauge("nslookout_conntrack_max", "The most entries allowed.", &["node"])?,
            conntrack_stat: counter(
                "nslookout_conntrack_stat_total",
                "The kernel's own conntrack counters, since boot.",
                &["node", "counter"],
            )?,
            observer_up: gauge(
                "nslookout_observer_up",
                "1 if the observer looks, 0 if it may not; absent where it can't apply.",
                &["observer", "place"],
            )?,
            observer_lost: counter(
                "nslookout_observer_lost_total",
                "Records that an observer knows it missed.",
                &["observer", "place"],
            )?,
            alertmanager_sends: counter(
                "nslookout_alertmanager_sends_total",
                "Pushes to an Alertmanager, by their result.",
                &["alertmanager", "result"],
            )?,
            probes: plain(
                "nslookout_probe_lookups_per_second",
                "Lookups of all probers that ended in the last ten seconds, for each second.",
            )?,
            probe_ceiling: plain(
                "nslookout_probe_ceiling_lookups_per_second",
                "The most that all probers together may make.",
            )?,
            alertmanager_endpoints: gauge(
                "nslookout_alertmanager_service_endpoints",
                "Serving endpoints of a Service under alertmanagers.services; at 0 nobody there is told.",
                &["service"],
            )?,
            alertmanager_needs_dns: gauge(
                "nslookout_alertmanager_needs_cluster_dns",
                "1 if the Alertmanager's pod asks cluster DNS alone, and can't find its pager while that is down.",
                &["alertmanager"],
            )?,
            batches: counter("nslookout_batches_total", "Batches of evidence taken in.", &["node", "role"])?,
            registry,
            memory: Mutex::default(),
        })))
    }

    /// Puts a figure of another part on the same page.
    pub fn register(&self, figure: impl Collector + 'static) -> Result<(), prometheus::Error> {
        self.0.registry.register(Box::new(figure))
    }

    /// Takes in a batch.
    pub fn record(&self, batch: &Batch) {
        let families = &*self.0;
        let mut memory = self.memory();
        let node = memory.bounds.value("node", &batch.node);
        families.batches.with_label_values(&[node.as_str(), role_name(batch.role)]).inc();
        for observation in &batch.observations {
            match observation {
                Observation::Lookup(lookup) => families.lookup(&mut memory, lookup),
                Observation::DropTotals(totals) => families.drop_totals(&mut memory, &batch.node, totals),
                Observation::Counters(counters) => families.counters(&mut memory, counters),
                // Told by correlate as symptoms and incidents, or not told in figures.
                Observation::Attempt(_)
                | Observation::KernelDrop(_)
                | Observation::Mapping(_)
                | Observation::ServerSample(_)
                | Observation::Inventory(_) => {}
            }
        }
        for coverage in &batch.coverage {
            families.coverage(&mut memory, coverage);
        }
        families.forget_silent_places(&mut memory);
    }

    /// The incidents that are open now; those that were and are not among them are told no more.
    pub fn set_incidents(&self, incidents: &[Incident]) {
        let gauge = &self.0.incident_open;
        let mut memory = self.memory();
        let mut open: BTreeMap<[String; 4], i64> = BTreeMap::new();
        for incident in incidents.iter().filter(|incident| incident.until.is_none()) {
            let node = incident
                .scope
                .node
                .as_deref()
                .map_or(String::new(), |node| memory.bounds.value("node", node));
            let server = incident
                .scope
                .server
                .as_deref()
                .map_or(String::new(), |server| memory.bounds.value("server", server));
            let cause = memory.bounds.value("cause", &incident.cause);
            *open.entry([cause, incident.severity.as_str().to_owned(), node, server]).or_default() += 1;
        }
        for gone in memory.incidents.iter().filter(|labels| !open.contains_key(*labels)) {
            // It is an error only where the label set is not there.
            drop(gauge.remove_label_values(&gone.each_ref().map(String::as_str)));
        }
        for (labels, count) in &open {
            gauge.with_label_values(&labels.each_ref().map(String::as_str)).set(*count);
        }
        memory.incidents = open.into_keys().collect();
    }

    /// Totals of symptoms so far, by cause and confidence.
    pub fn set_symptoms<'a>(&self, counts: impl Iterator<Item = (&'a str, Confidence, u64)>) {
        for (cause, confidence, total) in counts {
            let cause = self.memory().bounds.value("cause", cause);
            set_total(&self.0.symptoms.with_label_values(&[cause.as_str(), confidence.as_str()]), total);
        }
    }

    /// What all probers ask, and may ask.
    pub fn set_probes(&self, probes: &ProbeLoad) {
        self.0.probes.set(probes.present);
        self.0.probe_ceiling.set(probes.ceiling);
    }

    /// Counts a push to an Alertmanager.
    pub fn count_send(&self, alertmanager: &str, result: SendResult) {
        let alertmanager = self.memory().bounds.value("alertmanager", alertmanager);
        self.0.alertmanager_sends.with_label_values(&[alertmanager.as_str(), result.as_str()]).inc();
    }

    /// An Alertmanager to which nothing is pushed any more.
    pub fn forget_alertmanager(&self, alertmanager: &str) {
        for result in SendResult::ALL {
            // It is an error only where nothing was counted.
            drop(self.0.alertmanager_sends.remove_label_values(&[alertmanager, result.as_str()]));
        }
        self.memory().bounds.forget("alertmanager", alertmanager);
    }

    /// How many endpoints of a configured Service can be told.
    pub fn set_alertmanager_endpoints(&self, service: &str, serving: usize) {
        let serving = i64::try_from(serving).unwrap_or(i64::MAX);
        self.0.alertmanager_endpoints.with_label_values(&[service]).set(serving);
    }

    /// Whose pods need cluster DNS to find a pager, and whose don't; of all others it is not known.
    pub fn set_alertmanagers_need_dns<'a>(&self, known: impl Iterator<Item = (&'a str, bool)>) {
        self.0.alertmanager_needs_dns.reset();
        for (alertmanager, needs) in known {
            self.0.alertmanager_needs_dns.with_label_values(&[alertmanager]).set(i64::from(needs));
        }
    }

    /// The page in the Prometheus text format.
    pub fn page(&self) -> Vec<u8> {
        let mut page = Vec::new();
        // Writing to memory fails only for a family without samples, and those are not gathered.
        drop(TextEncoder::new().encode(&self.0.registry.gather(), &mut page));
        page
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Families {
    fn lookup(&self, memory: &mut Memory, lookup: &Lookup) {
        let vantage = memory.bounds.value("vantage", &lookup.vantage);
        let profile = memory.bounds.value("profile", &lookup.profile);
        let role = match lookup.role {
            ServerRole::Service => "service",
            ServerRole::Direct => "direct",
        };
        self.lookups.with_label_values(&[vantage.as_str(), &profile, role, lookup.outcome.as_str()]).inc();
        self.lookup_duration
            .with_label_values(&[profile.as_str(), role])
            .observe(lookup.ended.since(lookup.started).as_secs_f64());
    }

    fn drop_totals(&self, memory: &mut Memory, node: &str, totals: &DropTotals) {
        // A pod's namespace belongs to the node that speaks of it.
        let node = match &totals.place {
            Place::Node(node) => node.clone(),
            Place::Namespace(_) => node.to_owned(),
        };
        let key = (node.clone(), totals.place.clone(), totals.class);
        if memory.drops.len() >= MAX_PLACES && !memory.drops.contains_key(&key) {
            return;
        }
        let other = totals.all.saturating_sub(totals.dns);
        let last = memory.drops.insert(key, Told { dns: totals.dns, other, at: Instant::now() });
        let (last_dns, last_other) = last.map_or((0, 0), |told| (told.dns, told.other));
        let node = memory.bounds.value("node", &node);
        for (dns, total, last) in [("true", totals.dns, last_dns), ("false", other, last_other)] {
            // A helper that was loaded anew begins at zero.
            let rise = total.checked_sub(last).unwrap_or(total);
            self.dropped_packets.with_label_values(&[node.as_str(), totals.class.as_str(), dns]).inc_by(rise);
        }
    }

    fn counters(&self, memory: &mut Memory, counters: &Counters) {
        let node = memory.bounds.value("node", &counters.node);
        if node == bounds::OTHER {
            // Totals of several nodes can't be told as one.
            return;
        }
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.conntrack_entries.with_label_values(&[&node]).set(gauge(counters.entries));
        self.conntrack_max.with_label_values(&[&node]).set(gauge(counters.max));
        for (name, total) in [
            ("found", counters.found),
            ("invalid", counters.invalid),
            ("insert_failed", counters.insert_failed),
            ("drop", counters.drop),
            ("early_drop", counters.early_drop),
            ("clash_resolve", counters.clash_resolve),
            ("chain_toolong", counters.chain_toolong),
        ] {
            set_total(&self.conntrack_stat.with_label_values(&[node.as_str(), name]), total);
        }
    }

    fn coverage(&self, memory: &mut Memory, coverage: &Coverage) {
        let place = memory.bounds.value("place", &coverage.place);
        let observer = coverage.observer.as_str();
        memory.spoke.insert((coverage.observer, place.clone()), Instant::now());
        let labels = [observer, place.as_str()];
        match coverage.state {
            CoverageState::Looked { lost } => {
                self.observer_up.with_label_values(&labels).set(1);
                self.observer_lost.with_label_values(&labels).inc_by(lost);
            }
            CoverageState::Denied { .. } => self.observer_up.with_label_values(&labels).set(0),
            CoverageState::Unsupported { .. } => drop(self.observer_up.remove_label_values(&labels)),
        }
    }

    fn forget_silent_places(&self, memory: &mut Memory) {
        memory.drops.retain(|_, told| told.at.elapsed() < FORGET_AFTER);
        let bounds = &mut memory.bounds;
        memory.spoke.retain(|(observer, place), at| {
            let speaks = at.elapsed() < FORGET_AFTER;
            if !speaks {
                let labels = [observer.as_str(), place.as_str()];
                drop(self.observer_up.remove_label_values(&labels));
                drop(self.observer_lost.remove_label_values(&labels));
                bounds.forget("place", place);
            }
            speaks
        });
    }
}

impl SendResult {
    const ALL: [Self; 3] = [Self::Accepted, Self::Refused, Self::Failed];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

fn set_total(counter: &IntCounter, total: u64) {
    let told = counter.get();
    if total < told {
        // It began anew; so does ours, as Prometheus expects of a counter.
        counter.reset();
        counter.inc_by(total);
    } else {
        counter.inc_by(total - told);
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Prober => "prober",
        Role::Node => "node",
        Role::Servers => "servers",
        Role::Inventory => "inventory",
    }
}

/// Around what resolvers do: a healthy answer, musl's resend at 2.5 s, glibc's at 5 s, and their ends.
const WAITS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

/// Namespaces whose drops are told.
const MAX_PLACES: usize = 8192;

/// A place of which nobody spoke for so long has gone. Quiet observers speak every 5 s.
const FORGET_AFTER: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
