//! Which faults can be put into a site, and which cause does each show?
//!
//! One file a fault, each a [`Fault`] value with the function that puts it in. What undoes it is data: every
//! step is written to the site's folder before it is done, so that any process can switch the fault off, also
//! after the one that switched it on was killed half way.

mod conntrack_full;
mod forward_drop;
mod injection;
mod no_endpoints;
mod pod_drop;
mod rule;
mod same_port_clash;
mod server_erratic;
mod server_stopped;
mod servers_stopped;
mod stale_mapping;
mod undo;
mod upstream_dead;
mod upstream_servfail;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::traffic::job::Report;
use crate::{Error, Site};

use injection::Injection;
use undo::Undo;

pub use rule::Rule;

/// A fault that is real and reversible.
#[derive(Debug)]
pub struct Fault {
    /// Its name, for ever: "same-port-clash".
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// What a right verdict says of it.
    pub expected: Expected,
    /// Whether it changes servers or endpoints: two such faults exclude each other.
    touches_servers: bool,
    /// Whether it can be put into a real cluster, too.
    pub on_cluster: bool,
    inject: fn(&mut Injection) -> Result<(), Error>,
}

/// What a right verdict says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// The id of the cause.
    pub cause: &'static str,
    /// Whether there is a direct proof; else at least "likely" is expected.
    pub certain: bool,
    /// Whom it befalls.
    pub scope: Scope,
}

/// Whom a fault befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The pods of one node.
    Node,
    /// One pod.
    Pod,
    /// Who is sent to certain servers.
    Servers,
    /// Everyone.
    Cluster,
}

/// Where a fault is put. What is not named comes from the seed.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// What is drawn depends on this alone.
    pub seed: u64,
    /// The node.
    pub node: Option<String>,
    /// The client pod.
    pub pod: Option<String>,
    /// The server.
    pub server: Option<String>,
    /// Whether the fault's own traffic goes by IPv6.
    pub ipv6: bool,
}

/// A fault that is on, in the words of a verdict, with what has been lost by it so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Active {
    /// The fault's name.
    pub fault: String,
    /// The cause a verdict should name.
    pub cause: String,
    /// When its harm began: milliseconds since 1970. Verdicts are timed from here.
    pub began_unix_ms: u64,
    /// When it was complete: milliseconds since 1970. Zero while it is being put in.
    pub since_unix_ms: u64,
    /// The node where packets are lost.
    pub node: Option<String>,
    /// The pod in whose own namespace packets are lost.
    pub pod: Option<String>,
    /// The servers at fault.
    pub servers: Vec<String>,
    /// Their addresses, with the port after DNAT.
    pub server_addresses: Vec<SocketAddr>,
    /// The clients of the fault's own traffic.
    pub clients: Vec<Client>,
    /// What those clients counted, in the same order, when last asked; final after `off`.
    pub truth: Report,
    undo: Vec<Undo>,
}

/// A client of the fault's own traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The pod's name.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    /// Its source port, where it keeps one.
    pub port: Option<u16>,
}

static ALL: [&Fault; 11] = [
    &same_port_clash::FAULT,
    &stale_mapping::FAULT,
    &conntrack_full::FAULT,
    &forward_drop::FAULT,
    &pod_drop::FAULT,
    &no_endpoints::FAULT,
    &server_erratic::FAULT,
    &server_stopped::FAULT,
    &servers_stopped::FAULT,
    &upstream_dead::FAULT,
    &upstream_servfail::FAULT,
];

/// Every fault there is.
pub fn all() -> &'static [&'static Fault] {
    &ALL
}

/// Every fault that a real cluster can have.
pub fn of_cluster() -> impl Iterator<Item = &'static Fault> {
    ALL.into_iter().filter(|fault| fault.on_cluster)
}

/// The fault of this name.
pub fn by_name(name: &str) -> Result<&'static Fault, Error> {
    ALL.iter().find(|fault| fault.name == name).copied().ok_or_else(|| Error::NoSuch {
        kind: "fault",
        name: name.to_owned(),
        known: ALL.map(|fault| fault.name).join(", "),
    })
}

/// The faults that are on in this site.
pub fn active(site: &Site) -> Result<Vec<Active>, Error> {
    let mut found = Vec::new();
    for fault in all() {
        found.extend(fault.active(site)?);
    }
    Ok(found)
}

/// Switches off whatever is on.
pub fn all_off(site: &Site) -> Result<(), Error> {
    all().iter().try_for_each(|fault| fault.off(site).map(drop))
}

impl Fault {
    /// Puts the fault in and tells what was done. A fault that fails half way is taken out again.
    pub fn on(&self, site: &Site, choice: &Choice) -> Result<Active, Error> {
        if self.active(site)?.is_some() {
            return Err(Error::system(format!("switch {} on", self.name))(std::io::Error::other(
                "it is on already",
            )));
        }
        let mut injection = Injection::new(self, site, choice);
        let outcome = self.put_in(&mut injection);
        match outcome {
            Ok(()) => Ok(injection.active),
            Err(error) => {
                // The first error is the one to tell; what can't be undone now is still in the file.
                drop(self.off(site));
                Err(error)
            }
        }
    }

    /// Takes the fault out and tells what was lost in all; nothing if it was not on.
    pub fn off(&self, site: &Site) -> Result<Option<Active>, Error> {
        let Some(mut active) = self.active(site)? else { return Ok(None) };
        let path = self.file(site);
        while let Some(step) = active.undo.pop() {
            if let Some(report) = step.run(site)? {
                active.truth = report;
            }
        }
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        Ok(Some(active))
    }

    /// What is known of the fault if it is on, with its clients' counts as of now.
    pub fn active(&self, site: &Site) -> Result<Option<Active>, Error> {
        let path = self.file(site);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Error::file("read", &path))?,
        };
        let mut active: Active =
            serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })?;
        if let Some(report) = active.undo.iter().find_map(Undo::report) {
            active.truth = report;
        }
        Ok(Some(active))
    }

    fn put_in(&self, injection: &mut Injection) -> Result<(), Error> {
        let site = injection.site;
        let folder = site.dir.join("faults");
        fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        let other = all().iter().find(|other| other.touches_servers && other.file(site).exists());
        if let (true, Some(other)) = (self.touches_servers, other) {
            return Err(Error::system(format!("switch {} on", self.name))(std::io::Error::other(format!(
                "{} is on, and works on servers, too",
                other.name
            ))));
        }
        injection.save()?;
        (self.inject)(injection)?;
        injection.active.since_unix_ms = now_unix_ms();
        injection.save()
    }

    fn file(&self, site: &Site) -> PathBuf {
        site.dir.join("faults").join(format!("{}.json", self.name))
    }
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        let names: BTreeSet<_> = all().iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), all().len());
        assert!(names.iter().all(|name| by_name(name).is_ok()));
    }

    #[test]
    fn an_unknown_fault_is_told_with_the_known_ones() {
        let text = by_name("rain").unwrap_err().to_string();
        assert!(text.contains("rain") && text.contains("conntrack-full"), "{text}");
    }
}
