//! How is a program of Debian's had without installing its package?
//!
//! Installing a daemon's package would start it. The package is fetched by apt and unpacked into the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::programs::cached;
use crate::{Error, command};

/// A Debian package of which the lab runs something.
pub(super) struct Debian {
    /// Its name.
    pub package: &'static str,
    /// The start of the version that the lab is made for.
    pub version: &'static str,
}

impl Debian {
    /// The folder into which the package is unpacked.
    pub fn folder(&self) -> Result<PathBuf, Error> {
        cached(&format!("{}-{}", self.package, self.version), |beside| {
            eprintln!("fetching Debian's {} (unpacked, not installed)", self.package);
            // apt's own download user may not write here; that is a warning, no more.
            command::run(
                Command::new("apt-get").args(["-q", "download", self.package]).current_dir(beside),
                None,
            )?;
            let packages = fs::read_dir(beside).map_err(Error::file("read", beside))?;
            for package in packages.filter_map(|entry| Some(entry.ok()?.path())) {
                let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if !name.contains(self.version) {
                    return Err(Error::WrongVersion {
                        package: self.package.to_owned(),
                        wanted: self.version.to_owned(),
                        found: name,
                    });
                }
                command::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(beside), None)?;
                fs::remove_file(&package).map_err(Error::file("remove", &package))?;
            }
            Ok(())
        })
    }

    /// A file of the package.
    pub fn file(&self, file: &str) -> Result<PathBuf, Error> {
        Ok(self.folder()?.join(file))
    }
}
