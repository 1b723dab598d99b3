//! The local API: HTTP over a Unix socket, for the command line and for tools.
//!
//! ```text
//! GET  /v1/status
//! GET  /v1/events?since_unix_ms=T&after=SEQ&last=N&follow=true    one JSON object a line
//! GET  /v1/flows?service=&endpoint=&client=&vip=&stage=&limit=
//! POST /v1/flows/kill?                       the same, one at least
//! GET  /v1/services/NAME/explain
//! POST /v1/reload                   load the configuration again
//! POST /v1/diff                     what the configuration in the body would change
//! POST /v1/explain/packet?src=ADDRESS:PORT&dst=ADDRESS:PORT[/udp]
//! POST /v1/services/NAME/failback
//! POST /v1/services/NAME/promote?endpoint=NAME&drain=TIME|unlimited&force=true
//! POST /v1/services/NAME/freeze, /unfreeze
//! POST /v1/services/NAME/endpoints/NAME/drain?deadline=TIME, /ready, /maint
//! ```
//!
//! Each order takes `dry_run=true`. Whatever is no answer is an object with `error`.
//!
//! The socket belongs to whom the agent runs as, mode 0600: who may open it may
//! switch services; with `control.group` it is the group's too, mode 0660. Its file is made under
//! another name and moved into place, so that it never exists with another mode, and a stale one is
//! replaced. [`server`] says what its clients may take of the agent.

mod api;
pub mod client;
pub mod flows;
mod kernel;
pub mod packet;
pub mod peer;
mod reload;
mod routes;
pub mod server;

pub use api::{Api, Fault};
pub use routes::router;
pub use server::Socket;

#[cfg(test)]
pub(crate) mod tests;
