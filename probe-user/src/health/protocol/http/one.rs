//! HTTP/1.1: a request and its answer (RFC 9112).

use std::io;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    Answer, BODY_LIMIT, HEAD_LIMIT,
    judge::{Extent, Headers, Judge},
    redirect,
};
use crate::{
    config::{Expect, Method},
    health::{
        transport::{Stage, Stream, broken},
        verdict::{Finding, Kind},
    },
    http1::{Decoder, Limits, Progress},
};

/// Room for what was read and not yet understood.
const CHUNK: usize = 4096;

/// What an exchange needs beside the connection; kept from one to the next.
#[derive(Debug)]
pub struct Room {
    method: Method,
    decoder: Decoder,
    input: BytesMut,
    judge: Judge,
    heard: bool,
    head_judged: bool,
}

/// What an answer is judged by.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What it should be.
    pub expect: &'a Expect,
    /// The connection was used before.
    pub kept: bool,
    /// Redirects are followed.
    pub follows: bool,
}

impl Headers for Decoder {
    fn any(&self, name: &str, passes: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.any_header(name, passes)
    }
}

/// How an exchange ended.
pub enum Ended {
    /// With this.
    Answered(Answer),
    /// The server had closed the connection before it saw the request: nothing is known.
    Stale,
}

impl Room {
    /// For answers to requests of a method.
    pub fn new(method: Method) -> Self {
        let limits = Limits {
            head: HEAD_LIMIT,
            body: BODY_LIMIT,
        };
        Self {
            method,
            decoder: Decoder::new(limits, method == Method::Head),
            input: BytesMut::new(),
            judge: Judge::default(),
            heard: false,
            head_judged: false,
        }
    }

    /// Is it for answers to requests of this method?
    pub fn is_for(&self, method: Method) -> bool {
        (self.method == Method::Head) == (method == Method::Head)
    }

    /// Sends the request and judges what comes.
    pub async fn exchange(
        &mut self,
        stream: &mut Stream,
        request: &[u8],
        asked: Asked<'_>,
        stage: &mut Stage,
    ) -> Ended {
        self.begin(stage);
        if let Err(error) = send(stream, request).await {
            return not_sent(&error, asked.kept);
        }
        loop {
            let read = stream.read_buf(self.input()).await;
            if let Some(ended) = self.heard(read, asked, stage) {
                return ended;
            }
        }
    }

    /// A request is sent.
    pub fn begin(&mut self, stage: &mut Stage) {
        self.decoder.restart();
        self.input.clear();
        self.judge = Judge::default();
        (self.heard, self.head_judged) = (false, false);
        *stage = Stage::waiting("no complete head");
    }

    /// Where what comes is put.
    pub fn input(&mut self) -> &mut BytesMut {
        self.input.reserve(CHUNK);
        &mut self.input
    }

    /// So many bytes came, none more will, or the connection broke. The end, if that is one.
    pub fn heard(
        &mut self,
        read: io::Result<usize>,
        asked: Asked<'_>,
        stage: &mut Stage,
    ) -> Option<Ended> {
        let found = |finding| Some(Ended::Answered(Answer::Found(finding)));
        let progress = match read {
            Ok(0) if asked.kept && !self.heard => return Some(Ended::Stale),
            Ok(0) => self.decoder.close(&self.input),
            Ok(_) => {
                self.heard = true;
                self.decoder.push(&mut self.input)
            }
            Err(error) => {
                let failed = broken(&error).with_status(stage.status);
                if is_stale(failed.kind, asked.kept && !self.heard) {
                    return Some(Ended::Stale);
                }
                return found(failed);
            }
        };
        let progress = match progress {
            Ok(progress) => progress,
            Err(malformed) => {
                let failed = Finding::new(Kind::Protocol, malformed.0)
                    .with_status(stage.status)
                    .that_saw(&self.input);
                return found(failed);
            }
        };
        let extent = match progress {
            Progress::Head => return None,
            Progress::Body => Extent::Part,
            Progress::Full => Extent::Cut,
            Progress::Done => Extent::Whole,
        };
        let status = self.decoder.status();
        if !self.head_judged {
            self.head_judged = true;
            *stage = Stage {
                status: Some(status),
                ..Stage::waiting("no complete body")
            };
            if asked.follows
                && let Some(location) = redirect::location(status, &self.decoder)
            {
                return Some(Ended::Answered(Answer::Moved { status, location }));
            }
            if let Some(finding) = self.judge.head(asked.expect, status, &self.decoder) {
                return found(finding);
            }
        }
        let judged = self.judge.body(asked.expect, self.decoder.body(), extent);
        judged.and_then(found)
    }

    /// Did all of the answer come, and nothing else, so that another request may follow?
    pub fn is_clean(&self) -> bool {
        self.decoder.may_go_on() && self.input.is_empty()
    }

    /// May the connection of the last exchange be used again? Reads what has come of the
    /// answer since its verdict was certain, and waits for nothing.
    pub fn is_usable(&mut self, stream: &mut Stream) -> bool {
        self.goes_on(|input| stream.read_buf(input).now_or_never())
    }

    /// The same, with how to read: nothing where nothing is there.
    pub fn goes_on(
        &mut self,
        mut read: impl FnMut(&mut BytesMut) -> Option<io::Result<usize>>,
    ) -> bool {
        // What is left of an answer beyond its limit is nobody's to read.
        for _ in 0..=BODY_LIMIT / CHUNK {
            match read(self.input()) {
                None => return self.is_clean(),
                Some(Ok(read)) if read > 0 && !self.decoder.may_go_on() => {}
                // The end, or what nobody asked for.
                Some(_) => return false,
            }
            match self.decoder.push(&mut self.input) {
                Ok(Progress::Body | Progress::Done) if self.decoder.status() != 0 => {}
                _ => return false,
            }
        }
        false
    }
}

/// How an exchange ended whose request could not be sent.
pub fn not_sent(error: &io::Error, kept: bool) -> Ended {
    let failed = broken(error);
    // A server may answer before it has read everything, and close.
    if is_stale(failed.kind, kept) {
        return Ended::Stale;
    }
    Ended::Answered(Answer::Found(failed))
}

/// Does a connection that broke so, silent and used before, tell nothing?
fn is_stale(kind: Kind, silent_and_kept: bool) -> bool {
    silent_and_kept && kind == Kind::Reset
}

async fn send(stream: &mut Stream, request: &[u8]) -> io::Result<()> {
    stream.write_all(request).await?;
    // TLS keeps what the socket does not take.
    stream.flush().await
}
