//! Steps of send and expect, with the semantics of HAProxy's tcp-check.
//!
//! What comes is collected in one buffer. All expectations between two sends are judged
//! on the same buffer, each anew whenever more has come, and the next send empties it. An
//! expectation that is not met waits for more, until the endpoint closes or the buffer is
//! full ([`LIMIT`]): what is there then decides. So does a negated one, which is otherwise
//! never certain: on a connection that stays open `min_recv` says after how many bytes it
//! is. A regular expression sees what has come so far, so `$` matches there.

use std::fmt;

use bytes::{Bytes, BytesMut};
use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{Failure, Inbox, Outcome, Reason};

/// Bytes of answers between two sends that are looked at, HAProxy's `tune.bufsize`.
pub const LIMIT: usize = 16 * 1024;

/// Several steps, made in order.
#[derive(Clone, Debug)]
pub struct Script(Vec<Step>);

/// One of them.
#[derive(Clone, Debug)]
pub enum Step {
    /// Says these bytes.
    Send(Bytes),
    /// Waits until this is true of what has come.
    Expect(Expect),
}

/// What must be true of what has come.
#[derive(Clone, Debug)]
pub struct Expect {
    /// What is looked for.
    pub pattern: Pattern,
    /// It must not be there.
    pub negated: bool,
    /// With so many bytes its absence is certain. `None`: more may always come.
    pub min_recv: Option<usize>,
}

/// What is looked for.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// These bytes, anywhere.
    Bytes(Bytes),
    /// Something that this expression matches.
    Regex(Regex),
}

impl Pattern {
    /// Is it there?
    pub fn is_in(&self, answer: &[u8]) -> bool {
        match self {
            Self::Bytes(bytes) if bytes.is_empty() => true,
            Self::Bytes(bytes) => answer.windows(bytes.len()).any(|window| window == bytes),
            Self::Regex(regex) => regex.is_match(answer),
        }
    }

    /// Fewer bytes cannot hold it.
    fn least(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Regex(_) => 0,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "`{}`", bytes.escape_ascii()),
            Self::Regex(regex) => write!(f, "regex `{regex}`"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Met,
    /// More may come that meets it.
    Open,
    Failed,
}

impl Expect {
    /// `last`: nothing more will come.
    fn judge(&self, answer: &[u8], last: bool) -> Judgement {
        if !last {
            let least = self.min_recv.unwrap_or(0).max(self.pattern.least());
            if answer.len() < least {
                return Judgement::Open;
            }
        }
        let found = self.pattern.is_in(answer);
        if !found && !last && self.min_recv.is_none() {
            return Judgement::Open;
        }
        if found == self.negated {
            Judgement::Failed
        } else {
            Judgement::Met
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.negated { "not " } else { "" };
        write!(f, "{not}{}", self.pattern)
    }
}

impl Script {
    /// These steps, of which one at least expects something.
    pub fn new(steps: Vec<Step>) -> Option<Self> {
        let expects = |step: &Step| matches!(step, Step::Expect(_));
        steps.iter().any(expects).then_some(Self(steps))
    }

    /// Its steps.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Holds the conversation. `scratch` is worth keeping.
    pub async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        scratch: &mut BytesMut,
    ) -> Outcome {
        let mut inbox = Inbox::new(scratch, LIMIT);
        let mut steps = &self.0[..];
        let mut closed = false;
        while let Some(first) = steps.first() {
            if let Step::Send(bytes) = first {
                stream.write_all(bytes).await?;
                stream.flush().await?;
                inbox = Inbox::new(inbox.bytes, LIMIT);
                steps = &steps[1..];
            } else {
                let expects = steps.iter().map_while(|step| match step {
                    Step::Expect(expect) => Some(expect),
                    Step::Send(_) => None,
                });
                let number = self.0.len() - steps.len() + 1;
                steps = &steps[expects.clone().count()..];
                judge_all(expects, number, stream, &mut inbox, &mut closed).await?;
            }
        }
        Ok(())
    }
}

/// Waits until all of them are met, or one has failed. `number` is the first one's.
async fn judge_all<'a, S: AsyncRead + Unpin>(
    expects: impl Iterator<Item = &'a Expect> + Clone,
    number: usize,
    stream: &mut S,
    inbox: &mut Inbox<'_>,
    closed: &mut bool,
) -> Outcome {
    // As in HAProxy nothing is judged before the first bytes after a send, or the end.
    if inbox.bytes.is_empty() && !*closed {
        *closed = inbox.more(stream).await? == 0;
    }
    loop {
        let last = *closed || inbox.room == 0;
        let open = expects.clone().enumerate().find_map(|(at, expect)| {
            let judgement = expect.judge(inbox.bytes, last);
            (judgement != Judgement::Met).then_some((number + at, expect, judgement))
        });
        match open {
            None => return Ok(()),
            Some((_, _, Judgement::Failed)) if *closed && inbox.bytes.is_empty() => {
                return Err(Failure::protocol("the connection is closed, nothing came"));
            }
            Some((step, expect, Judgement::Failed)) => {
                let note = format!("step {step} expects {expect}");
                return Err(Failure::mismatch(Reason::Answer, note, inbox.bytes));
            }
            Some(_) => *closed = inbox.more(stream).await? == 0,
        }
    }
}

/// Bytes as people write them: text with the escapes `\r`, `\n`, `\t`, `\0`, `\\` and
/// `\xNN`; what is wrong with them otherwise.
pub fn unescape(text: &str) -> Result<Bytes, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
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
            Some(b'x') => match (rest.next(), rest.next()) {
                (Some(&high), Some(&low)) => {
                    byte_of(high, low).ok_or("\\x takes two hexadecimal digits")?
                }
                _ => return Err("\\x takes two hexadecimal digits"),
            },
            _ => return Err("not an escape"),
        });
    }
    Ok(bytes.into())
}

/// Bytes in pairs of hexadecimal digits, which blanks may stand between.
pub fn unhex(text: &str) -> Result<Bytes, &'static str> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let (pairs, []) = digits.as_chunks::<2>() else {
        return Err("an odd number of digits");
    };
    pairs
        .iter()
        .map(|[high, low]| byte_of(*high, *low).ok_or("not a hexadecimal digit"))
        .collect()
}

fn byte_of(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
