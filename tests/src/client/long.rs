//! A long connection: a websocket that hears the server's ticks and asks for echoes.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Error as WsError, Message, error::ProtocolError},
};

use super::request::runtime;
use crate::{Namespace, until, wait::patience};

/// Longer than a packet, so that what the kernel segments and merges is steered too.
const ECHO_BYTES: usize = 20_000;

/// How the connection ended.
#[derive(Clone, Debug)]
pub struct End {
    pub at: Instant,
    /// What the client's socket said: `reset`, `closed`, or an error.
    pub how: String,
}

/// The error at the bottom, in a word if it is a usual one.
fn word(error: &anyhow::Error) -> String {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::ConnectionReset => "reset".to_owned(),
                io::ErrorKind::UnexpectedEof => "closed".to_owned(),
                _ => error.to_string(),
            };
        }
        if let Some(WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake)) =
            cause.downcast_ref::<WsError>()
        {
            // Tungstenite's word for an end of file.
            return "closed".to_owned();
        }
        if let Some(WsError::Io(error)) = cause.downcast_ref::<WsError>()
            && error.kind() == io::ErrorKind::ConnectionReset
        {
            return "reset".to_owned();
        }
    }
    format!("{error:#}")
}

#[derive(Default)]
struct Told {
    server: Option<String>,
    ticks: u64,
    echoes: u64,
    /// Ticks that were not the next one.
    gaps: u64,
    end: Option<End>,
}

/// A running websocket.
pub struct Long {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Long {
    /// Opens it; open when this returns. `speak`: how often the client sends.
    pub fn open(from: &Arc<Namespace>, to: SocketAddr, speak: Duration) -> Result<Self> {
        let told = Arc::new(Mutex::new(Told::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (told, stop) = (Arc::clone(&told), Arc::clone(&stop));
            from.thread(move || {
                let outcome = runtime()?.block_on(converse(to, speak, &told, &stop));
                let how = match outcome {
                    Ok(()) => "closed".to_owned(),
                    Err(error) => word(&error),
                };
                if !stop.load(Ordering::Relaxed) {
                    locked(&told).end = Some(End {
                        at: Instant::now(),
                        how,
                    });
                }
                Ok(())
            })
        };
        let long = Self {
            told,
            stop,
            thread: Some(thread),
        };
        until("the websocket to open", || {
            if let Some(end) = long.end() {
                bail!("{}", end.how);
            }
            long.server().context("not open")
        })?;
        Ok(long)
    }

    /// The server at the other end.
    pub fn server(&self) -> Option<String> {
        locked(&self.told).server.clone()
    }

    /// Ticks and echoes heard.
    pub fn heard(&self) -> (u64, u64) {
        let told = locked(&self.told);
        (told.ticks, told.echoes)
    }

    /// How it ended, if it did.
    pub fn end(&self) -> Option<End> {
        locked(&self.told).end.clone()
    }

    /// Waits until it ended.
    pub fn wait_end(&self) -> Result<End> {
        until("the long connection to end", || {
            self.end().context("still open")
        })
    }

    /// Waits for news in both directions and fails if the connection ended or lost a tick.
    pub fn check_alive(&self) -> Result<()> {
        let before = self.heard();
        until("ticks and echoes", || {
            let (ticks, echoes) = self.heard();
            (ticks > before.0 + 1 && echoes > before.1 + 1)
                .then_some(())
                .context("silence")
        })?;
        let told = locked(&self.told);
        if let Some(end) = &told.end {
            bail!("the long connection ended: {}", end.how);
        }
        if told.gaps > 0 {
            bail!("the long connection lost {} ticks", told.gaps);
        }
        Ok(())
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn locked(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn converse(
    to: SocketAddr,
    speak: Duration,
    told: &Mutex<Told>,
    stop: &AtomicBool,
) -> Result<()> {
    let stream = TcpStream::connect(to).await.context("cannot connect")?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let (socket, _) = client_async(format!("ws://{to}/websocket"), stream)
        .await
        .context("no websocket")?;
    let (mut sink, mut stream) = socket.split();
    let echo = "echo ".repeat(ECHO_BYTES / 5);
    // Beside each other: the server hears no more while its echoes find no room here.
    let speaking = async {
        let mut beat = interval(patience(speak));
        // What a stall held back is not made up for.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let message = Message::text(echo.as_str());
            sink.send(message).await.context("cannot send")?;
        }
    };
    let hearing = async {
        let mut next_tick = 0_u64;
        while let Some(message) = stream.next().await {
            let message = message.context("cannot receive")?;
            let Ok(text) = message.to_text() else {
                continue;
            };
            let mut told = locked(told);
            if told.server.is_none() {
                told.server = Some(text.to_owned());
            } else if text == echo {
                told.echoes += 1;
            } else if let Some(tick) = text.strip_prefix("tick ") {
                let tick: u64 = tick.parse().context("a tick has a number")?;
                told.gaps += u64::from(tick != next_tick);
                next_tick = tick + 1;
                told.ticks += 1;
            }
        }
        Ok(())
    };
    let stopped = async {
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        outcome = speaking => outcome,
        outcome = hearing => outcome,
        () = stopped => Ok(()),
    }
}
