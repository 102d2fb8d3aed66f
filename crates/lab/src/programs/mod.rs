//! Which real programs does the lab run, and where are they had from?
//!
//! Each is fetched or built once into a cache, `${NSLOOKOUT_CACHE:-${XDG_CACHE_HOME:-~/.cache}/nslookout}/NAME-VERSION`:
//! made beside its place under a lock, then renamed, so that two labs at once build once and a cut-off build
//! leaves nothing that looks whole. CoreDNS and Kubernetes are built from their released Go modules. Debian's
//! daemons are unpacked, never installed: installing them would start them.

pub mod cluster;
mod compiled;
mod debian;
mod go;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::programs::compiled::Compiled;
use crate::programs::debian::Debian;
use crate::programs::go::GoModule;

/// All programs of the lab, by their paths.
#[derive(Debug, Clone)]
pub struct Programs {
    /// CoreDNS.
    pub coredns: PathBuf,
    /// Alertmanager.
    pub alertmanager: PathBuf,
    /// Prometheus.
    pub prometheus: PathBuf,
    /// Prometheus' checker of rules.
    pub promtool: PathBuf,
    /// getaddrinfo of this machine's glibc.
    pub getaddrinfo_glibc: PathBuf,
    /// getaddrinfo of Debian's musl.
    pub getaddrinfo_musl: PathBuf,
}

/// Fetches and builds whatever is missing, and tells on standard error what it does.
pub fn all() -> Result<Programs, Error> {
    Ok(Programs {
        coredns: coredns()?,
        alertmanager: alertmanager()?,
        prometheus: prometheus()?,
        promtool: promtool()?,
        getaddrinfo_glibc: getaddrinfo_glibc()?,
        getaddrinfo_musl: getaddrinfo_musl()?,
    })
}

/// Where the cache is.
pub fn cache() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("NSLOOKOUT_CACHE").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"))
            .join("nslookout")
    })
}

/// CoreDNS of the pinned release, built from the committed go.mod and go.sum.
pub fn coredns() -> Result<PathBuf, Error> {
    Ok(coredns_module().folder()?.join("coredns"))
}

/// Where CoreDNS is once it has been built.
pub fn coredns_path() -> PathBuf {
    cache().join(coredns_module().folder_name()).join("coredns")
}

/// Alertmanager, from Debian's package.
pub fn alertmanager() -> Result<PathBuf, Error> {
    Debian { package: "prometheus-alertmanager", version: "0.25" }.file("usr/bin/prometheus-alertmanager")
}

/// Prometheus, from Debian's package.
pub fn prometheus() -> Result<PathBuf, Error> {
    Debian { package: "prometheus", version: "2.42" }.file("usr/bin/prometheus")
}

/// Prometheus' promtool, from the same package.
pub fn promtool() -> Result<PathBuf, Error> {
    Debian { package: "prometheus", version: "2.42" }.file("usr/bin/promtool")
}

/// The getaddrinfo of this machine's glibc: `getaddrinfo NAME [--rate N] [--count N] [--threads K]`.
pub fn getaddrinfo_glibc() -> Result<PathBuf, Error> {
    // Dynamic on purpose: a static glibc would load its resolver modules at run time all the same.
    getaddrinfo("glibc", &["gcc", "-O2", "-Wall", "-pthread"])
}

/// The same program with Debian's musl.
pub fn getaddrinfo_musl() -> Result<PathBuf, Error> {
    getaddrinfo("musl", &["musl-gcc", "-static", "-O2", "-Wall"])
}

fn coredns_module() -> GoModule {
    GoModule {
        name: "coredns",
        version: COREDNS_VERSION,
        files: COREDNS_MODULE,
        packages: &["github.com/coredns/coredns"],
        ldflags: "-s -w".to_owned(),
    }
}

fn getaddrinfo(kind: &'static str, compiler: &'static [&'static str]) -> Result<PathBuf, Error> {
    Compiled { name: "getaddrinfo", kind, source: GETADDRINFO, compiler }.file()
}

/// The folder of a program, made by `make` in a folder beside it when it is missing.
pub(crate) fn cached(name: &str, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
    let cache = cache();
    let folder = cache.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&cache).map_err(Error::file("make", &cache))?;
    let lock = cache.join(format!(".{name}.lock"));
    let file = File::create(&lock).map_err(Error::file("open", &lock))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::file("lock", &lock)(errno.into()))?;
    if folder.is_dir() {
        return Ok(folder);
    }
    let beside = cache.join(format!(".{name}.new"));
    if beside.exists() {
        // What a build left that was cut off; the lock says that nobody works on it.
        fs::remove_dir_all(&beside).map_err(Error::file("remove", &beside))?;
    }
    fs::create_dir(&beside).map_err(Error::file("make", &beside))?;
    make(&beside)?;
    fs::rename(&beside, &folder).map_err(Error::file("rename to", &folder))?;
    Ok(folder)
}

/// The release that programs/coredns/go.mod pins.
pub const COREDNS_VERSION: &str = "1.12.4";

const COREDNS_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../programs/coredns/go.mod")),
    ("go.sum", include_str!("../../programs/coredns/go.sum")),
    ("tools.go", include_str!("../../programs/coredns/tools.go")),
];

const GETADDRINFO: &str = include_str!("../../programs/getaddrinfo.c");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_told_is_the_version_pinned() {
        let pinned = format!("require github.com/coredns/coredns v{COREDNS_VERSION}\n");
        assert!(COREDNS_MODULE.iter().any(|(_, text)| text.contains(&pinned)));
    }
}
