//! Who is it that shows this token, and may it speak to us?
//!
//! Agents show the token that Kubernetes projects into their pod for our own audience. This file reads what such a
//! token claims and holds it against what is expected; who vouches for the claims is asked in `token_review.rs` (the
//! API server) and `jwks.rs` (its keys).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evidence::WallTime;
use serde::{Deserialize, Deserializer};

/// Whose tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The audience for which they must be made.
    pub audience: String,
    /// The namespace of the service accounts.
    pub namespace: String,
    /// The service accounts: any of these.
    pub service_accounts: Vec<String>,
}

/// Whom a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node on which the pod runs: what the sender may speak of.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The pod.
    pub pod: String,
    /// Its uid: another pod of the same name has another.
    pub pod_uid: String,
    /// The token is worth nothing from then on.
    pub expires: WallTime,
    /// Whether the API server itself vouched for it. Its keys alone don't see a pod that was deleted.
    pub reviewed: bool,
}

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The sender: no token of Kubernetes.
    #[error("it is no service account token of a pod: {0}")]
    Malformed(String),
    /// The sender: too late.
    #[error("the token has expired")]
    Expired,
    /// The sender: too early, or our clock is wrong.
    #[error("the token is not valid yet: is this node's clock right?")]
    NotYet,
    /// The sender: made for somebody else.
    #[error("the token is made for {found:?}, not for us")]
    Audience {
        /// For whom.
        found: Vec<String>,
    },
    /// The sender: somebody else.
    #[error("{found:?} is none of the service accounts that may report")]
    Account {
        /// Who.
        found: String,
    },
    /// The sender: forged, or of another cluster.
    #[error("the token's signature is wrong, or its issuer is another cluster's")]
    Forged,
    /// The sender: the API server doesn't vouch for it.
    #[error("the API server refuses the token: {why}")]
    Refused {
        /// Its words.
        why: String,
    },
    /// The sender: not bound to what it must be bound to.
    #[error("the token is bound to no {to}")]
    Unbound {
        /// "pod" or "node".
        to: &'static str,
    },
    /// The operator: the correlator may not ask.
    #[error("tokens can't be reviewed: {missing}")]
    Unable {
        /// What is missing.
        missing: String,
    },
    /// Nobody: the API server is away, and its keys don't help.
    #[error("the token can't be checked now: {why}")]
    Unchecked {
        /// Why.
        why: String,
    },
}

impl Refusal {
    /// A counter's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Expired => "expired",
            Self::NotYet => "not-yet",
            Self::Audience { .. } => "audience",
            Self::Account { .. } => "account",
            Self::Forged => "forged",
            Self::Refused { .. } => "refused",
            Self::Unbound { .. } => "unbound",
            Self::Unable { .. } => "unable",
            Self::Unchecked { .. } => "unchecked",
        }
    }
}

/// A token taken apart. Nobody has vouched for what it claims.
#[derive(Debug)]
pub(super) struct Token {
    /// The signature's algorithm, "RS256" or "ES256".
    pub algorithm: String,
    /// The signing key's id.
    pub key: Option<String>,
    /// What it claims.
    pub claims: Claims,
    /// What is signed.
    pub signed: String,
    /// The signature.
    pub signature: Vec<u8>,
}

/// What a token claims (RFC 7519, and Kubernetes' own).
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    #[serde(rename = "iss")]
    pub issuer: String,
    #[serde(rename = "sub")]
    pub subject: String,
    #[serde(rename = "aud", deserialize_with = "one_or_many")]
    pub audiences: Vec<String>,
    /// Seconds since 1970.
    exp: i64,
    nbf: Option<i64>,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
}

/// To what Kubernetes has bound a token.
#[derive(Debug, Deserialize)]
pub(super) struct Bound {
    pub pod: Option<Object>,
    /// From Kubernetes 1.30 on.
    pub node: Option<Object>,
}

/// An object by name and uid.
#[derive(Debug, Deserialize)]
pub(super) struct Object {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

impl Token {
    /// Takes a token apart.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::Malformed(what.to_owned());
        if text.len() > LONGEST {
            return Err(malformed("too long"));
        }
        let (signed, signature) = text.rsplit_once('.').ok_or_else(|| malformed("no JWT"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| malformed("no JWT"))?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("no base64"));
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: Option<String>,
        }
        let json = |error: serde_json::Error| Refusal::Malformed(error.to_string());
        let header: Header = serde_json::from_slice(&bytes(header)?).map_err(json)?;
        let claims = serde_json::from_slice(&bytes(claims)?).map_err(json)?;
        let signature = bytes(signature)?;
        Ok(Self { algorithm: header.alg, key: header.kid, claims, signed: signed.to_owned(), signature })
    }
}

impl Claims {
    /// When it ends.
    pub(super) fn expires(&self) -> WallTime {
        WallTime(self.exp.saturating_mul(1_000_000_000))
    }

    /// Whether it is for us, of one of ours, and of this time.
    pub(super) fn check(&self, expected: &Expected, now: WallTime) -> Result<(), Refusal> {
        if self.expires() <= now {
            return Err(Refusal::Expired);
        }
        if self.nbf.is_some_and(|nbf| nbf.saturating_sub(CLOCKS_DIFFER).saturating_mul(1_000_000_000) > now.0)
        {
            return Err(Refusal::NotYet);
        }
        expected.audience(&self.audiences)?;
        expected.account(&self.subject).map(drop)
    }
}

impl Expected {
    /// Whether ours is among the audiences.
    pub(super) fn audience(&self, found: &[String]) -> Result<(), Refusal> {
        if found.contains(&self.audience) {
            Ok(())
        } else {
            // It is a stranger's list.
            Err(Refusal::Audience { found: found.iter().take(4).cloned().collect() })
        }
    }

    /// The service account that is meant by "system:serviceaccount:NAMESPACE:NAME", if it is one of ours.
    pub(super) fn account<'a>(&self, user: &'a str) -> Result<&'a str, Refusal> {
        user.strip_prefix("system:serviceaccount:")
            .and_then(|rest| rest.split_once(':'))
            .filter(|(namespace, name)| {
                *namespace == self.namespace && self.service_accounts.iter().any(|known| known == name)
            })
            .map(|(_, name)| name)
            .ok_or_else(|| Refusal::Account { found: user.to_owned() })
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// Kubernetes' tokens have about 1,200 bytes.
const LONGEST: usize = 16 * 1024;
/// Seconds.
const CLOCKS_DIFFER: i64 = 10;
