//! What happens to a lab when its process is told to end (Ctrl-C, SIGTERM)?
//!
//! A thread of its own waits for the signal, undoes this process's labs, and ends the process. While a step of
//! building goes on it waits for that step, and no further one begins.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Error, journal};

static ONCE: Once = Once::new();
static ASKED: AtomicBool = AtomicBool::new(false);
static STEP: Mutex<()> = Mutex::new(());

/// From now on Ctrl-C and SIGTERM clean up. Calling it again changes nothing.
pub fn install() {
    ONCE.call_once(|| {
        // Where no thread or runtime can be had, the next start cleans up instead.
        let _ = thread::Builder::new().name("interrupt".into()).spawn(|| {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else {
                return;
            };
            runtime.block_on(async {
                let (Ok(mut interrupt), Ok(mut terminate)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                else {
                    return;
                };
                let code = first(&mut interrupt, &mut terminate).await;
                ASKED.store(true, Ordering::SeqCst);
                let _step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
                journal::undo_own();
                std::process::exit(code);
            });
        });
    });
}

/// Runs a step that makes something. An interrupt waits for its end; after one, no step begins.
pub fn step<T>(make: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let _step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
    if ASKED.load(Ordering::SeqCst) {
        return Err(Error::system("raise the lab")(std::io::ErrorKind::Interrupted.into()));
    }
    make()
}

async fn first(interrupt: &mut Signal, terminate: &mut Signal) -> i32 {
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    }
}
