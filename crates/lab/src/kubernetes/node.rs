//! How does a namespace become a node, with a container runtime, a kubelet and a kube-proxy of its own?
//!
//! Besides its network namespace a node has a mount namespace, kept by a process that does nothing: in there /run,
//! /var/lib and /var/log are the node's own. So whatever the runtime and the kubelet mount, bind or leave at fixed
//! places is the node's, and is gone with its last process. The kubelet also wants to set sysctls that belong to the
//! whole machine (vm.overcommit_memory, kernel.panic): it finds files there that already say what it wants.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kubernetes::plan::{self, Node, Options, daemon};
use crate::process::wait_until;
use crate::programs::{self, cluster::ClusterPrograms};
use crate::{Error, command, interrupt, journal};

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
# /run comes last: it hides the folder that the others are taken from.
for hidden in /var/lib /var/log /run; do
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
