//! What do people hear when a whole cluster sees the same dead DNS, and does all the evidence arrive?

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evidence::{
    Attempt, AttemptResult, BootTime, Counters, Coverage, CoverageState, Lookup, LookupId, NameKind,
    Observation, Observer, Outcome, QueryType, Role, ServerRole,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, interval};

use crate::site::{Site, free, get};
use crate::{letter, parcel};

/// Debian's Alertmanager, and a webhook that keeps what people would have been told.
struct Alertmanager {
    child: Child,
    address: SocketAddr,
    told: Arc<Mutex<Vec<Value>>>,
    _folder: TempDir,
}

impl Alertmanager {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (webhook, told) = webhook();
        let config = json!({
            "route": {
                "receiver": "test", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s",
                "repeat_interval": "1h",
            },
            "receivers": [{"name": "test", "webhook_configs": [{"url": format!("http://{webhook}/")}]}],
        });
        std::fs::write(folder.path().join("config.yaml"), config.to_string()).unwrap();
        let program = lab::programs::alertmanager().unwrap();
        // It reads its templates from a fixed path in /usr/share, and is not installed: it sees its own package's there.
        let share = program.parent().unwrap().parent().unwrap().join("share");
        let address = free();
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg("mount --bind \"$1\" /usr/share && shift && exec \"$@\"")
            .arg("sh")
            .args([share, program])
            .arg(format!("--config.file={}", folder.path().join("config.yaml").display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address, told, _folder: folder }
    }

    fn is_ready(&self) -> bool {
        get(self.address, "/-/ready").starts_with("HTTP/1.1 200")
    }

    /// The alerts of DNS that fire.
    fn firing(&self) -> Vec<Value> {
        let page = get(self.address, "/api/v2/alerts?filter=alertname=NslookoutDNS");
        serde_json::from_str(page.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default()
    }

    /// What people were told of DNS: firing or resolved, by labels.
    fn told(&self) -> Vec<Value> {
        let told = self.told.lock().unwrap();
        told.iter().filter(|alert| alert["labels"]["alertname"] == "NslookoutDNS").cloned().collect()
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn webhook() -> (SocketAddr, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let told: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = told.clone();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            drop(stream.set_read_timeout(Some(Duration::from_secs(5))));
            let (mut text, mut part) = (String::new(), [0; 4096]);
            // The body is one JSON object: it is there once it can be read.
            let body = loop {
                let size = stream.read(&mut part).unwrap_or(0);
                text.push_str(&String::from_utf8_lossy(&part[..size]));
                let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
                if body.is_some() || size == 0 {
                    break body.unwrap_or(Value::Null);
                }
            };
            kept.lock().unwrap().extend(body["alerts"].as_array().cloned().unwrap_or_default());
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
        }
    });
    (address, told)
}

fn ago(seconds: u64) -> BootTime {
    BootTime(BootTime::now().0 - seconds * 1_000_000_000)
}

