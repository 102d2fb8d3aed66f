//! How is the API server reached without resolving a name?
//!
//! In a pod by the address that Kubernetes puts into every container, with the service account's token (read again
//! as it is renewed) and CA; elsewhere by a kubeconfig. A host that is a name is refused here, and the connector has
//! no resolver at all. A connection that the other side has silently left is noticed.

use std::env;
use std::io;
use std::iter::Empty;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceExt, service_fn};

use crate::inventory::ClusterConfig;

/// An API server and the connections to it.
#[derive(Clone)]
pub struct ApiServer {
    /// To ask it.
    pub client: Client,
    /// Its address and port, for messages.
    pub address: String,
}

/// What Kubernetes gives a pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// KUBERNETES_SERVICE_HOST.
    pub host: Option<String>,
    /// KUBERNETES_SERVICE_PORT.
    pub port: Option<String>,
    /// The folder with `token`, `ca.crt` and `namespace`.
    pub folder: PathBuf,
}

/// Why the API server can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a pod nor a kubeconfig.
    #[error(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod; set cluster.kubeconfig"
    )]
    NoPod,
    /// The port is none.
    #[error("KUBERNETES_SERVICE_PORT is {port:?}, which is no port")]
    Port {
        /// What it is.
        port: String,
    },
    /// The host is a name.
    #[error(
        "the API server's host {host:?} ({said_by}) is no IP address: a name would have to be resolved, and that is \
         what may be broken; put its address there"
    )]
    Name {
        /// The host.
        host: String,
        /// Where it stands.
        said_by: String,
    },
    /// The pod's token or CA.
    #[error("the pod's {path} can't be read: {source} (is automountServiceAccountToken off for this pod?)")]
    Account {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kubeconfig.
    #[error("cluster.kubeconfig {path} can't be used: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KubeconfigError,
    },
    /// It wants a proxy.
    #[error("cluster.kubeconfig {path} asks for a proxy, which is not supported")]
    Proxy {
        /// The file.
        path: PathBuf,
    },
    /// Its certificates or credentials.
    #[error("the API server's CA or the credentials for it can't be used: {0}")]
    Credentials(#[source] Box<kube::Error>),
}

/// Prepares the connection that the configuration names. Nothing is sent yet.
pub async fn connect(config: &ClusterConfig) -> Result<ApiServer, ConnectError> {
    match &config.kubeconfig {
        Some(path) => ApiServer::new(of_kubeconfig(path).await?),
        None => Pod::here().connect(),
    }
}

impl ApiServer {
    fn new(config: Config) -> Result<Self, ConnectError> {
        let address = config.cluster_url.authority().map_or_else(String::new, ToString::to_string);
        let unresolved = service_fn(async |name: Name| {
            Err::<Empty<SocketAddr>, _>(io::Error::other(format!(
                "{name} is a name, and names are not resolved"
            )))
        });
        let client =
            client(config, unresolved).map_err(|error| ConnectError::Credentials(Box::new(error)))?;
        Ok(Self { client, address })
    }
}

impl Pod {
    /// The pod in which this runs.
    pub fn here() -> Self {
        Self {
            host: env::var("KUBERNETES_SERVICE_HOST").ok(),
            port: env::var("KUBERNETES_SERVICE_PORT").ok(),
            folder: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
        }
    }

    /// Prepares the connection that a pod has.
    pub fn connect(&self) -> Result<ApiServer, ConnectError> {
        ApiServer::new(self.config()?)
    }

