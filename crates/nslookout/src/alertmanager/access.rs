//! What proves to an Alertmanager who asks, and to us who answers?
//!
//! Authority, token and password are files that others replace while this runs: they are read for each push. They are
//! small, and a push comes a few times a minute.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coredns_watch::http::{Connection, Tls};
use hyper::header::HeaderValue;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::config::{AlertmanagersConfig, BasicAuthConfig};
use super::target::{Scheme, Target};

/// The credentials of one connection.
#[derive(Debug)]
pub struct Access {
    authority: Option<PathBuf>,
    name: Option<ServerName<'static>>,
    bearer_token: Option<PathBuf>,
    basic_auth: Option<BasicAuthConfig>,
    /// The authority that the connection goes by.
    in_use: Option<Vec<u8>>,
}

/// What the operator has to mend.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A file that can't be read.
    #[error("{key}: {path}: {source}")]
    File {
        /// Where it is named.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No authority is named, or none is in the file.
    #[error("alertmanagers.ca: {0}")]
    Authority(String),
    /// What stands in a file can't be sent.
    #[error("{key}: what is in {path} can't be sent in a header")]
    Header {
        /// Where it is named.
        key: &'static str,
        /// Which.
        path: PathBuf,
    },
}

impl Access {
    /// Reads nothing yet.
    pub fn new(config: &AlertmanagersConfig, target: &Target) -> Self {
        let named = || match &config.server_name {
            Some(name) => ServerName::try_from(name.clone()).ok(),
            None => Some(ServerName::IpAddress(target.address.ip().into())),
        };
        Self {
            authority: config.ca.clone(),
            name: if target.scheme == Scheme::Https { named() } else { None },
            bearer_token: config.bearer_token_file.clone(),
            basic_auth: config.basic_auth.clone(),
            in_use: None,
        }
    }

    /// Gives the connection what the files hold now. Another authority ends the connection that went by the old one.
    pub fn arm(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        if let Some(name) = &self.name {
            let Some(path) = &self.authority else {
                return Err(Trouble::Authority("is not set, and https needs one".into()));
            };
            let pem = read("alertmanagers.ca", path)?;
            if self.in_use.as_ref() != Some(&pem) {
                let connector = TlsConnector::from(Arc::new(trusting(&pem, path)?));
                connection.set_tls(Some(Tls { connector, name: name.clone() }));
                self.in_use = Some(pem);
            }
        }
        connection.set_authorization(self.header()?);
        Ok(())
    }

    fn header(&self) -> Result<Option<HeaderValue>, Trouble> {
        let (key, path, text) = if let Some(path) = &self.bearer_token {
            let key = "alertmanagers.bearerTokenFile";
            let token = read(key, path)?;
            (key, path, [b"Bearer ", token.trim_ascii()].concat())
        } else if let Some(BasicAuthConfig { username, password_file: path }) = &self.basic_auth {
            let key = "alertmanagers.basicAuth.passwordFile";
            let password = read(key, path)?;
            // As editors and `echo` leave a file: the end of its line is not the password's.
            let password = password.trim_ascii_end();
            let pair = BASE64_STANDARD.encode([username.as_bytes(), b":", password].concat());
            (key, path, format!("Basic {pair}").into_bytes())
        } else {
            return Ok(None);
        };
        let mut header =
            HeaderValue::from_bytes(&text).map_err(|_| Trouble::Header { key, path: path.clone() })?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Trouble> {
    fs::read(path).map_err(|source| Trouble::File { key, path: path.to_owned(), source })
}

fn trusting(pem: &[u8], path: &Path) -> Result<ClientConfig, Trouble> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(Trouble::Authority(format!("{} has no certificate", path.display())));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Trouble::Authority(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use coredns_watch::http::Limits;
    use netns::Namespace;

    fn armed(config: &AlertmanagersConfig) -> Result<Option<HeaderValue>, Trouble> {
        let target = Target::parse("https://127.0.0.1:9").unwrap();
        let limits = Limits { timeout: Duration::from_secs(1), body_bytes: 1 };
        let mut connection = Connection::new(Namespace::current().unwrap(), target.address, limits);
        let mut access = Access::new(config, &target);
        access.arm(&mut connection)?;
        access.header()
    }

    #[test]
    fn a_file_that_is_missing_or_empty_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let mut config = AlertmanagersConfig { ca: path("ca"), ..AlertmanagersConfig::default() };
        assert!(armed(&config).unwrap_err().to_string().starts_with("alertmanagers.ca: /"));
        fs::write(folder.path().join("ca"), "no PEM").unwrap();
        assert!(armed(&config).unwrap_err().to_string().ends_with("has no certificate"));
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        fs::write(folder.path().join("ca"), ca.pem()).unwrap();
        assert_eq!(armed(&config).unwrap(), None);

        config.bearer_token_file = path("token");
        assert!(armed(&config).unwrap_err().to_string().starts_with("alertmanagers.bearerTokenFile: /"));
        fs::write(folder.path().join("token"), "abc\n").unwrap();
        assert_eq!(armed(&config).unwrap().unwrap(), "Bearer abc");
        fs::write(folder.path().join("token"), "a\nb").unwrap();
        assert!(matches!(armed(&config), Err(Trouble::Header { .. })));
    }

    #[test]
    fn user_and_password_are_sent_as_the_rfc_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let password_file = folder.path().join("password");
        fs::write(&password_file, "open sesame\n").unwrap();
        let auth = BasicAuthConfig { username: "Aladdin".into(), password_file };
        let config = AlertmanagersConfig { basic_auth: Some(auth), ..AlertmanagersConfig::default() };
        let access = Access::new(&config, &Target::parse("http://127.0.0.1:9").unwrap());
        // The example of RFC 7617.
        assert_eq!(access.header().unwrap().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
