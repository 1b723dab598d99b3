//! A plain conversation as a machine without a task: a connection, or a request by HTTP/1.1 and its
//! answer, over TCP without TLS. It is what nearly all checks are.
//!
//! It says and judges what [`protocol::http`](super::super::protocol::http) and
//! [`protocol::tcp`](super::super::protocol::tcp) do, with the same [`Room`]; only who waits is another.
//! A call never waits: it goes as far as the socket lets it.

use std::{io, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use tokio::time::Instant;

use super::socket::{Connected, Plain};
use crate::{
    config::{Check, HttpCheck, HttpVersion, Keep, Kind as Checked, Reach},
    health::{
        probe::Recipe,
        protocol::http::{Answer, Asked as Judged, Ended, Room, not_sent, request},
        transport::Stage,
        verdict::{Finding, Kind},
    },
};

/// A connection is asked so often whether something came before epoll shall tell.
const HASTE: u8 = 2;
/// Rooms that a lane keeps for answers that come in pieces, or at one time.
const ROOMS: usize = 64;

/// What is asked, and where.
#[derive(Debug)]
pub struct Asks {
    check: Arc<Check>,
    target: SocketAddr,
    timeout: Duration,
    /// Nothing for a plain connection.
    request: Bytes,
}

impl Asks {
    /// Of checks that such a conversation can be: one a service, over TCP as it is.
    pub fn of(recipe: &Recipe) -> Option<Self> {
        let [only] = recipe.check.each() else {
            return None;
        };
        let plain = |reach: &Reach| reach.tls().is_none() && reach.send_proxy().is_none();
        let (reach, request) = match only.kind() {
            Checked::Tcp(tcp) => (tcp.reach(), Bytes::new()),
            Checked::Http(http) if http.version() != HttpVersion::Two && http.redirects() == 0 => {
                let host = http.host().unwrap_or(&recipe.authority);
                (http.reach(), request(http, host))
            }
            _ => return None,
        };
        plain(reach).then(|| Self {
            target: reach.target(recipe.endpoint),
            timeout: only.timeout(),
            check: recipe.check.clone(),
            request,
        })
    }

    /// Time that a conversation may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Does it make a connection for each check, or for nearly each?
    pub fn is_fresh(&self) -> bool {
        self.http().is_none_or(|http| http.keep() == Keep::Fresh)
    }

    fn speaks(&self) -> bool {
        !self.request.is_empty()
    }

    fn http(&self) -> Option<&HttpCheck> {
        match self.check.each().first()?.kind() {
            Checked::Http(http) => Some(http),
            _ => None,
        }
    }
}

/// What all conversations of a lane share.
#[derive(Debug)]
pub struct Desk {
    /// Who tells that something came.
    pub epoll: Epoll,
    /// The lane looks after its connections every moment anyway: who has just asked need not be
    /// told of the answer.
    pub hasty: bool,
    /// Who shall be looked after next.
    pub soon: Vec<Token>,
    /// Who has begun to connect, and asks when all that are due have.
    pub connecting: Vec<Token>,
    /// Checks that are being made.
    pub flying: usize,
    /// Checks that have ended since that was looked at.
    pub made: u32,
    #[expect(
        clippy::vec_box,
        reason = "they move, and conversations shall be small"
    )]
    rooms: Vec<Box<Room>>,
    lines: u32,
}

impl Desk {
    /// A free one.
    pub fn new(epoll: Epoll) -> Self {
        Self {
            epoll,
            hasty: false,
            soon: Vec::new(),
            connecting: Vec::new(),
            flying: 0,
            made: 0,
            rooms: Vec::new(),
            lines: 0,
        }
    }

    fn room(&mut self, http: &HttpCheck) -> Box<Room> {
        let method = http.method();
        let room = self.rooms.pop().filter(|room| room.is_for(method));
        room.unwrap_or_else(|| Box::new(Room::new(method)))
    }

    fn take_back(&mut self, room: impl Into<Option<Box<Room>>>) {
        if self.rooms.len() < ROOMS {
            self.rooms.extend(room.into());
        }
    }
}

/// Whose events: a seat of the lane, and which of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The seat.
    pub seat: u32,
    /// The connection.
    pub line: u32,
}

impl Token {
    /// From what epoll was told.
    pub fn of(data: u64) -> Self {
        Self {
            seat: (data >> 32) as u32,
            line: data as u32,
        }
    }

    fn data(self) -> u64 {
        (u64::from(self.seat) << 32) | u64::from(self.line)
    }
}

/// A connection.
#[derive(Debug)]
struct Line {
    socket: Plain,
    token: Token,
    /// What epoll tells of.
    told: EpollFlags,
    /// The kernel was asked for the time of what comes.
    stamps: bool,
    /// Something happened while nobody waited for it.
    stirred: bool,
    /// The answer before has not ended yet.
    unread: Option<Box<Room>>,
}

