//! The command line's side of the local API: one question, one answer, blocking.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use bytes::BytesMut;
use serde::de::DeserializeOwned;

use super::api::Said;
use crate::{
    core::{explain, order::Done, status::Status},
    http1::{Decoder, Limits, Progress},
};

/// How long the agent may take; it answers in milliseconds unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A status of thousands of services fits.
const LIMITS: Limits = Limits {
    head: 64 * 1024,
    body: 64 * 1024 * 1024,
};
/// An event is shorter.
const LONGEST_LINE: u64 = 1024 * 1024;

/// `GET /v1/status`.
pub fn status(socket: &Path) -> anyhow::Result<Status> {
    get(socket, "/v1/status")
}

/// `GET /v1/services/NAME/explain`.
pub fn explain(socket: &Path, service: &str) -> anyhow::Result<explain::Service> {
    let path = format!("/v1/services/{}/explain", percent_encoded(service));
    get(socket, &path)
}

/// `POST /v1/services/NAME/` and the rest, with a query.
pub fn order(
    socket: &Path,
    service: &str,
    rest: &[&str],
    query: &[(&str, String)],
) -> anyhow::Result<Done> {
    let mut path = format!("/v1/services/{}", percent_encoded(service));
    for part in rest {
        path += "/";
        path += &percent_encoded(part);
    }
    path += &query_of(query);
    let (code, body) = ask(socket, "POST", &path)?;
    if code != 200 {
        bail!("{}", error_of(code, &body));
    }
    serde_json::from_slice(&body).context("the agent's answer is of another version")
}

/// An answer to a question, with a query.
pub fn get_with<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &[(&str, String)],
) -> anyhow::Result<T> {
    get(socket, &format!("{path}{}", query_of(query)))
}

/// An order that is no service's.
pub fn post_with<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &[(&str, String)],
) -> anyhow::Result<T> {
    let (code, body) = ask(socket, "POST", &format!("{path}{}", query_of(query)))?;
    if code != 200 {
        bail!("{}", error_of(code, &body));
    }
    serde_json::from_slice(&body).context("the agent's answer is of another version")
}

/// Each line of an answer, as it comes, until there are no more or nobody wants more.
pub fn lines(
    socket: &Path,
    path: &str,
    query: &[(&str, String)],
    mut each: impl FnMut(&str) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let talk = || format!("talk to the agent at {}", socket.display());
    let mut stream = connect(socket)?;
    // Of version 1.0, so that the answer is not cut into chunks.
    let request = format!(
        "GET {path}{} HTTP/1.0\r\nHost: probe\r\n\r\n",
        query_of(query)
    );
    stream.write_all(request.as_bytes()).with_context(talk)?;
    let mut reader = BufReader::new(stream);
    let first = line(&mut reader).with_context(talk)?.unwrap_or_default();
    let code = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code: u16 = code.context("the agent's answer is not HTTP")?;
    while line(&mut reader)
        .with_context(talk)?
        .is_some_and(|line| !line.trim_end().is_empty())
    {}
    if code != 200 {
        let mut body = Vec::new();
        let mut rest = reader.take(LONGEST_LINE);
        rest.read_to_end(&mut body).with_context(talk)?;
        bail!("{}", error_of(code, &body));
    }
    // Events come when they come.
    reader.get_ref().set_read_timeout(None).with_context(talk)?;
    while let Some(line) = line(&mut reader).with_context(talk)? {
        if !each(line.trim_end())? {
            break;
        }
    }
    Ok(())
}

fn line(reader: &mut BufReader<UnixStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = reader.by_ref().take(LONGEST_LINE).read_line(&mut line)?;
    Ok((read > 0).then_some(line))
}

fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let (code, body) = ask(socket, "GET", path)?;
    if code != 200 {
        bail!("{}", error_of(code, &body));
    }
    serde_json::from_slice(&body).context("the agent's answer is of another version")
}

fn error_of(code: u16, body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        Ok(Said { error }) => error,
        _ => format!("the agent answered with status {code}"),
    }
}

fn query_of(query: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in query {
        text += if text.is_empty() { "?" } else { "&" };
        text += &format!("{name}={}", percent_encoded(value));
    }
    text
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

fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let shown = socket.display();
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
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
    stream.set_read_timeout(Some(TIMEOUT)).with_context(talk)?;
    stream.set_write_timeout(Some(TIMEOUT)).with_context(talk)?;
    Ok(stream)
}

fn ask(socket: &Path, method: &str, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let shown = socket.display();
    let mut stream = connect(socket)?;
    let talk = || format!("talk to the agent at {shown}");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: probe\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).with_context(talk)?;
    let mut decoder = Decoder::new(LIMITS, false);
    let mut input = BytesMut::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let count = match stream.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!(
                    "the agent at {shown} does not answer within {}s",
                    TIMEOUT.as_secs()
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
