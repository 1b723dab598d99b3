//! Answers in RESP2, Redis' protocol (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
//!
//! No value is built. [`Walk`] finds where an answer ends, element by element and without
//! recursion, so an array in an array in an array costs nothing; [`Reply`] looks at the
//! beginning of one that is whole.

/// Longest line: of a simple string, an error, a number.
const LINE: usize = 4096;
/// Most elements of an array, and most bytes of a string, that are believed.
const MOST: u64 = 1 << 20;

/// Not RESP2.
pub type Malformed = &'static str;

/// Finds the end of one answer while it comes.
#[derive(Debug)]
pub struct Walk {
    /// Where the first element that is not whole begins.
    at: usize,
    /// Elements that are to come.
    pending: u64,
}

impl Walk {
    /// At the beginning of an answer.
    pub fn new() -> Self {
        Self { at: 0, pending: 1 }
    }

    /// Goes on. `bytes` are those of the last time and more; where the answer ends, if it
    /// is whole.
    pub fn on(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        while self.pending > 0 {
            let Some(element) = element(&bytes[self.at..])? else {
                return Ok(None);
            };
            self.at += element.len;
            self.pending = self.pending - 1 + element.holds;
        }
        Ok(Some(self.at))
    }
}

/// An element's length, and how many others follow as its own.
struct Element {
    len: usize,
    holds: u64,
}

fn element(bytes: &[u8]) -> Result<Option<Element>, Malformed> {
    let Some(kind) = bytes.first() else {
        return Ok(None);
    };
    if !b"+-:$*".contains(kind) {
        return Err("no such type");
    }
    let Some(line) = line(&bytes[1..])? else {
        return Ok(None);
    };
    let head = 1 + line.len() + 2;
    let (len, holds) = match kind {
        b'+' | b'-' => (head, 0),
        b':' => {
            number(line)?;
            (head, 0)
        }
        b'*' => (head, count(line)?.unwrap_or(0)),
        _ => match count(line)? {
            None => (head, 0),
            Some(count) => {
                // At most MOST, so it fits.
                let end = head + usize::try_from(count).unwrap_or(usize::MAX - head - 2);
                match bytes.get(end..end + 2) {
                    None => return Ok(None),
                    Some(b"\r\n") => (end + 2, 0),
                    Some(_) => return Err("a string is longer than it says"),
                }
            }
        },
    };
    Ok(Some(Element { len, holds }))
}

/// Up to CR LF, if it has come.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let seen = &bytes[..bytes.len().min(LINE)];
    match seen.iter().position(|byte| *byte == b'\r') {
        None if bytes.len() > LINE => Err("a line without end"),
        None => Ok(None),
        Some(end) => match bytes.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(&bytes[..end])),
            Some(_) => Err("CR without LF"),
        },
    }
}

fn number(line: &[u8]) -> Result<i64, Malformed> {
    let text = str::from_utf8(line).map_err(|_| "not a number")?;
    text.parse().map_err(|_| "not a number")
}

/// A length; -1 is a null.
fn count(line: &[u8]) -> Result<Option<u64>, Malformed> {
    match number(line)? {
        -1 => Ok(None),
        count => match u64::try_from(count) {
            Ok(count) if count <= MOST => Ok(Some(count)),
            _ => Err("not a length"),
        },
    }
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `+`
    Simple,
    /// `-`
    Error,
    /// `:`
    Number,
    /// `$`
    Bulk,
    /// `*`
    Array,
}

/// The beginning of an answer that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its text; of an array that of the first element, if that is a string.
    pub text: Option<&'a [u8]>,
}

impl<'a> Reply<'a> {
    /// Of bytes that [`Walk`] has found to be one.
    pub fn of(bytes: &'a [u8]) -> Self {
        let head = |bytes: &'a [u8]| {
            let end = bytes.iter().position(|byte| *byte == b'\r')?;
            Some((*bytes.first()?, &bytes[1..end], &bytes[end + 2..]))
        };
        let text = |kind: u8, line: &'a [u8], rest: &'a [u8]| match kind {
            b'$' => {
                let count = usize::try_from(number(line).ok()?).ok()?;
                rest.get(..count)
            }
            _ => Some(line),
        };
        let Some((kind, line, rest)) = head(bytes) else {
            return Self {
                kind: Kind::Error,
                text: None,
            };
        };
        let first = || {
            let (kind, line, rest) = head(rest)?;
            matches!(kind, b'+' | b'$').then(|| text(kind, line, rest))?
        };
        match kind {
            b'+' => (Kind::Simple, Some(line)),
            b':' => (Kind::Number, Some(line)),
            b'$' => (Kind::Bulk, text(kind, line, rest)),
            b'*' => (Kind::Array, first()),
            _ => (Kind::Error, Some(line)),
        }
        .into()
    }
}

