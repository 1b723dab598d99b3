//! Points in time at which an endpoint is checked: an interval apart, whatever happens between.
//!
//! They are counted from a start and never added up, so nothing drifts. Points that passed are
//! not made up for. How long after its point a check is made is chosen for each, and moves none.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use tokio::time::Instant;

/// Points in time, as far apart as the interval says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    start: Instant,
    pub(super) inter: Duration,
    /// The one to come.
    point: u64,
}

impl Grid {
    /// One that begins then.
    pub(super) fn first(start: Instant, inter: Duration) -> Self {
        Self {
            start,
            inter,
            point: 0,
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.start + offset_of(self.point, self.inter)
    }

    /// Goes on to the first point that is still to come; how many that was.
    pub(super) fn pass(&mut self, now: Instant) -> u64 {
        let since_start = now.saturating_duration_since(self.start);
        let next = next_point(self.point, since_start, self.inter);
        let passed = next - self.point;
        self.point = next;
        passed
    }
}

/// How long after its point each check is made.
pub(super) struct Jitter {
    percent: u32,
    random: RandomState,
}

impl Jitter {
    pub(super) fn new(percent: u32) -> Self {
        Self {
            percent,
            random: RandomState::new(),
        }
    }

    /// The same for a point, however often it is asked for.
    pub(super) fn of(&self, grid: &Grid) -> Duration {
        if self.percent == 0 {
            return Duration::ZERO;
        }
        let most = grid.inter * self.percent / 100;
        let share = self.random.hash_one(grid.point) >> 32;
        // The share of 2^32, in integers: a duration of hours has 44 bits of nanoseconds.
        let nanos = (most.as_nanos() * u128::from(share)) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The first grid point after `point` that is still to come.
pub(super) fn next_point(point: u64, since_start: Duration, inter: Duration) -> u64 {
    let passed = since_start.as_nanos() / inter.as_nanos().max(1);
    u64::try_from(passed)
        .unwrap_or(u64::MAX - 1)
        .saturating_add(1)
        .max(point.saturating_add(1))
}

/// When a grid point is, from the start. `Duration` alone multiplies by 32 bits only,
/// which checks every millisecond use up in 49 days.
fn offset_of(point: u64, inter: Duration) -> Duration {
    let nanos = u128::from(point) * inter.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
