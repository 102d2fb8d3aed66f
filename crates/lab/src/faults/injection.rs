//! What does a fault's own file work with while it is put in?
//!
//! What the seed draws, how the fault's traffic is started, and how each step is written down before it is done.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::undo::Undo;
use super::{Active, Choice, Client, Fault, now_unix_ms};
use crate::site::{Node, Pod, Server, replace};
use crate::traffic::job::{Helper, Job, Report};
use crate::{Error, Site};

/// A fault on its way in: what `inject` functions work with.
pub(super) struct Injection<'a> {
    pub(super) site: &'a Site,
    pub(super) choice: &'a Choice,
    pub(super) rng: StdRng,
    pub(super) active: Active,
}

impl<'a> Injection<'a> {
    /// Nothing is done yet.
    pub(super) fn new(fault: &Fault, site: &'a Site, choice: &'a Choice) -> Self {
        Self {
            site,
            choice,
            rng: StdRng::seed_from_u64(choice.seed),
            active: Active {
                fault: fault.name.to_owned(),
                cause: fault.expected.cause.to_owned(),
                began_unix_ms: now_unix_ms(),
                since_unix_ms: 0,
                node: None,
                pod: None,
                servers: Vec::new(),
                server_addresses: Vec::new(),
                clients: Vec::new(),
                truth: Report::default(),
                undo: Vec::new(),
            },
        }
    }

    /// What came before was preparation: the harm begins now. In a cluster that takes long: a server that is told to leave
    /// serves on for 10 s. The miniature's moment is counted in.
    pub(super) fn begins(&mut self) {
        if self.site.cluster.is_some() {
            self.active.began_unix_ms = now_unix_ms();
        }
    }

    /// Writes down how a step is undone. Call it before the step.
    pub(super) fn will(&mut self, undo: Undo) -> Result<(), Error> {
        self.active.undo.push(undo);
        self.save()
    }

    /// Starts the fault's own traffic in a process of its own, inside this namespace.
    pub(super) fn start(&mut self, netns: &Path, job: &Job) -> Result<Helper, Error> {
        let helper = Helper::prepare(self.site, &self.helper_name(), netns, job)?;
        self.will(Undo::Helper(helper.clone()))?;
        helper.start()?;
        Ok(helper)
    }

    /// What the fault's own traffic was when it was last on.
    pub(super) fn last(&self) -> Option<(Job, Report)> {
        Helper::last(self.site, &self.helper_name())
    }

    fn helper_name(&self) -> String {
        format!("fault-{}", self.active.fault)
    }

    /// The node that was asked for, or one by the seed.
    pub(super) fn node(&mut self) -> Result<&'a Node, Error> {
        let node = match &self.choice.node {
            Some(name) => self.site.node(name)?,
            None => drawn(&mut self.rng, "node", &self.site.nodes.iter().collect::<Vec<_>>())?,
        };
        self.active.node = Some(node.name.clone());
        Ok(node)
    }

    /// The client pod that was asked for, or one by the seed; on the chosen node if one was asked for.
    pub(super) fn pod(&mut self) -> Result<&'a Pod, Error> {
        let (site, choice) = (self.site, self.choice);
        let pod = match &choice.pod {
            Some(name) => site.pod(name)?,
            None => {
                let fits = |pod: &&Pod| choice.node.as_ref().is_none_or(|node| *node == pod.node);
                drawn(&mut self.rng, "pod", &site.pods.iter().filter(fits).collect::<Vec<_>>())?
            }
        };
        self.active.node = Some(pod.node.clone());
        Ok(pod)
    }

    /// The server that was asked for, or one by the seed; never the one that the background takes out and puts back.
    pub(super) fn server(&mut self) -> Result<&'a Server, Error> {
        let server = match &self.choice.server {
            Some(name) => self.site.server(name)?,
            None => {
                let stays = |server: &&Server| server.name != self.site.transient;
                drawn(&mut self.rng, "server", &self.site.servers.iter().filter(stays).collect::<Vec<_>>())?
            }
        };
        self.blame(server);
        Ok(server)
    }

    /// A verdict should name this server.
    pub(super) fn blame(&mut self, server: &Server) {
        let address = if self.choice.ipv6 { server.v6.into() } else { server.v4.into() };
        self.active.servers.push(server.name.clone());
        self.active.server_addresses.push(SocketAddr::new(address, server.port));
    }

    /// The Service's address in the chosen family.
    pub(super) fn service(&self) -> SocketAddr {
        if self.choice.ipv6 { self.site.service.v6 } else { self.site.service.v4 }
    }

    /// This pod is a client of the fault's own traffic.
    pub(super) fn client(&mut self, pod: &Pod, port: Option<u16>) -> IpAddr {
        let address = if self.choice.ipv6 { pod.v6.into() } else { pod.v4.into() };
        self.active.clients.push(Client { pod: pod.name.clone(), address, port });
        address
    }

    /// A verdict should name the upstream.
    pub(super) fn blame_upstream(&mut self) {
        self.active.servers.push("upstream".to_owned());
        self.active.server_addresses.push(self.site.upstream.address());
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        let path = self.site.dir.join("faults").join(format!("{}.json", self.active.fault));
        let text = serde_json::to_vec_pretty(&self.active)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        replace(&path, &text)
    }
}

fn drawn<'a, T>(rng: &mut StdRng, kind: &'static str, all: &[&'a T]) -> Result<&'a T, Error> {
    all.choose(rng).copied().ok_or_else(|| Error::NoSuch { kind, name: "any".into(), known: String::new() })
}
