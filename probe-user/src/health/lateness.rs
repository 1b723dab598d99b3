//! How late the agent itself is, and what of that an endpoint cannot help.
//!
//! An agent that is not scheduled sees no answers, and its own silence looks like an
//! endpoint's. Three things tell them apart:
//!
//! - a [`Pulse`] beats on the thread of the checks. A beat that comes late was a time in which
//!   no check was attended to: the thread had no processor, was stopped, or was busy;
//! - [`Patience`] excuses a timeout that fell into such times: it says nothing of the endpoint.
//!   The check is made again at once. What counts is time that the agent was awake: an endpoint
//!   that was silent for its whole timeout of it, in one check or in several in a row, has
//!   failed. So a hang is found on the busiest machine, later;
//! - [`Lateness`] adds up how late checks began, for people.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::verdict::Kind;

/// Timers are exact to the millisecond, and so is the wait for them: less than this is nobody's
/// stall.
const TOLERANCE: Duration = Duration::from_millis(2);
/// Beats within the shortest timeout: what falls between two is not seen.
const BEATS: u32 = 16;
const FASTEST: Duration = Duration::from_millis(1);
const SLOWEST: Duration = Duration::from_millis(50);
/// A timeout is excused if the agent was blind for more than this part of it.
const FAIR_PART: u32 = 8;

/// Beats on a thread, and adds up how long it did not.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    period: Duration,
    /// Nanoseconds that were missed, all in all.
    blind: AtomicU64,
    /// When the next beat is due, in nanoseconds from the start.
    due: AtomicU64,
}

impl Pulse {
    /// Fit for checks of which the shortest may take so long.
    pub fn new(shortest: Duration) -> Self {
        Self {
            start: Instant::now(),
            period: (shortest / BEATS).clamp(FASTEST, SLOWEST),
            blind: AtomicU64::new(0),
            // None is due before the first.
            due: AtomicU64::new(u64::MAX),
        }
    }

    /// Beats until it is dropped.
    pub async fn beat(&self) {
        loop {
            let due = self.began(Instant::now());
            sleep_until(due).await;
        }
    }

    /// A beat; when the next one is due.
    fn began(&self, now: Instant) -> Instant {
        let late = self.late(now);
        // One thread writes; whoever reads has its own idea of now.
        self.blind.fetch_add(nanos(late), Ordering::Relaxed);
        let due = now + self.period;
        self.due.store(nanos(due - self.start), Ordering::Relaxed);
        due
    }

    /// How long nothing was seen, up to now. The difference of two of these is about the time
    /// between them.
    pub fn blind(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.blind.load(Ordering::Relaxed)) + self.late(now)
    }

    fn late(&self, now: Instant) -> Duration {
        let now = nanos(now.saturating_duration_since(self.start));
        let late = now.saturating_sub(self.due.load(Ordering::Relaxed));
        let late = Duration::from_nanos(late);
        if late > TOLERANCE {
            late
        } else {
            Duration::ZERO
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What is left to an endpoint whose checks were excused.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    timeout: Duration,
    /// Time that the agent was awake and heard nothing, in checks that were excused since
    /// the last one that was not.
    waited: Duration,
}

impl Patience {
    /// With checks of this timeout.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            waited: Duration::ZERO,
        }
    }

    /// Is this verdict, of a check that took so long and of that so long unseen, excused?
    pub fn excuses(&mut self, kind: Kind, took: Duration, blind: Duration) -> bool {
        let is_silence = matches!(kind, Kind::ConnectTimeout | Kind::ResponseTimeout);
        if is_silence && blind > self.timeout / FAIR_PART {
            self.waited += took.saturating_sub(blind);
            if self.waited < self.timeout {
                return true;
            }
        }
        self.waited = Duration::ZERO;
        false
    }
}

/// Upper ends of what lateness is counted by, in microseconds.
pub const BOUNDS_US: [u64; 13] = [
    50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
];
/// The maximum is of the last one to two of these.
const RECENT: Duration = Duration::from_secs(60);

/// How late checks began.
#[derive(Clone, Debug)]
pub struct Lateness {
    counts: [u64; BOUNDS_US.len() + 1],
    /// The largest of this time, and of the one before.
    largest: [Duration; 2],
    since: Instant,
}

