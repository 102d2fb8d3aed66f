//! What does the kernel do to DNS packets on their way?
//!
//! Three views of a node's kernel: conntrack's counters and its entries of DNS, both by netlink, and a BPF program that
//! sees each packet die in netfilter and classes it by the kernel's own counters. Nothing here changes anything.
//! [`run`] makes reports of them; the parts are public for `nslookout check` and `nslookout conntrack`.

mod config;
pub mod drops;
pub mod mappings;
pub mod netlink;
mod node;
mod sys;
mod watch;

pub use config::Config;
pub use node::WatchedNode;
pub use watch::run;
