//! Samples of rounds, told by their order: one disturbed round moves a mean, not a
//! median.

use serde::Serialize;

/// What is told of a series.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub q1: f64,
    pub median: f64,
    pub q3: f64,
    /// How many values it has.
    pub count: usize,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Self {
            min: *values.first()?,
            q1: quantile(&values, 0.25)?,
            median: quantile(&values, 0.5)?,
            q3: quantile(&values, 0.75)?,
            count: values.len(),
        })
    }
}

/// A quantile of sorted values, between two neighbours if it falls there.
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = part * last as f64;
    let below = at.floor() as usize;
    let (low, high) = (*sorted.get(below)?, *sorted.get((below + 1).min(last))?);
    Some(low + (high - low) * (at - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_fall_between_neighbours() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).expect("it has values");
        assert_eq!(
            (spread.min, spread.q1, spread.median, spread.q3),
            (1.0, 1.75, 2.5, 3.25)
        );
        assert!(Spread::of([]).is_none());
    }
}
