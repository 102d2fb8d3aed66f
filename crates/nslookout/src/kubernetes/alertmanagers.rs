//! Which Alertmanagers do Services lead to?
//!
//! Each Service of the configuration and its EndpointSlices are watched, and every endpoint is told by its own address:
//! a ClusterIP would need kube-proxy and reach one of them. While the API server is away the last state stays.

use std::sync::Arc;
use std::time::Duration;

use evidence::{Endpoint, Inventory};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::connect::{ApiServer, ConnectError, connect};
use super::pager;
use super::source::TROUBLE_LASTS;
use super::store::Store;
use super::trouble::Trouble;
use super::watches::{self, Change};
use crate::alertmanager::{Found, FoundOne, Known, ServiceConfig, ServicePort, Target, log};
use crate::config::Config;
use crate::inventory::objects::{Port, Service, Slice};
use crate::metrics::Metrics;
use crate::status::Note;

/// Asks the API server for Alertmanagers and their pods, on the caller's runtime, until nobody wants to know. Nothing is
/// asked where nobody is told, or where no API server is known.
pub fn know(config: &Config, inventory: watch::Receiver<Arc<Inventory>>, metrics: &Metrics) -> Known {
    let told = &config.alertmanagers;
    if told.is_empty() || (told.services.is_empty() && !config.cluster.asks_api()) {
        return Known::nothing();
    }
    let (found_out, found) = watch::channel(Arc::default());
    let (pods_out, pods) = watch::channel(Vec::new());
    let (config, metrics, followed) = (config.clone(), metrics.clone(), found.clone());
    tokio::spawn(async move {
        let Some(api) = reach(&config, &found_out).await else { return };
        let finder = Finder::new(&api, config.alertmanagers.services.clone(), metrics.clone(), found_out);
        let addresses = config.alertmanagers.targets().collect();
        let pager = pager::Watch { api, addresses, found: followed, inventory, metrics, out: pods_out };
        tokio::join!(finder.run(), pager.run());
    });
    Known { found, pods }
}

/// None once nobody wants to know.
async fn reach(config: &Config, out: &watch::Sender<Arc<Found>>) -> Option<ApiServer> {
    loop {
        let error = match connect(&config.cluster).await {
            Ok(api) => return Some(api),
            Err(error) => error,
        };
        let notes =
            config.alertmanagers.services.iter().map(|service| unreachable(service, &error)).collect();
        publish(out, Found { notes, ..Found::default() });
        // A file that is missing may come: a token is mounted a moment after the pod begins.
        tokio::select! {
            () = sleep(CONNECT_AGAIN) => {}
            () = out.closed() => return None,
        }
    }
}

fn unreachable(service: &ServiceConfig, error: &ConnectError) -> Note {
    Note {
        about: about(service),
        what: format!("nobody there is told: {error}"),
        mend: "let nslookout ask the API server, or name their addresses in alertmanagers.addresses".into(),
    }
}

/// Follows the Services.
struct Finder {
    services: Vec<Followed>,
    news: mpsc::Receiver<News>,
    metrics: Metrics,
    out: watch::Sender<Arc<Found>>,
    /// Ends with this value.
    _tasks: JoinSet<()>,
}

/// One Service, as far as it is known.
struct Followed {
    config: ServiceConfig,
    service: Store<Service>,
    slices: Store<Slice>,
    /// Of both watches, since they don't fail in the same moment.
    trouble: [Option<(Trouble, Instant)>; 2],
}

/// What a watch has to tell, with the number of the Service.
enum News {
    Service(usize, Result<Change<Service>, Trouble>),
    Slices(usize, Result<Change<Slice>, Trouble>),
}

/// Why nobody is found.
struct Lack {
    what: String,
    mend: String,
}

impl Finder {
    fn new(
        api: &ApiServer,
        configs: Vec<ServiceConfig>,
        metrics: Metrics,
        out: watch::Sender<Arc<Found>>,
    ) -> Self {
        let (sender, news) = mpsc::channel(ROOM);
        let mut tasks = JoinSet::new();
        for (i, ServiceConfig { namespace, name, .. }) in configs.iter().enumerate() {
            let told = move |change| News::Service(i, change);
            tasks.spawn(watches::service(&api.client, namespace, name, told, sender.clone()));
            let told = move |change| News::Slices(i, change);
            tasks.spawn(watches::slices(&api.client, namespace, name, told, sender.clone()));
        }
        let services = configs.into_iter().map(Followed::new).collect();
        Self { services, news, metrics, out, _tasks: tasks }
    }

