//! The socket, and how much of the agent its clients may have.
//!
//! A connection carries one request. There are [`CLIENTS`] at most: when one more comes, the oldest
//! that has not asked anything goes, so idle ones keep nobody out. A request's head has [`HEAD_TIME`]
//! and [`HEAD`] bytes, its body is not read, and all but streams of events are over after
//! [`ANSWER_TIME`]. What is no HTTP is answered with 400 by hyper, or not at all.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use axum::{Extension, Router, extract::Request, middleware::map_request};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::unistd::chown;
use tokio::{
    net::{UnixListener, UnixStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::peer::{Allowed, Peer};

/// Connections at one time.
pub const CLIENTS: usize = 64;
/// Bytes of a request's head.
pub const HEAD: usize = 16 * 1024;
/// How long a request's head may take.
pub const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long an answer may take, the slowness of who reads it included.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
content-length: 54\r\nconnection: close\r\n\r\n{\"error\":\"too many clients are served at the moment\"}\n";
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\n\
content-length: 75\r\nconnection: close\r\n\r\n\
{\"error\":\"the socket is for root, the agent's user and control.group only\"}";

/// What a request knows of its connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Who asks.
    pub peer: Peer,
    asked: Arc<AtomicBool>,
    streams: Arc<AtomicBool>,
}

impl Client {
    /// The answer has no end.
    pub fn streams(&self) {
        self.streams.store(true, Ordering::Relaxed);
    }
}

/// A listening socket whose file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: u64,
    allowed: Allowed,
}

impl Socket {
    /// Makes the file, in place of a stale one; its folder too.
    pub fn bind(path: &Path, group: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display();
        let allowed = Allowed::new(group)?;
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
            let mode = match allowed.group() {
                Some(group) => {
                    chown(&making, None, Some(group))?;
                    0o660
                }
                None => 0o600,
            };
            fs::set_permissions(&making, fs::Permissions::from_mode(mode))?;
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
            allowed,
        })
    }

    /// Serves until the task is ended.
    pub async fn serve(mut self, router: Router) -> io::Result<()> {
        let listener = self
            .listener
            .take()
            .expect("a socket serves once, and is consumed");
        let mut tasks = JoinSet::new();
        let mut clients = Clients::default();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // No descriptors, mostly: others need them more.
                        warn!("the control socket accepts nobody: {error}");
                        sleep(PAUSE).await;
                        continue;
                    }
                },
                Some(ended) = tasks.join_next_with_id() => {
                    clients.remove(ended.map_or_else(|error| error.id(), |(id, ())| id));
                    continue;
                }
            };
            let peer = match self.allowed.judge(&stream) {
                Ok(Ok(peer)) => peer,
                Ok(Err(peer)) => {
                    warn!(
                        uid = peer.uid,
                        pid = peer.pid,
                        "not allowed to use the control socket"
                    );
                    say(&stream, FORBIDDEN);
                    continue;
                }
                Err(error) => {
                    debug!("nobody knows who connected: {error}");
                    continue;
                }
            };
            if !clients.make_room() {
                say(&stream, FULL);
                continue;
            }
            let client = Client {
                peer,
                asked: Arc::default(),
                streams: Arc::default(),
            };
            let asked = client.asked.clone();
            let handle = tasks.spawn(talk(stream, router.clone(), client));
            clients.add(handle, asked);
        }
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

/// As much as fits at once: nobody is waited for.
fn say(stream: &UnixStream, answer: &[u8]) {
    let _ = stream.try_write(answer);
}

/// Connections by age; ids of tasks are not in order, so there is a number beside each.
#[derive(Default)]
struct Clients {
    all: BTreeMap<u64, (AbortHandle, Arc<AtomicBool>)>,
    next: u64,
}

impl Clients {
    /// Is there room for one more, if the oldest that has not asked anything goes?
    fn make_room(&mut self) -> bool {
        if self.all.len() < CLIENTS {
            return true;
        }
        let idle = |(_, (_, asked)): &(&u64, &(AbortHandle, Arc<AtomicBool>))| {
            !asked.load(Ordering::Relaxed)
        };
        let Some(oldest) = self.all.iter().find(idle).map(|(number, _)| *number) else {
            return false;
        };
        if let Some((handle, _)) = self.all.remove(&oldest) {
            handle.abort();
        }
        true
    }

    fn add(&mut self, handle: AbortHandle, asked: Arc<AtomicBool>) {
        self.all.insert(self.next, (handle, asked));
        self.next += 1;
    }

    fn remove(&mut self, id: tokio::task::Id) {
        self.all.retain(|_, (handle, _)| handle.id() != id);
    }
}

async fn talk(stream: UnixStream, router: Router, client: Client) {
    let (asked, streams) = (client.asked.clone(), client.streams.clone());
    let router = router
        .layer(map_request(move |request: Request| {
            asked.store(true, Ordering::Relaxed);
            async move { request }
        }))
        .layer(Extension(client));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = match timeout(ANSWER_TIME, &mut connection).await {
        Ok(ended) => ended,
        Err(_) if streams.load(Ordering::Relaxed) => connection.await,
        Err(_) => return,
    };
    if let Err(error) = ended {
        debug!("a client of the control socket: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_answers_are_whole() {
        for answer in [FULL, FORBIDDEN] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let length = format!("content-length: {}", body.len());
            assert!(head.contains(&length), "{head}: {}", body.len());
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].is_string());
        }
    }
}
