//! Whose token is it? What the server asks of whoever knows: in a cluster the API server, elsewhere a file.

use std::future::Future;
use std::pin::Pin;

use evidence::{Role, WallTime};

/// Tells whose a token is.
pub trait Reviewer: Send + Sync {
    /// Looks at one token. The caller remembers the answer and bounds the time and the number of reviews.
    fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a>;
}

/// A review under way.
pub type Reviewing<'a> = Pin<Box<dyn Future<Output = Result<Identity, Refused>> + Send + 'a>>;

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node that the sender's pod runs on: it may report of this one alone.
    pub node: String,
    /// The part that it is, by its service account.
    pub role: Role,
    /// Its pod, for the log.
    pub pod_uid: String,
    /// When the token ends (the `exp` of its claims).
    pub expires: WallTime,
}

/// Why a token gives no identity. The texts go into the log, never to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is nobody's: not of this cluster, ended, revoked, for another audience.
    #[error("the token is refused: {0}")]
    Nobody(String),
    /// It is somebody's who may not report: another service account, no pod, no node.
    #[error("the token's owner may not report: {0}")]
    NotAllowed(String),
    /// Nobody could be asked. An identity that was reviewed before stays good until it expires.
    #[error("the token can't be reviewed: {0}")]
    Unavailable(String),
}
