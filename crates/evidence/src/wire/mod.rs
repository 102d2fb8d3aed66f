//! How does evidence cross the network?
//!
//! The only protobuf types of the product, and the only way between them and a [`Batch`] or an [`Answer`]. What a
//! newer sender adds (fields, kinds of observations, values of enums) is left out and counted; what is malformed is
//! an error. Input comes from strangers: sizes are capped before anything is made of it.

mod address;
mod messages;
mod numbers;
mod put;
mod take;

use std::net::SocketAddr;
use std::time::Duration;

use prost::Message;

use crate::{Batch, Inventory};

/// The version that this build writes.
pub const VERSION: u32 = 1;

/// The oldest version that is understood.
pub const OLDEST: u32 = 1;

/// The newest: one more than the own, for agents are upgraded before or after their correlator.
pub const NEWEST: u32 = VERSION + 1;

/// The most bytes of a batch or an answer, uncompressed: some 4,000 lookups.
pub const MAX_BYTES: usize = 1 << 20;

/// The most observations, and the most lines of coverage, of one batch.
pub const MAX_ENTRIES: usize = 8192;

/// The longest text. A domain name with every byte escaped has 1,016.
pub const MAX_TEXT_BYTES: usize = 1024;

/// A batch on its way, with what only the way needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// Drawn when the sender started: sequences of two lives are not comparable.
    pub life: u64,
    /// The evidence.
    pub batch: Batch,
}

/// What was read, and what of it was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    /// What was understood.
    pub value: T,
    /// The sender's version.
    pub version: u32,
    /// What a newer version must have added.
    pub unknown: Unknown,
}

/// What a newer version must have added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Bytes of unknown fields.
    pub bytes: u64,
    /// Observations and lines of coverage that could not be taken: of an unknown kind, or with a value that only the
    /// newer version knows.
    pub entries: u64,
}

/// What an agent gets for a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The last sequence that is accepted of this sender's life: all up to it need not be sent again.
    pub sequence: u64,
    /// The inventory that concerns the node; none while the correlator has none itself.
    pub outlook: Option<Outlook>,
    /// What a prober is to do; none from a correlator that does not know it (yet): then it stays as it was.
    pub duty: Option<Duty>,
}

/// One prober's share of what all of them may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Duty {
    /// The servers that it asks directly.
    pub direct: Vec<SocketAddr>,
    /// Lookups in a thousand seconds that it may add to its regular ones after a first symptom.
    pub extra_in_1000_s: u32,
}

/// The inventory that concerns one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Stands for its content; zero stands for none.
    pub tag: u64,
    /// How long ago it was last known to be true.
    pub age: Duration,
    /// The Service, its endpoints, the pods of that node. None: it is what the agent said that it has.
    pub inventory: Option<Inventory>,
}

/// Why bytes are no batch or no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sender's mistake: no protobuf of this shape.
    #[error("it is not readable: {0}")]
    Unreadable(#[from] prost::DecodeError),
    /// The sender's mistake: a value that can't be.
    #[error("{what} is {problem}")]
    Malformed {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More than anybody needs.
    #[error("it has {size} {what}, more than {most}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// So many.
        size: usize,
        /// Allowed.
        most: usize,
    },
    /// Mended by an upgrade of the older side.
    #[error("it speaks version {given}; versions {OLDEST} to {NEWEST} are understood")]
    Version {
        /// The sender's.
        given: u32,
    },
}

impl Parcel {
    /// As bytes. Texts that are too long are cut; bytes and entries beyond the caps are for the sender to split.
    pub fn to_bytes(&self) -> Vec<u8> {
        put::parcel(self).encode_to_vec()
    }

    /// From bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Read<Self>, Error> {
        fits(bytes)?;
        take::count_entries(bytes)?;
        let message = messages::Parcel::decode(bytes)?;
        take::parcel(message, bytes.len())
    }
}

impl Answer {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        put::answer(self).encode_to_vec()
    }

    /// From bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Read<Self>, Error> {
        fits(bytes)?;
        let message = messages::Answer::decode(bytes)?;
        take::answer(message, bytes.len())
    }
}

fn fits(bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::TooLarge { what: "bytes", size: bytes.len(), most: MAX_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
