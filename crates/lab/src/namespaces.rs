//! How is a new network namespace of a lab set up?

use std::fs;
use std::path::Path;

use netns::Namespace;

use crate::{Error, command};

/// A new namespace takes some IPv4 settings from the machine's own, so all that matter are written.
pub fn settings(netns: &Path, forwards: bool, ipv6: bool) -> Result<(), Error> {
    let forward = if forwards { "1" } else { "0" };
    let no_v6 = if ipv6 { "0" } else { "1" };
    let all = [
        ("net/ipv4/ip_forward", forward),
        ("net/ipv6/conf/all/disable_ipv6", no_v6),
        ("net/ipv6/conf/default/disable_ipv6", no_v6),
        ("net/ipv6/conf/all/forwarding", forward),
        // Duplicate address detection would keep addresses unusable for a second.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ];
    Namespace::open(netns)?.run_blocking(move || {
        all.iter().try_for_each(|(key, value)| {
            let path = Path::new("/proc/sys").join(key);
            fs::write(&path, value).map_err(Error::file("write", path))
        })
    })?
}

/// Runs lines of `ip` inside a namespace.
pub fn batch(netns: &Path, script: &str) -> Result<(), Error> {
    command::run(command::inside(netns, "ip").args(["-batch", "-"]), Some(script)).map(drop)
}
