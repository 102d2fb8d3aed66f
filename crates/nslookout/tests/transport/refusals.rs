//! Who is turned away, with which status, one line in the log and one count?

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use evidence::Role;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nslookout::transport::authority::{Authority, Times};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::site::Site;
use crate::{letter, pack, parcel};

type Sender = SendRequest<BoxBody<Bytes, Infallible>>;

async fn connect(site: &Site) -> std::io::Result<Sender> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.path("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(site.correlator).await?;
    let name = "nslookout-correlator".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (sender, driver) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(driver);
    Ok(sender)
}

async fn ask(
    sender: &mut Sender,
    method: Method,
    path: &str,
    token: Option<&str>,
    encoding: &str,
    body: BoxBody<Bytes, Infallible>,
) -> Result<u16, hyper::Error> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("https://nslookout-correlator{path}"))
        .header("content-encoding", encoding);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    sender.ready().await?;
    Ok(sender.send_request(request.body(body).unwrap()).await?.status().as_u16())
}

fn whole(bytes: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed()
}

#[tokio::test]
async fn each_wrong_request_has_its_status_its_line_and_its_count() {
    let mut site = Site::new(&["node-a", "node-b"]);
    site.start_correlator();
    let mut sender = connect(&site).await.unwrap();
    let good = || letter(&parcel("node-a", 1, 1, 1));
    let version = |version: u8| {
        let mut bytes = parcel("node-a", 1, 1, 1).to_bytes();
        assert_eq!(bytes[..2], [0x08, 1], "the version comes first");
        bytes[1] = version;
        // A field that only a newer version knows.
        bytes.extend([0xc2, 0x3e, 3, b'n', b'e', b'w']);
        pack(&bytes)
    };
    let mut other_role = parcel("node-a", 1, 1, 0);
    other_role.batch.role = Role::Node;
    let mut other_place = parcel("node-a", 1, 1, 0);
    other_place.batch.coverage[0].place = "node-b".into();
    let large: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (post, path, a) = (Method::POST, "/v1/batches", Some("node-a-prober"));
    let rows = [
        ("path", post.clone(), "/", a, "gzip", good(), 404),
        ("method", Method::PUT, path, a, "gzip", good(), 405),
        ("no-token", post.clone(), path, None, "gzip", good(), 401),
        ("token", post.clone(), path, Some("guessed"), "gzip", good(), 401),
        ("expired", post.clone(), path, Some("expired"), "gzip", good(), 401),
        ("foreign", post.clone(), path, Some("node-b-prober"), "gzip", good(), 403),
        ("foreign", post.clone(), path, a, "gzip", letter(&other_role), 403),
        ("foreign", post.clone(), path, a, "gzip", letter(&other_place), 403),
        ("too-large", post.clone(), path, a, "gzip", large.into(), 413),
        ("too-large", post.clone(), path, a, "gzip", pack(&vec![0; 10_000_000]).into(), 413),
        ("encoding", post.clone(), path, a, "br", good(), 415),
        ("malformed", post.clone(), path, a, "gzip", Bytes::from_static(b"no gzip"), 400),
        ("malformed", post.clone(), path, a, "gzip", pack(b"no protobuf").into(), 400),
        ("version", post.clone(), path, a, "gzip", version(3).into(), 426),
    ];
    for (reason, method, path, token, encoding, body, status) in rows {
        let lines = site.log("correlator").matches("refused 127.0.0.1, ").count();
        let name = format!("nslookout_wire_refusals_total{{reason=\"{reason}\"}}");
        let count = site.figure(&name);
        let given = ask(&mut sender, method, path, token, encoding, whole(body)).await.unwrap();
        assert_eq!(given, status, "{reason}");
        assert_eq!(site.figure(&name), count + 1, "{reason}");
        let log = site.log("correlator");
        assert_eq!(log.matches("refused 127.0.0.1, ").count(), lines + 1, "{reason}: {log}");
        assert!(log.lines().last().unwrap().contains(&format!("refused 127.0.0.1, {reason}:")), "{log}");
    }
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"accepted\"}"), 0);
    // No token ever gets into the log.
    assert!(!site.log("correlator").contains("guessed"));

    let newer = ask(&mut sender, post, path, a, "gzip", whole(version(2))).await.unwrap();
    assert_eq!(newer, 200, "one version newer is understood");
    assert_eq!(site.figure("nslookout_wire_unknown_total{unit=\"bytes\"}"), 6);
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"accepted\"}"), 1);
}

