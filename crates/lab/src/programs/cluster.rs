//! Which programs does the real cluster run?
//!
//! Kubernetes is built from its released Go module, all six programs at once: apart, each would link the same
//! packages again. The version is set by the linker; without it Kubernetes calls itself v0.0.0 and a chart's
//! `kubeVersion` refuses it.

use std::path::PathBuf;

use crate::Error;
use crate::programs::compiled::Compiled;
use crate::programs::debian::Debian;
use crate::programs::go::{GoModule, SourceModule};
use crate::programs::{coredns, getaddrinfo_musl};

/// The release that programs/kubernetes/go.mod pins.
pub const KUBERNETES_VERSION: &str = "1.34.4";

/// The release that programs/helm/go.mod pins.
pub const HELM_VERSION: &str = "3.19.0";

/// The release that programs/helm4/go.mod pins.
pub const HELM4_VERSION: &str = "4.2.4";

/// The release of the Prometheus operator that programs/prometheus-operator/go.mod pins.
pub const PROMETHEUS_OPERATOR_VERSION: &str = "0.85.0";

/// All programs of a cluster, by their paths.
#[derive(Debug, Clone)]
pub struct ClusterPrograms {
    /// The folder of kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy and kubectl.
    pub kubernetes: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// The folder of containerd, its shim and ctr.
    pub containerd: PathBuf,
    /// runc.
    pub runc: PathBuf,
    /// The folder of the CNI plugins.
    pub cni: PathBuf,
    /// The program that holds a pod's namespaces.
    pub pause: PathBuf,
    /// A static busybox, for client pods.
    pub busybox: PathBuf,
    /// getaddrinfo of Debian's musl, for client pods.
    pub getaddrinfo: PathBuf,
    /// What tries what a confined pod may not do, for client pods.
    pub attempt: PathBuf,
    /// CoreDNS, in the cluster and as its upstream.
    pub coredns: PathBuf,
    /// The folder of helm.
    pub helm: PathBuf,
}

/// Fetches and builds whatever of it is missing, and tells on standard error what it does.
pub fn all() -> Result<ClusterPrograms, Error> {
    Ok(ClusterPrograms {
        etcd: Debian { package: "etcd-server", version: "3.4" }.file("usr/bin/etcd")?,
        containerd: Debian { package: "containerd", version: "1.6" }.file("usr/bin")?,
        runc: Debian { package: "runc", version: "1.1" }.file("usr/sbin/runc")?,
        cni: Debian { package: "containernetworking-plugins", version: "1.1" }.file("usr/lib/cni")?,
        busybox: Debian { package: "busybox-static", version: "1.35" }.file("bin/busybox")?,
        pause: PAUSE.file()?,
        getaddrinfo: getaddrinfo_musl()?,
        attempt: ATTEMPT.file()?,
        coredns: coredns()?,
        kubernetes: kubernetes().folder()?,
        helm: helm().folder()?,
    })
}

/// Helm of the next major version, by which charts are installed, too.
pub fn helm4() -> Result<PathBuf, Error> {
    let module = GoModule {
        name: "helm",
        version: HELM4_VERSION,
        files: HELM4_MODULE,
        packages: &["helm.sh/helm/v4/cmd/helm"],
        ldflags: "-s -w".to_owned(),
    };
    Ok(module.folder()?.join("helm"))
}

/// The CRDs of the Prometheus operator that the chart makes objects of: PodMonitor and PrometheusRule.
pub fn prometheus_operator_crds() -> Result<Vec<PathBuf>, Error> {
    let folder = SourceModule {
        name: "prometheus-operator",
        version: PROMETHEUS_OPERATOR_VERSION,
        module: "github.com/prometheus-operator/prometheus-operator",
        files: PROMETHEUS_OPERATOR_MODULE,
        kept: "example/prometheus-operator-crd",
    }
    .folder()?;
    let file = |kind: &str| folder.join(format!("monitoring.coreos.com_{kind}.yaml"));
    Ok(["podmonitors", "prometheusrules"].map(file).to_vec())
}

