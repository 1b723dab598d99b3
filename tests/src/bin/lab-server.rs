//! A real HTTP/1.1 server that misbehaves on demand.
//!
//! - `/status` answers `{"version":...}`; what it answers is changed by lines on
//!   standard input: `status CODE`, `body TEXT`, `delay MILLISECONDS`, `behave`.
//!   Each is confirmed by `done: LINE`.
//! - `/websocket` is a websocket: the server's name first, a tick every 20 ms,
//!   and an echo of what it is sent.
//! - `/big` answers a mebibyte.
//! - Every other path answers the server's name, and the client's address in X-Peer.
//!
//! It ends with its standard input.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures_util::{SinkExt, StreamExt};
use lab::wait::patience;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

#[derive(Parser)]
struct Args {
    /// What `/` answers
    #[arg(long)]
    name: String,
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
}

/// How `/status` behaves.
#[derive(Clone)]
struct Mood {
    status: u16,
    body: String,
    delay: Duration,
}

impl Default for Mood {
    fn default() -> Self {
        Self {
            status: 200,
            body: r#"{"version":"1.0"}"#.to_owned(),
            delay: Duration::ZERO,
        }
    }
}

type SharedMood = Arc<Mutex<Mood>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mood = SharedMood::default();
    let name: Arc<str> = args.name.into();
    for address in args.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        tokio::spawn(serve(listener, Arc::clone(&name), Arc::clone(&mood)));
    }
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await.context("standard input")? {
        obey(
            &order,
            &mut mood.lock().unwrap_or_else(PoisonError::into_inner),
        )?;
        println!("done: {order}");
    }
    Ok(())
}

fn obey(order: &str, mood: &mut Mood) -> Result<()> {
    match order.split_once(' ') {
        Some(("status", code)) => mood.status = code.parse().context("status")?,
        Some(("body", text)) => text.clone_into(&mut mood.body),
        Some(("delay", millis)) => {
            mood.delay = Duration::from_millis(millis.parse().context("delay")?);
        }
        None if order == "behave" => *mood = Mood::default(),
        _ => bail!("unknown order {order:?}"),
    }
    Ok(())
}

async fn serve(listener: TcpListener, name: Arc<str>, mood: SharedMood) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (name, mood) = (Arc::clone(&name), Arc::clone(&mood));
                tokio::spawn(async move {
                    // A connection that breaks is the client's business.
                    converse(stream, peer, &name, &mood).await.ok();
                });
            }
            // Out of descriptors: others will close theirs.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

struct Request {
    path: String,
    head_only: bool,
    close: bool,
    websocket_key: Option<String>,
    /// Bytes of the buffer that were this request.
    length: usize,
}

fn parse(buffer: &[u8]) -> Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(buffer)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .and_then(|header| std::str::from_utf8(header.value).ok())
    };
    Ok(Some(Request {
        path: request.path.unwrap_or("/").to_owned(),
        head_only: request.method == Some("HEAD"),
        close: header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        websocket_key: header("sec-websocket-key").map(ToOwned::to_owned),
        length,
    }))
}

async fn converse(
    mut stream: TcpStream,
    peer: SocketAddr,
    name: &str,
    mood: &SharedMood,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let Some(request) = parse(&buffer)? else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        buffer.drain(..request.length);
        let (status, kind, body) = match request.path.as_str() {
            "/websocket" => {
                let Some(key) = &request.websocket_key else {
                    bail!("not an upgrade to a websocket");
                };
                return websocket(stream, key, name).await;
            }
            "/status" => {
                let mood = mood.lock().unwrap_or_else(PoisonError::into_inner).clone();
                sleep(mood.delay).await;
                (mood.status, "application/json", mood.body)
            }
            "/big" => (200, "text/plain", "0123456789abcdef".repeat(1 << 16)),
            _ => (200, "text/plain", name.to_owned()),
        };
        let mut answer = format!(
            "HTTP/1.1 {status} Told\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nX-Peer: {peer}\r\n{}\r\n",
            body.len(),
            if request.close {
                "Connection: close\r\n"
            } else {
                ""
            },
        );
        if !request.head_only {
            answer.push_str(&body);
        }
        stream.write_all(answer.as_bytes()).await?;
        if request.close {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

async fn websocket(mut stream: TcpStream, key: &str, name: &str) -> Result<()> {
    let accept = derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    socket.send(Message::text(name)).await?;
    let mut ticks = interval(patience(Duration::from_millis(20)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut count = 0_u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                socket.send(Message::text(format!("tick {count}"))).await?;
                count += 1;
            }
            message = socket.next() => match message {
                Some(message) => {
                    let message = message?;
                    if message.is_text() {
                        socket.send(message).await?;
                    }
                }
                None => return Ok(()),
            },
        }
    }
}
