//! Which nodes probe, and what may each do, so that all of them together stay below the cluster's ceiling?
//!
//! Only probers that report are counted: a node without one asks nobody. What nodes may add to their regular lookups
//! after a symptom comes in two halves. One is shared out beforehand, so that the first to see trouble need not ask;
//! the other is lent to those that have told of trouble, and given back when their suspicion is over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use evidence::wire::Duty;
use evidence::{Batch, CoverageState, Inventory, Observation, Observer, Role};
use prober::{Candidates, Config};

/// All probers that report.
#[derive(Debug)]
pub struct Roster(Mutex<Nodes>);

#[derive(Debug)]
struct Nodes {
    config: Config,
    begun: Instant,
    nodes: HashMap<String, Node>,
    servers: Vec<SocketAddr>,
    /// Who asks which servers, as of `shared`.
    direct: HashMap<String, Vec<SocketAddr>>,
    shared: Option<Instant>,
    changed: bool,
    /// Of the half that is lent, what is with nodes now.
    lent: u32,
    /// What those have that went away with it, and until when.
    adrift: Vec<(Instant, u32)>,
    /// Nodes that ask more often now.
    troubled: u32,
}

#[derive(Debug)]
struct Node {
    heard: Instant,
    trouble: Option<Trouble>,
}

/// A time in which a node asks more often.
#[derive(Debug)]
struct Trouble {
    begun: Instant,
    last: Instant,
    lent: u32,
}

impl Roster {
    /// Nobody has reported yet.
    pub fn new(config: Config, now: Instant) -> Self {
        Self(Mutex::new(Nodes {
            config,
            begun: now,
            nodes: HashMap::new(),
            servers: Vec::new(),
            direct: HashMap::new(),
            shared: None,
            changed: false,
            lent: 0,
            adrift: Vec::new(),
            troubled: 0,
        }))
    }

    /// Takes note of a batch; gives what its sender may do. None for who is no prober, and while not all have been
    /// heard that may be there.
    pub fn hear(&self, batch: &Batch, inventory: &Inventory, now: Instant) -> Option<Duty> {
        if batch.role != Role::Prober {
            return None;
        }
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.note(batch, now);
        nodes.share_servers(inventory, now);
        // The first of ten thousand that come back to a new correlator would get all servers.
        if now.duration_since(nodes.begun) < SETTLES {
            return None;
        }
        if !nodes.nodes.contains_key(&batch.node) {
            return Some(Duty::default());
        }
        let direct = nodes.direct.get(&batch.node).cloned().unwrap_or_default();
        let extra_in_1000_s = nodes.extra(&batch.node, now);
        Some(Duty { direct, extra_in_1000_s })
    }
}

impl Nodes {
    fn note(&mut self, batch: &Batch, now: Instant) {
        let mut lines = batch.coverage.iter().filter(|line| line.observer == Observer::Prober);
        if !lines.any(|line| matches!(line.state, CoverageState::Looked { .. })) {
            // It reports, and can't ask: it is no help to a server.
            self.changed |= self.nodes.contains_key(&batch.node);
            self.forget(now, |name, _| name == batch.node);
            return;
        }
        if !self.nodes.contains_key(&batch.node) {
            if self.nodes.len() >= MOST_NODES {
                return;
            }
            self.changed = true;
        }
        let node = self.nodes.entry(batch.node.clone()).or_insert(Node { heard: now, trouble: None });
        node.heard = now;
        if batch.observations.iter().any(|o| matches!(o, Observation::Attempt(_))) {
            match &mut node.trouble {
                Some(trouble) => trouble.last = now,
                none => {
                    *none = Some(Trouble { begun: now, last: now, lent: 0 });
                    self.troubled += 1;
                }
            }
        }
    }

    /// Removes nodes. What they were lent comes back once they can't have it any more.
    fn forget(&mut self, now: Instant, is_gone: impl Fn(&str, &Node) -> bool) {
        let adrift = &mut self.adrift;
        self.nodes.retain(|name, node| {
            let gone = is_gone(name, node);
            if gone {
                let lent = node.trouble.as_ref().map(|trouble| trouble.lent).filter(|lent| *lent > 0);
                adrift.extend(lent.map(|lent| (now + UNANSWERED, lent)));
            }
            !gone
        });
    }

