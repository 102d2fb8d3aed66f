//! The drop helper can't be loaded: what is missing?
//!
//! "May not" and "can't" are different answers, and both name the one thing that an operator can change.

use std::fs;

use evidence::CoverageState;
use libbpf_rs::{ErrorKind, MapHandle};
use nix::sys::resource::{Resource, getrlimit};

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Why the drop helper is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses this process.
    #[error("the drop helper may not be loaded: {missing}")]
    Denied {
        /// What is missing.
        missing: String,
    },
    /// This kernel can't.
    #[error("the drop helper can't be loaded: {why}")]
    Unsupported {
        /// Why.
        why: String,
    },
}

impl Error {
    /// The same as coverage.
    pub fn coverage(&self) -> CoverageState {
        match self {
            Self::Denied { missing } => CoverageState::Denied { missing: missing.clone() },
            Self::Unsupported { why } => CoverageState::Unsupported { why: why.clone() },
        }
    }
}

/// What the kernel's answer means here.
pub(super) fn diagnose(error: &libbpf_rs::Error) -> Error {
    if error.kind() != ErrorKind::PermissionDenied {
        return Error::Unsupported {
            why: format!(
                "the program wants a kernel that tells why a packet was dropped (from 5.17) and conntrack's types in its \
                 BTF ({error:#})"
            ),
        };
    }
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(u64::MAX, |(soft, _)| soft);
    let missing = missing_capabilities(&status);
    let missing = if missing.is_empty() {
        refuser(&status, &release, &lockdown, limit, every_call_is_refused()).to_owned()
            + &format!(" ({error:#})")
    } else {
        missing.join(", ")
    };
    Error::Denied { missing }
}

/// Who refuses although no capability is missing. `all` says that every bpf() is refused.
fn refuser(status: &str, release: &str, lockdown: &str, memlock: u64, all: bool) -> &'static str {
    let charged = version(release).is_some_and(|version| version < (5, 11));
    if all && field(status, "Seccomp:") == Some("2") {
        "the container's seccomp profile refuses bpf()"
    } else if lockdown.contains("[confidentiality]") {
        "kernel lockdown in confidentiality mode refuses programs that read the kernel"
    } else if charged && memlock < ROOM {
        "RLIMIT_MEMLOCK is too small: kernels before 5.11 charge BPF maps to it"
    } else if lockdown.is_empty() {
        // Containers do not see that file.
        "a security module (SELinux, AppArmor) or kernel lockdown refuses the program"
    } else {
        "a security module (SELinux, AppArmor) refuses the program"
    }
}

/// Whether any bpf() is answered with EPERM: a question about a path that nothing is pinned at concerns no security
/// module, and the kernel's own answer is ENOENT.
fn every_call_is_refused() -> bool {
    MapHandle::from_pinned_path("/nslookout/nothing-is-pinned-here")
        .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Which of the capabilities that the helper needs are not in `/proc/self/status`.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = field(status, "CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    // CAP_SYS_ADMIN includes the other two, as it did before they existed.
    let has = |capability: u32| {
        let either = if capability == CAP_NET_ADMIN { CAP_NET_ADMIN } else { CAP_SYS_ADMIN };
        (effective >> capability | effective >> either) & 1 == 1
    };
    [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| name)
        .collect()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// "5.10.0-30-amd64" is 5.10.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What the helper's maps take, rounded up.
const ROOM: u64 = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(
            missing_capabilities("CapEff:\t0000000000000000\n"),
            ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]
        );
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(missing_capabilities("CapEff:\t0000008000001000\n"), ["CAP_PERFMON"]);
    }

    #[test]
    fn the_one_who_refuses_is_named_and_no_other() {
        let filtered = "Seccomp:\t2\nSeccomp_filters:\t1\n";
        let (locked, open) = ("none integrity [confidentiality]", "[none] integrity confidentiality");
        for (status, release, lockdown, memlock, all, named) in [
            (filtered, "6.1.0-18-amd64", open, u64::MAX, true, "seccomp"),
            // A profile is no reason where it lets another bpf() through.
            (
                filtered,
                "6.1.0-18-amd64",
                open,
                u64::MAX,
                false,
                "a security module (SELinux, AppArmor) refuses",
            ),
            (filtered, "6.1.0-18-amd64", "", u64::MAX, false, "or kernel lockdown"),
            (filtered, "6.1.0", locked, u64::MAX, false, "confidentiality"),
            (filtered, "5.10.0-30-amd64", open, 64 * 1024, false, "RLIMIT_MEMLOCK"),
            (filtered, "5.11.0", open, 64 * 1024, false, "security module"),
            (filtered, "5.10.0", open, u64::MAX, false, "security module"),
            ("", "", "", 0, false, "security module"),
        ] {
            let refuser = refuser(status, release, lockdown, memlock, all);
            assert!(refuser.contains(named), "{release} {lockdown}: {refuser}");
        }
    }
}
