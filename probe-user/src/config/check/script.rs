//! Steps of send and expect, as HAProxy's `tcp-check` has them.

use std::fmt;

use bytes::Bytes;

use super::{
    BodyMatch, Reach,
    expect::{hex, regex},
};
use crate::config::{
    error::Fault,
    raw,
    scalar::{number, word},
};

/// Steps of one script.
const MOST_STEPS: usize = 64;
/// Bytes of one step, and of an answer that is looked at, HAProxy's `tune.bufsize`.
const MOST_BYTES: usize = 16 * 1024;

/// Several steps, made in order.
#[derive(Clone, Debug, PartialEq)]
pub struct ScriptCheck {
    reach: Reach,
    steps: Vec<Step>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Says these bytes.
    Send(Bytes),
    /// Waits until this is true of what has come.
    Expect {
        /// What is.
        looked: Looked,
        /// With so many bytes absence is certain. `None`: more may always come.
        min_recv: Option<usize>,
    },
}

/// What is looked for in an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Looked {
    /// What.
    pub pattern: BodyMatch,
    /// It must not be there.
    pub negated: bool,
}

impl Looked {
    /// Does the answer do?
    pub fn is_met(&self, answer: &[u8]) -> bool {
        self.pattern.matches(answer) != self.negated
    }

    /// Text, bytes or an expression, if one of them is given.
    pub(super) fn parse(
        field: &str,
        text: &Option<String>,
        bytes: &Option<String>,
        expression: &Option<String>,
        not: &Option<String>,
    ) -> Result<Option<Self>, Fault> {
        let negated = match not {
            Some(text) => word(
                &format!("{field}.not"),
                text,
                &[("true", true), ("false", false)],
            )?,
            None => false,
        };
        let pattern = match (text, bytes, expression) {
            (None, None, None) => return Ok(None),
            (Some(text), None, None) => {
                BodyMatch::contains(&escaped(&format!("{field}.expect"), text)?)
            }
            (None, Some(text), None) => {
                let bytes = hex(&format!("{field}.expect_hex"), text)?;
                BodyMatch::contains(&bounded(&format!("{field}.expect_hex"), bytes)?)
            }
            (None, None, Some(text)) => {
                BodyMatch::Regex(regex(&format!("{field}.expect_regex"), text)?)
            }
            _ => {
                return Err(Fault::absent(
                    field,
                    "two things to look for are given",
                    "one of `expect`, `expect_hex` and `expect_regex`",
                ));
            }
        };
        Ok(Some(Self { pattern, negated }))
    }
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.negated { "not " } else { "" };
        write!(f, "{not}{}", self.pattern)
    }
}

/// What is sent, as text or in hexadecimal, if it is given.
pub(super) fn said(
    field: &str,
    text: &Option<String>,
    bytes: &Option<String>,
) -> Result<Option<Bytes>, Fault> {
    match (text, bytes) {
        (None, None) => Ok(None),
        (Some(text), None) => escaped(&format!("{field}.send"), text).map(Some),
        (None, Some(text)) => {
            let field = format!("{field}.send_hex");
            bounded(&field, hex(&field, text)?).map(Some)
        }
        (Some(_), Some(_)) => Err(Fault::absent(
            field,
            "two things to send are given",
            "one of `send` and `send_hex`",
        )),
    }
}

impl ScriptCheck {
    /// How it connects.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
    /// What is done, in order; one step at least expects something.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn parse(field: &str, raw: &raw::Script) -> Result<Self, Fault> {
        if raw.steps.len() > MOST_STEPS {
            return Err(Fault::new(
                format!("{field}.steps"),
                raw.steps.len(),
                "so many steps",
                format!("at most {MOST_STEPS}"),
            ));
        }
        let steps: Vec<_> = raw
            .steps
            .iter()
            .enumerate()
            .map(|(i, step)| Step::parse(&format!("{field}.steps[{i}]"), step))
            .collect::<Result<_, _>>()?;
        if !steps.iter().any(|step| matches!(step, Step::Expect { .. })) {
            return Err(Fault::absent(
                format!("{field}.steps"),
                "nothing is expected",
                "a step with `expect`; for a connection alone `tcp`",
            ));
        }
        Ok(Self {
            reach: Reach::parse(field, &raw.port, &raw.address, &raw.send_proxy, &raw.tls)?,
            steps,
        })
    }
}

