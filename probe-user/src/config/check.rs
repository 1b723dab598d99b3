//! What an endpoint must answer to be called healthy.
//!
//! Status and body are judged together: both must hold. In HAProxy a rule
//! `http-check expect string` replaces the check of the status, so a 503 whose
//! body holds the string keeps its server up. That is not offered here.

use std::{fmt, ops::RangeInclusive, time::Duration};

use regex::bytes::Regex;

use super::{
    error::Fault,
    raw,
    scalar::{self, duration, number, word},
};

/// Statuses that HAProxy's httpchk accepts: 2xx and 3xx.
const DEFAULT_STATUS: RangeInclusive<u16> = 200..=399;
const DEFAULT_INTER: Duration = Duration::from_secs(2);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_RISE: u32 = 2;
const DEFAULT_FALL: u32 = 3;
/// More than this many of anything in a row is a typing error.
pub const MOST_IN_A_ROW: u32 = 1000;
/// Bounds what compiling a regex may cost.
const REGEX_BYTES: usize = 1 << 20;

/// How the health of a service's endpoints is probed.
#[derive(Clone, Debug)]
pub struct Check {
    http: HttpCheck,
    inter: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

/// An HTTP request and what must come back.
#[derive(Clone, Debug)]
pub struct HttpCheck {
    method: Method,
    path: String,
    host: Option<String>,
    port: Option<u16>,
    status: StatusSet,
    body: Option<BodyMatch>,
}

/// The methods that a check may use: none of them changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With a body in the answer.
    Get,
    /// Never with a body in the answer.
    Head,
    /// HAProxy's default.
    Options,
}

impl Method {
    /// The method as it is sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
        }
    }
}

/// A set of status codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(Vec<RangeInclusive<u16>>);

impl StatusSet {
    /// Is the status one of the set?
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

/// What must stand in the body.
#[derive(Clone, Debug)]
pub enum BodyMatch {
    /// These bytes, anywhere.
    Contains(Vec<u8>),
    /// Something that this expression matches. `.` does not match line ends, and
    /// the body need not be UTF-8.
    Regex(Regex),
}

impl BodyMatch {
    /// Does the body hold what it must?
    pub fn matches(&self, body: &[u8]) -> bool {
        match self {
            Self::Contains(needle) => body.windows(needle.len()).any(|window| window == needle),
            Self::Regex(regex) => regex.is_match(body),
        }
    }
}

impl fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains(needle) => write!(f, "`{}`", String::from_utf8_lossy(needle)),
            Self::Regex(regex) => write!(f, "regex `{regex}`"),
        }
    }
}

impl Check {
    /// The request and the answer it wants.
    pub fn http(&self) -> &HttpCheck {
        &self.http
    }
    /// Time between the starts of two checks.
    pub fn inter(&self) -> Duration {
        self.inter
    }
    /// Time that one check may take, from connect to the last byte that it needs.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
    /// Good checks in a row that bring an endpoint up.
    pub fn rise(&self) -> u32 {
        self.rise
    }
    /// Failed checks in a row that take an endpoint down.
    pub fn fall(&self) -> u32 {
        self.fall
    }

    pub(super) fn parse(field: &str, raw: &raw::Check) -> Result<Self, Fault> {
        let ms = Duration::from_millis(1);
        let time = |key: &str, text: &Option<String>, default| match text {
            Some(text) => duration(&format!("{field}.{key}"), text, ms),
            None => Ok(default),
        };
        let count = |key: &str, text: &Option<String>, default| match text {
            Some(text) => number(&format!("{field}.{key}"), text, 1..=MOST_IN_A_ROW),
            None => Ok(default),
        };
        Ok(Self {
            http: HttpCheck::parse(&format!("{field}.http"), &raw.http)?,
            inter: time("inter", &raw.inter, DEFAULT_INTER)?,
            timeout: time("timeout", &raw.timeout, DEFAULT_TIMEOUT)?,
            rise: count("rise", &raw.rise, DEFAULT_RISE)?,
            fall: count("fall", &raw.fall, DEFAULT_FALL)?,
        })
    }
}

impl HttpCheck {
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
    /// The port that is probed, unless it is the endpoint's.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
    /// Statuses that are good.
    pub fn status(&self) -> &StatusSet {
        &self.status
    }
    /// What the body must hold.
    pub fn body(&self) -> Option<&BodyMatch> {
        self.body.as_ref()
    }

