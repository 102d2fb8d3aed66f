//! Which real programs does the lab run, and where are they had from?
//!
//! Each is fetched or built once into a cache, `${NSLOOKOUT_CACHE:-${XDG_CACHE_HOME:-~/.cache}/nslookout}/NAME-VERSION`:
//! made beside its place under a lock, then renamed, so that two labs at once build once and a cut-off build
//! leaves nothing that looks whole. CoreDNS is built from its released Go module. Debian's daemons are unpacked,
//! never installed: installing them would start them.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{Error, command};

/// A program from a Debian package: the package, its version, the file in it.
struct Debian {
    package: &'static str,
    version: &'static str,
    file: &'static str,
}

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
    let folder = cached(&format!("coredns-{COREDNS_VERSION}"), |beside| {
        let module = beside.join("module");
        fs::create_dir(&module).map_err(Error::file("make", &module))?;
        for (file, text) in COREDNS_MODULE {
            let path = module.join(file);
            fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        build_coredns(&module, &beside.join("coredns"))?;
        fs::remove_dir_all(&module).map_err(Error::file("remove", &module))
    })?;
    Ok(folder.join("coredns"))
}

/// Where CoreDNS is once it has been built.
pub fn coredns_path() -> PathBuf {
    cache().join(format!("coredns-{COREDNS_VERSION}")).join("coredns")
}

/// Alertmanager, from Debian's package.
pub fn alertmanager() -> Result<PathBuf, Error> {
    debian(&Debian {
        package: "prometheus-alertmanager",
        version: "0.25",
        file: "usr/bin/prometheus-alertmanager",
    })
}

/// Prometheus, from Debian's package.
pub fn prometheus() -> Result<PathBuf, Error> {
    debian(&Debian { package: "prometheus", version: "2.42", file: "usr/bin/prometheus" })
}

/// Prometheus' promtool, from the same package.
pub fn promtool() -> Result<PathBuf, Error> {
    debian(&Debian { package: "prometheus", version: "2.42", file: "usr/bin/promtool" })
}

/// The getaddrinfo of this machine's glibc: `getaddrinfo NAME [--rate N] [--count N] [--threads K]`.
pub fn getaddrinfo_glibc() -> Result<PathBuf, Error> {
    // Dynamic on purpose: a static glibc would load its resolver modules at run time all the same.
    compiled("glibc", &["gcc", "-O2", "-Wall", "-pthread"])
}

/// The same program with Debian's musl.
pub fn getaddrinfo_musl() -> Result<PathBuf, Error> {
    compiled("musl", &["musl-gcc", "-static", "-O2", "-Wall"])
}

/// The folder of a program, made by `make` in a folder beside it when it is missing.
fn cached(name: &str, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
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

fn build_coredns(module: &Path, output: &Path) -> Result<(), Error> {
    eprintln!("building CoreDNS {COREDNS_VERSION} (once; some minutes with an empty Go cache)");
    let begin = Instant::now();
    let mut go = Command::new("go");
    go.args(["build", "-v", "-mod=readonly", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(output)
        .arg("github.com/coredns/coredns")
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off");
    let mut child = go
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Spawn { program: "go".to_owned(), source })?;
    let (mut packages, mut told, mut said) = (0_u32, Instant::now(), String::new());
    for line in child.stderr.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
        let line = line.map_err(Error::system("read what go says"))?;
        packages += 1;
        said = command::tail(&format!("{said}\n{line}"), 2_000).to_owned();
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            eprintln!("  {} s, {packages} packages: {line}", begin.elapsed().as_secs());
        }
    }
    let status = child.wait().map_err(Error::system("wait for go"))?;
    if !status.success() {
        return Err(Error::Command {
            command: "go build github.com/coredns/coredns".to_owned(),
            status: status.to_string(),
            output: said,
        });
    }
    eprintln!("built CoreDNS {COREDNS_VERSION} in {} s", begin.elapsed().as_secs());
    Ok(())
}

fn debian(program: &Debian) -> Result<PathBuf, Error> {
    let folder = cached(&format!("{}-{}", program.package, program.version), |beside| {
        eprintln!("fetching Debian's {} (unpacked, not installed)", program.package);
        // apt's own download user may not write here; that is a warning, no more.
        command::run(
            Command::new("apt-get").args(["-q", "download", program.package]).current_dir(beside),
            None,
        )?;
        let packages = fs::read_dir(beside).map_err(Error::file("read", beside))?;
        for package in packages.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.contains(program.version) {
                return Err(Error::WrongVersion {
                    package: program.package.to_owned(),
                    wanted: program.version.to_owned(),
                    found: name,
                });
            }
            command::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(beside), None)?;
            fs::remove_file(&package).map_err(Error::file("remove", &package))?;
        }
        Ok(())
    })?;
    Ok(folder.join(program.file))
}

/// The cache's name holds a hash of source and flags, so a changed source is compiled anew.
fn compiled(libc: &str, compiler: &[&str]) -> Result<PathBuf, Error> {
    let mut hash = Sha256::new_with_prefix(GETADDRINFO);
    hash.update(compiler.join(" "));
    let hash: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = cached(&format!("getaddrinfo-{libc}-{hash}"), |beside| {
        let source = beside.join("getaddrinfo.c");
        fs::write(&source, GETADDRINFO).map_err(Error::file("write", &source))?;
        let (program, flags) = compiler.split_first().unwrap_or((&"cc", &[]));
        command::run(
            Command::new(program).args(flags).arg("-o").arg(beside.join("getaddrinfo")).arg(&source),
            None,
        )
        .map(drop)
    })?;
    Ok(folder.join("getaddrinfo"))
}

/// The release that programs/coredns/go.mod pins.
pub const COREDNS_VERSION: &str = "1.12.4";

const COREDNS_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../programs/coredns/go.mod")),
    ("go.sum", include_str!("../programs/coredns/go.sum")),
    ("tools.go", include_str!("../programs/coredns/tools.go")),
];

const GETADDRINFO: &str = include_str!("../programs/getaddrinfo.c");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_told_is_the_version_pinned() {
        let pinned = format!("require github.com/coredns/coredns v{COREDNS_VERSION}\n");
        assert!(COREDNS_MODULE.iter().any(|(_, text)| text.contains(&pinned)));
    }
}
