//! The HTTP check: one request, one answer, one verdict.
//!
//! Everything that is expected must be so; see [`crate::config::Expect`] for why this
//! differs from HAProxy. Reading stops as soon as the verdict is certain: at the
//! head if it is wrong or no body is wanted, and where the wanted text is found.
//! No `Accept-Encoding` is sent.
//!
//! *Connections.* A fresh one for each check sees what a new client sees: that the
//! listener accepts, and whether TLS does. Reusing one costs both sides a fraction of
//! that, but talks to the one worker that accepted it long ago. Mixed does both: a
//! connection lives for some checks, and until one fails, so when something is wrong
//! all checks that decide are fresh ones.
//!
//! A server may close a kept connection at any time, also in the moment when the request
//! is on its way (RFC 9112 section 9.3.1). So one that ends before a byte of the answer
//! came is no failure; the check is made on a fresh one, once, within the same timeout.

mod judge;
mod one;
mod redirect;
#[cfg(test)]
mod tests;
mod two;

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};

use crate::{
    config::{HttpCheck, HttpVersion, Keep, Method},
    health::{
        transport::{Stage, Stream, Transport},
        verdict::{Finding, Kind},
    },
};
pub use one::{Asked, Ended, Room, not_sent};
use two::{Ask, Two};

/// Bytes of heads that a check reads.
pub const HEAD_LIMIT: usize = 64 * 1024;
/// Bytes of a body that a check looks at.
pub const BODY_LIMIT: usize = 64 * 1024;
/// Room for a body that is kept from one check to the next.
const KEPT_ROOM: usize = 16 * 1024;

/// The HTTP check of one endpoint.
#[derive(Debug)]
pub struct Http {
    check: HttpCheck,
    transport: Transport,
    host: String,
    /// The request in HTTP/1.1.
    request: Bytes,
    connection: Option<Connection>,
    /// Checks that the connection, or the one before, was used for.
    used: u32,
    room: Room,
    body: BytesMut,
}

/// A connection, in the version that it speaks.
#[derive(Debug)]
enum Connection {
    One(Stream),
    Two(Two),
}

/// What an answer says.
pub enum Answer {
    /// It was judged.
    Found(Finding),
    /// Ask elsewhere.
    Moved {
        /// The answer's status.
        status: u16,
        /// Where.
        location: Vec<u8>,
    },
}

/// What is asked for, after redirects.
#[derive(Clone, Copy)]
struct Target<'a> {
    method: Method,
    /// Unless it is what the check asks for.
    moved_to: Option<&'a str>,
}

impl Http {
    /// `authority` is the host unless the check names another.
    pub fn new(check: &HttpCheck, endpoint: SocketAddr, authority: &str) -> Self {
        let host = check.host().unwrap_or(authority).to_owned();
        Self {
            transport: Transport::new(check.reach(), endpoint, &host),
            request: request(check, &host),
            room: Room::new(check.method()),
            check: check.clone(),
            host,
            connection: None,
            used: 0,
            body: BytesMut::new(),
        }
    }

