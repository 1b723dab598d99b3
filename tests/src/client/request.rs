//! One HTTP request, on a connection of its own or on one that is kept.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{Namespace, wait::patience};

/// How long a client waits for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The body; the server's name for every path but `/status`.
    pub body: String,
    /// The client as the server sees it, if the server tells.
    pub peer: Option<String>,
    /// The client as it sees itself.
    pub local: SocketAddr,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Refused,
    Reset,
    /// Nothing within the client's patience.
    Timeout,
    /// Closed before the answer was whole.
    Closed,
    Unreachable,
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// A request on a new connection, which the server closes.
pub async fn request(
    to: SocketAddr,
    path: &str,
    patience: Duration,
) -> std::result::Result<Answer, Failure> {
    let whole = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        exchange(&mut stream, to, path, "close").await
    };
    timeout(patience, whole)
        .await
        .unwrap_or(Err(Failure::Timeout))
}

/// [`request`] from a namespace, waiting for it.
pub fn get(
    from: &Namespace,
    to: SocketAddr,
    path: &str,
) -> Result<std::result::Result<Answer, Failure>> {
    from.run(|| Ok(runtime()?.block_on(request(to, path, patience(ANSWER)))))
}

/// A connection that is kept over requests.
pub struct KeepAlive {
    runtime: tokio::runtime::Runtime,
    stream: TcpStream,
    to: SocketAddr,
}

impl KeepAlive {
    /// Connects from a namespace. A socket stays in the namespace it was made in.
    pub fn connect(from: &Arc<Namespace>, to: SocketAddr) -> Result<Self> {
        let runtime = runtime()?;
        let stream = from.run(|| {
            let stream = std::net::TcpStream::connect_timeout(&to, patience(ANSWER))
                .with_context(|| format!("cannot connect to {to}"))?;
            stream.set_nonblocking(true).context("non-blocking")?;
            Ok(stream)
        })?;
        let stream = {
            let _context = runtime.enter();
            TcpStream::from_std(stream).context("cannot poll the connection")?
        };
        Ok(Self {
            runtime,
            stream,
            to,
        })
    }

    /// One request on it.
    pub fn get(&mut self, path: &str) -> std::result::Result<Answer, Failure> {
        self.runtime.block_on(async {
            timeout(
                patience(ANSWER),
                exchange(&mut self.stream, self.to, path, "keep-alive"),
            )
            .await
            .unwrap_or(Err(Failure::Timeout))
        })
    }
}

/// A runtime on the calling thread, whose sockets are made in its namespace.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow!("cannot make a runtime: {error}"))
}

async fn exchange(
    stream: &mut TcpStream,
    to: SocketAddr,
    path: &str,
    connection: &str,
) -> std::result::Result<Answer, Failure> {
    let local = stream.local_addr()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::new();
    let (mut answer, head, length) = loop {
        if let Some(parsed) = head(&buffer, local)? {
            break parsed;
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(Failure::Closed);
        }
    };
    while buffer.len() < head + length {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(Failure::Closed);
        }
    }
    if connection == "close" {
        // The server closes first: the client's port is free at once.
        let mut rest = [0; 64];
        while stream.read(&mut rest).await? > 0 {}
    }
    answer.body = String::from_utf8_lossy(&buffer[head..head + length]).into_owned();
    Ok(answer)
}

/// The answer without its body, the length of its head and of its body.
pub(super) fn head(
    buffer: &[u8],
    local: SocketAddr,
) -> std::result::Result<Option<(Answer, usize, usize)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let bad = |what: String| Failure::Other(format!("not HTTP: {what}"));
    let httparse::Status::Complete(head) = response
        .parse(buffer)
        .map_err(|error| bad(error.to_string()))?
    else {
        return Ok(None);
    };
    let value = |name: &str| {
        response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| String::from_utf8_lossy(header.value).into_owned())
    };
    let length = value("content-length")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad("no content-length".to_owned()))?;
    let answer = Answer {
        status: response.code.unwrap_or_default(),
        body: String::new(),
        peer: value("x-peer"),
        local,
    };
    Ok(Some((answer, head, length)))
}
