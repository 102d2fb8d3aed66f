//! A correlator and agents as processes of the built binary, on loopback, with a name server that has no names.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nslookout::transport::line::{Line, Target};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The processes of one test; they end with it.
pub struct Site {
    pub folder: TempDir,
    pub correlator: SocketAddr,
    pub page: SocketAddr,
    pub dns: SocketAddr,
    /// More of the correlator's configuration.
    pub more: Value,
    /// Whom it tells.
    pub alertmanagers: Value,
    process: Option<Process>,
}

/// An agent, or the correlator.
pub struct Process {
    pub page: SocketAddr,
    pub socket: PathBuf,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Site {
    /// Who has a token, "NODE-ROLE" being its text; "expired" has ended. Nobody runs yet.
    pub fn new(nodes: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut tokens = vec![
            json!({"token": "expired", "node": "node-a", "role": "prober", "expires": "2001-01-01T00:00:00Z"}),
        ];
        for node in nodes {
            for role in ["prober", "node"] {
                let token = format!("{node}-{role}");
                fs::write(folder.path().join(&token), format!("{token}\n")).unwrap();
                tokens.push(json!({"token": token, "node": node, "role": role}));
            }
        }
        fs::write(folder.path().join("tokens.json"), json!(tokens).to_string()).unwrap();
        Self {
            folder,
            correlator: free(),
            page: free(),
            dns: free(),
            more: json!({}),
            alertmanagers: json!({}),
            process: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Answers every query with NXDOMAIN: an answer as good as any.
    pub fn start_dns(&self) {
        let socket = UdpSocket::bind(self.dns).unwrap();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((size, peer)) = socket.recv_from(&mut packet) {
                packet[2] |= 0x80;
                packet[3] = 0x83;
                drop(socket.send_to(&packet[..size], peer));
            }
        });
    }

    pub fn start_correlator(&mut self) {
        let mut correlator = self.wire();
        correlator["listen"] = json!(self.correlator);
        correlator["keys"] = json!(self.path("keys"));
        correlator["tokens"] = json!(self.path("tokens.json"));
        for (key, value) in self.more.as_object().unwrap() {
            correlator[key] = value.clone();
        }
        let alertmanagers = &self.alertmanagers;
        let config =
            json!({"correlator": correlator, "cluster": self.cluster(), "alertmanagers": alertmanagers});
        self.process = Some(self.start("correlator", &["correlator"], self.page, config));
        self.wait("the correlator is ready", || get(self.page, "/readyz").starts_with("HTTP/1.1 200"));
    }

    /// SIGKILL.
    pub fn kill_correlator(&mut self) {
        self.process = None;
    }

    /// An agent that asks every 200 ms. `part` is "prober" or "node".
    pub fn start_agent(&self, node: &str, part: &str) -> Process {
        self.start_agent_with(node, part, 1000)
    }

    /// With room for so many batches.
    pub fn start_agent_with(&self, node: &str, part: &str, spool: usize) -> Process {
        let name = format!("{node}-{part}");
        let config = json!({
            "agent": {"node": node, "token": self.path(&name), "spoolBatches": spool},
            "correlator": self.wire(),
            "cluster": self.cluster(),
            "prober": {"interval": "200ms", "directFrom": 0},
            // Of the whole machine: other tests have their own.
            "conntrackWatch": {"drops": false},
        });
        self.start(&name, &["agent", part], free(), config)
    }

    fn wire(&self) -> Value {
        json!({"address": self.correlator, "ca": self.path("ca.crt")})
    }

    fn cluster(&self) -> Value {
        json!({"service": {"addresses": [self.dns]}, "servers": [self.dns]})
    }

    fn start(&self, name: &str, command: &[&str], page: SocketAddr, mut config: Value) -> Process {
        let socket = self.path(&format!("{name}.sock"));
        config["metrics"] = json!({"listen": page});
        config["alive"] = json!({"socket": socket});
        let file = self.path(&format!("{name}.yaml"));
        fs::write(&file, config.to_string()).unwrap();
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nslookout"))
            .args(command)
            .arg("--config")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Process { page, socket, child }
    }

    /// A sender of this test's own.
    pub fn line(&self, token: &str) -> Line {
        let token_file = self.path(&format!("{token}.sent"));
        fs::write(&token_file, token).unwrap();
        Line::new(Target {
            address: Some(self.correlator),
            name: "nslookout-correlator".into(),
            authority: self.path("ca.crt"),
            token: token_file,
        })
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// A figure of the correlator.
    pub fn figure(&self, name: &str) -> u64 {
        figure(self.page, name)
    }

    pub fn status(&self) -> Value {
        let page = get(self.page, "/api/v1/status");
        serde_json::from_str(page.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default()
    }

    pub fn correlator_process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    pub fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            if start.elapsed() > Duration::from_secs(30) {
                for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
                    if entry.path().extension().is_some_and(|e| e == "log") {
                        eprintln!(
                            "{}:\n{}",
                            entry.path().display(),
                            fs::read_to_string(entry.path()).unwrap()
                        );
                    }
                }
                panic!("it never was so: {what}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Process {
    pub fn figure(&self, name: &str) -> u64 {
        figure(self.page, name)
    }

    /// As kubelet asks.
    pub fn alive(&self) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_nslookout"))
            .args(["alive", "--socket"])
            .arg(&self.socket)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Memory now, in MiB: in all, and without what is mapped of the binary.
    pub fn memory(&self) -> String {
        let file = Path::new("/proc").join(self.child.id().to_string()).join("status");
        let status = fs::read_to_string(file).unwrap();
        let mib = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
            value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
        };
        format!("{:.1} MiB ({:.1} anonymous)", mib("VmRSS:"), mib("RssAnon:"))
    }
}

/// A metric of a page, zero while it is not told; labels as they stand there.
fn figure(page: SocketAddr, name: &str) -> u64 {
    let text = get(page, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse::<i64>().ok()).and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
}

pub fn get(address: SocketAddr, path: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        drop(write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        drop(stream.read_to_string(&mut text));
    }
    text
}

pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
