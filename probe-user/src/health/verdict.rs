//! What one check concluded.

use std::{borrow::Cow, io, time::Duration};

/// The kind of a verdict, as status, logs and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The answer was what it should be.
    Ok,
    /// The connection was refused: nobody listens.
    Refused,
    /// No connection within the timeout.
    ConnectTimeout,
    /// A connection, but no complete answer within the timeout.
    ResponseTimeout,
    /// The connection was reset.
    Reset,
    /// An answer with another status.
    BadStatus,
    /// An answer with the right status whose body lacks what it should hold.
    BodyMismatch,
    /// What came is not an HTTP answer, or breaks off.
    Protocol,
    /// The command of the check says no.
    Exec,
    /// The network says that the endpoint cannot be reached.
    Unreachable,
    /// The agent itself could not check: no descriptor, port or memory. It says nothing
    /// about the endpoint and counts neither way.
    Local,
    /// No check: clients' connections failed, and the service counts them
    /// ([`crate::config::Observe::MarkDown`]).
    Observed,
}

impl Kind {
    /// Every kind that a check can conclude.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Refused,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
        Self::Reset,
        Self::BadStatus,
        Self::BodyMismatch,
        Self::Protocol,
        Self::Exec,
        Self::Unreachable,
        Self::Local,
    ];

    /// The kind's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::ResponseTimeout => "response-timeout",
            Self::Reset => "reset",
            Self::BadStatus => "bad-status",
            Self::BodyMismatch => "body-mismatch",
            Self::Protocol => "protocol",
            Self::Exec => "exec",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
            Self::Observed => "observed",
        }
    }

    /// Success, failure, or `None` where the endpoint is not judged.
    pub const fn success(self) -> Option<bool> {
        match self {
            Self::Ok => Some(true),
            Self::Local => None,
            _ => Some(false),
        }
    }

    /// The kind of an I/O error while connecting, or later.
    pub fn of_io(error: &io::Error, connecting: bool) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE) => Self::Reset,
            Some(libc::ETIMEDOUT) if connecting => Self::ConnectTimeout,
            Some(libc::ETIMEDOUT) => Self::ResponseTimeout,
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE,
            ) => Self::Local,
            // EHOSTUNREACH, ENETUNREACH, EACCES and EPERM of a firewall, ENETDOWN, ...
            _ => Self::Unreachable,
        }
    }
}

/// One check's conclusion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its kind.
    pub kind: Kind,
    /// The answer's status, if it came that far.
    pub status: Option<u16>,
    /// From the beginning of the check to its conclusion.
    pub latency: Duration,
    /// What a person wants to know beyond the kind; may be empty.
    pub note: Cow<'static, str>,
}

impl Verdict {
    /// One line for people, as `200 in 0.4 ms`.
    pub fn detail(&self) -> String {
        let ms = self.latency.as_secs_f64() * 1000.0;
        match (self.status, self.note.as_ref()) {
            // Nothing was timed.
            (_, note) if self.kind == Kind::Observed => note.to_owned(),
            (Some(status), "") => format!("{status} in {ms:.1} ms"),
            (Some(status), note) => format!("{status}, {note}, in {ms:.1} ms"),
            (None, "") => format!("{} after {ms:.1} ms", self.kind.label()),
            (None, note) => format!("{note} after {ms:.1} ms"),
        }
    }
}
