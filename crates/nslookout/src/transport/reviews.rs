//! Which tokens are known already? A review may ask another machine, so its result is kept: an identity until its
//! token expires, a refusal for a moment, so that a stranger who tries again and again costs nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use evidence::WallTime;
use prometheus::IntCounter;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::refusal::{Reason, Refusal};
use super::reviewer::{Identity, Refused, Reviewer};

/// Reviews, with what is known.
pub struct Reviews {
    reviewer: Arc<dyn Reviewer>,
    /// By the token's hash: the token itself is not kept.
    known: Mutex<HashMap<[u8; 32], Known>>,
    room: Semaphore,
    made: IntCounter,
}

#[derive(Debug, Clone)]
struct Known {
    result: Result<Identity, Refused>,
    /// When to ask again.
    until: Instant,
}

impl Reviews {
    /// None made yet.
    pub fn new(reviewer: Arc<dyn Reviewer>, made: IntCounter) -> Self {
        Self { reviewer, known: Mutex::default(), room: Semaphore::new(AT_ONCE), made }
    }

    /// Whose token it is at that time.
    pub async fn identity(&self, token: &str, now: WallTime) -> Result<Identity, Refusal> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let known = self.known().get(&hash).cloned();
        let result = match known {
            Some(known) if known.until > Instant::now() => known.result,
            Some(known) => self.review(hash, token, known.result.ok().filter(|id| id.expires > now)).await,
            None => self.review(hash, token, None).await,
        };
        match result {
            Ok(identity) if identity.expires > now => Ok(identity),
            Ok(identity) => {
                let since = now.since(identity.expires).as_secs();
                let who = format!("token of {:?} on {:?}, {since} s ago", identity.role, identity.node);
                Err(Refusal::new(Reason::Expired, who))
            }
            Err(error) => {
                let reason = match error {
                    Refused::Nobody(_) => Reason::Token,
                    Refused::NotAllowed(_) => Reason::NotAllowed,
                    Refused::Unavailable(_) => Reason::Unreviewed,
                };
                Err(Refusal::new(reason, error))
            }
        }
    }

    /// Asks. While nobody can be asked, the identity that was known before stays.
    async fn review(
        &self,
        hash: [u8; 32],
        token: &str,
        before: Option<Identity>,
    ) -> Result<Identity, Refused> {
        self.made.inc();
        let asked = timeout(LONGEST, async {
            let _permit = self.room.acquire().await.ok();
            self.reviewer.review(token).await
        });
        let result = asked.await.unwrap_or_else(|_| Err(Refused::Unavailable("no answer in time".into())));
        let (result, keep) = match (result, before) {
            (Err(Refused::Unavailable(_)), Some(before)) => (Ok(before), RETRY),
            (Ok(identity), _) => (Ok(identity), REVIEWED_AGAIN),
            // To be asked again at once: it may be back.
            (Err(Refused::Unavailable(why)), None) => return Err(Refused::Unavailable(why)),
            (Err(refused), _) => (Err(refused), RETRY),
        };
        let mut known = self.known();
        if known.len() >= MOST_KNOWN {
            let now = Instant::now();
            known.retain(|_, known| known.until > now && known.result.is_ok());
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
        }
        known.insert(hash, Known { result: result.clone(), until: Instant::now() + keep });
        result
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").finish_non_exhaustive()
    }
}

/// A deleted pod's token is revoked: that is seen within this time.
const REVIEWED_AGAIN: Duration = Duration::from_secs(300);
/// A refused token may be good soon, and an API server back.
const RETRY: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(5);
/// Reviews under way: an API server is not to be flooded by a whole cluster that starts.
const AT_ONCE: usize = 16;
/// Two parts of the largest cluster's nodes, each with its last two tokens.
const MOST_KNOWN: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use evidence::Role;

    use super::*;
    use crate::transport::reviewer::Reviewing;

    #[derive(Default)]
    struct Door {
        away: AtomicBool,
    }

    impl Reviewer for Door {
        fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a> {
            Box::pin(async move {
                if self.away.load(Ordering::Relaxed) {
                    return Err(Refused::Unavailable("away".into()));
                }
                match token.strip_prefix("until ").and_then(|until| until.parse().ok()) {
                    Some(until) => Ok(Identity {
                        node: "a".into(),
                        role: Role::Node,
                        pod_uid: String::new(),
                        expires: WallTime(until),
                    }),
                    None => Err(Refused::Nobody("unknown".into())),
                }
            })
        }
    }

    #[tokio::test]
    async fn a_token_is_reviewed_once_and_ends_when_it_expires() {
        let made = IntCounter::new("made", "made").unwrap();
        let door = Arc::new(Door::default());
        let reviews = Reviews::new(door.clone(), made.clone());
        for _ in 0..3 {
            assert!(reviews.identity("until 100", WallTime(99)).await.is_ok());
            let refused = reviews.identity("nonsense", WallTime(99)).await.unwrap_err();
            assert_eq!(refused.reason, Reason::Token);
        }
        assert_eq!(made.get(), 2);
        let refused = reviews.identity("until 100", WallTime(100)).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Expired);

        door.away.store(true, Ordering::Relaxed);
        assert!(reviews.identity("until 100", WallTime(99)).await.is_ok(), "known ones stay good");
        let refused = reviews.identity("until 200", WallTime(99)).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Unreviewed);
    }
}