    /// Takes back what is over.
    fn take_back(&mut self, now: Instant) {
        let (config, lent) = (&self.config, &mut self.lent);
        self.adrift.retain(|(until, part)| {
            if now >= *until {
                *lent = lent.saturating_sub(*part);
            }
            now < *until
        });
        self.troubled = 0;
        for node in self.nodes.values_mut() {
            let Some(trouble) = &mut node.trouble else { continue };
            if trouble.suspects(config, now) {
                self.troubled += 1;
                continue;
            }
            *lent = lent.saturating_sub(std::mem::take(&mut trouble.lent));
            // The node counts anew once it has seen nothing for a while.
            node.trouble.take_if(|trouble| now.duration_since(trouble.last) > prober::QUIET);
        }
    }

    /// Says anew who asks which server. Each server is held against each node: once a second at most.
    fn share_servers(&mut self, inventory: &Inventory, now: Instant) {
        if self.shared.is_some_and(|shared| now.duration_since(shared) < SHARED_AGAIN) {
            return;
        }
        self.shared = Some(now);
        let before = self.nodes.len();
        self.forget(now, |_, node| now.duration_since(node.heard) > GONE);
        self.take_back(now);
        let servers: Vec<_> = inventory
            .endpoints
            .iter()
            .filter(|server| server.serving && !server.leaving)
            .map(|server| server.address)
            .collect();
        if before == self.nodes.len() && !self.changed && servers == self.servers {
            return;
        }
        self.changed = false;
        self.servers = servers;
        let candidates = Candidates::new(self.nodes.keys().cloned());
        let mut direct: HashMap<String, Vec<SocketAddr>> = HashMap::new();
        for server in &self.servers {
            for node in candidates.askers(*server, self.config.direct_from) {
                direct.entry(node.to_owned()).or_default().push(*server);
            }
        }
        self.direct = direct;
    }

    fn extra(&mut self, node: &str, now: Instant) -> u32 {
        let whole = self.config.burst_ceiling.saturating_mul(1000);
        let most = in_1000_s(self.config.suspicion_interval);
        let shared = (whole / 2 / count(self.nodes.len())).min(most);
        let (config, lent, troubled) = (&self.config, &mut self.lent, self.troubled.max(1));
        let trouble = self.nodes.get_mut(node).and_then(|node| node.trouble.as_mut());
        let Some(trouble) = trouble.filter(|trouble| trouble.suspects(config, now)) else { return shared };
        // Others may still have more than their part: then only what is left.
        *lent = lent.saturating_sub(trouble.lent);
        let left = (whole - whole / 2).saturating_sub(*lent);
        trouble.lent = ((whole - whole / 2) / troubled).min(left).min(most);
        *lent += trouble.lent;
        shared.max(trouble.lent)
    }
}

impl Trouble {
    /// Whether the node asks more often because of it.
    fn suspects(&self, config: &Config, now: Instant) -> bool {
        now.duration_since(self.begun) <= config.suspicion + RETURN
    }
}

fn in_1000_s(interval: Duration) -> u32 {
    u32::try_from(1_000_000 / interval.as_millis().max(1)).unwrap_or(u32::MAX)
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX).max(1)
}

/// Quiet agents report every 5 s: after that long all that are there have been heard.
const SETTLES: Duration = Duration::from_secs(6);
/// Of a node that has not reported for so long, others take over what it asked.
const GONE: Duration = Duration::from_secs(8);
const SHARED_AGAIN: Duration = Duration::from_secs(1);
/// A node's suspicion begins a moment before its correlator hears of it, and may be told late that it has less.
const RETURN: Duration = Duration::from_secs(5);
/// An agent that had no answer for so long adds nothing to its regular lookups.
pub const UNANSWERED: Duration = Duration::from_secs(30);
/// A cluster has 5,000 by its makers' word.
const MOST_NODES: usize = 32_768;

#[cfg(test)]
mod tests;
