//! How much of its weight an endpoint has after it came up.
//!
//! Who was down and is up again begins with a twentieth of its weight, which grows evenly
//! to all of it over the slow start's time, as HAProxy's `slowstart`: caches are cold, and
//! its share at once could take it down again. Who was never seen to be down has all of it,
//! so a start of the agent slows nobody.
//!
//! Weight grows in steps of a twentieth, since each makes a new ring. [`LEAST`] lies between
//! two rings of a service at least, however many of its endpoints are on their way.
//! Only endpoints that share a tier are concerned; one that serves alone serves all.

use std::time::Duration;

use tokio::time::Instant;

/// Parts that a whole weight has.
pub const WHOLE: u16 = 20;
/// Time between two rings. HAProxy's is a second.
const LEAST: Duration = Duration::from_millis(100);

/// The slow starts of a service's endpoints.
#[derive(Clone, Debug)]
pub struct SlowStart {
    endpoints: Vec<Starting>,
    /// When parts last grew.
    grown: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Starting {
    /// How long it takes; zero for no time.
    time: Duration,
    /// When it came up, while it is on its way.
    since: Option<Instant>,
    part: u16,
}

impl SlowStart {
    /// For endpoints whose slow starts take so long, all of them with their whole weight.
    pub fn new(times: impl IntoIterator<Item = Duration>) -> Self {
        let endpoints = times.into_iter().map(|time| Starting {
            time,
            since: None,
            part: WHOLE,
        });
        Self {
            endpoints: endpoints.collect(),
            grown: None,
        }
    }

    /// An endpoint is up again.
    pub fn up(&mut self, endpoint: usize, now: Instant) {
        if let Some(of) = self.endpoints.get_mut(endpoint)
            && !of.time.is_zero()
        {
            of.since = Some(now);
            of.part = 1;
        }
    }

    /// An endpoint is down: when it comes up it begins anew.
    pub fn down(&mut self, endpoint: usize) {
        if let Some(of) = self.endpoints.get_mut(endpoint) {
            of.since = None;
            of.part = WHOLE;
        }
    }

    /// How many parts of its weight an endpoint has, from 1 to [`WHOLE`].
    pub fn part(&self, endpoint: usize) -> u16 {
        self.endpoints.get(endpoint).map_or(WHOLE, |of| of.part)
    }

    /// When [`SlowStart::tick`] has something to do, if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        let next = self.endpoints.iter().filter_map(Starting::next).min()?;
        Some(self.grown.map_or(next, |grown| next.max(grown + LEAST)))
    }

    /// Time passed. True if somebody's part has grown.
    pub fn tick(&mut self, now: Instant) -> bool {
        if self.due().is_none_or(|due| now < due) {
            return false;
        }
        self.grown = Some(now);
        for of in &mut self.endpoints {
            of.grow(now);
        }
        true
    }
}

impl Starting {
    /// When the next part is there.
    fn next(&self) -> Option<Instant> {
        let since = self.since?;
        Some(since + self.time * u32::from(self.part + 1) / u32::from(WHOLE))
    }

    fn grow(&mut self, now: Instant) {
        while self.next().is_some_and(|next| next <= now) {
            self.part += 1;
            if self.part == WHOLE {
                self.since = None;
            }
        }
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
    fn weight_grows_evenly_to_all_of_it() {
        let start = Instant::now();
        let mut slow = SlowStart::new([ms(10_000), ms(10_000)]);
        assert_eq!((slow.part(0), slow.due()), (WHOLE, None));
        slow.up(0, start);
        assert_eq!((slow.part(0), slow.part(1)), (1, WHOLE));
        assert_eq!(slow.due(), Some(start + ms(1000)));
        assert!(!slow.tick(start + ms(999)));
        assert!(slow.tick(start + ms(1000)));
        assert_eq!(slow.part(0), 2);
        assert!(slow.tick(start + ms(5000)));
        assert_eq!(slow.part(0), 10);
        assert!(slow.tick(start + ms(60_000)));
        assert_eq!((slow.part(0), slow.due()), (WHOLE, None));
    }

    #[test]
    fn who_goes_down_begins_anew() {
        let start = Instant::now();
        let mut slow = SlowStart::new([ms(1000)]);
        slow.up(0, start);
        slow.tick(start + ms(900));
        slow.down(0);
        assert_eq!(slow.due(), None);
        slow.up(0, start + ms(2000));
        assert_eq!(slow.part(0), 1);
    }

    #[test]
    fn without_a_time_nothing_is_slow() {
        let mut slow = SlowStart::new([Duration::ZERO]);
        slow.up(0, Instant::now());
        assert_eq!((slow.part(0), slow.due()), (WHOLE, None));
    }

    proptest! {
        /// Whoever starts when, rings are not made more often than allowed, parts never
        /// shrink, and in the end everybody has all of it.
        #[test]
        fn rings_are_rare_and_the_end_is_whole(
            starts in prop::collection::vec((0u64..5_000, 1u64..20_000), 1..20),
        ) {
            let begun = Instant::now();
            let mut slow = SlowStart::new(starts.iter().map(|(_, time)| ms(*time)));
            for (e, (at, _)) in starts.iter().enumerate() {
                slow.up(e, begun + ms(*at));
            }
            let (mut last, mut ticks) = (None, 0);
            while let Some(due) = slow.due() {
                if let Some(last) = last {
                    prop_assert!(due - last >= LEAST);
                }
                let before: Vec<_> = (0..starts.len()).map(|e| slow.part(e)).collect();
                prop_assert!(slow.tick(due));
                for (e, before) in before.iter().enumerate() {
                    prop_assert!((*before..=WHOLE).contains(&slow.part(e)));
                    let (at, time) = starts[e];
                    let share = (due.saturating_duration_since(begun + ms(at))).as_secs_f64()
                        / ms(time).as_secs_f64();
                    let exact = (share * f64::from(WHOLE)).clamp(1.0, f64::from(WHOLE));
                    prop_assert!((f64::from(slow.part(e)) - exact).abs() <= 1.001);
                }
                last = Some(due);
                ticks += 1;
            }
            prop_assert!(ticks <= 20 * starts.len());
            prop_assert!((0..starts.len()).all(|e| slow.part(e) == WHOLE));
        }
    }
}
