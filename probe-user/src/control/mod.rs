//! The local API: HTTP over a Unix socket, for the command line and for tools.
//!
//! ```text
//! GET  /v1/status
//! POST /v1/services/NAME/failback
//! POST /v1/reload
//! POST /v1/diff                     a configuration as its body
//! ```
//!
//! The socket belongs to whom the agent runs as, mode 0600: who may open it may
//! switch services. Its file is made under another name and moved into place, so
//! that it never exists with another mode, and a stale one is replaced.

pub mod client;
mod reload;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use crate::{
    core::{Ask, Counters, Refused, status},
    reload::Handle,
};

/// Who answers.
#[derive(Clone)]
pub struct Sources {
    /// The core.
    pub asks: mpsc::Sender<Ask>,
    /// What the datapath counted.
    pub counters: Arc<dyn Counters>,
    /// Who loads the configuration again.
    pub reloads: Handle,
}

/// The core does not answer: the agent is ending.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent's core does not answer")]
pub struct NoAnswer;

impl Sources {
    /// The whole status, with traffic.
    pub async fn status(&self) -> Result<status::Status, NoAnswer> {
        let mut status = self.ask(Ask::Status).await?;
        for endpoint in status.services.iter_mut().flat_map(|s| &mut s.endpoints) {
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
        status.datapath.reasons = self
            .counters
            .reasons()
            .unwrap_or_default()
            .into_iter()
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect::<BTreeMap<_, _>>();
        Ok(status)
    }

    /// Asks the core.
    pub async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| NoAnswer)?;
        answer.await.map_err(|_| NoAnswer)
    }
}

/// What went wrong, or what was done, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The order was not carried out.
    Error(String),
    /// The service's new connections go to this endpoint.
    Selected(String),
}

/// The API's routes.
pub fn router(sources: Sources) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services/{name}/failback", post(failback))
        .merge(reload::routes())
        .with_state(sources)
}

type Failure = (StatusCode, Json<Answer>);

fn failure(status: StatusCode, error: impl ToString) -> Failure {
    (status, Json(Answer::Error(error.to_string())))
}

async fn status(State(sources): State<Sources>) -> Result<Json<status::Status>, Failure> {
    let status = sources.status().await;
    status
        .map(Json)
        .map_err(|error| failure(StatusCode::SERVICE_UNAVAILABLE, error))
}

async fn failback(
    State(sources): State<Sources>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Answer>, Failure> {
    let answer = sources
        .ask(|reply| Ask::Failback(name, reply))
        .await
        .map_err(|error| failure(StatusCode::SERVICE_UNAVAILABLE, error))?;
    match answer {
        Ok(endpoint) => Ok(Json(Answer::Selected(endpoint))),
        Err(error @ Refused::NoService(_)) => Err(failure(StatusCode::NOT_FOUND, error)),
        Err(error @ Refused::No { .. }) => Err(failure(StatusCode::CONFLICT, error)),
    }
}

/// A listening socket whose file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Makes the file, in place of a stale one; its folder too.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("make the folder {}", folder.display()))?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_dir() => bail!("{shown} is a folder, not a socket"),
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                bail!("another agent answers at {shown}")
            }
            _ => {}
        }
        let mut making = path.as_os_str().to_owned();
        making.push(format!(".{}", std::process::id()));
        let making = PathBuf::from(making);
        let _ = fs::remove_file(&making);
        let bound = (|| -> io::Result<_> {
            let listener = UnixListener::bind(&making)?;
            fs::set_permissions(&making, fs::Permissions::from_mode(0o600))?;
            fs::rename(&making, path)?;
            Ok((listener, fs::symlink_metadata(path)?.ino()))
        })();
        let (listener, inode) = bound
            .inspect_err(|_| {
                let _ = fs::remove_file(&making);
            })
            .with_context(|| format!("make the control socket {shown}"))?;
        Ok(Self {
            listener: Some(listener),
            path: path.to_owned(),
            inode,
        })
    }

    /// Serves until the task is ended.
    pub async fn serve(mut self, sources: Sources) -> io::Result<()> {
        let listener = self
            .listener
            .take()
            .expect("a socket serves once, and is consumed");
        axum::serve(listener, router(sources)).await
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Only our own: a newer agent may have put its socket there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
