//! PostgreSQL: does it take connections, and is it in recovery?
//!
//! Without a user it is asked like pg_isready: a start-up message, and whatever answers
//! it shows that connections are taken, a refusal of the user too. Only `57P03` does not:
//! the server is starting, shutting down, or a standby that takes no queries.
//!
//! With a user the check logs in (trust, a password in clear, MD5, SCRAM-SHA-256) and asks
//! `SELECT pg_is_in_recovery()`: a primary is not, a standby is. That takes a process of
//! the server and a hash of some 4,096 rounds on each side, so a connection is worth
//! keeping (see [`super::kept`]).
//!
//! Messages and SCRAM are those of the crate postgres-protocol
//! (<https://www.postgresql.org/docs/current/protocol-message-formats.html>). Bounded are a
//! message ([`LONGEST`]), all of a conversation ([`LIMIT`]), and by the crate the rounds
//! of SCRAM.
//!
//! TLS begins with a question in clear ([`request_tls`]); an endpoint that declines it
//! fails the check, as with `sslmode=require`: nothing is ever said in clear instead.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, DataRowBody, ErrorResponseBody, Header, Message},
        frontend,
    },
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    failure::{Failure, Outcome, Reason},
    inbox::{Inbox, readable},
    kept::Speak,
    secret,
};
use crate::{
    config::{PostgresLogin as Login, PostgresRole as Role},
    health::{
        transport::{Stage, Stream, Transport},
        verdict::{Finding, Saw},
    },
};

/// Bytes of all that an endpoint says in one check.
pub const LIMIT: usize = 64 * 1024;
/// Bytes of one message.
pub const LONGEST: usize = 16 * 1024;
/// Who asks without a user. It need not exist.
const NOBODY: &str = "probe";
const MALFORMED: &str = "not a message of PostgreSQL";
/// How the server's list of connections names us.
const APPLICATION: &str = "probe";

/// What a PostgreSQL endpoint is asked, and what it must be.
#[derive(Clone, Debug)]
pub struct Postgres {
    login: Option<Login>,
    role: Role,
}

impl Postgres {
    /// Asks nothing yet. Only who logs in asks for the role.
    pub fn new(login: Option<Login>, role: Role) -> Self {
        Self { login, role }
    }

    /// Holds the conversation on a new connection. `scratch` is worth keeping.
    pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        scratch: &mut BytesMut,
    ) -> Outcome {
        match &self.login {
            None => is_ready(stream, scratch).await,
            Some(login) => {
                Talk::new(stream, scratch).log_in(login).await?;
                self.ask(stream, scratch).await
            }
        }
    }

    /// Asks on a connection that was logged in on.
    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        scratch: &mut BytesMut,
    ) -> Outcome {
        let in_recovery = Talk::new(stream, scratch).in_recovery().await?;
        match (self.role, in_recovery) {
            (Role::Primary, true) => Err(Failure::mismatch(
                Reason::Role,
                "in recovery: a standby, not primary",
                b"",
            )),
            (Role::Standby, false) => Err(Failure::mismatch(
                Reason::Role,
                "not in recovery: a primary, not standby",
                b"",
            )),
            _ => Ok(()),
        }
    }
}

impl Speak for Postgres {
    type Connection = Stream;

    async fn connect(&self, transport: &Transport, stage: &mut Stage) -> Result<Stream, Finding> {
        let mut tcp = transport.open(stage).await?;
        if transport.is_encrypted() {
            *stage = Stage::waiting("no answer to the question for TLS");
            request_tls(&mut tcp).await?;
        }
        transport.encrypt(tcp, stage).await
    }

    async fn ask(&self, stream: &mut Stream, fresh: bool, scratch: &mut BytesMut) -> Outcome {
        if fresh {
            self.hold(stream, scratch).await
        } else {
            self.ask(stream, scratch).await
        }
    }

    fn can_keep(&self) -> bool {
        self.login.is_some()
    }

    fn leave(
        &self,
        mut stream: Stream,
    ) -> Option<impl Future<Output = ()> + Send + use<> + 'static> {
        let logged_in = self.login.is_some();
        Some(async move { leave(&mut stream, logged_in).await })
    }
}

/// Takes leave, and waits until the server has gone: it would write a line to its log about a
/// connection that is reset.
async fn leave<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, logged_in: bool) {
    let said = if logged_in {
        let mut message = BytesMut::with_capacity(5);
        frontend::terminate(&mut message);
        stream.write_all(&message).await
    } else {
        // It asks for a password, and is told that there will be none.
        stream.shutdown().await
    };
    let mut rest = [0; 64];
    for _ in 0..LIMIT / rest.len() {
        if said.is_err() || !matches!(stream.read(&mut rest).await, Ok(1..)) {
            return;
        }
    }
}

