//! What does musl do on the wire? (src/network/res_msend.c, lookup_name.c)
//!
//! One unconnected socket for the lookup. Every query goes to every server at once, and what is unanswered
//! goes again each timeout/attempts, until the whole timeout has passed. The first answer with a known ID
//! from a known server counts, if its response code is 0 or 3. SERVFAIL is asked again at once, within a
//! budget that each interval refills. Everything else is as if it had not come, ICMP errors included.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use evidence::{BootTime, Outcome, QueryType, WallTime};
use netns::Namespace;
use nix::errno::Errno;
use tokio::time::Instant;

use super::Profile;
use crate::Error;
use crate::ledger::Ledger;
use crate::lookup::{Call, Ended};
use crate::socket::{Arrival, Socket, unspecified};
use crate::tcp;
use crate::wire::{Answer, Query};

/// What differs between musl's versions.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// Whether a truncated answer is asked for again over TCP (from 1.2.4).
    pub(crate) tcp: bool,
    /// Whether the two IDs are made to differ (from 1.2.4).
    pub(crate) distinct_ids: bool,
    /// What an answer without addresses becomes (EAI_NONAME up to 1.2.3, EAI_NODATA from 1.2.4).
    pub(crate) no_data: Outcome,
    /// Octets of an answer that are looked at.
    pub(crate) buffer: usize,
}

/// One lookup under way.
struct Exchange<'a, 'b> {
    version: &'a Version,
    namespace: &'a Namespace,
    servers: &'a [SocketAddr],
    ledger: &'a mut Ledger<'b>,
    socket: Socket,
    slots: [Slot<'a>; 2],
    servfail_budget: u32,
}

struct Slot<'a> {
    query: Query,
    state: State<'a>,
}

enum State<'a> {
    Asked,
    Accepted(Answer),
    OverTcp(SocketAddr, TcpAnswer<'a>),
}

type TcpAnswer<'a> = Pin<Box<dyn Future<Output = Option<Answer>> + Send + 'a>>;

enum Step {
    Arrival(Result<Arrival, Error>),
    Tcp(usize, Option<Answer>),
}

pub(crate) async fn run(
    profile: &Profile,
    version: &Version,
    namespace: &Namespace,
    call: &Call<'_>,
    ledger: &mut Ledger<'_>,
) -> Result<Ended, Error> {
    let slots = queries(call.name, version)?.map(|query| Slot { query, state: State::Asked });
    let socket = match Socket::unconnected(namespace, call.servers, version.buffer).await {
        // A kernel without IPv6. getaddrinfo tells it as EAI_SYSTEM, at once.
        Err(Error::Socket { errno: errno @ Errno::EAFNOSUPPORT, .. }) => {
            for (slot, &server) in slots.iter().zip(call.servers) {
                ledger.sent(&slot.query, server, unspecified(server), BootTime::now(), Err(errno));
            }
            return Ok(Ended { outcome: Outcome::Failed, addresses: Vec::new() });
        }
        opened => opened?,
    };
    let mut exchange =
        Exchange { version, namespace, servers: call.servers, ledger, socket, slots, servfail_budget: 0 };
    exchange.run(profile).await?;
    Ok(join(exchange.slots, version))
}

impl Exchange<'_, '_> {
    async fn run(&mut self, profile: &Profile) -> Result<(), Error> {
        let interval = profile.timeout / profile.attempts.max(1);
        let start = Instant::now();
        let end = start + profile.timeout;
        let mut resend = start;
        while Instant::now() < end && self.slots.iter().any(|s| !matches!(s.state, State::Accepted(_))) {
            let now = Instant::now();
            if now >= resend {
                self.send_unanswered();
                self.servfail_budget = 4;
                resend = now + interval;
            }
            let wait_until = resend.min(end);
            let step = self.ledger.until(wait_until, next_step(&self.socket, &mut self.slots)).await;
            match step {
                None => {}
                Some(Step::Arrival(arrival)) => self.take(arrival?),
                Some(Step::Tcp(index, answer)) => {
                    // Any trouble on TCP ends the whole lookup.
                    let Some(answer) = answer.filter(|a| matches!(a.rcode, 0 | 3)) else { return Ok(()) };
                    if let Some(slot) = self.slots.get_mut(index) {
                        if let State::OverTcp(server, _) = slot.state {
                            self.ledger.answered(&slot.query, server, answer.rcode, BootTime::now());
                        }
                        slot.state = State::Accepted(answer);
                    }
                }
            }
        }
        Ok(())
    }

    fn send_unanswered(&mut self) {
        for slot in self.slots.iter().filter(|s| matches!(s.state, State::Asked)) {
            for &server in self.servers {
                send(&self.socket, self.ledger, &slot.query, server);
            }
        }
    }

