//! What is said to an endpoint, and what its answers mean: one file a kind of check.
//!
//! A kind is a type that is made from its settings ([`crate::config::Kind`]), an address
//! and a name, and that holds a conversation any number of times:
//!
//! ```text
//! async fn run(&mut self, stage: &mut Stage) -> Finding
//! ```
//!
//! It need not watch the time. While it waits it keeps `stage` true, which is the
//! verdict if the time is over; whoever drops it in the middle has its connections closed.
//! What it reads it bounds. What it keeps from one conversation to the next (connections,
//! room) is its own.

pub mod http;
pub mod tcp;

use std::net::SocketAddr;

use super::{transport::Stage, verdict::Finding};
use crate::config::Kind;

/// A conversation of any kind.
#[derive(Debug)]
pub enum Conversation {
    /// See [`tcp`].
    Tcp(tcp::Tcp),
    /// See [`http`].
    Http(Box<http::Http>),
}

impl Conversation {
    /// With an endpoint that is called `authority` unless the check calls it otherwise.
    pub fn new(kind: &Kind, endpoint: SocketAddr, authority: &str) -> Self {
        match kind {
            Kind::Tcp(check) => Self::Tcp(tcp::Tcp::new(check, endpoint, authority)),
            Kind::Http(check) => Self::Http(Box::new(http::Http::new(check, endpoint, authority))),
        }
    }

    /// Holds it.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        match self {
            Self::Tcp(tcp) => tcp.run(stage).await,
            Self::Http(http) => http.run(stage).await,
        }
    }
}
