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
//!
//! - [`tcp`]: nothing is said, a connection is enough; [`http`];
//! - [`script`]: HAProxy's tcp-check, several steps of send and expect;
//! - [`redis`]: PING, and who is master;
//! - [`postgres`]: does it take connections, and is it in recovery?
//! - [`grpc`]: the health service of gRPC;
//! - [`udp`]: one datagram there, one back;
//! - [`exec`]: a command decides.
//!
//! Most of them are functions over any stream, so plain TCP, TLS and a connection that is
//! kept ([`kept`]), and one that is none ([`heard`]), are all the same to them; they end with an [`Outcome`](failure::Outcome).
//! Scripts and Redis know of no stream either ([`dialogue`]).

pub mod dialogue;
pub mod exec;
pub mod failure;
pub mod grpc;
pub mod heard;
pub mod http;
mod inbox;
mod kept;
pub mod postgres;
pub mod redis;
pub mod script;
mod secret;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod udp;

use std::net::SocketAddr;

use kept::Kept;

use super::{transport::Stage, verdict::Finding};
use crate::config::Kind;

/// A conversation of any kind.
#[derive(Debug)]
pub enum Conversation {
    /// See [`tcp`].
    Tcp(tcp::Tcp),
    /// See [`http`].
    Http(Box<http::Http>),
    /// See [`script`].
    Script(script::Script),
    /// See [`redis`].
    Redis(Kept<redis::Redis>),
    /// See [`postgres`].
    Postgres(Kept<postgres::Postgres>),
    /// See [`grpc`].
    Grpc(Box<Kept<grpc::Grpc>>),
    /// See [`udp`].
    Udp(udp::Udp),
    /// See [`exec`].
    Exec(exec::Exec),
}

impl Conversation {
    /// With an endpoint that is called `authority` unless the check calls it otherwise.
    pub fn new(kind: &Kind, endpoint: SocketAddr, authority: &str) -> Self {
        match kind {
            Kind::Tcp(check) => Self::Tcp(tcp::Tcp::new(check, endpoint, authority)),
            Kind::Http(check) => Self::Http(Box::new(http::Http::new(check, endpoint, authority))),
            Kind::Script(check) => Self::Script(script::Script::new(check, endpoint, authority)),
            Kind::Redis(check) => {
                let redis = redis::Redis::new(check.login().cloned(), check.role());
                let (reach, keep) = (check.reach(), check.keep());
                Self::Redis(Kept::new(redis, reach, keep, endpoint, authority))
            }
            Kind::Postgres(check) => {
                let postgres = postgres::Postgres::new(check.login().cloned(), check.role());
                let (reach, keep) = (check.reach(), check.keep());
                Self::Postgres(Kept::new(postgres, reach, keep, endpoint, authority))
            }
            Kind::Grpc(check) => {
                let (reach, keep) = (check.reach(), check.keep());
                let host = check.host().unwrap_or(authority);
                let grpc = grpc::Grpc::new(check.service(), host, reach.tls().is_some());
                Self::Grpc(Box::new(Kept::new(grpc, reach, keep, endpoint, host)))
            }
            Kind::Udp(check) => Self::Udp(udp::Udp::new(check, endpoint)),
            Kind::Exec(check) => Self::Exec(exec::Exec::new(check, endpoint)),
        }
    }

    /// Tells it whose endpoint it is about, which a command may want to know.
    pub fn tell(&mut self, service: &str, endpoint: &str) {
        if let Self::Exec(exec) = self {
            exec.tell(service, endpoint);
        }
    }

    /// Holds it.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        match self {
            Self::Tcp(tcp) => tcp.run(stage).await,
            Self::Http(http) => http.run(stage).await,
            Self::Script(script) => script.run(stage).await,
            Self::Redis(redis) => redis.run(stage).await,
            Self::Postgres(postgres) => postgres.run(stage).await,
            // All share the room of the largest. These two allocate anyway.
            Self::Grpc(grpc) => Box::pin(grpc.run(stage)).await,
            Self::Udp(udp) => udp.run(stage).await,
            Self::Exec(exec) => Box::pin(exec.run(stage)).await,
        }
    }
}