impl<'a> From<(Kind, Option<&'a [u8]>)> for Reply<'a> {
    fn from((kind, text): (Kind, Option<&'a [u8]>)) -> Self {
        Self { kind, text }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A value and how it is written.
    #[derive(Clone, Debug)]
    enum Value {
        Simple(String),
        Error(String),
        Number(i64),
        Bulk(Option<Vec<u8>>),
        Array(Option<Vec<Value>>),
    }

    impl Value {
        fn write(&self, to: &mut Vec<u8>) {
            match self {
                Self::Simple(text) => to.extend(format!("+{text}\r\n").bytes()),
                Self::Error(text) => to.extend(format!("-{text}\r\n").bytes()),
                Self::Number(number) => to.extend(format!(":{number}\r\n").bytes()),
                Self::Bulk(None) => to.extend(b"$-1\r\n"),
                Self::Bulk(Some(bytes)) => {
                    to.extend(format!("${}\r\n", bytes.len()).bytes());
                    to.extend(bytes);
                    to.extend(b"\r\n");
                }
                Self::Array(None) => to.extend(b"*-1\r\n"),
                Self::Array(Some(values)) => {
                    to.extend(format!("*{}\r\n", values.len()).bytes());
                    values.iter().for_each(|value| value.write(to));
                }
            }
        }

        fn text(&self) -> Option<&[u8]> {
            match self {
                Self::Simple(text) | Self::Error(text) => Some(text.as_bytes()),
                Self::Bulk(bytes) => bytes.as_deref(),
                Self::Number(_) | Self::Array(_) => None,
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[ -~]{0,20}".prop_map(Value::Simple),
            "[ -~]{0,20}".prop_map(Value::Error),
            any::<i64>().prop_map(Value::Number),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..20)).prop_map(Value::Bulk),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop::option::of(prop::collection::vec(inner, 0..5)).prop_map(Value::Array)
        })
    }

    proptest! {
        /// Wherever it is cut, its end is found when it is whole, and not before.
        #[test]
        fn a_value_ends_where_it_ends(
            value in value(),
            behind in prop::collection::vec(any::<u8>(), 0..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut bytes = Vec::new();
            value.write(&mut bytes);
            let whole = bytes.len();
            bytes.extend(behind);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(whole)).collect();
            cuts.sort_unstable();
            let mut walk = Walk::new();
            for cut in cuts {
                prop_assert_eq!(walk.on(&bytes[..cut]), Ok(None));
            }
            prop_assert_eq!(walk.on(&bytes), Ok(Some(whole)));
            let reply = Reply::of(&bytes[..whole]);
            let (kind, text) = match &value {
                Value::Simple(_) => (Kind::Simple, value.text()),
                Value::Error(_) => (Kind::Error, value.text()),
                Value::Bulk(_) => (Kind::Bulk, value.text()),
                Value::Number(number) => {
                    prop_assert_eq!(reply.kind, Kind::Number);
                    let number = number.to_string();
                    prop_assert_eq!(reply.text, Some(number.as_bytes()));
                    return Ok(());
                }
                Value::Array(values) => {
                    let first = values.as_ref().and_then(|values| values.first());
                    let text = match first {
                        Some(first @ (Value::Simple(_) | Value::Bulk(_))) => first.text(),
                        _ => None,
                    };
                    (Kind::Array, text)
                }
            };
            prop_assert_eq!((reply.kind, reply.text), (kind, text));
        }

        /// Whatever comes, it is walked to an end within it, or found wrong, or more is wanted.
        #[test]
        fn garbage_is_bounded(bytes in prop::collection::vec(
            prop_oneof![prop::sample::select(&b"+-:$*0123456789\r\n"[..]), any::<u8>()], 0..200)
        ) {
            let mut walk = Walk::new();
            if let Ok(Some(end)) = walk.on(&bytes) {
                prop_assert!(end <= bytes.len());
                Reply::of(&bytes[..end]);
            }
        }
    }

    #[test]
    fn what_is_no_answer() {
        for (bytes, wrong) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], "no such type"),
            (b"+PONG\rX", "CR without LF"),
            (b":12a\r\n", "not a number"),
            (b"$-2\r\n", "not a length"),
            (b"*99999999999\r\n", "not a length"),
            (b"$3\r\nabcd\r\n", "a string is longer than it says"),
        ] {
            assert_eq!(
                Walk::new().on(bytes),
                Err(wrong),
                "{}",
                bytes.escape_ascii()
            );
        }
        let mut line = vec![b'+'];
        line.extend([b'x'; LINE + 1]);
        assert_eq!(Walk::new().on(&line), Err("a line without end"));
    }
}
