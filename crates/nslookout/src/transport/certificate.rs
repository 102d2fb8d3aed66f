//! By which certificate does the correlator show itself, now?
//!
//! By one of its own authority, made anew each day; or by one that somebody else makes and replaces in a file,
//! cert-manager for one. Either is replaced while connections go on: each handshake takes the present one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

use super::authority::{Authority, Error};

/// The server's present certificate.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<Present>);

#[derive(Debug)]
struct Present {
    provider: Arc<CryptoProvider>,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// The first one, by an authority.
    pub fn of(authority: &Authority, now: SystemTime) -> Result<Self, Error> {
        let provider = ring::default_provider();
        let key = authority.server_certificate(&provider, now)?;
        Ok(Self::new(provider, key))
    }

    /// The first one, from files.
    pub fn from_files(files: &Files, name: &str) -> Result<Self, FileError> {
        let provider = ring::default_provider();
        let key = files.read(name, &provider)?;
        Ok(Self::new(provider, key))
    }

    fn new(provider: CryptoProvider, key: CertifiedKey) -> Self {
        Self(Arc::new(Present { provider: Arc::new(provider), key: RwLock::new(Arc::new(key)) }))
    }

    /// From now on another one, by an authority.
    pub fn renew(&self, authority: &Authority, now: SystemTime) -> Result<(), Error> {
        self.set(authority.server_certificate(&self.0.provider, now)?);
        Ok(())
    }

    /// From now on what the files hold, if that is another one. True if it is.
    pub fn renew_from_files(&self, files: &Files, name: &str) -> Result<bool, FileError> {
        let key = files.read(name, &self.0.provider)?;
        let is_other = key.cert != self.0.present().cert;
        if is_other {
            self.set(key);
        }
        Ok(is_other)
    }

    fn set(&self, key: CertifiedKey) {
        *self.0.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }

    /// The server's side of TLS.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.0.provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.0.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Present {
    fn present(&self) -> Arc<CertifiedKey> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Present {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }
}

/// Where somebody else keeps the certificate.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate, and those between it and the authority; PEM.
    pub certificate: PathBuf,
    /// Its key; PEM.
    pub key: PathBuf,
}

/// Why files hold no certificate for us; mended by who makes them.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read, or is no PEM.
    #[error("{path}: {source}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// It is none for us.
    #[error("{path}: {source}")]
    Tls {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// It is for somebody else.
    #[error("{path}: it is not for {name:?}, the name that agents expect (correlator.name)")]
    Name {
        /// Which.
        path: PathBuf,
        /// The name that is missing.
        name: String,
    },
}

impl Files {
    fn read(&self, name: &str, provider: &CryptoProvider) -> Result<CertifiedKey, FileError> {
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |source| FileError::Pem { path, source }
        };
        let tls = |source| FileError::Tls { path: self.certificate.clone(), source };
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&self.certificate).map_err(pem(&self.certificate))?.collect();
        let chain = chain.map_err(pem(&self.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(pem(&self.key))?;
        let Some(first) = chain.first() else {
            return Err(tls(rustls::Error::NoCertificatesPresented));
        };
        let wrong = || FileError::Name { path: self.certificate.clone(), name: name.to_owned() };
        let expected = ServerName::try_from(name).map_err(|_| wrong())?;
        let parsed = ParsedCertificate::try_from(first).map_err(tls)?;
        verify_server_name(&parsed, &expected).map_err(|_| wrong())?;
        CertifiedKey::from_der(chain, key, provider).map_err(tls)
    }
}
