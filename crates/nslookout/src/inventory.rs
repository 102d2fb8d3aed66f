//! What servers are there, by the cluster's own account?
//!
//! Without an API server to ask, the account is a file: what
//! `kubectl get services,endpointslices,pods,nodes -A -o json` prints, written anew whenever it changes. Where
//! there is no such file, the configuration's own lists stand in. `kubernetes.rs` reads the file's JSON.

mod address;
mod kubernetes;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evidence::{
    BootTime, Coverage, CoverageState, DnsService, Endpoint, Inventory, Observation, Observer, Report, Role,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use address::ServerAddress;
use kubernetes::Found;

/// The `cluster` part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// The cluster's name: a label of each alert, to tell clusters apart in one Alertmanager.
    pub name: String,
    /// The DNS Service.
    pub service: ServiceConfig,
    /// The DNS servers themselves, by address and port. Needed only where there is no inventory.
    pub servers: Vec<ServerAddress>,
    /// A file with what `kubectl get services,endpointslices,pods,nodes -A -o json` prints. It is read again
    /// whenever it changes; replace it by rename.
    pub inventory: Option<PathBuf>,
}

/// The DNS Service, as pods know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// Its addresses, one for each IP family; without a port it is 53. None: what /etc/resolv.conf names, and in
    /// an inventory the Service called kube-dns or coredns.
    pub addresses: Vec<ServerAddress>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            service: ServiceConfig::default(),
            servers: Vec::new(),
            inventory: None,
        }
    }
}

/// Reads the inventory and follows its changes, on the caller's runtime, until `out` is closed. The first state is
/// there when it returns; each new one is told to both channels at once, the present one every 5 s.
pub fn watch(config: &ClusterConfig, out: mpsc::Sender<Report>) -> watch::Receiver<Arc<Inventory>> {
    let mut wanted: Vec<SocketAddr> = config.service.addresses.iter().map(|a| a.0).collect();
    if wanted.is_empty() {
        wanted = of_resolv_conf(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    }
    let mut state = State::of_configuration(config, &wanted);
    let mut file = config.inventory.clone().map(|path| Follower { path, wanted, stamp: None });
    if let Some(file) = &mut file
        && file.has_changed()
    {
        state.take(read(&file.path, &file.wanted));
    }
    let (publish, receiver) = watch::channel(state.inventory.clone());
    tokio::spawn(follow(state, file, publish, out));
    receiver
}

/// What an agent goes by until the correlator tells it more: the Service's addresses as configured, or as this pod's
/// own resolv.conf names them. A node's resolv.conf names other servers: there it is not asked.
pub fn of_agent(config: &ClusterConfig, in_pod_network: bool) -> Arc<Inventory> {
    let mut wanted: Vec<SocketAddr> = config.service.addresses.iter().map(|a| a.0).collect();
    if wanted.is_empty() && in_pod_network {
        wanted = of_resolv_conf(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    }
    State::of_configuration(config, &wanted).inventory
}

async fn follow(
    mut state: State,
    mut file: Option<Follower>,
    publish: watch::Sender<Arc<Inventory>>,
    out: mpsc::Sender<Report>,
) {
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = polls.tick() => {}
            () = out.closed() => return,
        }
        let read = match file.as_mut().and_then(|file| file.has_changed().then_some(file)) {
            Some(file) => {
                // A large file takes a second.
                let (path, wanted) = (file.path.clone(), file.wanted.clone());
                tokio::task::spawn_blocking(move || read(&path, &wanted)).await.ok()
            }
            None => None,
        };
        let changed = read.is_some_and(|read| state.take(read));
        if changed {
            publish.send_if_modified(|present| {
                let differs = **present != *state.inventory;
                *present = state.inventory.clone();
                differs
            });
        }
        if changed || told.is_none_or(|at| at.elapsed() >= TELL) {
            told = Some(Instant::now());
            if out.send(state.report()).await.is_err() {
                return;
            }
        }
    }
}

/// The inventory as last known, and how well it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    inventory: Arc<Inventory>,
    /// Whether the servers are known at all: an empty list of them is told only then.
    known: bool,
    place: String,
    coverage: CoverageState,
}

