//! How does the drop helper get into the kernel?

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::{MapCore, MapHandle, Object, ObjectBuilder, PrintLevel, RingBufferBuilder};

use super::ledger::Ledger;
use super::refusal::{self, Error};
use super::{Drops, Inbox};
use crate::sys;

/// libelf wants the object aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/drops.bpf.o")));

/// A node's pods number 110 by default, and few have drops, mostly of one class. An element takes 16 octets on each CPU.
const TOTALS: u32 = 1024;

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
        Self::try_load(totals).map_err(|error| refusal::diagnose(&error))
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
