//! What did the API server say last, before this process began?
//!
//! A correlator that starts while the API server is away still knows whose servers are silent. What names servers is
//! written at once, what names pods once a minute at most: their names are a comfort.

use std::sync::Arc;
use std::time::Duration;

use evidence::{Inventory, WallTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::told::Teller;
use crate::store::KeptFile;

/// Tells what is kept, if it is not too old.
pub(super) fn restore(file: &KeptFile, teller: &Teller) {
    let Some(kept) = file.read::<Inventory>() else { return };
    if WallTime::now().since(kept.saved) < GOOD {
        teller.remember(kept.content, kept.saved);
    }
}

/// Keeps what the API server says, until nobody says anything more.
pub(super) async fn keep(
    file: KeptFile,
    mut inventory: watch::Receiver<Arc<Inventory>>,
    as_of: watch::Receiver<Option<WallTime>>,
) {
    let mut kept: Option<(Arc<Inventory>, WallTime, Instant)> = None;
    let begin = *as_of.borrow();
    loop {
        let present = inventory.borrow_and_update().clone();
        let stands = *as_of.borrow();
        // What was restored is not news: it is as old as it was.
        if let Some(at) = stands.filter(|_| stands != begin) {
            let is_due = kept.as_ref().is_none_or(|(before, before_at, written)| {
                let servers = before.service != present.service || before.endpoints != present.endpoints;
                let rest = **before != *present || at.since(*before_at) >= ANEW;
                servers || (rest && written.elapsed() >= PODS_EVERY)
            });
            if is_due {
                write(&file, &present, at).await;
                kept = Some((present, at, Instant::now()));
            }
        }
        tokio::select! {
            changed = inventory.changed() => if changed.is_err() { return },
            () = sleep_until(Instant::now() + LOOKED_AT) => {}
        }
    }
}

async fn write(file: &KeptFile, inventory: &Arc<Inventory>, at: WallTime) {
    let (file, inventory) = (file.clone(), inventory.clone());
    let done = tokio::task::spawn_blocking(move || {
        if inventory.pods.len() > MOST_PODS {
            file.write(&Inventory { pods: Vec::new(), ..Inventory::clone(&inventory) }, at)
        } else {
            file.write(&*inventory, at)
        }
    });
    if let Ok(Err(error)) = done.await {
        tracing::debug!("store.path: the inventory is not kept: {error}");
    }
}

/// Servers that were not seen for so long are others by now.
const GOOD: Duration = Duration::from_secs(24 * 3600);
const PODS_EVERY: Duration = Duration::from_secs(60);
/// One that stays the same is written again, to say that it does.
const ANEW: Duration = Duration::from_secs(300);
const LOOKED_AT: Duration = Duration::from_secs(5);
/// About 8 MB.
const MOST_PODS: usize = 40_000;

#[cfg(test)]
mod tests {
    use evidence::{Endpoint, Observation};
    use tokio::sync::mpsc;

    use super::*;

    fn inventory(server: &str) -> Inventory {
        let address = server.parse().unwrap();
        let endpoint = Endpoint { name: "dns".into(), address, node: None, serving: true, leaving: false };
        Inventory { endpoints: vec![endpoint], ..Inventory::default() }
    }

    #[tokio::test]
    async fn the_next_process_knows_the_servers_and_how_old_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeptFile::new(folder.path(), "inventory.json");
        let (publish, receiver) = watch::channel(Arc::new(Inventory::default()));
        let (stand_by, as_of) = watch::channel(None);
        let keeper = tokio::spawn(keep(file.clone(), receiver, as_of));
        let at = WallTime::now();
        // Nothing is kept that the API server has not said.
        publish.send_replace(Arc::new(inventory("10.0.0.9:53")));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(file.read::<Inventory>().is_none());
        stand_by.send_replace(Some(at));
        publish.send_replace(Arc::new(inventory("10.0.0.1:53")));
        drop(publish);
        keeper.await.unwrap();

        let (publish, receiver) = watch::channel(Arc::new(Inventory::default()));
        let (stand_by, as_of) = watch::channel(None);
        let (out, mut reports) = mpsc::channel(8);
        let teller = Teller::new(publish, stand_by, out);
        restore(&file, &teller);
        assert_eq!((&**receiver.borrow(), *as_of.borrow()), (&inventory("10.0.0.1:53"), Some(at)));
        let told = reports.try_recv().unwrap().observations;
        assert_eq!(told, [Observation::Inventory(inventory("10.0.0.1:53").into())]);

        // What was restored and never said again stays as old as it is.
        let (_publish, receiver) = watch::channel(Arc::new(inventory("10.0.0.2:53")));
        let (_stand_by, as_of) = watch::channel(Some(at));
        drop(tokio::time::timeout(Duration::from_millis(100), keep(file.clone(), receiver, as_of)).await);
        assert_eq!(file.read::<Inventory>().unwrap().content, inventory("10.0.0.1:53"));
    }
}
