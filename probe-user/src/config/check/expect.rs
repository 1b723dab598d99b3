//! What an answer must be, and must not be.
//!
//! Status, headers and body are judged together: all must hold. In HAProxy a rule
//! `http-check expect string` replaces the check of the status, so a 503 whose
//! body holds the string keeps its server up. Who wants that asks for it by
//! `body_replaces_status`.

use std::{fmt, ops::RangeInclusive};

use memchr::memmem::Finder;
use regex::bytes::Regex;

use crate::config::{error::Fault, raw, scalar::word};

/// Statuses that HAProxy's httpchk accepts: 2xx and 3xx.
const DEFAULT_STATUS: RangeInclusive<u16> = 200..=399;
/// Bounds what compiling a regex may cost.
const REGEX_BYTES: usize = 1 << 20;
/// Headers that are expected, or not.
const MOST_HEADERS: usize = 32;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Expect {
    status: StatusSet,
    headers: Vec<HeaderMatch>,
    body: Option<BodyMatch>,
    not_status: StatusSet,
    not_headers: Vec<HeaderMatch>,
    not_body: Option<BodyMatch>,
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

/// What is looked for in a body.
#[derive(Clone, Debug)]
pub enum BodyMatch {
    /// These bytes, anywhere.
    Contains(Box<Finder<'static>>),
    /// Something that this expression matches. `.` does not match line ends, and
    /// the body need not be UTF-8.
    Regex(Regex),
}

impl BodyMatch {
    /// These bytes, anywhere.
    pub fn contains(bytes: &[u8]) -> Self {
        Self::Contains(Box::new(Finder::new(bytes).into_owned()))
    }

    /// Is it there?
    pub fn matches(&self, body: &[u8]) -> bool {
        match self {
            Self::Contains(needle) => needle.find(body).is_some(),
            Self::Regex(regex) => regex.is_match(body),
        }
    }
}

impl PartialEq for BodyMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contains(one), Self::Contains(other)) => one.needle() == other.needle(),
            (Self::Regex(one), Self::Regex(other)) => one.as_str() == other.as_str(),
            (Self::Contains(_), Self::Regex(_)) | (Self::Regex(_), Self::Contains(_)) => false,
        }
    }
}

impl fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains(needle) => write!(f, "`{}`", needle.needle().escape_ascii()),
            Self::Regex(regex) => write!(f, "regex `{regex}`"),
        }
    }
}

/// A header that is looked for.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    name: http::HeaderName,
    value: ValueMatch,
}

/// What its value, without blanks around it, must be.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatch {
    /// Anything.
    Present,
    /// Exactly these bytes.
    Equals(Vec<u8>),
    /// Something that these bytes are in, or the expression matches.
    Holds(BodyMatch),
}

impl HeaderMatch {
    /// The name, in lower case.
    pub fn name(&self) -> &http::HeaderName {
        &self.name
    }

    /// Is this value what it must be? Of several headers of the name one is enough.
    pub fn matches(&self, value: &[u8]) -> bool {
        match &self.value {
            ValueMatch::Present => true,
            ValueMatch::Equals(wanted) => wanted.as_slice() == value.trim_ascii(),
            ValueMatch::Holds(wanted) => wanted.matches(value.trim_ascii()),
        }
    }

    fn parse(field: &str, raw: &raw::Header) -> Result<Self, Fault> {
        const ONE: &str = "at most one of `equals`, `contains` and `regex`";
        let name = raw.name.parse().map_err(|_| {
            Fault::new(
                format!("{field}.name"),
                &raw.name,
                "not the name of a header",
                "letters, digits and - as in Content-Type",
            )
        })?;
        let value = match (&raw.equals, &raw.contains, &raw.regex) {
            (None, None, None) => ValueMatch::Present,
            (Some(text), None, None) => ValueMatch::Equals(text.trim().as_bytes().to_vec()),
            (None, Some(text), None) if text.is_empty() => {
                return Err(Fault::new(
                    format!("{field}.contains"),
                    text,
                    "every value contains the empty text",
                    "the text to look for, or the name alone",
                ));
            }
            (None, Some(text), None) => ValueMatch::Holds(BodyMatch::contains(text.as_bytes())),
            (None, None, Some(text)) => {
                ValueMatch::Holds(BodyMatch::Regex(regex(&format!("{field}.regex"), text)?))
            }
            _ => return Err(Fault::absent(field, "two ways to match one value", ONE)),
        };
        Ok(Self { name, value })
    }

    fn parse_list(field: &str, raw: &[raw::Header]) -> Result<Vec<Self>, Fault> {
        if raw.len() > MOST_HEADERS {
            return Err(Fault::new(
                field,
                raw.len(),
                "so many headers",
                format!("at most {MOST_HEADERS}"),
            ));
        }
        raw.iter()
            .enumerate()
            .map(|(i, header)| Self::parse(&format!("{field}[{i}]"), header))
            .collect()
    }
}

impl fmt::Display for HeaderMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())?;
        match &self.value {
            ValueMatch::Present => Ok(()),
            ValueMatch::Equals(value) => write!(f, ": `{}`", value.escape_ascii()),
            ValueMatch::Holds(wanted) => write!(f, " with {wanted}"),
        }
    }
}

impl Expect {
    /// Statuses that are good.
    pub fn status(&self) -> &StatusSet {
        &self.status
    }
    /// Statuses that are bad all the same.
    pub fn not_status(&self) -> &StatusSet {
        &self.not_status
    }
    /// Is this one good?
    pub fn is_good(&self, status: u16) -> bool {
        self.status.contains(status) && !self.not_status.contains(status)
    }
    /// Headers that must be there.
    pub fn headers(&self) -> &[HeaderMatch] {
        &self.headers
    }
    /// Headers that must not be there.
    pub fn not_headers(&self) -> &[HeaderMatch] {
        &self.not_headers
    }
    /// What the body must hold.
    pub fn body(&self) -> Option<&BodyMatch> {
        self.body.as_ref()
    }
    /// What the body must not hold.
    pub fn not_body(&self) -> Option<&BodyMatch> {
        self.not_body.as_ref()
    }
    /// Is the body looked at?
    pub fn reads_body(&self) -> bool {
        self.body.is_some() || self.not_body.is_some()
    }

