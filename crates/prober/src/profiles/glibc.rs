//! What does glibc do on the wire? (resolv/res_send.c, res_query.c, nss_dns/dns-host.c)
//!
//! One server after the other, each by a connected socket that is kept until an error closes it. A and AAAA
//! go out together. When one half is missing at the end of a server's time, both are asked again one after
//! the other on the same socket, then on a new socket each, then the one half is handed back alone.

use std::net::SocketAddr;
use std::time::Duration;

use evidence::{BootTime, Outcome, QueryType};
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

/// One lookup under way: the state that glibc keeps in `res_state`.
struct Exchange<'a, 'b> {
    namespace: &'a Namespace,
    servers: &'a [SocketAddr],
    ledger: &'a mut Ledger<'b>,
    queries: [Query; 2],
    /// A socket for each server, all closed together by any error.
    sockets: Vec<Option<Socket>>,
    /// RES_SNGLKUP: one query at a time.
    serial: bool,
    /// RES_SNGLKUPREOP: each query by a socket of its own.
    reopen: bool,
}

/// What came of asking one server once.
enum Turn {
    /// Nothing usable: the next server or attempt.
    Next,
    /// The usable answers, in the order in which they came.
    Answers(Vec<Answer>),
    /// An answer said that it is truncated.
    Truncated,
}

/// What came of one round of queries on one socket.
enum Round {
    Over(Turn),
    /// One half is missing at the end of the time.
    Half(Vec<Answer>),
}

pub(crate) async fn run(
    profile: &Profile,
    namespace: &Namespace,
    call: &Call<'_>,
    ledger: &mut Ledger<'_>,
) -> Result<Ended, Error> {
    let queries = [
        Query::new(call.name, QueryType::A, rand::random())?,
        Query::new(call.name, QueryType::Aaaa, rand::random())?,
    ];
    let sockets = call.servers.iter().map(|_| None).collect();
    let mut exchange =
        Exchange { namespace, servers: call.servers, ledger, queries, sockets, serial: false, reopen: false };
    Ok(join(exchange.run(profile).await?))
}

impl Exchange<'_, '_> {
    async fn run(&mut self, profile: &Profile) -> Result<Vec<Answer>, Error> {
        let mut over_tcp = false;
        for _ in 0..profile.attempts.max(1) {
            for (index, &server) in self.servers.iter().enumerate() {
                let time = time_for(profile.timeout, index, self.servers.len());
                let mut turn = Turn::Truncated;
                if !over_tcp {
                    turn = self.ask(index, server, time).await?;
                }
                if matches!(turn, Turn::Truncated) {
                    // Once an answer was truncated, all that follows goes over TCP.
                    over_tcp = true;
                    turn = self.ask_over_tcp(server).await;
                }
                match turn {
                    Turn::Answers(answers) if !answers.is_empty() => return Ok(answers),
                    Turn::Answers(_) | Turn::Next | Turn::Truncated => {}
                }
            }
        }
        Ok(Vec::new())
    }

    async fn ask(&mut self, index: usize, server: SocketAddr, time: Duration) -> Result<Turn, Error> {
        loop {
            match self.round(index, server, time).await? {
                Round::Over(turn) => return Ok(turn),
                Round::Half(_) if !self.serial => self.serial = true,
                Round::Half(_) if !self.reopen => {
                    self.reopen = true;
                    self.close_all();
                }
                Round::Half(answers) => return Ok(Turn::Answers(answers)),
            }
        }
    }

