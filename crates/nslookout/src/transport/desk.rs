//! One request: is it a batch, may its sender send it, and what is the answer?
//!
//! Nothing is unpacked or read of a sender who is not known.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use evidence::wire::{self, Answer, MAX_BYTES, Parcel};
use evidence::{Batch, WallTime};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::binding;
use super::figures::ServerFigures;
use super::ledger::Ledger;
use super::outlook::Outlooks;
use super::pack::{Unpackable, pack, unpack};
use super::refusal::{Reason, Refusal, Refusals};
use super::reviews::Reviews;
use super::roster::Roster;

/// Takes batches in.
#[derive(Debug)]
pub struct Desk {
    /// Who knows tokens.
    pub reviews: Reviews,
    /// The inventory for answers.
    pub outlooks: Outlooks,
    /// What probers may do.
    pub roster: Roster,
    /// Where batches go.
    pub out: mpsc::Sender<Batch>,
    /// What is counted.
    pub figures: ServerFigures,
    /// Who was refused.
    pub refusals: Refusals,
    /// What has been taken.
    pub ledger: Ledger,
    /// How long a body may take from head to end.
    pub body_time: Duration,
}

impl Desk {
    /// Answers a request; true if a batch was accepted.
    pub async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> (Response<Full<Bytes>>, bool) {
        let gzip = request.headers().get(ACCEPT_ENCODING).is_some_and(|value| value == GZIP);
        match self.take(request).await {
            Ok(answer) => (proper(&answer, gzip), true),
            Err(refusal) => {
                self.refusals.tell(peer, &refusal);
                let mut response = Response::new(Full::new(Bytes::from(refusal.reason.as_str())));
                *response.status_mut() = refusal.reason.status();
                (response, false)
            }
        }
    }

    async fn take(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        if head.uri.path() != PATH {
            return Err(Refusal::new(Reason::Path, head.uri.path()));
        }
        if head.method != Method::POST {
            return Err(Refusal::new(Reason::Method, head.method));
        }
        let token = bearer(&head.headers)?;
        let identity = self.reviews.identity(token, WallTime::now()).await?;
        if head.headers.get(CONTENT_ENCODING).is_none_or(|value| value != GZIP) {
            return Err(Refusal::new(Reason::Encoding, "only gzip is taken"));
        }
        let who = format!("{:?} on {}, pod {}", identity.role, identity.node, identity.pod_uid);
        let blame = |reason, detail: String| Refusal::new(reason, format!("{detail} ({who})"));
        let packed = match timeout(self.body_time, collect(body)).await {
            Ok(Ok(packed)) => packed,
            Ok(Err((reason, detail))) => return Err(blame(reason, detail)),
            Err(_) => return Err(blame(Reason::TooSlow, format!("no whole body in {:?}", self.body_time))),
        };
        let bytes = unpack(&packed, MAX_BYTES).map_err(|error| {
            let reason = match error {
                Unpackable::TooLarge { .. } => Reason::TooLarge,
                Unpackable::Damaged(_) => Reason::Malformed,
            };
            blame(reason, error.to_string())
        })?;
        let read = Parcel::from_bytes(&bytes).map_err(|error| blame(reason(&error), error.to_string()))?;
        if let Some(foreign) = binding::foreign(&identity, &read.value.batch) {
            return Err(blame(Reason::Foreign, foreign));
        }
        // Room first: what is in the ledger must be on its way.
        let room = match timeout(ROOM_TIME, self.out.reserve()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) | Err(_) => return Err(blame(Reason::Busy, "too many batches wait".into())),
        };
        let (is_news, sequence) = self.ledger.take(&read.value);
        self.figures.bytes.inc_by(u64::try_from(packed.len()).unwrap_or(0));
        self.figures.unknown.with_label_values(&["bytes"]).inc_by(read.unknown.bytes);
        self.figures.unknown.with_label_values(&["entries"]).inc_by(read.unknown.entries);
        self.figures.batches.with_label_values(&[if is_news { "accepted" } else { "duplicate" }]).inc();
        let duty = self.roster.hear(&read.value.batch, &self.outlooks.present(), Instant::now());
        if is_news {
            room.send(read.value.batch);
        }
        let has = head.headers.get(INVENTORY).and_then(|tag| tag.to_str().ok()?.parse().ok()).unwrap_or(0);
        Ok(Answer { sequence, outlook: self.outlooks.of(&identity.node, has), duty })
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim).unwrap_or_default();
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::new(Reason::NoToken, "no bearer token"));
    }
    Ok(token)
}

async fn collect(mut body: Incoming) -> Result<Bytes, (Reason, String)> {
    let too_large = || (Reason::TooLarge, format!("a body of more than {MAX_BODY_BYTES} bytes"));
    if body.size_hint().lower() > u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (Reason::Http, error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len().saturating_add(data.len()) > MAX_BODY_BYTES {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

fn reason(error: &wire::Error) -> Reason {
    match error {
        wire::Error::Unreadable(_) | wire::Error::Malformed { .. } => Reason::Malformed,
        wire::Error::TooLarge { .. } => Reason::TooLarge,
        wire::Error::Version { .. } => Reason::Version,
    }
}

fn proper(answer: &Answer, gzip: bool) -> Response<Full<Bytes>> {
    let bytes = answer.to_bytes();
    let packed = gzip && bytes.len() > SMALL;
    let mut response = Response::new(Full::new(Bytes::from(if packed { pack(&bytes) } else { bytes })));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    if packed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(GZIP));
    }
    response
}

/// Where batches are sent to.
pub const PATH: &str = "/v1/batches";
/// The media type of both bodies.
pub const PROTOBUF: &str = "application/x-protobuf";
/// How they are compressed.
pub const GZIP: &str = "gzip";
/// The tag of the inventory that the sender has.
pub const INVENTORY: HeaderName = HeaderName::from_static("nslookout-inventory");
/// Of a compressed body. Evidence packs to a fifth and better.
pub const MAX_BODY_BYTES: usize = 256 * 1024;
/// A service account's token has about 1,200.
const MAX_TOKEN_BYTES: usize = 8192;
const ROOM_TIME: Duration = Duration::from_secs(2);
/// Packing would not make it smaller.
const SMALL: usize = 200;
