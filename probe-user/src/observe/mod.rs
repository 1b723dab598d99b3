//! What monitoring sees: `/metrics` and `/healthz`, over TCP; and the status page for people.
//!
//! `/healthz` answers 200 when the core answers and every endpoint has had its
//! first verdict; before that the agent steers by what it inherited or by default,
//! which is no reason to restart it but one not to call it ready. Otherwise it
//! answers 503 and says why.

mod endpoints;
mod exposition;
mod metrics;
pub mod page;
mod process;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, time::timeout};

use crate::core::{Ask, Sources};

use exposition::Format;
pub use metrics::{Metrics, Recorder};

/// The core answers in microseconds unless it hangs.
const CORE_TIMEOUT: Duration = Duration::from_secs(1);
/// So many endpoints without a verdict are named.
const NAMED: usize = 5;

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    sources: Sources,
}

/// Opens a listening socket: for what, and what field of the configuration said where.
pub async fn bind(listen: SocketAddr, what: &str, field: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen for {what} at {listen} ({field})"))
}

/// Serves until the task is ended.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    sources: Sources,
) -> std::io::Result<()> {
    axum::serve(listener, router(metrics, sources)).await
}

fn router(metrics: Arc<Metrics>, sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(healthz))
        .with_state(Shared { metrics, sources })
}

async fn render(State(shared): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get_all(header::ACCEPT).into_iter();
    let format = Format::accepted(accept.filter_map(|value| value.to_str().ok()));
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::VARY, "Accept"),
    ];
    match shared.metrics.render(format) {
        Ok(text) => (headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, String) {
    let unavailable = |reason: String| (StatusCode::SERVICE_UNAVAILABLE, reason);
    match timeout(CORE_TIMEOUT, shared.sources.ask(Ask::Pending)).await {
        Err(_) => unavailable("the core does not answer\n".to_owned()),
        Ok(Err(gone)) => unavailable(format!("{gone}\n")),
        Ok(Ok(pending)) if pending.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
        Ok(Ok(pending)) => {
            let more = match pending.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let named = pending[..pending.len().min(NAMED)].join(", ");
            unavailable(format!("waiting for the first verdict on {named}{more}\n"))
        }
    }
}

#[cfg(test)]
mod deploy_tests;
#[cfg(test)]
mod tests;
