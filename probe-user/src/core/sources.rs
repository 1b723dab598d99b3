//! Whom everybody asks who shows what the agent knows.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::{Ask, Counters, status};

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