    async fn round(&mut self, index: usize, server: SocketAddr, time: Duration) -> Result<Round, Error> {
        if !self.open(index, server).await? {
            return Ok(Round::Over(Turn::Next));
        }
        let deadline = Instant::now() + time;
        let first = if self.serial { 0..1 } else { 0..2 };
        if !first.into_iter().all(|number| self.send(index, server, number)) {
            self.close_all();
            return Ok(Round::Over(Turn::Next));
        }
        let mut got = [false; 2];
        let mut usable = Vec::new();
        loop {
            let Some(socket) = self.sockets.get(index).and_then(Option::as_ref) else {
                return Ok(Round::Over(Turn::Next));
            };
            let Some(arrival) = self.ledger.until(deadline, socket.receive()).await else {
                let half = Round::Half(usable);
                return Ok(if matches!(&half, Round::Half(answers) if answers.is_empty()) {
                    Round::Over(Turn::Next)
                } else {
                    half
                });
            };
            let (at, bytes) = match arrival? {
                Arrival::Packet { at, bytes, .. } => (at, bytes),
                Arrival::Unreachable { errno, server, query_id } => {
                    self.ledger.unreachable(errno, server, query_id);
                    self.close_all();
                    return Ok(Round::Over(Turn::Next));
                }
            };
            let Some(answer) = Answer::read(&bytes).filter(|a| a.whole_header) else {
                self.ledger.ignored.malformed += 1;
                self.close_all();
                return Ok(Round::Over(Turn::Next));
            };
            let Some(number) = self.query_of(&answer, got) else {
                self.ledger.ignored.foreign += 1;
                continue;
            };
            if !answer.sound {
                self.ledger.ignored.malformed += 1;
            }
            if let Some(query) = self.queries.get(number) {
                self.ledger.answered(query, server, answer.rcode, at);
            }
            let other_came = got.contains(&true);
            if is_error(&answer) {
                if other_came {
                    return Ok(Round::Over(Turn::Answers(usable)));
                }
                // The other half is still waited for, but in serial mode it was never asked for: time runs out.
                mark(&mut got, number);
                continue;
            }
            if answer.truncated {
                self.close_all();
                return Ok(Round::Over(Turn::Truncated));
            }
            mark(&mut got, number);
            usable.push(answer);
            if other_came {
                return Ok(Round::Over(Turn::Answers(usable)));
            }
            if self.serial && !self.send_second(index, server).await? {
                return Ok(Round::Over(Turn::Next));
            }
        }
    }

    /// The number of the query that this answers, if that one is still without an answer.
    fn query_of(&self, answer: &Answer, got: [bool; 2]) -> Option<usize> {
        let pairs = self.queries.iter().zip(got).enumerate();
        pairs
            .filter(|(_, (query, got))| !got && query.has_id_of(answer) && query.has_question_of(answer))
            .map(|(number, _)| number)
            .next_back()
    }

    async fn send_second(&mut self, index: usize, server: SocketAddr) -> Result<bool, Error> {
        if self.reopen {
            self.close_all();
            if !self.open(index, server).await? {
                return Ok(false);
            }
        }
        let sent = self.send(index, server, 1);
        if !sent {
            self.close_all();
        }
        Ok(sent)
    }

    fn send(&mut self, index: usize, server: SocketAddr, number: usize) -> bool {
        let Some(socket) = self.sockets.get(index).and_then(Option::as_ref) else { return false };
        let Some(query) = self.queries.get(number) else { return false };
        let sent = BootTime::now();
        let mut result = socket.send(server, &query.bytes);
        if number == 1 && matches!(result, Err(Errno::ECONNREFUSED)) {
            // The refusal of the first query reached the second's send. sendmmsg reports only that one was sent,
            // and glibc sends the second again.
            self.ledger.unreachable(Errno::ECONNREFUSED as i32, Some(server), None);
            result = socket.send(server, &query.bytes);
        }
        self.ledger.sent(query, server, socket.source(server), sent, result);
        result.is_ok()
    }

