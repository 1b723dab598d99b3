//! Signs that an endpoint may have failed, beside its checks.
//!
//! None of them is a verdict: a server may close connections that are idle, and a full
//! backlog refuses clients of a server that is well. They are a reason to check at
//! once. A service that trusts its clients more than its checks may count theirs
//! ([`ErrorLimit`]), as HAProxy does with `observe layer4` and `on-error mark-down`.

use probe_ebpf::abi::EventKind;

/// What was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// The endpoint answered a client's SYN with a RST.
    Refused,
    /// A client repeated its SYN, which the endpoint had not answered.
    Unanswered,
    /// The endpoint has answered no client that connects, nor a check, for as long as a check may
    /// take.
    Silent,
    /// The endpoint closed the sentinel connection.
    SentinelClosed,
    /// The endpoint reset the sentinel connection.
    SentinelReset,
    /// The sentinel connection could not be made, or broke otherwise.
    SentinelFailed,
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 6] = [
        Self::Refused,
        Self::Unanswered,
        Self::Silent,
        Self::SentinelClosed,
        Self::SentinelReset,
        Self::SentinelFailed,
    ];

    /// What the datapath tells, if it is about an endpoint's health.
    pub const fn of_event(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::EndpointRefused => Some(Self::Refused),
            EventKind::SynUnanswered => Some(Self::Unanswered),
            EventKind::FlowReset
            | EventKind::TableFull
            | EventKind::TupleClash
            | EventKind::PortsExhausted => None,
        }
    }

    /// Did a client notice it?
    pub const fn is_of_client(self) -> bool {
        matches!(self, Self::Refused | Self::Unanswered | Self::Silent)
    }

    /// The signal's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Refused => EventKind::EndpointRefused.label(),
            Self::Unanswered => EventKind::SynUnanswered.label(),
            Self::Silent => "silent",
            Self::SentinelClosed => "sentinel_closed",
            Self::SentinelReset => "sentinel_reset",
            Self::SentinelFailed => "sentinel_failed",
        }
    }
}

/// How often each signal was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Signal::ALL.len()]);

impl Counts {
    /// One more.
    pub fn count(&mut self, signal: Signal) {
        self.0[signal as usize] += 1;
    }

    /// How often.
    pub fn of(&self, signal: Signal) -> u64 {
        self.0[signal as usize]
    }
}

/// Counts failed connections of clients. A good check forgives those before it.
#[derive(Clone, Copy, Debug)]
pub struct ErrorLimit {
    limit: u32,
    errors: u32,
}

impl ErrorLimit {
    /// So many in a row are too many; at least one.
    pub fn new(limit: u32) -> Self {
        Self { limit, errors: 0 }
    }

    /// A connection failed; how many in a row, if they are too many now. Counting begins
    /// anew then.
    pub fn failed(&mut self) -> Option<u32> {
        self.errors += 1;
        (self.errors >= self.limit).then(|| std::mem::take(&mut self.errors))
    }

    /// A check was good.
    pub fn good_check(&mut self) {
        self.errors = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_numbered_in_order_and_have_words_of_their_own() {
        let mut counts = Counts::default();
        for (i, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, i);
            let same = |other: &Signal| other.label() == signal.label();
            assert_eq!(Signal::ALL.iter().filter(|other| same(other)).count(), 1);
            counts.count(signal);
            counts.count(signal);
        }
        assert!(Signal::ALL.iter().all(|signal| counts.of(*signal) == 2));
        let of_events = EventKind::ALL.into_iter().filter_map(Signal::of_event);
        assert!(of_events.eq([Signal::Refused, Signal::Unanswered]));
    }

    #[test]
    fn only_an_unbroken_run_of_errors_is_too_many() {
        let mut errors = ErrorLimit::new(3);
        assert_eq!([errors.failed(), errors.failed()], [None, None]);
        errors.good_check();
        assert_eq!([errors.failed(), errors.failed()], [None, None]);
        assert_eq!(errors.failed(), Some(3));
        assert_eq!(errors.failed(), None, "it begins anew");
        assert_eq!(ErrorLimit::new(1).failed(), Some(1));
    }
}