    /// Makes the check.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        let mut method = self.check.method();
        let mut path: Option<String> = None;
        let mut redirects = 0;
        loop {
            let target = Target {
                method,
                moved_to: path.as_deref(),
            };
            let (status, location) = match self.ask(target, stage).await {
                Err(failed) | Ok(Answer::Found(failed)) => {
                    self.after(&failed);
                    return failed;
                }
                Ok(Answer::Moved { status, location }) => (status, location),
            };
            let moved = |note: String| {
                Finding::new(Kind::BadStatus, note)
                    .with_status(status)
                    .that_saw(&location)
            };
            redirects += 1;
            if redirects > self.check.redirects() {
                return moved(format!("more than {} redirects", self.check.redirects()));
            }
            let encrypted = self.transport.is_encrypted();
            let from = path.as_deref().unwrap_or(self.check.path());
            let Some(next) = redirect::target(&location, encrypted, &self.host, from) else {
                return moved("a redirect to elsewhere".to_owned());
            };
            path = Some(next);
            // As every browser does (RFC 9110 section 15.4).
            if status <= 303 && method != Method::Head {
                method = Method::Get;
            }
        }
    }

    /// Keeps what is worth it for the next check.
    fn after(&mut self, finding: &Finding) {
        if let Keep::Mixed { .. } = self.check.keep()
            && finding.kind != Kind::Ok
        {
            self.connection = None;
        }
        if self.body.capacity() > KEPT_ROOM {
            self.body = BytesMut::new();
        }
    }

    /// Asks once; twice if the connection turned out to be closed.
    async fn ask(&mut self, target: Target<'_>, stage: &mut Stage) -> Result<Answer, Finding> {
        let request = match target.moved_to {
            Some(_) => request_of_one(&self.check, &self.host, &target),
            None => self.request.clone(),
        };
        if let Some(kept) = self.usable()
            && let Ended::Answered(answer) =
                self.exchange(kept, true, &target, &request, stage).await?
        {
            return Ok(answer);
        }
        let fresh = self.connect(stage).await?;
        self.used = 0;
        match self
            .exchange(fresh, false, &target, &request, stage)
            .await?
        {
            Ended::Answered(answer) => Ok(answer),
            // Only of a kept one can that be said.
            Ended::Stale => Err(Finding::new(Kind::Reset, "closed without an answer")),
        }
    }

    /// The kept connection, if it shall and can be used.
    fn usable(&mut self) -> Option<Connection> {
        let mut kept = self.connection.take()?;
        let due = match self.check.keep() {
            Keep::Fresh => true,
            Keep::Reuse => false,
            Keep::Mixed { fresh_every } => self.used >= fresh_every,
        };
        let usable = !due
            && match &mut kept {
                Connection::One(stream) => self.room.is_usable(stream),
                Connection::Two(two) => two.is_usable(),
            };
        usable.then_some(kept)
    }

    async fn connect(&self, stage: &mut Stage) -> Result<Connection, Finding> {
        let stream = self.transport.connect(stage).await?;
        let agreed = stream.agreed() == Some(b"h2");
        let two = match self.check.version() {
            HttpVersion::Auto => agreed,
            HttpVersion::One => false,
            HttpVersion::Two if self.transport.is_encrypted() && !agreed => {
                let note = "the endpoint does not offer HTTP/2";
                return Err(Finding::new(Kind::Protocol, note));
            }
            HttpVersion::Two => true,
        };
        Ok(match two {
            true => Connection::Two(Two::new(stream, stage).await?),
            false => Connection::One(stream),
        })
    }

    /// Asks on a connection, and keeps it if it may be of use again.
    async fn exchange(
        &mut self,
        mut connection: Connection,
        kept: bool,
        target: &Target<'_>,
        request: &[u8],
        stage: &mut Stage,
    ) -> Result<Ended, Finding> {
        let follows = self.check.redirects() > 0;
        let expect = self.check.expect();
        let ended = match &mut connection {
            Connection::One(stream) => {
                let asked = Asked {
                    expect,
                    kept,
                    follows,
                };
                self.room.exchange(stream, request, asked, stage).await
            }
            Connection::Two(two) => {
                let encrypted = self.transport.is_encrypted();
                let (request, body) = request_of_two(&self.check, encrypted, &self.host, target)?;
                let ask = Ask {
                    request,
                    body,
                    expect,
                    follows,
                };
                two.exchange(ask, &mut self.body, kept, stage).await
            }
        };
        if let Ended::Answered(_) = ended
            && self.check.keep() != Keep::Fresh
        {
            self.used = self.used.saturating_add(1);
            self.connection = Some(connection);
        }
        Ok(ended)
    }
}

/// A redirect may have left the body behind.
fn body_of<'a>(check: &'a HttpCheck, target: &Target<'_>) -> &'a [u8] {
    match target.method {
        Method::Post | Method::Put => check.body(),
        Method::Get | Method::Head | Method::Options => &[],
    }
}

/// The request of a check in HTTP/1.1, as it is before any redirect.
pub fn request(check: &HttpCheck, host: &str) -> Bytes {
    let target = Target {
        method: check.method(),
        moved_to: None,
    };
    request_of_one(check, host, &target)
}

fn request_of_one(check: &HttpCheck, host: &str, target: &Target<'_>) -> Bytes {
    let body = body_of(check, target);
    let method = target.method;
    let mut request = format!(
        "{} {} HTTP/1.1\r\nHost: {host}\r\n",
        method.as_str(),
        target.moved_to.unwrap_or(check.path())
    )
    .into_bytes();
    let mut put = |name: &str, value: &[u8]| {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    for (name, value) in defaults(check) {
        put(name, value.as_bytes());
    }
    for (name, value) in check.headers() {
        put(name.as_str(), value.as_bytes());
    }
    if check.keep() == Keep::Fresh {
        put("Connection", b"close");
    }
    if matches!(method, Method::Post | Method::Put) {
        put("Content-Length", body.len().to_string().as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    request.into()
}

/// Headers of ours that the configuration does not replace.
fn defaults(check: &HttpCheck) -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = [
        ("User-Agent", concat!("probe/", env!("CARGO_PKG_VERSION"))),
        ("Accept", "*/*"),
    ];
    let given = |name: &str| {
        let mut headers = check.headers().iter();
        headers.any(|(given, _)| given.as_str().eq_ignore_ascii_case(name))
    };
    all.into_iter().filter(move |(name, _)| !given(name))
}

fn request_of_two(
    check: &HttpCheck,
    encrypted: bool,
    host: &str,
    target: &Target<'_>,
) -> Result<(http::Request<()>, Bytes), Finding> {
    let body = body_of(check, target);
    let uri = http::Uri::builder()
        .scheme(if encrypted { "https" } else { "http" })
        .authority(host)
        .path_and_query(target.moved_to.unwrap_or(check.path()))
        .build();
    let mut request = http::Request::builder()
        .method(target.method.as_str())
        .version(http::Version::HTTP_2);
    if let Ok(uri) = uri {
        request = request.uri(uri);
    } else {
        let note = format!("host `{host}` or the path cannot be asked for in HTTP/2");
        return Err(Finding::new(Kind::Protocol, note));
    }
    for (name, value) in defaults(check) {
        request = request.header(name, value);
    }
    for (name, value) in check.headers() {
        request = request.header(name, value);
    }
    let request = request
        .body(())
        .map_err(|error| Finding::new(Kind::Protocol, error.to_string()))?;
    Ok((request, Bytes::copy_from_slice(body)))
}
