//! A connection to an endpoint that is kept open and says nothing.
//!
//! When the process behind it dies, its kernel closes or resets the connection, and
//! the agent knows within one round trip, whatever the interval of the checks. That is
//! a [`Signal`], no verdict: a process that hangs keeps its connections, and a server
//! may close one that is idle. So each end is a reason to check at once, and to connect
//! again after a while ([`Backoff`]).
//!
//! It goes where the checks go. What the endpoint says is read and thrown away, a little
//! at a time: TCP holds back who says much. The kernel's keepalive finds out about a
//! connection that the other end or something between has forgotten; else the sentinel
//! would be blind without knowing it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{signal::Signal, verdict::Kind};

/// Time to connect. No check waits for it.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which the kernel asks whether the other end still knows the connection,
/// and from then on how often.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Bytes that are read at a time, and the time between two reads.
const SIP: usize = 1024;
const PACE: Duration = Duration::from_millis(10);
/// The first time to wait before connecting again.
const FIRST: Duration = Duration::from_millis(10);
/// Least value of the longest.
const LEAST_LONGEST: Duration = Duration::from_secs(1);

/// How many sentinels a process may have that may open so many descriptors: half of them.
/// The other half is for checks, which would be blind without.
pub fn room(descriptors: u64) -> usize {
    usize::try_from(descriptors / 2)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}

/// Watches an endpoint until the task is ended, once there is room for it. `inter` is the
/// interval of its checks, `tell` is called when the connection ends, or cannot be made.
pub async fn run<T: Future<Output = ()>>(
    target: SocketAddr,
    inter: Duration,
    room: Arc<Semaphore>,
    mut tell: impl FnMut(Signal) -> T,
) {
    let Ok(_place) = room.acquire().await else {
        // Closed: nobody shall have one.
        return;
    };
    let mut backoff = Backoff::new(inter);
    loop {
        let (begun, end) = match timeout(CONNECT, connect(target)).await {
            Ok(Ok(stream)) => (Instant::now(), end_of(stream).await),
            Ok(Err(error)) => (Instant::now(), End::failed(error)),
            Err(_) => (Instant::now(), End::failed(io::ErrorKind::TimedOut.into())),
        };
        let lived = begun.elapsed();
        let wait = backoff.after(lived);
        debug!(
            %target,
            ?lived,
            again_in = ?wait,
            "sentinel connection: {}",
            end.text
        );
        if let Some(signal) = end.signal {
            tell(signal).await;
        }
        sleep(wait).await;
    }
}

/// How a connection ended.
struct End {
    /// Nothing if it tells nothing of the endpoint.
    signal: Option<Signal>,
    text: String,
}

impl End {
    fn failed(error: io::Error) -> Self {
        let signal = match Kind::of_io(&error, true) {
            Kind::Local => None,
            Kind::Reset => Some(Signal::SentinelReset),
            _ => Some(Signal::SentinelFailed),
        };
        Self {
            signal,
            text: error.to_string(),
        }
    }
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

async fn end_of(mut stream: TcpStream) -> End {
    let mut heard = [0; SIP];
    loop {
        match stream.read(&mut heard).await {
            Ok(0) => {
                return End {
                    signal: Some(Signal::SentinelClosed),
                    text: "closed".to_owned(),
                };
            }
            Ok(_) => sleep(PACE).await,
            Err(error) => return End::failed(error),
        }
    }
}

/// How long to wait before connecting again: twice as long each time, up to `inter` or
/// a second, whichever is longer; after a connection that lived that long, as in the
/// beginning. So a server that always closes after the same time soon costs no more than
/// one check in that longest time, beside those of the grid.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// `inter` is the interval of the endpoint's checks.
    pub fn new(inter: Duration) -> Self {
        Self {
            next: FIRST,
            longest: inter.max(LEAST_LONGEST),
        }
    }

