//! When the agent must doubt itself rather than its endpoints.
//!
//! Hosts that have nothing to do with each other do not fall silent at one moment; the node that
//! looks at them loses its link, or its firewall forgets. [`Distrust`] is pure, as
//! [`super::Failover`] is. An endpoint that goes down begins a *suspicion* if everybody is
//! silent with it: every endpoint that was up, of all services, on two hosts at least, went down
//! a short time ago or has failed its last check, all of them without a word. A connection
//! that is refused or reset, or a wrong answer, is a word: somebody is there, and the way to
//! him works.
//!
//! A suspicion lasts until any check hears a word; who goes down meanwhile is doubted. Then each
//! of them is judged by the first check of its own that begins after the word: so a link that
//! comes back takes nobody down whose turn to be checked was not yet. After [`LONGEST`] in all
//! everybody is believed. Whoever fails while another one's last check was good is left at
//! once, as ever.

use std::{net::IpAddr, time::Duration};

use tokio::time::Instant;

use crate::health::Kind;

/// A suspicion's time: long enough for a link that flaps or a switch that restarts its port,
/// short for clients of endpoints that are all lost.
pub const LONGEST: Duration = Duration::from_secs(10);
/// Who went down within this time, or two intervals of his checks, went down together with
/// who goes down now.
pub const TOGETHER: Duration = Duration::from_secs(1);

/// What an endpoint that is up, or was a short time ago, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Where its checks go; nothing where that is not known.
    pub host: Option<IpAddr>,
    /// Did its last check end without a word from it?
    pub silent: bool,
}

/// One agent's doubt.
#[derive(Clone, Copy, Debug)]
pub struct Distrust {
    on: bool,
    suspicion: Option<Suspicion>,
}

#[derive(Clone, Copy, Debug)]
struct Suspicion {
    since: Instant,
    /// When it turned out to be wrong.
    word: Option<Instant>,
}

/// Did a check with this verdict end without a word from its endpoint?
pub const fn is_silence(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ConnectTimeout | Kind::ResponseTimeout | Kind::Unreachable
    )
}

/// Did the endpoint say anything, whatever it was? What the agent itself could not do tells
/// nothing, least of all in its favour.
pub const fn is_word(kind: Kind) -> bool {
    !is_silence(kind) && !matches!(kind, Kind::Local)
}

impl Distrust {
    /// One that may be switched off.
    pub fn new(on: bool) -> Self {
        Self {
            on,
            suspicion: None,
        }
    }

    /// Switches it on or off; a suspicion that is there comes to its end.
    pub fn set(&mut self, on: bool) {
        self.on = on;
    }

    /// Does the agent doubt itself at all?
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Is there a suspicion, and since when?
    pub fn since(&self) -> Option<Instant> {
        let suspicion = self.suspicion.filter(|of| of.word.is_none())?;
        Some(suspicion.since)
    }

    /// When [`Distrust::tick`] has everybody believed.
    pub fn due(&self) -> Option<Instant> {
        self.suspicion.map(|of| of.since + LONGEST)
    }

    /// An endpoint would go down with this verdict. Shall it be doubted? `witnesses` are all
    /// endpoints that are up or were a short time ago, itself included.
    pub fn doubts(
        &mut self,
        kind: Kind,
        witnesses: impl IntoIterator<Item = Witness>,
        now: Instant,
    ) -> bool {
        if !self.on || !is_silence(kind) {
            return false;
        }
        if self.since().is_none() && all_silent(witnesses) {
            self.suspicion = Some(Suspicion {
                since: now,
                word: None,
            });
        }
        self.since().is_some()
    }

    /// A check was made; true if it ends the suspicion.
    pub fn heard(&mut self, kind: Kind, now: Instant) -> bool {
        if !is_word(kind) || self.since().is_none() {
            return false;
        }
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.word = Some(now);
        }
        true
    }

    /// A check of one that was doubted failed, which began then. Is it believed now?
    pub fn believes(&self, begun: Instant) -> bool {
        match self.suspicion {
            Some(suspicion) => suspicion.word.is_some_and(|word| word <= begun),
            None => true,
        }
    }

    /// Time passed; true if everybody is believed from now on.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now) && self.suspicion.take().is_some()
    }
}

