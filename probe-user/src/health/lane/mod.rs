//! Plain checks of many endpoints by one task.
//!
//! Nearly all checks are plain: a connection, a question by HTTP/1.1 or to Redis and its answer, a
//! script, over TCP. A task and timers of their own for each endpoint, a runtime's registration for
//! each connection and a channel between them cost as much as the kernel's part of a check over a
//! kept connection. So each thread that checks has a *lane*: one task with an epoll of its own, one
//! heap of what is due, and a *seat* for each endpoint. What a seat does when is decided by what decides it elsewhere
//! ([`Course`]), what is said by [`talk`]; the lane only waits, for all of them at once.
//!
//! - A connection is known to epoll once, edge-triggered; of a new one only when there is something
//!   to wait for: on a local network it is there before anybody could ask.
//! - A seat has one entry in the heap, for the next thing it may have to do. What is due earlier
//!   than the entry says gets another; an entry that comes too early is put back. A timer
//!   rounds up to a millisecond, so what is due within one is done together.
//! - A lane that makes thousands of checks a second does not wake for each answer: it looks after all of them
//!   every millisecond, when checks are due anyway. To be woken costs as much as to read. How long an answer took is
//!   then told by the kernel's stamps. Who has a new connection is looked after twice before epoll learns
//!   of it, and what is due at one time connects first and asks then: a server that is still busy with
//!   one need not be woken for the next. Nor for the end of one before, which is told it then.
//! - A deadline that is over is not believed before the socket was asked once more, and of what is
//!   found then, or later, when it came.
//! - Rooms for answers are shared, so a good check allocates nothing.
//!
//! Verdicts go the ways that they go elsewhere ([`Reports`]). If the core is slow the lane waits
//! for it, and so does everything on it; what comes meanwhile has the kernel's stamp.

mod asks;
mod socket;
mod talk;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    future::poll_fn,
    io,
    os::fd::{AsRawFd as _, RawFd},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::error::TrySendError,
    task::yield_now,
    time::{Instant, Sleep, sleep_until},
};

pub use asks::Asks;
use talk::{Desk, Look, Progress, Talk, Token};

use super::{
    scheduler::{Begun, Cause, Course, Report, Reports, Rhythm, Shared, Then, Triggered},
    verdict::{Finding, Kind},
};

/// Events that are taken at one time; others on the thread have their turn between.
const EVENTS: usize = 256;

/// From so many checks a second on a lane looks after its connections by itself.
const MANY: u32 = 2000;
/// How often that is judged.
const WINDOW: Duration = Duration::from_millis(200);
/// How long it waits then, before the timer's rounding.
const MOMENT: Duration = Duration::from_micros(200);

/// Who is given a seat, and who leaves: what others tell a lane.
pub struct Door<K> {
    orders: Mutex<Orders<K>>,
    lane: AtomicWaker,
}

struct Orders<K> {
    all: Vec<Order<K>>,
    /// Seats that nobody has.
    free: Vec<u32>,
    seats: u32,
}

enum Order<K> {
    Sit(u32, Box<Seat<K>>),
    Leave(u32),
    /// Its trigger was pulled.
    Rung(u32),
}

impl<K> Door<K> {
    fn orders(&self) -> MutexGuard<'_, Orders<K>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order<K>) {
        self.orders().all.push(order);
        self.lane.wake();
    }
}

impl<K: Send + 'static> Door<K> {
    /// Checks an endpoint from now on, until what this returns is dropped.
    pub fn sit(
        self: &Arc<Self>,
        key: K,
        asks: Asks,
        rhythm: &Rhythm,
        triggered: Triggered,
        shared: &Shared,
    ) -> Seated<K> {
        let place = {
            let mut orders = self.orders();
            orders.free.pop().unwrap_or_else(|| {
                orders.seats += 1;
                orders.seats - 1
            })
        };
        let bell = Bell {
            door: Arc::downgrade(self),
            seat: place,
        };
        let seat = Seat {
            key,
            asks,
            course: Course::new(rhythm, shared.budget.clone(), Instant::now()),
            most: rhythm.in_flight.max(1),
            triggered,
            bell: Waker::from(Arc::new(bell)),
            idle: Some(Talk::default()),
            flights: Vec::new(),
            armed: None,
        };
        self.order(Order::Sit(place, Box::new(seat)));
        Seated {
            door: self.clone(),
            seat: place,
        }
    }
}

