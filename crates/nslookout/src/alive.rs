//! Does this part run, and can it tell? What kubelet's `exec` probes ask, on a unix socket: no packet is needed.
//!
//! Alive is whose loop turns: what it sees is then sent, or kept until it can be. That a correlator is away, or that an
//! observer is blind, is told here, but kills nobody: a restarted agent would lose what it keeps.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evidence::BootTime;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alive {
    /// Whether it runs and can tell.
    pub alive: bool,
    /// Which part: "agent prober", "agent node", "correlator".
    pub part: String,
    /// How it does, in words.
    pub state: String,
}

/// When a loop last turned.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The loop turns.
    pub fn beat(&self) {
        self.0.store(BootTime::now().0, Ordering::Relaxed);
    }

    /// Whether it has turned lately.
    pub fn beats(&self) -> bool {
        BootTime::now().since(BootTime(self.0.load(Ordering::Relaxed))) < SILENT
    }
}

/// Why nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Listens on the socket. One that is left over is replaced, one that somebody answers on is not.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    if Blocking::connect(path).is_ok() {
        return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, "another nslookout answers there")));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path).map_err(failed)
}

/// Answers until the future is dropped, one asker after the other.
pub async fn serve(listener: UnixListener, answer: impl Fn() -> Alive) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let line = serde_json::to_string(&answer()).unwrap_or_default();
        drop(timeout(LONGEST, stream.write_all(line.as_bytes())).await);
    }
}

/// Asks the part that listens there.
pub async fn ask(path: &Path) -> Result<Alive, Error> {
    let asked = timeout(LONGEST, async {
        let mut text = String::new();
        UnixStream::connect(path).await?.take(MAX_BYTES).read_to_string(&mut text).await?;
        serde_json::from_str(&text).map_err(io::Error::other)
    });
    let answer = asked.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    answer.map_err(|source| Error { path: path.to_owned(), source })
}

/// A loop that has not turned for so long hangs.
const SILENT: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(2);
const MAX_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_runs_answers_and_a_socket_that_is_left_over_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/alive.sock");
        assert!(ask(&path).await.is_err());
        drop(listen(&path).unwrap());
        let listener = listen(&path).unwrap();
        let pulse = Pulse::default();
        let answer = {
            let pulse = pulse.clone();
            move || Alive { alive: pulse.beats(), part: "p".into(), state: "s".into() }
        };
        tokio::spawn(serve(listener, answer));
        assert!(!ask(&path).await.unwrap().alive);
        pulse.beat();
        assert!(ask(&path).await.unwrap().alive);
        assert!(listen(&path).is_err(), "one that is in use is not taken away");
    }
}
