//! Who vouches for the correlator? It is its own certificate authority: agents trust this one authority and no other.
//!
//! It lives for years, in generations. The next one is made, and published beside the present one, long before that
//! ends; it vouches once agents have had a day to read it; the one before is trusted for some days more. All of it is
//! one file, so that no moment of it can be torn.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Add;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::store::write_whole;

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mended by the operator: a folder or file that is not ours to read or write.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Mended by the operator: what is kept is none.
    #[error("{place} holds no authority ({why}): remove it, and a new one is made")]
    Damaged {
        /// Where it is kept.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// Mended by the operator: the name.
    #[error("no certificate can be made for {name:?}: {source}")]
    Certificate {
        /// The server's name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The TLS library will not have it.
    #[error("the certificate can't be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// How long each thing lasts. Shorter in tests, so that years go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// A generation of the authority.
    pub authority: Duration,
    /// The next generation is made, and published, so long before the present one ends.
    pub made_before: Duration,
    /// It vouches so long after it was published. kubelet brings a ConfigMap to its pods within two minutes; a node that
    /// is away for the night has it when it comes back.
    pub published: Duration,
    /// The one before is trusted for so long after.
    pub trusted: Duration,
    /// A server's certificate.
    pub server: Duration,
    /// A server's certificate is replaced so often.
    pub renewed: Duration,
    /// Certificates are good from so long ago, for nodes whose clock is behind.
    pub behind: Duration,
    /// All this is looked at so often.
    pub looked_at: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            authority: DAY * 3650,
            made_before: DAY * 30,
            published: DAY,
            trusted: DAY * 7,
            // It is renewed each day; this is for a correlator whose clock is wrong.
            server: DAY * 90,
            renewed: DAY,
            behind: DAY,
            looked_at: Duration::from_secs(30),
        }
    }
}

