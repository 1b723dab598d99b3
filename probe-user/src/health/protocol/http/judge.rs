//! Is an answer what it should be? Told as it comes, as soon as it is certain.
//!
//! Status and headers are judged when the head is there, the body as far as it has come:
//! a text that must be in it is good where it is found, one that must not be is bad. A
//! regular expression is tried on the whole body, or on its first
//! [`BODY_LIMIT`] bytes if it is longer: an anchor must not match at a place that
//! is the end only for now.

use super::BODY_LIMIT;
use crate::{
    config::{BodyMatch, Expect, HeaderMatch},
    health::verdict::{Finding, Kind},
};

/// Headers of any version.
pub trait Headers {
    /// Is there one of this name, in lower case, whose value passes?
    fn any(&self, name: &str, passes: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// How far a body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// More may come.
    Part,
    /// All of it.
    Whole,
    /// It is longer than what is looked at.
    Cut,
}

/// Judges one answer.
#[derive(Debug, Default)]
pub struct Judge {
    status: u16,
    wanted: Search,
    unwanted: Search,
}

/// Where a text was looked for.
#[derive(Clone, Copy, Debug, Default)]
struct Search {
    /// It does not begin before this.
    from: usize,
    found: bool,
}

impl Search {
    fn look(&mut self, wanted: &BodyMatch, body: &[u8], extent: Extent) -> bool {
        if !self.found {
            match wanted {
                BodyMatch::Contains(text) => {
                    self.found = wanted.matches(&body[self.from.min(body.len())..]);
                    self.from = (body.len() + 1).saturating_sub(text.needle().len());
                }
                BodyMatch::Regex(_) => {
                    self.found = extent != Extent::Part && wanted.matches(body);
                }
            }
        }
        self.found
    }
}

impl Judge {
    /// Of an answer whose head is here. The finding, if it is certain.
    pub fn head(&mut self, expect: &Expect, status: u16, headers: &dyn Headers) -> Option<Finding> {
        self.status = status;
        if !expect.is_good(status) {
            let note = match expect.status().contains(status) {
                true => format!("expected none of {}", expect.not_status()),
                false => format!("expected {}", expect.status()),
            };
            return Some(self.found(Kind::BadStatus, note));
        }
        let there =
            |header: &HeaderMatch| headers.any(header.name().as_str(), &mut |v| header.matches(v));
        if let Some(missing) = expect.headers().iter().find(|header| !there(header)) {
            return Some(self.mismatched(missing, headers));
        }
        if let Some(header) = expect.not_headers().iter().find(|header| there(header)) {
            let note = format!("header {header} is there");
            return Some(self.found(Kind::HeaderMismatch, note));
        }
        if !expect.reads_body() {
            return Some(Finding::OK.with_status(status));
        }
        self.compressed(headers)
    }

    /// A header that is not there, or what it is instead.
    fn mismatched(&self, missing: &HeaderMatch, headers: &dyn Headers) -> Finding {
        let mut value = None;
        headers.any(missing.name().as_str(), &mut |v| {
            value = Some(v.to_vec());
            true
        });
        let finding = self.found(Kind::HeaderMismatch, format!("no header {missing}"));
        match value {
            Some(value) => finding.that_saw(&value),
            None => finding,
        }
    }

    /// In a body that is compressed nothing can be looked for, and that something is not
    /// in it says nothing. None was asked for: no Accept-Encoding is sent.
    fn compressed(&self, headers: &dyn Headers) -> Option<Finding> {
        let mut coding = Vec::new();
        for name in ["content-encoding", "transfer-encoding"] {
            headers.any(name, &mut |value| {
                let plain = value.split(|b| *b == b',').all(|one| {
                    let one = one.trim_ascii();
                    one.is_empty()
                        || one.eq_ignore_ascii_case(b"identity")
                        || one.eq_ignore_ascii_case(b"chunked")
                });
                if !plain {
                    coding = value.to_vec();
                }
                !plain
            });
        }
        (!coding.is_empty()).then(|| {
            let note = "the body is compressed, which was not asked for";
            self.found(Kind::Protocol, note).that_saw(&coding)
        })
    }

    /// Of its body. The finding, if it is certain; it is when the body ends.
    pub fn body(&mut self, expect: &Expect, body: &[u8], extent: Extent) -> Option<Finding> {
        if let Some(unwanted) = expect.not_body()
            && self.unwanted.look(unwanted, body, extent)
        {
            let note = format!("{unwanted} is in the body");
            return Some(self.found(Kind::BodyMismatch, note).that_saw(body));
        }
        let found = match expect.body() {
            Some(wanted) => self.wanted.look(wanted, body, extent),
            None => true,
        };
        let certain = extent != Extent::Part || expect.not_body().is_none();
        match (found, expect.body()) {
            (true, _) if certain => Some(Finding::OK.with_status(self.status)),
            (false, Some(wanted)) if extent != Extent::Part => {
                let limit = match extent {
                    Extent::Cut => format!(" in the first {BODY_LIMIT} bytes"),
                    Extent::Whole | Extent::Part => String::new(),
                };
                let note = format!("no {wanted} in the body{limit}");
                Some(self.found(Kind::BodyMismatch, note).that_saw(body))
            }
            _ => None,
        }
    }

    fn found(&self, kind: Kind, note: impl Into<std::borrow::Cow<'static, str>>) -> Finding {
        Finding::new(kind, note).with_status(self.status)
    }
}
