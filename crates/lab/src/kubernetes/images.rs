//! Which images does every cluster of the lab have?
//!
//! They are written from programs in the cache, and imported into each node before any pod needs them: a pod whose
//! image is missing once is tried again only a minute later.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::kubernetes::image::Image;
use crate::programs::COREDNS_VERSION;
use crate::programs::cluster::ClusterPrograms;

/// The image that holds a pod's namespaces, as containerd is told to call it.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// The image of client pods: a busybox and getaddrinfo of musl.
pub const CLIENT: &str = "docker.io/nslookout-lab/client:1";

/// The image of the DNS servers.
pub fn coredns() -> String {
    format!("docker.io/coredns/coredns:{COREDNS_VERSION}")
}

/// Writes the archives of all three into the folder.
pub fn write(programs: &ClusterPrograms, folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let pause = Image::new(PAUSE).file("pause", &programs.pause).entrypoint(&["/pause"]).user("65535:65535");
    let coredns = Image::new(coredns()).file("coredns", &programs.coredns).entrypoint(&["/coredns"]);
    let client = COMMANDS
        .iter()
        .fold(Image::new(CLIENT), |image, command| image.link(format!("bin/{command}"), "busybox"))
        .file("bin/busybox", &programs.busybox)
        .file("bin/getaddrinfo", &programs.getaddrinfo)
        // As first process it ends on SIGTERM; a shell or `sleep` would make each deletion take 30 s.
        .file("bin/wait", &programs.pause)
        .folder("tmp", 0o1777)
        .entrypoint(&["/bin/wait"]);
    let mut archives = Vec::new();
    for (name, image) in [("pause", pause), ("coredns", coredns), ("client", client)] {
        let archive = folder.join(format!("{name}.tar"));
        image.write(&archive)?;
        archives.push(archive);
    }
    Ok(archives)
}

const COMMANDS: [&str; 14] = [
    "cat", "date", "echo", "env", "grep", "ip", "ls", "nc", "nslookup", "ping", "sh", "sleep", "top", "wget",
];
