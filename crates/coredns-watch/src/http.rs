//! How is a server asked over HTTP while DNS is dead and conntrack is full?
//!
//! By its address, from inside a given network namespace, over one connection that is opened once and kept: a
//! full conntrack table drops new connections and lets old ones go on. Answers come from strangers: size and
//! time are bounded. The delivery of alerts uses it too, with TLS and credentials where it is told to.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use netns::Namespace;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// A connection to one server that is kept open between requests and opened anew when it broke. One request at
/// a time; a request whose future is dropped closes it.
#[derive(Debug)]
pub struct Connection {
    namespace: Namespace,
    address: SocketAddr,
    limits: Limits,
    tls: Option<Tls>,
    authorization: Option<HeaderValue>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// What makes a connection one over TLS.
#[derive(Clone)]
pub struct Tls {
    /// Whom it trusts.
    pub connector: TlsConnector,
    /// The name in the server's certificate. It is checked, and never resolved.
    pub name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?})", self.name)
    }
}

/// What an answer may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the whole exchange: connect, send, read.
    pub timeout: Duration,
    /// Of the answer's body.
    pub body_bytes: usize,
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// The method.
    pub method: Method,
    /// The path, with its query.
    pub path: &'a str,
    /// The media type wanted.
    pub accept: &'static str,
    /// The body with its media type.
    pub body: Option<(Bytes, &'static str)>,
}

/// An answer that came whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It took too long.
    #[error("{address} did not answer within {after:?}")]
    TimedOut {
        /// The server.
        address: SocketAddr,
        /// The time-out.
        after: Duration,
    },
    /// The connection was refused or could not be made.
    #[error("can't connect to {address}: {source} (is the port right, and does a policy allow it?)")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// It speaks no TLS, or is another one than who it should be.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// The server.
        address: SocketAddr,
        /// What TLS said.
        source: io::Error,
    },
    /// What came is no HTTP/1, or the connection broke.
    #[error("{address} gave no proper HTTP answer: {source}")]
    Http {
        /// The server.
        address: SocketAddr,
        /// What hyper said.
        source: hyper::Error,
    },
    /// The body is larger than it may be.
    #[error("{address} answered with more than {limit} bytes")]
    TooLarge {
        /// The server.
        address: SocketAddr,
        /// The limit.
        limit: usize,
    },
    /// The request can't be written as HTTP.
    #[error("the request to {address} is malformed: {source}")]
    Request {
        /// The server.
        address: SocketAddr,
        /// What is wrong.
        source: hyper::http::Error,
    },
    /// The namespace has gone.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
}

impl Connection {
    /// A connection to be opened at the first request.
    pub fn new(namespace: Namespace, address: SocketAddr, limits: Limits) -> Self {
        Self { namespace, address, limits, tls: None, authorization: None, sender: None }
    }

    /// Speaks TLS from now on, over a connection of its own; None is plain HTTP.
    pub fn set_tls(&mut self, tls: Option<Tls>) {
        self.tls = tls;
        self.sender = None;
    }

    /// Sends this header with each request from now on.
    pub fn set_authorization(&mut self, header: Option<HeaderValue>) {
        self.authorization = header;
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends one request and reads its answer. A kept connection that the server closed meanwhile is replaced
    /// once, without an error; so requests must be such that sending them twice does no harm.
    pub async fn ask(&mut self, ask: &Ask<'_>) -> Result<Answer, Error> {
        let Limits { timeout: after, .. } = self.limits;
        timeout(after, self.exchange(ask))
            .await
            .unwrap_or(Err(Error::TimedOut { address: self.address, after }))
    }

    async fn exchange(&mut self, ask: &Ask<'_>) -> Result<Answer, Error> {
        // Taken out for the time of the exchange: whatever goes wrong, a half-used connection is dropped.
        let kept = self.sender.take().filter(|sender| !sender.is_closed());
        if let Some(sender) = kept {
            match self.send(sender, ask).await {
                Err(Error::Http { .. }) => {}
                result => return result,
            }
        }
        let sender = self.open().await?;
        self.send(sender, ask).await
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let address = self.address;
        let stream =
            connect(&self.namespace, address).await?.map_err(|source| Error::Connect { address, source })?;
        let Some(Tls { connector, name }) = &self.tls else { return speak(address, stream).await };
        let stream = connector.connect(name.clone(), stream).await;
        speak(address, stream.map_err(|source| Error::Tls { address, source })?).await
    }

    async fn send(&mut self, mut sender: SendRequest<Full<Bytes>>, ask: &Ask<'_>) -> Result<Answer, Error> {
        let address = self.address;
        let failed = |source| Error::Http { address, source };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.path)
            .header(HOST, address.to_string())
            .header(USER_AGENT, concat!("nslookout/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, ask.accept);
        if let Some((_, media_type)) = &ask.body {
            request = request.header(CONTENT_TYPE, *media_type);
        }
        if let Some(header) = &self.authorization {
            request = request.header(AUTHORIZATION, header.clone());
        }
        let body = ask.body.as_ref().map(|(body, _)| body.clone()).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|source| Error::Request { address, source })?;

        sender.ready().await.map_err(failed)?;
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let mut stream = response.into_body();
        let limit = self.limits.body_bytes;
        let mut body = BytesMut::new();
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.map_err(failed)?.into_data() else { continue };
            if body.len().saturating_add(data.len()) > limit {
                return Err(Error::TooLarge { address, limit });
            }
            body.extend_from_slice(&data);
        }
        self.sender = Some(sender);
        Ok(Answer { status, body: body.freeze() })
    }
}

