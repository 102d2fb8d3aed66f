//! How does a namespace become a node, with a container runtime, a kubelet and a kube-proxy of its own?
//!
//! Besides its network namespace a node has a mount namespace, kept by a process that does nothing: in there /run,
//! /var/lib and /var/log are the node's own. So whatever the runtime and the kubelet mount, bind or leave at fixed
//! places is the node's, and is gone with its last process. The kubelet also wants to set sysctls that belong to the
//! whole machine (vm.overcommit_memory, kernel.panic): it finds files there that already say what it wants.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::journal;
use crate::kubernetes::images;
use crate::kubernetes::pki::{Authority, Subject};
use crate::kubernetes::plan::{self, DNS_V4, Node, Options, UPSTREAM_V4, daemon};
use crate::process::wait_until;
use crate::programs::{self, cluster::ClusterPrograms};
use crate::{Error, command, interrupt};

/// Where a node finds its containerd, in its own mount namespace.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The node of this index: 0 is node-a.
pub fn plan(options: &Options, programs: &ClusterPrograms, index: u8) -> Node {
    let name = plan::node_name(index);
    let netns = plan::netns(&options.name, &name);
    let lab = journal::folder(&options.name);
    let dir = lab.join(&name);
    let holder = daemon(&format!("{name}.holder"), &netns, &lab, PathBuf::from("unshare"), {
        let mut args =
            ["--mount", "--propagation=private", "sh", "-euc", HOLDER, "lab"].map(str::to_owned).to_vec();
        args.extend([&dir, &programs.pause, &lab, &programs::cache()].map(|path| path.display().to_string()));
        args
    });
    // In the node's mount namespace; each step is an exec, so the process keeps its id.
    let inside = |kind: &str, program: PathBuf, args: Vec<String>| {
        let enter = "read -r pid start < \"$1\"; shift; exec nsenter --mount=\"/proc/$pid/ns/mnt\" -- \"$@\"";
        let mut words = ["-euc", enter, "lab"].map(str::to_owned).to_vec();
        words.extend([&holder.pid_file, &program].map(|path| path.display().to_string()));
        words.extend(args);
        daemon(&format!("{name}.{kind}"), &netns, &lab, PathBuf::from("sh"), words)
    };
    let path = |flag: &str, file: &str| format!("--{flag}={}", dir.join(file).display());
    let v4 = Ipv4Addr::new(172, 18, 0, 20 + index);
    let v6 = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x20 + u16::from(index));
    let address = if options.dual_stack { format!("{v4},{v6}") } else { v4.to_string() };
    Node {
        containerd: inside(
            "containerd",
            programs.containerd.join("containerd"),
            vec![path("config", "containerd.toml")],
        ),
        kubelet: inside(
            "kubelet",
            programs.kubernetes.join("kubelet"),
            vec![
                path("config", "kubelet.json"),
                path("kubeconfig", "kubelet.kubeconfig"),
                format!("--node-ip={address}"),
                format!("--hostname-override={name}"),
                "--root-dir=/var/lib/kubelet".to_owned(),
            ],
        ),
        kube_proxy: inside(
            "kube-proxy",
            programs.kubernetes.join("kube-proxy"),
            vec![path("config", "kube-proxy.json")],
        ),
        cgroup: plan::global_name(&options.name, &name),
        pod_cidr_v4: format!("10.244.{index}.0/24"),
        pod_cidr_v6: format!("fd00:244:0:{index}::/64"),
        name,
        netns,
        dir,
        v4,
        v6,
        holder,
    }
}

/// Writes every configuration of the node.
pub fn write_files(
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
    let kubelet_config = kubelet_config(node, options, &ca, &serving.certificate, &serving.key);
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

/// Makes the mount namespace and starts the container runtime in it.
pub fn start_runtime(node: &Node) -> Result<(), Error> {
    interrupt::step(|| node.holder.start().map(drop))?;
    let mounted = node.dir.join("mounted");
    let what = format!("the mounts of {}", node.name);
    wait(&what, Duration::from_secs(10), || {
        node.holder.running()?;
        Ok(mounted.exists())
    })?;
    interrupt::step(|| node.containerd.start().map(drop))?;
    // Its own place of the socket, seen from outside.
    let socket = node.dir.join(format!("root{CONTAINERD}"));
    wait(&format!("containerd of {}", node.name), Duration::from_secs(30), || {
        node.containerd.running()?;
        Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
    })
}

/// A command in the node's network and mount namespaces.
pub fn inside(node: &Node, program: &Path) -> Result<std::process::Command, Error> {
    let holder = node.holder.running()?;
    let mut command = command::inside(&node.netns, "nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", holder.pid)).arg("--").arg(program);
    Ok(command)
}

/// Imports an image's archive.
pub fn load_image(node: &Node, ctr: &Path, archive: &Path) -> Result<(), Error> {
    let mut ctr = inside(node, ctr)?;
    ctr.args(["--address", CONTAINERD, "--namespace", "k8s.io", "images", "import", "--no-unpack"])
        .arg(archive);
    command::run(&mut ctr, None).map(drop)
}

fn wait(what: &str, deadline: Duration, mut ready: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let mut failed = None;
    let done = wait_until(deadline, || {
        ready().unwrap_or_else(|error| {
            failed = Some(error);
            true
        })
    });
    match failed {
        Some(error) => Err(error),
        None if done => Ok(()),
        None => Err(Error::NotReady {
            what: what.to_owned(),
            seconds: deadline.as_secs(),
            last: "not there yet".to_owned(),
            log: String::new(),
        }),
    }
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

fn kubelet_config(node: &Node, _: &Options, ca: &Path, certificate: &Path, key: &Path) -> Value {
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

/// $1 the node's folder, $2 what to become; the rest stays visible: the lab's folder and the cache.
const HOLDER: &str = r#"node=$1 wait=$2
shift 2
for hidden in /run /var/lib /var/log; do
    mkdir -p "$node/root$hidden"
    for kept in "$@"; do
        case $kept in
        "$hidden"/*)
            mkdir -p "$node/root$kept"
            mount --rbind "$kept" "$node/root$kept" ;;
        esac
    done
done
mkdir -p "$node/root/run/netns" "$node/root/run/lock"
for hidden in /run /var/lib /var/log; do
    mount --rbind "$node/root$hidden" "$hidden"
done
for file in "$node"/sysctl/*; do
    key=$(basename "$file" | tr . /)
    [ ! -e "/proc/sys/$key" ] || mount --bind "$file" "/proc/sys/$key"
done
# Volumes may propagate between the kubelet and containers, and no farther.
mount --make-rshared /
touch "$node/mounted"
exec "$wait""#;