/// A seat that somebody has; it is left with this.
pub struct Seated<K> {
    door: Arc<Door<K>>,
    seat: u32,
}

impl<K> fmt::Debug for Seated<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seated({})", self.seat)
    }
}

impl<K> Drop for Seated<K> {
    fn drop(&mut self) {
        self.door.order(Order::Leave(self.seat));
    }
}

/// Rings for a seat.
struct Bell<K> {
    door: Weak<Door<K>>,
    seat: u32,
}

impl<K: Send + 'static> Wake for Bell<K> {
    fn wake(self: Arc<Self>) {
        if let Some(door) = self.door.upgrade() {
            door.order(Order::Rung(self.seat));
        }
    }
}

/// An endpoint.
struct Seat<K> {
    key: K,
    asks: Asks,
    course: Course,
    /// Checks that may be waited for at one time.
    most: usize,
    triggered: Triggered,
    bell: Waker,
    /// A conversation that nobody holds, with its connection.
    idle: Option<Talk>,
    flights: Vec<Flight>,
    /// Its entry in the heap.
    armed: Option<Instant>,
}

/// A check that is being made.
#[derive(Debug)]
struct Flight {
    begun: Begun,
    deadline: Instant,
    talk: Talk,
    progress: Progress,
}

/// What is left to tell.
type Told<K> = Vec<(bool, Report<K>)>;

impl<K: Clone> Seat<K> {
    /// Does all that is due.
    fn step(
        &mut self,
        place: u32,
        now: Instant,
        desk: &mut Desk,
        shared: &Shared,
        told: &mut Told<K>,
    ) {
        while let Some(over) = self.flights.iter().position(|one| one.deadline <= now) {
            self.last_look(over, place, desk, shared, told);
        }
        while self.flights.len() < self.most {
            if self.triggered.waits() && self.course.listens().is_some_and(|from| from <= now) {
                self.triggered.take();
                self.course.burst_begins(now);
            } else if self.course.burst_due().is_some_and(|due| due <= now) {
                self.course.burst_makes();
                // This check and those that follow are the answer.
                self.triggered.take();
                self.begin((Cause::Burst, None), place, desk, shared, told);
            } else if self.course.due() <= now {
                let (cause, late) = self.course.grid_begins(Instant::now());
                self.begin((cause, Some(late)), place, desk, shared, told);
            } else {
                break;
            }
        }
    }

    /// When there is something to do next, if nothing comes before.
    fn next(&self, now: Instant) -> Option<Instant> {
        let deadline = self.flights.iter().map(|one| one.deadline).min();
        let due = self.course.due();
        if self.flights.len() >= self.most {
            // By the next point most checks have ended: no entry for a deadline that is not met.
            let early = (due > now).then_some(due);
            return deadline.into_iter().chain(early).min();
        }
        let burst = self.course.burst_due();
        let asked = self
            .triggered
            .waits()
            .then(|| self.course.listens())
            .flatten();
        [deadline, Some(due), burst, asked]
            .into_iter()
            .flatten()
            .min()
    }

    fn begin(
        &mut self,
        (cause, late): (Cause, Option<Duration>),
        place: u32,
        desk: &mut Desk,
        shared: &Shared,
        told: &mut Told<K>,
    ) {
        let at = Instant::now();
        let begun = Begun {
            cause,
            at,
            late,
            unseen: shared.pulse.blind(at),
            replies: self.course.replies(),
        };
        let mut flight = Flight {
            begun,
            deadline: at + self.asks.timeout(),
            talk: self.idle.take().unwrap_or_default(),
            progress: Progress::BEGINNING,
        };
        let look = Look {
            readable: false,
            begun: at,
            late: false,
            stamps: false,
        };
        let asks = &self.asks;
        let found = flight
            .talk
            .begin(asks, place, &mut flight.progress, look, desk);
        desk.flying += 1;
        let number = self.flights.len();
        // One at a time is the rule: no room for four.
        self.flights.reserve_exact(1);
        self.flights.push(flight);
        if let Some(finding) = found {
            self.ended(number, finding, place, desk, shared, told);
        }
    }

