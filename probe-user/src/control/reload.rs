//! The routes of another configuration: load the file again, and what would a text change.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    routing::post,
};

use super::{Failure, NoAnswer, Sources, failure};
use crate::reload::{Outcome, Report};

/// Longest configuration that is compared; one of ten thousand endpoints takes two MiB.
const LONGEST: usize = 16 * 1024 * 1024;

pub fn routes() -> Router<Sources> {
    Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/diff", post(diff).layer(DefaultBodyLimit::max(LONGEST)))
}

type Answer = Result<(StatusCode, Json<Report>), Failure>;

async fn reload(State(sources): State<Sources>) -> Answer {
    answer(sources.reloads.reload().await)
}

async fn diff(State(sources): State<Sources>, text: String) -> Answer {
    answer(sources.reloads.diff(text).await)
}

fn answer(report: Option<Report>) -> Answer {
    let report = report.ok_or_else(|| failure(StatusCode::SERVICE_UNAVAILABLE, NoAnswer))?;
    let status = match report.outcome {
        Outcome::Applied | Outcome::Unchanged => StatusCode::OK,
        Outcome::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::Refused => StatusCode::CONFLICT,
    };
    Ok((status, Json(report)))
}