    /// The time to wait after a connection that lived so long; zero for one that could
    /// not be made.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.longest {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::mpsc, task::AbortHandle};

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_waits_longer_each_time() {
        let mut backoff = Backoff::new(ms(10));
        let waits: Vec<_> = (0..9).map(|_| backoff.after(ms(0)).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(backoff.after(ms(999)), ms(1000));
        assert_eq!(backoff.after(ms(1000)), FIRST);
        assert_eq!(backoff.after(ms(0)), ms(20));
        let mut backoff = Backoff::new(ms(40_000));
        let last = (0..20).map(|_| backoff.after(ms(0))).last();
        assert_eq!(last, Some(ms(40_000)));
    }

    proptest! {
        /// Of those that did not live long, all but the first few wait the longest time.
        #[test]
        fn connections_are_few(
            inter in 1u64..60_000,
            lives in prop::collection::vec(0u64..100_000, 1..200),
        ) {
            let mut backoff = Backoff::new(ms(inter));
            let longest = backoff.longest;
            let few = (longest.as_millis() / FIRST.as_millis()).ilog2() + 1;
            let mut short = 0;
            for lived in lives {
                if ms(lived) >= longest {
                    short = 0;
                }
                let wait = backoff.after(ms(lived));
                prop_assert!(FIRST <= wait && wait <= longest);
                short += 1;
                prop_assert!(short <= few || wait == longest, "{wait:?}, the {short}th");
            }
        }
    }

    #[test]
    fn checks_have_descriptors_left() {
        assert_eq!(room(1024), 512);
        assert_eq!(room(1), 0);
        // RLIM_INFINITY: no more than a semaphore takes.
        let most = room(u64::MAX);
        assert_eq!(Semaphore::new(most).available_permits(), most);
    }

    struct Bench {
        server: TcpListener,
        signals: mpsc::UnboundedReceiver<Signal>,
        task: AbortHandle,
    }

    impl Bench {
        async fn new() -> Self {
            Self::within(&Arc::new(Semaphore::new(1))).await
        }

        async fn within(room: &Arc<Semaphore>) -> Self {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (tx, signals) = mpsc::unbounded_channel();
            let at = server.local_addr().unwrap();
            let tell = move |signal| {
                let _ = tx.send(signal);
                std::future::ready(())
            };
            let task = tokio::spawn(run(at, ms(10), room.clone(), tell)).abort_handle();
            Self {
                server,
                signals,
                task,
            }
        }

        async fn accept(&self) -> TcpStream {
            let accepted = timeout(Duration::from_secs(20), self.server.accept()).await;
            accepted.expect("the sentinel connects").unwrap().0
        }

        async fn signal(&mut self) -> Signal {
            let signal = timeout(Duration::from_secs(20), self.signals.recv()).await;
            signal.expect("the sentinel tells").unwrap()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[tokio::test]
    async fn it_tells_how_its_connection_ended_and_comes_again() {
        let mut bench = Bench::new().await;
        drop(bench.accept().await);
        assert_eq!(bench.signal().await, Signal::SentinelClosed);
        let stream = bench.accept().await;
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(stream);
        assert_eq!(bench.signal().await, Signal::SentinelReset);
        // A server that speaks first, and one that was silent for a while.
        let mut stream = bench.accept().await;
        stream.write_all(&[b'x'; 3 * SIP]).await.unwrap();
        sleep(ms(50)).await;
        bench.signals.try_recv().unwrap_err();
        drop(stream);
        assert_eq!(bench.signal().await, Signal::SentinelClosed);
    }

    #[tokio::test]
    async fn it_tells_that_nobody_listens() {
        let mut bench = Bench::new().await;
        drop(bench.accept().await);
        assert_eq!(bench.signal().await, Signal::SentinelClosed);
        let at = bench.server.local_addr().unwrap();
        // Port 0 of another: this one is left to nobody.
        bench.server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let signal = loop {
            match bench.signal().await {
                // Connected before the listener was closed.
                Signal::SentinelClosed | Signal::SentinelReset => {}
                other => break other,
            }
        };
        assert_eq!(signal, Signal::SentinelFailed, "{at}");
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_for_it() {
        let room = Arc::new(Semaphore::new(1));
        let first = Bench::within(&room).await;
        let _stream = first.accept().await;
        let mut second = Bench::within(&room).await;
        let accepted = timeout(ms(100), second.server.accept()).await;
        assert!(accepted.is_err(), "there is no room");
        drop(first);
        drop(second.accept().await);
        assert_eq!(second.signal().await, Signal::SentinelClosed);
    }

    /// Who floods is held back, and a flood is no end.
    #[tokio::test]
    async fn a_server_that_says_much_is_read_slowly() {
        let mut bench = Bench::new().await;
        let mut stream = bench.accept().await;
        let chunk = vec![b'x'; 64 * 1024];
        let flood = async {
            let mut sent = 0;
            while let Ok(Ok(count)) = timeout(ms(300), stream.write(&chunk)).await {
                sent += count;
            }
            sent
        };
        // Until the buffers are full, which they are after a few megabytes.
        let sent = timeout(Duration::from_secs(20), flood).await;
        assert!(sent.is_ok_and(|sent| sent > 0), "it is not held back");
        bench.signals.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn it_leaves_with_its_task() {
        let bench = Bench::new().await;
        let mut stream = bench.accept().await;
        bench.task.abort();
        let end = timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await;
        assert_eq!(end.expect("the connection is closed").unwrap(), 0);
    }
}
