//! From an agent's reports to the correlator and back: what is gathered is kept until it is accepted.
//!
//! One letter is under way at a time, so all arrive in order. While one can't be sent, reports are still taken: the
//! spool is bounded, the observers never wait.

use std::sync::Arc;
use std::time::Duration;

use evidence::wire::Answer;
use evidence::{Inventory, Report};
use prober::{Direct, Duty};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::figures::AgentFigures;
use super::gather::{Gatherer, records, tells};
use super::line::{Line, Target, Trouble};
use super::pack::pack;
use super::roster::UNANSWERED;
use super::spool::{Dropped, Letter, Spool};

/// What an agent says of its way to the correlator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// When the loop last turned.
    pub turned: Instant,
    /// Why the last letter did not get through; none if it did.
    pub trouble: Option<String>,
    /// Batches accepted so far.
    pub accepted: u64,
    /// Batches that wait.
    pub waiting: usize,
}

/// What a courier is given.
#[derive(Debug)]
pub struct Baggage {
    /// The agent's reports.
    pub reports: mpsc::Receiver<Report>,
    /// Where the answers' inventory goes.
    pub inventory: watch::Sender<Arc<Inventory>>,
    /// Where goes what the answers say that a prober may do.
    pub duty: watch::Sender<Duty>,
    /// What is counted.
    pub figures: AgentFigures,
    /// Batches that may wait.
    pub spool: Spool,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// An agent's courier.
#[derive(Debug)]
pub struct Courier {
    reports: mpsc::Receiver<Report>,
    inventory: watch::Sender<Arc<Inventory>>,
    duty: watch::Sender<Duty>,
    answered: Instant,
    figures: AgentFigures,
    spool: Spool,
    gatherer: Gatherer,
    target: Target,
    /// At home while no letter is under way.
    line: Option<Line>,
    under_way: JoinSet<(Line, u64, Result<Answer, Trouble>)>,
    next_try: Instant,
    backoff: Duration,
    tag: u64,
    /// When the inventory was true.
    inventory_of: Option<Instant>,
    delivery: watch::Sender<Delivery>,
}

impl Courier {
    /// A courier that knows the way; the receiver tells how it does.
    pub fn new(target: Target, baggage: Baggage) -> (Self, watch::Receiver<Delivery>) {
        let Baggage { reports, inventory, duty, figures, spool, boot_id } = baggage;
        let now = Instant::now();
        let (delivery, receiver) =
            watch::channel(Delivery { turned: now, trouble: None, accepted: 0, waiting: 0 });
        figures.inventory_age.set(-1);
        let courier = Self {
            reports,
            inventory,
            duty,
            answered: now,
            figures,
            spool,
            gatherer: Gatherer::new(boot_id),
            line: Some(Line::new(target.clone())),
            target,
            under_way: JoinSet::new(),
            next_try: now,
            backoff: FIRST_BACKOFF,
            tag: 0,
            inventory_of: None,
            delivery,
        };
        (courier, receiver)
    }

