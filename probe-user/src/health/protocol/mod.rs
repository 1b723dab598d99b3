//! What is said to an endpoint, and what must come back, beside HTTP.
//!
//! - [`script`]: HAProxy's tcp-check, several steps of send and expect.
//! - [`redis`]: PING, and who is master.
//! - [`postgres`]: does it take connections, and is it in recovery?
//! - [`grpc`]: the health service of gRPC.
//! - [`udp`]: one datagram there, one back.
//! - [`exec`]: a command decides.
//!
//! A conversation is an asynchronous function over any stream, so plain TCP, TLS and a
//! connection kept from the check before are all the same to it. It bounds the bytes that
//! it takes and keeps, and nothing else: who calls it has the deadline, and drops it.
//!
//! It ends well, or with a [`Failure`]: an answer that is understood and not the wanted
//! one ([`Mismatch`], with a [`Reason`] that tells apart what people ask about first), or
//! something that is no answer of this protocol.

pub mod exec;
pub mod grpc;
pub mod postgres;
pub mod redis;
pub mod script;
mod secret;
pub mod udp;

use std::{borrow::Cow, fmt, io};

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub use secret::Secret;

use super::verdict::Kind;

/// Bytes of an answer that a failure quotes.
const QUOTED: usize = 48;
/// Bytes that are read at once.
const SIP: usize = 4096;

/// How a conversation ends.
pub type Outcome = Result<(), Failure>;

/// It did not end well.
#[derive(Debug)]
pub enum Failure {
    /// An answer, understood, and not the one that is wanted.
    Mismatch(Mismatch),
    /// No answer of this protocol, or one that breaks off.
    Protocol(Cow<'static, str>),
    /// The connection failed.
    Io(io::Error),
    /// The command of an [`exec`] check says no.
    Exec(Cow<'static, str>),
    /// The agent itself could not ask.
    Local(Cow<'static, str>),
}

/// An answer that is not the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// In what it differs.
    pub reason: Reason,
    /// What a person wants to know about it.
    pub note: Cow<'static, str>,
    /// The first bytes that did not match; empty where the note says it all.
    pub got: Quote,
}

/// In what an answer differs from the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It does not hold what it should, or holds what it should not.
    Answer,
    /// The endpoint is well and has another role: a replica, a standby.
    Role,
    /// The endpoint says that its service is not served.
    NotServing,
    /// It is starting, or loading its data, or going down.
    Starting,
    /// It does not let us in, or not do this.
    Credentials,
    /// A replica without its master.
    Replication,
    /// It does not know the question.
    Unimplemented,
    /// Any other error that it told.
    Error,
}

impl Reason {
    /// The reason in words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Answer => "unexpected answer",
            Self::Role => "wrong role",
            Self::NotServing => "not serving",
            Self::Starting => "not ready",
            Self::Credentials => "not permitted",
            Self::Replication => "replication is broken",
            Self::Unimplemented => "not implemented",
            Self::Error => "error",
        }
    }
}

/// The beginning of what came, for people.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Quote {
    bytes: Vec<u8>,
    more: bool,
}

impl Quote {
    /// Quotes the beginning.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes[..bytes.len().min(QUOTED)].to_vec(),
            more: bytes.len() > QUOTED,
        }
    }

    /// Is there nothing to quote?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.more { "..." } else { "" };
        write!(f, "`{}{more}`", self.bytes.escape_ascii())
    }
}

impl fmt::Debug for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Failure {
    /// A mismatch that quotes what came.
    fn mismatch(reason: Reason, note: impl Into<Cow<'static, str>>, got: &[u8]) -> Self {
        Self::Mismatch(Mismatch {
            reason,
            note: note.into(),
            got: Quote::of(got),
        })
    }

    /// Not this protocol.
    fn protocol(note: impl Into<Cow<'static, str>>) -> Self {
        Self::Protocol(note.into())
    }

    /// The kind of its verdict.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Mismatch(mismatch) => match mismatch.reason {
                Reason::Answer | Reason::Role | Reason::NotServing => Kind::BodyMismatch,
                _ => Kind::BadStatus,
            },
            Self::Protocol(_) => Kind::Protocol,
            Self::Io(error) => Kind::of_io(error, false),
            Self::Exec(_) => Kind::Exec,
            Self::Local(_) => Kind::Local,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch(Mismatch { reason, note, got }) => {
                f.write_str(reason.label())?;
                if !note.is_empty() {
                    write!(f, ": {note}")?;
                }
                if !got.is_empty() {
                    write!(f, ", the answer begins {got}")?;
                }
                Ok(())
            }
            Self::Protocol(note) | Self::Exec(note) | Self::Local(note) => f.write_str(note),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What comes from an endpoint, within a bound for all of it.
struct Inbox<'a> {
    bytes: &'a mut BytesMut,
    /// Bytes that may still come.
    room: usize,
}

impl<'a> Inbox<'a> {
    fn new(bytes: &'a mut BytesMut, room: usize) -> Self {
        bytes.clear();
        Self { bytes, room }
    }

    /// Waits for more; how much came, zero if there will be no more. Says so if there is
    /// no room, and loses nothing if it is dropped.
    async fn more<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<usize, Failure> {
        if self.room == 0 {
            return Err(Failure::protocol("it never ends"));
        }
        let sip = self.room.min(SIP);
        self.bytes.reserve(sip);
        let mut to = (&mut *self.bytes).limit(sip);
        let came = stream.read_buf(&mut to).await?;
        self.room -= came;
        Ok(came)
    }

    /// Waits for more of an answer that is not complete.
    async fn rest<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<(), Failure> {
        match self.more(stream).await? {
            0 if self.bytes.is_empty() => {
                Err(Failure::protocol("the connection is closed, nothing came"))
            }
            0 => Err(Failure::protocol("the answer breaks off")),
            _ => Ok(()),
        }
    }
}

/// The beginning of a text of the endpoint's, fit for a line of a log.
fn readable(text: &[u8]) -> String {
    const LONGEST: usize = 200;
    let shown = &text[..text.len().min(LONGEST)];
    let shown: String = String::from_utf8_lossy(shown)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let more = if text.len() > LONGEST { "..." } else { "" };
    format!("{}{more}", shown.trim())
}

#[cfg(test)]
mod tests;
