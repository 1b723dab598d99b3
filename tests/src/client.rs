//! Clients that run inside the lab, in the client's namespace.

mod load;
mod long;
mod request;

pub use load::{Load, Plan, Sample};
pub use long::{End, Long};
pub use request::{Answer, Failure, KeepAlive, get, request};
