//! How does an agent reach the correlator, while DNS is dead and conntrack is full?
//!
//! By its address, over one connection that is opened beforehand and kept. Its certificate is checked against its name,
//! which is never resolved. The authority's file is read for each connection and the token's file for each batch: both
//! are replaced while an agent runs.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use evidence::wire::{self, Answer, MAX_BYTES};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::desk::{GZIP, INVENTORY, PATH, PROTOBUF};
use super::pack::unpack;
use super::refusal::Reason;

/// Whom to reach, and what proves who is who.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where, if that is known.
    pub address: Option<SocketAddr>,
    /// The name in its certificate.
    pub name: String,
    /// The authority that it must be vouched for by: a PEM file, of one certificate or more.
    pub authority: PathBuf,
    /// The own token.
    pub token: PathBuf,
}

/// A connection that is kept, and opened anew when it broke.
#[derive(Debug)]
pub struct Line {
    target: Target,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// Why a batch did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Mended by the operator: a file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Mended by the operator: a name that no certificate has, or no authority in the file.
    #[error("{0}")]
    Configuration(String),
    /// Nobody there, or another one than who it should be.
    #[error("no connection to the correlator at {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the kernel or TLS said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the correlator at {address} broke: {source}")]
    Broken {
        /// Where.
        address: SocketAddr,
        /// What hyper said.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("the correlator at {address} did not answer within {LONGEST:?}")]
    TimedOut {
        /// Where.
        address: SocketAddr,
    },
    /// It said no.
    #[error("the correlator refuses with status {status}: {reason}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its reason.
        reason: String,
    },
    /// Its answer can't be read.
    #[error("the correlator's answer can't be read: {0}")]
    Answer(String),
}

impl Trouble {
    /// Whether this very batch will never be accepted, however often it is sent.
    pub fn is_final(&self) -> bool {
        match self {
            // A sender that is not allowed may be so later; what is another's stays another's.
            Self::Refused { status, reason } => match *status {
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => true,
                StatusCode::FORBIDDEN => reason == Reason::Foreign.as_str(),
                _ => false,
            },
            Self::File { .. }
            | Self::Configuration(_)
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::TimedOut { .. }
            | Self::Answer(_) => false,
        }
    }
}

impl Line {
    /// A line that is opened at the first letter.
    pub fn new(target: Target) -> Self {
        Self { target, sender: None }
    }

    /// Sends one packed batch and reads its answer; `has` is the tag of the inventory that the agent has.
    pub async fn post(&mut self, body: Bytes, has: u64) -> Result<Answer, Trouble> {
        // Taken out for the time of the exchange: whatever goes wrong, a half-used connection is dropped.
        let kept = self.sender.take().filter(|sender| !sender.is_closed());
        let Some(address) = self.target.address else {
            let why = "where the correlator is, is not known: neither correlator.address is set nor \
                       NSLOOKOUT_CORRELATOR_SERVICE_HOST and _PORT";
            return Err(Trouble::Configuration(why.into()));
        };
        let exchange = timeout(LONGEST, self.exchange(address, kept, body, has)).await;
        let (sender, answer) = exchange.unwrap_or(Err(Trouble::TimedOut { address }))?;
        self.sender = Some(sender);
        answer
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        kept: Option<SendRequest<Full<Bytes>>>,
        body: Bytes,
        has: u64,
    ) -> Result<(SendRequest<Full<Bytes>>, Result<Answer, Trouble>), Trouble> {
        let token = self.token()?;
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.open(address).await?,
        };
        let broken = |source| Trouble::Broken { address, source };
        let request = Request::post(format!("https://{address}{PATH}"))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header(CONTENT_TYPE, PROTOBUF)
            .header(CONTENT_ENCODING, GZIP)
            .header(ACCEPT_ENCODING, GZIP)
            .header(INVENTORY, has)
            .header(USER_AGENT, concat!("nslookout/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| Trouble::Configuration(format!("the token is no header: {error}")))?;
        sender.ready().await.map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let is_packed = response.headers().get(CONTENT_ENCODING).is_some_and(|value| value == GZIP);
        let mut stream = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if bytes.len().saturating_add(data.len()) > MAX_BYTES {
                return Err(Trouble::Answer(format!("it has more than {MAX_BYTES} bytes")));
            }
            bytes.extend_from_slice(&data);
        }
        if status != StatusCode::OK {
            let reason = String::from_utf8_lossy(&bytes).chars().take(100).collect();
            return Ok((sender, Err(Trouble::Refused { status, reason })));
        }
        Ok((sender, read(&bytes, is_packed)))
    }

    fn token(&self) -> Result<String, Trouble> {
        let path = &self.target.token;
        let token =
            fs::read_to_string(path).map_err(|source| Trouble::File { path: path.clone(), source })?;
        Ok(token.trim().to_owned())
    }

    async fn open(&self, address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Trouble> {
        let Target { name, authority, .. } = &self.target;
        let name = ServerName::try_from(name.clone()).map_err(|_| {
            Trouble::Configuration(format!("correlator.name: {name:?} is no name of a server"))
        })?;
        let tls = client_config(authority)?;
        let failed = |source| Trouble::Connect { address, source };
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(failed)?;
        let (sender, driver) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Trouble::Broken { address, source })?;
        // Ends by itself with the sender; its error is seen by the sender too.
        tokio::spawn(async move { drop(driver.await) });
        Ok(sender)
    }
}

fn client_config(authority: &PathBuf) -> Result<Arc<ClientConfig>, Trouble> {
    let pem = fs::read(authority).map_err(|source| Trouble::File { path: authority.clone(), source })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(Trouble::Configuration(format!(
            "correlator.ca: {} has no certificate",
            authority.display()
        )));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| Trouble::Configuration(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn read(bytes: &[u8], is_packed: bool) -> Result<Answer, Trouble> {
    let unpacked;
    let bytes = if is_packed {
        unpacked = unpack(bytes, MAX_BYTES).map_err(|error| Trouble::Answer(error.to_string()))?;
        unpacked.as_slice()
    } else {
        bytes
    };
    let answer =
        Answer::from_bytes(bytes).map_err(|error: wire::Error| Trouble::Answer(error.to_string()))?;
    Ok(answer.value)
}

/// For connect, send and answer.
const LONGEST: Duration = Duration::from_secs(10);
/// A correlator that died without a word is noticed before the next quiet batch but one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
