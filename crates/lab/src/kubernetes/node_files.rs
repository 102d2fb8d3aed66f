//! How are a node's container runtime, kubelet, kube-proxy and CNI plugin configured?
//!
//! As most clusters have them, but for what a namespace or a machine without all capabilities does not allow.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Error;
use crate::kubernetes::images;
use crate::kubernetes::node::CONTAINERD;
use crate::kubernetes::pki::{Authority, Subject};
use crate::kubernetes::plan::{DNS_V4, Node, Options, UPSTREAM_V4};
use crate::programs::cluster::ClusterPrograms;

/// Writes every configuration of the node.
pub fn write(
    node: &Node,
    options: &Options,
    programs: &ClusterPrograms,
    authority: &Authority,
    server: &str,
) -> Result<(), Error> {
    let user = |user: String, group| Subject { user, group, serves: Vec::new() };
    let node_user = user(format!("system:node:{}", node.name), Some("system:nodes"));
    let kubelet = authority.kubeconfig(&format!("{}-kubelet", node.name), &node_user, server)?;
    let proxy_user = user("system:kube-proxy".to_owned(), None);
    let kube_proxy = authority.kubeconfig(&format!("{}-kube-proxy", node.name), &proxy_user, server)?;
    let mut serves = node.addresses(options);
    serves.push(node.name.clone());
    let serving = Subject { user: format!("system:node:{}", node.name), group: None, serves };
    let serving = authority.issue(&format!("{}-serving", node.name), &serving)?;
    let cni = node.dir.join("cni");
    fs::create_dir_all(&cni).map_err(Error::file("make", &cni))?;
    let write = |file: &str, text: String| {
        let path = node.dir.join(file);
        fs::write(&path, text).map_err(Error::file("write", path))
    };
    let ca = authority.pair().certificate;
    let kubelet_config = kubelet_config(node, &ca, &serving.certificate, &serving.key);
    write("containerd.toml", containerd_config(node, programs))?;
    write("cni/10-lab.conflist", cni_config(node, options).to_string())?;
    write("resolv.conf", format!("nameserver {UPSTREAM_V4}\n"))?;
    write("kubelet.json", kubelet_config.to_string())?;
    write("kube-proxy.json", proxy_config(node, options, &kube_proxy).to_string())?;
    let link = node.dir.join("kubelet.kubeconfig");
    fs::copy(&kubelet, &link).map(drop).map_err(Error::file("write", link))?;
    let sysctls = node.dir.join("sysctl");
    fs::create_dir_all(&sysctls).map_err(Error::file("make", &sysctls))?;
    SYSCTLS.iter().try_for_each(|(key, value)| {
        write(&format!("sysctl/{}", key.replace('/', ".")), format!("{value}\n"))
    })
}

fn containerd_config(node: &Node, programs: &ClusterPrograms) -> String {
    let (cni, plugins, runc) = (node.dir.join("cni"), programs.cni.display(), programs.runc.display());
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Where CAP_SYS_RESOURCE is missing, a container's lower score would be refused.
restrict_oom_score_adj = true
# A profile would be loaded into the machine's own kernel.
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
        pause = images::PAUSE,
        cni = cni.display(),
    )
}

fn cni_config(node: &Node, options: &Options) -> Value {
    let ranges: Vec<_> = node.pod_cidrs(options).iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
    if options.dual_stack {
        routes.push(json!({ "dst": "::/0" }));
    }
    json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": { "type": "host-local", "dataDir": "/run/cni", "ranges": ranges, "routes": routes },
        }],
    })
}

fn kubelet_config(node: &Node, ca: &Path, certificate: &Path, key: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": ca },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        // The IPv4 address alone, as in the miniature: with both, musl asks both and one family's fault is hidden.
        "clusterDNS": [DNS_V4],
        "clusterDomain": "cluster.local",
        "resolvConf": node.dir.join("resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup),
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // A full disk of the machine is not the cluster's matter, and no image could be had again.
        "evictionHard": { "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "podLogsDir": "/var/log/pods",
        "oomScoreAdj": 0,
        "serializeImagePulls": false,
    })
}

fn proxy_config(node: &Node, options: &Options, kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": options.proxy_mode.name(),
        "clusterCIDR": options.pod_cidrs().join(","),
        "clientConnection": { "kubeconfig": kubeconfig },
        "hostnameOverride": node.name,
        "oomScoreAdj": 0,
        // Those sysctls are the machine's and can't be written from a namespace.
        "conntrack": { "maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}

/// What the kubelet would otherwise write for the whole machine.
/// <https://github.com/kubernetes/kubernetes/blob/v1.34.4/pkg/kubelet/cm/container_manager_linux.go> setupKernelTunables
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