impl Line {
    /// Wants to be told of what comes, and of room to send if `write`.
    fn register(&mut self, epoll: &Epoll, write: bool) -> Result<(), Finding> {
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if write {
            flags |= EpollFlags::EPOLLOUT;
        }
        if self.told.contains(flags) {
            return Ok(());
        }
        let mut event = EpollEvent::new(flags, self.token.data());
        let done = if self.told.is_empty() {
            epoll.add(self.socket.as_fd(), event)
        } else {
            epoll.modify(self.socket.as_fd(), &mut event)
        };
        self.told = flags;
        // No memory, or too many watches of a user.
        done.map_err(|error| Finding::new(Kind::Local, format!("epoll: {error}")))
    }

    /// Something more has to come: it shall be told, or asked for again.
    fn wait(&mut self, write: bool, asked: &mut u8, desk: &mut Desk) -> Result<(), Finding> {
        if desk.hasty && self.told.is_empty() && *asked < HASTE {
            *asked += 1;
            desk.soon.push(self.token);
            return Ok(());
        }
        self.register(&desk.epoll, write)
    }

    /// Can it be asked on again?
    fn is_usable(&mut self, desk: &mut Desk) -> bool {
        let stirred = std::mem::take(&mut self.stirred);
        let Some(mut room) = self.unread.take() else {
            // Nobody asked for anything: a byte is one too many, and the end is the end.
            return !stirred
                || self
                    .socket
                    .read(&mut [0])
                    .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        };
        let usable = room.goes_on(|input| match fill(input, |to| self.socket.read(to)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            read => Some(read),
        });
        desk.take_back(room);
        usable
    }
}

/// Fills the room that there is, as far as `read` says.
fn fill(to: &mut BytesMut, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
    let at = to.len();
    let room = to.capacity() - at;
    // Costs nothing worth mentioning beside a system call, and asks for no proof.
    to.put_bytes(0, room);
    let read = read(&mut to[at..]);
    to.truncate(at + read.as_ref().copied().unwrap_or(0));
    read
}

/// A conversation that can be held again and again.
#[derive(Debug, Default)]
pub struct Talk {
    line: Option<Line>,
    /// Checks that the connection, or the one before, was used for.
    used: u32,
}

/// What a call may do, and when it is.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// There may be something to read.
    pub readable: bool,
    /// When the check began.
    pub begun: Instant,
    /// The deadline is over: a connection that is found is asked when it was made.
    pub late: bool,
    /// What comes is asked when it came.
    pub stamps: bool,
}

/// How far it is.
#[derive(Debug)]
pub struct Progress {
    /// What it concludes if its time is over now.
    pub stage: Stage,
    /// When the latest came of what was found, if that was asked and is known.
    pub came: Option<Instant>,
    kept: bool,
    /// So often it was asked whether something came.
    asked: u8,
    connected: bool,
    sent: usize,
    room: Option<Box<Room>>,
}

impl Progress {
    /// Nothing was done.
    pub const BEGINNING: Self = Self {
        stage: Stage::CONNECTING,
        came: None,
        kept: false,
        asked: 0,
        connected: false,
        sent: 0,
        room: None,
    };
}

impl Talk {
    /// Is this event of its connection?
    pub fn has(&self, token: Token) -> bool {
        self.line.as_ref().is_some_and(|line| line.token == token)
    }

    /// Something happened while no check waits.
    pub fn stirred(&mut self) {
        if let Some(line) = &mut self.line {
            line.stirred = true;
        }
    }

