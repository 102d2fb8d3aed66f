//! Which images does every cluster of the lab have?
//!
//! They are written from programs in the cache, and imported into each node before any pod needs them: a pod whose
//! image is missing once is tried again only a minute later.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::Error;
use crate::kubernetes::image::Image;
use crate::programs::cluster::ClusterPrograms;
use crate::programs::{COREDNS_VERSION, cached};

/// The image that holds a pod's namespaces, as containerd is told to call it.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// The image of client pods: a busybox, getaddrinfo of musl, and what tries what a pod may not do.
pub const CLIENT: &str = "docker.io/nslookout-lab/client:1";

/// The image of the DNS servers.
pub fn coredns() -> String {
    format!("docker.io/coredns/coredns:{COREDNS_VERSION}")
}

/// The archives of all three. They are kept in the cache; their folder is named after what they are made of.
pub fn archives(programs: &ClusterPrograms) -> Result<Vec<PathBuf>, Error> {
    let pause = Image::new(PAUSE).file("pause", &programs.pause).entrypoint(&["/pause"]).user("65535:65535");
    let coredns = Image::new(coredns()).file("coredns", &programs.coredns).entrypoint(&["/coredns"]);
    let client = COMMANDS
        .iter()
        .fold(Image::new(CLIENT), |image, command| image.link(format!("bin/{command}"), "busybox"))
        .file("bin/busybox", &programs.busybox)
        .file("bin/getaddrinfo", &programs.getaddrinfo)
        .file("bin/attempt", &programs.attempt)
        // As first process it ends on SIGTERM; a shell or `sleep` would make each deletion take 30 s.
        .file("bin/wait", &programs.pause)
        .folder("tmp", 0o1777)
        .entrypoint(&["/bin/wait"]);
    let images = [("pause", pause), ("coredns", coredns), ("client", client)];
    let hash = Sha256::digest(format!("{images:?}"));
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = cached(&format!("images-{hash}"), |beside| {
        images.iter().try_for_each(|(name, image)| image.write(&beside.join(format!("{name}.tar"))))
    })?;
    Ok(images.iter().map(|(name, _)| folder.join(format!("{name}.tar"))).collect())
}

const COMMANDS: [&str; 14] = [
    "cat", "date", "echo", "env", "grep", "ip", "ls", "nc", "nslookup", "ping", "sh", "sleep", "top", "wget",
];
