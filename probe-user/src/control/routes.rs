//! The paths: status, events, explanations and orders. Those of flows, packets and reloads stand in
//! modules of their own.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    api::{Api, Asked, Fault},
    flows, packet, reload,
    server::Client,
};
use crate::{
    config,
    core::{
        Ask, explain,
        journal::{Journal, Page},
        order::{Done, Left, Wish},
        status,
    },
    failover::orders::Mode,
};

/// Streams of events at one time; there must be room for others.
const STREAMS: usize = 32;
/// Events that are written at one time.
const PAGE: usize = 256;

/// All of them.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/flows", get(flows::list))
        .route("/v1/flows/kill", post(flows::kill))
        .route("/v1/explain/packet", post(packet::explain))
        .route("/v1/services/{service}/explain", get(explain))
        .route("/v1/services/{service}/failback", post(failback))
        .route("/v1/services/{service}/promote", post(promote))
        .route("/v1/services/{service}/freeze", post(freeze))
        .route("/v1/services/{service}/unfreeze", post(unfreeze))
        .route(
            "/v1/services/{service}/endpoints/{endpoint}/{mode}",
            post(mode),
        )
        .merge(reload::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .with_state(api)
}

async fn nowhere() -> Fault {
    Fault(
        StatusCode::NOT_FOUND,
        "there is no such path; /v1/status, /v1/events, /v1/flows and /v1/services/NAME/... are \
         in ARCHITECTURE.md"
            .to_owned(),
    )
}

async fn not_so() -> Fault {
    Fault(
        StatusCode::METHOD_NOT_ALLOWED,
        "questions are asked by GET, orders given by POST".to_owned(),
    )
}

async fn status(State(api): State<Api>) -> Result<Json<status::Status>, Fault> {
    Ok(Json(api.sources.status().await?))
}

async fn explain(
    State(api): State<Api>,
    Path(service): Path<String>,
) -> Result<Json<explain::Service>, Fault> {
    let answer = api
        .sources
        .ask(|reply| Ask::Explain(service, reply))
        .await?;
    let mut explained = answer?;
    api.sources.count(&mut explained.status);
    Ok(Json(explained))
}

/// For orders without more to say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drained {
    deadline: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Promoted {
    endpoint: String,
    drain: Option<String>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    dry_run: bool,
}

/// `30s`, or `unlimited`.
fn left(field: &str, text: &str) -> Result<Left, Fault> {
    match text {
        "unlimited" => Ok(None),
        text => Ok(Some(config::duration(field, text, Duration::ZERO)?)),
    }
}

async fn failback(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Path(service): Path<String>,
    Asked(asked): Asked<Plain>,
) -> Result<Json<Done>, Fault> {
    api.order(&client, service, Wish::Failback, asked.dry_run)
        .await
}

async fn freeze(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Path(service): Path<String>,
    Asked(asked): Asked<Plain>,
) -> Result<Json<Done>, Fault> {
    api.order(&client, service, Wish::Freeze(true), asked.dry_run)
        .await
}

async fn unfreeze(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Path(service): Path<String>,
    Asked(asked): Asked<Plain>,
) -> Result<Json<Done>, Fault> {
    api.order(&client, service, Wish::Freeze(false), asked.dry_run)
        .await
}

async fn promote(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Path(service): Path<String>,
    Asked(asked): Asked<Promoted>,
) -> Result<Json<Done>, Fault> {
    let drain = asked.drain.map(|text| left("drain", &text)).transpose()?;
    let wish = Wish::Promote {
        endpoint: asked.endpoint,
        force: asked.force,
        left: drain,
    };
    api.order(&client, service, wish, asked.dry_run).await
}

async fn mode(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Path((service, endpoint, mode)): Path<(String, String, String)>,
    Asked(asked): Asked<Drained>,
) -> Result<Json<Done>, Fault> {
    let Some(mode) = Mode::of_label(&mode) else {
        return Err(nowhere().await);
    };
    let deadline = match asked.deadline {
        Some(_) if mode != Mode::Drain => {
            let told = "only drain has a deadline".to_owned();
            return Err(Fault(StatusCode::BAD_REQUEST, told));
        }
        Some(text) => left("deadline", &text)?,
        None => None,
    };
    let wish = Wish::Mode {
        endpoint,
        mode,
        left: deadline,
    };
    api.order(&client, service, wish, asked.dry_run).await
}

/// Which events.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    /// Those not older.
    since_unix_ms: Option<u64>,
    /// Those with larger numbers.
    after: Option<u64>,
    /// So many of the last.
    last: Option<usize>,
    /// Those of a service only.
    service: Option<String>,
    #[serde(default)]
    follow: bool,
}

async fn events(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Asked(asked): Asked<Since>,
) -> Result<Response, Fault> {
    let journal = &api.journal;
    let from = match (asked.after, asked.since_unix_ms, asked.last) {
        (Some(after), _, _) => after,
        (None, Some(since), _) => journal.before(since),
        (None, None, Some(last)) => journal.before_last(last),
        (None, None, None) => 0,
    };
    let follow = if asked.follow {
        let stream = Stream::begin(&api.streams).ok_or_else(|| {
            let told = format!("{STREAMS} clients follow events already");
            Fault(StatusCode::SERVICE_UNAVAILABLE, told)
        })?;
        client.streams();
        Some(stream)
    } else {
        None
    };
    let state = Following {
        journal: journal.clone(),
        news: journal.watch(),
        at: from,
        service: asked.service,
        follow,
    };
    let lines = stream::unfold(state, |mut state| async move {
        let lines = state.next().await?;
        Some((Ok::<_, Infallible>(lines), state))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

/// One of [`STREAMS`].
struct Stream(Arc<AtomicUsize>);

impl Stream {
    fn begin(count: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |of: usize| (of < STREAMS).then_some(of + 1);
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(count.clone()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody who reads events, as fast as he likes.
struct Following {
    journal: Arc<Journal>,
    news: watch::Receiver<u64>,
    at: u64,
    service: Option<String>,
    follow: Option<Stream>,
}

impl Following {
    /// The next lines; nothing if there are no more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.news.borrow_and_update();
            let page = self.journal.after(self.at, PAGE);
            let more = page.last > self.at || page.lost > 0;
            self.at = page.last;
            let lines = self.lines(&page);
            if !lines.is_empty() {
                return Some(lines.into());
            }
            if !more {
                self.follow.as_ref()?;
                self.news.changed().await.ok()?;
            }
        }
    }

    fn lines(&self, page: &Page) -> Vec<u8> {
        let mut lines = Vec::new();
        if page.lost > 0 {
            lines.extend_from_slice(format!("{{\"lost\":{}}}\n", page.lost).as_bytes());
        }
        let wanted = |service: Option<&str>| match &self.service {
            Some(of) => service == Some(of.as_str()),
            None => true,
        };
        for event in page.events.iter().filter(|of| wanted(of.what.service())) {
            // Plain strings and numbers cannot fail to be JSON.
            if serde_json::to_writer(&mut lines, event.as_ref()).is_ok() {
                lines.push(b'\n');
            }
        }
        lines
    }
}
