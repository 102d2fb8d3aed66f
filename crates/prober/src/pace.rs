//! When is which lookup due? No clock and no IO of its own, so that the ceiling can be proved.

use std::net::SocketAddr;
use std::time::Duration;

use evidence::{NameKind, ServerRole};
use tokio::time::Instant;

use crate::config::Config;

/// One lookup that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) server: SocketAddr,
    pub(crate) role: ServerRole,
    pub(crate) name_kind: NameKind,
    /// Index into the configuration's profiles.
    pub(crate) profile: usize,
}

/// The timetable of one vantage.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    suspicion_interval: Duration,
    suspicion: Duration,
    /// Lookups a second that may be added to the regular ones.
    extra: f64,
    kinds: Vec<NameKind>,
    profiles: usize,
    service: Vec<SocketAddr>,
    service_turns: usize,
    service_next: Instant,
    servers: Vec<Server>,
    suspects: Option<Suspects>,
    last_symptom: Option<Instant>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    turns: usize,
    next: Instant,
}

#[derive(Debug)]
struct Suspects {
    until: Instant,
    next: Instant,
    turns: usize,
}

impl Pace {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        let forwarded = config.names.forwarded.as_ref().map(|_| NameKind::Forwarded);
        Self {
            interval: config.interval.max(SHORTEST),
            suspicion_interval: config.suspicion_interval.max(SHORTEST),
            suspicion: config.suspicion,
            extra: 0.0,
            kinds: [NameKind::Cluster].into_iter().chain(forwarded).collect(),
            profiles: config.profiles.len().max(1),
            service: Vec::new(),
            service_turns: 0,
            service_next: now + phase(config.interval),
            servers: Vec::new(),
            suspects: None,
            last_symptom: None,
        }
    }

    /// Takes over what is to be asked from now on. Servers that stay keep their turn.
    pub(crate) fn aim(&mut self, service: Vec<SocketAddr>, servers: &[SocketAddr], now: Instant) {
        self.service = service;
        self.servers.retain(|s| servers.contains(&s.address));
        for &address in servers {
            if !self.servers.iter().any(|s| s.address == address) {
                self.servers.push(Server { address, turns: 0, next: now + phase(self.interval) });
            }
        }
    }

    /// So many lookups a second may be added to the regular ones after a first symptom.
    pub(crate) fn allow(&mut self, extra: f64, now: Instant) {
        self.extra = extra;
        let interval = self.suspicious_interval();
        if let Some(suspects) = &mut self.suspects {
            suspects.next = suspects.next.min(now + interval);
        }
    }

    /// When the next lookup is due; none if there is nothing to ask.
    pub(crate) fn next(&self) -> Option<Instant> {
        if self.service.is_empty() && self.servers.is_empty() {
            return None;
        }
        if let Some(suspects) = &self.suspects {
            return Some(suspects.next);
        }
        let service = (!self.service.is_empty()).then_some(self.service_next);
        self.servers.iter().map(|s| s.next).chain(service).min()
    }

    /// Tells the timetable that trouble was seen. The first symptom after a quiet time makes this vantage ask more
    /// often for a while; trouble that lasts does not, lest many nodes burden a sick server for hours.
    pub(crate) fn symptom(&mut self, now: Instant) {
        let quiet = self.last_symptom.is_none_or(|last| now.duration_since(last) >= QUIET);
        self.last_symptom = Some(now);
        if quiet && self.suspects.is_none() {
            // At once where it may ask that often; a thousand that may not must not all do so in the same moment.
            let interval = self.suspicious_interval();
            let next = if interval <= self.suspicion_interval { now } else { now + phase(interval) };
            self.suspects = Some(Suspects { until: now + self.suspicion, next, turns: 0 });
        }
    }

    /// The lookups that are due now, and their next turn.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Job> {
        self.end_suspicion(now);
        let mut jobs = Vec::new();
        if self.suspects.is_some() {
            jobs.extend(self.due_in_suspicion(now));
            return jobs;
        }
        if now >= self.service_next {
            self.service_next = later(self.service_next, self.interval, now);
            jobs.extend(self.service_job());
        }
        for index in 0..self.servers.len() {
            let interval = self.interval;
            let due = self.servers.get_mut(index).filter(|s| now >= s.next);
            if let Some(server) = due {
                server.next = later(server.next, interval, now);
                jobs.extend(self.server_job(index));
            }
        }
        jobs
    }

    /// Between two lookups after a first symptom. Where the ordinary timetable is denser, its rate stays; where more
    /// would be above the cluster's ceiling, what is allowed is added to it.
    fn suspicious_interval(&self) -> Duration {
        let targets = u32::try_from(self.servers.len()).unwrap_or(u32::MAX).saturating_add(1);
        let ordinary = f64::from(targets) / self.interval.as_secs_f64();
        let wanted = self.suspicion_interval.as_secs_f64().recip();
        Duration::from_secs_f64(ordinary.max(wanted.min(ordinary + self.extra)).recip())
    }

    /// One lookup each interval: the Service and a server in turn.
    fn due_in_suspicion(&mut self, now: Instant) -> Option<Job> {
        let interval = self.suspicious_interval();
        let suspects = self.suspects.as_mut().filter(|s| now >= s.next)?;
        suspects.next = (suspects.next + interval).max(now);
        let turn = suspects.turns;
        suspects.turns += 1;
        let direct = !self.servers.is_empty() && (turn % 2 == 1 || self.service.is_empty());
        if direct { self.server_job((turn / 2) % self.servers.len()) } else { self.service_job() }
    }

    fn end_suspicion(&mut self, now: Instant) {
        if self.suspects.as_ref().is_some_and(|s| now >= s.until) {
            self.suspects = None;
            self.service_next = now + phase(self.interval);
            for server in &mut self.servers {
                server.next = now + phase(self.interval);
            }
        }
    }

    /// Kinds of name alternate first, then the Service's addresses, then the profiles.
    fn service_job(&mut self) -> Option<Job> {
        let turn = self.service_turns;
        self.service_turns = turn.wrapping_add(1);
        let kinds = self.kinds.len();
        let server = *self.service.get((turn / kinds) % self.service.len().max(1))?;
        let profile = (turn / (kinds * self.service.len())) % self.profiles;
        let name_kind = *self.kinds.get(turn % kinds)?;
        Some(Job { server, role: ServerRole::Service, name_kind, profile })
    }

    fn server_job(&mut self, index: usize) -> Option<Job> {
        let kinds = self.kinds.len();
        let server = self.servers.get_mut(index)?;
        let turn = server.turns;
        server.turns = turn.wrapping_add(1);
        let name_kind = *self.kinds.get(turn % kinds)?;
        let profile = (turn / kinds) % self.profiles;
        Some(Job { server: server.address, role: ServerRole::Direct, name_kind, profile })
    }
}

