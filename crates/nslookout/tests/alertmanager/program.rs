//! What is it like to be Alertmanager? The real one, with what it told people.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coredns_watch::http::{Ask, Connection, Limits, Tls};
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// Alertmanager on a port of its own, with what it told people.
pub struct Alertmanager {
    child: Option<Child>,
    folder: TempDir,
    /// Where it listens.
    pub address: SocketAddr,
    lock: Option<Lock>,
    /// (name, firing or resolved, startsAt) of each alert in each notification.
    told: Arc<Mutex<Vec<(String, String, String)>>>,
}

/// What an Alertmanager on https wants, and how it is asked nevertheless.
pub struct Lock {
    /// Its --web.config.file.
    pub web_config: String,
    /// Whom a client trusts.
    pub tls: Tls,
    /// What a client says of itself.
    pub authorization: HeaderValue,
}

impl Alertmanager {
    /// At this address.
    pub async fn start_at(address: SocketAddr, lock: Option<Lock>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let webhook = webhook(told.clone()).await;
        let config = format!(
            "route:\n  receiver: test\n  group_by: ['...']\n  group_wait: 0s\n  group_interval: 1s\n  \
             repeat_interval: 1h\nreceivers:\n  - name: test\n    webhook_configs:\n      - url: http://{webhook}/\n"
        );
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        if let Some(lock) = &lock {
            std::fs::write(folder.path().join("web.yaml"), &lock.web_config).unwrap();
        }
        let mut this = Self { child: None, folder, address, lock, told };
        this.up().await;
        this
    }

    /// Starts it and waits until it answers.
    pub async fn up(&mut self) {
        let program = lab::programs::alertmanager().unwrap();
        // Debian's Alertmanager reads its templates from a fixed path in /usr/share, and it is not installed: it
        // runs in a mount namespace where it sees its own package's.
        let share = program.parent().unwrap().parent().unwrap().join("share");
        let web = self.lock.as_ref().map(|_| self.folder.path().join("web.yaml"));
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg("mount --bind \"$1\" /usr/share && shift && exec \"$@\"")
            .arg("sh")
            .arg(share)
            .arg(program)
            .arg(format!("--config.file={}", self.folder.path().join("config.yaml").display()))
            .arg(format!("--storage.path={}", self.folder.path().join("data").display()))
            .arg(format!("--web.listen-address={}", self.address))
            .arg("--cluster.listen-address=")
            .args(web.map(|file| format!("--web.config.file={}", file.display())))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("Alertmanager is ready", async || self.get("/-/ready").await.is_some()).await;
    }

    /// Ends it as an operator would: it writes down whom it told.
    pub async fn down(&mut self) {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    }

    /// The firing alerts by name.
    pub async fn firing(&self) -> BTreeMap<String, Value> {
        let body = self.get("/api/v2/alerts").await.unwrap_or_default();
        let alerts: Vec<Value> = serde_json::from_slice(&body).unwrap_or_default();
        alerts
            .into_iter()
            .map(|alert| (alert["labels"]["alertname"].as_str().unwrap().to_owned(), alert))
            .collect()
    }

    pub async fn fires(&self, name: &str) -> bool {
        self.firing().await.contains_key(name)
    }

    async fn get(&self, path: &str) -> Option<Vec<u8>> {
        let limits = Limits { timeout: Duration::from_secs(2), body_bytes: 1 << 20 };
        let mut connection = Connection::new(Namespace::current().unwrap(), self.address, limits);
        if let Some(lock) = &self.lock {
            connection.set_tls(Some(lock.tls.clone()));
            connection.set_authorization(Some(lock.authorization.clone()));
        }
        let ask = Ask { method: Method::GET, path, accept: "*/*", body: None };
        let answer = connection.ask(&ask).await.ok().filter(|answer| answer.status == 200)?;
        Some(answer.body.to_vec())
    }

    /// How often people were told that the alert fires, and that it is over.
    pub fn told(&self, name: &str) -> (usize, usize) {
        let told = self.told.lock().unwrap();
        let count = |state: &str| told.iter().filter(|(n, s, _)| n == name && s == state).count();
        (count("firing"), count("resolved"))
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

async fn webhook(told: Arc<Mutex<Vec<(String, String, String)>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let told = told.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let notification: Value = serde_json::from_slice(&body).unwrap();
                    for alert in notification["alerts"].as_array().unwrap() {
                        let text = |value: &Value| value.as_str().unwrap().to_owned();
                        let line = (
                            text(&alert["labels"]["alertname"]),
                            text(&alert["status"]),
                            text(&alert["startsAt"]),
                        );
                        told.lock().unwrap().push(line);
                    }
                    Ok::<_, hyper::Error>(Response::new(Full::<bytes::Bytes>::default()))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

/// Gives the time it took.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        sleep(Duration::from_millis(20)).await;
    }
    begin.elapsed()
}