impl State {
    fn of_configuration(config: &ClusterConfig, wanted: &[SocketAddr]) -> Self {
        let name = if config.service.addresses.is_empty() { "resolv.conf" } else { "configured" };
        let endpoints: Vec<Endpoint> = config
            .servers
            .iter()
            .map(|server| Endpoint {
                name: server.0.to_string(),
                address: server.0,
                node: None,
                serving: true,
            })
            .collect();
        let known = !endpoints.is_empty() && config.inventory.is_none();
        let coverage = if known {
            CoverageState::Looked { lost: 0 }
        } else {
            let why = "neither cluster.inventory nor cluster.servers is set: which servers are behind the Service \
                       is not known";
            CoverageState::Unsupported { why: why.into() }
        };
        let service = DnsService { name: name.into(), addresses: wanted.to_vec(), is_virtual: false };
        Self {
            inventory: Arc::new(Inventory { service, endpoints, pods: Vec::new() }),
            known,
            place: config
                .inventory
                .as_ref()
                .map_or("configuration".into(), |path| path.display().to_string()),
            coverage,
        }
    }

    /// True if anything that is told changed.
    fn take(&mut self, read: Result<Found, Error>) -> bool {
        let before = self.clone();
        match read {
            Ok(found) => {
                self.inventory = Arc::new(found.inventory);
                self.known = true;
                self.coverage = CoverageState::Looked { lost: found.broken };
            }
            // The last state is kept: servers don't go away because a file is broken.
            Err(error) => self.coverage = CoverageState::Denied { missing: error.to_string() },
        }
        *self != before
    }

    fn report(&self) -> Report {
        let now = BootTime::now();
        let inventory = self.known.then(|| Observation::Inventory((*self.inventory).clone()));
        Report {
            node: crate::observers::this_node(),
            role: Role::Inventory,
            from: now,
            to: now,
            observations: inventory.into_iter().collect(),
            coverage: vec![Coverage {
                observer: Observer::Inventory,
                place: self.place.clone(),
                state: self.coverage.clone(),
            }],
        }
    }
}

/// Why the file gives no inventory.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the inventory {path} can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the inventory {path} is no list of Kubernetes objects: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the inventory {path} has {0}", .problem.words())]
    Content { path: PathBuf, problem: kubernetes::Problem },
}

/// One file and its last known state on disk.
#[derive(Debug)]
struct Follower {
    path: PathBuf,
    wanted: Vec<SocketAddr>,
    stamp: Option<Stamp>,
}

/// What differs between two versions of a file, be it replaced or written in place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stamp {
    Version { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
    Unreadable(io::ErrorKind),
}

impl Follower {
    /// Whether the file differs from when this was last asked. One system call.
    fn has_changed(&mut self) -> bool {
        let metadata = fs::metadata(&self.path);
        // Taken before the file is read: a change while it is read shows at the next poll.
        let stamp = match &metadata {
            Ok(m) => Stamp::Version {
                device: m.dev(),
                inode: m.ino(),
                size: m.size(),
                modified: (m.mtime(), m.mtime_nsec()),
                changed: (m.ctime(), m.ctime_nsec()),
            },
            Err(error) => Stamp::Unreadable(error.kind()),
        };
        self.stamp.replace(stamp.clone()) != Some(stamp)
    }
}

fn read(path: &Path, wanted: &[SocketAddr]) -> Result<Found, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let reader = BufReader::with_capacity(1 << 16, file.take(MAX_FILE_BYTES));
    let objects =
        serde_json::from_reader(reader).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    kubernetes::find(objects, wanted).map_err(|problem| Error::Content { path: path.to_owned(), problem })
}

fn of_resolv_conf(text: &str) -> Vec<SocketAddr> {
    prober::resolv_conf::ResolvConf::parse(text, &prober::Profile::GLIBC).servers
}

/// How soon a change is seen. Endpoints change while lookups fail, so it is part of the ten seconds.
const POLL: Duration = Duration::from_millis(250);

/// Quiet senders speak every 5 s.
const TELL: Duration = Duration::from_secs(5);

/// A cluster of 10,000 pods prints about 100 MB.
const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;

#[cfg(test)]
mod tests;
