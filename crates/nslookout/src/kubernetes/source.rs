//! What is the inventory, by what the watches have told so far?
//!
//! A change of endpoints is handed on at once, one of pods or nodes a few times a second at most. While the API server
//! is away the last state stays, and its age is told; what RBAC refuses is told, and the rest goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evidence::{Coverage, CoverageState, DnsService, Endpoint, Inventory, Observer, WallTime};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::connect::{ApiServer, ConnectError, connect};
use super::store::Store;
use super::trouble::Trouble;
use super::watches::{self, Kind, KnownPod, LONGEST_PAUSE, News};
use super::{health, notes};
use crate::inventory::dns::{self, NameServers};
use crate::inventory::objects::{Service, Slice};
use crate::inventory::{ClusterConfig, Teller, line};

/// Follows the API server that the configuration names until nobody listens.
pub(crate) async fn follow(config: ClusterConfig, asked: NameServers, mut teller: Teller) {
    loop {
        let error = match connect(&config).await {
            Ok(api) => return Source::new(api, asked, teller).run().await,
            Err(error) => error,
        };
        // A file that is missing may come: a token is mounted a moment after the pod begins.
        if !teller.tell(None, unreachable(&error)).await {
            return;
        }
        teller.wait_until_due().await;
    }
}

fn unreachable(error: &ConnectError) -> Vec<Coverage> {
    let state = CoverageState::Denied { missing: error.to_string() };
    Kind::ALL.map(|kind| line(kind.place(), state.clone())).into()
}

/// All that is known, and what is to be told of it.
struct Source {
    api: ApiServer,
    asked: NameServers,
    teller: Teller,
    news: mpsc::Receiver<News>,
    out: mpsc::Sender<News>,
    /// Ends with this value.
    tasks: JoinSet<()>,
    services: Store<Service>,
    slices: Store<Slice>,
    pods: Store<KnownPod>,
    nodes: Store<evidence::Node>,
    /// The Service whose slices are watched: namespace, name, the watch's number.
    chosen: Option<(String, String, u64)>,
    slices_watch: Option<AbortHandle>,
    trouble: BTreeMap<Kind, (Trouble, Instant)>,
    /// Why the API server doesn't answer, and how often in a row it didn't.
    silence: Option<(String, u32)>,
    /// Whether an inventory was published.
    known: bool,
    /// What changed since: endpoints, or names of pods and nodes alone.
    endpoints_changed: bool,
    names_changed: bool,
    not_before: Instant,
    /// What is told of the sources changed.
    tell: bool,
}

impl Source {
    fn new(api: ApiServer, asked: NameServers, teller: Teller) -> Self {
        let (out, news) = mpsc::channel(ROOM);
        let mut tasks = JoinSet::new();
        watches::start(&api.client, &out, &mut tasks);
        tasks.spawn(health::beat(api.client.clone(), out.clone()));
        Self {
            api,
            asked,
            teller,
            news,
            out,
            tasks,
            services: Store::default(),
            slices: Store::default(),
            pods: Store::default(),
            nodes: Store::default(),
            chosen: None,
            slices_watch: None,
            trouble: BTreeMap::new(),
            silence: None,
            known: false,
            endpoints_changed: false,
            names_changed: false,
            not_before: Instant::now(),
            tell: true,
        }
    }

    async fn run(mut self) {
        loop {
            let due =
                if self.names_changed { self.not_before.min(self.teller.due()) } else { self.teller.due() };
            tokio::select! {
                // The channel never closes: this holds a sender.
                Some(news) = self.news.recv() => {
                    self.take(news);
                    // A burst is one change.
                    for _ in 0..ROOM {
                        let Ok(more) = self.news.try_recv() else { break };
                        self.take(more);
                    }
                }
                () = sleep_until(due) => {}
                () = self.teller.closed() => return,
            }
            self.choose();
            if self.endpoints_changed || (self.names_changed && Instant::now() >= self.not_before) {
                self.publish();
            }
            if (self.tell || Instant::now() >= self.teller.due()) && !self.report().await {
                return;
            }
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Service(change) => {
                self.endpoints_changed |= self.services.take(change);
                self.works(Kind::Services);
            }
            News::Slice(number, change) if self.is_current(number) => {
                self.endpoints_changed |= self.slices.take(change);
                self.works(Kind::Slices);
            }
            News::Slice(..) => {}
            News::Pod(change) => {
                self.names_changed |= self.pods.take(change);
                self.works(Kind::Pods);
            }
            News::Node(change) => {
                self.names_changed |= self.nodes.take(change);
                self.works(Kind::Nodes);
            }
            News::Failed(_, Trouble::Expired) => {}
            News::Failed(kind, trouble) => {
                if self.present_trouble(kind) != Some(&trouble) {
                    tracing::warn!("{}", trouble.words(kind));
                    self.tell = true;
                }
                self.trouble.insert(kind, (trouble, Instant::now()));
            }
            News::Beat(Ok(())) => {
                if self.silence.take().is_some_and(|(_, times)| times >= AWAY) {
                    tracing::info!("the API server {} answers again", self.api.address);
                    self.tell = true;
                }
                if self.stands() {
                    self.teller.stand_by(WallTime::now());
                }
            }
            News::Beat(Err(why)) => {
                let times = self.silence.as_ref().map_or(0, |(_, times)| *times).saturating_add(1);
                if times == AWAY {
                    tracing::warn!("the API server {} does not answer: {why}", self.api.address);
                    self.tell = true;
                }
                self.silence = Some((why, times));
            }
        }
    }

    fn is_current(&self, number: u64) -> bool {
        self.chosen.as_ref().is_some_and(|(_, _, current)| *current == number)
    }

