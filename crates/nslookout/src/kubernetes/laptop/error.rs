//! Why can't a cluster be asked from here? One line each, in the words of who can mend it.

use std::path::PathBuf;

use kube::config::KubeconfigError;

use crate::kubernetes::trouble::root;

/// Why a cluster could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing says which cluster.
    #[error("no kubeconfig: {} is not there; name one by --kubeconfig or KUBECONFIG", .path.display())]
    NoKubeconfig {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The kubeconfig.
    #[error("the kubeconfig can't be used: {}", root(.0))]
    Kubeconfig(#[source] KubeconfigError),
    /// It, or HTTPS_PROXY, wants a proxy.
    #[error(
        "the API server is to be asked through the proxy {0} (proxy-url, or https_proxy), which is not supported"
    )]
    Proxy(String),
    /// resolv.conf.
    #[error("names can't be resolved here: {0}")]
    Resolver(String),
    /// Certificates, or a credential plugin.
    #[error("the credentials of the kubeconfig can't be used: {0}")]
    Credentials(String),
    /// No answer.
    #[error("the API server {server} can't be reached: {why}")]
    Unreachable {
        /// Its URL.
        server: String,
        /// The first cause.
        why: String,
    },
    /// 401.
    #[error("the API server {server} does not accept the credentials of the kubeconfig (401 Unauthorized)")]
    Unauthorized {
        /// Its URL.
        server: String,
    },
    /// 403.
    #[error("RBAC: {message}; {needs}")]
    Forbidden {
        /// What the API server says: who may not do what.
        message: String,
        /// What is needed.
        needs: String,
    },
    /// Another refusal.
    #[error("the API server {server} answers {code}: {message}")]
    Refused {
        /// Its URL.
        server: String,
        /// The HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// Not installed there.
    #[error("no correlator pod in {place}: is nslookout installed there? {hint}")]
    NoPod {
        /// Where it was looked for.
        place: String,
        /// What to do.
        hint: &'static str,
    },
    /// Installed twice.
    #[error("nslookout is in several namespaces ({0}): name one by --namespace")]
    Several(String),
    /// It is there and does not run.
    #[error("the correlator's pod {pod} does not run: {why}")]
    NotRunning {
        /// Namespace and name.
        pod: String,
        /// What Kubernetes says of it.
        why: String,
    },
    /// The port-forward broke, or what answers is something else.
    #[error("the correlator's pod {pod} gives no status: {why}")]
    NoStatus {
        /// Namespace and name.
        pod: String,
        /// The first cause.
        why: String,
    },
}
