//! HTTP/1.1: a request and its answer (RFC 9112).

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
    decoder: Decoder,
    input: BytesMut,
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
            decoder: Decoder::new(limits, method == Method::Head),
            input: BytesMut::new(),
        }
    }

    /// Sends the request and judges what comes. `kept` is a connection that was used
    /// before.
    pub async fn exchange(
        &mut self,
        stream: &mut Stream,
        request: &[u8],
        expect: &Expect,
        kept: bool,
        follows: bool,
        stage: &mut Stage,
    ) -> Ended {
        self.decoder.restart();
        self.input.clear();
        *stage = Stage::waiting("no complete head");
        let mut heard = false;
        let mut judge = Judge::default();
        let stale = |kind: Kind, heard: bool| kept && !heard && kind == Kind::Reset;
        if let Err(error) = send(stream, request).await {
            let failed = broken(&error);
            // A server may answer before it has read everything, and close.
            if stale(failed.kind, false) {
                return Ended::Stale;
            }
            return Ended::Answered(Answer::Found(failed));
        }
        let mut head_judged = false;
        loop {
            self.input.reserve(CHUNK);
            let progress = match stream.read_buf(&mut self.input).await {
                Ok(0) if kept && !heard => return Ended::Stale,
                Ok(0) => self.decoder.close(&self.input),
                Ok(_) => {
                    heard = true;
                    self.decoder.push(&mut self.input)
                }
                Err(error) => {
                    let failed = broken(&error).with_status(stage.status);
                    if stale(failed.kind, heard) {
                        return Ended::Stale;
                    }
                    return Ended::Answered(Answer::Found(failed));
                }
            };
            let progress = match progress {
                Ok(progress) => progress,
                Err(malformed) => {
                    let failed = Finding::new(Kind::Protocol, malformed.0)
                        .with_status(stage.status)
                        .that_saw(&self.input);
                    return Ended::Answered(Answer::Found(failed));
                }
            };
            let extent = match progress {
                Progress::Head => continue,
                Progress::Body => Extent::Part,
                Progress::Full => Extent::Cut,
                Progress::Done => Extent::Whole,
            };
            let status = self.decoder.status();
            if !head_judged {
                head_judged = true;
                *stage = Stage {
                    status: Some(status),
                    ..Stage::waiting("no complete body")
                };
                if follows && let Some(location) = redirect::location(status, &self.decoder) {
                    return Ended::Answered(Answer::Moved { status, location });
                }
                if let Some(finding) = judge.head(expect, status, &self.decoder) {
                    return Ended::Answered(Answer::Found(finding));
                }
            }
            if let Some(finding) = judge.body(expect, self.decoder.body(), extent) {
                return Ended::Answered(Answer::Found(finding));
            }
        }
    }

    /// May the connection of the last exchange be used again? Reads what has come of the
    /// answer since its verdict was certain, and waits for nothing.
    pub fn is_usable(&mut self, stream: &mut Stream) -> bool {
        // What is left of an answer beyond its limit is nobody's to read.
        for _ in 0..=BODY_LIMIT / CHUNK {
            self.input.reserve(CHUNK);
            match stream.read_buf(&mut self.input).now_or_never() {
                // Nothing came.
                None => return self.decoder.may_go_on() && self.input.is_empty(),
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

async fn send(stream: &mut Stream, request: &[u8]) -> std::io::Result<()> {
    stream.write_all(request).await?;
    // TLS keeps what the socket does not take.
    stream.flush().await
}
