//! What does a cluster's network look like on one machine, with real servers in it and real faults?
//!
//! A [`Lab`](miniature::Lab) raises namespaces that stand for nodes and pods, kube-proxy's own rules, and
//! real CoreDNS behind them. A [`Site`](site::Site) is the part that tests, traffic and faults see; it can
//! be loaded again by another process. A [`kubernetes::Cluster`] is the real thing beside it, where "works in
//! Kubernetes" is shown. None of this is in the product's image.

pub mod alertmanager;
pub mod bench;
pub mod command;
pub mod demo;
pub mod dns;
mod endpoints;
mod error;
pub mod faults;
pub mod interrupt;
pub mod journal;
pub mod kubernetes;
pub mod miniature;
mod namespaces;
pub mod process;
pub mod programs;
pub mod site;
pub mod traffic;
pub mod trial;

pub use endpoints::{Endpoints, Uncleaned};
pub use error::Error;
pub use miniature::{Lab, Options};
pub use site::Site;
