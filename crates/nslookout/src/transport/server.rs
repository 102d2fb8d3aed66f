//! How do many agents, and a few strangers, share one port?
//!
//! Connections are bounded in all and for each address, and so are the times of a handshake, of a first proper
//! request and of each body. A connection on which a batch was accepted stays, for an agent can't be sure to get a new
//! one while conntrack is full.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::desk::Desk;
use super::refusal::{Reason, Refusal};

/// What strangers may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub per_address: usize,
    /// For the TLS handshake, and from then to the end of the first accepted batch.
    pub first: Duration,
}

/// Listens; an unspecified IPv6 address means IPv4 where the kernel has no IPv6.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) && address.ip().is_unspecified() =>
        {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        other => other,
    }
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, desk: Arc<Desk>, limits: Limits) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let crowd = Arc::new(Crowd::default());
    loop {
        // Beyond the cap the kernel's backlog waits, and then refuses.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(_) => {
                // No descriptors, or the peer has gone: neither is mended by asking at once.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = crowd.clone().enter(peer, limits.per_address) else {
            let detail = format!("more than {} connections", limits.per_address);
            desk.refusals.tell(peer, &Refusal::new(Reason::Crowd, detail));
            continue;
        };
        let (tls, desk) = (tls.clone(), desk.clone());
        tokio::spawn(async move {
            desk.figures.connections.inc();
            if let Err(refusal) = connection(stream, peer, tls, &desk, limits.first).await {
                desk.refusals.tell(peer, &refusal);
            }
            desk.figures.connections.dec();
            drop((permit, place));
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    tls: Arc<ServerConfig>,
    desk: &Arc<Desk>,
    first: Duration,
) -> Result<(), Refusal> {
    drop(stream.set_nodelay(true));
    let stream = match timeout(first, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Refusal::new(Reason::Tls, error)),
        Err(_) => return Err(Refusal::new(Reason::TooSlow, "no TLS handshake")),
    };
    let proven = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request| {
        let (desk, proven) = (desk.clone(), proven.clone());
        async move {
            let (response, accepted) = desk.answer(request, peer).await;
            proven.fetch_or(accepted, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    tokio::select! {
        // An agent that goes away without a word is no refusal.
        ended = &mut served => return match ended {
            Err(error) if !proven.load(Ordering::Relaxed) => Err(Refusal::new(Reason::Http, error)),
            Ok(()) | Err(_) => Ok(()),
        },
        () = sleep(first) => {}
    }
    if !proven.load(Ordering::Relaxed) {
        return Err(Refusal::new(Reason::TooSlow, format!("no proper batch in {first:?}")));
    }
    drop(served.await);
    Ok(())
}

/// Connections by address.
#[derive(Debug, Default)]
struct Crowd(Mutex<HashMap<IpAddr, usize>>);

/// A connection's place in the crowd, until it is dropped.
#[derive(Debug)]
struct CrowdPlace {
    crowd: Arc<Crowd>,
    peer: IpAddr,
}

impl Crowd {
    fn enter(self: Arc<Self>, peer: IpAddr, most: usize) -> Option<CrowdPlace> {
        {
            let mut crowd = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = crowd.entry(peer).or_default();
            if *count >= most {
                return None;
            }
            *count += 1;
        }
        Some(CrowdPlace { crowd: self, peer })
    }
}

impl Drop for CrowdPlace {
    fn drop(&mut self) {
        let mut crowd = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = crowd.get_mut(&self.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                crowd.remove(&self.peer);
            }
        }
    }
}

/// An agent sends one batch at a time.
const STREAMS: u32 = 4;
const MAX_HEAD_BYTES: u32 = 16 * 1024;
/// A largest body fits in, so that its sender never waits for the window.
const WINDOW: u32 = 512 * 1024;
/// Dead peers are found, and NAT's tables keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