    fn take(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Unreachable { errno, server, query_id } => {
                self.ledger.unreachable(errno, server, query_id);
            }
            Arrival::Packet { from, at, bytes } => self.take_packet(from, at, &bytes),
        }
    }

    fn take_packet(&mut self, from: SocketAddr, at: BootTime, bytes: &[u8]) {
        let Some(answer) = Answer::read(bytes) else {
            self.ledger.ignored.malformed += 1;
            return;
        };
        let slot = self.slots.iter_mut().find(|s| s.query.has_id_of(&answer));
        let slot = slot.filter(|s| matches!(s.state, State::Asked) && self.servers.contains(&from));
        let Some(slot) = slot else {
            self.ledger.ignored.foreign += 1;
            return;
        };
        if !answer.sound {
            self.ledger.ignored.malformed += 1;
        }
        self.ledger.answered(&slot.query, from, answer.rcode, at);
        match answer.rcode {
            0 | 3 if answer.truncated && self.version.tcp => {
                self.ledger.sent(&slot.query, from, unspecified(from), BootTime::now(), Ok(()));
                let (namespace, query, room) = (self.namespace, slot.query.clone(), self.version.buffer);
                slot.state = State::OverTcp(
                    from,
                    Box::pin(async move {
                        let answers = tcp::ask(namespace, from, &[query], room).await.ok()?;
                        answers.into_iter().next()
                    }),
                );
            }
            0 | 3 => slot.state = State::Accepted(answer),
            2 if self.servfail_budget > 0 => {
                self.servfail_budget -= 1;
                send(&self.socket, self.ledger, &slot.query, from);
            }
            _ => {}
        }
    }
}

fn send(socket: &Socket, ledger: &mut Ledger<'_>, query: &Query, server: SocketAddr) {
    let sent = BootTime::now();
    let result = socket.send(server, &query.bytes);
    ledger.sent(query, server, socket.source(server), sent, result);
}

async fn next_step(socket: &Socket, slots: &mut [Slot<'_>; 2]) -> Step {
    let over_tcp = poll_fn(|context| {
        for (index, slot) in slots.iter_mut().enumerate() {
            if let State::OverTcp(_, answer) = &mut slot.state
                && let Poll::Ready(answer) = answer.as_mut().poll(context)
            {
                return Poll::Ready(Step::Tcp(index, answer));
            }
        }
        Poll::Pending
    });
    tokio::select! {
        biased;
        step = over_tcp => step,
        arrival = socket.receive() => Step::Arrival(arrival),
    }
}

fn queries(name: &str, version: &Version) -> Result<[Query; 2], Error> {
    let first = query_id(WallTime::now());
    let second = query_id(WallTime::now());
    let [high, low] = second.to_be_bytes();
    let clash = version.distinct_ids && high == first.to_be_bytes()[0];
    let second = if clash { u16::from_be_bytes([high.wrapping_add(1), low]) } else { second };
    Ok([Query::new(name, QueryType::A, first)?, Query::new(name, QueryType::Aaaa, second)?])
}

/// The ID is made from the clock: `ts.tv_nsec + ts.tv_nsec/65536UL & 0xffff`.
fn query_id(now: WallTime) -> u16 {
    let nsec = now.0.rem_euclid(1_000_000_000);
    u16::try_from((nsec + nsec / 65536) & 0xffff).unwrap_or(0)
}

/// Joins the halves as name_from_dns does: the first half that is missing or negative decides.
fn join(slots: [Slot<'_>; 2], version: &Version) -> Ended {
    let mut addresses = Vec::new();
    for slot in slots {
        match slot.state {
            State::Accepted(answer) if answer.rcode == 0 => addresses.extend(answer.addresses),
            State::Accepted(_) => return Ended { outcome: Outcome::NoName, addresses: Vec::new() },
            State::Asked | State::OverTcp(..) => {
                return Ended { outcome: Outcome::TryAgain, addresses: Vec::new() };
            }
        }
    }
    let outcome = if addresses.is_empty() { version.no_data } else { Outcome::Addresses };
    Ended { outcome, addresses }
}

#[cfg(test)]
mod tests {
    use super::super::Family;
    use super::*;

    fn outcome(profile: &Profile, rcodes: [Option<u8>; 2], addresses: u8) -> Outcome {
        let Family::Musl(version) = &profile.family else { panic!("no musl") };
        let slot = |rcode: Option<u8>| Slot {
            query: Query::new("a.", QueryType::A, 1).unwrap(),
            state: rcode.map_or(State::Asked, |rcode| {
                let addresses = (0..addresses).map(|_| [192, 0, 2, 1].into()).collect();
                State::Accepted(Answer { rcode, addresses, ..Answer::default() })
            }),
        };
        join(rcodes.map(slot), version).outcome
    }

    #[test]
    fn the_first_half_that_is_missing_or_negative_decides() {
        for (halves, expected) in [
            ([Some(0), Some(0)], Outcome::Addresses),
            ([Some(0), Some(3)], Outcome::NoName),
            ([Some(3), None], Outcome::NoName),
            ([None, Some(3)], Outcome::TryAgain),
            ([Some(0), None], Outcome::TryAgain),
        ] {
            assert_eq!(outcome(&Profile::MUSL, halves, 1), expected, "{halves:?}");
        }
    }

    #[test]
    fn no_data_looks_like_no_name_up_to_1_2_3() {
        assert_eq!(outcome(&Profile::MUSL, [Some(0), Some(0)], 0), Outcome::NoName);
        assert_eq!(outcome(&Profile::MUSL_1_2_5, [Some(0), Some(0)], 0), Outcome::NoData);
    }

    #[test]
    fn ids_differ_in_their_high_octet_from_1_2_4() {
        let Family::Musl(version) = &Profile::MUSL_1_2_5.family else { panic!("no musl") };
        for _ in 0..1_000 {
            let [a, aaaa] = queries("a.", version).unwrap();
            assert_ne!(a.id >> 8, aaaa.id >> 8);
        }
    }

    #[test]
    fn ids_come_from_the_clock() {
        assert_eq!(query_id(WallTime(5_000_000_000 + 65_536 * 3 + 7)), 10);
        assert_eq!(query_id(WallTime(999_999_999)), ((999_999_999_i64 + 15_258) & 0xffff) as u16);
    }
}
