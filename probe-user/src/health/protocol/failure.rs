//! How a conversation ends: well, or with a [`Failure`].
//!
//! A failure is an answer that is understood and not the wanted one ([`Mismatch`], with a
//! [`Reason`] that tells apart what people ask about first), or something that is no
//! answer of this protocol, or no answer.

use std::{borrow::Cow, fmt, io};

use crate::health::{
    transport::broken,
    verdict::{Finding, Kind, Saw},
};

/// How a conversation ends.
pub type Outcome = Result<(), Failure>;

/// It did not end well.
#[derive(Debug)]
pub enum Failure {
    /// An answer, understood, and not the one that is wanted.
    Mismatch(Mismatch),
    /// No answer of this protocol, or one that breaks off; how it begins.
    Protocol(Cow<'static, str>, Saw),
    /// The endpoint has closed the connection, nothing came.
    Closed,
    /// The connection failed.
    Io(io::Error),
    /// The command of a check says no.
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
    /// The first bytes that did not match; nothing where the note says it all.
    pub saw: Saw,
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

    /// The kind of its verdict.
    const fn kind(self) -> Kind {
        match self {
            Self::Answer | Self::Role | Self::NotServing => Kind::BodyMismatch,
            _ => Kind::BadStatus,
        }
    }
}

impl Failure {
    /// A mismatch, and what came.
    pub(super) fn mismatch(reason: Reason, note: impl Into<Cow<'static, str>>, saw: &[u8]) -> Self {
        Self::Mismatch(Mismatch {
            reason,
            note: note.into(),
            saw: Saw::beginning(saw),
        })
    }

    /// Not this protocol.
    pub(super) fn protocol(note: impl Into<Cow<'static, str>>) -> Self {
        Self::Protocol(note.into(), Saw::NOTHING)
    }

    /// Not this protocol, and what came.
    pub(super) fn garbage(note: impl Into<Cow<'static, str>>, saw: &[u8]) -> Self {
        Self::Protocol(note.into(), Saw::beginning(saw))
    }

    /// More came than any answer has.
    pub(super) fn endless() -> Self {
        Self::protocol("the answer never ends")
    }

    /// Nothing more will come of an answer that is not complete; what came of it.
    pub(super) fn broken_off(came: &[u8]) -> Self {
        match came {
            [] => Self::Closed,
            came => Self::garbage("the answer breaks off", came),
        }
    }

    /// Had the endpoint ended the connection before it was asked? Servers do so with those
    /// that are idle.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Io(error) => Kind::of_io(error, false) == Kind::Reset,
            _ => false,
        }
    }

    /// Is the connection as good as before? So it is where all was heard that was said.
    pub fn is_in_step(&self) -> bool {
        match self {
            Self::Mismatch(mismatch) => {
                matches!(mismatch.reason, Reason::Role | Reason::NotServing)
            }
            _ => false,
        }
    }
}

impl From<Failure> for Finding {
    fn from(failure: Failure) -> Self {
        let (kind, note, saw) = match failure {
            Failure::Mismatch(Mismatch { reason, note, saw }) => {
                let note = match note.as_ref() {
                    "" => Cow::Borrowed(reason.label()),
                    note => format!("{}: {note}", reason.label()).into(),
                };
                (reason.kind(), note, saw)
            }
            Failure::Protocol(note, saw) => (Kind::Protocol, note, saw),
            Failure::Closed => {
                let note = "the connection is closed, nothing came".into();
                (Kind::Protocol, note, Saw::NOTHING)
            }
            Failure::Io(error) => return broken(&error),
            Failure::Exec(note) => (Kind::Exec, note, Saw::NOTHING),
            Failure::Local(note) => (Kind::Local, note, Saw::NOTHING),
        };
        Self {
            saw,
            ..Self::new(kind, note)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch(mismatch) => write!(f, "{}: {}", mismatch.reason.label(), mismatch.note),
            Self::Protocol(note, _) | Self::Exec(note) | Self::Local(note) => f.write_str(note),
            Self::Closed => f.write_str("closed"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
