//! gRPC's health service: `grpc.health.v1.Health/Check`.
//!
//! One unary call over HTTP/2 (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//! `SERVING` is good and nothing else: `NOT_SERVING`, `UNKNOWN`, `NOT_FOUND` for a service
//! that the server does not know, `UNIMPLEMENTED` for a server without the health service.
//!
//! The crate h2 does the framing. Its [`Session`] is driven by whoever asks: between two
//! checks nothing of it runs. The two messages are one field each and are written and read
//! here; what else an answer holds is skipped (proto3's rules for unknown fields). Bounded
//! are the answer ([`LIMIT`]) and its headers ([`HEADERS`]); the flow-control window is no
//! larger than the answer may be, so an endless one stands still.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{Connection, SendRequest},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    failure::{Failure, Outcome, Reason},
    inbox::readable,
    kept::Speak,
};
use crate::health::{
    transport::{Stage, Stream, Transport},
    verdict::{Finding, Saw},
};

/// Bytes of an answer. The message takes two, and five for its frame.
pub const LIMIT: usize = 4096;
/// Bytes of an answer's headers and of its trailers.
pub const HEADERS: u32 = 16 * 1024;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse.ServingStatus`.
const SERVING: u64 = 1;

/// Which service is asked for.
#[derive(Clone, Debug)]
pub struct Grpc {
    /// None if the endpoint's name is not one that a URI can have.
    request: Option<Request<()>>,
    message: Bytes,
}

impl Grpc {
    /// `service` is the name as the server registered it, empty for the server as a
    /// whole; `authority` what HTTP/1 calls the Host.
    pub fn new(service: &str, authority: &str, encrypted: bool) -> Self {
        let scheme = if encrypted { "https" } else { "http" };
        let request = Request::builder()
            .version(Version::HTTP_2)
            .method(Method::POST)
            .uri(format!("{scheme}://{authority}{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", concat!("probe/", env!("CARGO_PKG_VERSION")))
            .body(());
        Self {
            request: request.ok(),
            message: framed(service),
        }
    }
}

impl Speak for Grpc {
    type Connection = Session<Stream>;

    async fn connect(
        &self,
        transport: &Transport,
        stage: &mut Stage,
    ) -> Result<Session<Stream>, Finding> {
        let stream = transport.connect(stage).await?;
        *stage = Stage::waiting("no HTTP/2 connection");
        Ok(Session::new(stream).await?)
    }

    async fn ask(
        &self,
        session: &mut Session<Stream>,
        _fresh: bool,
        _scratch: &mut BytesMut,
    ) -> Outcome {
        session.ask(self).await
    }
}

/// A connection that HTTP/2 is spoken on.
pub struct Session<S: AsyncRead + AsyncWrite + Unpin> {
    requests: SendRequest<Bytes>,
    connection: Connection<S, Bytes>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Begins HTTP/2.
    pub async fn new(stream: S) -> Result<Self, Failure> {
        let window = u32::try_from(LIMIT).unwrap_or(u32::MAX);
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .max_header_list_size(HEADERS)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(failed)?;
        Ok(Self {
            requests,
            connection,
        })
    }

    /// Holds the conversation.
    pub async fn ask(&mut self, grpc: &Grpc) -> Outcome {
        let requests = &mut self.requests;
        let mut call = pin!(call(requests, grpc));
        let connection = &mut self.connection;
        // The call goes on only while the connection is driven.
        poll_fn(|context| {
            if let Poll::Ready(outcome) = call.as_mut().poll(context) {
                return Poll::Ready(outcome);
            }
            match pin!(&mut *connection).poll(context) {
                Poll::Pending => Poll::Pending,
                // What the end means for the call it knows itself, mostly.
                Poll::Ready(end) => match call.as_mut().poll(context) {
                    Poll::Ready(outcome) => Poll::Ready(outcome),
                    Poll::Pending => Poll::Ready(Err(match end {
                        Ok(()) => Failure::protocol("the answer breaks off"),
                        Err(error) => failed(error),
                    })),
                },
            }
        })
        .await
    }
}

async fn call(requests: &mut SendRequest<Bytes>, grpc: &Grpc) -> Outcome {
    let Some(request) = grpc.request.clone() else {
        let note = "the endpoint's name is not one for HTTP/2: `host` can be another";
        return Err(Failure::Local(note.into()));
    };
    poll_fn(|context| requests.poll_ready(context))
        .await
        .map_err(failed)?;
    let (response, mut body): (_, SendStream<Bytes>) =
        requests.send_request(request, false).map_err(failed)?;
    body.send_data(grpc.message.clone(), true).map_err(failed)?;
    let (head, body) = response.await.map_err(failed)?.into_parts();
    let head = Response::from_parts(head, ());
    if head.status() != StatusCode::OK {
        let note = format!("HTTP status {}", head.status().as_u16());
        return Err(Failure::mismatch(Reason::Error, note, b""));
    }
    if !is_grpc(head.headers()) {
        return Err(Failure::protocol("an answer of HTTP/2, not of gRPC"));
    }
    // An answer of trailers alone has them in its head.
    if let Some(status) = status_of(head.headers()) {
        return judge(status, head.headers(), &[]);
    }
    let (message, trailers) = answer(body).await?;
    match trailers.as_ref().and_then(status_of) {
        Some(status) => judge(
            status,
            trailers.as_ref().unwrap_or(head.headers()),
            &message,
        ),
        None => Err(Failure::protocol("an answer of gRPC without its status")),
    }
}

/// What there is of message and trailers.
async fn answer(mut body: RecvStream) -> Result<(BytesMut, Option<HeaderMap>), Failure> {
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(failed)?;
        if message.len() + data.len() > LIMIT {
            return Err(Failure::protocol("an answer that is too long"));
        }
        // Given back, or empty frames and padding would use the window up.
        body.flow_control()
            .release_capacity(data.len())
            .map_err(failed)?;
        message.put_slice(&data);
    }
    let trailers = body.trailers().await.map_err(failed)?;
    Ok((message, trailers))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn status_of(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn judge(status: u32, headers: &HeaderMap, message: &[u8]) -> Outcome {
    if status == 0 {
        return match serving(message) {
            Some(SERVING) => Ok(()),
            Some(other) => Err(Failure::mismatch(
                Reason::NotServing,
                match other {
                    0 => "UNKNOWN".into(),
                    2 => "NOT_SERVING".into(),
                    3 => "SERVICE_UNKNOWN".into(),
                    other => format!("status {other}"),
                },
                b"",
            )),
            None => Err(Failure::garbage(
                "not an answer of the health service",
                message,
            )),
        };
    }
    let reason = match status {
        5 => Reason::NotServing,
        7 | 16 => Reason::Credentials,
        12 => Reason::Unimplemented,
        14 => Reason::Starting,
        _ => Reason::Error,
    };
    let said = headers.get("grpc-message").map(HeaderValue::as_bytes);
    let note = match said {
        Some(said) if !said.is_empty() => format!("{} {}", code(status), readable(said)),
        _ => code(status).to_owned(),
    };
    Err(Failure::mismatch(reason, note, b""))
}

/// A status as gRPC names it (<https://grpc.io/docs/guides/status-codes/>).
fn code(status: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(status)
        .ok()
        .and_then(|status| NAMES.get(status).copied())
        .unwrap_or("a status that gRPC does not have")
}

fn failed(error: h2::Error) -> Failure {
    let ended =
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    if ended || error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return Failure::Closed;
    }
    let text = error.to_string();
    match error.into_io() {
        Some(error) if error.raw_os_error().is_some() => Failure::Io(error),
        Some(error)
            if error
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>()) =>
        {
            Failure::Io(error)
        }
        // What h2 says of a stream that ends where it must not.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Failure::Closed,
        Some(_) => Failure::Protocol(text.into(), Saw::NOTHING),
        None => Failure::protocol(format!("HTTP/2: {text}")),
    }
}

/// `HealthCheckRequest { service }` behind gRPC's head of five bytes.
fn framed(service: &str) -> Bytes {
    let mut message = BytesMut::with_capacity(service.len() + 10);
    if !service.is_empty() {
        // Field 1, of a length.
        message.put_u8(1 << 3 | 2);
        let mut len = service.len();
        while len >= 0x80 {
            message.put_u8(u8::try_from(len & 0x7f | 0x80).unwrap_or_default());
            len >>= 7;
        }
        message.put_u8(u8::try_from(len).unwrap_or_default());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or_default());
    framed.put(message);
    framed.freeze()
}

/// The status of a `HealthCheckResponse` in its frame; `None` if it is not one.
fn serving(mut framed: &[u8]) -> Option<u64> {
    if framed.len() < 5 || framed.get_u8() != 0 {
        return None;
    }
    let len = usize::try_from(framed.get_u32()).ok()?;
    if len != framed.len() {
        return None;
    }
    // Field 1; without it its default.
    let mut status = 0;
    while !framed.is_empty() {
        let tag = varint(&mut framed)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (1, 0) => status = varint(&mut framed)?,
            (_, 0) => drop(varint(&mut framed)?),
            (_, 1) => skip(&mut framed, 8)?,
            (_, 2) => {
                let len = varint(&mut framed)?;
                skip(&mut framed, usize::try_from(len).ok()?)?;
            }
            (_, 5) => skip(&mut framed, 4)?,
            _ => return None,
        }
    }
    Some(status)
}

fn skip(bytes: &mut &[u8], count: usize) -> Option<()> {
    *bytes = bytes.get(count..)?;
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
