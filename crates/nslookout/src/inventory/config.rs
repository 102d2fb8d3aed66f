//! Where does the account of the cluster come from?

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::ServerAddress;
use super::dns::NameServers;

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
    /// A kubeconfig, whose API server is watched; it must name it by address. In a pod none is needed: the pod's own
    /// service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// The resolv.conf that pods have, where /etc/resolv.conf here is another: it names the DNS Service by its
    /// address.
    pub resolv_conf: Option<PathBuf>,
}

/// The DNS Service, as pods know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// Its addresses, one for each IP family; without a port it is 53. None: what resolv.conf names, and where that
    /// is not a pod's, the Service called kube-dns or coredns.
    pub addresses: Vec<ServerAddress>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            service: ServiceConfig::default(),
            servers: Vec::new(),
            inventory: None,
            kubeconfig: None,
            resolv_conf: None,
        }
    }
}

/// Who gives the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Api,
    Configuration,
}

impl ClusterConfig {
    /// The first that is set; in a pod with nothing set, the API server.
    pub(super) fn source(&self) -> Source {
        match &self.inventory {
            Some(path) => Source::File(path.clone()),
            None if self.kubeconfig.is_some() => Source::Api,
            None if self.servers.is_empty() && in_pod() => Source::Api,
            None => Source::Configuration,
        }
    }

    /// Whether the account comes from an API server.
    pub(crate) fn asks_api(&self) -> bool {
        self.source() == Source::Api
    }

    /// Whom pods ask. This machine's own resolv.conf is a pod's only in a pod.
    pub(super) fn name_servers(&self) -> NameServers {
        let configured: Vec<SocketAddr> = self.service.addresses.iter().map(|a| a.0).collect();
        if !configured.is_empty() {
            // A file may come from a cluster in which pods ask a cache on their node, say 169.254.20.10.
            return NameServers { addresses: configured, certain: self.inventory.is_none() };
        }
        let path = self.resolv_conf.as_deref().unwrap_or(Path::new("/etc/resolv.conf"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let of_pods = self.resolv_conf.is_some() || (in_pod() && self.kubeconfig.is_none());
        NameServers { addresses: of_resolv_conf(&text), certain: of_pods && self.inventory.is_none() }
    }
}

/// Kubernetes sets this in every container.
fn in_pod() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

fn of_resolv_conf(text: &str) -> Vec<SocketAddr> {
    prober::resolv_conf::ResolvConf::parse(text, &prober::Profile::GLIBC).servers
}
