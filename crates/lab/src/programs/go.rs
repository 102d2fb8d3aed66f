//! How is a released Go program built, so that two machines get the same one?
//!
//! From a go.mod and go.sum that are committed here, without cgo (a program that needs a libc dies in an image made
//! from scratch), and without the paths of the machine that built it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::programs::cached;
use crate::{Error, command};

/// Programs that come from one module file.
pub(super) struct GoModule {
    /// What the cache's folder and messages call it: "coredns".
    pub name: &'static str,
    /// The release that the go.mod pins.
    pub version: &'static str,
    /// go.mod, go.sum and tools.go.
    pub files: [(&'static str, &'static str); 3],
    /// What is built; each program is named as the last part of its path.
    pub packages: &'static [&'static str],
    /// Flags of the linker.
    pub ldflags: String,
}

impl GoModule {
    /// The folder that holds the built programs.
    pub fn folder(&self) -> Result<PathBuf, Error> {
        cached(&self.folder_name(), |beside| {
            let module = beside.join("module");
            fs::create_dir(&module).map_err(Error::file("make", &module))?;
            for (file, text) in self.files {
                let path = module.join(file);
                fs::write(&path, text).map_err(Error::file("write", &path))?;
            }
            self.build(&module, beside)?;
            fs::remove_dir_all(&module).map_err(Error::file("remove", &module))
        })
    }

    /// The folder's name in the cache.
    pub fn folder_name(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    fn build(&self, module: &Path, output: &Path) -> Result<(), Error> {
        let Self { name, version, .. } = self;
        eprintln!("building {name} {version} (once; some minutes with an empty Go cache)");
        let begin = Instant::now();
        let mut go = Command::new("go");
        go.args(["build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"])
            .arg(format!("-ldflags={}", self.ldflags))
            // The slash makes it a folder, however many programs there are.
            .arg("-o")
            .arg(format!("{}/", output.display()))
            .args(self.packages)
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
                command: format!("go build {}", self.packages.join(" ")),
                status: status.to_string(),
                output: said,
            });
        }
        eprintln!("built {name} {version} in {} s", begin.elapsed().as_secs());
        Ok(())
    }
}

/// Files that come in a module's source and are not built.
pub(super) struct SourceModule {
    /// What the cache's folder and messages call it.
    pub name: &'static str,
    /// The release that the go.mod pins.
    pub version: &'static str,
    /// The module's path.
    pub module: &'static str,
    /// go.mod and go.sum.
    pub files: [(&'static str, &'static str); 2],
    /// The folder in the module whose files are kept.
    pub kept: &'static str,
}

impl SourceModule {
    /// The folder that holds the files.
    pub fn folder(&self) -> Result<PathBuf, Error> {
        cached(&format!("{}-{}", self.name, self.version), |beside| {
            let module = beside.join("module");
            fs::create_dir(&module).map_err(Error::file("make", &module))?;
            for (file, text) in self.files {
                let path = module.join(file);
                fs::write(&path, text).map_err(Error::file("write", &path))?;
            }
            eprintln!("fetching {} {}", self.name, self.version);
            let mut go = Command::new("go");
            // What is fetched must have the sum of the committed go.sum.
            go.args(["mod", "download", self.module]).current_dir(&module);
            command::run(go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env("GOFLAGS", ""), None)?;
            let mut go = Command::new("go");
            go.args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", self.module]).current_dir(&module);
            let fetched =
                command::run(go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env("GOFLAGS", ""), None)?;
            let kept = Path::new(fetched.trim()).join(self.kept);
            for entry in fs::read_dir(&kept).map_err(Error::file("read", &kept))? {
                let entry = entry.map_err(Error::file("read", &kept))?;
                let to = beside.join(entry.file_name());
                fs::copy(entry.path(), &to).map_err(Error::file("write", &to))?;
            }
            fs::remove_dir_all(&module).map_err(Error::file("remove", &module))
        })
    }
}
