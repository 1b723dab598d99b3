//! The server that is checked: threads with an epoll and a listener on every address each, at ports
//! that follow each other.
//!
//! It stands for all endpoints, since each has an address of its own (10.50.0.0/16 is
//! local to its host as a whole), and it is the judge of when checks come: the kernel
//! stamps each request as it arrives, so neither the server's own lateness nor what a
//! checker says of itself has any part in it.
//!
//! It answers HTTP with `version` and Redis with PONG, by the first byte.

use std::{
    io::{self, BufRead},
    net::SocketAddrV4,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        socket::{
            AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn,
            accept4, bind, getsockname, listen, recvmsg, send, setsockopt, socket, sockopt,
        },
    },
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use crate::gaps::Gaps;

const BODY_CLOSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nversion 1";
const BODY_KEEP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nversion 1";
const PONG: &[u8] = b"+PONG\r\n";
/// Not a descriptor.
const LISTENER: u64 = u64::MAX;
/// What an address is known by: its last two bytes.
const ADDRESSES: usize = 1 << 16;

/// What was counted since `begin`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counted {
    pub window_ns: u64,
    pub connections: u64,
    pub requests: u64,
    /// Addresses that a request came to.
    pub endpoints: usize,
    /// From one request to the next to the same address.
    pub gap_p50_us: Option<f64>,
    pub gap_p99_us: Option<f64>,
    /// Those that had not ended count for this one.
    pub gap_max_us: Option<f64>,
}

struct Stats {
    begun_ns: u64,
    connections: u64,
    requests: u64,
    /// When the last request came to each address; 0 if none did.
    last_ns: Vec<u64>,
    gaps: Gaps,
}

impl Stats {
    fn new() -> Self {
        Self {
            begun_ns: now_ns(),
            connections: 0,
            requests: 0,
            last_ns: vec![0; ADDRESSES],
            gaps: Gaps::new(),
        }
    }

    fn request(&mut self, address: usize, at_ns: u64) {
        if at_ns < self.begun_ns {
            return;
        }
        self.requests += 1;
        let last = std::mem::replace(&mut self.last_ns[address], at_ns);
        if last != 0 {
            self.gaps.add(at_ns.saturating_sub(last));
        }
    }

    /// Adds another thread's, to whose port none of the same addresses belongs.
    fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.requests += other.requests;
        for (last, other) in self.last_ns.iter_mut().zip(&other.last_ns) {
            *last = (*last).max(*other);
        }
        self.gaps.merge(&other.gaps);
    }

    fn seen(&self) -> usize {
        self.last_ns.iter().filter(|last| **last != 0).count()
    }

    fn counted(&self) -> Counted {
        let now = now_ns();
        let came = self.last_ns.iter().filter(|last| **last != 0);
        let open = came.map(|last| now.saturating_sub(*last)).max();
        let us = |ns: u64| ns as f64 / 1e3;
        Counted {
            window_ns: now.saturating_sub(self.begun_ns),
            connections: self.connections,
            requests: self.requests,
            endpoints: self.seen(),
            gap_p50_us: self.gaps.quantile(0.5).map(us),
            gap_p99_us: self.gaps.quantile(0.99).map(us),
            gap_max_us: self.gaps.max().max(open).map(us),
        }
    }
}

/// Wall clock, as the kernel stamps packets by.
fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

type Shared = Arc<Mutex<Stats>>;

fn lock(stats: &Shared) -> MutexGuard<'_, Stats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all of them have counted.
fn sum(all: &[Shared]) -> Stats {
    let mut sum = Stats::new();
    for stats in all {
        let stats = lock(stats);
        sum.begun_ns = sum.begun_ns.min(stats.begun_ns);
        sum.add(&stats);
    }
    sum
}

