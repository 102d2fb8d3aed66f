//! One question over HTTP by address, for the commands that ask a running nslookout.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use coredns_watch::http::{Ask, Connection, Error, Limits};
use hyper::Method;
use netns::Namespace;

/// Why nslookout gave no page.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] Error),
    /// This process' own namespace can't be told.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// Another status than 200.
    #[error("http://{address}{path} answers with status {status}")]
    Status {
        /// Who answered.
        address: SocketAddr,
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
    },
}

/// The body of `http://{address}{path}`.
pub async fn get(address: SocketAddr, path: &str, timeout: Duration) -> Result<Bytes, GetError> {
    let limits = Limits { timeout, body_bytes: MAX_BODY_BYTES };
    let mut connection = Connection::new(Namespace::current()?, address, limits);
    let answer = connection.ask(&Ask { method: Method::GET, path, accept: "*/*", body: None }).await?;
    if answer.status == 200 {
        Ok(answer.body)
    } else {
        Err(GetError::Status { address, path: path.to_owned(), status: answer.status })
    }
}

/// A status of hundreds of incidents is below one megabyte.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
