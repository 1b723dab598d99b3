//! An open loop that is precise and cheap: requests begin at their time, each on a new
//! connection, whatever became of those before, beside long connections that are
//! watched. One thread, one epoll, one timer; no task, no lock, no wake-up a request.
//!
//! It judges itself: when a request was due and when it began are two moments, and
//! stretches in which the thread did not run ([`Gap`]) are written down, so that what
//! the generator itself was late with can be told from what was slow.
//!
//! The thread asks for the lowest real-time priority, else it would measure how the
//! scheduler shares two CPUs; [`Record::realtime`] says whether it got it.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        prctl,
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket,
            sockopt::{Linger, TcpNoDelay},
        },
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};

use super::request::{Failure, head};
use crate::Namespace;

/// A stretch without the thread that is longer than this is written down.
pub const GAP: Duration = Duration::from_millis(2);

/// What is asked of whom, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    pub to: SocketAddr,
    /// From the beginning of one request to that of the next.
    pub period: Duration,
    /// Requests that are not answered by then are given up.
    pub patience: Duration,
    /// Long connections that say something once and are silent then.
    pub idle: usize,
    /// Long connections that ask again and again.
    pub active: usize,
    /// In how many periods each of those asks once.
    pub speak: usize,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Shot {
    /// When it was due.
    pub due: Instant,
    /// When `connect()` was called.
    pub begun: Instant,
    pub connected: Option<Instant>,
    /// When the answer was whole, or the failure was told; when it was given up.
    pub ended: Instant,
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By the server of that name.
    Answered(String),
    Failed(Failure),
    /// Given up, or not answered when the run ended.
    Lost,
}

impl Outcome {
    pub fn by(&self, name: &str) -> bool {
        matches!(self, Self::Answered(by) if by == name)
    }
}

/// One long connection.
#[derive(Clone, Debug)]
pub struct Held {
    pub idle: bool,
    /// Who answered first, and when.
    pub served: Option<(String, Instant)>,
    /// When the client was told that it is over, and how.
    pub ended: Option<(Instant, String)>,
}

/// The thread should have run at `due` and did at `ran`.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    pub due: Instant,
    pub ran: Instant,
}

/// All that was seen.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order of beginning.
    pub shots: Vec<Shot>,
    pub held: Vec<Held>,
    pub gaps: Vec<Gap>,
    pub realtime: bool,
}

/// A running loop.
pub struct OpenLoop {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Record>>>,
}

impl OpenLoop {
    /// Starts it.
    pub fn start(from: &Arc<Namespace>, course: Course) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            from.thread(move || {
                let realtime = hurry();
                let mut record = Generator::new(course)?.run(&stop)?;
                record.realtime = realtime;
                Ok(record)
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Begins no request any more, waits for those that are pending as long as the
    /// patience lasts, returns all.
    pub fn stop(mut self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs until here")?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for OpenLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its namespace must not outlive the lab; its panic was or will be told.
            thread.join().ok();
        }
    }
}

/// Wakes this thread at once when its time has come; says whether before all others.
fn hurry() -> bool {
    prctl::set_timerslack(1).ok();
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is a live sched_param; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) == 0 }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Connecting,
    /// Asked, the answer is not whole.
    Asked,
    /// A request that was answered; the server closes next, so that the port is free.
    Answered,
    /// A long connection between two answers.
    Silent,
    Over,
}

/// Whose a connection is: an index of the record.
#[derive(Clone, Copy)]
enum Owner {
    Shot(usize),
    Held(usize),
}

struct Conn {
    stream: TcpStream,
    owner: Owner,
    step: Step,
    heard: Vec<u8>,
    /// Of the place in the table: events of those before are not its.
    age: u32,
}

struct Generator {
    course: Course,
    epoll: Epoll,
    timer: TimerFd,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    ages: u32,
    /// Shots that may have to be given up, with their places, oldest first.
    waiting: VecDeque<(usize, u64)>,
    /// Shots that are neither answered nor failed.
    pending: usize,
    /// Places of the active long connections.
    active: Vec<u64>,
    record: Record,
    once: Vec<u8>,
    again: Vec<u8>,
}

/// The timer's, which no connection has.
const TIMER: u64 = u64::MAX;