/// Serves until standard input ends, which brings orders: `begin`, `seen`, `end`.
pub fn serve(at: SocketAddrV4, threads: u16, realtime: bool) -> Result<()> {
    let (mut serving, mut counts) = (Vec::new(), Vec::new());
    for number in 0..threads {
        let listener = open(SocketAddrV4::new(*at.ip(), at.port() + number))?;
        let stats: Shared = Arc::new(Mutex::new(Stats::new()));
        counts.push(Arc::clone(&stats));
        serving.push(thread::spawn(move || {
            if realtime {
                crate::realtime();
            }
            serve_all(&listener, &stats)
        }));
    }
    println!("ready");
    for line in io::stdin().lock().lines() {
        match line.context("stdin")?.as_str() {
            "begin" => {
                counts.iter().for_each(|stats| *lock(stats) = Stats::new());
                println!("begun");
            }
            "seen" => println!("{}", sum(&counts).seen()),
            _ => {
                let counted = serde_json::to_string(&sum(&counts).counted());
                println!("{}", counted.context("figures are JSON")?);
            }
        }
        if let Some(over) = serving.iter().position(|one| one.is_finished()) {
            let over = serving.swap_remove(over);
            return over.join().expect("serving does not panic");
        }
    }
    Ok(())
}

fn open(at: SocketAddrV4) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listener =
        socket(AddressFamily::Inet, SockType::Stream, flags, None).context("no socket")?;
    setsockopt(&listener, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
    // Connections inherit it.
    setsockopt(&listener, sockopt::ReceiveTimestampns, &true).context("SO_TIMESTAMPNS")?;
    bind(listener.as_raw_fd(), &SockaddrIn::from(at)).with_context(|| format!("bind {at}"))?;
    // As many as the host's `somaxconn` lets it be.
    listen(&listener, Backlog::MAXALLOWABLE).context("listen")?;
    Ok(listener)
}

/// A connection, at the place of its descriptor's number.
struct Connection {
    socket: OwnedFd,
    address: usize,
}

fn serve_all(listener: &OwnedFd, stats: &Shared) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
    epoll
        .add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
        .context("cannot wait")?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 512];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    loop {
        let count = match epoll.wait(&mut events, 1000_u16) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("cannot wait"),
        };
        let mut stats = lock(stats);
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept_all(listener, &epoll, &mut connections, &mut stats)?;
                continue;
            }
            let place = &mut connections[event.data() as usize];
            if let Some(connection) = place
                && answer(connection, &mut control, &mut stats).is_none()
            {
                *place = None;
            }
        }
    }
}

fn accept_all(
    listener: &OwnedFd,
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
    stats: &mut Stats,
) -> Result<()> {
    // Those that wait longer must not keep the others waiting.
    for _ in 0..256 {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = match accept4(listener.as_raw_fd(), flags) {
            // SAFETY: accept4 has just returned it, and nobody else knows it.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(Errno::ECONNABORTED | Errno::EINTR) => continue,
            // Whoever has too many open closes some soon.
            Err(Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE) => break,
            Err(error) => return Err(error).context("accept"),
        };
        stats.connections += 1;
        let Ok(address) = getsockname::<SockaddrIn>(socket.as_raw_fd()) else {
            continue;
        };
        let address = u32::from(address.ip()) as usize % ADDRESSES;
        let number = usize::try_from(socket.as_raw_fd()).context("a descriptor")?;
        epoll
            .add(
                socket.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, number as u64),
            )
            .context("epoll")?;
        if connections.len() <= number {
            connections.resize_with(number + 1, || None);
        }
        connections[number] = Some(Connection { socket, address });
    }
    Ok(())
}

/// Answers a request, each of which comes in one piece. `None` if the connection is over.
fn answer(connection: &Connection, control: &mut Vec<u8>, stats: &mut Stats) -> Option<()> {
    let mut bytes = [0; 2048];
    let fd = connection.socket.as_raw_fd();
    control.clear();
    let (length, stamp) = {
        let mut places = [io::IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<()>(fd, &mut places, Some(control), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Some(()),
            Err(_) => return None,
        };
        let stamp = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|one| match one {
                ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                _ => None,
            })
        });
        (message.bytes, stamp)
    };
    let request = &bytes[..length];
    let first = request.first()?;
    let at_ns = stamp.map_or_else(now_ns, |at| at.as_nanos() as u64);
    stats.request(connection.address, at_ns);
    let has = |what: &[u8]| request.windows(what.len()).any(|at| at == what);
    let closes = *first != b'*' && (has(b"HTTP/1.0") || has(b"onnection: close"));
    let bytes = match (first, closes) {
        (b'*', _) => PONG,
        (_, true) => BODY_CLOSE,
        (_, false) => BODY_KEEP,
    };
    let sent = send(fd, bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    (sent.is_ok() && !closes).then_some(())
}
