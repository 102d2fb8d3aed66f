//! How is the inventory told: to the parts that need it, and to correlate as evidence?

use std::sync::Arc;
use std::time::Duration;

use evidence::{BootTime, Coverage, CoverageState, Inventory, Observation, Observer, Report, Role, WallTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Both channels, and when they were last used.
#[derive(Debug)]
pub(crate) struct Teller {
    publish: watch::Sender<Arc<Inventory>>,
    as_of: watch::Sender<Option<WallTime>>,
    out: mpsc::Sender<Report>,
    told: Option<Instant>,
}

impl Teller {
    pub(super) fn new(
        publish: watch::Sender<Arc<Inventory>>,
        as_of: watch::Sender<Option<WallTime>>,
        out: mpsc::Sender<Report>,
    ) -> Self {
        Self { publish, as_of, out, told: None }
    }

    /// Hands a state to the parts that need it, if it is another one.
    pub(crate) fn publish(&self, inventory: &Arc<Inventory>) {
        self.publish.send_if_modified(|present| {
            let differs = **present != **inventory;
            *present = inventory.clone();
            differs
        });
    }

    /// Hands out a state of before: the source itself has not spoken yet.
    pub(super) fn remember(&self, inventory: Inventory, as_of: WallTime) {
        self.publish(&Arc::new(inventory.clone()));
        self.stand_by(as_of);
        // There is room: nothing else was told yet.
        drop(self.out.try_send(report(Some(Observation::Inventory(inventory.into())), Vec::new())));
    }

    /// The state as it was last handed out.
    pub(crate) fn published(&self) -> Arc<Inventory> {
        self.publish.borrow().clone()
    }

    /// Says that the source stands by the state.
    pub(crate) fn stand_by(&self, now: WallTime) {
        self.as_of.send_replace(Some(now));
    }

    /// When the source last stood by the state.
    pub(crate) fn as_of(&self) -> Option<WallTime> {
        *self.as_of.borrow()
    }

    /// Tells correlate. The inventory only if it is known: an empty list of servers would be "no endpoints". False once
    /// nobody listens.
    pub(crate) async fn tell(&mut self, known: Option<&Arc<Inventory>>, coverage: Vec<Coverage>) -> bool {
        self.told = Some(Instant::now());
        let observation = known.map(|inventory| Observation::Inventory(inventory.clone()));
        let (own, of_servers): (Vec<_>, Vec<_>) =
            coverage.into_iter().partition(|line| line.observer == Observer::Inventory);
        if self.out.send(report(observation, own)).await.is_err() {
            return false;
        }
        // With a new inventory correlate forgets what was said of servers, so this comes after it.
        of_servers.is_empty() || self.out.send(report(None, of_servers)).await.is_ok()
    }

    /// When the present state is to be told again.
    pub(crate) fn due(&self) -> Instant {
        self.told.map_or_else(Instant::now, |told| told + TELL)
    }

    /// Waits until then, or until nobody listens.
    pub(crate) async fn wait_until_due(&self) {
        tokio::select! {
            () = sleep_until(self.due()) => {}
            () = self.out.closed() => {}
        }
    }

    /// Waits until nobody listens.
    pub(crate) async fn closed(&self) {
        self.out.closed().await;
    }
}

/// One line of what the inventory's source could see.
pub(crate) fn line(place: &str, state: CoverageState) -> Coverage {
    Coverage { observer: Observer::Inventory, place: place.to_owned(), state }
}

fn report(observation: Option<Observation>, coverage: Vec<Coverage>) -> Report {
    let now = BootTime::now();
    Report {
        node: crate::observers::this_node(),
        role: Role::Inventory,
        from: now,
        to: now,
        observations: observation.into_iter().collect(),
        coverage,
    }
}

/// Quiet senders speak every 5 s.
const TELL: Duration = Duration::from_secs(5);
