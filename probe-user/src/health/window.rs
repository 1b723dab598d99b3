//! How long the last checks of an endpoint took.
//!
//! A window of fixed size: noting one more costs a store, and nobody sorts before
//! somebody asks. Checks that the agent itself could not make are not in it.

use std::time::Duration;

/// Checks that are remembered; half a KiB an endpoint.
pub const LENGTH: usize = 128;

/// The last checks' durations, in microseconds.
#[derive(Clone, Debug)]
pub struct Window {
    micros: [u32; LENGTH],
    /// Where the next one goes.
    next: usize,
    filled: usize,
}

/// Percentiles of what a window holds, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentiles {
    /// Checks that they are of.
    pub checks: usize,
    /// The median.
    pub p50: u32,
    /// 95 of a hundred took no longer.
    pub p95: u32,
    /// 99 of a hundred took no longer.
    pub p99: u32,
    /// The longest.
    pub max: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            micros: [0; LENGTH],
            next: 0,
            filled: 0,
        }
    }
}

impl Window {
    /// A check took so long. The oldest is forgotten.
    pub fn note(&mut self, took: Duration) {
        self.micros[self.next] = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.next = (self.next + 1) % LENGTH;
        self.filled = (self.filled + 1).min(LENGTH);
    }

    /// Nothing before the first check.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let mut sorted = self.micros;
        let sorted = &mut sorted[..self.filled];
        sorted.sort_unstable();
        // The nearest rank: the smallest value that so many of a hundred do not exceed.
        let rank = |percent: usize| (sorted.len() * percent).div_ceil(100).max(1) - 1;
        Some(Percentiles {
            checks: sorted.len(),
            max: *sorted.last()?,
            p50: sorted[rank(50)],
            p95: sorted[rank(95)],
            p99: sorted[rank(99)],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_ones() {
        let mut window = Window::default();
        assert_eq!(window.percentiles(), None);
        window.note(Duration::from_micros(7));
        let one = window.percentiles().unwrap();
        assert_eq!((one.checks, one.p50, one.p99, one.max), (1, 7, 7, 7));
        // The first ones are forgotten: what is left is 201 to 328, each once.
        for micros in (1..=328).rev().chain(201..=328) {
            window.note(Duration::from_micros(micros));
        }
        let all = window.percentiles().unwrap();
        assert_eq!(all.checks, LENGTH);
        assert_eq!((all.p50, all.p95, all.p99, all.max), (264, 322, 327, 328));
        window.note(Duration::from_secs(100_000));
        assert_eq!(window.percentiles().unwrap().max, u32::MAX);
    }
}
