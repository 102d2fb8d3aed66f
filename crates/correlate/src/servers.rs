//! How did each server treat the queries that were made to it directly, and from where?
//!
//! Silence counts against a server only while no other vantage gets answers from it: one that is silent for one
//! vantage alone has a bad path, not a bad server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use evidence::{NameKind, ServerRole, WallTime};

use crate::symptom::{Failure, TroubledLookup};
use crate::view::Ended;

/// Direct queries of the last minute, by server address and vantage.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    records: BTreeMap<(SocketAddr, String), Record>,
}

/// One vantage's queries to one server address, by time of asking.
#[derive(Debug, Default)]
struct Record {
    /// Cluster names answered within a second, or the moment of a late answer.
    answered: BTreeSet<WallTime>,
    /// Cluster names unanswered for a second that no drop explains, with the lookup's number.
    silent: BTreeSet<(WallTime, u64)>,
    /// Forwarded names answered.
    forwarded: BTreeSet<WallTime>,
    /// Forwarded names unanswered, or answered with a server's error.
    forwarded_failed: BTreeSet<(WallTime, u64)>,
}

impl Servers {
    /// Forgets queries made before that time. A server that has left stays till then: lookups that it kept waiting are
    /// told only now.
    pub fn forget(&mut self, horizon: WallTime) {
        for record in self.records.values_mut() {
            record.answered.retain(|at| *at >= horizon);
            record.silent.retain(|(at, _)| *at >= horizon);
            record.forwarded.retain(|at| *at >= horizon);
            record.forwarded_failed.retain(|(at, _)| *at >= horizon);
        }
        self.records.retain(|_, record| !record.is_empty());
    }

    /// Remembers a query that went wrong.
    pub fn learn_trouble(&mut self, at: WallTime, lookup: &TroubledLookup) {
        if lookup.role != ServerRole::Direct {
            return;
        }
        let record = self.records.entry((lookup.server, lookup.vantage.clone())).or_default();
        let failed = match (lookup.failure, lookup.name_kind) {
            (Failure::SendRefused(_) | Failure::Unreachable(_), _)
            | (Failure::Rcode(_), NameKind::Cluster) => return,
            (Failure::Silent | Failure::Refused, NameKind::Cluster) => &mut record.silent,
            (Failure::Silent | Failure::Refused | Failure::Rcode(_), NameKind::Forwarded) => {
                &mut record.forwarded_failed
            }
        };
        if failed.len() < MOST_QUERIES {
            failed.insert((at, lookup.id.0));
        }
    }

    /// Remembers a lookup that ended.
    pub fn learn_ended(&mut self, ended: &Ended) {
        let lookup = &ended.lookup;
        if lookup.role != ServerRole::Direct || !lookup.outcome.is_answer() {
            return;
        }
        let record = self.records.entry((lookup.server, lookup.vantage.clone())).or_default();
        // A late answer shows that the server answers now, not that it did when it was asked.
        let quick = ended.ended.since(ended.started) < Duration::from_secs(1);
        let at = if quick { ended.started } else { ended.ended };
        let answered = match lookup.name_kind {
            NameKind::Cluster => &mut record.answered,
            NameKind::Forwarded => &mut record.forwarded,
        };
        if answered.len() >= MOST_QUERIES {
            answered.pop_first();
        }
        answered.insert(at);
    }

    /// A drop explains that lookup's silence: the server is not to blame for it.
    pub fn absolve(&mut self, lookup: &TroubledLookup) {
        if let Some(record) = self.records.get_mut(&(lookup.server, lookup.vantage.clone())) {
            record.silent.retain(|(_, id)| *id != lookup.id.0);
            record.forwarded_failed.retain(|(_, id)| *id != lookup.id.0);
        }
    }

    /// Whether the server behind these addresses left direct queries unanswered at that time: two or more, one for a
    /// cluster name at least, seen by more than one vantage where more than one asks (or for so long that they
    /// would have), and no answer to another vantage in the midst of one's silence.
    pub fn is_silent(&self, addresses: &[SocketAddr], at: WallTime) -> bool {
        let mut asked: BTreeMap<&str, Asked> = BTreeMap::new();
        for ((_, vantage), record) in
            self.records.iter().filter(|((server, _), _)| addresses.contains(server))
        {
            asked.entry(vantage).or_default().add(record);
        }
        let runs: Vec<(&str, Run)> =
            asked.iter().filter_map(|(vantage, asked)| Some((*vantage, asked.run(at)?))).collect();
        let contradicted = runs.iter().any(|(vantage, run)| {
            asked.iter().any(|(other, asked)| other != vantage && asked.answered_between(run.first, run.last))
        });
        let (Some(first), Some(last)) =
            (runs.iter().map(|(_, run)| run.first).min(), runs.iter().map(|(_, run)| run.last).max())
        else {
            return false;
        };
        let queries: usize = runs.iter().map(|(_, run)| run.queries).sum();
        let corroborated = runs.len() >= 2 || asked.len() == 1 || last.since(first) >= CORROBORATED_WITHIN;
        queries >= 2 && runs.iter().any(|(_, run)| run.cluster) && corroborated && !contradicted
    }

    /// Whether this address answered cluster names around that time, and failed or kept silent on forwarded ones.
    pub fn upstream_failed(&self, server: SocketAddr, at: WallTime) -> bool {
        self.of(server).any(|(_, record)| record.upstream_failed(at))
    }

    /// Addresses that were asked directly.
    pub fn asked(&self) -> BTreeSet<SocketAddr> {
        self.records.keys().map(|(server, _)| *server).collect()
    }