/// What a prober sees of a silent server each second: its Service and itself are unanswered for a second, and the
/// lookups before that end after five.
fn silence(node: &str, server: SocketAddr, second: u64) -> Vec<Observation> {
    let mut seen = Vec::new();
    for (number, role) in [ServerRole::Service, ServerRole::Direct].into_iter().enumerate() {
        let id = |second: u64| LookupId(second * 2 + u64::try_from(number).unwrap());
        let name = "kubernetes.default.svc.cluster.local.";
        seen.push(Observation::Attempt(Attempt {
            lookup: id(second),
            vantage: node.into(),
            profile: "musl".into(),
            server,
            role,
            source: "10.244.1.7:40000".parse().unwrap(),
            query_id: u16::try_from(second).unwrap(),
            name: name.into(),
            name_kind: NameKind::Cluster,
            qtype: QueryType::A,
            sent: ago(1),
            result: AttemptResult::Unanswered { wait_ns: 1_000_000_000 },
        }));
        if second >= 4 {
            seen.push(Observation::Lookup(Lookup {
                id: id(second - 4),
                vantage: node.into(),
                profile: "musl".into(),
                server,
                role,
                name: name.into(),
                name_kind: NameKind::Cluster,
                started: ago(5),
                ended: BootTime::now(),
                outcome: Outcome::TryAgain,
                packets: 4,
            }));
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_agents_that_see_the_same_dead_dns_make_one_alert_and_no_batch_is_lost() {
    let nodes: Vec<String> = (0..100).map(|i| format!("node-{i}")).collect();
    let alertmanager = Alertmanager::start();
    let mut site = Site::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    site.alertmanagers = json!({"addresses": [format!("http://{}", alertmanager.address)]});
    site.wait("Alertmanager is ready", || alertmanager.is_ready());
    site.start_correlator();
    let (server, start) = (site.dns, Instant::now());
    let mut senders = tokio::task::JoinSet::new();
    for (node, role) in
        nodes.iter().flat_map(|node| [(node.clone(), Role::Prober), (node.clone(), Role::Node)])
    {
        let mut line = site.line(&format!("{node}-{}", if role == Role::Prober { "prober" } else { "node" }));
        senders.spawn(async move {
            let mut turns = interval(Duration::from_secs(1));
            // Healthy for three seconds, and then DNS is dead.
            for sequence in 1..=SECONDS {
                turns.tick().await;
                let mut parcel = parcel(&node, 1, sequence, if sequence <= 3 { 2 } else { 0 });
                parcel.batch.role = role;
                if role == Role::Node {
                    let counters = Counters {
                        node: node.clone(),
                        at: BootTime::now(),
                        max: 1000,
                        ..Counters::default()
                    };
                    parcel.batch.observations = vec![Observation::Counters(counters)];
                    parcel.batch.coverage = vec![Coverage {
                        observer: Observer::ConntrackCounters,
                        place: node.clone(),
                        state: CoverageState::Looked { lost: 0 },
                    }];
                } else if sequence > 3 {
                    parcel.batch.observations = silence(&node, server, sequence - 4);
                }
                let letter = letter(&parcel);
                // As a courier does: what can't be taken now is sent again.
                let answer = loop {
                    match line.post(letter.clone(), 0).await {
                        Ok(answer) => break answer,
                        Err(trouble) => assert!(!trouble.is_final(), "{trouble}"),
                    }
                    tokio::time::sleep(Duration::from_millis(250)).await;
                };
                assert_eq!(answer.sequence, sequence);
            }
        });
    }
    let mut first = None;
    while start.elapsed() < Duration::from_secs(SECONDS) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if first.is_none() && !alertmanager.firing().is_empty() {
            first = Some(start.elapsed());
        }
    }
    senders.join_all().await;
    println!(
        "the alert came {:?} after the first silence began",
        first.map(|at| at.saturating_sub(Duration::from_secs(3)))
    );

    let firing = alertmanager.firing();
    let [alert] = firing.as_slice() else { panic!("{firing:#?}") };
    assert_eq!(alert["labels"]["cause"], "server-silent", "{alert:#}");
    assert_eq!(alert["labels"]["node"], Value::Null, "all nodes: {alert:#}");
    // People hear once, of all nodes and of all servers together.
    let told: Vec<_> = alertmanager.told().into_iter().filter(|alert| alert["status"] == "firing").collect();
    assert_eq!(told.len(), 1, "{told:#?}");

    let all = 200 * SECONDS;
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"accepted\"}"), all);
    for nothing in ["nslookout_wire_missing_batches", "nslookout_wire_batches_total{result=\"duplicate\"}"] {
        assert_eq!(site.figure(nothing), 0, "{nothing}");
    }
    // On a busy machine some come twice, and none is turned away for good.
    let log = site.log("correlator");
    assert!(log.lines().all(|line| !line.contains("refused") || line.contains("busy")), "{log}");

    // What all of them may ask is told.
    let probes = site.status()["probes"].clone();
    assert_eq!((&probes["vantages"], &probes["ceiling"]), (&json!(100), &json!(551.5)), "{probes}");
    println!("{probes}; correlator's memory {}", site.correlator_process().memory());
}

const SECONDS: u64 = 20;
