//! Can the drop helper run here, and if not, what is missing?
//!
//! "May not" and "can't" are different answers, and both name what the operator can change.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use evidence::CoverageState;
use libbpf_rs::{ErrorKind, MapCore, MapHandle, Object, ObjectBuilder, PrintLevel, RingBufferBuilder};

use super::ledger::Ledger;
use super::{Drops, Inbox};
use crate::sys;

/// libelf wants the object aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/drops.bpf.o")));

/// A node's pods number 110 by default, and few have drops, mostly of one class. An element takes 16 octets on each CPU.
const TOTALS: u32 = 1024;

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

impl Drops {
    /// Loads and attaches the program.
    pub fn load() -> Result<Self, Error> {
        Self::load_with_room(TOTALS)
    }

    /// The same with room for so many totals at one time: namespaces times classes.
    pub fn load_with_room(totals: u32) -> Result<Self, Error> {
        // libbpf would write to stderr.
        libbpf_rs::set_print(Some((PrintLevel::Debug, |_, text| tracing::debug!("{}", text.trim_end()))));
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return Err(Error::Unsupported {
                why: "the kernel has no BTF (/sys/kernel/btf/vmlinux; CONFIG_DEBUG_INFO_BTF)".into(),
            });
        }
        Self::try_load(totals).map_err(|error| diagnose(&error))
    }

    fn try_load(room: u32) -> Result<Self, libbpf_rs::Error> {
        let mut object = ObjectBuilder::default().name("nslookout_drops")?.open_memory(&OBJECT.0)?;
        for mut map in object.maps_mut().filter(|map| map.name() == "totals") {
            map.set_max_entries(room)?;
        }
        let object = object.load()?;
        let program = object
            .progs_mut()
            .find(|program| program.name() == "on_kfree_skb")
            .ok_or_else(|| libbpf_rs::Error::from_raw_os_error(libc::ENOENT))?;
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let records = map(&object, "records")?;
        let mut ring = RingBufferBuilder::new();
        let writer = Arc::clone(&inbox);
        ring.add(&records, move |bytes| {
            writer.lock().unwrap_or_else(PoisonError::into_inner).add(bytes);
            0
        })?;
        let ring = ring.build()?;
        let maps = ["totals", "troubles", "baselines", "dns", "owners"].map(|name| map(&object, name));
        let [totals, troubles, baselines, dns, owners] = maps;
        let link = program.attach()?;
        Ok(Self {
            ready: records.as_fd().try_clone_to_owned().and_then(sys::readable)?,
            ring: Mutex::new(ring),
            inbox,
            totals: totals?,
            troubles: troubles?,
            baselines: baselines?,
            dns: dns?,
            owners: owners?,
            ledger: Ledger::new(usize::try_from(room).unwrap_or(usize::MAX)),
            known: BTreeSet::new(),
            unknown: 0,
            program: program.as_fd().as_raw_fd(),
            _link: link,
            _object: object,
        })
    }
}

fn map(object: &Object, name: &str) -> Result<MapHandle, libbpf_rs::Error> {
    let map = object.maps().find(|map| map.name() == name);
    MapHandle::try_from(&map.ok_or_else(|| libbpf_rs::Error::from_raw_os_error(libc::ENOENT))?)
}

fn diagnose(error: &libbpf_rs::Error) -> Error {
    let missing = missing_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    match error.kind() {
        ErrorKind::PermissionDenied if !missing.is_empty() => Error::Denied { missing: missing.join(", ") },
        ErrorKind::PermissionDenied => Error::Denied {
            missing: format!(
                "the kernel refused bpf() in spite of the capabilities: a seccomp profile, lockdown, or (before 5.11) \
                 RLIMIT_MEMLOCK ({error:#})"
            ),
        },
        _ => Error::Unsupported {
            why: format!(
                "the program wants a kernel that tells why a packet was dropped (from 5.17) and conntrack's types in its \
                 BTF ({error:#})"
            ),
        },
    }
}

/// Which of the capabilities that the helper needs are not in `/proc/self/status`.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
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
}
