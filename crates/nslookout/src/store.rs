//! What is kept for the next process, so that it goes on where this one ended?
//!
//! The present state and no history: open incidents, alerts that are over and may not have been told everywhere, and
//! what each Alertmanager has taken. Each file is written beside and renamed, so it is whole or the one before. One that
//! can't be understood is told and left: without it the start is a fresh one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use correlate::Snapshot;
use evidence::WallTime;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::alertmanager::ToldAll;
use crate::alerts::Kept;

/// The `store` part of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StoreConfig {
    /// The folder that keeps the present state over restarts. None: a fresh start each time, told of open alerts by the
    /// Alertmanagers alone.
    pub path: Option<PathBuf>,
}

impl StoreConfig {
    /// A file beside the state.
    pub fn file(&self, name: &str) -> Option<KeptFile> {
        Some(KeptFile::new(self.path.as_ref()?, name))
    }
}

/// All that the next process goes on with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The cluster's name: a label of all alerts in here.
    pub cluster: String,
    /// Open incidents.
    pub correlator: Snapshot,
    /// Alerts beside those of open incidents.
    pub alerts: Kept,
    /// What Alertmanagers have taken.
    pub told: ToldAll,
}

/// What a file held.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<T> {
    /// Its value.
    pub content: T,
    /// When it was written.
    pub saved: WallTime,
}

/// The folder, and the task that writes to it.
#[derive(Debug)]
pub struct Store {
    out: watch::Sender<Option<Vec<u8>>>,
    writer: JoinHandle<()>,
    last: String,
    looked: Option<Instant>,
    written: Option<Instant>,
}

impl Store {
    /// Opens the folder, and gives the state in it if it is one of this cluster. None without a folder.
    pub fn open(config: &StoreConfig, cluster: &str) -> (Option<Self>, Option<Found<State>>) {
        let Some(folder) = &config.path else { return (None, None) };
        let file = KeptFile::new(folder, STATE);
        let found = file.read::<State>().filter(|found| found.content.cluster == cluster);
        let (out, states) = watch::channel(None);
        let writer = tokio::spawn(write_all(file, states));
        (Some(Self { out, writer, last: String::new(), looked: None, written: None }), found)
    }

    /// Whether it is time to offer a state again.
    pub fn is_due(&self) -> bool {
        self.looked.is_none_or(|looked| looked.elapsed() >= AT_MOST)
    }

    /// Has the state written if it is another one. One with open incidents is written again now and then, so that its
    /// age says for how long nobody looked.
    pub fn offer(&mut self, state: &State, now: WallTime) {
        self.looked = Some(Instant::now());
        let text = serde_json::to_string(state).unwrap_or_default();
        let lives = state.correlator.incidents().next().is_some();
        let is_old = self.written.is_none_or(|written| written.elapsed() >= ANEW);
        if text != self.last || (lives && is_old) {
            self.out.send_replace(Some(enveloped(&text, now)));
            self.last = text;
            self.written = Some(Instant::now());
        }
    }

    /// Writes the last state.
    pub async fn close(mut self, state: &State, now: WallTime) {
        self.last.clear();
        self.offer(state, now);
        drop(self.out);
        drop(self.writer.await);
    }
}

/// Writes the latest state each time, until no more can come.
async fn write_all(file: KeptFile, mut states: watch::Receiver<Option<Vec<u8>>>) {
    let mut is_failing = false;
    loop {
        let is_open = states.changed().await.is_ok();
        let state = states.borrow_and_update().clone();
        if let (true, Some(bytes)) = (is_open, state) {
            let to = file.0.clone();
            let done = spawn_blocking(move || write_whole(&to, &bytes, 0o600)).await;
            let failed = match done {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let (Some(error), false) = (&failed, is_failing) {
                tracing::warn!("store.path: {}: {error}: a restart would not know of this", file.0.display());
            }
            is_failing = failed.is_some();
        }
        if !is_open {
            return;
        }
    }
}

/// A file with one value in it, its version, and when it was written.
#[derive(Debug, Clone)]
pub struct KeptFile(PathBuf);

#[derive(Deserialize)]
struct Envelope<T> {
    version: u32,
    saved: WallTime,
    content: T,
}

impl KeptFile {
    /// The file of that name in the folder.
    pub fn new(folder: &Path, name: &str) -> Self {
        Self(folder.join(name))
    }

    /// What it holds. None, and a line in the log, for what is no such value of this version.
    pub fn read<T: DeserializeOwned>(&self) -> Option<Found<T>> {
        let path = self.0.display();
        let bytes = match fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("store.path: {path}: {error}: starting without it");
                }
                return None;
            }
        };
        let version = serde_json::from_slice::<Envelope<serde::de::IgnoredAny>>(&bytes);
        match version.map(|envelope| envelope.version) {
            Ok(VERSION) => {}
            Ok(other) => {
                tracing::warn!(
                    "store.path: {path} is of version {other}, not {VERSION}: starting without it"
                );
                return None;
            }
            Err(error) => {
                tracing::warn!("store.path: {path} is damaged ({error}): starting without it");
                return None;
            }
        }
        match serde_json::from_slice::<Envelope<T>>(&bytes) {
            Ok(Envelope { saved, content, .. }) => Some(Found { content, saved }),
            Err(error) => {
                tracing::warn!("store.path: {path} is damaged ({error}): starting without it");
                None
            }
        }
    }

    /// Replaces what it holds.
    pub fn write<T: Serialize>(&self, content: &T, now: WallTime) -> io::Result<()> {
        let text = serde_json::to_string(content)?;
        write_whole(&self.0, &enveloped(&text, now), 0o600)
    }
}

