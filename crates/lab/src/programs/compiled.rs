//! How are the lab's own C programs compiled?
//!
//! The cache's name holds a hash of source and flags, so a changed source is compiled anew.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::programs::cached;
use crate::{Error, command};

/// A program of one C file.
pub(super) struct Compiled {
    /// The program.
    pub name: &'static str,
    /// Which of its builds, for the cache's name: "musl".
    pub kind: &'static str,
    /// Its source.
    pub source: &'static str,
    /// The compiler with its flags.
    pub compiler: &'static [&'static str],
}

impl Compiled {
    /// The program.
    pub fn file(&self) -> Result<PathBuf, Error> {
        let Self { name, kind, source, compiler } = self;
        let mut hash = Sha256::new_with_prefix(source);
        hash.update(compiler.join(" "));
        let hash: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let folder = cached(&format!("{name}-{kind}-{hash}"), |beside| {
            let file = beside.join(format!("{name}.c"));
            fs::write(&file, source).map_err(Error::file("write", &file))?;
            let (program, flags) = compiler.split_first().unwrap_or((&"cc", &[]));
            command::run(Command::new(program).args(flags).arg("-o").arg(beside.join(name)).arg(&file), None)
                .map(drop)
        })?;
        Ok(folder.join(name))
    }
}
