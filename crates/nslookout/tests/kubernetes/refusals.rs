//! Who may report, where a real API server says whose a token is? Each stranger gets a status, a count and one line.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evidence::wire::Parcel;
use evidence::{Batch, BootTime, ClockReading, Coverage, CoverageState, Observer, Role};
use nslookout::transport::line::{Line, Target, Trouble};
use nslookout::transport::pack::pack;
use serde_json::json;
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, eventually_within};
use crate::tokens::{create_pod, expire, plane, pod_token, signed_anew};

/// The built binary, as the correlator of this control plane.
struct Correlator {
    child: Child,
    folder: TempDir,
    address: SocketAddr,
    page: SocketAddr,
}

impl Drop for Correlator {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Correlator {
    async fn start(plane: &ControlPlane) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = plane.token("dns/correlator", json!({})).await;
        let (address, page) = (free(), free());
        let config = json!({
            "cluster": {"kubeconfig": plane.kubeconfig("correlator", &token)},
            "correlator": {
                "listen": address, "ca": folder.path().join("ca.crt"), "keys": folder.path().join("keys"),
                "accounts": {"namespace": "dns", "prober": "prober", "node": "node"},
            },
            "metrics": {"listen": page},
            "alive": {"socket": folder.path().join("alive.sock")},
        });
        let file = folder.path().join("correlator.yaml");
        fs::write(&file, config.to_string()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nslookout"))
            .args(["correlator", "--config"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let this = Self { child, folder, address, page };
        eventually_within(Duration::from_secs(20), "it listens", async || {
            if this.folder.path().join("ca.crt").exists() { Ok(()) } else { Err(this.log()) }
        })
        .await;
        this
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn refusals(&self, reason: &str) -> u64 {
        let page = self.page;
        let page = tokio::task::spawn_blocking(move || get(page)).await.unwrap();
        let name = format!("nslookout_wire_refusals_total{{reason=\"{reason}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(name.as_str())?.parse().ok()).unwrap_or(0)
    }

    /// Sends a batch of that node with that token.
    async fn send(&self, token: &str, node: &str) -> Result<(), Trouble> {
        let file = self.folder.path().join("token");
        fs::write(&file, token).unwrap();
        let mut line = Line::new(Target {
            address: Some(self.address),
            name: "nslookout-correlator".into(),
            authority: self.folder.path().join("ca.crt"),
            token: file,
        });
        let now = BootTime::now();
        let batch = Batch {
            node: node.into(),
            role: Role::Prober,
            boot_id: String::new(),
            sequence: 1,
            clock: ClockReading::now(),
            from: now,
            to: now,
            observations: vec![],
            coverage: vec![Coverage {
                observer: Observer::Prober,
                place: node.into(),
                state: CoverageState::Looked { lost: 0 },
            }],
        };
        line.post(pack(&Parcel { life: 1, batch }.to_bytes()).into(), 0).await.map(drop)
    }
}

#[tokio::test]
async fn tokens_of_others_are_refused_with_one_line_and_every_try_is_counted() {
    let plane = plane().await;
    let correlator = Correlator::start(&plane).await;
    let a = create_pod(&plane, "prober-a", Some("node-a"), "prober").await;
    let b = create_pod(&plane, "prober-b", Some("node-b"), "prober").await;
    let other = create_pod(&plane, "other-a", Some("node-a"), "other").await;
    let ours = pod_token(&plane, "prober", "nslookout", "prober-a", &a).await;
    let of_b = pod_token(&plane, "prober", "nslookout", "prober-b", &b).await;
    let other_account = pod_token(&plane, "other", "nslookout", "other-a", &other).await;
    let other_audience = pod_token(&plane, "prober", "vault", "prober-a", &a).await;
    let expired = signed_anew(&ours, plane.folder(), expire);

    correlator.send(&ours, "node-a").await.unwrap();
    for (row, token, reason, status) in [
        ("another service account", &other_account, "not-allowed", 403),
        ("another audience", &other_audience, "token", 401),
        ("node B's token for node A", &of_b, "foreign", 403),
        ("an expired token", &expired, "token", 401),
    ] {
        let (counted, lines) =
            (correlator.refusals(reason).await, correlator.log().matches("refused ").count());
        for _ in 0..3 {
            let trouble = correlator.send(token, "node-a").await.unwrap_err();
            assert!(
                matches!(&trouble, Trouble::Refused { status: given, .. } if *given == status),
                "{row}: {trouble}"
            );
        }
        assert_eq!(correlator.refusals(reason).await, counted + 3, "{row}");
        let log = correlator.log();
        assert_eq!(log.matches("refused ").count(), lines + 1, "{row}: {log}");
        assert!(log.lines().last().unwrap().contains(&format!(", {reason}:")), "{row}: {log}");
    }
    // Nobody's token gets into the log, and who was refused did no harm to who is not.
    for token in [&ours, &of_b, &other_account, &other_audience, &expired] {
        assert!(!correlator.log().contains(token.as_str()));
    }
    correlator.send(&ours, "node-a").await.unwrap();
    correlator.send(&of_b, "node-b").await.unwrap();
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn get(page: SocketAddr) -> String {
    use std::io::{Read, Write};
    let mut text = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(page) {
        drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        drop(stream.read_to_string(&mut text));
    }
    text
}