    /// Something came for one of its connections.
    fn event(
        &mut self,
        token: Token,
        flags: EpollFlags,
        desk: &mut Desk,
        shared: &Shared,
        told: &mut Told<K>,
    ) {
        let Some(number) = self.flights.iter().position(|one| one.talk.has(token)) else {
            if let Some(idle) = self.idle.as_mut().filter(|idle| idle.has(token)) {
                idle.stirred();
            }
            return;
        };
        let Some(flight) = self.flights.get_mut(number) else {
            return;
        };
        let late = Instant::now() > flight.deadline;
        let look = Look {
            readable: flags != EpollFlags::EPOLLOUT,
            begun: flight.begun.at,
            late,
            stamps: late || desk.hasty,
        };
        let (talk, progress) = (&mut flight.talk, &mut flight.progress);
        if let Some(finding) = talk.goes_on(&self.asks, token.seat, progress, look, desk) {
            self.ended(number, finding, token.seat, desk, shared, told);
        }
    }

    /// A check's time is over: what is there now is asked when it came.
    fn last_look(
        &mut self,
        number: usize,
        place: u32,
        desk: &mut Desk,
        shared: &Shared,
        told: &mut Told<K>,
    ) {
        let Some(flight) = self.flights.get_mut(number) else {
            return;
        };
        let look = Look {
            readable: true,
            begun: flight.begun.at,
            late: true,
            stamps: true,
        };
        let (talk, progress) = (&mut flight.talk, &mut flight.progress);
        let found = talk.goes_on(&self.asks, place, progress, look, desk);
        let finding = found.unwrap_or_else(|| {
            talk.give_up(progress, desk);
            progress.stage.over()
        });
        self.ended(number, finding, place, desk, shared, told);
    }

    fn ended(
        &mut self,
        number: usize,
        finding: Finding,
        place: u32,
        desk: &mut Desk,
        shared: &Shared,
        told: &mut Told<K>,
    ) {
        let was_full = self.flights.len() >= self.most;
        let Flight {
            begun,
            deadline,
            talk,
            progress,
        } = self.flights.swap_remove(number);
        desk.flying -= 1;
        desk.made += 1;
        let now = Instant::now();
        let in_time = progress.came.is_none_or(|came| came <= deadline);
        let finding = if finding.kind == Kind::Ok && !in_time {
            let kind = progress.stage.kind;
            Finding::new(kind, "what was waited for came after the timeout")
        } else {
            finding
        };
        // Of a lane that looks after it now and then the kernel knows better. From the time that a
        // failure took others reckon when it began.
        let exact = desk.hasty && finding.kind == Kind::Ok;
        let end = progress.came.filter(|_| exact).unwrap_or(now);
        let verdict = finding.after(end.saturating_duration_since(begun.at));
        let blind = shared.pulse.blind(now).saturating_sub(begun.unseen);
        // One that has a good connection is worth keeping.
        if self.idle.is_none() || verdict.kind.success() == Some(true) {
            self.idle = Some(talk);
        }
        let key = self.key.clone();
        let (report, quiet, then) = self
            .course
            .ended(key, &begun, verdict, blind, was_full, now);
        told.push((quiet, report));
        if then == Then::Again {
            if let Cause::Burst = begun.cause {
                self.triggered.take();
            }
            self.begin((begun.cause, None), place, desk, shared, told);
        }
    }
}

/// All endpoints of a thread that have a seat.
pub struct Lane<K> {
    door: Arc<Door<K>>,
    seats: Vec<Option<Box<Seat<K>>>>,
    due: BinaryHeap<Reverse<(Instant, u32)>>,
    desk: Desk,
    shared: Shared,
    reports: Reports<K>,
}

