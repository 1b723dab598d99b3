//! Very many times between two checks, in a table of counts.

/// Width of a place.
const STEP_NS: u64 = 10_000;
/// What is longer than all of them, 5 s, has the last one.
const PLACES: usize = 500_000;

/// Counts by length, to ten microseconds; the longest is exact.
pub struct Gaps {
    counts: Vec<u32>,
    count: u64,
    max: Option<u64>,
}

impl Gaps {
    pub fn new() -> Self {
        Self {
            counts: vec![0; PLACES],
            count: 0,
            max: None,
        }
    }

    pub fn add(&mut self, ns: u64) {
        let place = usize::try_from(ns / STEP_NS).unwrap_or(PLACES);
        self.counts[place.min(PLACES - 1)] += 1;
        self.count += 1;
        self.max = self.max.max(Some(ns));
    }

    pub fn merge(&mut self, other: &Self) {
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub fn max(&self) -> Option<u64> {
        self.max
    }

    /// The middle of the place where that part of them has been passed.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let max = self.max?;
        let wanted = (self.count as f64 * part).ceil().max(1.0) as u64;
        let mut passed = 0;
        let place = self.counts.iter().position(|count| {
            passed += u64::from(*count);
            passed >= wanted
        })?;
        if place == PLACES - 1 {
            return Some(max);
        }
        Some((place as u64 * STEP_NS + STEP_NS / 2).min(max))
    }
}

#[cfg(test)]
mod tests {
    use super::Gaps;

    #[test]
    fn quantiles_are_right_to_a_step() {
        let mut gaps = Gaps::new();
        assert_eq!(gaps.quantile(0.5), None);
        for ms in 1..=100 {
            gaps.add(ms * 1_000_000);
        }
        assert_eq!(gaps.quantile(0.5), Some(50_005_000));
        assert_eq!(gaps.quantile(0.99), Some(99_005_000));
        assert_eq!(gaps.quantile(1.0), Some(100_000_000));
        let mut long = Gaps::new();
        long.add(60_000_000_000);
        gaps.merge(&long);
        assert_eq!(gaps.quantile(0.5), Some(51_005_000));
        assert_eq!(gaps.max(), Some(60_000_000_000));
        assert_eq!(gaps.quantile(1.0), gaps.max());
    }
}
