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
use crate::socket::{Arrival, Socket, is_unreachable, unspecified};
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

/// What came of one packet.
enum Taken {
    Over(Round),
    Usable,
    Error,
    Ignored,
}

/// The answers of one round.
#[derive(Default)]
struct Halves {
    /// For which query an answer came, usable or not.
    got: [bool; 2],
    usable: Vec<Answer>,
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
            return Ok(self.give_up());
        }
        let mut halves = Halves::default();
        loop {
            let Some(socket) = self.sockets.get(index).and_then(Option::as_ref) else {
                return Ok(Round::Over(Turn::Next));
            };
            let Some(arrival) = self.ledger.until(deadline, socket.receive()).await else {
                let none = halves.usable.is_empty();
                return Ok(if none { Round::Over(Turn::Next) } else { Round::Half(halves.usable) });
            };
            match self.take(server, arrival?, &mut halves) {
                Taken::Over(round) => return Ok(round),
                // In serial mode the second query was never sent after an error to the first: time runs out.
                Taken::Error | Taken::Ignored => {}
                Taken::Usable if self.serial => {
                    if !self.send_second(index, server).await? {
                        return Ok(Round::Over(Turn::Next));
                    }
                }
                Taken::Usable => {}
            }
        }
    }

    /// Judges what came. Anything that glibc takes for trouble of the socket closes all of them.
    fn take(&mut self, server: SocketAddr, arrival: Arrival, halves: &mut Halves) -> Taken {
        let (at, bytes) = match arrival {
            Arrival::Packet { at, bytes, .. } => (at, bytes),
            Arrival::Unreachable { errno, server, query_id } => {
                self.ledger.unreachable(errno, server, query_id);
                return Taken::Over(self.give_up());
            }
        };
        let Some(answer) = Answer::read(&bytes).filter(|a| a.whole_header) else {
            self.ledger.ignored.malformed += 1;
            return Taken::Over(self.give_up());
        };
        let Some(number) = self.query_of(&answer, halves.got) else {
            self.ledger.ignored.foreign += 1;
            return Taken::Ignored;
        };
        if !answer.sound {
            self.ledger.ignored.malformed += 1;
        }
        if let Some(query) = self.queries.get(number) {
            self.ledger.answered(query, server, answer.rcode, at);
        }
        let failed = is_error(&answer);
        if !failed && answer.truncated {
            self.close_all();
            return Taken::Over(Round::Over(Turn::Truncated));
        }
        let other_came = halves.got.contains(&true);
        halves.mark(number);
        if !failed {
            halves.usable.push(answer);
        }
        if other_came {
            return Taken::Over(Round::Over(Turn::Answers(std::mem::take(&mut halves.usable))));
        }
        if failed { Taken::Error } else { Taken::Usable }
    }

    fn give_up(&mut self) -> Round {
        self.close_all();
        Round::Over(Turn::Next)
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
        if let (1, Err(errno)) = (number, result)
            && is_unreachable(errno)
        {
            // The refusal of the first query reached the second's send. sendmmsg reports only that one was sent,
            // and glibc sends the second again.
            self.ledger.unreachable(errno as i32, Some(server), None);
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

impl Halves {
    fn mark(&mut self, number: usize) {
        if let Some(flag) = self.got.get_mut(number) {
            *flag = true;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(rcode: u8, answers: u16) -> Answer {
        let addresses = (0..answers).map(|_| [192, 0, 2, 1].into()).collect();
        Answer { rcode, answers, addresses, sound: true, recursion_available: true, ..Answer::default() }
    }

    #[test]
    fn a_servers_time_shifts_with_its_place_and_is_shared() {
        let times = |count| -> Vec<u64> {
            (0..count).map(|index| time_for(Duration::from_secs(5), index, count).as_secs()).collect()
        };
        assert_eq!((times(1), times(2), times(3)), (vec![5], vec![5, 5], vec![5, 3, 6]));
        assert_eq!(time_for(Duration::ZERO, 0, 1), Duration::from_secs(1));
    }

    #[test]
    fn halves_join_as_in_res_nquery() {
        for (first, second, outcome) in [
            (answer(0, 1), answer(0, 0), Outcome::Addresses),
            (answer(3, 0), answer(0, 1), Outcome::Addresses),
            (answer(0, 0), answer(0, 0), Outcome::NoData),
            (answer(0, 0), answer(3, 0), Outcome::NoName),
            (answer(3, 0), answer(3, 0), Outcome::NoName),
            (answer(2, 0), answer(2, 0), Outcome::TryAgain),
            (answer(1, 0), answer(1, 0), Outcome::NoName),
        ] {
            let story = format!("{first:?} {second:?}");
            assert_eq!(join(vec![first, second]).outcome, outcome, "{story}");
        }
        assert_eq!(join(vec![answer(0, 0)]).outcome, Outcome::NoData);
        assert_eq!(join(Vec::new()).outcome, Outcome::TryAgain);
    }

    #[test]
    fn servfail_notimp_refused_and_lame_answers_are_errors() {
        for (rcode, error) in [(0, false), (1, false), (2, true), (3, false), (4, true), (5, true)] {
            assert_eq!(is_error(&answer(rcode, 0)), error, "{rcode}");
        }
        assert!(is_error(&Answer { recursion_available: false, ..answer(0, 0) }));
    }
}
