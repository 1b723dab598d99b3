//! The routes of another configuration: load the file again, and what would a text change.

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    routing::post,
};

use super::{
    api::{Api, Fault},
    server::Client,
};
use crate::{
    core::NoAnswer,
    reload::{Outcome, Report},
};

/// Longest configuration that is compared; one of ten thousand endpoints takes two MiB.
const LONGEST: usize = 16 * 1024 * 1024;

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/diff", post(diff).layer(DefaultBodyLimit::max(LONGEST)))
}

type Answer = Result<(StatusCode, Json<Report>), Fault>;

async fn reload(State(api): State<Api>, Extension(client): Extension<Client>) -> Answer {
    let by = client.peer.named().await;
    answer(api.reloads.reload(by).await)
}

async fn diff(State(api): State<Api>, text: String) -> Answer {
    answer(api.reloads.diff(text).await)
}

fn answer(report: Option<Report>) -> Answer {
    let report = report.ok_or(NoAnswer)?;
    let status = match report.outcome {
        Outcome::Applied | Outcome::Unchanged => StatusCode::OK,
        Outcome::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::Refused => StatusCode::CONFLICT,
    };
    Ok((status, Json(report)))
}
