//! What a lane asks of an endpoint: checks that are one conversation over TCP as it is.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    config::{Check, HttpCheck, HttpVersion, Keep, Kind as Checked},
    health::{
        probe::Recipe,
        protocol::{
            dialogue::Dialogue,
            http::request,
            redis::{Questions, Redis},
        },
    },
};

/// What is asked, and where.
#[derive(Debug)]
pub struct Asks {
    check: Arc<Check>,
    pub(super) target: SocketAddr,
    timeout: Duration,
    words: Words,
}

/// What is said.
#[derive(Debug)]
enum Words {
    /// Nothing, or the steps of a script, which the check has.
    OfCheck,
    /// A request by HTTP/1.1.
    Request(Bytes),
    /// Questions to Redis, on a new connection and on one that was used before.
    Redis(Box<[Questions; 2]>),
}

/// A way to find out.
#[derive(Clone, Copy, Debug)]
pub(super) enum How<'a> {
    /// A connection is enough.
    Connect,
    /// A request by HTTP/1.1, and what the answer shall be.
    Request(&'a Bytes, &'a HttpCheck),
    /// Something is said, and something heard.
    Talk(Dialogue<'a>),
}

impl Asks {
    /// Of checks that such a conversation can be: one a service, over TCP as it is.
    pub fn of(recipe: &Recipe) -> Option<Self> {
        let [only] = recipe.check.each() else {
            return None;
        };
        let words = match only.kind() {
            Checked::Tcp(_) | Checked::Script(_) => Words::OfCheck,
            Checked::Http(http) if http.version() != HttpVersion::Two && http.redirects() == 0 => {
                let host = http.host().unwrap_or(&recipe.authority);
                Words::Request(request(http, host))
            }
            Checked::Redis(check) => {
                let redis = Redis::new(check.login().cloned(), check.role());
                // Files are not read here: that may take its time.
                let both = [redis.questions(true)?, redis.questions(false)?];
                Words::Redis(Box::new(both.map(Clone::clone)))
            }
            _ => return None,
        };
        let reach = only.kind().reach()?;
        let plain = reach.tls().is_none() && reach.send_proxy().is_none();
        plain.then(|| Self {
            target: reach.target(recipe.endpoint),
            timeout: only.timeout(),
            check: recipe.check.clone(),
            words,
        })
    }

    /// Time that a conversation may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Does it make a connection for each check, or for nearly each?
    pub fn is_fresh(&self) -> bool {
        self.keep() == Keep::Fresh
    }

    /// How long connections are kept.
    pub(super) fn keep(&self) -> Keep {
        match self.kind() {
            Some(Checked::Http(http)) => http.keep(),
            Some(Checked::Redis(redis)) => redis.keep(),
            _ => Keep::Fresh,
        }
    }

    /// On a new connection, or on one that was used before.
    pub(super) fn how(&self, fresh: bool) -> How<'_> {
        match (self.kind(), &self.words) {
            (Some(Checked::Http(http)), Words::Request(request)) => How::Request(request, http),
            (Some(Checked::Script(script)), _) => How::Talk(Dialogue::Script(script.steps())),
            (_, Words::Redis(questions)) => {
                let [first, again] = &**questions;
                How::Talk(Dialogue::Redis(if fresh { first } else { again }))
            }
            _ => How::Connect,
        }
    }

    /// Whose is the first word on a connection? Ours, or the endpoint's; nobody's where a connection
    /// is enough.
    pub(super) fn speaks_first(&self) -> Option<bool> {
        match self.how(true) {
            How::Connect => None,
            How::Request(..) => Some(true),
            How::Talk(dialogue) => Some(dialogue.speaks_first()),
        }
    }

    fn kind(&self) -> Option<&Checked> {
        self.check.each().first().map(|only| only.kind())
    }
}
