//! How much checking the agent may do in all.
//!
//! Two bounds, each optional: checks a second, and checks at one time. Where the configuration
//! asks for more, all intervals are stretched by one factor, so every endpoint is checked as often
//! as before in proportion, and none is left out; who waits for a place gets it in turn. That is said,
//! not done silently.
//!
//! - The rate is known beforehand: each endpoint says how often it wants to be checked whenever
//!   that changes, and the factor is what they want over what there is.
//! - How many are waited for at one time depends on the endpoints: while checks had to wait for
//!   a place the factor grows by a quarter each second, and after that it goes back as slowly
//!   ([`Budget::look`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The factor's unit. Steps of a sixteenth: each change begins a new grid for all.
const ONE: u32 = 16;
/// A minute for a second is as good as none.
const MOST: u32 = 64 * ONE;
/// Checks in a billion seconds: intervals are from a millisecond to hours.
const GIGA: u64 = 1_000_000_000;

/// The budget of an agent.
#[derive(Debug)]
pub struct Budget {
    per_second: Option<u32>,
    places: Option<Arc<Semaphore>>,
    /// What all endpoints want, in checks a billion seconds.
    wanted: AtomicU64,
    /// What waiting for places asks for.
    pressed: AtomicU32,
    /// Checks that waited for a place since the last look.
    waited: AtomicU64,
}

/// A place among the checks at one time.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    /// It had to be waited for.
    pub waited: bool,
}

impl Budget {
    /// With these bounds.
    pub fn new(per_second: Option<u32>, at_once: Option<usize>) -> Self {
        Self {
            per_second,
            places: at_once.map(|most| Arc::new(Semaphore::new(most))),
            wanted: AtomicU64::new(0),
            pressed: AtomicU32::new(ONE),
            waited: AtomicU64::new(0),
        }
    }

    /// An endpoint that wanted a check each `before` wants one each `now`.
    pub fn wants(&self, before: Option<Duration>, now: Option<Duration>) {
        let rate = |inter: Option<Duration>| inter.map_or(0, frequency);
        self.wanted.fetch_add(rate(now), Ordering::Relaxed);
        self.wanted.fetch_sub(rate(before), Ordering::Relaxed);
    }

    /// What intervals are multiplied by, in sixteenths.
    fn factor(&self) -> u32 {
        let pressed = self.pressed.load(Ordering::Relaxed);
        let Some(most) = self.per_second else {
            return pressed;
        };
        let wanted = self.wanted.load(Ordering::Relaxed) * u64::from(ONE);
        let needed = wanted.div_ceil(u64::from(most) * GIGA);
        u32::try_from(needed).unwrap_or(MOST).clamp(pressed, MOST)
    }

    /// The same for people; 1 is as configured.
    pub fn stretch(&self) -> f64 {
        f64::from(self.factor()) / f64::from(ONE)
    }

    /// An interval as the budget has it.
    pub fn stretched(&self, inter: Duration) -> Duration {
        match self.factor() {
            ONE => inter,
            factor => inter * factor / ONE,
        }
    }

    /// Does it bound how many checks there are at one time?
    pub fn has_places(&self) -> bool {
        self.places.is_some()
    }

    /// Waits for a place, in turn.
    pub async fn enter(&self) -> Place {
        let Some(places) = &self.places else {
            return Place {
                _permit: None,
                waited: false,
            };
        };
        if let Ok(permit) = places.clone().try_acquire_owned() {
            return Place {
                _permit: Some(permit),
                waited: false,
            };
        }
        self.waited.fetch_add(1, Ordering::Relaxed);
        Place {
            // Never closed.
            _permit: places.clone().acquire_owned().await.ok(),
            waited: true,
        }
    }

    /// A second has passed; how many checks had to wait in it.
    pub fn look(&self) -> u64 {
        let waited = self.waited.swap(0, Ordering::Relaxed);
        let factor = self.pressed.load(Ordering::Relaxed);
        let next = if waited > 0 {
            (factor + factor / 4).min(MOST)
        } else {
            (factor - factor.div_ceil(8)).max(ONE)
        };
        self.pressed.store(next, Ordering::Relaxed);
        waited
    }
}

/// Checks in a billion seconds.
fn frequency(inter: Duration) -> u64 {
    let nanos = inter.as_nanos().max(1);
    u64::try_from(u128::from(GIGA) * u128::from(GIGA) / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn all_intervals_are_stretched_alike_to_what_there_is() {
        let budget = Budget::new(Some(1000), None);
        for _ in 0..10 {
            budget.wants(None, Some(ms(10)));
        }
        assert_eq!(budget.stretched(ms(10)), ms(10), "a thousand fit");
        for _ in 0..10 {
            budget.wants(None, Some(ms(10)));
        }
        assert_eq!(budget.stretch(), 2.0);
        assert_eq!(budget.stretched(ms(10)), ms(20));
        assert_eq!(budget.stretched(ms(1000)), ms(2000));
        // Half of them are down and wait longer.
        for _ in 0..10 {
            budget.wants(Some(ms(10)), Some(ms(1000)));
        }
        assert_eq!(budget.stretch(), 1.0625, "1,010 a second, in sixteenths");
        for _ in 0..10 {
            budget.wants(Some(ms(10)), None);
            budget.wants(Some(ms(1000)), None);
        }
        assert_eq!(budget.stretch(), 1.0);
        budget.wants(None, Some(Duration::from_nanos(1)));
        assert_eq!(budget.stretch(), 64.0);
    }

    #[test]
    fn without_bounds_nothing_changes() {
        let budget = Budget::new(None, None);
        budget.wants(None, Some(Duration::from_nanos(1)));
        assert_eq!(budget.stretched(ms(10)), ms(10));
        assert_eq!((budget.look(), budget.stretch()), (0, 1.0));
    }

    #[tokio::test]
    async fn who_waits_for_a_place_gets_it_in_turn_and_intervals_grow_until_nobody_does() {
        let budget = Arc::new(Budget::new(None, Some(1)));
        let first = budget.enter().await;
        assert!(!first.waited);
        let (tx, mut turns) = tokio::sync::mpsc::unbounded_channel();
        for turn in 0..3 {
            let (budget, tx) = (budget.clone(), tx.clone());
            tokio::spawn(async move {
                let place = budget.enter().await;
                tx.send((turn, place.waited)).unwrap();
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(budget.look(), 3);
        assert_eq!(budget.stretch(), 1.25);
        drop(first);
        for turn in 0..3 {
            assert_eq!(turns.recv().await, Some((turn, true)));
        }
        for _ in 0..20 {
            assert_eq!(budget.look(), 0);
        }
        assert_eq!(budget.stretch(), 1.0);
    }
}
