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

use super::{
    dialogue::{Dialogue, Next, Turn, hold},
    failure::{Failure, Reason},
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
        let hears = !Dialogue::Script(check.steps()).speaks_first();
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
        let dialogue = Dialogue::Script(&self.steps);
        *stage = dialogue.stage();
        let outcome = hold(dialogue, &mut stream, &mut self.scratch).await;
        outcome.err().map_or(Finding::OK, Finding::from)
    }
}

/// What is next of the steps.
pub(super) fn next<'a>(steps: &'a [Step], turn: &mut Turn, came: &[u8]) -> Next<'a> {
    loop {
        match steps.get(turn.at) {
            None => return Next::End(Ok(())),
            Some(Step::Send(words)) => return Next::Say(words),
            Some(Step::Expect { .. }) => {}
        }
        // As in HAProxy nothing is judged before the first bytes after a send, or the end.
        if came.is_empty() && !turn.ended {
            return Next::Hear;
        }
        let expects = steps[turn.at..].iter().map_while(Expect::of);
        let last = turn.ended || turn.left == 0;
        match judge_all(expects.clone(), turn.at + 1, came, last) {
            Err(failure) => return Next::End(Err(failure)),
            Ok(false) => return Next::Hear,
            Ok(true) => turn.at += expects.count(),
        }
    }
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

/// Are all of them met? Or has one failed; `number` is the first one's. `last`: nothing more will come.
fn judge_all<'a>(
    expects: impl Iterator<Item = Expect<'a>>,
    number: usize,
    came: &[u8],
    last: bool,
) -> Result<bool, Failure> {
    for (step, expect) in (number..).zip(expects) {
        match expect.judge(came, last) {
            Judgement::Met => {}
            Judgement::Open => return Ok(false),
            Judgement::Failed if came.is_empty() => return Err(Failure::Closed),
            Judgement::Failed => {
                let note = format!("step {step} expects {}", expect.looked);
                return Err(Failure::mismatch(Reason::Answer, note, came));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
