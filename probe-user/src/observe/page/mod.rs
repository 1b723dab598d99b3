//! The status page: one HTML document without anything from elsewhere, and server-sent events
//! that keep it live.
//!
//! Nothing that decides waits for it. The core sends changes without waiting, and is asked for
//! its status once a beat, by one task, however many look on. Frames are made once and shared. Who
//! reads too slowly falls behind the last [`BEHIND`] frames and is sent away (browsers come back,
//! and get everything anew); who reads nothing at all is cut off by the kernel. Watchers and
//! connections are limited in number, and who connects must ask for something soon.
//!
//! The document may do nothing but run its own script, known by hash, and fetch its events:
//! see `policy`. A page of somebody else's must not read it by a name that leads to loopback, so
//! who listens there answers to addresses and `localhost` only. What endpoints say is shown, so the script makes text of it and never markup.

#[cfg(test)]
mod browser_tests;
mod history;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::stream;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use socket2::SockRef;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use crate::core::{
    Sources,
    status::{Status, unix_ms},
};
pub use history::Feed;
use history::{Change, Happened, History, Past};

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Where those two go.
const STYLE_HERE: &str = "/* style */";
const SCRIPT_HERE: &str = "/* script */";

/// Frames that somebody may be behind.
const BEHIND: usize = 16;
/// Between two statuses, for each so many endpoints.
const BEAT: Duration = Duration::from_secs(1);
const ENDPOINTS_A_BEAT: usize = 200;
/// Changes that come together are told together.
const TOGETHER: u32 = 20;

/// How much others may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pages that are open.
    pub watchers: usize,
    /// Connections.
    pub connections: usize,
    /// Until a connection asks for something, and for what was sent to be taken.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            watchers: 16,
            connections: 64,
            patience: Duration::from_secs(10),
        }
    }
}

/// What the watchers share.
struct Board {
    document: Bytes,
    policy: HeaderValue,
    history: Mutex<Shown>,
    frames: broadcast::Sender<Bytes>,
    seats: Arc<Semaphore>,
}

/// What a newcomer is told.
#[derive(Default)]
struct Shown {
    history: History,
    status: Option<Status>,
    beat: Duration,
}

/// One message to the page.
#[derive(Serialize)]
struct Frame<'a> {
    now_unix_ms: u64,
    /// When the next one comes at the latest.
    beat_ms: u64,
    /// Its durations are a sample; else it is early because something changed.
    sample: bool,
    status: &'a Status,
    changes: &'a [Change],
    #[serde(skip_serializing_if = "Option::is_none")]
    past: Option<Past<'a>>,
}

impl Frame<'_> {
    fn bytes(&self) -> Bytes {
        // Our own structures serialize; JSON has no line breaks of its own, which would end data.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("data: {json}\n\n").into()
    }
}

/// Serves until the task is ended.
pub async fn serve(
    listener: TcpListener,
    sources: Sources,
    feed: Feed,
    limits: Limits,
) -> std::io::Result<()> {
    let board = Arc::new(Board::new(limits));
    let loopback = listener.local_addr()?.ip().is_loopback();
    let router = Router::new()
        .route("/", get(document))
        .route("/events", get(events))
        .layer(from_fn_with_state(loopback, guard))
        .with_state(board.clone());
    let mut tasks = JoinSet::new();
    if let Some(news) = feed.subscribe() {
        tasks.spawn(publish(board, sources, news));
    }
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        // The rest waits in the kernel's queue, and those with a place leave within `patience`
        // unless they watch.
        let Ok(place) = room.clone().acquire_owned().await else {
            return Ok(());
        };
        while tasks.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptor, or a client that has gone.
                debug!("the status page's listener: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Also while the other side takes nothing: a window of zero counts.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.patience));
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.patience)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever goes away, goes away.
            let _ = served.await;
            drop(place);
        });
    }
}

impl Board {
    fn new(limits: Limits) -> Self {
        let document = HTML.replace(STYLE_HERE, STYLE).replace(SCRIPT_HERE, SCRIPT);
        Self {
            document: document.into(),
            policy: policy(),
            history: Mutex::default(),
            frames: broadcast::Sender::new(BEHIND),
            seats: Arc::new(Semaphore::new(limits.watchers)),
        }
    }