fn enveloped(content: &str, now: WallTime) -> Vec<u8> {
    format!("{{\"version\":{VERSION},\"saved\":{},\"content\":{content}}}\n", now.0).into_bytes()
}

/// Writes a file whole or not at all, and never readable by others in between; its folder is made.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    drop(fs::remove_file(&beside));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The name, too, outlives a node that loses its power.
    fs::File::open(folder)?.sync_all()
}

/// States are compared so often, and written at most so often.
const AT_MOST: Duration = Duration::from_secs(1);
const ANEW: Duration = Duration::from_secs(10);
const STATE: &str = "state.json";
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use correlate::{Change, Config, Correlator, Incident};

    use super::*;

    fn state() -> State {
        let text = r#"[{"labels": {"alertname": "NslookoutDNS", "cause": "server-silent", "severity": "critical"},
            "annotations": {"incident": "server-silent-1-1"}, "startsAt": 5000000, "endsAt": null}]"#;
        let alerts: Vec<crate::alertmanager::Alert> = serde_json::from_str(text).unwrap();
        let incidents: Vec<Incident> = alerts.iter().filter_map(crate::alertmanager::incident).collect();
        State {
            cluster: "c".into(),
            correlator: Snapshot::told(incidents),
            alerts: Kept::default(),
            told: ToldAll::default(),
        }
    }

    #[tokio::test]
    async fn the_next_process_finds_what_the_last_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig { path: Some(folder.path().join("store")) };
        let (store, found) = Store::open(&config, "c");
        assert_eq!(found, None);
        store.unwrap().close(&state(), WallTime(7)).await;
        let mode = fs::metadata(folder.path().join("store/state.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_, found) = Store::open(&config, "c");
        let found = found.unwrap();
        assert_eq!((&found.content, found.saved), (&state(), WallTime(7)));
        let mut correlator = Correlator::new(Config::default());
        correlator.restore(found.content.correlator, WallTime(8_000_000));
        let changes = correlator.tick(WallTime(8_000_000));
        assert!(
            matches!(changes.as_slice(), [Change::Updated(incident)] if incident.since == WallTime(5_000_000))
        );
        assert_eq!(Store::open(&config, "another").1, None, "a state of another cluster is none");
        assert!(Store::open(&StoreConfig::default(), "c").0.is_none());
    }

    #[tokio::test]
    async fn a_state_that_stays_the_same_is_not_written_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig { path: Some(folder.path().to_owned()) };
        let mut store = Store::open(&config, "c").0.unwrap();
        assert!(store.is_due());
        store.offer(&state(), WallTime(7));
        assert!(!store.is_due());
        store.offer(&state(), WallTime(8));
        drop(store.out);
        store.writer.await.unwrap();
        assert_eq!(Store::open(&config, "c").1.unwrap().saved, WallTime(7));
    }

    #[tokio::test]
    async fn a_file_that_is_torn_or_of_another_version_is_left_out_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig { path: Some(folder.path().to_owned()) };
        let whole = enveloped(&serde_json::to_string(&state()).unwrap(), WallTime(7));
        let file = folder.path().join(STATE);
        let mut newer = String::from_utf8(whole.clone()).unwrap();
        newer = newer.replacen("\"version\":1", "\"version\":2", 1);
        let other = br#"{"version":1,"saved":1,"content":{"cluster":"c"}}"#;
        for bad in [&whole[..whole.len() / 2], newer.as_bytes(), other, b"", b"\xff\x00"] {
            fs::write(&file, bad).unwrap();
            let (store, found) = Store::open(&config, "c");
            assert_eq!(found, None, "{}", String::from_utf8_lossy(bad));
            store.unwrap().close(&state(), WallTime(9)).await;
            assert_eq!(Store::open(&config, "c").1.unwrap().saved, WallTime(9));
        }
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_stops_nothing() {
        let config = StoreConfig { path: Some("/proc/none".into()) };
        let (store, found) = Store::open(&config, "c");
        assert_eq!(found, None);
        store.unwrap().close(&state(), WallTime(9)).await;
    }
}
