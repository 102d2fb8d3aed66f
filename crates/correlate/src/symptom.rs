//! What hurts: a lookup that failed or crawls, a lost DNS packet, a mapping in use that leads nowhere.

use std::net::SocketAddr;

use evidence::{Attempt, AttemptResult, KernelDrop, LookupId, Mapping, NameKind, ServerRole, WallTime};

/// How a lookup went wrong, as its worst query shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A query unanswered for a second.
    Silent,
    /// Nobody listens there: ICMP port unreachable.
    Refused,
    /// The way there is missing: no route, no neighbour.
    Unreachable(i32),
    /// The kernel refused to send.
    SendRefused(i32),
    /// The server answered with an error.
    Rcode(u8),
}

/// One query of a symptomatic lookup, with all that joins it to a drop or a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub source: SocketAddr,
    pub id: u16,
    pub name: String,
    pub sent: WallTime,
}

/// A lookup of the prober in trouble.
#[derive(Debug, Clone)]
pub(crate) struct TroubledLookup {
    pub id: LookupId,
    pub vantage: String,
    pub profile: String,
    pub server: SocketAddr,
    pub role: ServerRole,
    pub name_kind: NameKind,
    pub failure: Failure,
    pub queries: Vec<Query>,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Lookup(TroubledLookup),
    Drop(KernelDrop),
    Mapping(Mapping),
}

/// One thing that hurts, waiting for its cause.
#[derive(Debug, Clone)]
pub(crate) struct Symptom {
    /// When it happened, on the wall clock.
    pub at: WallTime,
    /// When it became known to correlate.
    pub known: WallTime,
    /// The node that reported it.
    pub node: String,
    pub kind: Kind,
    /// Already counted as unexplained; a better cause may still come.
    pub counted: bool,
}

impl Failure {
    /// The failure that an attempt shows; nothing for an answer that is none.
    pub fn of(attempt: &Attempt) -> Option<Self> {
        match &attempt.result {
            AttemptResult::Answered { rcode: 0 | 3, .. } => None,
            AttemptResult::Answered { rcode, .. } => Some(Self::Rcode(*rcode)),
            AttemptResult::Unanswered { .. } => Some(Self::Silent),
            AttemptResult::Unreachable { errno: ECONNREFUSED } => Some(Self::Refused),
            AttemptResult::Unreachable { errno } => Some(Self::Unreachable(*errno)),
            AttemptResult::SendRefused { errno } => Some(Self::SendRefused(*errno)),
        }
    }

    /// In words that follow "a lookup was".
    pub fn words(self) -> String {
        match self {
            Self::Silent => "unanswered for 1 s".into(),
            Self::Refused => "refused: nobody listens there (ICMP port unreachable)".into(),
            Self::Unreachable(ENETUNREACH) => "not sent: there is no route".into(),
            Self::Unreachable(EHOSTUNREACH) => "not delivered: the host can't be reached".into(),
            Self::Unreachable(errno) => format!("not delivered (errno {errno})"),
            Self::SendRefused(errno) => format!("refused by the kernel on sending (errno {errno})"),
            Self::Rcode(2) => "answered SERVFAIL".into(),
            Self::Rcode(5) => "answered REFUSED".into(),
            Self::Rcode(rcode) => format!("answered with rcode {rcode}"),
        }
    }
}

impl Symptom {
    /// The lookup, where the symptom is one.
    pub fn lookup(&self) -> Option<&TroubledLookup> {
        match &self.kind {
            Kind::Lookup(lookup) => Some(lookup),
            Kind::Drop(_) | Kind::Mapping(_) => None,
        }
    }

    /// The dropped packet, where the symptom is one.
    pub fn dropped(&self) -> Option<&KernelDrop> {
        match &self.kind {
            Kind::Drop(dropped) => Some(dropped),
            Kind::Lookup(_) | Kind::Mapping(_) => None,
        }
    }
}

const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