    async fn run(mut self) {
        let mut turn = interval(TURN);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(news) = self.news.recv() => {
                    self.take(news);
                    // A burst is one change.
                    for _ in 0..ROOM {
                        let Ok(more) = self.news.try_recv() else { break };
                        self.take(more);
                    }
                }
                // Trouble that nobody repeats is over.
                _ = turn.tick() => {}
                () = self.out.closed() => return,
            }
            // A Service that is still being read keeps what is known of it: nothing yet.
            publish(&self.out, self.found());
        }
    }

    fn take(&mut self, news: News) {
        let (News::Service(i, _) | News::Slices(i, _)) = news;
        let Some(Followed { service, slices, trouble: [of_service, of_slices], .. }) =
            self.services.get_mut(i)
        else {
            return;
        };
        match news {
            News::Service(_, change) => follow(service, of_service, change),
            News::Slices(_, change) => follow(slices, of_slices, change),
        }
    }

    fn found(&self) -> Found {
        let mut found = Found::default();
        for followed in &self.services {
            let present = followed.present();
            let mut lack = None;
            match present {
                None => {}
                Some(Ok(endpoints)) => {
                    let serving = endpoints.iter().filter(|one| one.serving).count();
                    self.metrics.set_alertmanager_endpoints(&followed.config.full_name(), serving);
                    if serving == 0 {
                        lack = Some(followed.nobody(endpoints.len()));
                    }
                    found.alertmanagers.extend(endpoints);
                }
                Some(Err(why)) => {
                    self.metrics.set_alertmanager_endpoints(&followed.config.full_name(), 0);
                    lack = Some(why);
                }
            }
            let about = about(&followed.config);
            found.notes.extend(lack.map(|Lack { what, mend }| Note { about: about.clone(), what, mend }));
            if let Some(what) = followed.trouble() {
                let mend = "until it can be read again, those who were known last are told".into();
                found.notes.push(Note { about, what, mend });
            }
        }
        found
    }
}

impl Followed {
    fn new(config: ServiceConfig) -> Self {
        Self { config, service: Store::default(), slices: Store::default(), trouble: [None, None] }
    }

    /// None while it is being read for the first time.
    fn present(&self) -> Option<Result<Vec<FoundOne>, Lack>> {
        if !self.service.is_listed() || !self.slices.is_listed() {
            return None;
        }
        let Some(service) = self.service.values().next() else {
            return Some(Err(Lack {
                what: "there is no such Service: nobody there is told".into(),
                mend: "correct alertmanagers.services, or create it".into(),
            }));
        };
        let ports: Vec<&Port> = service.ports().iter().filter(|port| port.protocol() == "TCP").collect();
        let Some(port) = ports.iter().find(|port| self.is_wanted(port)) else {
            let list: Vec<String> =
                ports.iter().map(|port| format!("{} ({})", port.port, port.name())).collect();
            return Some(Err(Lack {
                what: format!("it has no TCP port {}: nobody there is told", self.config.port),
                mend: format!("its ports are {}: name one in alertmanagers.services", list.join(", ")),
            }));
        };
        let mut found: Vec<FoundOne> = Vec::new();
        for endpoint in
            self.slices.values().filter(|slice| slice.is_of(service)).flat_map(|it| it.servers(port))
        {
            let one = self.one(&endpoint);
            // For a moment one endpoint may be in two slices; it serves if one of them says so.
            match found.iter_mut().find(|known| known.target == one.target) {
                Some(known) => known.serving |= one.serving,
                None => found.push(one),
            }
        }
        Some(Ok(found))
    }

    fn trouble(&self) -> Option<String> {
        let resources = ["services", "endpointslices.discovery.k8s.io"];
        let (resource, (trouble, _)) =
            resources.iter().zip(&self.trouble).find_map(|(resource, trouble)| {
                // A watch that fails does so again after its pause, one that is resumed says nothing.
                let present = trouble.as_ref().filter(|(_, at)| at.elapsed() < TROUBLE_LASTS);
                present.map(|present| (resource, present))
            })?;
        let scope = format!(" in the namespace {}", self.config.namespace);
        Some(trouble.said_of(resource, &scope, "it is not known who is behind it"))
    }

    fn is_wanted(&self, port: &Port) -> bool {
        match &self.config.port {
            ServicePort::Number(number) => port.port == *number,
            ServicePort::Name(name) => port.name() == name,
        }
    }

    fn one(&self, endpoint: &Endpoint) -> FoundOne {
        let ServiceConfig { namespace, scheme, path, .. } = &self.config;
        // An endpoint without a pod is called by its address.
        let is_pod = endpoint.name != endpoint.address.to_string();
        FoundOne {
            target: Target::new(endpoint.address, *scheme, path),
            service: self.config.full_name(),
            pod: is_pod.then(|| format!("{namespace}/{}", endpoint.name)),
            serving: endpoint.serving,
        }
    }

    fn nobody(&self, endpoints: usize) -> Lack {
        let what = match endpoints {
            0 => "the Service has no endpoints: nobody there is told".to_owned(),
            some => format!("none of the Service's {some} endpoints serves: alerts may reach nobody"),
        };
        Lack { what, mend: "look at the pods that it selects".into() }
    }
}

fn follow<T: PartialEq>(
    store: &mut Store<T>,
    present: &mut Option<(Trouble, Instant)>,
    change: Result<Change<T>, Trouble>,
) {
    match change {
        Ok(change) => {
            store.take(change);
            if store.is_quiet() {
                *present = None;
            }
        }
        Err(Trouble::Expired) => {}
        Err(trouble) => {
            // The network has many words for one outage, and it is to be told once.
            let first = match (present.take(), trouble) {
                (Some((first @ Trouble::Broken(_), _)), Trouble::Broken(_)) => first,
                (_, trouble) => trouble,
            };
            *present = Some((first, Instant::now()));
        }
    }
}

fn about(service: &ServiceConfig) -> String {
    format!("Alertmanagers of {}", service.full_name())
}

fn publish(out: &watch::Sender<Arc<Found>>, found: Found) {
    out.send_if_modified(|present| {
        let differs = **present != found;
        if differs {
            log(&present.notes, &found.notes);
            *present = Arc::new(found);
        }
        differs
    });
}

/// Changes that wait while others are being taken.
const ROOM: usize = 64;
const TURN: Duration = Duration::from_secs(2);
const CONNECT_AGAIN: Duration = Duration::from_secs(5);
