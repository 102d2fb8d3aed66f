//! Is a token one that this cluster signed, while its API server can't be asked?
//!
//! The API server's public keys and issuer are kept from when it was there. A signature shows who made a token and for
//! whom; that the pod was deleted since, it does not show. The signatures are checked by ring itself: the JWT crates
//! now bring another library of cryptography each.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evidence::WallTime;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connect::ApiServer;
use super::token::{Expected, Identity, Refusal, Token};

/// The keys with which service account tokens are signed, and their issuer.
#[derive(Debug, Clone)]
pub struct Keys {
    published: Published,
    keys: Vec<(Option<String>, Key)>,
}

/// Them as the API server publishes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    issuer: String,
    keys: Vec<Jwk>,
}

/// A public key (RFC 7518, section 6).
#[derive(Debug, Clone)]
enum Key {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Jwk {
    kid: Option<String>,
    kty: String,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// Reads them from the API server. Every service account may, by the role
    /// system:service-account-issuer-discovery.
    pub async fn fetch(api: &ApiServer) -> Result<Self, Box<kube::Error>> {
        let Discovery { issuer } = get(api, "/.well-known/openid-configuration").await?;
        let Jwks { keys } = get(api, "/openid/v1/jwks").await?;
        Ok(Self::new(Published { issuer, keys }))
    }

    /// As they were published.
    pub fn new(mut published: Published) -> Self {
        published.keys.truncate(MOST);
        let keys = published.keys.iter().filter_map(|jwk| Some((jwk.kid.clone(), jwk.key()?))).collect();
        Self { published, keys }
    }

    /// To be kept.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// Whom the token stands for, by its signature alone.
    pub fn identify(&self, expected: &Expected, token: &str, now: WallTime) -> Result<Identity, Refusal> {
        let token = Token::parse(token)?;
        self.verify(&token)?;
        token.claims.check(expected, now)?;
        let service_account = expected.account(&token.claims.subject)?.to_owned();
        let expires = token.claims.expires();
        let pod = token.claims.bound.pod.ok_or(Refusal::Unbound { to: "pod" })?;
        let node = token.claims.bound.node.ok_or(Refusal::Unbound { to: "node" })?;
        Ok(Identity {
            node: node.name,
            namespace: expected.namespace.clone(),
            service_account,
            pod: pod.name,
            pod_uid: pod.uid,
            expires,
            reviewed: false,
        })
    }

    /// Whether one of the keys signed it. [`Refusal::Unchecked`] where its key or algorithm is not known here.
    pub(super) fn verify(&self, token: &Token) -> Result<(), Refusal> {
        if token.claims.issuer != self.published.issuer {
            return Err(Refusal::Forged);
        }
        let key = self.keys.iter().find(|(id, _)| *id == token.key).map(|(_, key)| key);
        let unknown = |what: &str| Refusal::Unchecked { why: format!("its {what} is not known here") };
        let key = key.ok_or_else(|| unknown("signing key"))?;
        let (message, signature) = (token.signed.as_bytes(), token.signature.as_slice());
        // The key decides which algorithm it may be, not the token.
        let verified = match (key, token.algorithm.as_str()) {
            (Key::Rsa { modulus, exponent }, "RS256") => RsaPublicKeyComponents { n: modulus, e: exponent }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            (Key::P256(point), "ES256") => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Key::P384(point), "ES384") => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Key::Rsa { .. } | Key::P256(_) | Key::P384(_), _) => return Err(Refusal::Forged),
        };
        verified.map_err(|_| Refusal::Forged)
    }
}

impl Jwk {
    /// None for a kind that is not known here.
    fn key(&self) -> Option<Key> {
        let bytes = |part: &Option<String>| URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
        let point = || Some([vec![4], bytes(&self.x)?, bytes(&self.y)?].concat());
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Some(Key::Rsa { modulus: bytes(&self.n)?, exponent: bytes(&self.e)? }),
            ("EC", Some("P-256")) => Some(Key::P256(point()?)),
            ("EC", Some("P-384")) => Some(Key::P384(point()?)),
            _ => None,
        }
    }
}

async fn get<T: DeserializeOwned>(api: &ApiServer, path: &'static str) -> Result<T, Box<kube::Error>> {
    let mut request = http::Request::new(Vec::new());
    *request.uri_mut() = http::Uri::from_static(path);
    api.client.request(request).await.map_err(Box::new)
}

/// A cluster has one or two.
const MOST: usize = 32;

#[cfg(test)]
mod tests;