impl Generator {
    fn new(course: Course) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )
        .context("no timer")?;
        epoll
            .add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER))
            .context("cannot wait for a timer")?;
        let ask = |connection: &str| {
            format!(
                "GET / HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n",
                course.to
            )
            .into_bytes()
        };
        Ok(Self {
            course,
            epoll,
            timer,
            conns: Vec::new(),
            free: Vec::new(),
            ages: 0,
            waiting: VecDeque::new(),
            pending: 0,
            active: Vec::new(),
            record: Record::default(),
            once: ask("close"),
            again: ask("keep-alive"),
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Record> {
        for n in 0..self.course.idle + self.course.active {
            let idle = n < self.course.idle;
            self.record.held.push(Held {
                idle,
                served: None,
                ended: None,
            });
            let place = self.open(Owner::Held(n))?;
            if !idle {
                self.active.push(place);
            }
        }
        // Before the timer is set: it never goes off too early for a request.
        let mut due = Instant::now() + self.course.period;
        self.timer
            .set(
                Expiration::Interval(TimeSpec::from_duration(self.course.period)),
                TimerSetTimeFlags::empty(),
            )
            .context("cannot set a timer")?;
        let mut beat = 0_usize;
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, 100_u8) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait"),
            };
            for event in &events[..count] {
                if event.data() == TIMER {
                    // How often it went off is told by the clock, too.
                    self.timer.wait().ok();
                } else {
                    self.progress(event.data(), event.events());
                }
            }
            let now = Instant::now();
            if due + GAP < now {
                self.record.gaps.push(Gap { due, ran: now });
            }
            let stopping = stop.load(Ordering::Relaxed);
            while due <= now {
                if !stopping {
                    self.begin(due)?;
                    self.speak(beat);
                }
                beat += 1;
                due += self.course.period;
            }
            self.give_up(now);
            if stopping && self.pending == 0 {
                return Ok(self.record);
            }
        }
    }

    /// A connection that begins to connect; returns its key.
    fn open(&mut self, owner: Owner) -> Result<u64> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.ages = self.ages.wrapping_add(1);
        let key = u64::from(self.ages) << 32 | place as u64;
        match self.connect(key) {
            Ok(stream) => {
                self.conns[place] = Some(Conn {
                    stream,
                    owner,
                    step: Step::Connecting,
                    heard: Vec::new(),
                    age: self.ages,
                });
            }
            Err(error) => {
                self.free.push(place);
                // Without descriptors or ports nothing is measured any more.
                if !matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                ) {
                    return Err(error).context("cannot begin a connection");
                }
                self.fail(owner, Failure::from(error), Instant::now());
            }
        }
        Ok(key)
    }

    fn connect(&self, key: u64) -> io::Result<TcpStream> {
        let family = match self.course.to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
        setsockopt(&stream, TcpNoDelay, &true)?;
        match connect(stream.as_raw_fd(), &SockaddrStorage::from(self.course.to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let all = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.epoll.add(stream.as_fd(), EpollEvent::new(all, key))?;
        Ok(stream)
    }

    fn begin(&mut self, due: Instant) -> Result<()> {
        let begun = Instant::now();
        let shot = self.record.shots.len();
        self.record.shots.push(Shot {
            due,
            begun,
            connected: None,
            ended: begun,
            outcome: Outcome::Lost,
        });
        self.pending += 1;
        let key = self.open(Owner::Shot(shot))?;
        self.waiting.push_back((shot, key));
        Ok(())
    }

    /// Those of the active connections whose turn it is ask, if they have been answered.
    fn speak(&mut self, beat: usize) {
        let turn = beat % self.course.speak.max(1);
        for n in 0..self.active.len() {
            if n * self.course.speak / self.active.len() != turn {
                continue;
            }
            let key = self.active[n];
            if let Some(conn) = self.conn(key)
                && conn.step == Step::Silent
            {
                conn.step = Step::Asked;
                conn.heard.clear();
                self.say(key);
            }
        }
    }

    fn conn(&mut self, key: u64) -> Option<&mut Conn> {
        let place = usize::try_from(key & u64::from(u32::MAX)).ok()?;
        self.conns
            .get_mut(place)?
            .as_mut()
            .filter(|conn| u64::from(conn.age) == key >> 32)
    }

    /// Sends the request, which always fits into an empty send buffer.
    fn say(&mut self, key: u64) {
        let Some(mut conn) = self.take(key) else {
            return;
        };
        let text = match conn.owner {
            Owner::Shot(_) => &self.once,
            Owner::Held(_) => &self.again,
        };
        match conn.stream.write_all(text) {
            Ok(()) => self.put(key, conn),
            Err(error) => self.end(key, conn, Failure::from(error)),
        }
    }

    /// Out of the table, to be put back or to be ended.
    fn take(&mut self, key: u64) -> Option<Conn> {
        self.conn(key)?;
        self.conns[(key & u64::from(u32::MAX)) as usize].take()
    }

    fn put(&mut self, key: u64, conn: Conn) {
        self.conns[(key & u64::from(u32::MAX)) as usize] = Some(conn);
    }

    /// The connection is over, whatever it was about.
    fn end(&mut self, key: u64, conn: Conn, failure: Failure) {
        self.free.push((key & u64::from(u32::MAX)) as usize);
        if !matches!(conn.step, Step::Answered | Step::Over) {
            self.fail(conn.owner, failure, Instant::now());
        }
    }

    fn fail(&mut self, owner: Owner, failure: Failure, now: Instant) {
        match owner {
            Owner::Shot(shot) => {
                let shot = &mut self.record.shots[shot];
                shot.ended = now;
                shot.outcome = Outcome::Failed(failure);
                self.pending -= 1;
            }
            Owner::Held(held) => {
                let how = format!("{failure:?}").to_lowercase();
                self.record.held[held].ended = Some((now, how));
            }
        }
    }

    /// Something happened on a connection.
    fn progress(&mut self, key: u64, events: EpollFlags) {
        let Some(mut conn) = self.take(key) else {
            return;
        };
        if conn.step == Step::Connecting {
            if let Ok(Some(error)) | Err(error) = conn.stream.take_error() {
                self.end(key, conn, Failure::from(error));
                return;
            }
            if !events.contains(EpollFlags::EPOLLOUT) {
                self.put(key, conn);
                return;
            }
            conn.step = Step::Asked;
            if let Owner::Shot(shot) = conn.owner {
                self.record.shots[shot].connected = Some(Instant::now());
            }
            self.put(key, conn);
            self.say(key);
            return;
        }
        match self.read(&mut conn) {
            Ok(()) => self.put(key, conn),
            Err(failure) => self.end(key, conn, failure),
        }
    }

    /// Reads all there is; fails at its end.
    fn read(&mut self, conn: &mut Conn) -> std::result::Result<(), Failure> {
        let mut buffer = [0; 2048];
        loop {
            match conn.stream.read(&mut buffer) {
                Ok(0) => return Err(Failure::Closed),
                Ok(length) => {
                    conn.heard.extend_from_slice(&buffer[..length]);
                    if conn.step == Step::Asked
                        && let Some(name) = answer(&conn.heard, self.course.to)?
                    {
                        self.answered(conn, name);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::from(error)),
            }
        }
    }

    fn answered(&mut self, conn: &mut Conn, name: String) {
        let now = Instant::now();
        match conn.owner {
            Owner::Shot(shot) => {
                let shot = &mut self.record.shots[shot];
                shot.ended = now;
                shot.outcome = Outcome::Answered(name);
                self.pending -= 1;
                conn.step = Step::Answered;
            }
            Owner::Held(held) => {
                self.record.held[held].served.get_or_insert((name, now));
                conn.step = Step::Silent;
            }
        }
    }

    /// Gives up those that have waited for too long.
    fn give_up(&mut self, now: Instant) {
        while let Some((shot, key)) = self.waiting.front().copied() {
            if self.record.shots[shot].begun + self.course.patience > now {
                return;
            }
            self.waiting.pop_front();
            let Some(mut conn) = self.take(key) else {
                continue;
            };
            self.free.push((key & u64::from(u32::MAX)) as usize);
            if conn.step != Step::Answered {
                conn.step = Step::Over;
                self.record.shots[shot].ended = now;
                self.pending -= 1;
                // By RST, so that whoever stands between lets go of it as well.
                let at_once = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&conn.stream, Linger, &at_once).ok();
            }
        }
    }
}

/// The body of an answer with status 200, once it is whole.
fn answer(heard: &[u8], to: SocketAddr) -> std::result::Result<Option<String>, Failure> {
    let Some((answer, head, length)) = head(heard, to)? else {
        return Ok(None);
    };
    if answer.status != 200 {
        return Err(Failure::Other(format!("status {}", answer.status)));
    }
    Ok(heard
        .get(head..head + length)
        .map(|body| String::from_utf8_lossy(body).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::{Failure, answer};

    #[test]
    fn an_answer_counts_when_it_is_whole() {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nmaster";
        for part in 0..whole.len() {
            assert_eq!(answer(&whole[..part], to), Ok(None), "{part} bytes");
        }
        assert_eq!(answer(whole, to), Ok(Some("master".to_owned())));
        let bad = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(
            answer(bad, to),
            Err(Failure::Other("status 503".to_owned()))
        );
    }
}
