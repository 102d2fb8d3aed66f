//! Which DNS packets did netfilter drop, and why?
//!
//! Loads the BPF program of `src/bpf/drops.bpf.c`, tells it which addresses are DNS and what the counters were, and reads
//! its records and totals. It sees the whole kernel, each namespace apart.

mod ledger;
mod load;
mod record;
mod refusal;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evidence::{BootTime, DropClass, Protocol};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Object, RingBuffer};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use record::Record;
pub use refusal::Error;

use self::ledger::{Key, Ledger, Packets};
use crate::netlink::CpuStats;

/// The loaded program. It goes with this value.
#[derive(Debug)]
pub struct Drops {
    // Deregisters before the ring goes.
    ready: AsyncFd<OwnedFd>,
    // A ring may go to another thread, but not be shared: the lock makes it so.
    ring: Mutex<RingBuffer<'static>>,
    inbox: Arc<Mutex<Inbox>>,
    totals: MapHandle,
    troubles: MapHandle,
    baselines: MapHandle,
    dns: MapHandle,
    owners: MapHandle,
    ledger: Ledger,
    known: BTreeSet<[u8; record::ENDPOINT]>,
    /// DNS addresses for which the map has no room.
    unknown: u64,
    program: i32,
    _link: Link,
    _object: Object,
}

/// Drops of one class in one namespace (or in several, one after the other, of the same inode number) since the program was
/// loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// Inode of the namespace.
    pub namespace: u32,
    /// Why.
    pub class: DropClass,
    /// Packets of all protocols.
    pub all: u64,
    /// Of these, DNS.
    pub dns: u64,
}

/// What the program could not do, since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Records for which the ring had no room.
    pub lost_records: u64,
    /// Drops that no total counts: too many namespaces at one time.
    pub uncounted: u64,
    /// Drops of class Unknown, for want of a base line.
    pub no_baseline: u64,
    /// Rises of the counters whose packet was never seen.
    pub abandoned: u64,
    /// Drops whose namespace could not be read.
    pub unread: u64,
    /// Drops that came while the program was busy with another on the same CPU.
    pub missed: u64,
    /// Records that could not be decoded.
    pub garbled: u64,
    /// DNS addresses that the program doesn't know, for want of room.
    pub unknown_addresses: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    records: Vec<Record>,
    garbled: u64,
}

impl Drops {
    /// Gives the counters from which a namespace's rises are counted. To be called right after loading: a drop seen before
    /// has set its CPU's base line already, and that one stays.
    pub fn seed(&self, namespace: u32, stats: &[CpuStats]) {
        for cpu in stats {
            let key = bytes(&[namespace, u32::from(cpu.cpu)]);
            let mut value = bytes(&[cpu.invalid, cpu.insert_failed, cpu.drop, cpu.chain_toolong]);
            // struct baseline goes on with what is left over, until when, and the namespace's cookie: not known yet.
            value.resize(48, 0);
            if let Err(error) = self.baselines.update(&key, &value, MapFlags::NO_EXIST) {
                tracing::debug!(namespace, cpu = cpu.cpu, %error, "a base line is there already");
            }
        }
    }

    /// Tells which addresses are DNS, over UDP and TCP.
    pub fn set_dns(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let wanted: BTreeSet<_> = addresses
            .into_iter()
            .flat_map(|address| {
                [Protocol::Udp, Protocol::Tcp].map(|protocol| record::endpoint(address, protocol))
            })
            .collect();
        for gone in self.known.difference(&wanted) {
            if let Err(error) = self.dns.delete(gone) {
                tracing::debug!(%error, "a DNS address was not there");
            }
        }
        self.known.retain(|key| wanted.contains(key));
        self.unknown = 0;
        for new in wanted {
            if !self.known.contains(&new) {
                match self.dns.update(&new, &[1], MapFlags::ANY) {
                    Ok(()) => drop(self.known.insert(new)),
                    Err(_) => self.unknown += 1,
                }
            }
        }
    }

    /// Whether it knows any DNS address. If not, no packet is DNS to it.
    pub fn knows_dns(&self) -> bool {
        !self.known.is_empty()
    }