impl Lateness {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self {
            counts: [0; BOUNDS_US.len() + 1],
            largest: [Duration::ZERO; 2],
            since: now,
        }
    }

    /// A check began so late.
    pub fn note(&mut self, late: Duration, now: Instant) {
        let micros = late.as_micros();
        let bucket = BOUNDS_US.iter().position(|end| micros <= u128::from(*end));
        self.counts[bucket.unwrap_or(BOUNDS_US.len())] += 1;
        self.turn(now);
        self.largest[0] = self.largest[0].max(late);
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < RECENT {
            return;
        }
        let before = self.largest[0];
        self.largest = [Duration::ZERO, before];
        if passed >= 2 * RECENT {
            self.largest[1] = Duration::ZERO;
        }
        self.since = now;
    }

    /// Checks that it is about.
    pub fn checks(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The largest of the last one to two minutes.
    pub fn largest(&self) -> Duration {
        self.largest[0].max(self.largest[1])
    }

    /// What so many of a hundred checks did not exceed: the upper end of their bucket. None
    /// before the first check, or beyond the last bucket.
    pub fn percentile(&self, percent: u64) -> Option<Duration> {
        let rank = (self.checks() * percent).div_ceil(100);
        let mut passed = 0;
        let bucket = self.counts.iter().position(|count| {
            passed += count;
            passed >= rank && passed > 0
        });
        let end = BOUNDS_US.get(bucket?)?;
        Some(Duration::from_micros(*end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_late_beat_was_a_blind_time_and_a_due_one_not_yet() {
        let pulse = Pulse::new(ms(160));
        let start = pulse.start;
        assert_eq!(pulse.blind(start + ms(1000)), ms(0), "none was due");
        assert_eq!(pulse.began(start), start + ms(10));
        assert_eq!(pulse.blind(start + ms(10)), ms(0));
        assert_eq!(pulse.blind(start + ms(12)), ms(0), "timers are that exact");
        // It is seen while it lasts, and after it.
        assert_eq!(pulse.blind(start + ms(40)), ms(30));
        pulse.began(start + ms(50));
        assert_eq!(pulse.blind(start + ms(50)), ms(40));
        assert_eq!(pulse.blind(start + ms(60)), ms(40));
        pulse.began(start + ms(61));
        pulse.began(start + ms(100));
        assert_eq!(pulse.blind(start + ms(105)), ms(40 + 29));
    }

    #[tokio::test(start_paused = true)]
    async fn it_beats_in_time_on_an_idle_thread() {
        let pulse = Pulse::new(ms(10));
        assert_eq!(pulse.period, FASTEST);
        let beats = tokio::time::timeout(ms(5000), pulse.beat()).await;
        assert!(beats.is_err());
        assert_eq!(pulse.blind(Instant::now()), ms(0));
    }

    #[test]
    fn silence_that_was_ours_is_excused_and_an_answer_never_is() {
        let mut patience = Patience::new(ms(100));
        assert!(!patience.excuses(Kind::ResponseTimeout, ms(100), ms(0)));
        assert!(!patience.excuses(Kind::ResponseTimeout, ms(101), ms(12)));
        assert!(patience.excuses(Kind::ResponseTimeout, ms(160), ms(100)));
        assert!(!patience.excuses(Kind::Refused, ms(160), ms(100)));
        assert!(patience.excuses(Kind::ConnectTimeout, ms(160), ms(100)));
        assert!(!patience.excuses(Kind::BadStatus, ms(160), ms(100)));
        assert!(!patience.excuses(Kind::Ok, ms(160), ms(100)));
    }

    #[test]
    fn a_hang_is_found_on_a_busy_machine() {
        let mut patience = Patience::new(ms(100));
        // Awake for 40 of each 200 ms: the third is the failure.
        let mut one = || patience.excuses(Kind::ResponseTimeout, ms(200), ms(160));
        assert_eq!([one(), one(), one()], [true, true, false]);
        assert_eq!([one(), one(), one()], [true, true, false]);
    }

    proptest! {
        /// Whatever the machine does, no endpoint is called silent that was not listened to
        /// for its timeout, but for the part that counts as none.
        #[test]
        fn who_was_not_listened_to_has_not_failed(
            checks in prop::collection::vec((0u64..300, 0u64..100), 1..50),
        ) {
            let timeout = ms(100);
            let mut patience = Patience::new(timeout);
            let mut listened = ms(0);
            for (took, part) in checks {
                // A timeout takes at least its time.
                let took = ms(100 + took);
                let blind = took * u32::try_from(part).unwrap() / 100;
                listened += took - blind;
                if !patience.excuses(Kind::ResponseTimeout, took, blind) {
                    prop_assert!(listened >= timeout - timeout / FAIR_PART);
                    listened = ms(0);
                }
            }
        }
    }

    #[test]
    fn lateness_is_counted_and_the_largest_is_forgotten() {
        let start = Instant::now();
        let mut lateness = Lateness::new(start);
        assert_eq!((lateness.checks(), lateness.percentile(99)), (0, None));
        for _ in 0..99 {
            lateness.note(Duration::from_micros(80), start);
        }
        lateness.note(ms(7), start + ms(1));
        assert_eq!(lateness.percentile(50), Some(Duration::from_micros(100)));
        assert_eq!(lateness.percentile(99), Some(Duration::from_micros(100)));
        assert_eq!(lateness.percentile(100), Some(ms(10)));
        assert_eq!(lateness.largest(), ms(7));
        lateness.note(ms(1), start + RECENT);
        assert_eq!(lateness.largest(), ms(7));
        lateness.note(ms(2), start + 2 * RECENT);
        assert_eq!(lateness.largest(), ms(2));
        lateness.note(ms(3), start + 5 * RECENT);
        assert_eq!(lateness.largest(), ms(3));
        lateness.note(Duration::from_secs(9), start + 5 * RECENT);
        assert_eq!(lateness.percentile(100), None);
    }
}
