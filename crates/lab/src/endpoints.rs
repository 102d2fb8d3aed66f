//! Which servers are behind the DNS Service now, and on whose account are the others out?
//!
//! The background takes one out and puts it back all the time; a fault takes others out at the same moment. Each
//! changes its own part of one file under a lock, and rules, entries and the inventory follow from the whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::miniature::{inventory, kube_proxy};
use crate::site::{Node, Server, Site, replace};
use crate::{Error, interrupt};

/// Who is out of the Service, and which entries kube-proxy fails to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// Servers that no EndpointSlice has any more, as when their pods are deleted.
    pub gone: BTreeSet<String>,
    /// Servers that the EndpointSlices have as not ready.
    pub unready: BTreeSet<String>,
    /// The server that the background has taken out for the moment.
    pub away: Option<String>,
    /// Entries that outlive their server.
    pub uncleaned: Option<Uncleaned>,
}

/// kube-proxy of this node does not delete the entries that lead to this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uncleaned {
    /// The node.
    pub node: String,
    /// The server that is gone.
    pub server: String,
}

impl Endpoints {
    /// What the EndpointSlices list, ready or not.
    pub fn lists(&self, server: &Server) -> bool {
        !self.gone.contains(&server.name) && self.away.as_ref() != Some(&server.name)
    }

    /// Whom kube-proxy sends queries to.
    pub fn serves(&self, server: &Server) -> bool {
        self.lists(server) && !self.unready.contains(&server.name)
    }

    /// Takes back whatever a fault has changed; what the background does is left.
    pub(crate) fn heal(&mut self) {
        *self = Self { away: self.away.take(), ..Self::default() };
    }

    fn cleans(&self, node: &Node, server: &Server) -> bool {
        self.uncleaned.as_ref().is_none_or(|one| one.node != node.name || one.server != server.name)
    }
}

impl Site {
    /// Who is behind the Service now.
    pub fn endpoints(&self) -> Result<Endpoints, Error> {
        let path = path(self);
        match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Endpoints::default()),
            read => {
                let text = read.map_err(Error::file("read", &path))?;
                serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })
            }
        }
    }

    /// No server serves any more: none of the miniature's is ready, a cluster's CoreDNS is scaled to nothing.
    pub(crate) fn no_server_serves(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.no_server_serves(),
            None => {
                let all = self.servers.iter().map(|server| server.name.clone()).collect();
                self.change_endpoints(|endpoints| endpoints.unready = all)
            }
        }
    }

    /// As in a cluster: first the Service forgets the server, then the server ends. This node's kube-proxy doesn't
    /// delete the entries that lead to it: a cluster's is stopped.
    pub(crate) fn lose_server(&self, server: &Server, node: &str) -> Result<(), Error> {
        if let Some(cluster) = &self.cluster {
            return cluster.lose_server(server, node);
        }
        self.change_endpoints(|endpoints| {
            endpoints.gone.insert(server.name.clone());
            endpoints.uncleaned = Some(Uncleaned { node: node.to_owned(), server: server.name.clone() });
        })?;
        server.daemon.kill()
    }

    /// All that a fault took out of the Service is behind it again. A cluster has new servers in the place of old ones.
    pub(crate) fn all_servers_serve(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.all_servers_serve(),
            None => self.change_endpoints(Endpoints::heal),
        }
    }

    /// A server that has ended runs again; in a cluster its Deployment sees to that.
    pub(crate) fn start_server(&self, server: &Server, deadline: Duration) -> Result<(), Error> {
        if self.cluster.is_some() {
            return Ok(());
        }
        if server.daemon.id().is_none() {
            server.daemon.start()?;
        }
        server.wait_till_answers(deadline)
    }

    /// Changes who is behind the miniature's Service: every node's rules change, then the inventory, then UDP entries that lead
    /// elsewhere are deleted on each node. As kube-proxy 1.34 does, none are deleted while there are no endpoints at
    /// all: they go when endpoints come back.
    pub fn change_endpoints(&self, change: impl FnOnce(&mut Endpoints)) -> Result<(), Error> {
        let _held = lock(self)?;
        let mut endpoints = self.endpoints()?;
        change(&mut endpoints);
        let path = path(self);
        let text = serde_json::to_vec_pretty(&endpoints)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        replace(&path, &text)?;
        let (serving, out): (Vec<_>, Vec<_>) =
            self.servers.iter().partition(|server| endpoints.serves(server));
        for node in &self.nodes {
            interrupt::step(|| kube_proxy::sync(self, node, &serving))?;
        }
        inventory::write(self, &endpoints)?;
        if serving.is_empty() {
            return Ok(());
        }
        for node in &self.nodes {
            let cleaned: Vec<_> =
                out.iter().copied().filter(|server| endpoints.cleans(node, server)).collect();
            kube_proxy::delete_stale(self, node, &cleaned)?;
        }
        Ok(())
    }
}

/// The background and faults, in whatever process, change endpoints one at a time.
fn lock(site: &Site) -> Result<Flock<File>, Error> {
    let path = site.dir.join("endpoints.lock");
    let file = File::create(&path).map_err(Error::file("write", &path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::file("lock", &path)(errno.into()))
}

fn path(site: &Site) -> PathBuf {
    site.dir.join("endpoints.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::miniature::plan;

    fn serving(site: &Site, endpoints: &Endpoints) -> usize {
        site.servers.iter().filter(|server| endpoints.serves(server)).count()
    }

    #[test]
    fn a_fault_that_ends_leaves_what_the_background_did() {
        let site = plan::draw("x", 1, None, PathBuf::new());
        let name = |index: usize| site.servers[index].name.clone();
        let mut endpoints = Endpoints { away: Some(name(0)), ..Endpoints::default() };
        assert_eq!(serving(&site, &endpoints), 2);
        endpoints.gone.insert(name(1));
        endpoints.uncleaned = Some(Uncleaned { node: site.nodes[0].name.clone(), server: name(1) });
        assert_eq!(serving(&site, &endpoints), 1);
        assert!(!endpoints.cleans(&site.nodes[0], &site.servers[1]));
        assert!(endpoints.cleans(&site.nodes[1], &site.servers[1]));
        endpoints.heal();
        assert_eq!(endpoints, Endpoints { away: Some(name(0)), ..Endpoints::default() });
    }

    #[test]
    fn a_server_that_is_not_ready_is_listed_and_does_not_serve() {
        let site = plan::draw("x", 1, None, PathBuf::new());
        let server = &site.servers[0];
        let endpoints = Endpoints { unready: [server.name.clone()].into(), ..Endpoints::default() };
        assert!(endpoints.lists(server) && !endpoints.serves(server));
    }
}
