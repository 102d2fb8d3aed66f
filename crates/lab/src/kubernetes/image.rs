//! How does a program become a container image, without a builder of images?
//!
//! An OCI image layout in a tar file: one layer, its configuration, a manifest and an index. The index names the
//! image, so that `ctr images import` knows what to call it. The same input gives the same bytes.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::Error;

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entries: Vec<Entry>,
    entrypoint: Vec<String>,
    user: String,
}

/// One thing in the image, by its path without a leading slash.
#[derive(Debug, Clone)]
enum Entry {
    File { place: String, source: PathBuf },
    Link { place: String, target: String },
    Folder { place: String, mode: u32 },
}

/// Bytes with the name that the layout gives them.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Image {
    /// An empty image of this full name: "docker.io/library/coredns:1.12.4".
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), entries: Vec::new(), entrypoint: Vec::new(), user: "0".to_owned() }
    }

    /// The full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// With a file of this machine, which everyone may run, at a place in the image ("bin/coredns").
    pub fn file(mut self, place: impl Into<String>, source: impl Into<PathBuf>) -> Self {
        self.entries.push(Entry::File { place: place.into(), source: source.into() });
        self
    }

    /// With a symbolic link.
    pub fn link(mut self, place: impl Into<String>, target: impl Into<String>) -> Self {
        self.entries.push(Entry::Link { place: place.into(), target: target.into() });
        self
    }

    /// With an empty folder.
    pub fn folder(mut self, place: impl Into<String>, mode: u32) -> Self {
        self.entries.push(Entry::Folder { place: place.into(), mode });
        self
    }

    /// With the program that it starts, and its first arguments.
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// With the user that it runs as, if nothing else is said: "65532:65532".
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// Writes the archive.
    pub fn write(&self, to: &Path) -> Result<(), Error> {
        let layer = Blob::new(self.layer()?);
        let config = Blob::json(to, &self.config(&layer))?;
        let manifest = Blob::json(to, &manifest(&config, &layer))?;
        let index = serde_json::to_vec(&self.index(&manifest)).map_err(json_error(to))?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        let mut files = vec![("oci-layout".to_owned(), layout), ("index.json".to_owned(), index)];
        for blob in [layer, config, manifest] {
            files.push((format!("blobs/sha256/{}", blob.digest), blob.bytes));
        }
        let file = File::create(to).map_err(Error::file("write", to))?;
        let mut archive = Builder::new(file);
        for (place, bytes) in files {
            append(&mut archive, EntryType::Regular, &place, 0o644, &bytes)
                .map_err(Error::file("write", to))?;
        }
        archive.into_inner().map(drop).map_err(Error::file("write", to))
    }

    fn layer(&self) -> Result<Vec<u8>, Error> {
        let mut layer = Builder::new(Vec::new());
        let written = Error::file("write the layer of", &self.name);
        let write = |layer: &mut Builder<Vec<u8>>, entry: &Entry| match entry {
            Entry::File { place, source } => {
                let bytes = fs::read(source).map_err(Error::file("read", source))?;
                append(layer, EntryType::Regular, place, 0o755, &bytes).map_err(Error::file("pack", source))
            }
            Entry::Link { place, target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                layer.append_link(&mut header, place, target).map_err(Error::file("pack", place))
            }
            Entry::Folder { place, mode } => {
                append(layer, EntryType::Directory, place, *mode, &[]).map_err(Error::file("pack", place))
            }
        };
        for entry in &self.entries {
            write(&mut layer, entry)?;
        }
        layer.into_inner().map_err(written)
    }

    fn config(&self, layer: &Blob) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "WorkingDir": "/",
                "Env": ["PATH=/bin:/usr/bin"],
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
        })
    }

    fn index(&self, manifest: &Blob) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", manifest.digest),
                "size": manifest.bytes.len(),
                "platform": { "architecture": architecture(), "os": "linux" },
                "annotations": {
                    "io.containerd.image.name": self.name,
                    "org.opencontainers.image.ref.name": self.name.rsplit(':').next(),
                },
            }],
        })
    }
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { digest, bytes }
    }

    fn json(path: &Path, value: &Value) -> Result<Self, Error> {
        serde_json::to_vec(value).map(Self::new).map_err(json_error(path))
    }
}

fn json_error(path: &Path) -> impl FnOnce(serde_json::Error) -> Error {
    |source| Error::Json { path: path.to_owned(), source }
}

fn manifest(config: &Blob, layer: &Blob) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", config.digest),
            "size": config.bytes.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{}", layer.digest),
            "size": layer.bytes.len(),
        }],
    })
}

fn append<W: std::io::Write>(
    archive: &mut Builder<W>,
    kind: EntryType,
    place: &str,
    mode: u32,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut header = header(kind, mode, bytes.len());
    archive.append_data(&mut header, place, bytes)
}

/// Of root, at the beginning of time.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(u64::try_from(size).unwrap_or_default());
    header
}

/// As Go and the image specification call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn unpacked(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    #[test]
    fn each_digest_leads_to_its_bytes_from_the_index_to_the_layer() {
        let folder = std::env::temp_dir().join(format!("nslookout-image-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (source, archive) = (folder.join("program"), folder.join("image.tar"));
        fs::write(&source, "a program").unwrap();
        let image = Image::new("docker.io/library/x:1").file("bin/x", &source).link("bin/y", "x");
        image.write(&archive).unwrap();
        let first = fs::read(&archive).unwrap();
        image.write(&archive).unwrap();
        assert_eq!(first, fs::read(&archive).unwrap(), "the same input gives the same bytes");
        fs::remove_dir_all(&folder).unwrap();

        let files = unpacked(&first);
        let follow = |value: &Value| {
            let digest = value["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            assert_eq!(value["size"], files[&digest].len());
            files[&digest].clone()
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = parse(&files["index.json"]);
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/x:1");
        let manifest = parse(&follow(entry));
        let layer = follow(&manifest["layers"][0]);
        let config = parse(&follow(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let names: Vec<_> = unpacked(&layer).into_iter().collect();
        assert_eq!(names, [("bin/x".into(), b"a program".to_vec()), ("bin/y".into(), Vec::new())]);
    }
}
