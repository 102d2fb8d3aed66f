//! Claims about Alertmanagers that want TLS and credentials.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use coredns_watch::http::Tls;
use evidence::WallTime;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nslookout::alertmanager::{AlertmanagersConfig, BasicAuthConfig, Known, Legacy, Pusher, start};
use nslookout::metrics::Metrics;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::alert::alert;
use crate::free_address;
use crate::program::{Alertmanager, Lock, eventually};

/// A certificate authority, and a server's key with its certificate for "alertmanager" and 127.0.0.1.
struct Keys {
    folder: TempDir,
}

impl Keys {
    fn new(authority: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.distinguished_name.push(DnType::CommonName, authority);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.crt", ca.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let serving = CertificateParams::new(vec!["alertmanager".into(), "127.0.0.1".into()]).unwrap();
        write("tls.crt", serving.signed_by(&key, &issuer).unwrap().pem());
        write("tls.key", key.serialize_pem());
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn trusting(&self) -> Tls {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(self.path("ca.crt")).unwrap();
        roots.add_parsable_certificates(certificates.map(Result::unwrap));
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("alertmanager").unwrap();
        Tls { connector: TlsConnector::from(Arc::new(config)), name }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let chain =
            CertificateDer::pem_file_iter(self.path("tls.crt")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(self.path("tls.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What all tests of this process wrote into the log: one subscriber, since each thread's own would miss what another
/// thread wrote first.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn watch() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
            log
        })
        .clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// A line about this Alertmanager.
    async fn until(&self, about: SocketAddr, words: &str) {
        let begin = Instant::now();
        let about = about.to_string();
        while !self.text().lines().any(|line| line.contains(&about) && line.contains(words)) {
            assert!(begin.elapsed() < Duration::from_secs(30), "never told: {words}\n{}", self.text());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

fn push(config: AlertmanagersConfig) -> Pusher {
    let config = AlertmanagersConfig { interval: Duration::from_millis(700), ..config };
    assert_eq!(config.mistakes(), Vec::<String>::new());
    start(&config, "test", Known::nothing(), Legacy::default(), &Metrics::new().unwrap())
}

/// "sesame" by bcrypt.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuuinwY/tkBVrn3xrxQI/TgnMHhkvl85RW";

#[tokio::test]
async fn https_goes_by_our_own_ca_and_by_files_that_are_read_again() {
    let (keys, stranger) = (Keys::new("ours"), Keys::new("a stranger's"));
    let web_config = format!(
        "tls_server_config: {{cert_file: {}, key_file: {}}}\nbasic_auth_users: {{ali: {HASH}}}\n",
        keys.path("tls.crt").display(),
        keys.path("tls.key").display(),
    );
    let authorization = HeaderValue::from_static("Basic YWxpOnNlc2FtZQ==");
    let lock = Lock { web_config, tls: keys.trusting(), authorization };
    let alertmanager = Alertmanager::start_at(free_address().await, Some(lock)).await;

    let files = tempfile::tempdir().unwrap();
    let (ca, password) = (files.path().join("ca.crt"), files.path().join("password"));
    std::fs::copy(stranger.path("ca.crt"), &ca).unwrap();
    let log = Log::watch();
    let pusher = push(AlertmanagersConfig {
        addresses: vec![format!("https://{}", alertmanager.address)],
        ca: Some(ca.clone()),
        basic_auth: Some(BasicAuthConfig { username: "ali".into(), password_file: password.clone() }),
        ..AlertmanagersConfig::default()
    });
    pusher.set(vec![alert("One", WallTime::now())]);
    log.until(
        alertmanager.address,
        &format!("alertmanagers.basicAuth.passwordFile: {}: No such file", password.display()),
    )
    .await;

    replace(&password, "guess\n");
    log.until(
        alertmanager.address,
        "invalid peer certificate: UnknownIssuer (is alertmanagers.ca the authority",
    )
    .await;
    assert!(!alertmanager.fires("One").await);

    replace(&ca, std::fs::read(keys.path("ca.crt")).unwrap());
    log.until(alertmanager.address, "refuses alerts with status 401").await;
    assert!(!alertmanager.fires("One").await);

    replace(&password, "sesame\n");
    eventually("One fires", async || alertmanager.fires("One").await).await;
    log.until(alertmanager.address, "takes alerts again").await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let keys = Keys::new("ours");
    let (front, _) = front(keys.acceptor(), "none").await;
    let log = Log::watch();
    let _pusher = push(AlertmanagersConfig {
        addresses: vec![format!("https://{front}")],
        ca: Some(keys.path("ca.crt")),
        server_name: Some("pager".into()),
        ..AlertmanagersConfig::default()
    });
    log.until(front, "certificate not valid for name \"pager\"").await;
}

#[tokio::test]
async fn a_bearer_token_is_sent_and_read_again() {
    let keys = Keys::new("ours");
    let token = keys.path("token");
    std::fs::write(&token, "old\n").unwrap();
    let (front, told) = front(keys.acceptor(), "new").await;
    let pusher = push(AlertmanagersConfig {
        addresses: vec![format!("https://{front}/am/")],
        ca: Some(keys.path("ca.crt")),
        server_name: Some("alertmanager".into()),
        bearer_token_file: Some(token.clone()),
        ..AlertmanagersConfig::default()
    });
    pusher.set(vec![alert("One", WallTime::now())]);
    let saw = |status: u16| {
        told.lock().unwrap().iter().any(|(path, s)| *s == status && path == "/am/api/v2/alerts")
    };
    eventually("the old token is refused", async || saw(401)).await;
    assert!(!saw(200));
    replace(&token, "new\n");
    eventually("the new token is taken", async || saw(200)).await;
}

/// A proxy before an Alertmanager that knows one token; tells the path and status of each request.
async fn front(acceptor: TlsAcceptor, token: &str) -> (SocketAddr, Arc<Mutex<Vec<(String, u16)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (seen, wanted) = (told.clone(), format!("Bearer {token}"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let (seen, wanted) = (seen.clone(), wanted.clone());
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (seen, wanted) = (seen.clone(), wanted.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    let is_known = request.headers().get(AUTHORIZATION).is_some_and(|given| *given == wanted);
                    drop(request.into_body().collect().await?);
                    let status = if is_known { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
                    seen.lock().unwrap().push((path, status.as_u16()));
                    let mut response = Response::new(Full::<bytes::Bytes>::default());
                    *response.status_mut() = status;
                    Ok::<_, hyper::Error>(response)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, told)
}
