//! What changes among the objects that matter, and how is little of it kept?
//!
//! Each watch is a task: it lists in pages, follows from there, resumes where it was after an outage, and hands on
//! objects that are already reduced. Pods that ended are left out by the server.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use evidence::{Node, Pod};
use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::trouble::Trouble;
use crate::inventory::objects::{RawNode, RawPod, Service, Slice};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Services,
    Slices,
    Pods,
    Nodes,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Services, Self::Slices, Self::Pods, Self::Nodes];

    /// As RBAC calls it.
    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slices => "endpointslices.discovery.k8s.io",
            Self::Pods => "pods",
            Self::Nodes => "nodes",
        }
    }

    /// Where it is to be seen, after the resource.
    pub(super) fn scope(self) -> &'static str {
        match self {
            Self::Services | Self::Pods => " in all namespaces",
            Self::Slices => " in the namespace of the DNS Service",
            Self::Nodes => "",
        }
    }

    /// The place of its line of coverage.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::Services => "kubernetes/services",
            Self::Slices => "kubernetes/endpointslices",
            Self::Pods => "kubernetes/pods",
            Self::Nodes => "kubernetes/nodes",
        }
    }

    /// What can't be seen without it.
    pub(super) fn hides(self) -> &'static str {
        match self {
            Self::Services => "it is not known which Service is DNS",
            Self::Slices => "it is not known which servers are behind DNS",
            Self::Pods => "those who suffer are told by address, not by name",
            Self::Nodes => "zones are not known",
        }
    }
}

/// What a task has to tell.
#[derive(Debug)]
pub(super) enum News {
    Service(Change<Service>),
    /// With the number of the watch: what an ended one still had to tell is worth nothing.
    Slice(u64, Change<Slice>),
    Pod(Change<KnownPod>),
    Node(Change<Node>),
    Failed(Kind, Trouble),
    Beat(Result<(), String>),
}

/// A pod, and whether it is a CoreDNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownPod {
    pub pod: Pod,
    pub coredns: bool,
}

/// One object's change, by "namespace/name". None is an object that doesn't matter.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// All objects follow.
    Begin,
    Listed(String, Option<T>),
    /// Those were all.
    Done,
    Set(String, Option<T>),
    Gone(String),
}

/// Starts the three watches that are always there.
pub(super) fn start(client: &Client, out: &mpsc::Sender<News>, tasks: &mut JoinSet<()>) {
    let all = watcher::Config::default();
    let services = Api::<Service>::all(client.clone());
    let keep = |service: Service| {
        let has_address = service.addresses().next().is_some();
        has_address.then_some(service)
    };
    let news = |change: Result<_, _>| change.map_or_else(failed(Kind::Services), News::Service);
    tasks.spawn(pump(services, all.clone(), keep, news, out.clone()));
    let pods = Api::<RawPod>::all(client.clone());
    let living = all.clone().fields("status.phase!=Succeeded,status.phase!=Failed");
    let news = |change: Result<_, _>| change.map_or_else(failed(Kind::Pods), News::Pod);
    tasks.spawn(pump(pods, living, known_pod, news, out.clone()));
    let nodes = Api::<RawNode>::all(client.clone());
    let news = |change: Result<_, _>| change.map_or_else(failed(Kind::Nodes), News::Node);
    tasks.spawn(pump(nodes, all, |node: RawNode| Some(node.into_node()), news, out.clone()));
}

/// Starts the watch of one Service's slices, of all address families.
pub(super) fn start_slices(
    client: &Client,
    (namespace, service): (&str, &str),
    number: u64,
    out: &mpsc::Sender<News>,
    tasks: &mut JoinSet<()>,
) -> AbortHandle {
    let news = move |change: Result<_, _>| {
        change.map_or_else(failed(Kind::Slices), |change| News::Slice(number, change))
    };
    tasks.spawn(slices(client, namespace, service, news, out.clone()))
}

/// The slices of one Service, until nobody listens.
pub(super) fn slices<N, W: Fn(Result<Change<Slice>, Trouble>) -> N>(
    client: &Client,
    namespace: &str,
    service: &str,
    wrap: W,
    out: mpsc::Sender<N>,
) -> impl Future<Output = ()> + use<N, W> {
    let slices = Api::<Slice>::namespaced(client.clone(), namespace);
    let of_service = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
    pump(slices, of_service, Some, wrap, out)
}

/// One Service, until nobody listens.
pub(super) fn service<N, W: Fn(Result<Change<Service>, Trouble>) -> N>(
    client: &Client,
    namespace: &str,
    name: &str,
    wrap: W,
    out: mpsc::Sender<N>,
) -> impl Future<Output = ()> + use<N, W> {
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let named = watcher::Config::default().fields(&format!("metadata.name={name}"));
    pump(services, named, Some, wrap, out)
}

fn failed(kind: Kind) -> impl Fn(Trouble) -> News {
    move |trouble| News::Failed(kind, trouble)
}

fn known_pod(pod: RawPod) -> Option<KnownPod> {
    let coredns = pod.runs_coredns();
    pod.into_pod().map(|pod| KnownPod { pod, coredns })
}

async fn pump<K, T, N>(
    api: Api<K>,
    config: watcher::Config,
    reduce: impl Fn(K) -> Option<T>,
    wrap: impl Fn(Result<Change<T>, Trouble>) -> N,
    out: mpsc::Sender<N>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(watcher(api, config.timeout(LIFE_SECONDS).page_size(PAGE)));
    let mut pause = SHORTEST_PAUSE;
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(Event::Init) => Ok(Change::Begin),
            Ok(Event::InitApply(object)) => Ok(Change::Listed(key(&object), reduce(object))),
            Ok(Event::InitDone) => Ok(Change::Done),
            Ok(Event::Apply(object)) => Ok(Change::Set(key(&object), reduce(object))),
            Ok(Event::Delete(object)) => Ok(Change::Gone(key(&object))),
            Err(error) => Err(Trouble::of(&error)),
        };
        let failed = change.is_err();
        // Each try begins with Begin; only what comes after it is a success.
        if !matches!(change, Err(_) | Ok(Change::Begin)) {
            pause = SHORTEST_PAUSE;
        }
        if out.send(wrap(change)).await.is_err() {
            return;
        }
        if failed {
            // Nothing is asked while the stream is not polled.
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn key<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// The server ends a watch after so long, and it is taken up where it was: a dead one is never older.
const LIFE_SECONDS: u32 = 60;
/// 500 pods are some 5 MB of text, and in memory at once.
const PAGE: u32 = 500;
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// After an outage the state is right again within this and a list. One correlator with four watches burdens nobody.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(3);
