//! Is an endpoint fit? Checks are made here, and judged.
//!
//! - [`verdict`]: what one check concluded, typed.
//! - [`rise_fall`]: what a run of verdicts makes of the endpoint (pure).
//! - [`http`]: the HTTP check.
//! - [`protocol`]: all other kinds of check.
//! - [`scheduler`]: when a check is made.
//! - [`sentinel`]: a connection kept open, whose end is a reason to check at once.
//! - [`signal`]: such reasons, and what a run of them makes of the endpoint (pure).

pub mod http;
pub mod protocol;
pub mod rise_fall;
pub mod scheduler;
pub mod sentinel;
pub mod signal;
pub mod verdict;

pub use rise_fall::{RiseFall, State};
pub use signal::Signal;
pub use verdict::{Kind, Verdict};