impl Step {
    fn parse(field: &str, raw: &raw::Step) -> Result<Self, Fault> {
        const ONE: &str = "one of `send`, `send_hex`, `expect`, `expect_hex` and `expect_regex`";
        let raw::Step {
            send,
            send_hex,
            expect,
            expect_hex,
            expect_regex,
            not,
            min_recv,
        } = raw;
        let looked = Looked::parse(field, expect, expect_hex, expect_regex, not)?;
        match (said(field, send, send_hex)?, looked) {
            (Some(_), Some(_)) => Err(Fault::absent(field, "a step does one thing", ONE)),
            (None, None) => Err(Fault::absent(field, "a step that does nothing", ONE)),
            (Some(bytes), None) => {
                let of_expect = [("not", not), ("min_recv", min_recv)];
                match of_expect
                    .iter()
                    .find_map(|(key, text)| Some((key, text.as_ref()?)))
                {
                    Some((key, text)) => Err(Fault::new(
                        format!("{field}.{key}"),
                        text,
                        "belongs to what is expected",
                        "a step that sends nothing",
                    )),
                    None => Ok(Self::Send(bytes)),
                }
            }
            (None, Some(looked)) => Ok(Self::Expect {
                looked,
                min_recv: match min_recv {
                    Some(text) => Some(number(&format!("{field}.min_recv"), text, 0..=MOST_BYTES)?),
                    None => None,
                },
            }),
        }
    }
}

impl fmt::Display for ScriptCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "script of {} steps{}", self.steps.len(), self.reach)
    }
}

fn bounded(field: &str, bytes: Vec<u8>) -> Result<Bytes, Fault> {
    if bytes.len() > MOST_BYTES {
        return Err(Fault::new(
            field,
            format!("{} bytes", bytes.len()),
            "too long",
            format!("at most {MOST_BYTES} bytes"),
        ));
    }
    Ok(bytes.into())
}

/// Text with escapes, which is not empty.
fn escaped(field: &str, text: &str) -> Result<Bytes, Fault> {
    const TEXT: &str = r"text with the escapes \r \n \t \0 \\ and \x00 to \xff, not empty";
    match unescape(text) {
        Ok(bytes) if bytes.is_empty() => Err(Fault::new(field, text, "empty", TEXT)),
        Ok(bytes) => bounded(field, bytes),
        Err(problem) => Err(Fault::new(field, text, problem, TEXT)),
    }
}

/// Bytes as people write them; what is wrong with them otherwise.
pub(in crate::config) fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let byte = digit().zip(digit()).map(|(high, low)| high << 4 | low);
                byte.and_then(|byte| u8::try_from(byte).ok())
                    .ok_or(r"\x takes two hexadecimal digits")?
            }
            _ => return Err("not an escape"),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_as_people_write_them() {
        let all = b"a\r\n\t\0\\\x00\xff".to_vec();
        assert_eq!(unescape(r"a\r\n\t\0\\\x00\xfF"), Ok(all));
        assert_eq!(unescape("ä"), Ok("ä".as_bytes().to_vec()));
        for wrong in [r"\", r"\q", r"\x", r"\x1", r"\xg0", r"\x+1"] {
            assert!(unescape(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_written(bytes in prop::collection::vec(any::<u8>(), 1..50)) {
            let pairs: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
            prop_assert_eq!(hex("a", &pairs).unwrap(), bytes.clone());
            let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            prop_assert_eq!(unescape(&escaped).unwrap(), bytes.clone());
            // As a verdict shows them, they can be written; but for quotes, which it escapes too.
            let shown = bytes.escape_ascii().to_string();
            let shown = shown.replace("\\'", "'").replace("\\\"", "\"");
            prop_assert_eq!(unescape(&shown).unwrap(), bytes);
        }

        #[test]
        fn any_text_is_bytes_or_told_to_be_wrong(text in "\\PC{0,40}") {
            if let Ok(bytes) = unescape(&text) {
                prop_assert!(bytes.len() <= text.len());
            }
        }
    }
}
