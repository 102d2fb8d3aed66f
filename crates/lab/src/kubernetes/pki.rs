//! Who is who in the cluster: which certificates and kubeconfigs do its parts have?
//!
//! One authority signs them all, for servers and clients alike. The subject is what Kubernetes goes by: the common
//! name is the user, the organization is the group.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde_json::json;

use crate::Error;

/// The cluster's authority, and the folder into which it writes.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// To whom a certificate is given.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// The user: "system:node:node-a".
    pub user: String,
    /// The group: "system:nodes".
    pub group: Option<&'static str>,
    /// Names and addresses under which it serves.
    pub serves: Vec<String>,
}

/// Files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes the authority in a new folder: ca.crt and ca.key.
    pub fn create(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
        let key = KeyPair::generate().map_err(failed("make the authority's key"))?;
        let mut params = params("nslookout-lab", Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed("sign the authority"))?;
        write(&folder.join("ca.crt"), &certificate.pem())?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate.
    pub fn pair(&self) -> Pair {
        Pair { certificate: self.folder.join("ca.crt"), key: self.folder.join("ca.key") }
    }

    /// A certificate for this subject, in NAME.crt and NAME.key.
    pub fn issue(&self, name: &str, subject: &Subject) -> Result<Pair, Error> {
        let what = || format!("make the certificate of {name}");
        let key = KeyPair::generate().map_err(failed(what()))?;
        let mut params = params(&subject.user, subject.serves.clone())?;
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.serves.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed(what()))?;
        let pair = self.files(name);
        write(&pair.certificate, &certificate.pem())?;
        write(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }

    /// A kubeconfig with a certificate of its own, in NAME.kubeconfig.
    pub fn kubeconfig(&self, name: &str, subject: &Subject, server: &str) -> Result<PathBuf, Error> {
        let pair = self.issue(name, subject)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "lab",
                "cluster": { "server": server, "certificate-authority": self.pair().certificate },
            }],
            "users": [{
                "name": name,
                "user": { "client-certificate": pair.certificate, "client-key": pair.key },
            }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": name } }],
            "current-context": "lab",
        });
        let path = self.folder.join(format!("{name}.kubeconfig"));
        write(&path, &config.to_string())?;
        Ok(path)
    }

    /// A key alone, with which tokens are signed.
    pub fn signing_key(&self, name: &str) -> Result<Pair, Error> {
        let key = KeyPair::generate().map_err(failed("make the key for tokens"))?;
        let pair = Pair {
            certificate: self.folder.join(format!("{name}.pub")),
            key: self.folder.join(format!("{name}.key")),
        };
        write(&pair.certificate, &key.public_key_pem())?;
        write(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }

    fn files(&self, name: &str) -> Pair {
        Pair {
            certificate: self.folder.join(format!("{name}.crt")),
            key: self.folder.join(format!("{name}.key")),
        }
    }
}

fn params(user: &str, serves: Vec<String>) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(serves).map_err(failed(format!("name {user}")))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.use_authority_key_identifier_extension = true;
    params.not_before = date_time_ymd(2020, 1, 1);
    // Go's durations end after 292 years, so no end of time here.
    params.not_after = date_time_ymd(2099, 1, 1);
    Ok(params)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::file("write", path))
}

fn failed(what: impl Into<String>) -> impl FnOnce(rcgen::Error) -> Error {
    let what = what.into();
    move |error| Error::system(what)(std::io::Error::other(error))
}