fn all_silent(witnesses: impl IntoIterator<Item = Witness>) -> bool {
    let (mut first, mut several) = (None, false);
    for witness in witnesses {
        if !witness.silent {
            return false;
        }
        if let Some(host) = witness.host {
            several |= *first.get_or_insert(host) != host;
        }
    }
    several
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn witness(host: u8, silent: bool) -> Witness {
        Witness {
            host: Some([10, 0, 0, host].into()),
            silent,
        }
    }

    #[test]
    fn only_when_several_hosts_are_silent_together() {
        let now = Instant::now();
        let doubts = |kind, witnesses: &[Witness]| {
            Distrust::new(true).doubts(kind, witnesses.iter().copied(), now)
        };
        let both = [witness(1, true), witness(2, true)];
        for kind in Kind::ALL {
            let silence = [
                Kind::ConnectTimeout,
                Kind::ResponseTimeout,
                Kind::Unreachable,
            ];
            assert_eq!(doubts(kind, &both), silence.contains(&kind), "{kind:?}");
        }
        let kind = Kind::ConnectTimeout;
        // One that speaks is enough, wherever it is.
        let another = [witness(1, true), witness(2, true), witness(3, false)];
        assert!(!doubts(kind, &another));
        // One host with two endpoints is one.
        assert!(!doubts(kind, &[witness(1, true), witness(1, true)]));
        assert!(!doubts(kind, &[witness(1, true)]));
        let nowhere = Witness {
            host: None,
            silent: true,
        };
        assert!(!doubts(kind, &[witness(1, true), nowhere]));
        assert!(!Distrust::new(false).doubts(kind, both, now));
    }

    #[test]
    fn a_word_ends_it_or_its_time() {
        let now = Instant::now();
        let both = [witness(1, true), witness(2, true)];
        let begun = || {
            let mut distrust = Distrust::new(true);
            assert!(distrust.doubts(Kind::ConnectTimeout, both, now));
            distrust
        };
        let mut distrust = begun();
        assert!(!distrust.heard(Kind::ConnectTimeout, now));
        assert!(!distrust.heard(Kind::Local, now));
        assert!(!distrust.believes(now));
        // Who goes down meanwhile is doubted too, unless it says so itself.
        assert!(distrust.doubts(Kind::ResponseTimeout, [], now));
        assert!(!distrust.doubts(Kind::Refused, [], now));
        let word = now + Duration::from_secs(1);
        assert!(distrust.heard(Kind::Refused, word));
        assert_eq!(distrust.since(), None);
        assert!(!distrust.heard(Kind::Ok, word), "it ended before");
        // What began before the word is as doubtful as ever; not for ever.
        assert!(!distrust.believes(now) && distrust.believes(word));
        assert_eq!(distrust.due(), Some(now + LONGEST));
        assert!(distrust.tick(now + LONGEST));
        assert!(distrust.believes(now));
        let mut distrust = begun();
        assert_eq!(distrust.due(), Some(now + LONGEST));
        let nearly = LONGEST.saturating_sub(Duration::from_nanos(1));
        assert!(!distrust.tick(now + nearly));
        assert!(distrust.tick(now + LONGEST));
        assert!(!distrust.tick(now + LONGEST));
    }

    proptest! {
        /// While anybody speaks nobody is doubted; and no suspicion is longer than the longest.
        #[test]
        fn no_doubt_while_anybody_speaks(
            happened in prop::collection::vec(
                (
                    0..Kind::ALL.len(),
                    prop::collection::vec((0u8..3, any::<bool>()), 0..4),
                    0u64..8000,
                    any::<bool>(),
                ),
                0..40,
            ),
        ) {
            let mut now = Instant::now();
            let mut distrust = Distrust::new(true);
            for (kind, witnesses, ms, made) in happened {
                now += Duration::from_millis(ms);
                distrust.tick(now);
                let kind = Kind::ALL[kind];
                if made {
                    distrust.heard(kind, now);
                    prop_assert!(distrust.since().is_none() || is_silence(kind) || kind == Kind::Local);
                    continue;
                }
                let before = distrust.since();
                let of: Vec<_> = witnesses.iter().map(|(host, silent)| witness(*host, *silent)).collect();
                let speaks = of.iter().any(|witness| !witness.silent);
                if distrust.doubts(kind, of, now) && before.is_none() {
                    prop_assert!(!speaks);
                    prop_assert_eq!(distrust.since(), Some(now));
                }
                prop_assert!(distrust.due().is_none_or(|due| due > now));
            }
        }
    }
}
