//! Can one connect? With TLS: does the handshake succeed?

use std::net::SocketAddr;

use crate::{
    config::TcpCheck,
    health::{
        transport::{Stage, Transport},
        verdict::Finding,
    },
};

/// The TCP check.
#[derive(Debug)]
pub struct Tcp {
    transport: Transport,
}

impl Tcp {
    /// Of an endpoint.
    pub fn new(check: &TcpCheck, endpoint: SocketAddr, authority: &str) -> Self {
        Self {
            transport: Transport::new(check.reach(), endpoint, authority),
        }
    }

    /// Connects, and closes at once.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        match self.transport.connect(stage).await {
            Ok(_) => Finding::OK,
            Err(failed) => failed,
        }
    }
}
