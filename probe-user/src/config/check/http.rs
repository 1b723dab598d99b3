//! The HTTP check: what is sent, how often on one connection, what must come back.

use std::{fmt, time::Duration};

use super::{Expect, Reach};
use crate::config::{
    error::Fault,
    raw,
    scalar::{number, word},
};

/// Below this interval connections are reused unless configured otherwise.
const OFTEN: Duration = Duration::from_secs(1);
/// Of mixed connections, checks that one lives for at least, unless configured otherwise.
const FRESH_EVERY: u32 = 10;
/// Where checks are so frequent that those are sooner over, a connection lives so long: what only
/// fresh ones can see is seen as often as before, at a fraction of their cost.
const LIFE: Duration = Duration::from_millis(250);
const MOST_REDIRECTS: u8 = 10;
/// Bytes of a request's body.
const MOST_BODY: usize = 64 * 1024;
/// Headers that a request carries.
const MOST_HEADERS: usize = 32;

/// An HTTP request and what must come back.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    reach: Reach,
    version: HttpVersion,
    method: Method,
    path: String,
    host: Option<String>,
    headers: Vec<(http::HeaderName, http::HeaderValue)>,
    body: Vec<u8>,
    keep: Keep,
    redirects: u8,
    expect: Expect,
}

/// The methods that a check may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With a body in the answer.
    Get,
    /// Never with a body in the answer.
    Head,
    /// HAProxy's default.
    Options,
    /// With a body in the request.
    Post,
    /// With a body in the request.
    Put,
}

impl Method {
    /// The method as it is sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }
}

/// Versions of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/2 if the endpoint chooses it in a TLS handshake, else HTTP/1.1.
    Auto,
    /// HTTP/1.1.
    One,
    /// HTTP/2; without TLS by prior knowledge (RFC 9113 section 3.3).
    Two,
}

/// For how many checks a connection is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// For one.
    Fresh,
    /// As long as it goes.
    Reuse,
    /// For so many, and until a check fails.
    Mixed {
        /// Every so manieth check makes a connection.
        fresh_every: u32,
    },
}

impl HttpCheck {
    /// How it connects.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
    /// In which version it asks.
    pub fn version(&self) -> HttpVersion {
        self.version
    }
    /// The request's method.
    pub fn method(&self) -> Method {
        self.method
    }
    /// The request's target.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// The Host header, unless it is the endpoint's address.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }
    /// More headers of the request.
    pub fn headers(&self) -> &[(http::HeaderName, http::HeaderValue)] {
        &self.headers
    }
    /// The request's body; may be empty.
    pub fn body(&self) -> &[u8] {
        &self.body
    }
    /// How long connections are kept.
    pub fn keep(&self) -> Keep {
        self.keep
    }
    /// Redirects that are followed, to the same endpoint.
    pub fn redirects(&self) -> u8 {
        self.redirects
    }
    /// What the answer must be.
    pub fn expect(&self) -> &Expect {
        &self.expect
    }

    pub(super) fn parse(field: &str, raw: &raw::Http, inter: Duration) -> Result<Self, Fault> {
        let method = method(field, raw)?;
        let mut reach = Reach::parse(field, &raw.port, &raw.address, &raw.send_proxy, &raw.tls)?;
        let version = word(
            &format!("{field}.version"),
            raw.version.as_deref().unwrap_or("auto"),
            &[
                ("auto", HttpVersion::Auto),
                ("1", HttpVersion::One),
                ("1.1", HttpVersion::One),
                ("2", HttpVersion::Two),
            ],
        )?;
        if let Some(tls) = reach.tls_mut() {
            tls.offer(match version {
                HttpVersion::Auto => &[b"h2", b"http/1.1"],
                HttpVersion::One => &[b"http/1.1"],
                HttpVersion::Two => &[b"h2"],
            });
        }
        let check = Self {
            reach,
            version,
            method,
            path: path(field, raw, method)?,
            host: host(field, raw)?,
            headers: headers(field, raw)?,
            body: body(field, raw, method)?,
            keep: Keep::parse(field, &raw.connection, &raw.fresh_every, inter)?,
            redirects: match &raw.redirects {
                Some(text) => number(&format!("{field}.redirects"), text, 0..=MOST_REDIRECTS)?,
                None => 0,
            },
            expect: Expect::parse(&format!("{field}.expect"), &raw.expect)?,
        };
        if check.expect.reads_body() && method == Method::Head {
            return Err(Fault::new(
                format!("{field}.method"),
                "HEAD",
                "an answer to HEAD has no body, and `expect` says something of one",
                "GET, or no body in `expect`",
            ));
        }
        Ok(check)
    }
}