/// A certificate authority and the name that it vouches for.
pub struct Authority {
    /// None: it lives as long as the process.
    file: Option<PathBuf>,
    name: String,
    times: Times,
    generations: Generations,
    issuer: Issuer<'static, KeyPair>,
    /// What was changed since is not yet in the file.
    unkept: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Generations {
    version: u32,
    present: Generation,
    next: Option<Next>,
    before: Option<Before>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Generation {
    /// As PEM, both.
    key: String,
    certificate: String,
    /// Seconds since the epoch, all times here.
    until: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    generation: Generation,
    /// Since when agents can read it.
    published: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    certificate: String,
    /// Until when it is trusted.
    trusted: u64,
}

impl Authority {
    /// Takes the authority out of the folder, or makes one there; without a folder it lives as long as the process.
    pub fn load(folder: Option<&Path>, name: &str, times: Times, now: SystemTime) -> Result<Self, Error> {
        let file = folder.map(|folder| folder.join(FILE));
        let kept = match &file {
            None => None,
            Some(file) => match fs::read_to_string(file) {
                Ok(text) => Some(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(Error::File { path: file.clone(), source }),
            },
        };
        let Some(text) = kept else {
            let present = generate(name, times, now)?;
            let issuer = present.issuer(name)?;
            let generations = Generations { version: VERSION, present, next: None, before: None };
            let mut this = Self { file, name: name.to_owned(), times, generations, issuer, unkept: true };
            this.keep()?;
            return Ok(this);
        };
        let place = file.as_ref().map_or_else(String::new, |file| file.display().to_string());
        let damaged = |why: String| Error::Damaged { place: place.clone(), why };
        let generations: Generations =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if generations.version != VERSION {
            return Err(damaged(format!("it is of version {}", generations.version)));
        }
        let issuer = generations.present.issuer(name).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { file, name: name.to_owned(), times, generations, issuer, unkept: false })
    }

    /// All that is to be kept, the keys among it.
    pub fn text(&self) -> String {
        serde_json::to_string(&self.generations).unwrap_or_default()
    }

    /// What agents are to trust: the certificates of all generations that may vouch, as PEM.
    pub fn bundle(&self) -> String {
        let Generations { present, next, before, .. } = &self.generations;
        let next = next.iter().map(|next| next.generation.certificate.as_str());
        let before = before.iter().map(|before| before.certificate.as_str());
        let all: Vec<&str> =
            [present.certificate.as_str()].into_iter().chain(next).chain(before).map(str::trim_end).collect();
        all.join("\n") + "\n"
    }

    /// Writes the bundle where agents, or those who bring it to them, read it; not where it is already.
    pub fn publish(&self, path: &Path) -> Result<(), Error> {
        let bundle = self.bundle();
        if fs::read(path).is_ok_and(|present| present == bundle.as_bytes()) {
            return Ok(());
        }
        write_whole(path, bundle.as_bytes(), 0o644)
            .map_err(|source| Error::File { path: path.to_owned(), source })
    }

    /// The bundle is where agents get it.
    pub fn is_published(&mut self, now: SystemTime) -> Result<(), Error> {
        let now = seconds(now);
        match &mut self.generations.next {
            Some(Next { published: published @ None, .. }) => *published = Some(now),
            Some(_) | None => return Ok(()),
        }
        self.unkept = true;
        self.keep()
    }

    /// Does what is due. True if another generation vouches now, or the bundle is another one.
    pub fn turn(&mut self, now: SystemTime) -> Result<bool, Error> {
        let (made_before, published) = (self.times.made_before.as_secs(), self.times.published.as_secs());
        let (moment, before) = (seconds(now), self.generations.clone());
        if self.generations.before.as_ref().is_some_and(|before| before.trusted <= moment) {
            self.generations.before = None;
        }
        let until = self.generations.present.until;
        if self.generations.next.is_none() && until <= moment.saturating_add(made_before) {
            let generation = generate(&self.name, self.times, now)?;
            self.generations.next = Some(Next { generation, published: None });
        }
        // Where the present one is over already, nothing is worse than going on with it.
        let is_due = |next: &Next| {
            until <= moment || next.published.is_some_and(|at| at.saturating_add(published) <= moment)
        };
        if let Some(next) = self.generations.next.take_if(|next| is_due(next)) {
            self.issuer = next.generation.issuer(&self.name)?;
            let old = std::mem::replace(&mut self.generations.present, next.generation);
            let trusted = moment.saturating_add(self.times.trusted.as_secs());
            self.generations.before = Some(Before { certificate: old.certificate, trusted });
        }
        let changed = self.generations != before;
        self.unkept |= changed;
        self.keep()?;
        Ok(changed)
    }

    /// A certificate for the server, made now.
    pub fn server_certificate(
        &self,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<CertifiedKey, Error> {
        let failed = |source| Error::Certificate { name: self.name.clone(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![self.name.clone()]).map_err(failed)?;
        (params.not_before, params.not_after) = validity(now, self.times.server, self.times.behind);
        params.distinguished_name = distinguished(&self.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(CertifiedKey::from_der(vec![certificate.der().clone()], key, provider)?)
    }

    /// How long each thing lasts.
    pub fn times(&self) -> Times {
        self.times
    }

    /// The certificate of the generation that vouches now.
    pub fn present(&self) -> &str {
        &self.generations.present.certificate
    }

    fn keep(&mut self) -> Result<(), Error> {
        if let (Some(file), true) = (&self.file, self.unkept) {
            write_whole(file, self.text().as_bytes(), 0o600)
                .map_err(|source| Error::File { path: file.clone(), source })?;
        }
        self.unkept = false;
        Ok(())
    }
}

impl Generation {
    fn issuer(&self, name: &str) -> Result<Issuer<'static, KeyPair>, Error> {
        let failed = |source| Error::Certificate { name: name.to_owned(), source };
        let pair = KeyPair::from_pem(&self.key).map_err(failed)?;
        Ok(Issuer::new(authority_params(), pair))
    }
}

impl fmt::Debug for Authority {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("file", &self.file)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn generate(name: &str, times: Times, now: SystemTime) -> Result<Generation, Error> {
    let failed = |source| Error::Certificate { name: name.to_owned(), source };
    let pair = KeyPair::generate().map_err(failed)?;
    let mut params = authority_params();
    (params.not_before, params.not_after) = validity(now, times.authority, times.behind);
    let certificate = params.self_signed(&pair).map_err(failed)?.pem();
    let until = seconds(now).saturating_add(times.authority.as_secs());
    Ok(Generation { key: pair.serialize_pem(), certificate, until })
}

/// The same for all generations: which one vouches, its key says.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished("nslookout certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// rcgen names the type, but does not export it.
fn validity<T: From<SystemTime> + Add<Duration, Output = T>>(
    now: SystemTime,
    lasts: Duration,
    behind: Duration,
) -> (T, T) {
    (now.checked_sub(behind).unwrap_or(now).into(), T::from(now) + lasts)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The file in the folder, and the key in the Secret.
pub const FILE: &str = "authority.json";
const VERSION: u32 = 1;
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn at(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000 + DAY * u32::try_from(days).unwrap()
    }

    fn load(folder: &Path, days: u64) -> Authority {
        Authority::load(Some(folder), "correlator", Times::default(), at(days)).unwrap()
    }

    fn count(authority: &Authority) -> usize {
        authority.bundle().matches("BEGIN CERTIFICATE").count()
    }

    #[test]
    fn an_authority_in_a_folder_is_the_same_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let first = load(&keys, 0);
        let again = load(&keys, 1);
        assert_eq!(first.text(), again.text());
        let mode = fs::metadata(keys.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let alone = Authority::load(None, "correlator", Times::default(), at(0)).unwrap();
        assert_ne!(alone.bundle(), first.bundle());
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let whole = load(folder.path(), 0).text();
        let newer = whole.replacen("\"version\":1", "\"version\":2", 1);
        let no_key = whole.replacen("BEGIN PRIVATE KEY", "BEGIN NONSENSE", 1);
        for bad in [whole.get(..200).unwrap(), newer.as_str(), no_key.as_str(), ""] {
            fs::write(folder.path().join(FILE), bad).unwrap();
            let error =
                Authority::load(Some(folder.path()), "correlator", Times::default(), at(0)).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(FILE), "{error}");
        }
        let nowhere = Authority::load(Some(Path::new("/proc/none")), "correlator", Times::default(), at(0));
        assert!(nowhere.is_err());
    }

    #[test]
    fn the_next_generation_is_published_a_day_before_it_vouches_and_the_last_one_leaves_a_week_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = load(folder.path(), 0);
        let first = authority.generations.present.certificate.clone();
        assert!(!authority.turn(at(3619)).unwrap());
        assert!(authority.turn(at(3621)).unwrap());
        assert_eq!((count(&authority), &authority.generations.present.certificate), (2, &first));
        // Nobody has published it: it waits, over a restart too.
        let mut authority = load(folder.path(), 3625);
        assert!(!authority.turn(at(3625)).unwrap());
        authority.is_published(at(3625)).unwrap();
        let mut authority = load(folder.path(), 3625);
        authority.is_published(at(3626)).unwrap();
        assert!(authority.turn(at(3626)).unwrap(), "a day after it was first published");
        assert_ne!(authority.generations.present.certificate, first);
        assert_eq!(count(&authority), 2);
        assert!(!authority.turn(at(3632)).unwrap());
        assert!(authority.turn(at(3633)).unwrap());
        assert_eq!(count(&authority), 1);
        assert!(!authority.bundle().contains(&first));
    }

    #[test]
    fn an_authority_that_is_over_is_replaced_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = load(folder.path(), 0).bundle();
        let mut authority = load(folder.path(), 4000);
        assert!(authority.turn(at(4000)).unwrap());
        assert_ne!(authority.generations.present.certificate, first);
        assert!(authority.generations.next.is_none());
    }
}