    /// Begins, and goes as far as it can.
    pub fn begin(
        &mut self,
        asks: &Asks,
        seat: u32,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Option<Finding> {
        let kept = self.line.take().filter(|_| self.may_keep(asks));
        self.line = kept.and_then(|mut line| line.is_usable(desk).then_some(line));
        if self.line.is_some() {
            (progress.kept, progress.connected) = (true, true);
        } else if let Err(failed) = self.connect(asks, seat, desk) {
            return Some(failed);
        } else if let Some(line) = self.line.as_ref().filter(|_| desk.hasty && asks.speaks()) {
            desk.connecting.push(line.token);
            return None;
        }
        self.goes_on(asks, seat, progress, look, desk)
    }

    fn may_keep(&self, asks: &Asks) -> bool {
        match asks.http().map(HttpCheck::keep) {
            None | Some(Keep::Fresh) => false,
            Some(Keep::Reuse) => true,
            Some(Keep::Mixed { fresh_every }) => self.used < fresh_every,
        }
    }

    fn connect(&mut self, asks: &Asks, seat: u32, desk: &mut Desk) -> Result<(), Finding> {
        let socket = Plain::connect(asks.target).and_then(|socket| {
            // Where nobody listens at an endpoint's port of this host, a socket may be given that
            // very port, and is then connected to itself (RFC 9293 section 3.5).
            if socket.local()? == asks.target {
                return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
            }
            Ok(socket)
        });
        desk.lines = desk.lines.wrapping_add(1);
        let line = desk.lines;
        self.used = 0;
        self.line = Some(Line {
            socket: socket.map_err(|error| Finding::of_io(&error, true))?,
            token: Token { seat, line },
            told: EpollFlags::empty(),
            stamps: false,
            stirred: false,
            unread: None,
        });
        Ok(())
    }

    /// Goes as far as it can; the finding, if that is the end.
    pub fn goes_on(
        &mut self,
        asks: &Asks,
        seat: u32,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Option<Finding> {
        let Some(http) = asks.http() else {
            let found = self.connected(asks, progress, look, desk);
            if found.is_some() {
                self.line = None;
            }
            return found;
        };
        loop {
            let ended = match self.exchange(asks, http, progress, look, desk) {
                Ok(()) => return None,
                Err(ended) => ended,
            };
            match ended {
                Ended::Stale => {
                    // The server had closed it; that says nothing.
                    self.line = None;
                    desk.take_back(progress.room.take());
                    let came = progress.came;
                    *progress = Progress {
                        came,
                        ..Progress::BEGINNING
                    };
                    if let Err(failed) = self.connect(asks, seat, desk) {
                        return Some(failed);
                    }
                }
                Ended::Answered(answer) => {
                    let finding = match answer {
                        Answer::Found(finding) => finding,
                        // Nobody asked to follow it, so it was judged.
                        Answer::Moved { status, .. } => {
                            Finding::new(Kind::BadStatus, "a redirect").with_status(status)
                        }
                    };
                    self.conclude(http, &finding, progress, desk);
                    return Some(finding);
                }
            }
        }
    }

    /// Nothing to ask: a connection is enough.
    fn connected(
        &mut self,
        asks: &Asks,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Option<Finding> {
        let line = self.line.as_mut()?;
        match line.socket.connected(asks.target) {
            Ok(Connected::Yes) => {
                // At once needs no asking.
                if look.late || progress.asked > 0 {
                    progress.came = line.socket.established(look.begun);
                }
                Some(Finding::OK)
            }
            Ok(Connected::NotYet) => line.wait(true, &mut progress.asked, desk).err(),
            Err(error) => Some(Finding::of_io(&error, true)),
        }
    }

    /// Asks, and reads what comes. `Ok` while more has to come.
    fn exchange(
        &mut self,
        asks: &Asks,
        http: &HttpCheck,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Result<(), Ended> {
        let found = |finding| Ended::Answered(Answer::Found(finding));
        let Some(line) = &mut self.line else {
            return Ok(());
        };
        while progress.sent < asks.request.len() {
            match line.socket.send(&asks.request[progress.sent..]) {
                Ok(count) => {
                    if progress.sent == 0 {
                        progress.stage = Stage::waiting("no complete head");
                        if look.late && !progress.connected {
                            progress.came = line.socket.established(look.begun);
                        }
                    }
                    progress.connected = true;
                    progress.sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return line.wait(true, &mut progress.asked, desk).map_err(found);
                }
                Err(error) if !progress.connected => {
                    return Err(found(Finding::of_io(&error, true)));
                }
                Err(error) => return Err(not_sent(&error, progress.kept)),
            }
        }
        if !look.readable {
            return line.wait(false, &mut progress.asked, desk).map_err(found);
        }
        let room = match &mut progress.room {
            Some(room) => room,
            none => {
                let mut room = desk.room(http);
                room.begin(&mut progress.stage);
                none.insert(room)
            }
        };
        let asked = Judged {
            expect: http.expect(),
            kept: progress.kept,
            follows: false,
        };
        loop {
            let input = room.input();
            let read = if look.stamps {
                if !std::mem::replace(&mut line.stamps, true) {
                    line.socket.want_stamps();
                }
                let (socket, came) = (&line.socket, &mut progress.came);
                fill(input, |to| {
                    let (count, at) = socket.read_stamped(to)?;
                    *came = (*came).max(at);
                    Ok(count)
                })
            } else {
                fill(input, |to| line.socket.read(to))
            };
            if let Err(error) = &read
                && error.kind() == io::ErrorKind::WouldBlock
            {
                return line.wait(false, &mut progress.asked, desk).map_err(found);
            }
            if let Some(ended) = room.heard(read, asked, &mut progress.stage) {
                return Err(ended);
            }
        }
    }

    /// Keeps what is worth it for the next check.
    fn conclude(
        &mut self,
        http: &HttpCheck,
        finding: &Finding,
        progress: &mut Progress,
        desk: &mut Desk,
    ) {
        self.used = self.used.saturating_add(1);
        let keep = match http.keep() {
            Keep::Fresh => false,
            Keep::Reuse => true,
            Keep::Mixed { .. } => finding.kind == Kind::Ok,
        };
        let room = progress.room.take();
        match (keep, room, &mut self.line) {
            // What failed before there was an answer.
            (true, None, line) => *line = None,
            (true, Some(room), Some(line)) if !room.is_clean() => line.unread = Some(room),
            (true, Some(room), _) => desk.take_back(room),
            (false, room, line) => {
                *line = None;
                desk.take_back(room);
            }
        }
    }

    /// Its time is over: nothing is left of it.
    pub fn give_up(&mut self, progress: &mut Progress, desk: &mut Desk) {
        self.line = None;
        desk.take_back(progress.room.take());
    }
}
