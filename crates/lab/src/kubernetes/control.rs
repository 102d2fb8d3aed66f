//! How are etcd, the API server, the controllers and the scheduler run?

use std::path::{Path, PathBuf};

use crate::Error;
use crate::kubernetes::pki::{Authority, Pair, Subject};
use crate::kubernetes::plan::{self, API_V4, API_V6, KUBERNETES_V4, Options};
use crate::process::Daemon;
use crate::programs::cluster::ClusterPrograms;

/// Certificates and keys of the control plane, written beforehand.
pub struct Files {
    ca: Pair,
    serving: Pair,
    to_kubelets: Pair,
    tokens: Pair,
    controllers: PathBuf,
    scheduler: PathBuf,
    /// The administrator's kubeconfig.
    pub admin: PathBuf,
}

/// The URL of the API server, on the link between nodes.
pub fn server() -> String {
    format!("https://{API_V4}:6443")
}

/// Makes every identity of the control plane.
pub fn write_files(authority: &Authority) -> Result<Files, Error> {
    let user = |user: &str, group| Subject { user: user.to_owned(), group, serves: Vec::new() };
    let kubeconfig = |name: &str, user: &Subject| authority.kubeconfig(name, user, &server());
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let addresses =
        [API_V4.to_string(), API_V6.to_string(), KUBERNETES_V4.to_owned(), "127.0.0.1".to_owned()];
    let serves = names.map(str::to_owned).into_iter().chain(addresses).collect();
    Ok(Files {
        ca: authority.pair(),
        serving: authority
            .issue("apiserver", &Subject { user: "kube-apiserver".to_owned(), group: None, serves })?,
        to_kubelets: authority
            .issue("apiserver-kubelet", &user("kube-apiserver-kubelet", Some("system:masters")))?,
        tokens: authority.signing_key("tokens")?,
        controllers: kubeconfig("controllers", &user("system:kube-controller-manager", None))?,
        scheduler: kubeconfig("scheduler", &user("system:kube-scheduler", None))?,
        admin: kubeconfig("admin", &user("lab-admin", Some("system:masters")))?,
    })
}

/// The four processes: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.
pub fn daemons(options: &Options, programs: &ClusterPrograms, dir: &Path, files: &Files) -> Vec<Daemon> {
    let netns = plan::netns(&options.name, "control");
    let daemon =
        |name: &str, program: PathBuf, args: Vec<String>| plan::daemon(name, &netns, dir, program, args);
    let kubernetes = |name: &str, args| daemon(name, programs.kubernetes.join(name), args);
    vec![
        daemon("etcd", programs.etcd.clone(), etcd(dir)),
        kubernetes("kube-apiserver", api_server(options, files)),
        kubernetes("kube-controller-manager", controllers(options, files)),
        kubernetes("kube-scheduler", scheduler(files)),
    ]
}

fn etcd(dir: &Path) -> Vec<String> {
    let data = format!("--data-dir={}", dir.join("etcd").display());
    let flags = [
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        "--log-level=warn",
    ];
    flags.map(str::to_owned).into_iter().chain([data]).collect()
}

fn api_server(options: &Options, files: &Files) -> Vec<String> {
    let path = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    vec![
        format!("--advertise-address={API_V4}"),
        "--secure-port=6443".to_owned(),
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--service-cluster-ip-range={}", options.service_cidrs().join(",")),
        "--allow-privileged=true".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        path("service-account-key-file", &files.tokens.certificate),
        path("service-account-signing-key-file", &files.tokens.key),
        path("client-ca-file", &files.ca.certificate),
        path("tls-cert-file", &files.serving.certificate),
        path("tls-private-key-file", &files.serving.key),
        path("kubelet-certificate-authority", &files.ca.certificate),
        path("kubelet-client-certificate", &files.to_kubelets.certificate),
        path("kubelet-client-key", &files.to_kubelets.key),
    ]
}

fn controllers(options: &Options, files: &Files) -> Vec<String> {
    let path = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    vec![
        path("kubeconfig", &files.controllers),
        path("root-ca-file", &files.ca.certificate),
        path("service-account-private-key-file", &files.tokens.key),
        path("cluster-signing-cert-file", &files.ca.certificate),
        path("cluster-signing-key-file", &files.ca.key),
        "--use-service-account-credentials=true".to_owned(),
        // The lab chooses each node's networks itself, so that its routes fit.
        "--allocate-node-cidrs=false".to_owned(),
        format!("--cluster-cidr={}", options.pod_cidrs().join(",")),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

fn scheduler(files: &Files) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", files.scheduler.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}
