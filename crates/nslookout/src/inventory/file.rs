//! What does the inventory's file say now, and has it changed?

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evidence::{CoverageState, Inventory, WallTime};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::dns::NameServers;
use super::list::{self, Found, Problem};
use super::told::{Teller, line};

/// Reads the file and follows it.
pub(super) fn start(path: PathBuf, asked: NameServers, first: Arc<Inventory>, teller: Teller) {
    let mut file = Follower { path, asked, stamp: None };
    let mut state = State { inventory: first, known: false, coverage: CoverageState::Looked { lost: 0 } };
    file.has_changed();
    state.take(read(&file.path, &file.asked));
    teller.publish(&state.inventory);
    tokio::spawn(follow(state, file, teller));
}

async fn follow(mut state: State, mut file: Follower, mut teller: Teller) {
    let place = file.path.display().to_string();
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changed = true;
    loop {
        tokio::select! {
            _ = polls.tick() => {}
            () = teller.closed() => return,
        }
        if file.has_changed() {
            // A large file takes a second.
            let (path, asked) = (file.path.clone(), file.asked.clone());
            let read = tokio::task::spawn_blocking(move || read(&path, &asked)).await;
            changed |= read.is_ok_and(|read| state.take(read));
        }
        if matches!(state.coverage, CoverageState::Looked { .. }) {
            teller.stand_by(WallTime::now());
        }
        if changed || Instant::now() >= teller.due() {
            teller.publish(&state.inventory);
            let known = state.known.then_some(&state.inventory);
            if !teller.tell(known, vec![line(&place, state.coverage.clone())]).await {
                return;
            }
            changed = false;
        }
    }
}

/// The inventory as last known, and how well it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    inventory: Arc<Inventory>,
    /// Whether the servers are known at all.
    known: bool,
    coverage: CoverageState,
}

impl State {
    /// True if anything that is told changed.
    fn take(&mut self, read: Result<Found, Error>) -> bool {
        let before = self.clone();
        match read {
            Ok(found) => {
                self.inventory = Arc::new(found.inventory);
                self.known = true;
                self.coverage = CoverageState::Looked { lost: found.broken };
            }
            // The last state is kept: servers don't go away because a file is broken.
            Err(error) => self.coverage = CoverageState::Denied { missing: error.to_string() },
        }
        *self != before
    }
}

/// Why the file gives no inventory.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the inventory {path} can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the inventory {path} is no list of Kubernetes objects: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the inventory {path} has {0}", .problem.words())]
    Content { path: PathBuf, problem: Problem },
}

/// One file and its last known state on disk.
#[derive(Debug)]
struct Follower {
    path: PathBuf,
    asked: NameServers,
    stamp: Option<Stamp>,
}

/// What differs between two versions of a file, be it replaced or written in place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stamp {
    Version { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
    Unreadable(io::ErrorKind),
}

impl Follower {
    /// Whether the file differs from when this was last asked. One system call.
    fn has_changed(&mut self) -> bool {
        let metadata = fs::metadata(&self.path);
        // Taken before the file is read: a change while it is read shows at the next poll.
        let stamp = match &metadata {
            Ok(m) => Stamp::Version {
                device: m.dev(),
                inode: m.ino(),
                size: m.size(),
                modified: (m.mtime(), m.mtime_nsec()),
                changed: (m.ctime(), m.ctime_nsec()),
            },
            Err(error) => Stamp::Unreadable(error.kind()),
        };
        self.stamp.replace(stamp.clone()) != Some(stamp)
    }
}

fn read(path: &Path, asked: &NameServers) -> Result<Found, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let reader = BufReader::with_capacity(1 << 16, file.take(MAX_FILE_BYTES));
    let objects =
        serde_json::from_reader(reader).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    list::find(objects, asked).map_err(|problem| Error::Content { path: path.to_owned(), problem })
}

/// How soon a change is seen. Endpoints change while lookups fail, so it is part of the ten seconds.
const POLL: Duration = Duration::from_millis(250);

/// A cluster of 10,000 pods prints about 100 MB.
const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;
