//! What may a prober do beyond asking its own Service, so that all of them together stay below a ceiling?
//!
//! A server is asked directly by the few vantages with the highest hash of both names (rendezvous): one that comes or
//! goes moves no other pair. Who knows all vantages of the cluster decides; a prober that is alone decides for itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use evidence::Endpoint;

/// What a prober was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duty {
    /// The servers to be asked directly.
    pub direct: Direct,
    /// Lookups that all its vantages together may add to their regular ones after a first symptom, in a thousand
    /// seconds.
    pub extra_in_1000_s: u32,
}

/// Which servers are asked directly. A server that the inventory does not have is never asked, whoever says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Direct {
    /// All, each by some of this prober's vantages: there are no others.
    All,
    /// These, each by one vantage.
    These(BTreeSet<SocketAddr>),
    /// Those on the own node, each by one vantage: it is not known who else asks, and each server is on one node only.
    OwnNode,
}

impl Duty {
    /// Of a prober that has all vantages there are.
    pub fn of_all(config: &crate::Config) -> Self {
        Self { direct: Direct::All, extra_in_1000_s: config.burst_ceiling.saturating_mul(1000) }
    }

    /// Of one among many that has not been told yet: as little as is useful.
    pub fn untold() -> Self {
        Self { direct: Direct::OwnNode, extra_in_1000_s: 0 }
    }
}

impl Direct {
    /// Whether a vantage on this node asks this server, where `direct_from` vantages of `all` may.
    pub(crate) fn includes(
        &self,
        server: &Endpoint,
        vantage: &str,
        node: &str,
        all: &Candidates,
        direct_from: usize,
    ) -> bool {
        let askers = match self {
            Self::All => direct_from,
            Self::These(these) if these.contains(&server.address) => direct_from.min(1),
            Self::OwnNode if server.node.as_deref() == Some(node) => direct_from.min(1),
            Self::These(_) | Self::OwnNode => 0,
        };
        all.askers(server.address, askers).contains(&vantage)
    }
}

/// Who could ask a server directly: names of vantages or of nodes.
#[derive(Debug, Clone, Default)]
pub struct Candidates(Vec<(u64, String)>);

impl Candidates {
    /// Of these names.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| (hash(&name), name)).collect())
    }

    /// The few that ask this server.
    pub fn askers(&self, server: SocketAddr, count: usize) -> Vec<&str> {
        let server = hash(&server.to_string());
        let mut best: Vec<(u64, &str)> = Vec::with_capacity(count.saturating_add(1));
        for (own, name) in &self.0 {
            let candidate = (mixed(server ^ own), name.as_str());
            if best.len() < count || best.last().is_some_and(|last| candidate > *last) {
                let place = best.partition_point(|better| *better > candidate);
                best.insert(place, candidate);
                best.truncate(count);
            }
        }
        best.into_iter().map(|(_, name)| name).collect()
    }
}

/// FNV-1a: the same on every machine and in every version, which std's hasher does not promise.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3))
}

/// The end of MurmurHash3: each bit of what goes in changes half of what comes out.
fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(last: u8) -> Endpoint {
        let node = Some(format!("node-{last}"));
        Endpoint {
            name: String::new(),
            address: ([10, 0, 0, last], 53).into(),
            node,
            serving: true,
            leaving: false,
        }
    }

    fn nodes(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("node-{n}")).collect()
    }

    #[test]
    fn each_server_is_asked_from_exactly_three_vantages() {
        let names = nodes(50);
        let all = Candidates::new(names.clone());
        let mut load = vec![0; names.len()];
        for last in 0..100 {
            let chosen = (0..names.len())
                .filter(|&n| Direct::All.includes(&server(last), &names[n], "any", &all, 3))
                .collect::<Vec<_>>();
            assert_eq!(chosen.len(), 3);
            chosen.into_iter().for_each(|n| load[n] += 1);
        }
        assert!(load.iter().max() <= Some(&20), "{load:?}");
        assert_eq!(Candidates::new(nodes(2)).askers(server(1).address, 3).len(), 2);
        assert!(Candidates::default().askers(server(1).address, 3).is_empty());
    }

    #[test]
    fn a_vantage_that_leaves_moves_its_own_servers_alone() {
        let (all, fewer) = (Candidates::new(nodes(20)), Candidates::new(nodes(19)));
        for last in 0..100 {
            let server = server(last).address;
            let (before, after) = (all.askers(server, 3), fewer.askers(server, 3));
            let moved = before.iter().filter(|name| !after.contains(name)).collect::<Vec<_>>();
            assert!(moved.is_empty() || moved == [&"node-19"], "{before:?} {after:?}");
        }
    }

    #[test]
    fn one_among_many_asks_what_it_was_told_or_its_own_nodes() {
        let all = Candidates::new(["node-1".to_owned(), "node-1/host".to_owned()]);
        let asks = |direct: &Direct, last, count| {
            let by = |vantage: &&&str| direct.includes(&server(last), vantage, "node-1", &all, count);
            ["node-1", "node-1/host"].iter().filter(by).count()
        };
        let these = Direct::These([server(2).address].into());
        assert_eq!([asks(&these, 1, 3), asks(&these, 2, 3), asks(&these, 2, 0)], [0, 1, 0]);
        let untold = Duty::untold().direct;
        assert_eq!([asks(&untold, 1, 3), asks(&untold, 2, 3), asks(&untold, 1, 0)], [1, 0, 0]);
    }
}
