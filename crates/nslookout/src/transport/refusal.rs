//! What is not taken, and how is that told: to the sender by a status, to people by a counter and a line in the log?

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::figures::ServerFigures;

/// Why something was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub reason: Reason,
    /// The details, for the log.
    pub detail: String,
}

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $label:literal, $status:ident;)+) => {
        /// Kinds of refusals.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])+ $name),+ }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The label value of the counter.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// The status of the answer, where there is one.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),+ }
            }
        }
    };
}

reasons! {
    /// No such path.
    Path = "path", NOT_FOUND;
    /// Another method than POST.
    Method = "method", METHOD_NOT_ALLOWED;
    /// No bearer token.
    NoToken = "no-token", UNAUTHORIZED;
    /// A token that is nobody's.
    Token = "token", UNAUTHORIZED;
    /// A token whose time is over.
    Expired = "expired", UNAUTHORIZED;
    /// A token of somebody who may not report.
    NotAllowed = "not-allowed", FORBIDDEN;
    /// Evidence of another node or part than the sender's.
    Foreign = "foreign", FORBIDDEN;
    /// Too many bytes or entries.
    TooLarge = "too-large", PAYLOAD_TOO_LARGE;
    /// Not sent in time.
    TooSlow = "too-slow", REQUEST_TIMEOUT;
    /// Compressed in another way.
    Encoding = "encoding", UNSUPPORTED_MEDIA_TYPE;
    /// No batch.
    Malformed = "malformed", BAD_REQUEST;
    /// A version that is not understood.
    Version = "version", UPGRADE_REQUIRED;
    /// Tokens can't be reviewed at the moment.
    Unreviewed = "unreviewed", SERVICE_UNAVAILABLE;
    /// More than can be taken in.
    Busy = "busy", SERVICE_UNAVAILABLE;
    /// A connection that is no TLS, or of a client that does not trust the certificate.
    Tls = "tls", BAD_REQUEST;
    /// A connection that is no HTTP/2.
    Http = "http", BAD_REQUEST;
    /// One connection too many from one address.
    Crowd = "crowd", SERVICE_UNAVAILABLE;
}

impl Refusal {
    /// A refusal with its details.
    pub fn new(reason: Reason, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// Counts refusals and logs them: each kind of each sender by a line, and again after a while.
#[derive(Debug)]
pub struct Refusals {
    figures: ServerFigures,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    left_out: u64,
    /// When a line like this was last written.
    like: HashMap<u64, Instant>,
}

impl Refusals {
    /// None so far.
    pub fn new(figures: ServerFigures) -> Self {
        Self { figures, lines: Mutex::new(Lines::default()) }
    }

    /// Tells of one.
    pub fn tell(&self, peer: IpAddr, refusal: &Refusal) {
        let reason = refusal.reason.as_str();
        self.figures.refusals.with_label_values(&[reason]).inc();
        if let Some(left_out) = self.room_for_a_line(peer, refusal) {
            // What strangers send may be long, or have line breaks in it.
            let detail: String = refusal.detail.chars().take(MAX_DETAIL).collect();
            let more =
                if left_out > 0 { format!(" ({left_out} more were not logged)") } else { String::new() };
            tracing::warn!("refused {peer}, {reason}: {}{more}", detail.escape_debug());
        }
    }

    /// How many lines were left out since the last one, where one may be written.
    fn room_for_a_line(&self, peer: IpAddr, refusal: &Refusal) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hasher = DefaultHasher::new();
        (peer, refusal.reason, &refusal.detail).hash(&mut hasher);
        let like = hasher.finish();
        if lines.like.get(&like).is_some_and(|written| written.elapsed() < AGAIN) {
            lines.left_out += 1;
            return None;
        }
        if lines.since.elapsed() >= PERIOD {
            lines.since = Instant::now();
            lines.written = 0;
        }
        if lines.written >= LINES {
            lines.left_out += 1;
            return None;
        }
        lines.written += 1;
        if lines.like.len() >= MOST_LIKE {
            lines.like.clear();
        }
        lines.like.insert(like, Instant::now());
        Some(std::mem::take(&mut lines.left_out))
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self { since: Instant::now(), written: 0, left_out: 0, like: HashMap::new() }
    }
}

/// One who tries the same again and again is told of once in so long.
const AGAIN: Duration = Duration::from_secs(60);
const MOST_LIKE: usize = 1024;
/// So many lines ...
const LINES: u32 = 20;
/// ... in so long.
const PERIOD: Duration = Duration::from_secs(10);
const MAX_DETAIL: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_counted_and_only_some_are_logged() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        let refusals = Refusals::new(ServerFigures::new(&metrics).unwrap());
        let peer = IpAddr::from([127, 0, 0, 1]);
        for _ in 0..100 {
            refusals.tell(peer, &Refusal::new(Reason::Foreign, "the same"));
        }
        assert_eq!(refusals.lines.lock().unwrap().left_out, 99, "it has one line");
        for number in 0..100 {
            refusals.tell(peer, &Refusal::new(Reason::Foreign, number));
        }
        assert!(
            String::from_utf8_lossy(&metrics.page())
                .contains("nslookout_wire_refusals_total{reason=\"foreign\"} 200")
        );
        assert_eq!(refusals.lines.lock().unwrap().left_out, 100 - u64::from(LINES - 1));
    }

    #[test]
    fn every_reason_is_told_from_the_start() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        let _figures = ServerFigures::new(&metrics).unwrap();
        let page = String::from_utf8_lossy(&metrics.page()).into_owned();
        for reason in Reason::ALL {
            let line = format!("nslookout_wire_refusals_total{{reason=\"{}\"}} 0", reason.as_str());
            assert!(page.contains(&line), "{line}");
        }
    }
}
