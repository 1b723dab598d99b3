//! Is an endpoint fit? Checks are made here, and judged.
//!
//! - [`verdict`]: what one check concluded, typed.
//! - [`window`]: how long the last checks took (pure).
//! - [`rise_fall`]: what a run of verdicts makes of the endpoint (pure).
//! - [`protocol`]: what is said to an endpoint, one file a kind of check.
//! - [`transport`]: the connection that it is said over.
//! - [`wire`]: when an answer came, by the kernel's clock.
//! - [`probe`]: the checks of one endpoint, and the one verdict of them.
//! - [`scheduler`]: when a check is made.
//! - [`lane`]: the same for plain checks, all of a thread in one task.
//! - [`budget`]: how much checking the agent may do in all.
//! - [`shares`]: which of the threads checks whom.
//! - [`lateness`]: how late the agent itself is, and what that excuses (pure).
//! - [`sentinel`]: a connection kept open, whose end is a reason to check at once.
//! - [`agent`]: what an endpoint says of itself (and who asks it).
//! - [`silence`]: when an endpoint has answered no client for too long (pure).
//! - [`signal`]: such reasons, and what a run of them makes of the endpoint (pure).

pub mod agent;
pub mod budget;
pub mod lane;
pub mod lateness;
pub mod probe;
pub mod protocol;
pub mod rise_fall;
pub mod scheduler;
pub mod sentinel;
pub mod shares;
pub mod signal;
pub mod silence;
pub mod transport;
pub mod verdict;
pub mod window;
pub mod wire;

pub use probe::Probe;
pub use rise_fall::{RiseFall, State};
pub use signal::Signal;
pub use verdict::{Finding, Kind, Saw, Verdict};