/// A TCP connection made inside the namespace.
async fn connect(namespace: &Namespace, address: SocketAddr) -> Result<io::Result<TcpStream>, Error> {
    let socket = namespace
        .run(move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })
        .await?;
    Ok(match socket {
        Ok(socket) => socket.connect(address).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        }),
        Err(source) => Err(source),
    })
}

/// Begins HTTP on an open stream.
async fn speak<S>(address: SocketAddr, stream: S) -> Result<SendRequest<Full<Bytes>>, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, driver) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| Error::Http { address, source })?;
    // Ends by itself with the sender; its error is seen by the sender too.
    tokio::spawn(async move { drop(driver.await) });
    Ok(sender)
}

/// Head of an answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const GET: Ask<'static> = Ask { method: Method::GET, path: "/", accept: "*/*", body: None };

    fn connection(address: SocketAddr) -> Connection {
        let limits = Limits { timeout: Duration::from_millis(400), body_bytes: 1000 };
        Connection::new(Namespace::current().unwrap(), address, limits)
    }

    /// Accepts connections and answers each request with the bytes; tells how many connections there were.
    async fn server(answer: Vec<u8>, close: bool) -> (SocketAddr, tokio::sync::watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, count) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.send_modify(|n| *n += 1);
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                        stream.write_all(&answer).await.unwrap();
                        if close {
                            return;
                        }
                    }
                });
            }
        });
        (address, count)
    }

    #[tokio::test]
    async fn one_connection_serves_many_requests() {
        let (address, count) =
            server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec(), false).await;
        let mut connection = connection(address);
        for _ in 0..5 {
            assert_eq!(connection.ask(&GET).await.unwrap().body, "hi");
        }
        assert_eq!(*count.borrow(), 1);
    }

    #[tokio::test]
    async fn a_connection_closed_by_the_server_is_opened_anew_without_an_error() {
        let (address, count) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec(), true).await;
        let mut connection = connection(address);
        for _ in 0..3 {
            assert_eq!(connection.ask(&GET).await.unwrap().status, 200);
        }
        assert_eq!(*count.borrow(), 3);
    }

    #[tokio::test]
    async fn bad_answers_are_errors_of_their_kind() {
        let huge = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 5000]].concat();
        let heads = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"a: b\r\n".repeat(20_000)].concat();
        for (what, answer, expected) in [
            ("garbage", b"\x00\x01garbage\r\n\r\n".to_vec(), "http"),
            ("a body cut short", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi".to_vec(), "http"),
            ("a huge body", huge, "too large"),
            ("an endless head", heads, "http"),
            ("silence", Vec::new(), "timed out"),
        ] {
            let (address, _count) = server(answer, what != "silence").await;
            let error = connection(address).ask(&GET).await.unwrap_err();
            let kind = match &error {
                Error::Http { .. } => "http",
                Error::TooLarge { .. } => "too large",
                Error::TimedOut { .. } => "timed out",
                _ => "other",
            };
            assert_eq!(kind, expected, "{what}: {error}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = connection(address).ask(&GET).await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }) && error.to_string().contains(&address.to_string()));
    }
}