/// Asks whether TLS may begin, and only that: what follows its answer is TLS already.
async fn request_tls<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Outcome {
    let mut question = BytesMut::with_capacity(8);
    frontend::ssl_request(&mut question);
    stream.write_all(&question).await?;
    stream.flush().await?;
    let mut answer = [0; 1];
    if stream.read(&mut answer).await? == 0 {
        return Err(Failure::Closed);
    }
    match answer {
        [b'S'] => Ok(()),
        [b'N'] => Err(Failure::mismatch(Reason::Answer, "it does no TLS", b"")),
        // Servers before 7.1, or out of memory.
        [b'E'] => Err(Failure::mismatch(
            Reason::Error,
            "it cannot do TLS now",
            b"",
        )),
        other => Err(Failure::garbage("not PostgreSQL", &other)),
    }
}

async fn is_ready<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    scratch: &mut BytesMut,
) -> Outcome {
    let mut talk = Talk::new(stream, scratch);
    talk.start_up(NOBODY, "postgres").await?;
    match talk.hear().await? {
        Message::ErrorResponse(body) => {
            let error = ServerError::of(&body)?;
            if error.reason() == Reason::Starting {
                Err(error.into())
            } else {
                Ok(())
            }
        }
        message if asks_who_we_are(&message) => Ok(()),
        message => Err(out_of_turn(&message)),
    }
}

fn asks_who_we_are(message: &Message) -> bool {
    matches!(
        message,
        Message::AuthenticationOk
            | Message::AuthenticationCleartextPassword
            | Message::AuthenticationMd5Password(_)
            | Message::AuthenticationSasl(_)
            | Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
    )
}

/// One side of a conversation.
struct Talk<'a, S> {
    stream: &'a mut S,
    inbox: Inbox<'a>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Talk<'a, S> {
    fn new(stream: &'a mut S, scratch: &'a mut BytesMut) -> Self {
        Self {
            stream,
            inbox: Inbox::new(scratch, LIMIT),
        }
    }

    async fn say(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let mut message = BytesMut::with_capacity(128);
        // It fails for NUL bytes and lengths that the configuration excludes.
        write(&mut message).map_err(|error| Failure::Local(error.to_string().into()))?;
        self.stream.write_all(&message).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The next message that is about us.
    async fn hear(&mut self) -> Result<Message, Failure> {
        loop {
            match self.next().await? {
                Message::NoticeResponse(_)
                | Message::ParameterStatus(_)
                | Message::NotificationResponse(_)
                | Message::BackendKeyData(_) => {}
                message => return Ok(message),
            }
        }
    }

    async fn next(&mut self) -> Result<Message, Failure> {
        loop {
            let header = Header::parse(self.inbox.bytes).map_err(|_| self.malformed())?;
            // So other protocols are told from messages that have not come.
            if header
                .is_some_and(|header| usize::try_from(header.len()).is_ok_and(|len| len > LONGEST))
            {
                return Err(self.malformed());
            }
            let saw = Saw::beginning(self.inbox.bytes);
            match Message::parse(self.inbox.bytes) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => self.inbox.rest(self.stream).await?,
                Err(_) => return Err(Failure::Protocol(MALFORMED.into(), saw)),
            }
        }
    }

    fn malformed(&self) -> Failure {
        Failure::garbage(MALFORMED, self.inbox.bytes)
    }

    async fn start_up(&mut self, user: &str, database: &str) -> Result<(), Failure> {
        let parameters = [
            ("user", user),
            ("database", database),
            ("application_name", APPLICATION),
        ];
        self.say(|to| frontend::startup_message(parameters, to))
            .await
    }

    /// Until the server waits for a question.
    async fn log_in(&mut self, login: &Login) -> Result<(), Failure> {
        self.start_up(&login.user, &login.database).await?;
        match self.hear().await? {
            Message::AuthenticationOk => return self.ready().await,
            Message::AuthenticationCleartextPassword => {
                let password = password(login).await?;
                self.say(|to| frontend::password_message(&password, to))
                    .await?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = password(login).await?;
                let hash = md5_hash(login.user.as_bytes(), &password, body.salt());
                self.say(|to| frontend::password_message(hash.as_bytes(), to))
                    .await?;
            }
            Message::AuthenticationSasl(body) => self.scram(login, &body).await?,
            Message::ErrorResponse(body) => return Err(ServerError::of(&body)?.into()),
            message if asks_who_we_are(&message) => {
                let note = "it wants GSSAPI, SSPI or the like";
                return Err(Failure::mismatch(Reason::Credentials, note, b""));
            }
            message => return Err(out_of_turn(&message)),
        }
        match self.hear().await? {
            Message::AuthenticationOk => self.ready().await,
            Message::ErrorResponse(body) => Err(ServerError::of(&body)?.into()),
            message => Err(out_of_turn(&message)),
        }
    }

    async fn scram(&mut self, login: &Login, body: &AuthenticationSaslBody) -> Outcome {
        let mut offered = body.mechanisms();
        let mut found = false;
        while let Some(mechanism) = offered.next().map_err(broken)? {
            found |= mechanism == SCRAM_SHA_256;
        }
        if !found {
            let note = "it wants SASL, and not by SCRAM-SHA-256";
            return Err(Failure::mismatch(Reason::Credentials, note, b""));
        }
        let password = password(login).await?;
        let mut scram = ScramSha256::new(&password, ChannelBinding::unsupported());
        self.say(|to| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), to))
            .await?;
        let challenge = match self.hear().await? {
            Message::AuthenticationSaslContinue(body) => body.data().to_vec(),
            Message::ErrorResponse(body) => return Err(ServerError::of(&body)?.into()),
            message => return Err(out_of_turn(&message)),
        };
        // Thousands of rounds: other checks shall not wait for them.
        let hashed = tokio::task::spawn_blocking(move || {
            scram.update(&challenge)?;
            Ok(scram)
        });
        let mut scram = hashed
            .await
            .map_err(|error| Failure::Local(error.to_string().into()))?
            .map_err(broken)?;
        self.say(|to| frontend::sasl_response(scram.message(), to))
            .await?;
        match self.hear().await? {
            Message::AuthenticationSaslFinal(body) => {
                scram.finish(body.data()).map_err(|_: std::io::Error| {
                    let note = "it does not know the password itself";
                    Failure::mismatch(Reason::Credentials, note, b"")
                })
            }
            Message::ErrorResponse(body) => Err(ServerError::of(&body)?.into()),
            message => Err(out_of_turn(&message)),
        }
    }

    async fn ready(&mut self) -> Result<(), Failure> {
        match self.hear().await? {
            Message::ReadyForQuery(_) => Ok(()),
            Message::ErrorResponse(body) => Err(ServerError::of(&body)?.into()),
            message => Err(out_of_turn(&message)),
        }
    }

    async fn in_recovery(&mut self) -> Result<bool, Failure> {
        self.say(|to| frontend::query("SELECT pg_is_in_recovery()", to))
            .await?;
        let mut answer = None;
        loop {
            match self.hear().await? {
                Message::RowDescription(_) | Message::CommandComplete(_) => {}
                Message::DataRow(row) if answer.is_none() => answer = Some(truth(&row)?),
                // The last word on a connection that the server ends, else one more follows.
                Message::ErrorResponse(body) => return Err(ServerError::of(&body)?.into()),
                Message::ReadyForQuery(_) => {
                    return answer.ok_or_else(|| Failure::protocol("an answer without a row"));
                }
                message => return Err(out_of_turn(&message)),
            }
        }
    }
}

