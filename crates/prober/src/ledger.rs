//! Which query packets of a lookup are still without an answer, and what is to be told of each?
//!
//! A packet's fate is told once it is known: an answer, an ICMP error, a refusal to send. Silence is told
//! when it has lasted for `answer_within`, once for each packet; an answer that comes later still is told too.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use evidence::{Attempt, AttemptResult, BootTime, QueryType};
use nix::errno::Errno;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::lookup::{Call, Ignored};
use crate::socket::is_unreachable;
use crate::wire::Query;

/// The account of one lookup.
pub(crate) struct Ledger<'a> {
    call: &'a Call<'a>,
    profile: &'static str,
    tell: &'a mut (dyn FnMut(Attempt) + Send),
    outstanding: Vec<Packet>,
    pub(crate) packets: u32,
    pub(crate) ignored: Ignored,
}

#[derive(Debug, Clone)]
struct Packet {
    server: SocketAddr,
    source: SocketAddr,
    qtype: QueryType,
    id: u16,
    sent: BootTime,
    overdue: Instant,
    told: bool,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(
        call: &'a Call<'a>,
        profile: &'static str,
        tell: &'a mut (dyn FnMut(Attempt) + Send),
    ) -> Self {
        Self { call, profile, tell, outstanding: Vec::new(), packets: 0, ignored: Ignored::default() }
    }

    /// Notes what came of handing a packet to the kernel at `sent`.
    pub(crate) fn sent(
        &mut self,
        query: &Query,
        server: SocketAddr,
        source: SocketAddr,
        sent: BootTime,
        result: Result<(), Errno>,
    ) {
        let packet = Packet {
            server,
            source,
            qtype: query.qtype,
            id: query.id,
            sent,
            overdue: Instant::now() + self.call.answer_within,
            told: false,
        };
        match result {
            Ok(()) => {
                self.packets += 1;
                self.outstanding.push(packet);
            }
            Err(errno) => self.tell(&packet, not_sent(errno)),
        }
    }

    /// Notes an answer to the latest packet of this query to this server; earlier ones can't be told apart
    /// from it, since a resend has the same ID.
    pub(crate) fn answered(&mut self, query: &Query, server: SocketAddr, rcode: u8, at: BootTime) {
        let is_of = |p: &Packet| p.qtype == query.qtype && p.server == server;
        let latest = self.outstanding.iter().rfind(|p| is_of(p)).cloned();
        self.outstanding.retain(|p| !is_of(p));
        if let Some(packet) = latest {
            let wait_ns = nanos(at.since(packet.sent));
            self.tell(&packet, AttemptResult::Answered { rcode, wait_ns });
        }
    }

    /// Notes an error that the network reported, for the packet it quotes or else the latest.
    pub(crate) fn unreachable(&mut self, errno: i32, server: Option<SocketAddr>, query_id: Option<u16>) {
        let is_of = |p: &Packet| query_id.is_none_or(|id| id == p.id) && server.is_none_or(|s| s == p.server);
        let Some(index) = self.outstanding.iter().rposition(is_of) else { return };
        let packet = self.outstanding.remove(index);
        self.tell(&packet, AttemptResult::Unreachable { errno });
    }

    /// Forgets packets whose answers can't come any more: their socket was closed.
    pub(crate) fn closed(&mut self) {
        self.outstanding.clear();
    }

    /// Runs `work` until it ends or `deadline` passes, and meanwhile tells each silence when it is due.
    pub(crate) async fn until<T>(&mut self, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let overdue = self.outstanding.iter().filter(|p| !p.told).map(|p| p.overdue).min();
            let Some(overdue) = overdue.filter(|o| *o < deadline) else {
                return timeout_at(deadline, work).await.ok();
            };
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(overdue) => self.tell_overdue(),
            }
        }
    }

    fn tell_overdue(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for packet in self.outstanding.iter_mut().filter(|p| !p.told && p.overdue <= now) {
            packet.told = true;
            due.push(packet.clone());
        }
        for packet in due {
            let wait_ns = nanos(BootTime::now().since(packet.sent));
            self.tell(&packet, AttemptResult::Unanswered { wait_ns });
        }
    }

    fn tell(&mut self, packet: &Packet, result: AttemptResult) {
        (self.tell)(Attempt {
            lookup: self.call.id,
            vantage: self.call.vantage.to_owned(),
            profile: self.profile.to_owned(),
            server: packet.server,
            role: self.call.role,
            source: packet.source,
            query_id: packet.id,
            name: self.call.name.to_owned(),
            name_kind: self.call.name_kind,
            qtype: packet.qtype,
            sent: packet.sent,
            result,
        });
    }
}

/// A route that is missing is the network's word; everything else (EPERM above all) is the kernel's refusal.
fn not_sent(errno: Errno) -> AttemptResult {
    let number = errno as i32;
    if is_unreachable(errno) {
        AttemptResult::Unreachable { errno: number }
    } else {
        AttemptResult::SendRefused { errno: number }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
