//! What would an application get, and when, if its C library were this profile's?

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use evidence::{Attempt, AttemptResult, BootTime, Lookup, LookupId, NameKind, Outcome, ServerRole};
use netns::Namespace;

use crate::Error;
use crate::ledger::Ledger;
use crate::profiles::{Family, Profile, glibc, musl};

/// One call of getaddrinfo: whom to ask and for what.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The lookup's number.
    pub id: LookupId,
    /// The vantage's name.
    pub vantage: &'a str,
    /// The name servers in resolv.conf's order, three at most are asked.
    pub servers: &'a [SocketAddr],
    /// What these servers are.
    pub role: ServerRole,
    /// The name, taken as absolute.
    pub name: &'a str,
    /// Who must know the name.
    pub name_kind: NameKind,
    /// Silence that lasts so long is told at once, while the lookup goes on.
    pub answer_within: Duration,
}

/// What a lookup came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The lookup as evidence.
    pub lookup: Lookup,
    /// The addresses that the application would get.
    pub addresses: Vec<IpAddr>,
    /// Packets that came but were no answer.
    pub ignored: Ignored,
}

/// Packets that reached a lookup's socket and were not taken for an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Too short or damaged, whether or not the library took the readable part of it.
    pub malformed: u64,
    /// From another address, or with an ID or question that nobody asked. A second answer to the same query counts too.
    pub foreign: u64,
}

/// What a profile's family hands back.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Makes one lookup of A and AAAA as the profile's C library would. `on_attempt` hears the fate of each query
/// packet when it is known, ordinary answers included; [`is_symptom`] tells them apart.
///
/// Errors are what kept the lookup from being tried. Whatever the network does is an outcome.
pub async fn lookup(
    profile: &Profile,
    namespace: &Namespace,
    call: &Call<'_>,
    mut on_attempt: impl FnMut(Attempt) + Send,
) -> Result<Finding, Error> {
    let name = absolute(call.name);
    let servers = call.servers.get(..MAX_SERVERS).unwrap_or(call.servers);
    let &[first, ..] = servers else { return Err(Error::NoServer) };
    let call = Call { name: &name, servers, ..*call };
    let started = BootTime::now();
    let mut ledger = Ledger::new(&call, profile.name, &mut on_attempt);
    let ended = match &profile.family {
        Family::Musl(version) => musl::run(profile, version, namespace, &call, &mut ledger).await?,
        Family::Glibc => glibc::run(profile, namespace, &call, &mut ledger).await?,
    };
    let lookup = Lookup {
        id: call.id,
        vantage: call.vantage.to_owned(),
        profile: profile.name.to_owned(),
        server: first,
        role: call.role,
        name: name.clone(),
        name_kind: call.name_kind,
        started,
        ended: BootTime::now(),
        outcome: ended.outcome,
        packets: ledger.packets,
    };
    Ok(Finding { lookup, addresses: ended.addresses, ignored: ledger.ignored })
}

/// Whether an attempt tells of trouble: anything but an answer in time that names data or their absence.
pub fn is_symptom(attempt: &Attempt, answer_within: Duration) -> bool {
    match attempt.result {
        AttemptResult::Answered { rcode, wait_ns } => {
            !matches!(rcode, 0 | 3) || Duration::from_nanos(wait_ns) >= answer_within
        }
        AttemptResult::Unanswered { .. }
        | AttemptResult::Unreachable { .. }
        | AttemptResult::SendRefused { .. } => true,
    }
}

fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

/// Both libraries know no more (MAXNS).
const MAX_SERVERS: usize = 3;