    fn parse(field: &str, raw: &raw::Http) -> Result<Self, Fault> {
        let method = match &raw.method {
            Some(text) => word(
                &format!("{field}.method"),
                text,
                &[
                    ("GET", Method::Get),
                    ("HEAD", Method::Head),
                    ("OPTIONS", Method::Options),
                ],
            )?,
            None => Method::Get,
        };
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
        let port = match &raw.port {
            Some(text) => Some(number(&format!("{field}.port"), text, 1..=u16::MAX)?),
            None => None,
        };
        let status = match &raw.expect.status {
            None => StatusSet(vec![DEFAULT_STATUS]),
            Some(raw::OneOrMany::One(text)) => {
                StatusSet(vec![status(&format!("{field}.expect.status"), text)?])
            }
            Some(raw::OneOrMany::Many(list)) if list.is_empty() => {
                return Err(Fault::absent(
                    format!("{field}.expect.status"),
                    "an empty list: no status would be good",
                    STATUS,
                ));
            }
            Some(raw::OneOrMany::Many(list)) => StatusSet(
                list.iter()
                    .enumerate()
                    .map(|(i, text)| status(&format!("{field}.expect.status[{i}]"), text))
                    .collect::<Result<_, _>>()?,
            ),
        };
        let body = match &raw.expect.body {
            Some(body) => Some(body_match(&format!("{field}.expect.body"), body)?),
            None => None,
        };
        if body.is_some() && method == Method::Head {
            return Err(Fault::new(
                format!("{field}.method"),
                "HEAD",
                "an answer to HEAD has no body, and `expect.body` wants one",
                "GET, or no `expect.body`",
            ));
        }
        Ok(Self {
            method,
            path,
            host: raw.host.clone(),
            port,
            status,
            body,
        })
    }
}

const STATUS: &str = "a status as 200, a range as 200-299, or a list of these; 100 to 599";

fn status(field: &str, text: &str) -> Result<RangeInclusive<u16>, Fault> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| {
        text.trim()
            .parse()
            .ok()
            .filter(|code| (100..=599).contains(code))
    };
    match (code(from), code(to)) {
        (Some(from), Some(to)) if from <= to => Ok(from..=to),
        (Some(_), Some(_)) => Err(Fault::new(field, text, "the range is empty", STATUS)),
        _ => Err(Fault::new(field, text, "not a status", STATUS)),
    }
}

fn body_match(field: &str, raw: &raw::Body) -> Result<BodyMatch, Fault> {
    const ONE: &str = "one of `contains: TEXT` and `regex: EXPRESSION`";
    match (&raw.contains, &raw.regex) {
        (Some(_), Some(_)) => Err(Fault::absent(
            field,
            "both `contains` and `regex` are given",
            ONE,
        )),
        (None, None) => Err(Fault::absent(field, "nothing to look for is given", ONE)),
        (Some(text), None) if text.is_empty() => Err(Fault::new(
            format!("{field}.contains"),
            text,
            "every body contains the empty text",
            "the text to look for",
        )),
        (Some(text), None) => Ok(BodyMatch::Contains(text.clone().into_bytes())),
        (None, Some(text)) => regex::bytes::RegexBuilder::new(text)
            .size_limit(REGEX_BYTES)
            .build()
            .map(BodyMatch::Regex)
            .map_err(|error| {
                // The crate draws a picture over several lines; its last line says what is wrong.
                let error = error.to_string();
                let last = error.lines().last().unwrap_or_default().trim();
                Fault::new(
                    format!("{field}.regex"),
                    text,
                    format!(
                        "invalid regex: {}",
                        last.strip_prefix("error: ").unwrap_or(last)
                    ),
                    "a regular expression without look-around and back-references",
                )
            }),
    }
}

/// Shows a check's timing as it is configured.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} every {}, timeout {}, rise {}, fall {}, status {}",
            self.http.method.as_str(),
            self.http.path,
            scalar::show(self.inter),
            scalar::show(self.timeout),
            self.rise,
            self.fall,
            self.http.status,
        )?;
        match &self.http.body {
            Some(body) => write!(f, ", body {body}"),
            None => Ok(()),
        }
    }
}
