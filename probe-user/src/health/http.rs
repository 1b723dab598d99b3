//! The HTTP check: a fresh connection, one request, one answer, one verdict.
//!
//! Status and body must both be right; see [`crate::config::Check`] for why this
//! differs from HAProxy. Reading stops as soon as the verdict is certain: at the
//! status if it is wrong or no body is wanted, and where the wanted text is found.
//! A regular expression is tried on the whole body, or on its first
//! [`BODY_LIMIT`] bytes if it is longer: an anchor must not match at a place that
//! is the end only for now. Redirects are not followed.
//!
//! One timeout bounds the whole check, so that an answer that drips or never ends
//! costs no more than one that never comes. The connection is closed with a RST,
//! as HAProxy does: at a hundred checks a second the states of TIME_WAIT would
//! else use up the local ports in minutes.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout_at,
};

use super::{
    scheduler,
    verdict::{Kind, Verdict},
};
use crate::{
    config::{BodyMatch, Check, HttpCheck, Method},
    http1::{Decoder, Limits, Progress},
};

/// Bytes of heads that a check reads.
pub const HEAD_LIMIT: usize = 64 * 1024;
/// Bytes of a body that a check looks at.
pub const BODY_LIMIT: usize = 64 * 1024;
/// Bytes of an answer's beginning that a verdict quotes.
const QUOTED: usize = 48;

/// A check of one endpoint, ready to be made any number of times.
#[derive(Clone, Debug)]
pub struct Probe {
    target: SocketAddr,
    request: Bytes,
    expect: HttpCheck,
    timeout: Duration,
}

impl Probe {
    /// `authority` is the Host header unless the check names another.
    pub fn new(check: &Check, target: SocketAddr, authority: &str) -> Self {
        let http = check.http();
        let request = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: probe/{}\r\nAccept: */*\r\nConnection: \
             close\r\n\r\n",
            http.method().as_str(),
            http.path(),
            http.host().unwrap_or(authority),
            env!("CARGO_PKG_VERSION"),
        );
        Self {
            target,
            request: request.into(),
            expect: http.clone(),
            timeout: check.timeout(),
        }
    }

    /// Where it is made.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Makes the check. `buffer` is scratch space that is worth keeping.
    pub async fn run(&self, buffer: &mut BytesMut) -> Verdict {
        buffer.clear();
        let begin = Instant::now();
        let deadline = tokio::time::Instant::now() + self.timeout;
        // `timeout_at` looks at the socket first: an answer that has come counts, however late
        // this task was scheduled.
        let (kind, status, note) = match timeout_at(deadline, connect(self.target)).await {
            Err(_) => (Kind::ConnectTimeout, None, "no connection".into()),
            Ok(Err(error)) => (Kind::of_io(&error, true), None, note_of(&error)),
            Ok(Ok(stream)) => {
                let mut exchange = Exchange {
                    decoder: Decoder::new(
                        Limits {
                            head: HEAD_LIMIT,
                            body: BODY_LIMIT,
                        },
                        self.expect.method() == Method::Head,
                    ),
                    searched: 0,
                };
                let answer = timeout_at(deadline, exchange.run(self, stream, buffer)).await;
                let status = Some(exchange.decoder.status()).filter(|status| *status != 0);
                match answer {
                    Ok((kind, note)) => (kind, status, note),
                    Err(_) => {
                        let note = match status {
                            None => "no complete head",
                            Some(_) => "no complete body",
                        };
                        (Kind::ResponseTimeout, status, note.into())
                    }
                }
            }
        };
        Verdict {
            kind,
            status,
            latency: begin.elapsed(),
            note,
        }
    }
}

/// A probe with the scratch space that its checks share.
#[derive(Debug)]
pub struct Repeated {
    probe: Probe,
    buffer: BytesMut,
}

impl Repeated {
    /// Makes no check yet.
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            buffer: BytesMut::with_capacity(8192),
        }
    }
}

impl scheduler::Check for Repeated {
    async fn make(&mut self) -> Verdict {
        self.probe.run(&mut self.buffer).await
    }
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    let socket = socket2::SockRef::from(&stream);
    // Zero linger: close sends a RST and leaves no TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    Ok(stream)
}

/// The error's text without its number, which the kind already says.
fn note_of(error: &io::Error) -> Cow<'static, str> {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned().into(),
        None => text.into(),
    }
}

struct Exchange {
    decoder: Decoder,
    /// Bytes of the body in which the wanted text is known not to begin.
    searched: usize,
}

impl Exchange {
    async fn run(
        &mut self,
        probe: &Probe,
        mut stream: TcpStream,
        buffer: &mut BytesMut,
    ) -> (Kind, Cow<'static, str>) {
        if let Err(error) = stream.write_all(&probe.request).await {
            return (Kind::of_io(&error, false), note_of(&error));
        }
        loop {
            buffer.reserve(4096);
            let progress = match stream.read_buf(buffer).await {
                Ok(0) => self.decoder.close(buffer),
                Ok(_) => self.decoder.push(buffer),
                Err(error) => return (Kind::of_io(&error, false), note_of(&error)),
            };
            let progress = match progress {
                Ok(progress) => progress,
                Err(malformed) => return (Kind::Protocol, malformed.0.into()),
            };
            if let Some(verdict) = self.judge(&probe.expect, progress) {
                return verdict;
            }
        }
    }

    /// The verdict, if it is certain.
    fn judge(
        &mut self,
        expect: &HttpCheck,
        progress: Progress,
    ) -> Option<(Kind, Cow<'static, str>)> {
        if progress == Progress::Head {
            return None;
        }
        if !expect.status().contains(self.decoder.status()) {
            let note = format!("expected {}", expect.status());
            return Some((Kind::BadStatus, note.into()));
        }
        let Some(wanted) = expect.body() else {
            return Some((Kind::Ok, Cow::Borrowed("")));
        };
        let body = self.decoder.body();
        let complete = progress != Progress::Body;
        let matches = match wanted {
            BodyMatch::Contains(text) => {
                let found = wanted.matches(&body[self.searched.min(body.len())..]);
                self.searched = (body.len() + 1).saturating_sub(text.len());
                found
            }
            BodyMatch::Regex(_) => complete && wanted.matches(body),
        };
        if matches {
            return Some((Kind::Ok, Cow::Borrowed("")));
        }
        complete.then(|| {
            let begin = String::from_utf8_lossy(&body[..body.len().min(QUOTED)]);
            let more = if body.len() > QUOTED { "..." } else { "" };
            let limit = match progress {
                Progress::Full => format!(" in the first {BODY_LIMIT} bytes"),
                _ => String::new(),
            };
            let note = format!(
                "no {wanted}{limit}, the body begins `{}{more}`",
                begin.escape_debug()
            );
            (Kind::BodyMismatch, note.into())
        })
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