    async fn open(&mut self, index: usize, server: SocketAddr) -> Result<bool, Error> {
        let Some(slot) = self.sockets.get_mut(index) else { return Ok(false) };
        if slot.is_none() {
            match Socket::connected(self.namespace, server, BUFFER).await? {
                Ok(socket) => *slot = Some(socket),
                Err(errno) => {
                    let [query, _] = &self.queries;
                    self.ledger.sent(query, server, unspecified(server), BootTime::now(), Err(errno));
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn close_all(&mut self) {
        self.sockets.fill_with(|| None);
        self.ledger.closed();
    }

    async fn ask_over_tcp(&mut self, server: SocketAddr) -> Turn {
        self.ledger.closed();
        // A connection that was reset is tried once more.
        for _ in 0..2 {
            let sent = BootTime::now();
            for query in &self.queries {
                self.ledger.sent(query, server, unspecified(server), sent, Ok(()));
            }
            let deadline = Instant::now() + TCP_PATIENCE;
            let asked = tcp::ask(self.namespace, server, &self.queries, BUFFER);
            match self.ledger.until(deadline, asked).await {
                Some(Ok(answers)) => {
                    let at = BootTime::now();
                    for answer in &answers {
                        if let Some(query) = self.queries.iter().find(|q| q.has_id_of(answer)) {
                            self.ledger.answered(query, server, answer.rcode, at);
                        }
                    }
                    return Turn::Answers(answers);
                }
                Some(Err(errno)) => {
                    for query in &self.queries {
                        self.ledger.unreachable(errno as i32, Some(server), Some(query.id));
                    }
                    if errno != Errno::ECONNRESET {
                        return Turn::Next;
                    }
                }
                None => return Turn::Next,
            }
        }
        Turn::Next
    }
}

/// A server's time: `timeout << index`, shared among the servers for all but the first, at least a second.
fn time_for(timeout: Duration, index: usize, servers: usize) -> Duration {
    let shifted = timeout.as_secs() << index.min(8);
    let servers = u64::try_from(servers).unwrap_or(1).max(1);
    let seconds = if index == 0 { shifted } else { shifted / servers };
    Duration::from_secs(seconds.max(1))
}

/// SERVFAIL, NOTIMP, REFUSED, or a lame server's empty referral.
fn is_error(answer: &Answer) -> bool {
    let lame = answer.rcode == 0
        && answer.answers == 0
        && !answer.authoritative
        && !answer.recursion_available
        && answer.additionals == 0;
    matches!(answer.rcode, 2 | 4 | 5) || lame
}

fn mark(got: &mut [bool; 2], number: usize) {
    if let Some(flag) = got.get_mut(number) {
        *flag = true;
    }
}

/// Joins the halves as __libc_res_nquery does: data in either is success; else the first that is no plain
/// NOERROR decides.
fn join(answers: Vec<Answer>) -> Ended {
    let rcode = answers.iter().map(|a| a.rcode).find(|rcode| *rcode != 0).unwrap_or(0);
    let with_data = answers.iter().any(|a| a.rcode == 0 && a.answers > 0);
    let sound = answers.iter().all(|a| a.sound);
    let empty = answers.is_empty();
    let good = answers.into_iter().filter(|a| a.rcode == 0 && a.answers > 0);
    let addresses: Vec<_> = good.flat_map(|a| a.addresses).collect();
    let outcome = match rcode {
        _ if empty => Outcome::TryAgain,
        _ if !addresses.is_empty() => Outcome::Addresses,
        _ if with_data && sound => Outcome::NoData,
        _ if with_data => Outcome::NoName,
        0 => Outcome::NoData,
        2 => Outcome::TryAgain,
        // NO_RECOVERY, which getaddrinfo tells as EAI_NONAME, no otherwise than NXDOMAIN.
        _ => Outcome::NoName,
    };
    Ended { outcome, addresses }
}

/// glibc grows its buffer to 64 KiB; without EDNS no honest answer over UDP is longer than 512.
const BUFFER: usize = 65_535;
/// glibc waits for ever once the connection stands; a probe has to end.
const TCP_PATIENCE: Duration = Duration::from_secs(30);
