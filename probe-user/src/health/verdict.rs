//! What one check concluded.

use std::{borrow::Cow, fmt, io, time::Duration};

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
    /// An answer with the right status that lacks a header, or has one that it must not have.
    HeaderMismatch,
    /// An answer with the right status whose body lacks what it should hold, or holds what it
    /// must not.
    BodyMismatch,
    /// What came is not an answer of the protocol, or breaks off.
    Protocol,
    /// There is no encrypted connection: no TLS there, or a certificate that does not do.
    Tls,
    /// The command of a check failed.
    Exec,
    /// The network says that the endpoint cannot be reached.
    Unreachable,
    /// The agent itself could not check: no descriptor, port or memory. It says nothing
    /// about the endpoint and counts neither way.
    Local,
    /// No check: clients' connections failed, and the service counts them
    /// ([`crate::config::Observe::MarkDown`]).
    Observed,
    /// No check: the endpoint's own agent said so ([`crate::health::agent`]).
    AgentSaid,
    /// No check: the endpoint's name has no address, or had none for too long
    /// ([`crate::config::Holds`]).
    Dns,
}

impl Kind {
    /// Every kind that a check can conclude.
    pub const ALL: [Self; 13] = [
        Self::Ok,
        Self::Refused,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
        Self::Reset,
        Self::BadStatus,
        Self::HeaderMismatch,
        Self::BodyMismatch,
        Self::Protocol,
        Self::Tls,
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
            Self::HeaderMismatch => "header-mismatch",
            Self::BodyMismatch => "body-mismatch",
            Self::Protocol => "protocol",
            Self::Tls => "tls",
            Self::Exec => "exec",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
            Self::Observed => "observed",
            Self::AgentSaid => "agent-said",
            Self::Dns => "dns",
        }
    }

    /// Does a check conclude it? Else nothing was timed.
    pub const fn is_of_check(self) -> bool {
        (self as usize) < Self::ALL.len()
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

/// The beginning of what came and was not what was wanted; no more than a person looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Saw {
    bytes: [u8; Self::LENGTH],
    length: u8,
    more: bool,
}

impl Saw {
    /// Bytes that are kept.
    pub const LENGTH: usize = 48;
    /// Nothing.
    pub const NOTHING: Self = Self {
        bytes: [0; Self::LENGTH],
        length: 0,
        more: false,
    };

    /// The beginning of this.
    pub fn beginning(of: &[u8]) -> Self {
        let mut saw = Self::NOTHING;
        let kept = &of[..of.len().min(Self::LENGTH)];
        saw.bytes[..kept.len()].copy_from_slice(kept);
        // At most `LENGTH`.
        saw.length = kept.len() as u8;
        saw.more = of.len() > kept.len();
        saw
    }

    /// Is there nothing to show?
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// As text: what is not visible is escaped, `...` stands for more.
impl fmt::Display for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes[..usize::from(self.length)].utf8_chunks() {
            write!(f, "{}", chunk.valid().escape_debug())?;
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        f.write_str(if self.more { "..." } else { "" })
    }
}

impl fmt::Debug for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

/// What a check found, without the time that it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: Kind,
    /// The answer's status, if it came that far.
    pub status: Option<u16>,
    /// What a person wants to know beyond the kind; may be empty.
    pub note: Cow<'static, str>,
    /// The beginning of what did not match, if something did not.
    pub saw: Saw,
}

impl Finding {
    /// All is well.
    pub const OK: Self = Self {
        kind: Kind::Ok,
        status: None,
        note: Cow::Borrowed(""),
        saw: Saw::NOTHING,
    };

    /// A finding with an explanation.
    pub fn new(kind: Kind, note: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            note: note.into(),
            ..Self::OK
        }
    }

    /// An I/O error, while connecting or later.
    pub fn of_io(error: &io::Error, connecting: bool) -> Self {
        let text = error.to_string();
        // The number says nothing that the kind does not.
        let note = match text.split_once(" (os error") {
            Some((text, _)) => text.to_owned(),
            None => text,
        };
        Self::new(Kind::of_io(error, connecting), note)
    }

    /// With the answer's status.
    #[must_use]
    pub fn with_status(self, status: impl Into<Option<u16>>) -> Self {
        Self {
            status: status.into(),
            ..self
        }
    }

    /// With the beginning of what came.
    #[must_use]
    pub fn that_saw(self, bytes: &[u8]) -> Self {
        Self {
            saw: Saw::beginning(bytes),
            ..self
        }
    }

    /// Timed.
    pub fn after(self, latency: Duration) -> Verdict {
        let Self {
            kind,
            status,
            note,
            saw,
        } = self;
        Verdict {
            kind,
            status,
            latency,
            note,
            saw,
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
    /// The beginning of what did not match, if something did not.
    pub saw: Saw,
}

impl Verdict {
    /// One line for people, as `200 in 0.4 ms`.
    pub fn detail(&self) -> String {
        // Nothing was timed.
        if !self.kind.is_of_check() {
            return self.note.clone().into_owned();
        }
        let ms = self.latency.as_secs_f64() * 1000.0;
        let saw = if self.saw.is_empty() {
            String::new()
        } else {
            format!(", it begins `{}`", self.saw)
        };
        match (self.status, self.note.as_ref()) {
            (Some(status), "") => format!("{status} in {ms:.1} ms"),
            (Some(status), note) => format!("{status}, {note}{saw}, in {ms:.1} ms"),
            (None, "") => format!("{} after {ms:.1} ms", self.kind.label()),
            (None, note) => format!("{note}{saw} after {ms:.1} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_in_order_and_have_words_of_their_own() {
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
            let same = |other: &Kind| other.label() == kind.label();
            assert_eq!(Kind::ALL.iter().filter(|other| same(other)).count(), 1);
        }
        assert_eq!(Kind::Observed as usize, Kind::ALL.len());
        for kind in [Kind::Observed, Kind::AgentSaid, Kind::Dns] {
            assert!(!kind.is_of_check() && kind.success() == Some(false));
        }
    }

    #[test]
    fn what_was_seen_is_short_and_visible() {
        let saw = |bytes: &[u8]| Saw::beginning(bytes).to_string();
        assert_eq!(saw(b"ok\r\n\0\xff`"), r"ok\r\n\0\xff`");
        assert_eq!(saw("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(saw(&[b'x'; 48]), "x".repeat(48));
        assert_eq!(saw(&[b'x'; 49]), "x".repeat(48) + "...");
        // Cut within a character.
        let cut = [&[b'x'; 47][..], "\u{fc}".as_bytes()].concat();
        assert_eq!(saw(&cut), "x".repeat(47) + r"\xc3...");
        assert!(Saw::beginning(b"").is_empty());
    }
}
