//! The local API: HTTP over a Unix socket, for the command line and for tools.
//!
//! ```text
//! GET  /v1/status
//! GET  /v1/events?since_unix_ms=T&after=SEQ&last=N&follow=true    one JSON object a line
//! GET  /v1/flows?service=&endpoint=&client=&vip=&stage=&limit=
//! GET  /v1/services/NAME/explain
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
pub mod packet;
pub mod peer;
pub mod server;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use crate::core::{Ask, Counters, status};

pub use api::{Api, Fault};
pub use server::Socket;

/// Who answers.
#[derive(Clone)]
pub struct Sources {
    /// The core.
    pub asks: mpsc::Sender<Ask>,
    /// What the datapath counted.
    pub counters: Arc<dyn Counters>,
}

/// The core does not answer: the agent is ending.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent's core does not answer")]
pub struct NoAnswer;

impl Sources {
    /// The whole status, with traffic.
    pub async fn status(&self) -> Result<status::Status, NoAnswer> {
        let mut status = self.ask(Ask::Status).await?;
        for service in &mut status.services {
            self.count(service);
        }
        status.datapath.reasons = self
            .counters
            .reasons()
            .unwrap_or_default()
            .into_iter()
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect::<BTreeMap<_, _>>();
        Ok(status)
    }

    /// Adds a service's traffic.
    pub fn count(&self, service: &mut status::Service) {
        for endpoint in &mut service.endpoints {
            // A counter that cannot be read is shown as zero; the metrics say so by their absence.
            let Some(Ok(counted)) = endpoint.id.map(|id| self.counters.endpoint(id)) else {
                continue;
            };
            endpoint.traffic = status::Traffic {
                forward_packets: counted.forward_packets,
                forward_bytes: counted.forward_bytes,
                reverse_packets: counted.reverse_packets,
                reverse_bytes: counted.reverse_bytes,
                flows_opened: counted.flows_opened,
                flows_closed: counted.flows_closed,
            };
        }
    }

    /// Asks the core.
    pub async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| NoAnswer)?;
        answer.await.map_err(|_| NoAnswer)
    }
}

#[cfg(test)]
pub(crate) mod tests;
