//! Where do Prometheus, `nslookout status` and kubelet ask?
//!
//! A small HTTP server: /metrics, /api/v1/status, /healthz, /readyz. Connections, time for a request's head and
//! time of a connection are bounded, so that a stranger can neither fill nor hold it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use netns::Namespace;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;

/// Why the address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused it.
    #[error("{source} (does another nslookout run?)")]
    Listen {
        /// What the kernel said.
        #[from]
        source: io::Error,
    },
    /// The namespace can't be entered.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
}

/// Listens in this process' own network namespace.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    bind_in(&Namespace::current()?, address).await
}

/// Listens in a given network namespace.
pub async fn bind_in(namespace: &Namespace, address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = namespace
        .run(move || {
            let listener = std::net::TcpListener::bind(address).or_else(|error| {
                // An unspecified IPv6 address means IPv4 where the kernel has no IPv6.
                let no_ipv6 = error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT);
                if no_ipv6 && address.ip().is_unspecified() {
                    std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port()))
                } else {
                    Err(error)
                }
            })?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        })
        .await??;
    Ok(TcpListener::from_std(listener)?)
}

/// Answers until the future is dropped. `status` is the JSON of /api/v1/status; ready is who has one.
pub async fn serve(listener: TcpListener, metrics: Metrics, status: watch::Receiver<String>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Beyond the cap the kernel's backlog waits, and then refuses.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // No descriptors, or the peer has gone: neither is mended by asking at once.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (metrics, status) = (metrics.clone(), status.clone());
        tokio::spawn(async move {
            drop(timeout(CONNECTION_LIFE, connection(stream, metrics, status)).await);
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, metrics: Metrics, status: watch::Receiver<String>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &metrics, &status);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // A peer that speaks no HTTP or has gone is its own affair.
    drop(served);
}

fn answer<B: Body>(
    request: &Request<B>,
    metrics: &Metrics,
    status: &watch::Receiver<String>,
) -> Response<Full<Bytes>> {
    let (code, kind, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics.page().into()),
        "/api/v1/status" => (StatusCode::OK, "application/json", Bytes::from(status.borrow().clone())),
        "/healthz" => (StatusCode::OK, PLAIN, Bytes::from_static(b"ok\n")),
        "/readyz" if status.borrow().len() > NO_STATUS.len() => {
            (StatusCode::OK, PLAIN, Bytes::from_static(b"ok\n"))
        }
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, Bytes::from_static(b"nothing looked at yet\n")),
        _ => {
            (StatusCode::NOT_FOUND, PLAIN, Bytes::from_static(b"/metrics /api/v1/status /healthz /readyz\n"))
        }
    };
    let allowed = matches!(*request.method(), Method::GET | Method::HEAD);
    let refused = !allowed && code != StatusCode::NOT_FOUND;
    let mut response = Response::new(Full::new(if refused { Bytes::new() } else { body }));
    *response.status_mut() = if refused { StatusCode::METHOD_NOT_ALLOWED } else { code };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if refused {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";
/// What the status is before there is one.
const NO_STATUS: &str = "{}";
/// A Prometheus pair, a few people and probes.
const MAX_CONNECTIONS: usize = 64;
/// For a request's head, and between two requests.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Prometheus opens a new one then.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);
const MAX_HEAD_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn server() -> (SocketAddr, watch::Sender<String>) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, receiver) = watch::channel(String::from("{}"));
        tokio::spawn(serve(listener, Metrics::new().unwrap(), receiver));
        (address, status)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn each_path_and_method_has_its_answer() {
        let (address, status) = server().await;
        let ask = |line: &str| {
            ask_owned(address, format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
        };
        assert!(ask("GET /readyz").await.starts_with("HTTP/1.1 503"));
        status.send_replace(r#"{"schema":"nslookout/1"}"#.into());
        for (line, code) in [
            ("GET /metrics", "200"),
            ("HEAD /metrics", "200"),
            ("GET /healthz?x=y", "200"),
            ("GET /readyz", "200"),
            ("POST /metrics", "405"),
            ("GET /", "404"),
            ("POST /nowhere", "404"),
        ] {
            let answer = ask(line).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{line}: {answer}");
        }
        assert!(ask("GET /api/v1/status").await.ends_with(r#"{"schema":"nslookout/1"}"#));
        let body = crate::http_client::get(address, "/api/v1/status", Duration::from_secs(1)).await.unwrap();
        assert_eq!(body, r#"{"schema":"nslookout/1"}"#);
        assert!(crate::http_client::get(address, "/x", Duration::from_secs(1)).await.is_err());
    }

    async fn ask_owned(address: SocketAddr, request: String) -> String {
        ask(address, &request).await
    }

    #[tokio::test]
    async fn garbage_and_silent_peers_leave_the_others_served() {
        let (address, _status) = server().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS / 2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(&[0, 255, 13, 10, 13, 10]).await.unwrap();
        let mut answer = Vec::new();
        drop(timeout(Duration::from_secs(5), garbage.read_to_end(&mut answer)).await.unwrap());
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
        let mut stream = TcpStream::connect(address).await.unwrap();
        drop(stream.write_all(long.as_bytes()).await);
        let healthy = ask(address, "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(healthy.starts_with("HTTP/1.1 200"), "{healthy}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_that_says_so() {
        let (address, _status) = server().await;
        assert!(bind(address).await.unwrap_err().to_string().contains("another nslookout"));
    }
}