/// The turn after `last`: an interval later, give or take a twentieth. Turns that were slept through are not
/// made up for.
fn later(last: Instant, interval: Duration, now: Instant) -> Instant {
    (last + interval.mul_f64(rand::random_range(0.95..1.05))).max(now)
}

/// A random part of an interval, so that nodes started together don't ask together.
fn phase(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.0..1.0))
}

/// Symptom-free time after which the next symptom is a new trouble.
pub const QUIET: Duration = Duration::from_secs(10);
/// A configured interval of zero would be a flood.
const SHORTEST: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 53).into()
    }

    /// Runs the timetable for some seconds, reading it as late as a caller may, and gives the starts.
    fn starts(pace: &mut Pace, from: Instant, seconds: u64) -> Vec<(Duration, Job)> {
        let end = from + Duration::from_secs(seconds);
        let mut jobs = Vec::new();
        while let Some(next) = pace.next().filter(|next| *next < end) {
            jobs.extend(pace.due(next).into_iter().map(|job| (next - from, job)));
        }
        jobs
    }

    #[test]
    fn a_healthy_vantage_asks_the_service_and_each_server_every_two_seconds() {
        let now = Instant::now();
        let mut pace = Pace::new(&Config::default(), now);
        pace.aim(vec![address(1)], &[address(2), address(3)], now);
        let jobs = starts(&mut pace, now, 200);
        for server in [address(1), address(2), address(3)] {
            let times: Vec<_> = jobs.iter().filter(|(_, j)| j.server == server).map(|(t, _)| *t).collect();
            assert!((96..=105).contains(&times.len()), "{}", times.len());
            assert!(times.windows(2).all(|w| w[1] - w[0] <= Duration::from_millis(2_101)));
        }
    }

    #[test]
    fn names_alternate_first_then_families_then_profiles() {
        let now = Instant::now();
        let mut pace = Pace::new(&Config::default(), now);
        pace.aim(vec![address(1), address(2)], &[], now);
        let seen: Vec<_> = starts(&mut pace, now, 30)
            .into_iter()
            .take(8)
            .map(|(_, j)| (j.name_kind == NameKind::Forwarded, j.server == address(2), j.profile))
            .collect();
        let (f, t) = (false, true);
        let expected =
            [(f, f, 0), (t, f, 0), (f, t, 0), (t, t, 0), (f, f, 1), (t, f, 1), (f, t, 1), (t, t, 1)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_first_symptom_brings_five_lookups_a_second_for_thirty_seconds() {
        let now = Instant::now();
        let mut pace = Pace::new(&Config::default(), now);
        pace.aim(vec![address(1)], &[address(2)], now);
        pace.allow(5.0, now);
        pace.symptom(now);
        let jobs = starts(&mut pace, now, 30);
        assert_eq!(jobs.len(), 150);
        assert_eq!(jobs[0].0, Duration::ZERO);
        assert_eq!(jobs.iter().filter(|(_, j)| j.role == ServerRole::Service).count(), 75);
        let after = starts(&mut pace, now + Duration::from_secs(30), 20);
        assert!(after.len() <= 23, "{}", after.len());
    }

    #[test]
    fn lasting_trouble_does_not_keep_the_rate_up_and_new_trouble_raises_it_again() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut pace = Pace::new(&Config::default(), now);
        pace.aim(vec![address(1)], &[], now);
        pace.allow(5.0, now);
        for second in 0..60 {
            pace.symptom(at(second));
            let ceiling = if second < 30 { 6 } else { 2 };
            assert!(starts(&mut pace, at(second), 1).len() <= ceiling, "second {second}");
        }
        pace.symptom(at(75));
        assert!(starts(&mut pace, at(75), 2).len() >= 10);
    }

    #[test]
    fn no_more_is_added_to_the_regular_lookups_than_is_allowed() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        for (extra, least, most) in [(0.0, 29, 31), (0.5, 44, 46), (100.0, 149, 151)] {
            let mut pace = Pace::new(&Config::default(), now);
            pace.aim(vec![address(1)], &[address(2)], now);
            pace.allow(extra, now);
            pace.symptom(now);
            let count = starts(&mut pace, now, 30).len();
            assert!((least..=most).contains(&count), "{count} with {extra}");
        }
        // What is allowed while suspicion lasts counts at once, in both directions.
        let mut pace = Pace::new(&Config::default(), now);
        pace.aim(vec![address(1)], &[], now);
        pace.symptom(now);
        pace.allow(4.5, at(10));
        assert!(starts(&mut pace, at(10), 10).len() >= 49);
        pace.allow(0.0, at(20));
        assert!(starts(&mut pace, at(20), 10).len() <= 6);
    }

    #[test]
    fn nothing_to_ask_is_never_due() {
        let now = Instant::now();
        let mut pace = Pace::new(&Config::default(), now);
        pace.symptom(now);
        assert_eq!(pace.next(), None);
        assert_eq!(pace.due(now), []);
    }
}
