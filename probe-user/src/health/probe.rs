//! The checks of one endpoint, made at the same time, and the one verdict of them.
//!
//! Each has its own conversation ([`super::protocol`]) and its own timeout, which bounds
//! all of it: an answer that drips or never ends costs no more than one that never
//! comes. Of several the verdict is certain as soon as one failed, or as one is good if
//! any will do; the others are broken off then.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    protocol::Conversation,
    scheduler,
    transport::Stage,
    verdict::{Finding, Kind, Verdict},
    wire::within,
};
use crate::config::{Check, Combine, Each};
use futures_util::{StreamExt as _, stream::FuturesUnordered};

/// How the checks of one endpoint are made ready, as often as need be.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What is asked.
    pub check: Arc<Check>,
    /// Where.
    pub endpoint: SocketAddr,
    /// What the endpoint is called, unless the check calls it otherwise.
    pub authority: String,
    /// Of which service.
    pub service: String,
    /// Its name.
    pub name: String,
}

impl Recipe {
    /// Checks that are ready to be made.
    pub fn make(&self) -> Probe {
        Probe::new(&self.check, self.endpoint, &self.authority).of(&self.service, &self.name)
    }
}

/// The checks of one endpoint, ready to be made any number of times.
#[derive(Debug)]
pub struct Probe {
    each: Vec<One>,
    combine: Combine,
}

/// One of them.
#[derive(Debug)]
struct One {
    conversation: Conversation,
    timeout: Duration,
    /// What it is, as people read it.
    name: String,
}

impl Probe {
    /// Of an endpoint at an address. `authority` is what it is called unless the check
    /// calls it otherwise.
    pub fn new(check: &Check, endpoint: SocketAddr, authority: &str) -> Self {
        let one = |each: &Each| One {
            conversation: Conversation::new(each.kind(), endpoint, authority),
            timeout: each.timeout(),
            name: each.kind().to_string(),
        };
        Self {
            each: check.each().iter().map(one).collect(),
            combine: check.combine(),
        }
    }

    /// Tells the checks whose endpoint they are about.
    #[must_use]
    pub fn of(mut self, service: &str, endpoint: &str) -> Self {
        for one in &mut self.each {
            one.conversation.tell(service, endpoint);
        }
        self
    }

    /// Makes the checks.
    pub async fn run(&mut self) -> Verdict {
        let begin = Instant::now();
        let finding = match self.each.as_mut_slice() {
            [only] => talk(&mut only.conversation, only.timeout).await,
            several => together(several, self.combine).await,
        };
        finding.after(begin.elapsed())
    }
}

impl scheduler::Check for Probe {
    async fn make(&mut self) -> Verdict {
        self.run().await
    }
}

/// Makes all of them until the verdict is certain.
async fn together(each: &mut [One], combine: Combine) -> Finding {
    let decisive = match combine {
        Combine::All => false,
        Combine::Any => true,
    };
    let mut names = Vec::with_capacity(each.len());
    let mut running = FuturesUnordered::new();
    for (i, one) in each.iter_mut().enumerate() {
        names.push(one.name.as_str());
        let (conversation, timeout) = (&mut one.conversation, one.timeout);
        running.push(async move { (i, talk(conversation, timeout).await) });
    }
    let mut result: Option<(usize, Finding)> = None;
    while let Some((i, finding)) = running.next().await {
        if finding.kind.success() == Some(decisive) {
            return named(i, finding, &names);
        }
        // Else the first one in the configuration's order speaks for all, but one that the
        // agent could not make says that nothing is known.
        let first = match &result {
            None => true,
            Some((other, last)) => {
                (last.kind != Kind::Local, *other) > (finding.kind != Kind::Local, i)
            }
        };
        if first {
            result = Some((i, finding));
        }
    }
    drop(running);
    match result {
        Some((i, finding)) => named(i, finding, &names),
        // A configuration has at least one.
        None => Finding::OK,
    }
}

async fn talk(conversation: &mut Conversation, timeout: Duration) -> Finding {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut stage = Stage::CONNECTING;
    // Pinned here: what is handed to an async function has room in it twice.
    let made = {
        let conversation = pin!(conversation.run(&mut stage));
        within(deadline, conversation).await
    };
    match made.output {
        Some(finding) if finding.kind == Kind::Ok && !made.in_time => {
            let kind = stage.kind;
            Finding::new(kind, "what was waited for came after the timeout")
        }
        Some(finding) => finding,
        None => stage.over(),
    }
}

/// A failure says whose it is.
fn named(i: usize, finding: Finding, names: &[&str]) -> Finding {
    if finding.kind == Kind::Ok {
        return finding;
    }
    let (name, note) = (names[i], &finding.note);
    let note = format!("check {} of {} ({name}): {note}", i + 1, names.len());
    Finding {
        note: note.into(),
        ..finding
    }
}