    /// Carries until `stop`, or until nobody reports any more; then what waits gets a last chance.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut turns = interval(TURN);
        let mut stop = std::pin::pin!(stop);
        loop {
            let due = self.gatherer.due();
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(report) => self.gatherer.take(report, Instant::now()),
                    None => break,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.seal(),
                () = sleep_until(self.next_try), if self.line.is_some() && !self.spool.is_empty() => self.send(),
                Some(ended) = self.under_way.join_next() => self.take(ended.ok()),
                _ = turns.tick() => {
                    self.show();
                    // Others may have come, or have been lent what was lent to this one.
                    if self.answered.elapsed() >= UNANSWERED {
                        let direct = self.duty.borrow().direct.clone();
                        self.charge(Duty { direct, extra_in_1000_s: 0 });
                    }
                }
                () = &mut stop => break,
            }
        }
        drop(timeout(FAREWELL, self.finish()).await);
    }

    async fn finish(&mut self) {
        self.seal();
        loop {
            if self.line.is_some() && !self.spool.is_empty() {
                self.send();
            }
            let Some(ended) = self.under_way.join_next().await else { return };
            let went = matches!(&ended, Ok((_, _, Ok(_))));
            self.take(ended.ok());
            if !went {
                return;
            }
        }
    }

    fn seal(&mut self) {
        for (parcel, bytes) in self.gatherer.seal() {
            let letter = Letter {
                sequence: parcel.batch.sequence,
                bytes: pack(&bytes).into(),
                records: records(&parcel.batch),
                tells: tells(&parcel.batch),
            };
            self.figures.sealed.inc();
            tracing::trace!(
                "batch {}: {} bytes, {} packed",
                letter.sequence,
                bytes.len(),
                letter.bytes.len()
            );
            let Dropped { letters, records, tells } = self.spool.push(letter);
            self.figures.batches.with_label_values(&["dropped"]).inc_by(letters);
            self.lose(records, tells);
        }
        self.show();
    }

    fn send(&mut self) {
        let (Some(letter), Some(mut line)) = (self.spool.first(), self.line.take()) else { return };
        let (sequence, bytes, tag) = (letter.sequence, letter.bytes.clone(), self.tag);
        self.under_way.spawn(async move {
            let result = line.post(bytes, tag).await;
            (line, sequence, result)
        });
    }

    fn take(&mut self, ended: Option<(Line, u64, Result<Answer, Trouble>)>) {
        // A panic in a library takes the line with it.
        let Some((line, sequence, result)) = ended else {
            self.line = Some(Line::new(self.target.clone()));
            self.next_try = Instant::now() + MAX_BACKOFF;
            return;
        };
        self.line = Some(line);
        match result {
            Ok(answer) => self.take_answer(sequence, answer),
            Err(trouble) if trouble.is_final() => {
                if let Some(letter) = self.spool.remove(sequence) {
                    self.figures.batches.with_label_values(&["refused"]).inc();
                    self.lose(letter.records, letter.tells);
                }
                self.tell(Some(trouble.to_string()));
                self.next_try = Instant::now() + FIRST_BACKOFF;
            }
            Err(trouble) => {
                self.figures.failures.inc();
                self.tell(Some(trouble.to_string()));
                // A whole cluster that lost one correlator does not come back in the same moment.
                let jitter = rand::rng().random_range(0.5..1.0);
                self.next_try = Instant::now() + self.backoff.mul_f64(jitter);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            }
        }
        self.show();
    }

    fn take_answer(&mut self, sequence: u64, answer: Answer) {
        let size = self.spool.first().map_or(0, |letter| letter.bytes.len());
        // What was sent has been accepted, whatever the answer's own number says; never more than was sent.
        let count = self.spool.accepted(sequence);
        self.figures.batches.with_label_values(&["accepted"]).inc_by(count);
        self.figures.bytes.inc_by(u64::try_from(size).unwrap_or(0));
        self.backoff = FIRST_BACKOFF;
        self.next_try = Instant::now();
        self.answered = Instant::now();
        if let Some(told) = answer.duty {
            let direct = Direct::These(told.direct.into_iter().collect());
            self.charge(Duty { direct, extra_in_1000_s: told.extra_in_1000_s });
        }
        if let Some(outlook) = answer.outlook {
            self.inventory_of = Instant::now().checked_sub(outlook.age);
            if let Some(inventory) = outlook.inventory {
                self.tag = outlook.tag;
                self.inventory.send_if_modified(|present| {
                    let differs = **present != inventory;
                    *present = Arc::new(inventory);
                    differs
                });
            }
        }
        self.tell(None);
        self.delivery.send_modify(|delivery| delivery.accepted += count);
    }

    fn charge(&self, duty: Duty) {
        self.duty.send_if_modified(|present| {
            let differs = *present != duty;
            *present = duty;
            differs
        });
    }

    fn lose(&mut self, records: u64, tells: u64) {
        self.figures.lost.inc_by(records);
        self.gatherer.lose(records.saturating_add(tells));
    }

    /// Once when it begins to fail and once when it is over, not at each attempt.
    fn tell(&mut self, trouble: Option<String>) {
        let failed = self.delivery.borrow().trouble.is_some();
        match &trouble {
            Some(why) if !failed => tracing::warn!("evidence is kept: {why}"),
            None if failed => {
                let waiting = self.spool.len();
                tracing::info!("the correlator takes evidence again; {waiting} batches wait");
            }
            Some(why) => tracing::debug!("evidence is kept: {why}"),
            None => {}
        }
        self.delivery.send_modify(|delivery| delivery.trouble = trouble);
    }

    fn show(&self) {
        let waiting = self.spool.len();
        self.figures.spool.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.figures.spool_bytes.set(i64::try_from(self.spool.bytes()).unwrap_or(i64::MAX));
        if let Some(of) = self.inventory_of {
            self.figures.inventory_age.set(i64::try_from(of.elapsed().as_secs()).unwrap_or(i64::MAX));
        }
        self.delivery.send_modify(|delivery| {
            delivery.turned = Instant::now();
            delivery.waiting = waiting;
        });
    }
}

const TURN: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// A correlator that is back knows all within 15 s.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// At the end: kubelet waits 30 s, an upgrade waits for each node.
const FAREWELL: Duration = Duration::from_secs(2);
