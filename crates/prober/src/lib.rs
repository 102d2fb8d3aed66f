//! What would an application get from this cluster's DNS, and when?
//!
//! Lookups are made as musl and glibc make them, packet by packet, from inside the network of a pod or node:
//! same resend times, same ports and IDs, same rules of what counts as an answer and how A and AAAA join.
//! Each lookup and each packet that tells of trouble becomes evidence. No privilege is needed but for
//! entering another network namespace.

mod config;
mod diary;
mod duty;
mod error;
mod ledger;
mod lookup;
mod pace;
mod profiles;
pub mod resolv_conf;
mod schedule;
mod socket;
mod tcp;
mod wire;

pub use config::{Config, Names};
pub use duty::{Candidates, Direct, Duty};
pub use error::Error;
pub use lookup::{Call, Finding, Ignored, is_symptom, lookup};
pub use pace::QUIET;
pub use profiles::{Profile, ProfileName};
pub use schedule::{Counts, Vantage, run};
