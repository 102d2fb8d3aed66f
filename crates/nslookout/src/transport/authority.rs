//! Who vouches for the correlator? It is its own certificate authority: agents trust this one authority and no other.
//!
//! The authority's key and certificate live in a folder, or in memory alone. The server's certificate lives in memory:
//! it is made anew at each start and each day, so it never runs out.

use std::fs;
use std::io::{self, Write};
use std::ops::Add;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

/// Why there is no authority.
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
    /// Mended by the operator: the name, or a key that is damaged.
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

/// A certificate authority and the name that it vouches for.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as PEM: what agents trust.
    pub certificate: String,
    name: String,
}

impl Authority {
    /// Takes the authority out of the folder, or makes one there; without a folder it lives as long as the process.
    pub fn load(folder: Option<&Path>, name: &str) -> Result<Self, Error> {
        let Some(folder) = folder else { return Self::of_key(generate(name)?, None, name) };
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { path, source }
        };
        let (key, certificate) = (folder.join("ca.key"), folder.join("ca.crt"));
        match fs::read_to_string(&key) {
            Ok(pem) => {
                let pair = KeyPair::from_pem(&pem)
                    .map_err(|source| Error::Certificate { name: name.to_owned(), source })?;
                let present = fs::read_to_string(&certificate).ok();
                let authority = Self::of_key(pair, present, name)?;
                write(&certificate, &authority.certificate, 0o644).map_err(file(&certificate))?;
                Ok(authority)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder).map_err(file(folder))?;
                let pair = generate(name)?;
                write(&key, &pair.serialize_pem(), 0o600).map_err(file(&key))?;
                let authority = Self::of_key(pair, None, name)?;
                write(&certificate, &authority.certificate, 0o644).map_err(file(&certificate))?;
                Ok(authority)
            }
            Err(source) => Err(file(&key)(source)),
        }
    }

    fn of_key(pair: KeyPair, certificate: Option<String>, name: &str) -> Result<Self, Error> {
        let failed = |source| Error::Certificate { name: name.to_owned(), source };
        let params = authority_params();
        let certificate = match certificate {
            Some(pem) => pem,
            None => params.self_signed(&pair).map_err(failed)?.pem(),
        };
        Ok(Self { issuer: Issuer::new(params, pair), certificate, name: name.to_owned() })
    }

    /// Writes the authority's certificate where agents, or those who bring it to them, read it.
    pub fn publish(&self, path: &Path) -> Result<(), Error> {
        write(path, &self.certificate, 0o644).map_err(|source| Error::File { path: path.to_owned(), source })
    }

    /// A certificate for the server, made now.
    fn server_certificate(&self, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
        let failed = |source| Error::Certificate { name: self.name.clone(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![self.name.clone()]).map_err(failed)?;
        (params.not_before, params.not_after) = validity(SERVER_LASTS);
        params.distinguished_name = distinguished(&self.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(CertifiedKey::from_der(vec![certificate.der().clone()], key, provider)?)
    }

    /// The server's side of TLS, and a task that renews its certificate for as long as it is used.
    pub fn server_config(self) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(ring::default_provider());
        let first = self.server_certificate(&provider)?;
        let present = Arc::new(Present(RwLock::new(Arc::new(first))));
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(present.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        let weak = Arc::downgrade(&present);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWED).await;
                let Some(present) = weak.upgrade() else { return };
                match self.server_certificate(&provider) {
                    Ok(next) => {
                        *present.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
                    }
                    Err(error) => tracing::error!("the certificate stays as it is: {error}"),
                }
            }
        });
        Ok(Arc::new(config))
    }
}

/// The server's present certificate.
#[derive(Debug)]
struct Present(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Present {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn generate(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(|source| Error::Certificate { name: name.to_owned(), source })
}

/// The same at each start: a certificate of this subject and key is the authority's.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = validity(AUTHORITY_LASTS);
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

/// From a day ago, for nodes whose clock is behind. (rcgen names the type, but does not export it.)
fn validity<T: From<SystemTime> + Add<Duration, Output = T>>(lasts: Duration) -> (T, T) {
    let now = SystemTime::now();
    let yesterday = now.checked_sub(DAY).unwrap_or(now);
    (yesterday.into(), T::from(now) + lasts)
}

/// Whole or not at all, and never readable by others in between.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    drop(fs::remove_file(&beside));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Ten years.
const AUTHORITY_LASTS: Duration = Duration::from_secs(3650 * 24 * 3600);
/// It is renewed each day; this is for a correlator whose clock is wrong.
const SERVER_LASTS: Duration = Duration::from_secs(90 * 24 * 3600);
const RENEWED: Duration = DAY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_in_a_folder_is_the_same_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let first = Authority::load(Some(&keys), "correlator").unwrap();
        let again = Authority::load(Some(&keys), "correlator").unwrap();
        assert_eq!(first.certificate, again.certificate);
        let mode = fs::metadata(keys.join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(Authority::load(None, "correlator").unwrap().certificate, first.certificate);
    }

    #[test]
    fn a_damaged_key_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.key"), "no key").unwrap();
        let error = Authority::load(Some(folder.path()), "correlator").unwrap_err();
        assert!(matches!(error, Error::Certificate { .. }), "{error}");
        assert!(Authority::load(Some(Path::new("/proc/none")), "correlator").is_err());
    }
}
