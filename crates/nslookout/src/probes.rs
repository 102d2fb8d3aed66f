//! How much do all probers ask, and what is the most that they may?

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use evidence::{Batch, Observation, Observer, Role, WallTime};
use prober::Config;
use serde::{Deserialize, Serialize};

/// The load that probes are, in lookups a second. A lookup is a query for A and one for AAAA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeLoad {
    /// Lookups that ended in the last ten seconds, for each second.
    pub present: f64,
    /// The most that all vantages may make together.
    pub ceiling: f64,
    /// Of that, what they make regularly: each asks its Service, and each server is asked directly by a few.
    pub regular: f64,
    /// Of that, what they may add for a while after a symptom.
    pub after_symptoms: f64,
    /// The vantages that report.
    pub vantages: usize,
}

impl ProbeLoad {
    /// For so many vantages and servers.
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    fn allowed(config: &Config, vantages: usize, servers: usize) -> Self {
        let targets = vantages + servers * config.direct_from.min(vantages);
        let regular = targets as f64 / config.interval.as_secs_f64().max(SHORTEST);
        let bursts = vantages as f64 / config.suspicion_interval.as_secs_f64().max(SHORTEST);
        let after_symptoms = bursts.min(f64::from(config.burst_ceiling));
        Self { present: 0.0, ceiling: regular + after_symptoms, regular, after_symptoms, vantages }
    }

    /// As people read it.
    pub fn words(&self) -> String {
        let Self { present, ceiling, regular, after_symptoms, vantages } = self;
        format!(
            "{present:.1} lookups a second from {vantages} vantages; at most {ceiling:.1}: {regular:.1} regularly, \
             {after_symptoms:.1} more after a symptom"
        )
    }
}

/// Counts what comes in.
#[derive(Debug)]
pub struct ProbeMeter {
    config: Config,
    servers: usize,
    vantages: HashMap<String, Instant>,
    /// Lookups by the second in which they came.
    ended: VecDeque<(Instant, u32)>,
}

impl ProbeMeter {
    /// Nothing has come in yet.
    pub fn new(config: Config) -> Self {
        Self { config, servers: 0, vantages: HashMap::new(), ended: VecDeque::new() }
    }

    /// Takes note of a batch.
    pub fn take(&mut self, batch: &Batch, now: Instant, wall: WallTime) {
        let mut ended = 0;
        for observation in &batch.observations {
            match observation {
                // What an agent kept for long says nothing of now.
                Observation::Lookup(lookup) => {
                    ended += u32::from(wall.since(batch.clock.wall_of(lookup.ended)) < WINDOW);
                }
                Observation::Inventory(inventory) => {
                    self.servers = inventory.endpoints.iter().filter(|server| server.serving).count();
                }
                Observation::Attempt(_)
                | Observation::KernelDrop(_)
                | Observation::DropTotals(_)
                | Observation::Mapping(_)
                | Observation::Counters(_)
                | Observation::ServerSample(_) => {}
            }
        }
        match self.ended.back_mut() {
            Some((since, count)) if now.duration_since(*since) < BUCKET => *count += ended,
            Some(_) | None => self.ended.push_back((now, ended)),
        }
        while self.ended.front().is_some_and(|(since, _)| now.duration_since(*since) >= WINDOW) {
            self.ended.pop_front();
        }
        if batch.role != Role::Prober {
            return;
        }
        for line in batch.coverage.iter().filter(|line| line.observer == Observer::Prober) {
            if self.vantages.len() < MOST_VANTAGES || self.vantages.contains_key(&line.place) {
                self.vantages.insert(line.place.clone(), now);
            }
        }
    }

    /// The load now.
    pub fn load(&mut self, now: Instant) -> ProbeLoad {
        self.vantages.retain(|_, heard| now.duration_since(*heard) < GONE);
        let recent = self.ended.iter().filter(|(since, _)| now.duration_since(*since) < WINDOW);
        let ended: u32 = recent.map(|(_, count)| count).sum();
        let present = f64::from(ended) / WINDOW.as_secs_f64();
        ProbeLoad { present, ..ProbeLoad::allowed(&self.config, self.vantages.len(), self.servers) }
    }
}

const WINDOW: Duration = Duration::from_secs(10);
const BUCKET: Duration = Duration::from_secs(1);
/// Quiet vantages report every 5 s.
const GONE: Duration = Duration::from_secs(15);
/// As the prober has it.
const SHORTEST: f64 = 0.01;
/// Four for each of 10,000 nodes.
const MOST_VANTAGES: usize = 40_000;

#[cfg(test)]
mod tests {
    use evidence::{
        BootTime, ClockReading, Coverage, CoverageState, Lookup, LookupId, NameKind, Outcome, ServerRole,
    };

    use super::*;

    fn batch(node: &str, observations: Vec<Observation>) -> Batch {
        let state = CoverageState::Looked { lost: 0 };
        Batch {
            node: node.into(),
            role: Role::Prober,
            boot_id: String::new(),
            sequence: 1,
            clock: ClockReading { boot: BootTime(0), wall: WallTime(0) },
            from: BootTime(0),
            to: BootTime(0),
            observations,
            coverage: vec![Coverage { observer: Observer::Prober, place: node.into(), state }],
        }
    }

    #[test]
    fn the_ceiling_grows_with_nodes_and_servers_and_its_bursts_do_not() {
        let config = Config::default();
        for (vantages, servers, regular, after_symptoms) in
            [(0, 5, 0.0, 0.0), (2, 2, 3.0, 10.0), (100, 4, 56.0, 500.0), (10_000, 100, 5_150.0, 500.0)]
        {
            let load = ProbeLoad::allowed(&config, vantages, servers);
            assert_eq!((load.regular, load.after_symptoms), (regular, after_symptoms), "{vantages}");
            assert_eq!(load.ceiling, regular + after_symptoms);
        }
    }

    #[test]
    fn the_present_rate_is_that_of_the_last_ten_seconds() {
        let (start, mut meter) = (Instant::now(), ProbeMeter::new(Config::default()));
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..30 {
            meter.take(&batch(if second < 5 { "a" } else { "b" }, vec![]), at(second), WallTime(0));
        }
        assert_eq!(meter.load(at(29)).vantages, 1, "one has gone");
        assert_eq!(meter.load(at(29)).present, 0.0);
        let lookup = Observation::Lookup(Lookup {
            id: LookupId(1),
            vantage: "b".into(),
            profile: "musl".into(),
            server: ([10, 96, 0, 10], 53).into(),
            role: ServerRole::Service,
            name: "example.com.".into(),
            name_kind: NameKind::Forwarded,
            started: BootTime(0),
            ended: BootTime(0),
            outcome: Outcome::Addresses,
            packets: 2,
        });
        for second in 30..60 {
            meter.take(&batch("b", vec![lookup.clone(); 3]), at(second), WallTime(0));
        }
        assert_eq!(meter.load(at(59)).present, 3.0);
        // What was kept while the correlator was away is no load now.
        let late = WallTime(0).plus(Duration::from_secs(60));
        meter.take(&batch("b", vec![lookup; 100]), at(60), late);
        assert_eq!(meter.load(at(60)).present, 2.7);
    }
}
