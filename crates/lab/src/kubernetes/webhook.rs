//! Who is called by Alertmanager, and what was it told?
//!
//! A receiver in the cluster's monitor namespace that keeps what comes. It ends each connection, so that each call
//! has to find it by its name again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netns::Namespace;
use serde::Deserialize;

use crate::Error;

/// Where it listens, in the monitor namespace.
pub const PORT: u16 = 8080;

/// A receiver that listens until it is dropped.
#[derive(Debug)]
pub struct Webhook {
    told: Arc<Mutex<Vec<Told>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One alert of one call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// "firing" or "resolved".
    pub status: String,
    /// Its identity.
    pub labels: BTreeMap<String, String>,
    /// When it began, RFC 3339.
    pub starts_at: String,
}

/// The body of a call, as far as it is read.
/// <https://prometheus.io/docs/alerting/0.25/configuration/#webhook_config>
#[derive(Debug, Deserialize)]
struct Call {
    alerts: Vec<Told>,
}

impl Webhook {
    /// Listens in this namespace.
    pub fn listen(netns: &Path) -> Result<Self, Error> {
        let listener = Namespace::open(netns)?
            .run_blocking(|| {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
                listener.set_nonblocking(true).map(|()| listener)
            })?
            .map_err(Error::system("listen for Alertmanager's calls"))?;
        let (told, stop) = (Arc::<Mutex<Vec<Told>>>::default(), Arc::<AtomicBool>::default());
        let (heard, ended) = (Arc::clone(&told), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                match listener.accept() {
                    // Who calls wrongly is told so by the answer that doesn't come; Alertmanager calls again.
                    Ok((stream, _)) => match take(stream) {
                        Ok(alerts) => heard.lock().unwrap_or_else(PoisonError::into_inner).extend(alerts),
                        Err(error) => eprintln!("a call to the webhook failed: {error}"),
                    },
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Ok(Self { told, stop, thread: Some(thread) })
    }

    /// All that it was told so far, in the order it came.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn take(mut stream: TcpStream) -> std::io::Result<Vec<Told>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new((&stream).take(LONGEST));
    let mut length: u64 = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let call: Call = serde_json::from_slice(&body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(call.alerts)
}

const PATIENCE: Duration = Duration::from_secs(3);
/// A call with one alert has some 3 KB.
const LONGEST: u64 = 1 << 20;
