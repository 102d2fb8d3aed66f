//! Who shows this token, though the API server may be away?
//!
//! The API server is asked. While it gives no answer its cached keys vouch for the token, and the identity says so. A
//! token that the keys show to be forged is not worth a question. What is known already is remembered by the caller.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use evidence::WallTime;
use tokio::time::{Instant, sleep, timeout};

use super::connect::ApiServer;
use super::jwks::{Keys, Published};
use super::token::{Expected, Identity, Refusal, Token};
use super::token_review::review;
use super::trouble;
use crate::store::KeptFile;

/// Judges the tokens that senders show.
pub struct Reviewer {
    api: ApiServer,
    expected: Expected,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<Keys>>,
    /// The API server gave no answer: nobody waits for it until then.
    away_until: Option<Instant>,
}

impl Reviewer {
    /// Judges by this API server, whose keys are fetched now and then as long as the reviewer is used; until the first
    /// time by those in the file.
    pub fn start(api: ApiServer, expected: Expected, file: Option<KeptFile>) -> Arc<Self> {
        let kept = file.as_ref().and_then(KeptFile::read::<Published>);
        let kept = kept.filter(|kept| WallTime::now().since(kept.saved) < KEPT);
        let keys = kept.map(|kept| Arc::new(Keys::new(kept.content)));
        let state = State { keys, ..State::default() };
        let this = Arc::new(Self { api, expected, state: Mutex::new(state) });
        tokio::spawn(keep_keys(Arc::downgrade(&this), file));
        this
    }

    /// Whether the keys are known: without them nobody new is known while the API server is away.
    pub fn has_keys(&self) -> bool {
        self.state().keys.is_some()
    }

    /// Whom the token stands for. Takes 5 s at most.
    pub async fn identify(&self, token: &str) -> Result<Identity, Refusal> {
        let parsed = Token::parse(token)?;
        parsed.claims.check(&self.expected, WallTime::now())?;
        let (keys, away) = {
            let state = self.state();
            (state.keys.clone(), state.away_until.is_some_and(|until| Instant::now() < until))
        };
        // A key that is not known here may be a new one: the API server will know it.
        if let Some(Err(refusal @ Refusal::Forged)) = keys.as_ref().map(|keys| keys.verify(&parsed)) {
            return Err(refusal);
        }
        let why = if away {
            "the API server does not answer".to_owned()
        } else {
            let late = || Refusal::Unchecked { why: "the API server did not answer in time".to_owned() };
            let asked = timeout(LONGEST, review(&self.api, &self.expected, token));
            let answer = asked.await.unwrap_or_else(|_| Err(late()));
            let unanswered = matches!(answer, Err(Refusal::Unchecked { .. }));
            self.state().away_until = unanswered.then(|| Instant::now() + ASK_AGAIN);
            match answer {
                Err(Refusal::Unchecked { why }) => why,
                answer => return answer,
            }
        };
        match keys {
            Some(keys) => keys.identify(&self.expected, token, WallTime::now()),
            None => Err(Refusal::Unchecked { why: format!("{why}, and its keys are not known") }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is whole: one that panicked elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with the reviewer.
async fn keep_keys(reviewer: Weak<Reviewer>, file: Option<KeptFile>) {
    let mut told = false;
    loop {
        let Some(this) = reviewer.upgrade() else { return };
        let why = match timeout(FETCH, Keys::fetch(&this.api)).await {
            Ok(Ok(keys)) => {
                // A few KB, every ten minutes: their age says when they were last right.
                if let Some(Err(error)) =
                    file.as_ref().map(|file| file.write(keys.published(), WallTime::now()))
                {
                    tracing::debug!("store.path: the keys of service account tokens are not kept: {error}");
                }
                this.state().keys = Some(Arc::new(keys));
                None
            }
            Ok(Err(error)) => Some(trouble::root(&error)),
            Err(_) => Some("no answer in time".to_owned()),
        };
        // Old keys stay; only without any is something missing.
        if let Some(why) = &why
            && !this.has_keys()
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(
                "the keys of service account tokens can't be read ({why}): while the API server is away no new agent \
                 is known"
            );
        }
        drop(this);
        sleep(if why.is_none() { FETCH_AGAIN } else { RETRY }).await;
    }
}

/// For all questions that a token needs; below 5 s, which a sender is made to wait.
const LONGEST: Duration = Duration::from_millis(4500);
/// So long all go by the keys once the API server did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Keys are changed by hand, and the old ones stay as long as there are tokens.
const FETCH_AGAIN: Duration = Duration::from_secs(600);
/// Keys that were not seen for so long vouch for nobody.
const KEPT: Duration = Duration::from_secs(24 * 3600);
const RETRY: Duration = Duration::from_secs(10);
const FETCH: Duration = Duration::from_secs(5);