async fn password(login: &Login) -> Result<Vec<u8>, Failure> {
    match &login.password {
        Some(secret) => secret::password(secret).await,
        None => Err(Failure::mismatch(
            Reason::Credentials,
            "it wants a password, and none is configured",
            b"",
        )),
    }
}

/// One column, `t` or `f`.
fn truth(row: &DataRowBody) -> Result<bool, Failure> {
    let columns: Vec<_> = row.ranges().collect().map_err(broken)?;
    let value = match &columns[..] {
        [Some(range)] => row.buffer().get(range.clone()),
        _ => None,
    };
    match value {
        Some(b"t") => Ok(true),
        Some(b"f") => Ok(false),
        _ => Err(Failure::mismatch(
            Reason::Answer,
            "neither in recovery nor not",
            row.buffer(),
        )),
    }
}

fn broken(error: std::io::Error) -> Failure {
    Failure::protocol(format!("a broken message of PostgreSQL: {error}"))
}

fn out_of_turn(message: &Message) -> Failure {
    let what = match message {
        Message::AuthenticationOk => "a welcome",
        Message::DataRow(_) => "a second row",
        Message::ReadyForQuery(_) => "the end of an answer",
        message if asks_who_we_are(message) => "a question for a password",
        _ => "a message",
    };
    Failure::protocol(format!("{what} out of turn"))
}

/// What the server told.
#[derive(Debug)]
struct ServerError {
    severity: String,
    code: String,
    message: String,
}

impl ServerError {
    fn of(body: &ErrorResponseBody) -> Result<Self, Failure> {
        let mut error = Self {
            severity: String::new(),
            code: String::new(),
            message: String::new(),
        };
        let mut fields = body.fields();
        while let Some(field) = fields.next().map_err(broken)? {
            let text = readable(field.value_bytes());
            match field.type_() {
                // `V` is the same in English (PostgreSQL 9.6), and comes later.
                b'S' | b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                _ => {}
            }
        }
        Ok(error)
    }

    /// By SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    fn reason(&self) -> Reason {
        match self.code.as_str() {
            // cannot_connect_now; admin_shutdown, crash_shutdown.
            "57P03" | "57P01" | "57P02" => Reason::Starting,
            // invalid_authorization_specification, invalid_password, insufficient_privilege.
            code if code.starts_with("28") || code == "42501" => Reason::Credentials,
            // undefined_function: a server before 9.0, or something else that speaks this.
            "42883" => Reason::Unimplemented,
            _ => Reason::Error,
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let reason = error.reason();
        let ServerError {
            severity,
            code,
            message,
        } = error;
        Self::mismatch(reason, format!("{severity} {code} {message}"), b"")
    }
}

#[cfg(test)]
#[path = "postgres_tests.rs"]
mod tests;
