//! Which C libraries can be imitated, and with what values?
//!
//! A profile is a value here; what a family does on the wire is in the family's file.

use std::time::Duration;

use evidence::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) mod glibc;
pub(crate) mod musl;

/// A stub resolver as an application has it.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Its name in configuration, labels and evidence.
    pub name: &'static str,
    /// What it stands for, in one line.
    pub summary: &'static str,
    /// resolv.conf's `timeout`.
    pub timeout: Duration,
    /// resolv.conf's `attempts`, at least one.
    pub attempts: u32,
    /// The code it follows.
    pub(crate) family: Family,
}

/// A profile's name in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ProfileName {
    /// musl 1.2.3.
    #[serde(rename = "musl")]
    Musl,
    /// musl 1.2.5.
    #[serde(rename = "musl-1.2.5")]
    Musl125,
    /// glibc 2.36.
    #[serde(rename = "glibc")]
    Glibc,
}

/// Whose rules a profile follows.
#[derive(Debug, Clone)]
pub(crate) enum Family {
    Musl(musl::Version),
    Glibc,
}

impl Profile {
    /// musl 1.2.1 to 1.2.3: Alpine 3.15 to 3.17, Debian 12.
    pub const MUSL: Self = Self {
        name: "musl",
        summary: "musl 1.2.3 (Alpine 3.15 to 3.17): all servers at once, resend after 2.5 s, no TCP",
        timeout: DEFAULT_TIMEOUT,
        attempts: DEFAULT_ATTEMPTS,
        family: Family::Musl(musl::Version {
            tcp: false,
            distinct_ids: false,
            no_data: Outcome::NoName,
            buffer: 512,
        }),
    };

    /// musl 1.2.4 and 1.2.5: Alpine from 3.18.
    pub const MUSL_1_2_5: Self = Self {
        name: "musl-1.2.5",
        summary: "musl 1.2.5 (Alpine from 3.18): as musl 1.2.3, with TCP for truncated answers",
        timeout: DEFAULT_TIMEOUT,
        attempts: DEFAULT_ATTEMPTS,
        family: Family::Musl(musl::Version {
            tcp: true,
            distinct_ids: true,
            no_data: Outcome::NoData,
            buffer: 4800,
        }),
    };

    /// glibc 2.36: Debian 12; 2.26 to 2.42 differ in nothing that shows here.
    pub const GLIBC: Self = Self {
        name: "glibc",
        summary: "glibc 2.36 (Debian 12): one server after the other, resend after 5 s, TCP when truncated",
        timeout: DEFAULT_TIMEOUT,
        attempts: DEFAULT_ATTEMPTS,
        family: Family::Glibc,
    };

    /// All profiles, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::MUSL, Self::MUSL_1_2_5, Self::GLIBC];

    /// The profile of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// The same library with other values in resolv.conf.
    pub fn with_options(self, timeout: Duration, attempts: u32) -> Self {
        Self { timeout, attempts, ..self }
    }

    /// Whether it follows musl's rules.
    pub fn is_musl(&self) -> bool {
        matches!(self.family, Family::Musl(_))
    }
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Musl => Self::MUSL,
            ProfileName::Musl125 => Self::MUSL_1_2_5,
            ProfileName::Glibc => Self::GLIBC,
        }
    }
}

/// RES_TIMEOUT in both libraries.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// RES_DFLRETRY in both libraries.
const DEFAULT_ATTEMPTS: u32 = 2;