fn method(field: &str, raw: &raw::Http) -> Result<Method, Fault> {
    let Some(text) = &raw.method else {
        return Ok(Method::Get);
    };
    let words = [
        Method::Get,
        Method::Head,
        Method::Options,
        Method::Post,
        Method::Put,
    ];
    word(
        &format!("{field}.method"),
        text,
        &words.map(|method| (method.as_str(), method)),
    )
}

fn path(field: &str, raw: &raw::Http, method: Method) -> Result<String, Fault> {
    let path = raw.path.clone().unwrap_or_else(|| "/".to_owned());
    let target = path.starts_with('/') || (path == "*" && method == Method::Options);
    if !target || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Fault::new(
            format!("{field}.path"),
            &path,
            "not a request path",
            "/ and visible ASCII characters without blanks, others percent-encoded",
        ));
    }
    Ok(path)
}

fn host(field: &str, raw: &raw::Http) -> Result<Option<String>, Fault> {
    if let Some(host) = &raw.host
        && (host.is_empty() || !host.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(Fault::new(
            format!("{field}.host"),
            host,
            "not a Host header",
            "a host name or address, with a port if need be",
        ));
    }
    Ok(raw.host.clone())
}

/// Headers that say how the message is framed, or have fields of their own.
const OURS: [http::HeaderName; 7] = [
    http::header::HOST,
    http::header::CONNECTION,
    http::header::CONTENT_LENGTH,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    http::header::TE,
    http::header::EXPECT,
];

fn headers(
    field: &str,
    raw: &raw::Http,
) -> Result<Vec<(http::HeaderName, http::HeaderValue)>, Fault> {
    if raw.headers.len() > MOST_HEADERS {
        return Err(Fault::new(
            format!("{field}.headers"),
            raw.headers.len(),
            "so many headers",
            format!("at most {MOST_HEADERS}"),
        ));
    }
    let mut headers = Vec::with_capacity(raw.headers.len());
    for (name, value) in &raw.headers {
        let field = format!("{field}.headers.{name}");
        let fault = |problem: &str, accepted: &str| Fault::new(&field, value, problem, accepted);
        let parsed: http::HeaderName = name.parse().map_err(|_| {
            fault(
                "not the name of a header",
                "letters, digits and - as in X-Token",
            )
        })?;
        if OURS.contains(&parsed) {
            return Err(fault(
                "is set by the check itself",
                "another header; see `host`, `connection` and `body`",
            ));
        }
        let value = value
            .parse()
            .map_err(|_| fault("not the value of a header", "visible ASCII and blanks"))?;
        headers.push((parsed, value));
    }
    Ok(headers)
}

fn body(field: &str, raw: &raw::Http, method: Method) -> Result<Vec<u8>, Fault> {
    let Some(body) = &raw.body else {
        return Ok(Vec::new());
    };
    if !matches!(method, Method::Post | Method::Put) {
        return Err(Fault::new(
            format!("{field}.method"),
            method.as_str(),
            "such a request has no body, and `body` is given",
            "POST or PUT, or no `body`",
        ));
    }
    if body.len() > MOST_BODY {
        return Err(Fault::new(
            format!("{field}.body"),
            format!("{} bytes", body.len()),
            "too long for a check",
            format!("at most {MOST_BODY} bytes"),
        ));
    }
    Ok(body.clone().into_bytes())
}

impl Keep {
    /// `inter` decides what is not said.
    pub(super) fn parse(
        field: &str,
        connection: &Option<String>,
        fresh_every: &Option<String>,
        inter: Duration,
    ) -> Result<Self, Fault> {
        let every_field = format!("{field}.fresh_every");
        let every = match fresh_every {
            Some(text) => Some(number(&every_field, text, 2..=100_000)?),
            None => None,
        };
        let life = u32::try_from(LIFE.as_micros() / inter.as_micros().max(1));
        let mixed = Self::Mixed {
            fresh_every: every.unwrap_or(life.unwrap_or(u32::MAX).max(FRESH_EVERY)),
        };
        let keep = match connection {
            Some(text) => word(
                &format!("{field}.connection"),
                text,
                &[
                    ("fresh", Self::Fresh),
                    ("reuse", Self::Reuse),
                    ("mixed", mixed),
                ],
            )?,
            None if every.is_some() || inter < OFTEN => mixed,
            None => Self::Fresh,
        };
        match (every, keep) {
            (Some(every), Self::Fresh | Self::Reuse) => Err(Fault::new(
                every_field,
                every,
                "only mixed connections are replaced now and then",
                "no `fresh_every`, or connection: mixed",
            )),
            _ => Ok(keep),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => Ok(()),
            Self::Reuse => f.write_str(", connection reused"),
            Self::Mixed { fresh_every } => write!(f, ", fresh connection every {fresh_every}"),
        }
    }
}

impl fmt::Display for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (method, path) = (self.method.as_str(), &self.path);
        write!(
            f,
            "{method} {path}{}, {}{}",
            self.reach, self.expect, self.keep
        )
    }
}
