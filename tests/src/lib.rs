//! What the end-to-end tests share: where the binary is, a seed that is told, and a cluster it is installed in.

#[expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how a test fails")]
pub mod callers;
#[expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a panic is how a test fails")]
pub mod installed;
#[expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how a test fails")]
pub mod laptop;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The nslookout binary that `make test` built beside this test.
///
/// # Panics
/// Where it is missing: the test was started without `make test`.
#[must_use]
#[expect(clippy::panic, reason = "a panic is how a test fails")]
pub fn nslookout() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("nslookout")));
    match beside {
        Some(path) if path.is_file() => path,
        Some(_) | None => {
            panic!("nslookout is not built: run `make test`, or `cargo build -p nslookout` first")
        }
    }
}

/// A seed from NSLOOKOUT_SEED, or a new one; printed, so that a failed run can be had again.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("NSLOOKOUT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |now| u64::from(now.subsec_nanos()) % 1_000_000)
    });
    println!("NSLOOKOUT_SEED={seed}");
    seed
}

/// A lab for one test, of a name that no other run on this machine has.
#[must_use]
pub fn options(name: &str, seed: u64) -> lab::Options {
    lab::Options::new(format!("{name}-{}", std::process::id()), seed)
}
