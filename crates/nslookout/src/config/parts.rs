//! What can be set of the parts as they run in a cluster: agents, correlator, and how kubelet asks them?

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shape;

/// `nslookout agent`: where evidence comes from, and what waits while the correlator is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentConfig {
    /// The node's name, as Kubernetes has it. None: NSLOOKOUT_NODE, or else this machine's name.
    pub node: Option<String>,
    /// The file with the token that says who this agent is. It is read for each batch: kubelet renews it.
    pub token: PathBuf,
    /// Batches that may wait for the correlator; the oldest goes first.
    pub spool_batches: usize,
    /// Bytes that may wait for it, compressed.
    pub spool_bytes: usize,
}

/// `nslookout correlator`, and where agents find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CorrelatorConfig {
    /// Where agents reach it. None: NSLOOKOUT_CORRELATOR_SERVICE_HOST and NSLOOKOUT_CORRELATOR_SERVICE_PORT, which
    /// kubelet sets for a Service of that name.
    #[schemars(extend("format" = shape::LISTEN))]
    pub address: Option<SocketAddr>,
    /// The name in its certificate. It is checked, and never resolved.
    pub name: String,
    /// The file with its certificate authority: it writes it, agents trust it.
    pub ca: PathBuf,
    /// Where it listens for agents. Loopback by default; in a cluster "[::]:9854".
    #[schemars(extend("format" = shape::LISTEN))]
    pub listen: SocketAddr,
    /// Files with a certificate that somebody else makes, cert-manager for one, instead of an authority of its own. They
    /// are read again while it runs. `ca` is then the file with the authority that agents trust, and not written here.
    pub tls: Option<TlsConfig>,
    /// The folder that keeps the authority's key. None: a new authority at each start.
    pub keys: Option<PathBuf>,
    /// Objects of the API server that keep the authority instead: so it outlives the pod, and agents get it.
    pub authority: Option<AuthorityConfig>,
    /// A file of tokens, outside Kubernetes alone: it says whose each is, where the API server would.
    pub tokens: Option<PathBuf>,
    /// Whose tokens are taken, where the API server says whose they are.
    pub accounts: AccountsConfig,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
}

/// A certificate for the correlator's name, and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate, followed by those between it and the authority; PEM.
    pub certificate: PathBuf,
    /// Its key; PEM.
    pub key: PathBuf,
}

/// Where a cluster keeps the certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityConfig {
    /// The namespace of the three.
    pub namespace: String,
    /// The Secret with its key, and the ConfigMap with the certificate that agents trust.
    pub name: String,
    /// The Deployment with which both go.
    pub owner: String,
}

/// The agents' service accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccountsConfig {
    /// The audience of their tokens. Its own, so that a token is worth nothing elsewhere.
    pub audience: String,
    /// Their namespace. None: the correlator's own.
    pub namespace: Option<String>,
    /// The prober's.
    pub prober: String,
    /// The node agent's.
    pub node: String,
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self {
            audience: "nslookout".into(),
            namespace: None,
            prober: "nslookout-prober".into(),
            node: "nslookout-node".into(),
        }
    }
}

/// `nslookout alive`: what kubelet's probes ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AliveConfig {
    /// The unix socket on which agents and correlator answer.
    pub socket: PathBuf,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            node: None,
            token: "/var/run/secrets/nslookout/token".into(),
            // Ten minutes of a busy node, an hour and a half of a quiet one.
            spool_batches: 1000,
            // Part of the prober's 16 MiB.
            spool_bytes: 2 * 1024 * 1024,
        }
    }
}

impl Default for CorrelatorConfig {
    fn default() -> Self {
        Self {
            address: None,
            name: "nslookout-correlator".into(),
            ca: "/run/nslookout/ca.crt".into(),
            listen: DEFAULT_CORRELATOR_LISTEN,
            tls: None,
            keys: None,
            authority: None,
            tokens: None,
            accounts: AccountsConfig::default(),
            // Two agents on each of 10,000 nodes, and as many again while they are replaced.
            connections: 40_000,
            // One node has two agents; behind a NAT there may be many.
            connections_per_address: 256,
        }
    }
}

impl Default for AliveConfig {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into() }
    }
}

/// Where the correlator listens unless told otherwise.
const DEFAULT_CORRELATOR_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9854);

/// Where parts answer `nslookout alive` unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/nslookout/alive.sock";