    fn config(&self) -> Result<Config, ConnectError> {
        let (Some(host), Some(port)) = (&self.host, &self.port) else { return Err(ConnectError::NoPod) };
        let port: u16 = port.parse().map_err(|_| ConnectError::Port { port: port.clone() })?;
        let ip = address(host, "KUBERNETES_SERVICE_HOST")?;
        let (token, ca) = (self.folder.join("token"), self.folder.join("ca.crt"));
        for path in [&token, &ca] {
            std::fs::metadata(path).map_err(|source| ConnectError::Account { path: path.clone(), source })?;
        }
        let url = http::Uri::builder()
            .scheme("https")
            .authority(SocketAddr::new(ip, port).to_string())
            .path_and_query("/")
            .build()
            .map_err(|_| ConnectError::NoPod)?;
        let mut config = Config::new(url);
        // Both are read again by the client about once a minute: they are renewed while the pod lives.
        if let Ok(namespace) = std::fs::read_to_string(self.folder.join("namespace")) {
            config.default_namespace = namespace.trim().to_owned();
        }
        config.auth_info.token_file = Some(token.display().to_string());
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(ca);
        Ok(config)
    }
}

async fn of_kubeconfig(path: &Path) -> Result<Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    if config.proxy_url.is_some() {
        return Err(ConnectError::Proxy { path: path.to_owned() });
    }
    let host = config.cluster_url.host().unwrap_or_default();
    address(host, &format!("cluster.kubeconfig {}", path.display()))?;
    Ok(config)
}

fn address(host: &str, said_by: &str) -> Result<IpAddr, ConnectError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let named = |_| ConnectError::Name { host: host.to_owned(), said_by: said_by.to_owned() };
    bare.parse().map_err(named)
}

/// kube's own stack without its resolver, its retries (the watches have their own pauses, a heartbeat wants none) and
/// its log line for each failure.
pub(super) fn client<R>(config: Config, resolver: R) -> Result<Client, kube::Error>
where
    R: Service<Name> + Clone + Send + Sync + 'static,
    R::Response: Iterator<Item = SocketAddr>,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    // A host that died sends no RST; a watch, which only reads, would wait for ever.
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE / 2));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_tcp_user_timeout(Some(KEEPALIVE * 2));
    let mut timed = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    timed.set_connect_timeout(Some(CONNECT));
    timed.set_read_timeout(Some(READ));
    timed.set_write_timeout(Some(WRITE));
    timed.set_reset_reader_on_write(true);
    let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(timed).map_err(BoxError::from);
    let builder =
        ClientBuilder::new(http, config.default_namespace.clone()).with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}

/// TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(4);
/// Longer than a watch lives (see `watches.rs`), or a quiet one would be cut off.
const READ: Duration = Duration::from_secs(75);
const WRITE: Duration = Duration::from_secs(10);
/// A silent connection is asked for life so soon; it is dead after twice that.
const KEEPALIVE: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(host: Option<&str>, port: &str, folder: &Path) -> Pod {
        Pod { host: host.map(str::to_owned), port: Some(port.to_owned()), folder: folder.to_owned() }
    }

    #[test]
    fn what_keeps_a_pod_from_asking_is_told_with_what_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        for (host, port, words) in [
            (None, "443", "this is no pod; set cluster.kubeconfig"),
            (
                Some("api.example.com"),
                "443",
                "\"api.example.com\" (KUBERNETES_SERVICE_HOST) is no IP address",
            ),
            (Some("10.96.0.1"), "https", "\"https\", which is no port"),
            (Some("10.96.0.1"), "443", "is automountServiceAccountToken off"),
        ] {
            let error = pod(host, port, folder.path()).config().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        std::fs::write(folder.path().join("token"), "x").unwrap();
        std::fs::write(folder.path().join("ca.crt"), "").unwrap();
        for (host, url) in [("10.96.0.1", "https://10.96.0.1:443/"), ("fd00::1", "https://[fd00::1]:443/")] {
            let config = pod(Some(host), "443", folder.path()).config().unwrap();
            assert_eq!(config.cluster_url.to_string(), url);
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_with_a_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let text = r#"{"clusters": [{"name": "c", "cluster": {"server": "https://api.example.com"}}], "users": [],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}"#;
        std::fs::write(&path, text).unwrap();
        let config = ClusterConfig { kubeconfig: Some(path), ..ClusterConfig::default() };
        let error = connect(&config).await.err().unwrap().to_string();
        assert!(error.contains("\"api.example.com\" (cluster.kubeconfig"), "{error}");
    }
}
