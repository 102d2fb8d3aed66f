//! How is conntrack read over netlink?
//!
//! A codec without IO ([`wire`], [`ctnetlink`]) and a socket inside a namespace ([`Conntrack`]). No existing crate
//! can send the kernel-side filter of dumps, and a table of 262,144 entries is not to be copied for a few rows of DNS.

mod ctnetlink;
mod socket;
mod wire;

pub use ctnetlink::{CpuStats, Entry, TableSize};
pub(crate) use ctnetlink::{number, protocol_of};
pub use socket::{Conntrack, Dump, Error};
