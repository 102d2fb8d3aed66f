//! What is it like to have an API server? A real etcd and a real kube-apiserver on loopback, without a node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kube::Client;
use lab::programs::cluster::{self, ClusterPrograms};
use nslookout::inventory::ClusterConfig;
use nslookout::kubernetes::connect;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// The issuer of service account tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Both programs, and the administrator's connection.
pub struct ControlPlane {
    programs: ClusterPrograms,
    folder: TempDir,
    /// Where kube-apiserver listens.
    pub address: SocketAddr,
    /// As system:masters.
    pub admin: Client,
    etcd: Child,
    api: Option<Child>,
    etcd_address: SocketAddr,
}

impl ControlPlane {
    /// Starts both and waits until the API server is ready.
    pub async fn start() -> Self {
        let programs = tokio::task::spawn_blocking(cluster::all).await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let own = own_address();
        write_keys(folder.path(), own);
        let [address, etcd_address, peers] = [6443, 2379, 2380].map(|port| SocketAddr::new(own, port));
        let etcd = run(
            folder.path(),
            "etcd",
            &programs.etcd,
            &[
                format!("--data-dir={}", folder.path().join("etcd").display()),
                format!("--listen-client-urls=http://{etcd_address}"),
                format!("--advertise-client-urls=http://{etcd_address}"),
                format!("--listen-peer-urls=http://{peers}"),
                format!("--initial-advertise-peer-urls=http://{peers}"),
                format!("--initial-cluster=default=http://{peers}"),
            ],
        );
        let kubeconfig = write_kubeconfig(folder.path(), "admin", "admin-token", address);
        let admin = client(&kubeconfig).await;
        let mut this = Self { programs, folder, address, admin, etcd, api: None, etcd_address };
        this.start_api().await;
        this
    }

    /// Starts kube-apiserver (again) and waits until it is ready.
    pub async fn start_api(&mut self) {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let child = run(
            self.folder.path(),
            "kube-apiserver",
            &self.programs.kubernetes.join("kube-apiserver"),
            &[
                format!("--etcd-servers=http://{}", self.etcd_address),
                format!("--bind-address={}", self.address.ip()),
                format!("--secure-port={}", self.address.port()),
                // Nobody looks for it by its own Service here.
                "--advertise-address=192.0.2.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                format!("--token-auth-file={}", file("tokens.csv")),
                format!("--tls-cert-file={}", file("serving.crt")),
                format!("--tls-private-key-file={}", file("serving.key")),
                format!("--service-account-issuer={ISSUER}"),
                format!("--service-account-key-file={}", file("tokens.pub")),
                format!("--service-account-signing-key-file={}", file("tokens.key")),
            ],
        );
        self.api = Some(child);
        let admin = self.admin.clone();
        let log = self.folder.path().join("kube-apiserver.log");
        eventually_within(Duration::from_secs(60), "the API server is ready", async || {
            let ready = get(&admin, "/readyz").await.is_ok();
            // The roles that every cluster has are made a moment later.
            let role = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:service-account-issuer-discovery";
            if ready && get(&admin, role).await.is_ok() { Ok(()) } else { Err(tail(&log)) }
        })
        .await;
    }

    /// Kills kube-apiserver.
    pub fn stop_api(&mut self) {
        let mut child = self.api.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Creates an object: POST of it to the path.
    pub async fn create(&self, path: &str, object: Value) -> Value {
        self.send("POST", path, &object, "application/json").await
    }

    /// Changes an object by a merge patch.
    pub async fn patch(&self, path: &str, patch: Value) -> Value {
        self.send("PATCH", path, &patch, "application/merge-patch+json").await
    }

    /// Deletes an object at once.
    pub async fn delete(&self, path: &str) {
        self.send("DELETE", path, &json!({"gracePeriodSeconds": 0}), "application/json").await;
    }

    /// A token of a service account, as TokenRequest makes it.
    pub async fn token(&self, account: &str, spec: Value) -> String {
        let (namespace, name) = account.split_once('/').unwrap();
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let answer = self.create(&path, json!({"spec": spec})).await;
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        write_kubeconfig(self.folder.path(), name, token, self.address)
    }

    /// The folder with ca.crt.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn send(&self, method: &str, path: &str, body: &Value, kind: &str) -> Value {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body.to_string().into_bytes())
            .unwrap();
        match self.admin.request(request).await {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.api.iter_mut().chain([&mut self.etcd]) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// GET, as text.
pub async fn get(client: &Client, path: &str) -> Result<String, kube::Error> {
    client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await
}

/// The connection that a kubeconfig names.
pub async fn client(kubeconfig: &Path) -> Client {
    let config = ClusterConfig { kubeconfig: Some(kubeconfig.to_owned()), ..ClusterConfig::default() };
    connect(&config).await.unwrap().client
}

/// Asks again until it is so; tells what it last was.
pub async fn eventually_within<E: std::fmt::Debug>(
    deadline: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Result<(), E>,
) -> Duration {
    let begin = Instant::now();
    loop {
        let Err(seen) = check().await else { return begin.elapsed() };
        assert!(begin.elapsed() < deadline, "never within {deadline:?}: {what}; last {seen:#?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Ends with the test, however that ends.
fn run(folder: &Path, name: &str, program: &Path, arguments: &[String]) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(format!("{name}.log")))
        .unwrap();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

fn write_keys(folder: &Path, own: IpAddr) {
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.crt", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let serving = CertificateParams::new(vec![own.to_string()]).unwrap();
    write("serving.crt", serving.signed_by(&key, &issuer).unwrap().pem());
    write("serving.key", key.serialize_pem());
    let tokens = KeyPair::generate().unwrap();
    write("tokens.pub", tokens.public_key_pem());
    write("tokens.key", tokens.serialize_pem());
    write("tokens.csv", "admin-token,admin,admin,system:masters\n".to_owned());
}

fn write_kubeconfig(folder: &Path, name: &str, token: &str, server: SocketAddr) -> PathBuf {
    let cluster =
        json!({"server": format!("https://{server}"), "certificate-authority": folder.join("ca.crt")});
    let config = json!({
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "current-context": "test",
    });
    let path = folder.join(format!("{name}.kubeconfig"));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// A loopback address that nobody else has: its ports stay free while a program is away.
fn own_address() -> IpAddr {
    static PLANES: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id() * 8 + PLANES.fetch_add(1, Ordering::Relaxed);
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(127, a | 0x80, b, c).into()
}
