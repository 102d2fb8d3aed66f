//! How is a cluster's correlator asked from a laptop that has nothing but a kubeconfig?
//!
//! Through the API server's port-forward to the correlator's own loopback, so that nothing has to be exposed. This is
//! the one place where a name is resolved: the host of the kubeconfig, by the laptop's own name servers. The
//! cluster's DNS is not needed.

mod error;
mod pod;

use std::env;
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::client::AuthError;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status as ApiStatus;
use kube::{Api, Client, Config, ResourceExt};
use tokio::time::timeout;
use tower::service_fn;

use super::connect::client;
use super::trouble::root;
use crate::status::Status;
pub use error::AskError;
use pod::{port, why_not_running};

/// Which cluster is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The kubeconfig. None: those of KUBECONFIG, or else ~/.kube/config.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it. None: its current one.
    pub context: Option<String>,
    /// Where nslookout is installed. None: "nslookout", or else wherever it is.
    pub namespace: Option<String>,
}

/// A cluster's verdict.
#[derive(Debug)]
pub struct Answer {
    /// What it says.
    pub status: Status,
    /// Who said it: "nslookout/nslookout-correlator-x at https://10.0.0.1:6443".
    pub by: String,
}

/// Whether a kubeconfig is there without being named: by KUBECONFIG, or at ~/.kube/config.
pub fn has_kubeconfig() -> bool {
    named_by_environment() || default_path().exists()
}

/// Asks a cluster's correlator for its status.
pub async fn ask(cluster: &Cluster) -> Result<Answer, AskError> {
    let config = config(cluster).await?;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = client(config, resolver()?).map_err(|error| credentials(&error))?;
    let link = Link { client, server };
    let pod = link.correlator(cluster.namespace.as_deref()).await?;
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(why) = why_not_running(&pod) {
        return Err(AskError::NotRunning { pod: name, why });
    }
    let status = link.status(&pod, &name).await?;
    Ok(Answer { status, by: format!("{name} at {}", link.server) })
}

