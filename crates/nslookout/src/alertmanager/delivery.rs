//! When is one Alertmanager told, and what if it doesn't answer?

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coredns_watch::http::{Answer, Ask, Connection, Error, Limits};
use evidence::WallTime;
use hyper::Method;
use netns::Namespace;
use rand::RngExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::access::{self, Access};
use super::board::Board;
use super::config::AlertmanagersConfig;
use super::letter::{Letter, Told};
use super::target::Target;
use super::{Alert, adopt};
use crate::metrics::{Metrics, SendResult};

/// One Alertmanager's task.
#[derive(Debug)]
pub struct Delivery {
    /// Opened before it is needed (the watchdog is pushed at the start) and kept: a full conntrack table lets no
    /// new one through.
    connection: Connection,
    access: Access,
    path: String,
    interval: Duration,
    lasting: Duration,
    board: watch::Receiver<Arc<Board>>,
    told: Arc<Mutex<Told>>,
    leave: oneshot::Receiver<()>,
    /// To be asked before anything is told.
    question: Option<Question>,
    metrics: Metrics,
    failing: Option<Failing>,
}

/// What has to be mended, as far as the log goes: it tells each once, not at each attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Access,
    Tls,
    Network,
    Refused(u16),
}

/// Why a push has no answer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// Mended by the operator.
    #[error(transparent)]
    Access(#[from] access::Trouble),
    /// The network, or the other side.
    #[error(transparent)]
    Http(#[from] Error),
}

/// What is it that an Alertmanager still holds?
#[derive(Debug)]
pub struct Question {
    /// The path that lists it.
    pub path: String,
    /// Where the answer goes.
    pub out: mpsc::Sender<Vec<Alert>>,
}

impl Delivery {
    /// A task to be run; it connects from this process' own network namespace. It ends once nobody sets alerts any more,
    /// or the other side of `leave` has gone.
    pub fn new(
        config: &AlertmanagersConfig,
        target: &Target,
        board: watch::Receiver<Arc<Board>>,
        told: Arc<Mutex<Told>>,
        leave: oneshot::Receiver<()>,
        question: Option<Question>,
        metrics: Metrics,
    ) -> Result<Self, netns::Error> {
        let limits = Limits { timeout: config.timeout, body_bytes: MAX_ANSWER_BYTES };
        Ok(Self {
            connection: Connection::new(Namespace::current()?, target.address, limits),
            access: Access::new(config, target),
            path: format!("{}/api/v2/alerts", target.prefix),
            interval: config.interval,
            lasting: config.lasting,
            board,
            told,
            leave,
            question,
            metrics,
            failing: None,
        })
    }

    /// Pushes until it is to end. A push that is under way ends first: what was taken must be known as told.
    pub async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let board = self.board.borrow_and_update().clone();
            let begin = Instant::now();
            let goes_on = if self.push(&board).await {
                backoff = FIRST_BACKOFF;
                self.rest(&board, begin).await
            } else {
                // Many correlators that lost one Alertmanager don't all come back in the same moment.
                let jitter = rand::rng().random_range(0.5..1.0);
                let wait = sleep(backoff.mul_f64(jitter));
                backoff = (backoff * 2).min(MAX_BACKOFF);
                tokio::select! {
                    () = wait => self.board.has_changed().is_ok(),
                    _ = &mut self.leave => false,
                }
            };
            if !goes_on {
                break;
            }
        }
        self.metrics.forget_alertmanager(&self.connection.address().to_string());
    }

    /// True if it was accepted.
    async fn push(&mut self, board: &Board) -> bool {
        if !self.ask_first().await {
            return false;
        }
        let letter = Letter::write(board, &self.told(), WallTime::now(), self.lasting);
        let ask = Ask {
            method: Method::POST,
            path: &self.path,
            accept: "application/json",
            body: Some((letter.json.clone().into(), "application/json")),
        };
        let outcome = exchange(&mut self.access, &mut self.connection, &ask).await;
        let result = match &outcome {
            Ok(answer) if (200..300).contains(&answer.status) => SendResult::Accepted,
            Ok(_) => SendResult::Refused,
            Err(_) => SendResult::Failed,
        };
        self.metrics.count_send(&self.connection.address().to_string(), result);
        self.log(&outcome, result);
        let accepted = result == SendResult::Accepted;
        if accepted {
            self.told().accept(letter, board);
        }
        accepted
    }

    /// Asks what it holds of an earlier process, until it has said so once. One that does not let itself be asked is told
    /// all the same.
    async fn ask_first(&mut self) -> bool {
        let Some(question) = &self.question else { return true };
        let ask = Ask { method: Method::GET, path: &question.path, accept: "application/json", body: None };
        let outcome = exchange(&mut self.access, &mut self.connection, &ask).await;
        let result = match &outcome {
            Err(_) => SendResult::Failed,
            // It will let itself be asked once our credentials are right.
            Ok(Answer { status: 401 | 403, .. }) => SendResult::Refused,
            Ok(_) => SendResult::Accepted,
        };
        let alerts = match &outcome {
            _ if result != SendResult::Accepted => {
                self.metrics.count_send(&self.connection.address().to_string(), result);
                self.log(&outcome, result);
                return false;
            }
            Err(_) => return false,
            Ok(Answer { status: 200, body }) => adopt::read(body).map_err(|error| error.to_string()),
            Ok(Answer { status, .. }) => Err(format!("status {status}")),
        };
        match alerts {
            Ok(alerts) => {
                alerts.iter().for_each(|alert| self.told().holds(alert));
                drop(question.out.send(alerts).await);
            }
            Err(why) => tracing::warn!(
                "Alertmanager {} does not tell which alerts it holds: {why}; those of an earlier nslookout end by themselves",
                self.connection.address()
            ),
        }
        self.question = None;
        true
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next thing to say: an alert that begins or ends at once, other figures a little later, all
    /// of it again after the interval. False once nobody sets alerts any more.
    async fn rest(&mut self, told: &Board, begin: Instant) -> bool {
        let mut due = begin + self.interval;
        loop {
            tokio::select! {
                () = sleep_until(due) => return true,
                _ = &mut self.leave => return false,
                changed = self.board.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    if self.board.borrow_and_update().turns() != told.turns() {
                        return true;
                    }
                    due = due.min(begin + FIGURES_EVERY.min(self.interval));
                }
            }
        }
    }

    /// Once when it begins to fail, or fails for another reason, and once when it is over.
    fn log(&mut self, outcome: &Result<Answer, Trouble>, result: SendResult) {
        let address = self.connection.address();
        let failing = match outcome {
            Ok(_) if result == SendResult::Accepted => None,
            Ok(answer) => Some(Failing::Refused(answer.status)),
            Err(Trouble::Access(_)) => Some(Failing::Access),
            Err(Trouble::Http(Error::Tls { .. })) => Some(Failing::Tls),
            Err(Trouble::Http(_)) => Some(Failing::Network),
        };
        let before = std::mem::replace(&mut self.failing, failing);
        if before == failing {
            return;
        }
        match outcome {
            Ok(_) if failing.is_none() => tracing::info!("Alertmanager {address} takes alerts again"),
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.body);
                let text: String = text.chars().take(200).collect();
                tracing::warn!("Alertmanager {address} refuses alerts with status {}: {text}", answer.status);
            }
            // rustls says UnknownIssuer, or which names the certificate has.
            Err(Trouble::Http(error @ Error::Tls { .. })) => tracing::warn!(
                "alerts are kept: {error} (is alertmanagers.ca the authority that signed its certificate, and \
                 alertmanagers.serverName a name in it?)"
            ),
            Err(error) => tracing::warn!("alerts are kept: Alertmanager {address}: {error}"),
        }
    }
}

async fn exchange(
    access: &mut Access,
    connection: &mut Connection,
    ask: &Ask<'_>,
) -> Result<Answer, Trouble> {
    access.arm(connection)?;
    Ok(connection.ask(ask).await?)
}

/// Changed annotations are worth no push at each of five turns a second.
const FIGURES_EVERY: Duration = Duration::from_secs(2);

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// An Alertmanager that is back knows all within this time.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// What it holds of one cluster, with all annotations.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