    /// A list that begins says nothing yet: trouble ends when all are listed, or when a change comes.
    fn works(&mut self, kind: Kind) {
        let quiet = match kind {
            Kind::Services => self.services.is_quiet(),
            Kind::Slices => self.slices.is_quiet(),
            Kind::Pods => self.pods.is_quiet(),
            Kind::Nodes => self.nodes.is_quiet(),
        };
        if quiet {
            self.tell |= self.trouble.remove(&kind).is_some();
        }
    }

    /// Whether the state is what the API server says now.
    fn stands(&self) -> bool {
        self.known && [Kind::Services, Kind::Slices].iter().all(|kind| self.present_trouble(*kind).is_none())
    }

    /// Trouble that is not over: a watch that fails does so again after its pause, one that is resumed says nothing.
    fn present_trouble(&self, kind: Kind) -> Option<&Trouble> {
        let (trouble, at) = self.trouble.get(&kind)?;
        (at.elapsed() < TROUBLE_LASTS).then_some(trouble)
    }

    /// The Service that pods ask, and the watch of its slices.
    fn choose(&mut self) {
        if !self.services.is_listed() {
            return;
        }
        let service = dns::service(self.services.values(), &self.asked);
        let name = service.map(|service| (service.namespace().to_owned(), service.name().to_owned()));
        let present = self.chosen.as_ref().map(|(namespace, name, _)| (namespace.clone(), name.clone()));
        if name == present {
            return;
        }
        if let Some(watch) = self.slices_watch.take() {
            watch.abort();
        }
        self.slices = Store::default();
        self.trouble.remove(&Kind::Slices);
        self.tell = true;
        let number = self.chosen.as_ref().map_or(0, |(_, _, number)| *number) + 1;
        self.chosen = name.map(|(namespace, name)| (namespace, name, number));
        if let Some((namespace, name, number)) = &self.chosen {
            let of = (namespace.as_str(), name.as_str());
            self.slices_watch =
                Some(watches::start_slices(&self.api.client, of, *number, &self.out, &mut self.tasks));
        }
    }

    /// Hands on the present state, if enough was read to know it.
    fn publish(&mut self) {
        let begin = Instant::now();
        self.endpoints_changed = false;
        self.names_changed = false;
        let Some((service, endpoints)) = self.dns() else { return };
        let pods = self.pods.values().map(|known| known.pod.clone()).collect();
        let nodes = self.nodes.values().cloned().collect();
        let inventory = Inventory { service, endpoints, pods, nodes };
        if !self.known || inventory != *self.teller.published() {
            self.teller.publish(&Arc::new(inventory));
            self.tell = true;
        }
        self.known = true;
        if self.silence.is_none() && self.stands() {
            self.teller.stand_by(WallTime::now());
        }
        // 100,000 pods take a tenth of a second to copy: never more than a twentieth of the time goes into that.
        self.not_before = Instant::now() + NAMES.max(begin.elapsed() * 20);
    }

    fn dns(&self) -> Option<(DnsService, Vec<Endpoint>)> {
        if !self.services.is_listed() {
            return None;
        }
        if let Some(service) = dns::service(self.services.values(), &self.asked) {
            return if self.slices.is_listed() {
                dns::servers(service, &self.asked, self.slices.values())
            } else {
                None
            };
        }
        let before = self.teller.published();
        if before.service.is_virtual {
            // It was deleted: pods ask an address behind which nobody is.
            return Some((before.service.clone(), Vec::new()));
        }
        self.asked.certain.then(|| dns::plain(&self.asked, "resolv.conf"))
    }

    async fn report(&mut self) -> bool {
        self.tell = false;
        let inventory = self.teller.published();
        let coverage = self.coverage();
        self.teller.tell(self.known.then_some(&inventory), coverage).await
    }

    fn coverage(&self) -> Vec<Coverage> {
        let mut lines: Vec<_> = Kind::ALL.iter().map(|kind| line(kind.place(), self.state(*kind))).collect();
        let servers = self.teller.published();
        if let Some((namespace, name, _)) = &self.chosen
            && notes::are_no_coredns(namespace, &servers.endpoints, &self.pods)
        {
            let state = notes::no_coredns(namespace, name);
            let place = format!("{namespace}/{name}");
            lines.push(Coverage { observer: Observer::CorednsMetrics, place, state });
        }
        lines
    }

    fn state(&self, kind: Kind) -> CoverageState {
        if let Some((why, times)) = &self.silence
            && *times >= AWAY
        {
            return notes::away(&self.api.address, why, self.teller.as_of());
        }
        if let Some(trouble) = self.present_trouble(kind) {
            return CoverageState::Denied { missing: trouble.words(kind) };
        }
        let (listed, lost) = match kind {
            Kind::Services => (self.services.is_listed(), self.services.lost()),
            Kind::Slices => (self.slices.is_listed(), self.slices.lost()),
            Kind::Pods => (self.pods.is_listed(), self.pods.lost()),
            Kind::Nodes => (self.nodes.is_listed(), self.nodes.lost()),
        };
        let no_service = self.services.is_listed() && self.chosen.is_none();
        match kind {
            Kind::Services | Kind::Slices if no_service => {
                notes::no_service(&self.asked, &self.teller.published().service)
            }
            _ if listed => CoverageState::Looked { lost },
            _ => notes::unread(kind),
        }
    }
}

/// Changes that wait while others are being taken: what the tasks may be ahead.
const ROOM: usize = 1024;
/// Changes of pods and nodes are handed on so often at most.
const NAMES: Duration = Duration::from_millis(500);
/// Without an answer so often in a row it is away: one lost answer is none.
const AWAY: u32 = 2;
/// A pause, a connection that can't be made, and time to spare.
pub(super) const TROUBLE_LASTS: Duration = LONGEST_PAUSE.saturating_mul(4);
