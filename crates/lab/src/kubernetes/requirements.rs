//! Can this machine carry a cluster at all, and what does it lack?
//!
//! Asked before anything is made, so that the answer is one line and not a log of the kubelet's.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::statvfs::statvfs;

use crate::kubernetes::cgroups;
use crate::kubernetes::plan::{Options, ProxyMode};
use crate::{Error, journal};

/// An error that names everything that is missing.
pub fn check(options: &Options) -> Result<(), Error> {
    journal::check_name(&options.name)?;
    let mut missing = Vec::new();
    if !(2..=9).contains(&options.nodes) {
        missing.push(format!("it has 2 to 9 nodes, not {}", options.nodes));
    }
    match cgroups::paths("lab") {
        Ok(_) => (),
        Err(Error::Machine { missing: cgroups }) => missing.push(cgroups),
        Err(other) => missing.push(other.to_string()),
    }
    if !overlay() {
        missing.push("the kernel has no overlay file system".to_owned());
    }
    let tools = match options.proxy_mode {
        ProxyMode::Iptables => ["iptables-restore", "conntrack"].as_slice(),
        // The kubelet writes a mark by iptables in this mode, too.
        ProxyMode::Nftables => ["nft", "iptables-restore", "conntrack"].as_slice(),
    };
    for tool in ["nsenter", "unshare", "setpriv", "ip", "mount"].iter().chain(tools) {
        if !in_path(tool) {
            missing.push(format!("the program {tool} is missing (make setup)"));
        }
    }
    match statvfs("/run") {
        // Measured: 420 MB with two nodes, most of it images and etcd's log.
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size()) / 1_000_000;
            let wanted = 150 + 150 * u64::from(options.nodes);
            if free < wanted {
                missing.push(format!(
                    "/run has {free} MB free, {wanted} are needed (mount -o remount,size=... /run)"
                ));
            }
        }
        Err(errno) => missing.push(format!("/run ({errno})")),
    }
    if options.dual_stack && !Path::new("/proc/sys/net/ipv6").exists() {
        missing.push("dual stack needs IPv6 in the kernel".to_owned());
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::Machine { missing: missing.join("; ") }) }
}

/// In the kernel now, or as a module that the first mount loads.
fn overlay() -> bool {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let module = || Command::new("modprobe").args(["--dry-run", "--quiet", "overlay"]).status();
    filesystems.contains("\toverlay\n") || module().is_ok_and(|status| status.success())
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).exists())
}