    /// The first frame of a newcomer, and those that follow it.
    fn join(&self) -> (Option<Bytes>, broadcast::Receiver<Bytes>) {
        let shown = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let first = shown.status.as_ref().map(|status| {
            Frame {
                now_unix_ms: unix_ms(SystemTime::now()),
                beat_ms: millis(shown.beat),
                sample: false,
                status,
                changes: &[],
                past: Some(shown.history.past()),
            }
            .bytes()
        });
        // Under the lock: no frame is missed, and none comes twice.
        (first, self.frames.subscribe())
    }
}

/// Only what is in the document itself, and its own events.
fn policy() -> HeaderValue {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    HeaderValue::from_str(&policy).expect("base64 is ASCII")
}

fn security(board: &Board) -> [(HeaderName, HeaderValue); 5] {
    let fixed = HeaderValue::from_static;
    [
        (header::CONTENT_SECURITY_POLICY, board.policy.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (header::CACHE_CONTROL, fixed("no-store")),
        // For browsers that let other pages read what is served on loopback.
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            fixed("same-origin"),
        ),
    ]
}

/// Refuses names on loopback.
async fn guard(State(loopback): State<bool>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let ours = host
        .and_then(|host| host.to_str().ok())
        .is_some_and(is_ours);
    if loopback && !ours {
        let text = "only 127.0.0.1, [::1] and localhost are answered here\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    next.run(request).await
}

/// An address, or the one name that is never anybody else's.
fn is_ours(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || bare.map_or_else(
            || name.parse::<Ipv4Addr>().is_ok(),
            |bare| bare.parse::<Ipv6Addr>().is_ok(),
        )
}

async fn document(State(board): State<Arc<Board>>) -> Response {
    let html = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    (security(&board), [html], board.document.clone()).into_response()
}

/// Somebody who watches.
struct Watcher {
    first: Option<Bytes>,
    frames: broadcast::Receiver<Bytes>,
    _seat: OwnedSemaphorePermit,
}

async fn events(State(board): State<Arc<Board>>) -> Response {
    let Ok(seat) = board.seats.clone().try_acquire_owned() else {
        let text = "too many pages are open\n";
        return (StatusCode::SERVICE_UNAVAILABLE, security(&board), text).into_response();
    };
    let (first, frames) = board.join();
    let watcher = Watcher {
        first,
        frames,
        _seat: seat,
    };
    let frames = stream::unfold(watcher, |mut watcher| async {
        let frame = match watcher.first.take() {
            Some(first) => first,
            // Lagged: too slow. Closed: the agent ends. Either way the stream does.
            None => watcher.frames.recv().await.ok()?,
        };
        Some((Ok::<_, Infallible>(frame), watcher))
    });
    let kind = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    (security(&board), [kind], Body::from_stream(frames)).into_response()
}

/// Asks the core, remembers, and tells all watchers: each beat, and soon after a change.
async fn publish(board: Arc<Board>, sources: Sources, mut news: mpsc::Receiver<Happened>) {
    let mut due = Instant::now();
    let mut beat = BEAT;
    loop {
        let mut happened = Vec::new();
        let sample = tokio::select! {
            () = sleep_until(due) => true,
            count = news.recv_many(&mut happened, usize::MAX) => {
                if count == 0 {
                    return;
                }
                sleep(beat / TOGETHER).await;
                false
            }
        };
        // What came meanwhile.
        while let Ok(more) = news.try_recv() {
            happened.push(more);
        }
        // The agent ends.
        let Ok(status) = sources.status().await else {
            return;
        };
        let endpoints: usize = status.services.iter().map(|s| s.endpoints.len()).sum();
        let beats = endpoints.div_ceil(ENDPOINTS_A_BEAT).max(1);
        beat = BEAT * u32::try_from(beats).unwrap_or(u32::MAX);
        if sample {
            due = Instant::now() + beat;
        }
        board.show(status, happened, sample, beat);
    }
}

impl Board {
    fn show(&self, status: Status, happened: Vec<Happened>, sample: bool, beat: Duration) {
        let now_unix_ms = unix_ms(SystemTime::now());
        let mut shown = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = |news| shown.history.happened(news, &status);
        let changes: Vec<_> = happened.into_iter().filter_map(tell).collect();
        if sample {
            shown.history.sample(&status, now_unix_ms);
        }
        shown.beat = beat;
        if self.frames.receiver_count() > 0 {
            let frame = Frame {
                now_unix_ms,
                beat_ms: millis(beat),
                sample,
                status: &status,
                changes: &changes,
                past: None,
            };
            // Nobody there any more is no matter.
            let _ = self.frames.send(frame.bytes());
        }
        shown.status = Some(status);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