async fn config(cluster: &Cluster) -> Result<Config, AskError> {
    let kubeconfig = match &cluster.kubeconfig {
        Some(path) if !path.exists() => return Err(AskError::NoKubeconfig { path: path.clone() }),
        Some(path) => Kubeconfig::read_from(path),
        None if named_by_environment() || default_path().exists() => Kubeconfig::read(),
        None => return Err(AskError::NoKubeconfig { path: default_path() }),
    };
    let kubeconfig = kubeconfig.map_err(AskError::Kubeconfig)?;
    let options = KubeConfigOptions { context: cluster.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(AskError::Kubeconfig)?;
    match &config.proxy_url {
        Some(proxy) => Err(AskError::Proxy(proxy.to_string())),
        None => Ok(config),
    }
}

/// The laptop's own resolv.conf and hosts file, read by hickory-resolver: the binary is static, it has no libc's.
fn resolver() -> Result<
    impl tower::Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static,
    AskError,
> {
    let built = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    let resolver = built.map_err(|error| AskError::Resolver(root(&error)))?;
    Ok(service_fn(move |name: Name| {
        let resolver = resolver.clone();
        async move {
            let found = resolver.lookup_ip(name.as_str()).await.map_err(|error| {
                io::Error::other(format!(
                    "its host {name} is not known to the name servers of /etc/resolv.conf: {}",
                    root(&error)
                ))
            })?;
            let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(addresses.into_iter())
        }
    }))
}

/// An API server, by its URL.
struct Link {
    client: Client,
    server: String,
}

impl Link {
    /// The pod that joins the evidence.
    async fn correlator(&self, namespace: Option<&str>) -> Result<Pod, AskError> {
        let first = self.pods(namespace.unwrap_or(NAMESPACE)).await;
        let of_one =
            |pods: Vec<Pod>| pods.into_iter().max_by_key(|pod| (is_running(pod), pod.creation_timestamp()));
        match (namespace, first) {
            (Some(name), Ok(pods)) => of_one(pods).ok_or_else(|| AskError::NoPod {
                place: format!("namespace {name}"),
                hint: "Without --namespace it is looked for everywhere",
            }),
            (Some(name), Err(error)) => Err(self.failed(error, &needs_pods(name))),
            (None, Ok(pods)) if !pods.is_empty() => of_one(pods).ok_or_else(nowhere),
            // An unreachable server is not asked a second time.
            (None, Err(error)) if !is_forbidden(&error) => Err(self.failed(error, "")),
            (None, first) => {
                let all = Api::<Pod>::all(self.client.clone()).list(&labels()).await;
                let pods = match (all, first) {
                    (Ok(list), _) => list.items,
                    // May look into its usual namespace alone, and it is not there.
                    (Err(error), Ok(_)) if is_forbidden(&error) => {
                        return Err(AskError::NoPod {
                            place: format!("namespace {NAMESPACE}"),
                            hint: "You may not list pods in all namespaces: name the right one by --namespace",
                        });
                    }
                    (Err(error), _) => return Err(self.failed(error, &needs_pods(NAMESPACE))),
                };
                let mut namespaces: Vec<_> = pods.iter().filter_map(Pod::namespace).collect();
                namespaces.sort_unstable();
                namespaces.dedup();
                if namespaces.len() > 1 {
                    return Err(AskError::Several(namespaces.join(", ")));
                }
                of_one(pods).ok_or_else(nowhere)
            }
        }
    }

    async fn pods(&self, namespace: &str) -> Result<Vec<Pod>, kube::Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.list(&labels()).await.map(|list| list.items)
    }

    async fn status(&self, pod: &Pod, name: &str) -> Result<Status, AskError> {
        let namespace = pod.namespace().unwrap_or_default();
        let pods = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        let port = port(pod);
        let needs = format!("needed are `get` and `create` of pods/portforward in {namespace}");
        let forwarder = timeout(ANSWER, pods.portforward(&pod.name_any(), &[port])).await;
        let none = |why: String| AskError::NoStatus { pod: name.to_owned(), why };
        let mut forwarder = forwarder
            .map_err(|_| none(format!("no port-forward within {} s", ANSWER.as_secs())))?
            .map_err(|error| self.failed(error, &needs))?;
        let broken = || none(format!("no port-forward to its port {port}"));
        let stream = forwarder.take_stream(port).ok_or_else(broken)?;
        let trouble = forwarder.take_error(port).ok_or_else(broken)?;
        let body = tokio::select! {
            // What the other side says is the cause of what breaks here.
            biased;
            Some(why) = trouble => return Err(none(why.trim().to_owned())),
            body = timeout(ANSWER, get(stream)) => body,
        };
        let body = body
            .map_err(|_| none(format!("no answer within {} s", ANSWER.as_secs())))?
            .map_err(|error| none(root(&*error)))?;
        serde_json::from_slice(&body).map_err(|error| none(format!("what answers is no nslookout: {error}")))
    }

    fn failed(&self, error: kube::Error, needs: &str) -> AskError {
        let server = self.server.clone();
        match error {
            kube::Error::Api(status) => match status.code {
                401 => AskError::Unauthorized { server },
                403 => AskError::Forbidden { message: one_line(&status), needs: needs.to_owned() },
                code => AskError::Refused { server, code, message: one_line(&status) },
            },
            kube::Error::Auth(_) => credentials(&error),
            other => AskError::Unreachable { server, why: root(&other) },
        }
    }
}

/// The page, over what a port-forward gives.
async fn get(stream: tokio::io::DuplexStream) -> Result<Bytes, Box<dyn StdError + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let page = tokio::spawn(connection);
    let request =
        hyper::Request::get("/api/v1/status").header("host", "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("its page answers with status {status}").into());
    }
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await?.to_bytes();
    page.abort();
    Ok(body)
}

fn labels() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/name=nslookout,app.kubernetes.io/component=correlator")
}

fn needs_pods(namespace: &str) -> String {
    format!(
        "needed is `list` of pods in {namespace}: is nslookout elsewhere, name its namespace by --namespace"
    )
}

fn nowhere() -> AskError {
    AskError::NoPod { place: "any namespace".to_owned(), hint: "The README says how" }
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

fn is_running(pod: &Pod) -> bool {
    why_not_running(pod).is_none()
}

/// A plugin that fails says why on its standard error, which is the user's own terminal.
fn credentials(error: &kube::Error) -> AskError {
    AskError::Credentials(match error {
        kube::Error::Auth(AuthError::AuthExecRun { cmd, out }) => {
            let said = String::from_utf8_lossy(&out.stderr);
            let said = said.lines().next().unwrap_or_default();
            format!("the credential plugin {cmd} fails ({}) {said}", out.status).trim_end().to_owned()
        }
        kube::Error::Auth(AuthError::AuthExecStart(source)) => {
            format!("the credential plugin can't be started: {source}")
        }
        other => root(other),
    })
}

fn one_line(status: &ApiStatus) -> String {
    status.message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn named_by_environment() -> bool {
    env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty())
}

fn default_path() -> PathBuf {
    PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".kube/config")
}

/// Where the README installs it.
const NAMESPACE: &str = "nslookout";
/// For the port-forward, and for the page.
const ANSWER: Duration = Duration::from_secs(10);
/// A status of hundreds of incidents is below one megabyte.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
