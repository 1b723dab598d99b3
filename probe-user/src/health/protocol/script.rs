//! Steps of send and expect, with the semantics of HAProxy's tcp-check.
//!
//! What comes is collected in one buffer. All expectations between two sends are judged
//! on the same buffer, each anew whenever more has come, and the next send empties it. An
//! expectation that is not met waits for more, until the endpoint closes or the buffer is
//! full ([`LIMIT`]): what is there then decides. So does a negated one, which is otherwise
//! never certain: on a connection that stays open `min_recv` says after how many bytes it
//! is. A regular expression sees what has come so far, so `$` matches there.

use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{
    failure::{Failure, Outcome, Reason},
    inbox::Inbox,
};
use crate::{
    config::{BodyMatch, Looked, ScriptCheck, Step},
    health::{
        transport::{Stage, Transport},
        verdict::Finding,
    },
};

/// Bytes of answers between two sends that are looked at, HAProxy's `tune.bufsize`.
pub const LIMIT: usize = 16 * 1024;

/// The script of one endpoint, held on a new connection each time: most protocols begin with
/// a greeting.
#[derive(Debug)]
pub struct Script {
    transport: Transport,
    steps: Vec<Step>,
    scratch: BytesMut,
}

impl Script {
    /// With an endpoint that is called `authority`.
    pub fn new(check: &ScriptCheck, endpoint: SocketAddr, authority: &str) -> Self {
        let hears = !matches!(check.steps().first(), Some(Step::Send(_)));
        Self {
            transport: Transport::new(check.reach(), endpoint, authority).that_hears_first(hears),
            steps: check.steps().to_vec(),
            scratch: BytesMut::new(),
        }
    }

    /// Makes the check.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        let mut stream = match self.transport.connect(stage).await {
            Ok(stream) => stream,
            Err(finding) => return finding,
        };
        *stage = Stage::waiting("what is expected has not come");
        let outcome = hold(&self.steps, &mut stream, &mut self.scratch).await;
        outcome.err().map_or(Finding::OK, Finding::from)
    }
}

/// Makes all steps.
pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
    steps: &[Step],
    stream: &mut S,
    scratch: &mut BytesMut,
) -> Outcome {
    let mut inbox = Inbox::new(scratch, LIMIT);
    let mut rest = steps;
    let mut closed = false;
    while let Some(first) = rest.first() {
        if let Step::Send(bytes) = first {
            stream.write_all(bytes).await?;
            stream.flush().await?;
            inbox = Inbox::new(inbox.bytes, LIMIT);
            rest = &rest[1..];
        } else {
            let expects = rest.iter().map_while(Expect::of);
            let number = steps.len() - rest.len() + 1;
            rest = &rest[expects.clone().count()..];
            judge_all(expects, number, stream, &mut inbox, &mut closed).await?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Met,
    /// More may come that meets it.
    Open,
    Failed,
}

/// A step that expects something.
#[derive(Clone, Copy)]
struct Expect<'a> {
    looked: &'a Looked,
    min_recv: Option<usize>,
}

impl<'a> Expect<'a> {
    fn of(step: &'a Step) -> Option<Self> {
        match step {
            Step::Send(_) => None,
            Step::Expect { looked, min_recv } => Some(Self {
                looked,
                min_recv: *min_recv,
            }),
        }
    }

    /// Fewer bytes decide nothing.
    fn least(&self) -> usize {
        let least = match &self.looked.pattern {
            BodyMatch::Contains(needle) => needle.needle().len(),
            BodyMatch::Regex(_) => 0,
        };
        least.max(self.min_recv.unwrap_or(0))
    }

    /// `last`: nothing more will come.
    fn judge(&self, answer: &[u8], last: bool) -> Judgement {
        if !last && answer.len() < self.least() {
            return Judgement::Open;
        }
        let is_met = self.looked.is_met(answer);
        let found = is_met != self.looked.negated;
        if !found && !last && self.min_recv.is_none() {
            return Judgement::Open;
        }
        if is_met {
            Judgement::Met
        } else {
            Judgement::Failed
        }
    }
}

/// Waits until all of them are met, or one has failed. `number` is the first one's.
async fn judge_all<'a, S: AsyncRead + Unpin>(
    expects: impl Iterator<Item = Expect<'a>> + Clone,
    number: usize,
    stream: &mut S,
    inbox: &mut Inbox<'_>,
    closed: &mut bool,
) -> Outcome {
    // As in HAProxy nothing is judged before the first bytes after a send, or the end.
    if inbox.bytes.is_empty() && !*closed {
        *closed = inbox.more(stream).await? == 0;
    }
    loop {
        let last = *closed || inbox.room == 0;
        let open = expects.clone().enumerate().find_map(|(at, expect)| {
            let judgement = expect.judge(inbox.bytes, last);
            (judgement != Judgement::Met).then_some((number + at, expect, judgement))
        });
        match open {
            None => return Ok(()),
            Some((_, _, Judgement::Failed)) if *closed && inbox.bytes.is_empty() => {
                return Err(Failure::Closed);
            }
            Some((step, expect, Judgement::Failed)) => {
                let note = format!("step {step} expects {}", expect.looked);
                return Err(Failure::mismatch(Reason::Answer, note, inbox.bytes));
            }
            Some(_) => *closed = inbox.more(stream).await? == 0,
        }
    }
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