/// A body of which nothing more comes.
struct Stalled(Option<Bytes>);

impl Body for Stalled {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .take()
            .map_or(std::task::Poll::Pending, |bytes| std::task::Poll::Ready(Some(Ok(Frame::data(bytes)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[tokio::test]
async fn slow_and_silent_senders_are_cut_while_others_are_served() {
    let mut site = Site::new(&["node-a", "node-b"]);
    site.start_correlator();
    let start = Instant::now();
    let mut silent = TcpStream::connect(site.correlator).await.unwrap();
    let mut idle = connect(&site).await.unwrap();
    let mut plain = TcpStream::connect(site.correlator).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    drop(timeout(Duration::from_secs(5), plain.read_to_end(&mut bytes)).await.unwrap());
    assert_eq!(site.figure("nslookout_wire_refusals_total{reason=\"tls\"}"), 1);

    let mut slow = connect(&site).await.unwrap();
    let stalled = Stalled(Some(letter(&parcel("node-a", 1, 1, 1)).slice(..10))).boxed();
    let slow = tokio::spawn(async move {
        ask(&mut slow, Method::POST, "/v1/batches", Some("node-a-prober"), "gzip", stalled).await
    });
    site.line("node-b-prober").post(letter(&parcel("node-b", 1, 1, 1)), 0).await.unwrap();

    assert_eq!(slow.await.unwrap().unwrap(), 408);
    assert!(start.elapsed() < Duration::from_secs(14), "{:?}", start.elapsed());
    drop(
        timeout(Duration::from_secs(20), silent.read_to_end(&mut bytes))
            .await
            .expect("the silent one is cut"),
    );
    let cut = timeout(Duration::from_secs(20), async {
        while idle.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    cut.await.expect("one that never sends a batch is cut");
    site.wait("each was told", || site.figure("nslookout_wire_refusals_total{reason=\"too-slow\"}") >= 3);
}

#[tokio::test]
async fn one_address_can_not_take_all_connections() {
    let mut site = Site::new(&["node-a"]);
    site.more = json!({"connectionsPerAddress": 3});
    site.start_correlator();
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(connect(&site).await.unwrap());
    }
    assert!(connect(&site).await.is_err());
    assert_eq!(site.figure("nslookout_wire_refusals_total{reason=\"crowd\"}"), 1);
    kept.clear();
    site.wait("there is room again", || site.figure("nslookout_wire_connections") == 0);
    connect(&site).await.unwrap();
}

#[tokio::test]
async fn a_correlator_of_another_authority_gets_no_evidence() {
    let mut site = Site::new(&["node-a"]);
    site.start_correlator();
    let mut line = site.line("node-a-prober");
    let own = std::fs::read_to_string(site.path("ca.crt")).unwrap();
    let other = Authority::load(None, "nslookout-correlator", Times::default(), SystemTime::now());
    let other = other.unwrap().bundle();
    std::fs::write(site.path("ca.crt"), &other).unwrap();
    let trouble = line.post(letter(&parcel("node-a", 1, 1, 1)), 0).await.unwrap_err();
    assert!(!trouble.is_final() && trouble.to_string().contains("certificate"), "{trouble}");
    // The file is read again: with both authorities in it, as while one takes over from the other, all is well.
    std::fs::write(site.path("ca.crt"), format!("{other}{own}")).unwrap();
    line.post(letter(&parcel("node-a", 1, 1, 1)), 0).await.unwrap();
}
