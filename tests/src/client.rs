//! Clients that run inside the lab, in the client's namespace.

mod load;
mod long;
mod open_loop;
mod request;

pub use load::{Load, Plan, Sample};
pub use long::{End, Long};
pub use open_loop::{Course, Gap, Held, OpenLoop, Outcome, Record, Shot};
pub use request::{Answer, Failure, KeepAlive, get, request};
