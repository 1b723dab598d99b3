//! A plain conversation as a machine without a task: a connection, a request by HTTP/1.1 and its
//! answer, or what is said to Redis or by a script, over TCP without TLS. It is what nearly all checks are.
//!
//! It says and judges what [`protocol`](super::super::protocol) does, with the same [`Room`] and the
//! same [`Dialogue`]; only who waits is another. A call never waits: it goes as far as the socket
//! lets it.

use std::{io, os::fd::AsFd as _};

use bytes::{BufMut as _, BytesMut};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use tokio::time::Instant;

use super::{
    asks::{Asks, How},
    socket::{Connected, Plain},
};
use crate::{
    config::{HttpCheck, Keep},
    health::{
        protocol::{
            dialogue::{Dialogue, Next, Turn},
            failure::{Failure, Outcome},
            http::{Answer, Asked as Judged, Ended, Room, not_sent},
        },
        transport::Stage,
        verdict::{Finding, Kind},
    },
};

/// A connection is asked so often whether something came before epoll shall tell.
const HASTE: u8 = 2;
/// Rooms that a lane keeps for answers that come in pieces, or at one time.
const ROOMS: usize = 64;
/// Bytes of a room that is worth keeping.
const ROOMY: usize = 16 * 1024;

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
    /// Connections that are done with: they are closed when others have asked what is due. The
    /// server is awake then, and need not be woken by the end of each.
    pub parting: Vec<Plain>,
    /// Checks that are being made.
    pub flying: usize,
    /// Checks that have ended since that was looked at.
    pub made: u32,
    #[expect(
        clippy::vec_box,
        reason = "they move, and conversations shall be small"
    )]
    rooms: Vec<Box<Room>>,
    /// The same for what has no room of its own kind.
    empty: Vec<BytesMut>,
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
            parting: Vec::new(),
            flying: 0,
            made: 0,
            rooms: Vec::new(),
            empty: Vec::new(),
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

    fn clear_up(&mut self, mut input: BytesMut) {
        // One that was never used has none.
        if (1..=ROOMY).contains(&input.capacity()) && self.empty.len() < ROOMS {
            input.clear();
            self.empty.push(input);
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
        let usable =
            room.goes_on(
                |input| match fill(input, usize::MAX, |to| self.socket.read(to)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                    read => Some(read),
                },
            );
        desk.take_back(room);
        usable
    }

    /// Is there a connection? Then this is waited for.
    fn reaches(
        &mut self,
        asks: &Asks,
        stage: Stage,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Result<bool, Finding> {
        match self.socket.connected(asks.target) {
            Ok(Connected::Yes) => {
                progress.reaches(stage, &self.socket, look);
                Ok(true)
            }
            Ok(Connected::NotYet) => {
                let waits = self.wait(true, &mut progress.asked, desk);
                waits.map(|()| false)
            }
            Err(error) => Err(Finding::of_io(&error, true)),
        }
    }

    /// Goes as far as it can. `Ok` while more has to come.
    fn talks(
        &mut self,
        asks: &Asks,
        dialogue: Dialogue<'_>,
        Heard { turn, input }: &mut Heard,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Result<(), Talked> {
        loop {
            match dialogue.next(turn, input) {
                Next::End(outcome) => return Err(Talked::To(outcome)),
                Next::Say(words) => {
                    if !turn.begins() {
                        self.socket.without_delay();
                    }
                    let said = match self.say(words, dialogue.stage(), progress, look, desk) {
                        Ok(true) => Ok(()),
                        Ok(false) => return Ok(()),
                        Err(Unsaid::Broken(error)) => Err(error),
                        Err(Unsaid::Unasked(finding)) => return Err(Talked::Unasked(finding)),
                    };
                    progress.sent = 0;
                    let said = dialogue.said(turn, input, said);
                    said.map_err(|failure| Talked::To(Err(failure)))?;
                }
                Next::Hear => {
                    if !progress.connected
                        && !self.reaches(asks, dialogue.stage(), progress, look, desk)?
                    {
                        return Ok(());
                    }
                    if !look.readable {
                        return Ok(self.wait(false, &mut progress.asked, desk)?);
                    }
                    if input.capacity() == 0 {
                        *input = desk.empty.pop().unwrap_or_default();
                    }
                    input.reserve(turn.sip());
                    match self.hear(input, turn.sip(), progress, look) {
                        Ok(count) => turn.heard(count),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(self.wait(false, &mut progress.asked, desk)?);
                        }
                        Err(error) => return Err(Talked::To(Err(turn.broke(error)))),
                    }
                }
            }
        }
    }

    /// Says the rest of this. `Ok(false)` while there is no room for it.
    fn say(
        &mut self,
        words: &[u8],
        stage: Stage,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Result<bool, Unsaid> {
        while progress.sent < words.len() {
            match self.socket.send(&words[progress.sent..]) {
                Ok(count) => {
                    progress.reaches(stage, &self.socket, look);
                    progress.sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let waits = self.wait(true, &mut progress.asked, desk);
                    return waits.map(|()| false).map_err(Unsaid::Unasked);
                }
                Err(error) if !progress.connected => {
                    return Err(Unsaid::Unasked(Finding::of_io(&error, true)));
                }
                Err(error) => return Err(Unsaid::Broken(error)),
            }
        }
        Ok(true)
    }

    /// Reads what there is, but not more than that.
    fn hear(
        &mut self,
        input: &mut BytesMut,
        most: usize,
        progress: &mut Progress,
        look: Look,
    ) -> io::Result<usize> {
        if !look.stamps {
            return fill(input, most, |to| self.socket.read(to));
        }
        if !std::mem::replace(&mut self.stamps, true) {
            self.socket.want_stamps();
        }
        fill(input, most, |to| {
            let (count, at) = self.socket.read_stamped(to)?;
            progress.came = progress.came.max(at);
            Ok(count)
        })
    }
}

/// Why something could not be said.
enum Unsaid {
    /// There is no connection, or the agent cannot wait for it.
    Unasked(Finding),
    /// It broke.
    Broken(io::Error),
}

/// How a dialogue ended.
enum Talked {
    /// It came to this end.
    To(Outcome),
    /// There is no connection, or the agent cannot wait for it.
    Unasked(Finding),
}

impl From<Finding> for Talked {
    fn from(finding: Finding) -> Self {
        Self::Unasked(finding)
    }
}

/// Fills the room that there is, but not with more than that, as far as `read` says.
fn fill(
    to: &mut BytesMut,
    most: usize,
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let at = to.len();
    let room = (to.capacity() - at).min(most);
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
    /// Of what is being said.
    sent: usize,
    room: Option<Box<Room>>,
    heard: Option<Heard>,
}

/// How far a dialogue is, and what came of an answer that is not whole.
#[derive(Debug)]
struct Heard {
    turn: Turn,
    input: BytesMut,
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
        heard: None,
    };

    /// There is a connection, and this is waited for.
    fn reaches(&mut self, stage: Stage, socket: &Plain, look: Look) {
        // At once needs no asking.
        if !self.connected && (look.late || self.asked > 0) {
            self.came = socket.established(look.begun);
        }
        (self.stage, self.connected) = (stage, true);
    }
}

/// How a conversation ended.
enum Over {
    /// With this.
    With(Finding),
    /// The server had closed the connection before it was asked: nothing is known.
    Stale,
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
        } else if let Some(line) = self
            .line
            .as_ref()
            .filter(|_| desk.hasty && asks.speaks_first() == Some(true))
        {
            desk.connecting.push(line.token);
            return None;
        }
        self.goes_on(asks, seat, progress, look, desk)
    }

    fn may_keep(&self, asks: &Asks) -> bool {
        match asks.keep() {
            Keep::Fresh => false,
            Keep::Reuse => true,
            Keep::Mixed { fresh_every } => self.used < fresh_every,
        }
    }

    fn connect(&mut self, asks: &Asks, seat: u32, desk: &mut Desk) -> Result<(), Finding> {
        let hears = asks.speaks_first() == Some(false);
        let socket = Plain::connect(asks.target, hears).and_then(|socket| {
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
        loop {
            let over = match asks.how(!progress.kept) {
                How::Connect => self.connects(asks, progress, look, desk),
                How::Request(request, http) => self.asks(request, http, progress, look, desk),
                How::Talk(dialogue) => self.talks(asks, dialogue, progress, look, desk),
            };
            match over? {
                Over::With(finding) => return Some(finding),
                Over::Stale => {
                    // That says nothing.
                    let came = progress.came;
                    self.give_up(progress, desk);
                    *progress = Progress {
                        came,
                        ..Progress::BEGINNING
                    };
                    if let Err(failed) = self.connect(asks, seat, desk) {
                        return Some(failed);
                    }
                }
            }
        }
    }

    /// Nothing to ask: a connection is enough.
    fn connects(
        &mut self,
        asks: &Asks,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Option<Over> {
        let line = self.line.as_mut()?;
        let finding = match line.reaches(asks, progress.stage, progress, look, desk) {
            Ok(false) => return None,
            Ok(true) => Finding::OK,
            Err(finding) => finding,
        };
        self.part(desk);
        Some(Over::With(finding))
    }

    /// A request and its answer.
    fn asks(
        &mut self,
        request: &[u8],
        http: &HttpCheck,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Option<Over> {
        let finding = match self.exchange(request, http, progress, look, desk).err()? {
            Ended::Stale => return Some(Over::Stale),
            Ended::Answered(Answer::Found(finding)) => finding,
            // Nobody asked to follow it, so it was judged.
            Ended::Answered(Answer::Moved { status, .. }) => {
                Finding::new(Kind::BadStatus, "a redirect").with_status(status)
            }
        };
        self.conclude(http, &finding, progress, desk);
        Some(Over::With(finding))
    }

    /// What is said and heard in steps.
    fn talks(
        &mut self,
        asks: &Asks,
        dialogue: Dialogue<'_>,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Option<Over> {
        let line = self.line.as_mut()?;
        let mut heard = progress.heard.take().unwrap_or_else(|| Heard {
            turn: dialogue.begin(),
            input: BytesMut::new(),
        });
        let over = line.talks(asks, dialogue, &mut heard, progress, look, desk);
        let is_clean = heard.input.is_empty();
        if over.is_err() || is_clean {
            desk.clear_up(std::mem::take(&mut heard.input));
        }
        let outcome = match over {
            Ok(()) => {
                progress.heard = Some(heard);
                return None;
            }
            Err(Talked::Unasked(finding)) => {
                self.part(desk);
                return Some(Over::With(finding));
            }
            Err(Talked::To(outcome)) => outcome,
        };
        if let Err(failure) = &outcome
            && progress.kept
            && failure.is_end()
        {
            return Some(Over::Stale);
        }
        self.used = self.used.saturating_add(1);
        let is_in_step = outcome.as_ref().err().is_none_or(Failure::is_in_step);
        // What came beyond the answer is nobody's.
        if asks.keep() == Keep::Fresh || !is_in_step || !is_clean {
            self.part(desk);
        }
        Some(Over::With(outcome.err().map_or(Finding::OK, Finding::from)))
    }

    /// Asks, and reads what comes. `Ok` while more has to come.
    fn exchange(
        &mut self,
        request: &[u8],
        http: &HttpCheck,
        progress: &mut Progress,
        look: Look,
        desk: &mut Desk,
    ) -> Result<(), Ended> {
        let found = |finding| Ended::Answered(Answer::Found(finding));
        let Some(line) = &mut self.line else {
            return Ok(());
        };
        let stage = Stage::waiting("no complete head");
        match line.say(request, stage, progress, look, desk) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(Unsaid::Unasked(finding)) => return Err(found(finding)),
            Err(Unsaid::Broken(error)) => return Err(not_sent(&error, progress.kept)),
        }
        if !look.readable {
            return line.wait(false, &mut progress.asked, desk).map_err(found);
        }
        let mut room = progress.room.take().unwrap_or_else(|| {
            let mut room = desk.room(http);
            room.begin(&mut progress.stage);
            room
        });
        let asked = Judged {
            expect: http.expect(),
            kept: progress.kept,
            follows: false,
        };
        let heard = loop {
            let read = line.hear(room.input(), usize::MAX, progress, look);
            if let Err(error) = &read
                && error.kind() == io::ErrorKind::WouldBlock
            {
                break line.wait(false, &mut progress.asked, desk).map_err(found);
            }
            if let Some(ended) = room.heard(read, asked, &mut progress.stage) {
                break Err(ended);
            }
        };
        progress.room = Some(room);
        heard
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
            (true, None, _) => self.part(desk),
            (true, Some(room), Some(line)) if !room.is_clean() => line.unread = Some(room),
            (true, Some(room), _) => desk.take_back(room),
            (false, room, _) => {
                self.part(desk);
                desk.take_back(room);
            }
        }
    }

    /// The connection is done with.
    fn part(&mut self, desk: &mut Desk) {
        desk.parting
            .extend(self.line.take().map(|line| line.socket));
    }

    /// Its time is over: nothing is left of it.
    pub fn give_up(&mut self, progress: &mut Progress, desk: &mut Desk) {
        self.part(desk);
        desk.take_back(progress.room.take());
        if let Some(heard) = progress.heard.take() {
            desk.clear_up(heard.input);
        }
    }
}
