//! What the benches share: bars, series of values, the machine, progress.

mod bars;
mod machine;
mod progress;
mod stats;

pub use bars::{Bar, at_least, at_most};
pub use machine::Machine;
pub use progress::teller;
pub use stats::{Spread, quantile};
