//! How is a body made small, and made large again without being blown up by a stranger?

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// Why a body can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Unpackable {
    /// It is no gzip.
    #[error("it is no gzip: {0}")]
    Damaged(#[from] io::Error),
    /// It would be larger than it may be.
    #[error("it unpacks to more than {most} bytes")]
    TooLarge {
        /// Allowed.
        most: usize,
    },
}

/// As gzip. At its fastest it is a few percent larger than at its best, for a third of the time.
pub fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    // Memory takes all that is written.
    drop(packer.write_all(bytes));
    packer.finish().unwrap_or_default()
}

/// The bytes of a gzip, `most` of them at most.
pub fn unpack(packed: &[u8], most: usize) -> Result<Vec<u8>, Unpackable> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    GzDecoder::new(packed).take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(Unpackable::TooLarge { most });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_out_again() {
        for bytes in [vec![], vec![7; 100_000], (0..=255).collect()] {
            assert_eq!(unpack(&pack(&bytes), 100_000).unwrap(), bytes);
        }
    }

    #[test]
    fn a_bomb_and_noise_are_errors() {
        let bomb = pack(&vec![0; 50_000_000]);
        assert!(bomb.len() < 300_000);
        assert!(matches!(unpack(&bomb, 1000), Err(Unpackable::TooLarge { most: 1000 })));
        assert!(matches!(unpack(b"no gzip at all", 1000), Err(Unpackable::Damaged(_))));
        let cut = pack(&[1; 1000]);
        assert!(matches!(unpack(&cut[..cut.len() / 2], 1000), Err(Unpackable::Damaged(_))));
    }
}
