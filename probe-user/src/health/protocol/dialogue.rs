//! A conversation without a connection: what is to be said next, and what is made of what came.
//!
//! Whoever has the connection says and hears: [`hold`] over any stream, in a task that waits; a
//! lane ([`crate::health::lane`]) over a socket, without waiting. Both come to the same end,
//! however the answer is cut.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{
    failure::{Failure, Outcome},
    inbox::{SIP, more},
    redis::{self, Questions, resp::Walk},
    script,
};
use crate::{config::Step, health::transport::Stage};

/// What is talked about.
#[derive(Clone, Copy, Debug)]
pub enum Dialogue<'a> {
    /// See [`redis`].
    Redis(&'a Questions),
    /// See [`script`].
    Script(&'a [Step]),
}

/// What is next.
#[derive(Debug)]
pub enum Next<'a> {
    /// This has to be said.
    Say(&'a [u8]),
    /// More has to come.
    Hear,
    /// It is over.
    End(Outcome),
}

/// How far a dialogue is.
#[derive(Debug)]
pub struct Turn {
    /// The step that it is at.
    pub(super) at: usize,
    /// How much of an answer is understood.
    pub(super) walk: Walk,
    /// Bytes that may still come.
    pub(super) left: usize,
    /// Nothing more will come.
    pub(super) ended: bool,
    /// Why something could not be said.
    pub(super) unsaid: Option<io::Error>,
}

impl Turn {
    /// Bytes that are read at once; more than none while there is something to hear.
    pub fn sip(&self) -> usize {
        self.left.min(SIP)
    }

    /// So many bytes came; zero if there will be no more.
    pub fn heard(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.ended = count == 0;
    }

    /// The connection broke. What broke it first is what happened.
    pub fn broke(&mut self, error: io::Error) -> Failure {
        self.unsaid.take().unwrap_or(error).into()
    }
}

impl<'a> Dialogue<'a> {
    /// At its beginning.
    pub fn begin(self) -> Turn {
        Turn {
            at: 0,
            walk: Walk::new(),
            left: match self {
                Self::Redis(_) => redis::LIMIT,
                Self::Script(_) => script::LIMIT,
            },
            ended: false,
            unsaid: None,
        }
    }

    /// What is waited for once there is a connection.
    pub const fn stage(self) -> Stage {
        Stage::waiting(match self {
            Self::Redis(_) => "no complete answer",
            Self::Script(_) => "what is expected has not come",
        })
    }

    /// Is the first word ours?
    pub fn speaks_first(self) -> bool {
        match self {
            Self::Redis(_) => true,
            Self::Script(steps) => matches!(steps.first(), Some(Step::Send(_))),
        }
    }

    /// What is next. `came` is what was not understood before and all that came since; what is
    /// understood is taken from it.
    pub fn next(self, turn: &mut Turn, came: &mut BytesMut) -> Next<'a> {
        match self {
            Self::Redis(questions) => questions.next(turn, came),
            Self::Script(steps) => script::next(steps, turn, came),
        }
    }

    /// What [`Next::Say`] asked for was said, or could not be.
    pub fn said(self, turn: &mut Turn, came: &mut BytesMut, said: io::Result<()>) -> Outcome {
        turn.at += 1;
        match (self, said) {
            // Who is not wanted is told why and then reset, perhaps before it has asked.
            (Self::Redis(_), said) => turn.unsaid = said.err(),
            (Self::Script(_), Err(error)) => return Err(error.into()),
            (Self::Script(_), Ok(())) => {
                came.clear();
                turn.left = script::LIMIT;
            }
        }
        Ok(())
    }
}

/// Holds it over a stream. `scratch` is worth keeping.
pub async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
    dialogue: Dialogue<'_>,
    stream: &mut S,
    scratch: &mut BytesMut,
) -> Outcome {
    let mut turn = dialogue.begin();
    scratch.clear();
    loop {
        match dialogue.next(&mut turn, scratch) {
            Next::Say(words) => {
                let said = say(stream, words).await;
                dialogue.said(&mut turn, scratch, said)?;
            }
            Next::Hear => match more(stream, scratch, turn.sip()).await {
                Ok(count) => turn.heard(count),
                Err(error) => return Err(turn.broke(error)),
            },
            Next::End(outcome) => return outcome,
        }
    }
}

async fn say<S: AsyncWrite + Unpin>(stream: &mut S, words: &[u8]) -> io::Result<()> {
    stream.write_all(words).await?;
    // TLS keeps what the socket does not take.
    stream.flush().await
}