    /// Waits until there are records. May be given up at any time.
    pub async fn readable(&self) {
        // An error means that the runtime is ending.
        if self.ready.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes the records that are there.
    pub fn take(&self) -> Vec<Record> {
        // Cleared first: what arrives while the ring is read wakes us again.
        let clear = self.ready.try_io(Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        drop(clear);
        if let Err(error) = self.ring.lock().unwrap_or_else(PoisonError::into_inner).consume() {
            tracing::warn!(%error, "reading the ring of dropped packets");
        }
        std::mem::take(&mut self.inbox().records)
    }

    /// Totals since the program was loaded, from per-CPU counters: exact even where records were lost. Those that
    /// [`tidy`](Self::tidy) took out are not among them, until their namespace has another drop.
    pub fn totals(&self) -> Vec<Total> {
        self.elements()
            .map(|(_, key, element)| {
                let Packets { all, dns } = self.ledger.whole(key, element);
                Total { namespace: key.0, class: key.1, all, dns }
            })
            .collect()
    }

    /// Makes room in the kernel's map: what stands still is taken out and kept here, but for the namespaces to keep. To be
    /// called now and then, after the totals were told.
    pub fn tidy(&mut self, keep: &[u32], now: BootTime) {
        let mut raw = HashMap::new();
        let elements: Vec<_> = self.elements().collect();
        for (bytes, key, element) in elements {
            self.ledger.read(key, element, now);
            raw.insert(key, bytes);
        }
        for (key, element) in self.ledger.still(keep, now) {
            let Some(bytes) = raw.get(&key) else { continue };
            // libbpf-rs can't look up and delete in one call on a per-CPU map. A drop in the microsecond between is not
            // counted; its record is told all the same.
            if self.element(bytes).is_some_and(|(_, last)| last == element)
                && self.totals.delete(bytes).is_ok()
            {
                self.ledger.take_out(key);
            }
        }
    }

    /// The namespace on whose veth this one hangs, as its drops showed: for a pod, its node's.
    pub fn owner(&self, namespace: u32) -> Option<u32> {
        let value = self.owners.lookup(&namespace.to_ne_bytes(), MapFlags::ANY).ok()??;
        Some(u32::from_ne_bytes(value.try_into().ok()?))
    }

    /// What it could not do, since it was loaded.
    pub fn trouble(&self) -> Trouble {
        let cpus = self.troubles.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        let [lost_records, uncounted, no_baseline, abandoned, unread] = sum(&cpus.unwrap_or_default());
        Trouble {
            lost_records,
            uncounted,
            no_baseline,
            abandoned,
            unread,
            missed: self.missed(),
            garbled: self.inbox().garbled,
            unknown_addresses: self.unknown,
        }
    }

    /// The kernel doesn't run a program inside itself: a softirq that comes while it works on a packet of a process finds
    /// it busy, and is counted.
    fn missed(&self) -> u64 {
        fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program))
            .ok()
            .and_then(|text| {
                text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
            })
            .unwrap_or(0)
    }

    fn elements(&self) -> impl Iterator<Item = (Vec<u8>, Key, Packets)> + '_ {
        self.totals.keys().filter_map(|bytes| {
            let (key, packets) = self.element(&bytes)?;
            Some((bytes, key, packets))
        })
    }

    fn element(&self, bytes: &[u8]) -> Option<(Key, Packets)> {
        let [namespace, class] = words(bytes)?;
        let cpus = self.totals.lookup_percpu(bytes, MapFlags::ANY).ok()??;
        let [all, dns] = sum(&cpus);
        Some(((namespace, record::class_of(class)?), Packets { all, dns }))
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trouble {
    /// Packets or records known to be missing, or classed by a guess: with more than zero, absence proves nothing.
    pub fn lost(&self) -> u64 {
        self.lost_records
            + self.uncounted
            + self.abandoned
            + self.unread
            + self.missed
            + self.garbled
            + self.unknown_addresses
    }
}

impl Inbox {
    fn add(&mut self, bytes: &[u8]) {
        match Record::decode(bytes) {
            Some(record) => self.records.push(record),
            None => self.garbled += 1,
        }
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut chunks = bytes.chunks_exact(4);
    let mut words = [0; N];
    for word in &mut words {
        *word = u32::from_ne_bytes(chunks.next()?.try_into().ok()?);
    }
    Some(words)
}

/// The sum over CPUs of a value that is a row of 64-bit counters.
fn sum<const N: usize>(cpus: &[Vec<u8>]) -> [u64; N] {
    let mut sums = [0u64; N];
    for cpu in cpus {
        for (sum, chunk) in sums.iter_mut().zip(cpu.chunks_exact(8)) {
            *sum = sum.wrapping_add(chunk.try_into().map_or(0, u64::from_ne_bytes));
        }
    }
    sums
}
