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

pub(super) mod resp;

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    dialogue::{Dialogue, Next, Turn, hold},
    failure::{Failure, Outcome, Reason},
    inbox::readable,
    kept::Speak,
    secret::password,
};
use crate::{
    config::{RedisLogin as Login, RedisRole as Role, Secret},
    health::{
        transport::{Stage, Stream, Transport},
        verdict::Finding,
    },
};
use resp::{Kind, Reply, Walk};

/// Bytes of all answers of one check. `INFO replication` takes some 500, and 80 for each
/// replica.
pub const LIMIT: usize = 64 * 1024;

/// Is it this, as Redis says it?
fn plays(role: Role, told: &[u8]) -> bool {
    match role {
        Role::Any => true,
        Role::Master => told == b"master",
        Role::Replica => told == b"slave" || told == b"replica",
    }
}

/// What a Redis endpoint is asked, and what it must be.
#[derive(Clone, Debug)]
pub struct Redis {
    login: Option<Login>,
    role: Role,
    /// On a new connection, if the password is known.
    first: Option<Questions>,
    again: Questions,
}

impl Redis {
    /// Asks nothing yet.
    pub fn new(login: Option<Login>, role: Role) -> Self {
        let again = Questions::new(None, role);
        let first = match &login {
            None => Some(again.clone()),
            Some(Login {
                user,
                password: Secret::Text(password),
            }) => {
                let login = (user.as_deref(), password.as_bytes());
                Some(Questions::new(Some(login), role))
            }
            Some(_) => None,
        };
        Self {
            login,
            role,
            first,
            again,
        }
    }

    /// What is asked on a new connection, or on one that was talked on before: there nobody logs
    /// in. Nothing if a password has to be read first.
    pub fn questions(&self, fresh: bool) -> Option<&Questions> {
        if fresh {
            return self.first.as_ref();
        }
        Some(&self.again)
    }

    /// Holds the conversation. `scratch` is worth keeping.
    pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        fresh: bool,
        scratch: &mut BytesMut,
    ) -> Outcome {
        if let Some(questions) = self.questions(fresh) {
            return hold(Dialogue::Redis(questions), stream, scratch).await;
        }
        let questions = self.with_password().await?;
        hold(Dialogue::Redis(&questions), stream, scratch).await
    }

    async fn with_password(&self) -> Result<Questions, Failure> {
        let Some(login) = &self.login else {
            return Ok(self.again.clone());
        };
        let password = password(&login.password).await?;
        Ok(Questions::new(
            Some((login.user.as_deref(), &password)),
            self.role,
        ))
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

/// All that is asked on a connection.
#[derive(Clone, Debug)]
pub struct Questions {
    steps: Vec<Step>,
    role: Role,
}

#[derive(Clone)]
enum Step {
    Say(Bytes),
    /// To this question comes this simple string.
    Hear(&'static str, &'static [u8]),
    HearRole,
    HearInfo,
}

/// What is said may hold a password.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Say(words) => write!(f, "Say({} bytes)", words.len()),
            Self::Hear(question, _) => write!(f, "Hear({question})"),
            Self::HearRole => f.write_str("HearRole"),
            Self::HearInfo => f.write_str("HearInfo"),
        }
    }
}

impl Questions {
    /// Of who logs in: perhaps a user, and the password.
    fn new(login: Option<(Option<&str>, &[u8])>, role: Role) -> Self {
        let mut words = BytesMut::new();
        let mut answers = Vec::new();
        if let Some((user, password)) = login {
            match user {
                Some(user) => command(&mut words, &[b"AUTH", user.as_bytes(), password]),
                None => command(&mut words, &[b"AUTH", password]),
            }
            answers.push(Step::Hear("AUTH", b"OK"));
        }
        command(&mut words, &[b"PING"]);
        answers.push(Step::Hear("PING", b"PONG"));
        if role != Role::Any {
            command(&mut words, &[b"ROLE"]);
            // Where it is answered nothing more is asked.
            let info = Bytes::from_static(b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n");
            answers.extend([Step::HearRole, Step::Say(info), Step::HearInfo]);
        }
        let mut steps = vec![Step::Say(words.freeze())];
        steps.append(&mut answers);
        Self { steps, role }
    }

    /// What is next.
    pub(super) fn next(&self, turn: &mut Turn, came: &mut BytesMut) -> Next<'_> {
        while let Some(step) = self.steps.get(turn.at) {
            if let Step::Say(words) = step {
                return Next::Say(words);
            }
            let end = match turn.walk.on(came) {
                Ok(Some(end)) => end,
                Ok(None) if turn.ended => return Next::End(Err(broken_off(turn, came))),
                Ok(None) if turn.left == 0 => return Next::End(Err(Failure::endless())),
                Ok(None) => return Next::Hear,
                Err(malformed) => {
                    let note = format!("not Redis' protocol: {malformed}");
                    return Next::End(Err(Failure::garbage(note, came)));
                }
            };
            let judged = self.judge(step, &came[..end]);
            came.advance(end);
            (turn.walk, turn.at) = (Walk::new(), turn.at + 1);
            match judged {
                Ok(Judged::GoesOn) => {}
                Ok(Judged::Good) => break,
                Err(failure) => return Next::End(Err(failure)),
            }
        }
        Next::End(Ok(()))
    }

    fn judge(&self, step: &Step, answer: &[u8]) -> Result<Judged, Failure> {
        let Reply { kind, text } = Reply::of(answer);
        match (step, kind, text) {
            (Step::Hear(_, wanted), Kind::Simple, Some(text)) if text == *wanted => {
                Ok(Judged::GoesOn)
            }
            (Step::HearRole, Kind::Array, Some(role)) => self.plays(role),
            (Step::HearRole, Kind::Error, Some(error)) if is_refused(error) => Ok(Judged::GoesOn),
            (Step::HearInfo, Kind::Bulk, Some(info)) => {
                let mut lines = info.split(|byte| *byte == b'\n');
                let role = lines.find_map(|line| line.trim_ascii_end().strip_prefix(b"role:"));
                self.plays(role.ok_or_else(|| unlike("INFO", info))?)
            }
            (_, Kind::Error, Some(error)) => Err(told(error)),
            (Step::Hear(question, _), ..) => Err(unlike(question, answer)),
            (Step::HearRole, ..) => Err(unlike("ROLE", answer)),
            (Step::HearInfo | Step::Say(_), ..) => Err(unlike("INFO", answer)),
        }
    }

    fn plays(&self, role: &[u8]) -> Result<Judged, Failure> {
        if plays(self.role, role) {
            return Ok(Judged::Good);
        }
        let note = format!("{}, not {}", readable(role), self.role.label());
        Err(Failure::mismatch(Reason::Role, note, b""))
    }
}

/// An answer that does.
enum Judged {
    GoesOn,
    /// Nothing more has to be known.
    Good,
}

/// What was not said is why nothing comes.
fn broken_off(turn: &mut Turn, came: &[u8]) -> Failure {
    match (Failure::broken_off(came), turn.unsaid.take()) {
        (Failure::Closed, Some(error)) => error.into(),
        (failure, _) => failure,
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
