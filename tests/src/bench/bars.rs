//! Bars: what was promised, what a run measured, what became of it.

use serde::Serialize;

/// One promise and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    pub name: String,
    /// Nothing if it did not happen in the run.
    pub measured: Option<f64>,
    /// Nothing if the other, which it is compared with, did not happen in the run.
    pub limit: Option<f64>,
    pub unit: &'static str,
    pub met: bool,
}

/// What did not happen is over every limit; what does not happen to the other is no limit.
pub fn at_most(
    name: String,
    measured: impl Into<Option<f64>>,
    limit: impl Into<Option<f64>>,
    unit: &'static str,
) -> Bar {
    let (measured, limit) = (measured.into(), limit.into());
    Bar {
        name: format!("{name}: at most"),
        met: measured.is_some_and(|measured| limit.is_none_or(|limit| measured <= limit)),
        measured,
        limit,
        unit,
    }
}

/// What did not happen is below every limit.
pub fn at_least(
    name: String,
    measured: impl Into<Option<f64>>,
    limit: f64,
    unit: &'static str,
) -> Bar {
    let measured = measured.into();
    Bar {
        name: format!("{name}: at least"),
        met: measured.is_some_and(|measured| measured >= limit),
        measured,
        limit: Some(limit),
        unit,
    }
}

#[cfg(test)]
mod tests {
    use super::{at_least, at_most};

    #[test]
    fn what_did_not_happen_meets_no_bar() {
        let met = |measured, limit| at_most(String::new(), measured, limit, "ms").met;
        assert!(met(Some(1.0), Some(1.0)));
        assert!(!met(Some(1.1), Some(1.0)));
        assert!(!met(None, Some(1.0)));
        assert!(met(Some(1.0), None));
        assert!(!met(None, None));
        assert!(at_least(String::new(), 1.0, 1.0, "x").met);
        assert!(!at_least(String::new(), None, 1.0, "x").met);
    }
}
