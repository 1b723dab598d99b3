//! What every path needs: the agent's parts, and how it is said what went wrong.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use axum::{
    Json,
    extract::{FromRequestParts, Query, rejection::QueryRejection},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::{
    kernel::{Table, Tries},
    server::Client,
};
use crate::{
    config,
    core::{
        Ask, NoAnswer, Sources,
        journal::Journal,
        order::{Done, Order, Refused, Wish, Written},
    },
    reload::Handle,
};

/// How long a disk may take until who ordered something hears that it is not kept.
const KEEP_TIME: Duration = Duration::from_secs(3);

/// Everything that the paths need.
#[derive(Clone)]
pub struct Api {
    /// The core, and what the datapath counted.
    pub sources: Sources,
    /// What happened.
    pub journal: Arc<Journal>,
    /// How far orders are kept.
    pub written: watch::Receiver<Written>,
    /// Who loads the configuration again.
    pub reloads: Handle,
    /// The flow tables.
    pub flows: Arc<dyn Table>,
    /// The loaded programs.
    pub trial: Arc<dyn Tries>,
    /// One walk of the tables at a time.
    pub(super) walks: Arc<Mutex<()>>,
    /// Streams of events that run.
    pub(super) streams: Arc<AtomicUsize>,
}

impl Api {
    /// Puts it together.
    pub fn new(
        sources: Sources,
        reloads: Handle,
        journal: Arc<Journal>,
        written: watch::Receiver<Written>,
        flows: Arc<dyn Table>,
        trial: Arc<dyn Tries>,
    ) -> Self {
        Self {
            flows,
            trial,
            walks: Arc::default(),
            sources,
            reloads,
            journal,
            written,
            streams: Arc::default(),
        }
    }

    /// Gives an order, and waits until it is kept.
    pub(super) async fn order(
        &self,
        client: &Client,
        service: String,
        what: Wish,
        dry_run: bool,
    ) -> Result<Json<Done>, Fault> {
        let order = Order {
            service,
            what,
            by: client.peer.named().await,
            dry_run,
        };
        let answer = self.sources.ask(|reply| Ask::Order(order, reply)).await?;
        let (mut done, version) = answer?;
        if done.changed && !dry_run {
            let mut written = self.written.clone();
            let kept = timeout(KEEP_TIME, written.wait_for(|of| of.version >= version)).await;
            let problem = match kept {
                Ok(Ok(written)) => written.problem.clone(),
                Ok(Err(_)) => Some("the agent ends".to_owned()),
                Err(_) => Some("the disk takes its time; it may end with the agent".to_owned()),
            };
            done.notes
                .extend(problem.map(|of| format!("this order {of}")));
        }
        Ok(Json(done))
    }
}

/// Why there is no answer: `{"error": ...}`.
#[derive(Debug)]
pub struct Fault(pub StatusCode, pub String);

/// The same as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    /// For people.
    pub error: String,
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        (self.0, Json(Said { error: self.1 })).into_response()
    }
}

impl From<NoAnswer> for Fault {
    fn from(error: NoAnswer) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::NoService(_) | Refused::NoEndpoint { .. } => StatusCode::NOT_FOUND,
            Refused::No { .. } | Refused::NotPromoted { .. } => StatusCode::CONFLICT,
        };
        Self(status, refused.to_string())
    }
}

impl From<QueryRejection> for Fault {
    fn from(rejection: QueryRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<config::Fault> for Fault {
    fn from(fault: config::Fault) -> Self {
        Self(StatusCode::BAD_REQUEST, fault.to_string())
    }
}

/// A query that says what is wrong with it as JSON.
pub(super) struct Asked<T>(pub T);

impl<T, S> FromRequestParts<S> for Asked<T>
where
    Query<T>: FromRequestParts<S, Rejection = QueryRejection>,
    S: Send + Sync,
{
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let Query(asked) = Query::from_request_parts(parts, state).await?;
        Ok(Self(asked))
    }
}
