//! Redis and what speaks its protocol: PING, and who is master.
//!
//! One write asks everything: `AUTH` on a new connection if there is a password, `PING`,
//! and `ROLE` where the role matters (Redis 2.8.12). A server that does not know or permit
//! `ROLE` is asked by `INFO replication`. Whatever the role, an error for an answer means
//! that the endpoint is not fit: it loads its data (`-LOADING`), wants a password
//! (`-NOAUTH`), lost its master (`-MASTERDOWN`), or is in protected mode (`-DENIED`, said
//! before anything is asked).
//!
//! Answers are parsed as RESP2, all of them bounded by [`LIMIT`]: what a connection has
//! after its last answer is nothing, so it can be used again.

mod resp;

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{
    failure::{Failure, Outcome, Reason},
    inbox::{Inbox, readable},
    kept::Speak,
    secret::password,
};
use crate::{
    config::{RedisLogin as Login, RedisRole as Role},
    health::{
        transport::{Stage, Stream, Transport},
        verdict::Finding,
    },
};
use resp::{Kind, Reply, Walk};

/// Bytes of all answers of one check. `INFO replication` takes some 500, and 80 for each
/// replica.
pub const LIMIT: usize = 64 * 1024;

/// What a Redis endpoint is asked, and what it must be.
#[derive(Clone, Debug)]
pub struct Redis {
    login: Option<Login>,
    role: Role,
}

/// Is it this, as Redis says it?
fn plays(role: Role, told: &[u8]) -> bool {
    match role {
        Role::Any => true,
        Role::Master => told == b"master",
        Role::Replica => told == b"slave" || told == b"replica",
    }
}

impl Redis {
    /// Asks nothing yet.
    pub fn new(login: Option<Login>, role: Role) -> Self {
        Self { login, role }
    }

    /// Holds the conversation. On a connection that was held one before, `fresh` is false
    /// and nobody logs in. `scratch` is worth keeping.
    pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        fresh: bool,
        scratch: &mut BytesMut,
    ) -> Outcome {
        let login = self.login.as_ref().filter(|_| fresh);
        scratch.clear();
        if let Some(login) = login {
            let password = password(&login.password).await?;
            match &login.user {
                Some(user) => command(scratch, &[b"AUTH", user.as_bytes(), &password]),
                None => command(scratch, &[b"AUTH", &password]),
            }
        }
        command(scratch, &[b"PING"]);
        if self.role != Role::Any {
            command(scratch, &[b"ROLE"]);
        }
        // Who is not wanted is told why and then reset, perhaps before it has asked.
        let said = say(stream, scratch).await;
        let mut inbox = Inbox::new(scratch, LIMIT);
        let answers = self.hear(stream, login.is_some(), &mut inbox).await;
        match (answers, said) {
            (Err(Failure::Io(_) | Failure::Closed), Err(error)) => Err(error.into()),
            (answers, _) => answers,
        }
    }

    async fn hear<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        login: bool,
        inbox: &mut Inbox<'_>,
    ) -> Outcome {
        if login {
            answered(stream, inbox, "AUTH", b"OK").await?;
        }
        answered(stream, inbox, "PING", b"PONG").await?;
        if self.role == Role::Any {
            return Ok(());
        }
        let end = reply(stream, inbox).await?;
        let role = match Reply::of(&inbox.bytes[..end]) {
            Reply {
                kind: Kind::Array,
                text: Some(role),
            } => Bytes::copy_from_slice(role),
            Reply {
                kind: Kind::Error,
                text: Some(error),
            } => {
                if !is_refused(error) {
                    return Err(told(error));
                }
                inbox.bytes.advance(end);
                self.role_by_info(stream, inbox).await?
            }
            _ => return Err(unlike("ROLE", &inbox.bytes[..end])),
        };
        if plays(self.role, &role) {
            return Ok(());
        }
        let note = format!("{}, not {}", readable(&role), self.role.label());
        Err(Failure::mismatch(Reason::Role, note, b""))
    }

    async fn role_by_info<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        inbox: &mut Inbox<'_>,
    ) -> Result<Bytes, Failure> {
        say(stream, b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n").await?;
        let end = reply(stream, inbox).await?;
        match Reply::of(&inbox.bytes[..end]) {
            Reply {
                kind: Kind::Bulk,
                text: Some(info),
            } => info
                .split(|byte| *byte == b'\n')
                .find_map(|line| line.trim_ascii_end().strip_prefix(b"role:"))
                .map(Bytes::copy_from_slice)
                .ok_or_else(|| unlike("INFO", info)),
            Reply {
                kind: Kind::Error,
                text: Some(error),
            } => Err(told(error)),
            _ => Err(unlike("INFO", &inbox.bytes[..end])),
        }
    }
}

impl Speak for Redis {
    type Connection = Stream;

    async fn connect(&self, transport: &Transport, stage: &mut Stage) -> Result<Stream, Finding> {
        transport.connect(stage).await
    }

    async fn ask(&self, stream: &mut Stream, fresh: bool, scratch: &mut BytesMut) -> Outcome {
        self.hold(stream, fresh, scratch).await
    }
}

async fn say<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// One answer, which must be this simple string.
async fn answered<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox<'_>,
    question: &str,
    wanted: &[u8],
) -> Outcome {
    let end = reply(stream, inbox).await?;
    let outcome = match Reply::of(&inbox.bytes[..end]) {
        Reply {
            kind: Kind::Simple,
            text: Some(text),
        } if text == wanted => Ok(()),
        Reply {
            kind: Kind::Error,
            text: Some(error),
        } => Err(told(error)),
        _ => Err(unlike(question, &inbox.bytes[..end])),
    };
    inbox.bytes.advance(end);
    outcome
}

/// Waits for a whole answer; where it ends.
async fn reply<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox<'_>,
) -> Result<usize, Failure> {
    let mut walk = Walk::new();
    loop {
        match walk.on(inbox.bytes) {
            Err(malformed) => {
                let note = format!("not Redis' protocol: {malformed}");
                return Err(Failure::garbage(note, inbox.bytes));
            }
            Ok(Some(end)) => return Ok(end),
            Ok(None) => inbox.rest(stream).await?,
        }
    }
}

fn unlike(question: &str, got: &[u8]) -> Failure {
    Failure::mismatch(Reason::Answer, format!("to {question}"), got)
}

/// Is it the question that is refused, and not everything?
fn is_refused(error: &[u8]) -> bool {
    error.starts_with(b"NOPERM") || error.starts_with(b"ERR unknown command")
}

/// An error that the endpoint told, by its first word.
fn told(error: &[u8]) -> Failure {
    let word = error.split(|byte| *byte == b' ').next().unwrap_or(error);
    let reason = match word {
        b"LOADING" => Reason::Starting,
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" | b"DENIED" => Reason::Credentials,
        b"MASTERDOWN" => Reason::Replication,
        // Redis before 6 has no word for a wrong password, and none for one too many.
        _ if error.starts_with(b"ERR invalid password") => Reason::Credentials,
        _ if error.starts_with(b"ERR AUTH") || error.starts_with(b"ERR Client sent AUTH") => {
            Reason::Credentials
        }
        _ if error.starts_with(b"ERR unknown command") => Reason::Unimplemented,
        _ => Reason::Error,
    };
    Failure::mismatch(reason, readable(error), b"")
}

/// Appends a command in RESP.
fn command(to: &mut BytesMut, words: &[&[u8]]) {
    to.put_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        to.put_slice(format!("${}\r\n", word.len()).as_bytes());
        to.put_slice(word);
        to.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests;
