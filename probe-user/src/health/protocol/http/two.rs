//! HTTP/2: a request and its answer on a stream of its own (RFC 9113), by the crate h2.
//!
//! A connection is driven only while somebody waits for an answer. Between two checks
//! nobody reads it, so a server that wants to know whether the client is there gets its
//! answer with the next check, or closes; then the next check makes a new one.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use h2::client::{Builder, Connection, SendRequest};

use super::{
    Answer, BODY_LIMIT, HEAD_LIMIT,
    judge::{Extent, Headers, Judge},
    one::Ended,
    redirect,
};
use crate::{
    config::Expect,
    health::{
        transport::{Stage, Stream, broken},
        verdict::{Finding, Kind},
    },
};

/// A connection on which requests can be made.
pub struct Two {
    sender: SendRequest<Bytes>,
    connection: Box<Connection<Stream, Bytes>>,
}

impl std::fmt::Debug for Two {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Two").finish_non_exhaustive()
    }
}

impl Headers for http::HeaderMap {
    fn any(&self, name: &str, passes: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.get_all(name)
            .iter()
            .any(|value| passes(value.as_bytes()))
    }
}

/// What an exchange needs beside the connection.
pub struct Ask<'a> {
    /// The request's head.
    pub request: http::Request<()>,
    /// Its body; may be empty.
    pub body: Bytes,
    /// What the answer must be.
    pub expect: &'a Expect,
    /// Are redirects wanted?
    pub follows: bool,
}

impl Two {
    /// Says hello on a connection.
    pub async fn new(stream: Stream, stage: &mut Stage) -> Result<Self, Finding> {
        *stage = Stage::waiting("no HTTP/2 connection");
        let limit = u32::try_from(BODY_LIMIT).unwrap_or(u32::MAX);
        let made = Builder::new()
            .enable_push(false)
            .max_header_list_size(u32::try_from(HEAD_LIMIT).unwrap_or(u32::MAX))
            .initial_window_size(limit)
            .initial_connection_window_size(limit)
            .handshake::<_, Bytes>(stream)
            .await;
        let (sender, connection) = made.map_err(|error| failed(&error))?;
        Ok(Self {
            sender,
            connection: Box::new(connection),
        })
    }

    /// Is the connection still there? Looks, and waits for nothing.
    pub fn is_usable(&mut self) -> bool {
        self.connection.as_mut().now_or_never().is_none()
            && matches!(self.sender.clone().ready().now_or_never(), Some(Ok(_)))
    }

    /// Asks, and judges what comes. `kept` is a connection that was used before.
    pub async fn exchange(
        &mut self,
        ask: Ask<'_>,
        room: &mut BytesMut,
        kept: bool,
        stage: &mut Stage,
    ) -> Ended {
        *stage = Stage::waiting("no complete head");
        let mut heard = false;
        let talk = talk(self.sender.clone(), ask, room, stage, &mut heard);
        let answer = {
            let mut talk = pin!(talk);
            tokio::select! {
                biased;
                answer = &mut talk => answer,
                // The conversation then ends by itself, and knows why.
                _ = self.connection.as_mut() => talk.await,
            }
        };
        match answer {
            Ok(answer) => {
                // What the request is still owed is told: the stream is given back.
                let _ = self.connection.as_mut().now_or_never();
                Ended::Answered(answer)
            }
            Err(error) if kept && !heard && closed(&error) => Ended::Stale,
            Err(error) => Ended::Answered(Answer::Found(failed(&error).with_status(stage.status))),
        }
    }
}

async fn talk(
    sender: SendRequest<Bytes>,
    ask: Ask<'_>,
    room: &mut BytesMut,
    stage: &mut Stage,
    heard: &mut bool,
) -> Result<Answer, h2::Error> {
    let Ask {
        request,
        body,
        expect,
        follows,
    } = ask;
    let mut sender = sender.ready().await?;
    let (response, mut upload) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        upload.send_data(body, true)?;
    }
    let (head, mut body) = response.await?.into_parts();
    *heard = true;
    let status = head.status.as_u16();
    *stage = Stage {
        status: Some(status),
        ..Stage::waiting("no complete body")
    };
    if follows && let Some(location) = redirect::location(status, &head.headers) {
        return Ok(Answer::Moved { status, location });
    }
    let mut judge = Judge::default();
    if let Some(finding) = judge.head(expect, status, &head.headers) {
        return Ok(Answer::Found(finding));
    }
    room.clear();
    loop {
        let extent = match body.data().await {
            // The window is as large as what is looked at, so no more comes than fits. Padding
            // is given back by the crate.
            Some(piece) => {
                let piece = piece?;
                let kept = piece.len().min(BODY_LIMIT - room.len());
                room.extend_from_slice(&piece[..kept]);
                if room.len() == BODY_LIMIT && !body.is_end_stream() {
                    Extent::Cut
                } else {
                    Extent::Part
                }
            }
            None => Extent::Whole,
        };
        if let Some(finding) = judge.body(expect, room, extent) {
            // On this connection others may follow, which need their window.
            let _ = body.flow_control().release_capacity(room.len());
            return Ok(Answer::Found(finding));
        }
    }
}

/// Did the connection end, without a word about the request?
fn closed(error: &h2::Error) -> bool {
    error.is_io() || error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

fn failed(error: &h2::Error) -> Finding {
    match error.get_io() {
        Some(error) if error.raw_os_error().is_some() => broken(error),
        Some(error) if error.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => broken(error),
        Some(error) => Finding::new(Kind::Protocol, format!("not HTTP/2: {error}")),
        None => Finding::new(Kind::Protocol, format!("HTTP/2: {error}")),
    }
}