impl<K: Clone + Send + 'static> Lane<K> {
    /// An empty one.
    pub fn new(shared: Shared, reports: Reports<K>) -> io::Result<Self> {
        let orders = Orders {
            all: Vec::new(),
            free: Vec::new(),
            seats: 0,
        };
        Ok(Self {
            door: Arc::new(Door {
                orders: Mutex::new(orders),
                lane: AtomicWaker::new(),
            }),
            seats: Vec::new(),
            due: BinaryHeap::new(),
            desk: Desk::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
            shared,
            reports,
        })
    }

    /// For those who want a seat.
    pub fn door(&self) -> Arc<Door<K>> {
        self.door.clone()
    }

    /// Checks until nobody listens any more. Shall run on the thread whose pulse it was given.
    pub async fn run(mut self) -> io::Result<()> {
        let mut came = Some(self.told_of_all()?);
        let mut alarm = pin!(sleep_until(Instant::now()));
        let mut events = vec![EpollEvent::empty(); EVENTS];
        let (mut told, mut soon) = (Vec::new(), Vec::new());
        let mut window = Instant::now();
        loop {
            let now = Instant::now();
            let mut changed = false;
            if now - window >= WINDOW {
                window = now;
                changed = self.judge_haste();
                if changed {
                    // What has come until then is told at once.
                    came = (!self.desk.hasty).then(|| self.told_of_all()).transpose()?;
                }
            }
            // Once more where it is in no haste any longer, so that epoll learns of all.
            let looks = changed || (self.desk.hasty && self.desk.flying > 0);
            let looks = looks.then_some(now + MOMENT);
            let count =
                poll_fn(|cx| self.poll(cx, came.as_ref(), alarm.as_mut(), looks, &mut events));
            let count = count.await?;
            self.take_orders(&mut told);
            for event in &events[..count] {
                self.event(Token::of(event.data()), event.events(), &mut told);
            }
            if looks.is_none_or(|looks| looks <= Instant::now()) {
                std::mem::swap(&mut soon, &mut self.desk.soon);
                for token in soon.drain(..) {
                    self.event(token, EpollFlags::EPOLLIN, &mut told);
                }
            }
            let done = self.do_due(&mut told);
            std::mem::swap(&mut soon, &mut self.desk.connecting);
            for token in soon.drain(..) {
                self.event(token, EpollFlags::EPOLLOUT, &mut told);
                self.desk.parting.pop();
            }
            self.desk.parting.clear();
            for (quiet, report) in told.drain(..) {
                let way = if quiet {
                    &self.reports.quiet
                } else {
                    &self.reports.urgent
                };
                let sent = match way.try_send(report) {
                    Err(TrySendError::Full(report)) => way.send(report).await.is_ok(),
                    sent => sent.is_ok(),
                };
                // Nobody listens.
                if !sent {
                    return Ok(());
                }
            }
            if count == EVENTS || !done {
                yield_now().await;
            }
        }
    }

    /// The runtime's eye on all connections.
    fn told_of_all(&self) -> io::Result<AsyncFd<RawFd>> {
        let epoll = self.desk.epoll.0.as_raw_fd();
        // SAFETY: the lane owns the descriptor, and drops it after whoever is told of it.
        Ok(unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }?)
    }

    /// Waits until there may be something to do; how many events there are.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        came: Option<&AsyncFd<RawFd>>,
        mut alarm: Pin<&mut Sleep>,
        looks: Option<Instant>,
        events: &mut [EpollEvent],
    ) -> Poll<io::Result<usize>> {
        self.door.lane.register(cx.waker());
        let asked = !self.door.orders().all.is_empty();
        let due = self.due.peek().map(|Reverse((due, _))| *due);
        let next = due.into_iter().chain(looks).min();
        if let Some(next) = next
            && alarm.deadline() != next
        {
            alarm.as_mut().reset(next);
        }
        let is_due = next.is_some() && alarm.as_mut().poll(cx).is_ready();
        let mut count = 0;
        match came {
            None if asked || is_due => {
                count = self.desk.epoll.wait(events, EpollTimeout::ZERO)?;
            }
            None => {}
            Some(came) => {
                while let Poll::Ready(ready) = came.poll_read_ready(cx) {
                    let mut ready = ready?;
                    count = self.desk.epoll.wait(events, EpollTimeout::ZERO)?;
                    if count == EVENTS {
                        break;
                    }
                    // More may have come meanwhile; then that is told again.
                    ready.clear_ready();
                    if count > 0 {
                        break;
                    }
                }
            }
        }
        if asked || count > 0 || is_due {
            return Poll::Ready(Ok(count));
        }
        Poll::Pending
    }

    /// Are checks so many that answers need not wake anybody? Whether that changed.
    fn judge_haste(&mut self) -> bool {
        let made = std::mem::take(&mut self.desk.made);
        let windows = u32::try_from(Duration::from_secs(1).as_millis() / WINDOW.as_millis());
        let rate = made * windows.unwrap_or(1);
        // Half as many are enough to stay so.
        let hasty = rate >= MANY || (self.desk.hasty && rate >= MANY / 2);
        std::mem::replace(&mut self.desk.hasty, hasty) != hasty
    }

    fn take_orders(&mut self, told: &mut Told<K>) {
        let orders = std::mem::take(&mut self.door.orders().all);
        for order in orders {
            match order {
                Order::Sit(place, seat) => {
                    let index = place as usize;
                    if self.seats.len() <= index {
                        self.seats.resize_with(index + 1, || None);
                    }
                    self.seats[index] = Some(seat);
                    self.rung(place, told);
                }
                Order::Leave(place) => {
                    let seat = self.seats.get_mut(place as usize).and_then(Option::take);
                    self.desk.flying -= seat.map_or(0, |seat| seat.flights.len());
                    self.door.orders().free.push(place);
                }
                Order::Rung(place) => self.rung(place, told),
            }
        }
    }

    fn rung(&mut self, place: u32, told: &mut Told<K>) {
        if let Some(Some(seat)) = self.seats.get_mut(place as usize) {
            // Before it is looked at: whoever rings after that is heard.
            seat.triggered.listen(&seat.bell);
            self.step(place, Instant::now(), told);
        }
    }

    fn event(&mut self, token: Token, flags: EpollFlags, told: &mut Told<K>) {
        if let Some(Some(seat)) = self.seats.get_mut(token.seat as usize) {
            seat.event(token, flags, &mut self.desk, &self.shared, told);
            self.arm(token.seat, Instant::now());
        }
    }

    /// Does what is due now, but not for ever; whether that was all.
    fn do_due(&mut self, told: &mut Told<K>) -> bool {
        let now = Instant::now();
        for _ in 0..EVENTS {
            match self.due.peek() {
                Some(Reverse((due, _))) if *due <= now => {}
                _ => return true,
            }
            let Some(Reverse((due, place))) = self.due.pop() else {
                return true;
            };
            let Some(Some(seat)) = self.seats.get_mut(place as usize) else {
                continue;
            };
            // Else another entry took its place.
            if seat.armed == Some(due) {
                seat.armed = None;
                self.step(place, now, told);
            }
        }
        false
    }

    fn step(&mut self, place: u32, now: Instant, told: &mut Told<K>) {
        if let Some(Some(seat)) = self.seats.get_mut(place as usize) {
            seat.step(place, now, &mut self.desk, &self.shared, told);
            self.arm(place, now);
        }
    }

    fn arm(&mut self, place: u32, now: Instant) {
        let Some(Some(seat)) = self.seats.get_mut(place as usize) else {
            return;
        };
        let Some(next) = seat.next(now) else { return };
        if seat.armed.is_none_or(|armed| next < armed) {
            seat.armed = Some(next);
            self.due.push(Reverse((next, place)));
        }
    }
}