impl ClusterPrograms {
    /// All that must be there, for a list.
    pub fn paths(&self) -> Vec<PathBuf> {
        let built = KUBERNETES_PACKAGES.iter().filter_map(|package| package.rsplit('/').next());
        let mut paths: Vec<_> = built.map(|program| self.kubernetes.join(program)).collect();
        paths.extend(["containerd", "containerd-shim-runc-v2", "ctr"].map(|name| self.containerd.join(name)));
        let others = [&self.etcd, &self.runc, &self.cni, &self.pause, &self.busybox, &self.getaddrinfo];
        paths.extend(others.into_iter().cloned());
        paths.extend([self.coredns.clone(), self.helm.join("helm")]);
        paths
    }
}

fn kubernetes() -> GoModule {
    let (major, minor) = KUBERNETES_VERSION.split_once('.').unwrap_or_default();
    let minor = minor.split('.').next().unwrap_or_default();
    let set = "-X k8s.io/component-base/version";
    GoModule {
        name: "kubernetes",
        version: KUBERNETES_VERSION,
        files: KUBERNETES_MODULE,
        packages: &KUBERNETES_PACKAGES,
        ldflags: format!(
            "-s -w {set}.gitVersion=v{KUBERNETES_VERSION} {set}.gitMajor={major} {set}.gitMinor={minor}"
        ),
    }
}

/// Helm asks its own version for nothing, so none is set.
fn helm() -> GoModule {
    GoModule {
        name: "helm",
        version: HELM_VERSION,
        files: HELM_MODULE,
        packages: &["helm.sh/helm/v3/cmd/helm"],
        ldflags: "-s -w".to_owned(),
    }
}

const PAUSE: Compiled = Compiled {
    name: "pause",
    kind: "musl",
    source: include_str!("../../programs/pause.c"),
    compiler: &["musl-gcc", "-static", "-Os", "-Wall"],
};

const ATTEMPT: Compiled = Compiled {
    name: "attempt",
    kind: "musl",
    source: include_str!("../../programs/attempt.c"),
    compiler: &["musl-gcc", "-static", "-Os", "-Wall"],
};

const KUBERNETES_PACKAGES: [&str; 6] = [
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubelet",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kubectl",
];

const KUBERNETES_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../programs/kubernetes/go.mod")),
    ("go.sum", include_str!("../../programs/kubernetes/go.sum")),
    ("tools.go", include_str!("../../programs/kubernetes/tools.go")),
];

const HELM_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../programs/helm/go.mod")),
    ("go.sum", include_str!("../../programs/helm/go.sum")),
    ("tools.go", include_str!("../../programs/helm/tools.go")),
];

const HELM4_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../programs/helm4/go.mod")),
    ("go.sum", include_str!("../../programs/helm4/go.sum")),
    ("tools.go", include_str!("../../programs/helm4/tools.go")),
];

const PROMETHEUS_OPERATOR_MODULE: [(&str, &str); 2] = [
    ("go.mod", include_str!("../../programs/prometheus-operator/go.mod")),
    ("go.sum", include_str!("../../programs/prometheus-operator/go.sum")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_told_is_the_version_pinned() {
        let pinned = format!("k8s.io/kubernetes v{KUBERNETES_VERSION}\n");
        assert!(KUBERNETES_MODULE.iter().any(|(_, text)| text.contains(&pinned)));
        let pinned = format!("helm.sh/helm/v3 v{HELM_VERSION}\n");
        assert!(HELM_MODULE.iter().any(|(_, text)| text.contains(&pinned)));
        let pinned = format!("helm.sh/helm/v4 v{HELM4_VERSION}\n");
        assert!(HELM4_MODULE.iter().any(|(_, text)| text.contains(&pinned)));
        let pinned = format!("prometheus-operator v{PROMETHEUS_OPERATOR_VERSION}\n");
        assert!(PROMETHEUS_OPERATOR_MODULE.iter().any(|(_, text)| text.contains(&pinned)));
    }

    #[test]
    fn a_chart_sees_the_minor_version() {
        assert!(kubernetes().ldflags.ends_with(".gitMinor=34"), "{}", kubernetes().ldflags);
    }
}
