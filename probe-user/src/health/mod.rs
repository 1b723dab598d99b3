//! Is an endpoint fit? Checks are made here, and judged.
//!
//! - [`verdict`]: what one check concluded, typed.
//! - [`rise_fall`]: what a run of verdicts makes of the endpoint (pure).
//! - [`http`]: the HTTP check.
//! - [`scheduler`]: when a check is made.

pub mod http;
pub mod rise_fall;
pub mod scheduler;
pub mod verdict;

pub use rise_fall::{RiseFall, State};
pub use verdict::{Kind, Verdict};
