//! When the silence of an endpoint towards its clients is a sign (pure).
//!
//! One SYN may be lost by a queue that is full for a moment; an endpoint that has answered nobody
//! since is another matter. After half of the time that a check may take such an endpoint is checked,
//! and a good check breaks the silence as any answer does. What lasts for the whole time counts as
//! [`Signal::Silent`](super::Signal::Silent), unless the endpoint sent something on an open
//! connection meanwhile. So a flood of SYNs whose answers go past here costs checks and no more.
//!
//! Who looks late was stopped, perhaps with the whole machine, and the answers too: time before
//! that is not held against anybody.

use std::time::Duration;

use tokio::time::Instant;

/// Looks in the shortest time that counts.
const LOOKS: u32 = 10;
const OFTEN: Duration = Duration::from_millis(1);
const SELDOM: Duration = Duration::from_millis(100);

/// Looks for silent endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    every: Duration,
    /// The shortest silence that leads to anything.
    least: Duration,
    looked: Instant,
    /// Since when every look was in time.
    awake: Instant,
    /// When the first of those that are silent now will have been for too long.
    expected: Option<Instant>,
}

impl Watch {
    /// For the shortest time after which silence counts.
    pub fn new(shortest: Duration, now: Instant) -> Self {
        Self {
            every: (shortest / LOOKS).clamp(OFTEN, SELDOM),
            least: doubted_after(shortest),
            looked: now,
            awake: now,
            expected: None,
        }
    }

    /// When to look next.
    pub fn due(&self) -> Instant {
        let next = self.looked + self.every;
        self.expected.map_or(next, |expected| next.min(expected))
    }

    /// An endpoint that is silent now will have been for too long then.
    pub fn expect(&mut self, then: Instant) {
        let first = self.expected.map_or(then, |first| first.min(then));
        self.expected = (then > self.looked).then_some(first).or(self.expected);
    }

    /// The shortest silence that leads to anything.
    pub fn least(&self) -> Duration {
        self.least
    }

    /// It is looked now.
    pub fn look(&mut self, now: Instant) {
        // Timers come up to a millisecond late.
        if now.duration_since(self.looked) > 2 * self.every + OFTEN {
            self.awake = now;
        }
        self.looked = now;
        self.expected = None;
    }

    /// The part of a silence that was watched.
    pub fn watched(&self, lasts: Duration, now: Instant) -> Duration {
        lasts.min(now.duration_since(self.awake))
    }
}

/// After which part of the time that a check may take an endpoint is checked.
pub fn doubted_after(timeout: Duration) -> Duration {
    timeout / 2
}

/// What is thought of an endpoint that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thought {
    /// It may take a little longer.
    Nothing,
    /// It is to be checked.
    Doubt,
    /// It is silent.
    Silent,
}

/// A silence that led to a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    /// Which silence.
    since: u32,
    /// How long it lasted by then.
    after: Duration,
    /// Packets that the endpoint had sent to clients by then, if that is known.
    packets: Option<u64>,
}

/// What is known of the silence of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence(Option<Doubt>);

impl Silence {
    /// It has been silent `since` a moment, watched for so long. `packets` tells how many it has
    /// sent to clients.
    pub fn judge(
        &mut self,
        since: u32,
        watched: Duration,
        timeout: Duration,
        packets: impl FnOnce() -> Option<u64>,
    ) -> Thought {
        if watched < doubted_after(timeout) {
            return Thought::Nothing;
        }
        let doubt = self.0.filter(|doubt| doubt.since == since);
        if let Some(doubt) = doubt {
            let listened = watched.saturating_sub(doubt.after);
            if watched < timeout || listened < timeout / 4 {
                return Thought::Nothing;
            }
        }
        let packets = packets();
        if doubt.is_some_and(|doubt| doubt.packets == packets) {
            self.0 = None;
            return Thought::Silent;
        }
        self.0 = Some(Doubt {
            since,
            after: watched,
            packets,
        });
        Thought::Doubt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const TIMEOUT: Duration = Duration::from_millis(10);

    #[test]
    fn who_answers_nobody_is_checked_and_then_silent() {
        let mut silence = Silence::default();
        let mut judge = |millis: u32| silence.judge(7, millis * MILLI, TIMEOUT, || Some(3));
        assert_eq!(judge(4), Thought::Nothing);
        assert_eq!(judge(5), Thought::Doubt);
        assert_eq!(judge(6), Thought::Nothing);
        assert_eq!(judge(9), Thought::Nothing);
        assert_eq!(judge(10), Thought::Silent);
        // If nobody forgets it, all over again.
        assert_eq!(judge(11), Thought::Doubt);
    }

    #[test]
    fn open_connections_are_listened_to() {
        let mut silence = Silence::default();
        let mut judge =
            |millis: u32, packets| silence.judge(7, millis * MILLI, TIMEOUT, || Some(packets));
        assert_eq!(judge(5, 3), Thought::Doubt);
        // It sends, and answers nobody who connects: it is checked again and again.
        assert_eq!(judge(10, 4), Thought::Doubt);
        assert_eq!(judge(12, 4), Thought::Nothing);
        assert_eq!(judge(13, 5), Thought::Doubt);
        assert_eq!(judge(16, 5), Thought::Silent);
    }

    #[test]
    fn another_silence_is_doubted_anew_and_a_long_one_too() {
        let mut silence = Silence::default();
        let mut judge = |since, millis: u32| silence.judge(since, millis * MILLI, TIMEOUT, || None);
        assert_eq!(judge(7, 20), Thought::Doubt);
        assert_eq!(judge(8, 20), Thought::Doubt);
        assert_eq!(judge(8, 22), Thought::Nothing);
        assert_eq!(judge(8, 23), Thought::Silent);
    }

    #[test]
    fn it_is_looked_ten_times_in_the_shortest_time() {
        let now = Instant::now();
        for (timeout, every) in [(1, 1), (10, 1), (50, 5), (2_000, 100)] {
            let watch = Watch::new(timeout * MILLI, now);
            assert_eq!(watch.due(), now + every * MILLI, "{timeout} ms");
            assert_eq!(watch.least(), timeout * MILLI / 2);
        }
    }

    #[test]
    fn the_end_of_a_silence_is_not_overslept() {
        let now = Instant::now();
        let mut watch = Watch::new(200 * MILLI, now);
        watch.look(now + 20 * MILLI);
        for (then, due) in [(50, 40), (33, 33), (35, 33), (20, 33)] {
            watch.expect(now + then * MILLI);
            assert_eq!(watch.due(), now + due * MILLI, "{then}");
        }
        watch.look(now + 33 * MILLI);
        assert_eq!(watch.due(), now + 53 * MILLI);
    }

    #[test]
    fn a_stall_of_ours_is_nobody_elses_silence() {
        let begun = Instant::now();
        let mut watch = Watch::new(TIMEOUT, begun);
        let mut now = begun;
        for _ in 0..20 {
            now += 2 * MILLI;
            watch.look(now);
        }
        assert_eq!(watch.watched(15 * MILLI, now), 15 * MILLI);
        now += 50 * MILLI;
        watch.look(now);
        assert_eq!(watch.watched(65 * MILLI, now), Duration::ZERO);
        now += MILLI;
        watch.look(now);
        assert_eq!(watch.watched(66 * MILLI, now), MILLI);
    }
}