    pub(super) fn parse(field: &str, raw: &raw::Expect) -> Result<Self, Fault> {
        let replaces = word(
            &format!("{field}.body_replaces_status"),
            raw.body_replaces_status.as_deref().unwrap_or("off"),
            &[
                ("on", true),
                ("off", false),
                ("true", true),
                ("false", false),
            ],
        )?;
        if replaces && (raw.status.is_some() || (raw.body.is_none() && raw.not.body.is_none())) {
            return Err(Fault::new(
                format!("{field}.body_replaces_status"),
                "on",
                "the body is to be judged instead of the status",
                "a `body` and no `status` beside it, or off",
            ));
        }
        let status = match &raw.status {
            None if replaces => StatusSet(vec![100..=999]),
            None => StatusSet(vec![DEFAULT_STATUS]),
            Some(status) => statuses(&format!("{field}.status"), status)?,
        };
        let not_status = match &raw.not.status {
            None => StatusSet(Vec::new()),
            Some(status) => statuses(&format!("{field}.not.status"), status)?,
        };
        let body = |key: &str, raw: &Option<raw::Body>| match raw {
            Some(body) => body_match(&format!("{field}.{key}"), body).map(Some),
            None => Ok(None),
        };
        let expect = Self {
            status,
            headers: HeaderMatch::parse_list(&format!("{field}.headers"), &raw.headers)?,
            body: body("body", &raw.body)?,
            not_status,
            not_headers: HeaderMatch::parse_list(
                &format!("{field}.not.headers"),
                &raw.not.headers,
            )?,
            not_body: body("not.body", &raw.not.body)?,
        };
        if !(100..=999).any(|status| expect.is_good(status)) {
            return Err(Fault::new(
                format!("{field}.not.status"),
                &expect.not_status,
                "no status would be good",
                "a set that leaves some of `expect.status`",
            ));
        }
        Ok(expect)
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.not_status.0.is_empty() {
            write!(f, " but {}", self.not_status)?;
        }
        for header in &self.headers {
            write!(f, ", header {header}")?;
        }
        for header in &self.not_headers {
            write!(f, ", no header {header}")?;
        }
        if let Some(body) = &self.body {
            write!(f, ", body {body}")?;
        }
        if let Some(body) = &self.not_body {
            write!(f, ", body without {body}")?;
        }
        Ok(())
    }
}

const STATUS: &str = "a status as 200, a range as 200-299, several as 200-299,404, or a list of \
                      these; 100 to 599";

fn statuses(field: &str, raw: &raw::OneOrMany) -> Result<StatusSet, Fault> {
    let set = match raw {
        raw::OneOrMany::One(text) => parts(field, text)?,
        raw::OneOrMany::Many(list) => {
            let mut set = Vec::new();
            for (i, text) in list.iter().enumerate() {
                set.extend(parts(&format!("{field}[{i}]"), text)?);
            }
            set
        }
    };
    if set.is_empty() {
        return Err(Fault::absent(
            field,
            "an empty list: no status would be good",
            STATUS,
        ));
    }
    Ok(StatusSet(set))
}

fn parts(field: &str, text: &str) -> Result<Vec<RangeInclusive<u16>>, Fault> {
    text.split(',').map(|part| status(field, part)).collect()
}

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
    const ONE: &str = "one of `contains: TEXT`, `hex: BYTES` and `regex: EXPRESSION`";
    match (&raw.contains, &raw.hex, &raw.regex) {
        (Some(text), None, None) if text.is_empty() => Err(Fault::new(
            format!("{field}.contains"),
            text,
            "every body contains the empty text",
            "the text to look for",
        )),
        (Some(text), None, None) => Ok(BodyMatch::contains(text.as_bytes())),
        (None, Some(text), None) => Ok(BodyMatch::contains(&hex(&format!("{field}.hex"), text)?)),
        (None, None, Some(text)) => Ok(BodyMatch::Regex(regex(&format!("{field}.regex"), text)?)),
        (None, None, None) => Err(Fault::absent(field, "nothing to look for is given", ONE)),
        (Some(_), None, Some(_)) => Err(Fault::absent(
            field,
            "both `contains` and `regex` are given",
            ONE,
        )),
        _ => Err(Fault::absent(
            field,
            "two things to look for are given",
            ONE,
        )),
    }
}

/// Bytes as pairs of hexadecimal digits; blanks may stand between them.
pub(super) fn hex(field: &str, text: &str) -> Result<Vec<u8>, Fault> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(value(*high)? * 16 + value(*low)?).ok(),
        _ => None,
    });
    bytes
        .collect::<Option<Vec<_>>>()
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| {
            Fault::new(
                field,
                text,
                "not bytes in hexadecimal",
                "pairs of hexadecimal digits as 00ff or `00 ff`, at least one",
            )
        })
}

pub(super) fn regex(field: &str, text: &str) -> Result<Regex, Fault> {
    regex::bytes::RegexBuilder::new(text)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|error| {
            // The crate draws a picture over several lines; its last line says what is wrong.
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default().trim();
            Fault::new(
                field,
                text,
                format!(
                    "invalid regex: {}",
                    last.strip_prefix("error: ").unwrap_or(last)
                ),
                "a regular expression without look-around and back-references",
            )
        })
}
