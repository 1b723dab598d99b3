//! The command line's side of the local API: one question, one answer, blocking.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use bytes::BytesMut;

use super::Answer;
use crate::{
    core::status::Status,
    http1::{Decoder, Limits, Progress},
    reload::Report,
};

/// How long the agent may take; it answers in milliseconds unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Names are looked up before a configuration is applied, and DNS may be slow.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A status of thousands of services fits.
const LIMITS: Limits = Limits {
    head: 64 * 1024,
    body: 64 * 1024 * 1024,
};

/// `GET /v1/status`.
pub fn status(socket: &Path) -> anyhow::Result<Status> {
    let (code, body) = ask(socket, "GET", "/v1/status", b"", TIMEOUT)?;
    if code != 200 {
        bail!("{}", error_of(code, &body));
    }
    serde_json::from_slice(&body).context("the agent's status is of another version")
}

/// `POST /v1/services/NAME/failback`; the endpoint that is selected now.
pub fn failback(socket: &Path, service: &str) -> anyhow::Result<String> {
    let path = format!("/v1/services/{}/failback", percent_encoded(service));
    let (code, body) = ask(socket, "POST", &path, b"", TIMEOUT)?;
    match serde_json::from_slice(&body) {
        Ok(Answer::Selected(endpoint)) if code == 200 => Ok(endpoint),
        _ => bail!("{}", error_of(code, &body)),
    }
}

/// `POST /v1/reload`: what became of it.
pub fn reload(socket: &Path) -> anyhow::Result<Report> {
    report(&ask(socket, "POST", "/v1/reload", b"", RELOAD_TIMEOUT)?)
}

/// `POST /v1/diff`: what this configuration would change.
pub fn diff(socket: &Path, text: &str) -> anyhow::Result<Report> {
    let answer = ask(socket, "POST", "/v1/diff", text.as_bytes(), TIMEOUT)?;
    report(&answer)
}

fn report((code, body): &(u16, Vec<u8>)) -> anyhow::Result<Report> {
    match serde_json::from_slice(body) {
        Ok(report) => Ok(report),
        Err(_) => bail!("{}", error_of(*code, body)),
    }
}

fn error_of(code: u16, body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        Ok(Answer::Error(error)) => error,
        _ => format!("the agent answered with status {code}"),
    }
}

/// Names hold no such characters, but what a person types may.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    body: &[u8],
    patience: Duration,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "no agent is running: there is no socket {shown} (is it another with --socket?)"
        ),
        io::ErrorKind::ConnectionRefused => {
            anyhow!("no agent is running: nobody answers at {shown}")
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!("{shown}: permission denied; the socket belongs to the agent's user")
        }
        _ => anyhow!("connect to {shown}: {error}"),
    })?;
    let talk = || format!("talk to the agent at {shown}");
    stream.set_read_timeout(Some(patience)).with_context(talk)?;
    stream
        .set_write_timeout(Some(patience))
        .with_context(talk)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: probe\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(request.as_bytes()).with_context(talk)?;
    stream.write_all(body).with_context(talk)?;
    let mut decoder = Decoder::new(LIMITS, false);
    let mut input = BytesMut::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let count = match stream.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!(
                    "the agent at {shown} does not answer within {}s",
                    patience.as_secs()
                )
            }
            read => read.with_context(talk)?,
        };
        input.extend_from_slice(&piece[..count]);
        let progress = if count == 0 {
            decoder.close(&input)
        } else {
            decoder.push(&mut input)
        };
        match progress.with_context(talk)? {
            Progress::Done => return Ok((decoder.status(), decoder.body().to_vec())),
            Progress::Full => bail!("the agent's answer is too long"),
            Progress::Head | Progress::Body => {}
        }
    }
}