    fn of(&self, server: SocketAddr) -> impl Iterator<Item = (&str, &Record)> {
        self.records
            .range((server, String::new())..)
            .take_while(move |((address, _), _)| *address == server)
            .map(|((_, vantage), record)| (vantage.as_str(), record))
    }
}

impl Record {
    fn is_empty(&self) -> bool {
        self.answered.is_empty()
            && self.silent.is_empty()
            && self.forwarded.is_empty()
            && self.forwarded_failed.is_empty()
    }
}

/// All that one vantage asked one server, over its addresses.
#[derive(Debug, Default)]
struct Asked {
    answered: BTreeSet<WallTime>,
    /// With the lookup's number, and whether the name was the cluster's.
    silent: BTreeSet<(WallTime, u64, bool)>,
}

/// The unanswered queries of one vantage between two answers.
#[derive(Debug)]
struct Run {
    first: WallTime,
    last: WallTime,
    queries: usize,
    /// One of them at least was for a cluster name.
    cluster: bool,
}

impl Asked {
    fn add(&mut self, record: &Record) {
        self.answered.extend(&record.answered);
        self.silent.extend(record.silent.iter().map(|(at, id)| (*at, *id, true)));
        self.silent.extend(record.forwarded_failed.iter().map(|(at, id)| (*at, *id, false)));
    }

    /// The silence around that time: after the answer before it and before the answer after it.
    fn run(&self, at: WallTime) -> Option<Run> {
        let (before, after) = around(&self.answered, at);
        let silent: Vec<_> =
            self.silent.range((before, u64::MAX, true)..(after, 0, false)).copied().collect();
        Some(Run {
            first: silent.first()?.0,
            last: silent.last()?.0,
            queries: silent.len(),
            cluster: silent.iter().any(|(_, _, cluster)| *cluster),
        })
    }

    fn answered_between(&self, first: WallTime, last: WallTime) -> bool {
        self.answered.range((Bound::Excluded(first), Bound::Unbounded)).next().is_some_and(|at| *at < last)
    }
}

impl Record {
    /// Forwarded names failed around that time, between two that were answered, while cluster names were
    /// answered right after and not silent right before.
    fn upstream_failed(&self, at: WallTime) -> bool {
        let (before, after) = around(&self.forwarded, at);
        self.forwarded_failed.range((before, u64::MAX)..(after, 0)).any(|(failed, _)| {
            let well = self
                .answered
                .range((Bound::Excluded(*failed), Bound::Included(failed.plus(ASKED_AGAIN))))
                .next();
            well.is_some_and(|well| self.silent.range((failed.minus(NEAR), 0)..(*well, 0)).next().is_none())
        })
    }
}

/// The answers before and after a time, or the beginning and the end of time.
fn around(answered: &BTreeSet<WallTime>, at: WallTime) -> (WallTime, WallTime) {
    let before = answered.range(..=at).next_back().copied().unwrap_or_default();
    let after = answered.range((Bound::Excluded(at), Bound::Unbounded)).next().copied();
    (before, after.unwrap_or(WallTime(i64::MAX)))
}

/// A calm vantage asks a server for a cluster name every 4 s.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
/// So long a silence and no other vantage has met it: the others ask elsewhere.
const CORROBORATED_WITHIN: Duration = Duration::from_secs(5);
const NEAR: Duration = Duration::from_secs(2);
const MOST_QUERIES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, answered, direct_symptom};

    fn silent(servers: &mut Servers, vantage: &str, after: u64) {
        let mut lookup = direct_symptom(after).lookup().unwrap().clone();
        lookup.vantage = vantage.into();
        servers.learn_trouble(NOW.plus(Duration::from_millis(after)), &lookup);
    }

    fn server() -> SocketAddr {
        "10.244.1.2:53".parse().unwrap()
    }

    fn is_silent(servers: &Servers, after: u64) -> bool {
        servers.is_silent(&[server()], NOW.plus(Duration::from_millis(after)))
    }

    #[test]
    fn a_server_silent_for_one_vantage_and_not_for_another_is_not_silent() {
        let mut servers = Servers::default();
        silent(&mut servers, "pod-b", 0);
        silent(&mut servers, "pod-b", 400);
        assert!(is_silent(&servers, 400), "nobody else asks");
        servers.learn_ended(&answered(NOW.plus(Duration::from_millis(200)), NameKind::Cluster));
        assert!(!is_silent(&servers, 400), "pod-a was answered meanwhile");
    }

    #[test]
    fn one_vantage_alone_is_believed_only_after_the_others_had_time_to_ask() {
        let mut servers = Servers::default();
        servers.learn_ended(&answered(NOW.minus(Duration::from_secs(1)), NameKind::Cluster));
        silent(&mut servers, "pod-b", 0);
        silent(&mut servers, "pod-b", 400);
        assert!(!is_silent(&servers, 400), "pod-a has not asked since");
        silent(&mut servers, "pod-a", 900);
        assert!(is_silent(&servers, 400));
    }

    #[test]
    fn one_query_and_two_at_the_same_moment_are_no_trouble_to_judge() {
        let mut servers = Servers::default();
        silent(&mut servers, "pod-a", 0);
        assert!(!is_silent(&servers, 0));
        silent(&mut servers, "pod-b", 0);
        assert!(is_silent(&servers, 0));
    }

    #[test]
    fn silence_ends_with_an_answer_and_is_remembered() {
        let mut servers = Servers::default();
        silent(&mut servers, "pod-a", 0);
        silent(&mut servers, "pod-a", 400);
        servers.learn_ended(&answered(NOW.plus(Duration::from_secs(2)), NameKind::Cluster));
        assert!(is_silent(&servers, 400));
        assert!(!is_silent(&servers, 3000));
    }
}
