//! When an endpoint is checked.
//!
//! One task an endpoint. Checks begin on a fixed grid, `inter` apart. The timeout is the check's
//! own and may be longer than `inter`: a check that is not answered does not hold up the next
//! one, which has a connection of its own, up to [`Rhythm::in_flight`] of them. Beyond that
//! grid points pass without a check and are not made up for later: a burst of late checks would
//! only tell the same thing several times.
//!
//! Verdicts are judged in the order in which their checks began. One that began before another one
//! that was judged already is *overtaken* and does not count: the later check knows better.
//!
//! The first check is made early, since everybody waits for it; the grid begins as
//! long after it as spreads the endpoints over the interval. With `spread_checks` a check
//! is made somewhat after its point, each time differently; the grid does not drift by it.
//!
//! The interval is HAProxy's (`srv_getinter`): `fastinter` while the last check spoke against the
//! state, `downinter` while the endpoint is down, else `inter`. A check that changes which one it
//! is begins a new grid at its own point.
//!
//! Between the grid's points a [`Trigger`] makes a *burst*: checks back to back, until
//! one agrees with the endpoint's state or as many have spoken against it as change it.
//! So a crash that somebody tells of is known after `fall` checks, whatever `inter`
//! is, and a false alarm costs one check. The grid stays where it is, unless the interval
//! is another one after it: then it begins anew where the burst ended.
//!
//! A timeout that the agent's own stall explains ([`Patience`]) does not count: the check is made
//! again at once.
//!
//! Triggers cannot add up. A burst answers all those before its last check began;
//! whatever comes later waits for a [`Gap`] and is answered by one more burst.

use std::{
    fmt,
    future::{Future, poll_fn},
    hash::{BuildHasher as _, RandomState},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered, task::AtomicWaker};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    budget::Budget,
    lateness::{Patience, Pulse},
    rise_fall::{RiseFall, State},
    verdict::{Kind, Verdict},
};

/// Least time between the beginnings of two checks of a burst: enough to be two looks
/// at the endpoint and not one.
const SPACING: Duration = Duration::from_millis(1);
/// Least time between the end of a burst and the next, if `inter` is no less.
const LEAST_GAP: Duration = Duration::from_millis(10);
/// The same while one false alarm follows the other.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// A verdict and whose it is.
#[derive(Debug)]
pub struct Report<K> {
    /// As given to [`run`].
    pub key: K,
    /// What the check concluded.
    pub verdict: Verdict,
    /// Grid points before this check that passed without one because a check took too
    /// long.
    pub skipped: u64,
    /// Does it count?
    pub standing: Standing,
    /// How long after its point of the grid it began, if it had one.
    pub late: Option<Duration>,
}

/// Where reports go.
#[derive(Clone, Debug)]
pub struct Reports<K> {
    /// What may change something.
    pub urgent: mpsc::Sender<Report<K>>,
    /// Good checks of endpoints that are up for sure, which are nearly all: their reader looks now
    /// and then, and always before it takes an urgent one. To wake it for each would cost more than
    /// the check.
    pub quiet: mpsc::Sender<Report<K>>,
}

/// Does a verdict count?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// As its kind says.
    Counts,
    /// Neither way: the agent itself was stalled, see [`Patience`]. The check is made again
    /// at once.
    Stalled,
    /// Neither way: a check that began later was judged before.
    Overtaken,
    /// Neither way: it was a timeout, and clients had replies meanwhile.
    LifeSign,
}

impl Standing {
    /// All that a verdict does not count for, with their words.
    pub const EXCUSES: [Self; 3] = [Self::Stalled, Self::Overtaken, Self::LifeSign];

    /// The word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Stalled => "stalled",
            Self::Overtaken => "overtaken",
            Self::LifeSign => "life-sign",
        }
    }
}

impl<K> Report<K> {
    /// Success, failure, or `None` where the endpoint is not judged by it.
    pub fn judged(&self) -> Option<bool> {
        match self.standing {
            Standing::Counts => self.verdict.kind.success(),
            Standing::Stalled | Standing::Overtaken | Standing::LifeSign => None,
        }
    }
}

/// A check that can be made again and again.
pub trait Check: Send {
    /// Makes it.
    fn make(&mut self) -> impl Future<Output = Verdict> + Send;
}

/// Tells how many packets an endpoint has sent to its clients; nothing where that is not known.
#[derive(Clone)]
pub struct Replies(pub Arc<dyn Fn() -> Option<u64> + Send + Sync>);

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies").finish_non_exhaustive()
    }
}

/// When checks are made, and what is known before the first.
#[derive(Clone, Debug)]
pub struct Rhythm {
    /// Time between two points of the grid.
    pub intervals: Intervals,
    /// Time before the first check.
    pub offset: Duration,
    /// Time between the first check and the grid's next point, not more than `inter`.
    pub phase: Duration,
    /// How long after its point a check may be made, in percent of the interval.
    pub spread: u32,
    /// Time that a check may take.
    pub timeout: Duration,
    /// Checks that may be waited for at one time, at least one.
    pub in_flight: usize,
    /// Where replies to clients excuse a timeout.
    pub life_signs: Option<Replies>,
    /// A copy of the core's machine, see [`RiseFall`].
    pub health: RiseFall,
}

/// Time between two checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// While the endpoint is up, or nothing is known of it.
    pub inter: Duration,
    /// While the last check spoke against its state.
    pub fastinter: Duration,
    /// While it is down.
    pub downinter: Duration,
}

impl Intervals {
    /// The interval of now.
    pub fn of(&self, health: &RiseFall) -> Duration {
        if health.undecided() {
            return self.fastinter;
        }
        match health.state() {
            State::Up | State::Unknown => self.inter,
            State::Down => self.downinter,
        }
    }
}

/// Asks for checks at once.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<Asked>);

/// What a [`Trigger`] triggers.
#[derive(Debug)]
pub struct Triggered(Arc<Asked>);

/// One that waits stands for any number.
#[derive(Debug, Default)]
struct Asked {
    waits: AtomicBool,
    listener: AtomicWaker,
}

impl Trigger {
    /// A pair of them.
    pub fn new() -> (Self, Triggered) {
        let asked = Arc::new(Asked::default());
        (Self(asked.clone()), Triggered(asked))
    }

    /// Checks shall be made. Costs nothing if that was asked for already.
    pub fn pull(&self) {
        if !self.0.waits.swap(true, Ordering::AcqRel) {
            self.0.listener.wake();
        }
    }
}

impl Triggered {
    /// Waits for a trigger, from `not_before` on. Loses none if it is dropped.
    async fn pulled(&mut self, not_before: Instant) {
        // A timer that is over costs as much as one that is not.
        if Instant::now() < not_before {
            sleep_until(not_before).await;
        }
        poll_fn(|cx| {
            self.listen(cx.waker());
            if self.take() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// The next trigger wakes this; one that waits already may have woken another.
    pub fn listen(&self, waker: &Waker) {
        self.0.listener.register(waker);
    }

    /// Does one wait?
    pub fn waits(&self) -> bool {
        self.0.waits.load(Ordering::Acquire)
    }

    /// Was the trigger pulled since it was last asked? That is answered with this.
    pub fn take(&mut self) -> bool {
        self.waits() && self.0.waits.swap(false, Ordering::AcqRel)
    }
}

/// Why a check is made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    /// It is this point of the grid.
    Grid(Instant),
    /// Somebody asked.
    Burst,
}

/// What all endpoints that are checked on a thread share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The thread's.
    pub pulse: Arc<Pulse>,
    /// The agent's.
    pub budget: Arc<Budget>,
}

/// A check, from its beginning on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) cause: Cause,
    pub(super) at: Instant,
    pub(super) late: Option<Duration>,
    /// What the agent had missed until then.
    pub(super) unseen: Duration,
    /// What the endpoint had sent to its clients.
    pub(super) replies: Option<u64>,
}

/// A check that was made, and with what.
struct Ended<C> {
    check: C,
    begun: Begun,
    verdict: Verdict,
}

async fn make<C: Check>(mut check: C, mut begun: Begun, shared: Shared) -> Ended<C> {
    let place = shared.budget.enter().await;
    if place.waited {
        begun.at = Instant::now();
        begun.unseen = shared.pulse.blind(begun.at);
    }
    let verdict = check.make().await;
    Ended {
        check,
        begun,
        verdict,
    }
}

/// Waits for the first of the checks that are made. One at a time is the rule, and costs no
/// allocation.
async fn ended<F: Future>(
    mut first: Pin<&mut Option<F>>,
    others: &mut FuturesUnordered<F>,
) -> F::Output {
    poll_fn(|cx| {
        if let Some(running) = first.as_mut().as_pin_mut()
            && let Poll::Ready(ended) = running.poll(cx)
        {
            first.set(None);
            return Poll::Ready(ended);
        }
        match others.poll_next_unpin(cx) {
            Poll::Ready(Some(ended)) => Poll::Ready(ended),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Checks back to back, see the module.
#[derive(Debug)]
struct Burst {
    made: u64,
    /// Grid points before it that passed without a check.
    skipped_before: u64,
    /// The endpoint's state when it began.
    state: State,
    /// Time since the end of the one before.
    calm: Duration,
    /// When its next check begins, unless one is being made.
    next: Option<Instant>,
}

/// What an endpoint's task knows.
pub(super) struct Course {
    intervals: Intervals,
    budget: Arc<Budget>,
    /// What the budget was told that it wants.
    wants: Duration,
    health: RiseFall,
    patience: Patience,
    life_signs: Option<Replies>,
    grid: Grid,
    jitter: Jitter,
    /// The second check is where the grid begins.
    begins: Option<Instant>,
    skipped: u64,
    burst: Option<Burst>,
    gap: Gap,
    last_burst: Instant,
    quiet_until: Instant,
    /// When the latest check that counted began.
    judged: Option<Instant>,
}

/// What follows a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The same again, now.
    Again,
    /// Whatever is due.
    Wait,
}

impl Course {
    pub(super) fn new(rhythm: &Rhythm, budget: Arc<Budget>, now: Instant) -> Self {
        let first = now + rhythm.offset;
        let wants = rhythm.intervals.of(&rhythm.health);
        budget.wants(None, Some(wants));
        Self {
            intervals: rhythm.intervals,
            wants,
            health: rhythm.health.clone(),
            patience: Patience::new(rhythm.timeout),
            life_signs: rhythm.life_signs.clone(),
            grid: Grid::first(first, budget.stretched(wants)),
            budget,
            jitter: Jitter::new(rhythm.spread),
            begins: Some(first + rhythm.phase),
            skipped: 0,
            burst: None,
            gap: Gap::new(rhythm.intervals.inter),
            last_burst: now,
            quiet_until: now,
            judged: None,
        }
    }

    /// What the endpoint has sent to its clients, if that matters.
    pub(super) fn replies(&self) -> Option<u64> {
        (self.life_signs.as_ref()?.0)()
    }

    /// Was the endpoint alive to its clients while a check of it was not answered?
    fn lives(&self, begun: &Begun, kind: Kind) -> bool {
        matches!(kind, Kind::ConnectTimeout | Kind::ResponseTimeout)
            && begun
                .replies
                .is_some_and(|before| self.replies() > Some(before))
    }

    /// When the grid's next check begins.
    pub(super) fn due(&self) -> Instant {
        self.grid.due() + self.jitter.of(&self.grid)
    }

    /// The grid's next check begins.
    pub(super) fn grid_begins(&mut self, now: Instant) -> (Cause, Duration) {
        let (point, due) = (self.grid.due(), self.due());
        match self.begins.take() {
            Some(begins) => {
                self.grid = Grid::first(begins, self.grid.inter);
                if begins <= now {
                    self.grid.pass(now);
                }
            }
            // This one, and those that are over already.
            None => self.skipped += self.grid.pass(now) - 1,
        }
        (Cause::Grid(point), now.saturating_duration_since(due))
    }

    pub(super) fn burst_begins(&mut self, now: Instant) {
        self.burst = Some(Burst {
            made: 0,
            skipped_before: self.skipped,
            state: self.health.state(),
            calm: now - self.last_burst,
            next: Some(now),
        });
    }

    /// The burst's next check begins.
    pub(super) fn burst_makes(&mut self) {
        if let Some(burst) = &mut self.burst {
            burst.next = None;
        }
    }

    /// From when on a trigger begins a burst, unless one is going on.
    pub(super) fn listens(&self) -> Option<Instant> {
        self.burst.is_none().then_some(self.quiet_until)
    }

    /// When the burst's next check begins, if it waits for that.
    pub(super) fn burst_due(&self) -> Option<Instant> {
        self.burst.as_ref()?.next
    }

    /// A check ended. `was_full`: no other could begin meanwhile. The report, whether it changes
    /// nothing, and what follows.
    pub(super) fn ended<K>(
        &mut self,
        key: K,
        begun: &Begun,
        verdict: Verdict,
        blind: Duration,
        was_full: bool,
        now: Instant,
    ) -> (Report<K>, bool, Then) {
        let stalled = self.patience.excuses(verdict.kind, now - begun.at, blind);
        let overtaken = self.judged.is_some_and(|judged| begun.at < judged);
        let standing = match (overtaken, stalled) {
            (true, _) => Standing::Overtaken,
            (false, true) => Standing::Stalled,
            (false, false) if self.lives(begun, verdict.kind) => Standing::LifeSign,
            (false, false) => Standing::Counts,
        };
        // What a burst does not make up for is known at its end.
        let skipped = match self.burst {
            Some(_) => 0,
            None => std::mem::take(&mut self.skipped),
        };
        if was_full && self.begins.is_none() && self.grid.due() < now {
            self.skipped += self.grid.pass(now);
        }
        let report = Report {
            key,
            verdict,
            skipped,
            standing,
            late: begun.late,
        };
        let judged = report.judged();
        let was_sure = self.health.state() == State::Up && !self.health.undecided();
        let quiet = was_sure && judged == Some(true);
        if let Some(success) = judged {
            self.judged = Some(begun.at);
            self.health.observe(success);
        }
        let repeats = standing == Standing::Stalled;
        if let Cause::Burst = begun.cause {
            self.burst_goes_on(begun, repeats, judged.is_some() || overtaken, now);
        } else if self.burst_due().is_some() && !self.health.undecided() {
            // The grid's check decided what the burst would have.
            self.burst_ends(now);
        }
        let wants = self.intervals.of(&self.health);
        if wants != self.wants {
            self.budget.wants(Some(self.wants), Some(wants));
            self.wants = wants;
        }
        let inter = self.budget.stretched(wants);
        if inter != self.grid.inter && self.begins.is_none() {
            let start = match begun.cause {
                Cause::Grid(point) => point,
                Cause::Burst => now,
            };
            self.grid = Grid::first(start, inter);
            // Its first point is what has been; those since then it did not have yet.
            self.grid.pass(now);
        }
        let then = if repeats { Then::Again } else { Then::Wait };
        (report, quiet, then)
    }

    fn burst_goes_on(&mut self, begun: &Begun, repeats: bool, judged: bool, now: Instant) {
        let Some(burst) = &mut self.burst else { return };
        burst.made += 1;
        if repeats {
            return;
        }
        // An agent that cannot check does not try the harder.
        if judged && self.health.undecided() {
            burst.next = Some(begun.at + SPACING);
        } else {
            self.burst_ends(now);
        }
    }

    fn burst_ends(&mut self, now: Instant) {
        let Some(burst) = self.burst.take() else {
            return;
        };
        self.last_burst = now;
        let changed = self.health.state() != burst.state;
        self.quiet_until = now + self.gap.after(burst.calm, changed);
        // Its checks stand for those of the grid that passed meanwhile.
        let kept = self.skipped.min(burst.skipped_before);
        self.skipped = kept + (self.skipped - kept).saturating_sub(burst.made);
    }
}

/// It is checked no more.
impl Drop for Course {
    fn drop(&mut self) {
        self.budget.wants(Some(self.wants), None);
    }
}

/// What an endpoint's task waits for.
enum Event<C> {
    Ended(Ended<C>),
    Triggered,
    Burst,
    Due,
}

/// Checks until nobody listens any more. `another` makes what a check is made with; more than
/// one are only needed while checks overlap.
pub async fn run<K: Clone, C: Check>(
    key: K,
    another: impl Fn() -> C,
    rhythm: Rhythm,
    mut triggered: Triggered,
    shared: Shared,
    reports: Reports<K>,
) {
    let pulse = shared.pulse.clone();
    let most = rhythm.in_flight.max(1);
    let mut course = Course::new(&rhythm, shared.budget.clone(), Instant::now());
    let mut idle = Some(another());
    let mut first = pin!(None);
    let mut others = FuturesUnordered::new();
    let mut alarm = pin!(sleep_until(course.due()));
    loop {
        let running = usize::from(first.is_some()) + others.len();
        let full = running >= most;
        let due = course.due();
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
        let burst = course.burst_due();
        let event = tokio::select! {
            biased;
            ended = ended(first.as_mut(), &mut others), if running > 0 => Event::Ended(ended),
            () = triggered.pulled(course.quiet_until), if !full && course.burst.is_none() => {
                Event::Triggered
            }
            () = sleep_until(burst.unwrap_or(due)), if !full && burst.is_some() => Event::Burst,
            () = alarm.as_mut(), if !full => Event::Due,
        };
        let now = Instant::now();
        let (cause, late) = match event {
            Event::Triggered => {
                course.burst_begins(now);
                continue;
            }
            Event::Burst => {
                course.burst_makes();
                // This check and those that follow are the answer.
                triggered.take();
                (Cause::Burst, None)
            }
            Event::Due => {
                let (cause, late) = course.grid_begins(now);
                (cause, Some(late))
            }
            Event::Ended(ended) => {
                let Ended {
                    check,
                    begun,
                    verdict,
                } = ended;
                let blind = pulse.blind(now).saturating_sub(begun.unseen);
                // One that has a good connection is worth keeping.
                if idle.is_none() || verdict.kind.success() == Some(true) {
                    idle = Some(check);
                }
                let (report, quiet, then) =
                    course.ended(key.clone(), &begun, verdict, blind, full, now);
                let way = if quiet {
                    &reports.quiet
                } else {
                    &reports.urgent
                };
                if way.send(report).await.is_err() {
                    return;
                }
                if then == Then::Wait {
                    continue;
                }
                if let Cause::Burst = begun.cause {
                    triggered.take();
                }
                (begun.cause, None)
            }
        };
        let begun = Begun {
            cause,
            at: now,
            late,
            unseen: pulse.blind(now),
            replies: course.replies(),
        };
        let check = make(idle.take().unwrap_or_else(&another), begun, shared.clone());
        if first.is_none() {
            first.set(Some(check));
        } else {
            others.push(check);
        }
    }
}

/// Points in time, as far apart as the interval says.
#[derive(Clone, Copy, Debug)]
struct Grid {
    start: Instant,
    inter: Duration,
    /// The one to come.
    point: u64,
}

impl Grid {
    /// One that begins then.
    fn first(start: Instant, inter: Duration) -> Self {
        Self {
            start,
            inter,
            point: 0,
        }
    }

    fn due(&self) -> Instant {
        self.start + offset_of(self.point, self.inter)
    }

    /// Goes on to the first point that is still to come; how many that was.
    fn pass(&mut self, now: Instant) -> u64 {
        let since_start = now.saturating_duration_since(self.start);
        let next = next_point(self.point, since_start, self.inter);
        let passed = next - self.point;
        self.point = next;
        passed
    }
}

/// How long after its point each check is made.
struct Jitter {
    percent: u32,
    random: RandomState,
}

impl Jitter {
    fn new(percent: u32) -> Self {
        Self {
            percent,
            random: RandomState::new(),
        }
    }

    /// The same for a point, however often it is asked for.
    fn of(&self, grid: &Grid) -> Duration {
        if self.percent == 0 {
            return Duration::ZERO;
        }
        let most = grid.inter * self.percent / 100;
        let share = self.random.hash_one(grid.point) >> 32;
        // The share of 2^32, in integers: a duration of hours has 44 bits of nanoseconds.
        let nanos = (most.as_nanos() * u128::from(share)) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Time between the end of a burst and the next, so that a flood of triggers makes no
/// flood of checks: twice as long after each burst that changed nothing, as long as one
/// follows the other. `inter` bounds it, so that no trigger waits longer than for the grid.
#[derive(Clone, Debug)]
struct Gap {
    least: Duration,
    longest: Duration,
    last: Duration,
}

impl Gap {
    fn new(inter: Duration) -> Self {
        let least = inter.min(LEAST_GAP);
        Self {
            least,
            longest: inter.min(LONGEST_GAP),
            last: least,
        }
    }

    /// The gap after a burst that began so long after the end of the one before, and did
    /// or did not change the endpoint's state.
    fn after(&mut self, calm: Duration, changed: bool) -> Duration {
        self.last = if changed || calm >= self.last * 2 {
            self.least
        } else {
            (self.last * 2).min(self.longest)
        };
        self.last
    }
}

/// The first grid point after `point` that is still to come.
fn next_point(point: u64, since_start: Duration, inter: Duration) -> u64 {
    let passed = since_start.as_nanos() / inter.as_nanos().max(1);
    u64::try_from(passed)
        .unwrap_or(u64::MAX - 1)
        .saturating_add(1)
        .max(point.saturating_add(1))
}

/// When a grid point is, from the start. `Duration` alone multiplies by 32 bits only,
/// which checks every millisecond use up in 49 days.
fn offset_of(point: u64, inter: Duration) -> Duration {
    let nanos = u128::from(point) * inter.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    };

    use tokio::{net::TcpListener, task::AbortHandle, time::sleep};

    use super::*;
    use crate::health::{Probe, verdict::Finding};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_next_grid_point_is_always_to_come() {
        assert_eq!(next_point(0, ms(0), ms(10)), 1);
        assert_eq!(next_point(0, ms(9), ms(10)), 1);
        assert_eq!(next_point(0, ms(10), ms(10)), 2);
        assert_eq!(next_point(0, ms(52), ms(5)), 11);
        // A timer that fired a little early must not repeat its point.
        assert_eq!(next_point(7, ms(69), ms(10)), 8);
    }

    /// A server that never answers, a timeout of ten intervals: late checks do not bunch.
    #[tokio::test]
    async fn a_check_longer_than_the_interval_skips_and_does_not_bunch() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        let config = crate::config::parse(
            "interfaces: {edge: [a]}\nservices: [{name: a, listeners: ['10.0.0.1:80'], endpoints: \
             [{name: b, address: '10.0.0.2:80'}], check: {http: {}, inter: 5ms, timeout: 52ms}}]",
        )
        .unwrap();
        let check = config.services()[0].check();
        let rhythm = rhythm(check.inter());
        let check = check.clone();
        let probe = move || Probe::new(&check, target, "a");
        let (tx, mut rx) = mpsc::channel(16);
        let (_trigger, triggered) = Trigger::new();
        let task = tokio::spawn(run((), probe, rhythm, triggered, shared(), all_to(tx)));
        let first = rx.recv().await.unwrap();
        assert_eq!(first.verdict.kind, Kind::ResponseTimeout);
        assert_eq!(first.skipped, 0);
        for _ in 0..3 {
            let report = rx.recv().await.unwrap();
            assert_eq!(report.verdict.kind, Kind::ResponseTimeout);
            // Each took its whole timeout, so the ten grid points within it were skipped.
            assert!(report.verdict.latency >= Duration::from_millis(52));
            assert!(report.skipped >= 10, "{}", report.skipped);
        }
        task.abort();
    }

    /// Of an agent that is never stalled.
    fn all_to<K>(tx: mpsc::Sender<Report<K>>) -> Reports<K> {
        Reports {
            urgent: tx.clone(),
            quiet: tx,
        }
    }

    fn shared() -> Shared {
        Shared {
            pulse: Arc::new(Pulse::new(ms(1000))),
            budget: Arc::new(Budget::new(None, None)),
        }
    }

    fn rhythm(inter: Duration) -> Rhythm {
        Rhythm {
            intervals: Intervals {
                inter,
                fastinter: inter,
                downinter: inter,
            },
            offset: Duration::ZERO,
            phase: inter,
            spread: 0,
            timeout: ms(1000),
            in_flight: 1,
            life_signs: None,
            health: RiseFall::new(2, 3, State::Up),
        }
    }

    /// What an endpoint in a test is like now.
    #[derive(Debug)]
    struct Mood {
        kind: Kind,
        takes: Duration,
        /// When checks of it began, from the start.
        begun: Vec<Duration>,
        start: Instant,
    }

    struct Scripted(Arc<Mutex<Mood>>);

    impl Check for Scripted {
        async fn make(&mut self) -> Verdict {
            let (kind, takes) = {
                let mut mood = self.0.lock().unwrap();
                let begun = mood.start.elapsed();
                mood.begun.push(begun);
                (mood.kind, mood.takes)
            };
            sleep(takes).await;
            Finding::new(kind, "").after(takes)
        }
    }

    /// Checks of an endpoint that is up, on paused time.
    struct Bench {
        mood: Arc<Mutex<Mood>>,
        trigger: Trigger,
        reports: mpsc::Receiver<Report<()>>,
        task: AbortHandle,
    }

    impl Bench {
        fn new(inter: Duration) -> Self {
            Self::with(rhythm(inter))
        }

        fn with(rhythm: Rhythm) -> Self {
            let mood = Arc::new(Mutex::new(Mood {
                kind: Kind::Ok,
                takes: Duration::ZERO,
                begun: Vec::new(),
                start: Instant::now(),
            }));
            let (trigger, triggered) = Trigger::new();
            let (tx, reports) = mpsc::channel(4096);
            let script = mood.clone();
            let checks = run(
                (),
                move || Scripted(script.clone()),
                rhythm,
                triggered,
                shared(),
                all_to(tx),
            );
            let task = tokio::spawn(checks).abort_handle();
            Self {
                mood,
                trigger,
                reports,
                task,
            }
        }

        fn becomes(&self, kind: Kind) {
            self.mood.lock().unwrap().kind = kind;
        }

        fn takes(&self, takes: Duration) {
            self.mood.lock().unwrap().takes = takes;
        }

        /// When checks began since the last question.
        fn begun(&self) -> Vec<Duration> {
            std::mem::take(&mut self.mood.lock().unwrap().begun)
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_that_is_told_of_is_known_after_fall_checks() {
        let bench = Bench::new(ms(2000));
        sleep(ms(700)).await;
        assert_eq!(bench.begun(), [ms(0)]);
        bench.becomes(Kind::Refused);
        bench.trigger.pull();
        sleep(ms(500)).await;
        assert_eq!(bench.begun(), [ms(700), ms(701), ms(702)]);
        // The grid is where it was.
        sleep(ms(3000)).await;
        assert_eq!(bench.begun(), [ms(2000), ms(4000)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_false_alarm_costs_one_check() {
        let bench = Bench::new(ms(2000));
        sleep(ms(10)).await;
        bench.trigger.pull();
        sleep(ms(1000)).await;
        assert_eq!(bench.begun(), [ms(0), ms(10)]);
        // One bad check and a good one: confirmed too.
        bench.becomes(Kind::Reset);
        bench.takes(ms(3));
        bench.trigger.pull();
        sleep(ms(1)).await;
        bench.becomes(Kind::Ok);
        sleep(ms(500)).await;
        // Slower than the spacing, so back to back.
        assert_eq!(bench.begun(), [ms(1010), ms(1013)]);
    }

    #[tokio::test(start_paused = true)]
    async fn earlier_failures_count_in_a_burst_and_a_known_state_is_confirmed_by_one_check() {
        let bench = Bench::new(ms(100));
        sleep(ms(50)).await;
        bench.becomes(Kind::Refused);
        sleep(ms(100)).await;
        bench.trigger.pull();
        sleep(ms(30)).await;
        // One failure on the grid and two in the burst: down.
        assert_eq!(bench.begun(), [ms(0), ms(100), ms(150), ms(151)]);
        bench.trigger.pull();
        sleep(ms(10)).await;
        assert_eq!(bench.begun(), [ms(180)]);
        // Good again: `rise` of them, then one.
        bench.becomes(Kind::Ok);
        bench.trigger.pull();
        sleep(ms(4)).await;
        assert_eq!(bench.begun(), [ms(190), ms(191)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_agents_own_trouble_ends_a_burst() {
        let bench = Bench::new(ms(2000));
        sleep(ms(10)).await;
        bench.becomes(Kind::Local);
        bench.trigger.pull();
        sleep(ms(100)).await;
        assert_eq!(bench.begun(), [ms(0), ms(10)]);
    }

    #[tokio::test(start_paused = true)]
    async fn triggers_during_a_burst_are_merged_and_none_is_lost() {
        let bench = Bench::new(ms(2000));
        sleep(ms(10)).await;
        bench.becomes(Kind::Refused);
        bench.takes(ms(5));
        bench.trigger.pull();
        // During the first check: those that follow are the answer.
        sleep(ms(1)).await;
        bench.trigger.pull();
        bench.trigger.pull();
        sleep(ms(100)).await;
        assert_eq!(bench.begun(), [ms(0), ms(10), ms(15), ms(20)]);
        // During the last one: it began too early to answer.
        bench.trigger.pull();
        sleep(ms(1)).await;
        bench.trigger.pull();
        sleep(ms(100)).await;
        assert_eq!(bench.begun(), [ms(111), ms(126)]);
        // In the quiet time after a burst: later.
        bench.trigger.pull();
        sleep(ms(6)).await;
        bench.trigger.pull();
        sleep(ms(100)).await;
        assert_eq!(bench.begun(), [ms(212), ms(227)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_in_the_quiet_time_outlives_a_check_of_the_grid() {
        let bench = Bench::new(ms(100));
        sleep(ms(95)).await;
        bench.trigger.pull();
        sleep(ms(1)).await;
        bench.becomes(Kind::Refused);
        bench.trigger.pull();
        sleep(ms(40)).await;
        // 95 the burst, 100 the grid, 105 the burst that was asked for at 96.
        assert_eq!(bench.begun(), [ms(0), ms(95), ms(100), ms(105), ms(106)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_triggers_is_no_flood_of_checks() {
        for (inter, most) in [(ms(2000), 10), (ms(5), 401), (ms(1), 2001)] {
            let bench = Bench::new(inter);
            let begin = Instant::now();
            while begin.elapsed() < ms(1000) {
                for _ in 0..100 {
                    bench.trigger.pull();
                }
                sleep(ms(1)).await;
            }
            let made = bench.begun().len();
            assert!(made <= most, "inter {inter:?}: {made} checks in a second");
            // And the grid has its share.
            let grid = usize::try_from(1000 / inter.as_millis()).unwrap();
            assert!(made >= grid, "inter {inter:?}: {made} checks in a second");
        }
    }

    #[test]
    fn the_gap_grows_with_false_alarms_and_calm_or_a_change_ends_that() {
        let mut gap = Gap::new(ms(2000));
        let first = gap.after(ms(5000), false);
        assert_eq!(first, ms(10));
        let mut storm = |last: Duration| gap.after(last + ms(1), false);
        let grown: Vec<_> = (0..8)
            .scan(first, |last, _| {
                *last = storm(*last);
                Some(last.as_millis())
            })
            .collect();
        assert_eq!(grown, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(gap.after(ms(1999), false), ms(1000));
        assert_eq!(gap.clone().after(ms(2000), false), ms(10));
        assert_eq!(gap.after(ms(1000), true), ms(10));
        for inter in [1, 5, 10] {
            let mut gap = Gap::new(ms(inter));
            let gaps = [gap.after(ms(0), false), gap.after(ms(0), false)];
            assert_eq!(gaps, [ms(inter), ms(inter)]);
        }
        let mut gap = Gap::new(ms(100));
        let gaps: Vec<_> = (0..6).map(|_| gap.after(ms(0), false)).collect();
        assert_eq!(gaps[4..], [ms(100), ms(100)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_burst_skips_what_it_did_not_make_up_for() {
        let mut bench = Bench::new(ms(10));
        sleep(ms(5)).await;
        bench.becomes(Kind::ResponseTimeout);
        bench.takes(ms(50));
        bench.trigger.pull();
        // Three checks from 5 to 155; of the grid 10 to 150 pass.
        sleep(ms(152)).await;
        assert_eq!(bench.begun(), [ms(0), ms(5), ms(55), ms(105)]);
        bench.takes(ms(0));
        sleep(ms(10)).await;
        assert_eq!(bench.begun(), [ms(160)]);
        let mut skipped = Vec::new();
        while let Ok(report) = bench.reports.try_recv() {
            skipped.push(report.skipped);
        }
        assert_eq!(skipped, [0, 0, 0, 0, 12]);
    }

    /// Another rhythm than that of most tests.
    fn quick(change: impl FnOnce(&mut Rhythm)) -> Bench {
        let mut rhythm = rhythm(ms(1000));
        change(&mut rhythm);
        Bench::with(rhythm)
    }

    #[tokio::test(start_paused = true)]
    async fn in_transition_and_while_down_the_intervals_are_others() {
        let bench = quick(|rhythm| {
            rhythm.intervals.fastinter = ms(100);
            rhythm.intervals.downinter = ms(5000);
        });
        sleep(ms(1500)).await;
        assert_eq!(bench.begun(), [ms(0), ms(1000)]);
        // The first failure is found on the grid, the others follow fast.
        bench.becomes(Kind::BadStatus);
        sleep(ms(8000)).await;
        assert_eq!(bench.begun(), [ms(2000), ms(2100), ms(2200), ms(7200)]);
        // One good check, the second makes it up; then as usual, from there.
        bench.becomes(Kind::Ok);
        sleep(ms(5000)).await;
        let up = [ms(12_200), ms(12_300), ms(13_300), ms(14_300)];
        assert_eq!(bench.begun(), up);
        // A failure that the next check takes back.
        sleep(ms(400)).await;
        bench.becomes(Kind::Refused);
        sleep(ms(450)).await;
        assert_eq!(bench.begun(), [ms(15_300)]);
        bench.becomes(Kind::Ok);
        sleep(ms(2000)).await;
        assert_eq!(bench.begun(), [ms(15_400), ms(16_400)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_that_takes_an_endpoint_down_begins_the_interval_of_those() {
        let bench = quick(|rhythm| {
            rhythm.intervals.fastinter = ms(100);
            rhythm.intervals.downinter = ms(300);
        });
        sleep(ms(700)).await;
        bench.becomes(Kind::Refused);
        bench.trigger.pull();
        sleep(ms(700)).await;
        let down = [ms(0), ms(700), ms(701), ms(702), ms(1002), ms(1302)];
        assert_eq!(bench.begun(), down);
        // A false alarm leaves the grid alone.
        bench.becomes(Kind::Ok);
        sleep(ms(1000)).await;
        assert_eq!(bench.begun(), [ms(1602), ms(1702)]);
        bench.trigger.pull();
        sleep(ms(500)).await;
        assert_eq!(bench.begun(), [ms(2400), ms(2702)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_check_in_transition_does_not_bunch() {
        let mut bench = quick(|rhythm| rhythm.intervals.fastinter = ms(10));
        sleep(ms(500)).await;
        bench.becomes(Kind::ResponseTimeout);
        bench.takes(ms(35));
        sleep(ms(640)).await;
        // On the fast grid, that began at 1000: those at 1010 to 1030 and so on were passed.
        let begun = [ms(0), ms(1000), ms(1040), ms(1080)];
        assert_eq!(bench.begun(), begun);
        let skipped: Vec<_> = std::iter::from_fn(|| bench.reports.try_recv().ok())
            .map(|report| report.skipped)
            .collect();
        assert_eq!(skipped, [0, 0, 0, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_check_is_early_and_the_grid_has_a_phase() {
        let bench = quick(|rhythm| {
            rhythm.offset = ms(1);
            rhythm.phase = ms(300);
        });
        sleep(ms(2500)).await;
        assert_eq!(bench.begun(), [ms(1), ms(301), ms(1301), ms(2301)]);
        // A first check that takes longer than the phase.
        let mut slow = quick(|rhythm| rhythm.phase = ms(20));
        slow.takes(ms(50));
        sleep(ms(1500)).await;
        assert_eq!(slow.begun(), [ms(0), ms(1020)]);
        assert_eq!(slow.reports.try_recv().unwrap().skipped, 0);
        assert_eq!(slow.reports.try_recv().unwrap().skipped, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_is_bounded_and_does_not_add_up() {
        let bench = quick(|rhythm| {
            rhythm.intervals.inter = ms(100);
            rhythm.phase = ms(100);
            rhythm.spread = 20;
        });
        sleep(ms(100_000)).await;
        let begun = bench.begun();
        assert!((999..=1001).contains(&begun.len()), "{}", begun.len());
        let late: Vec<_> = begun
            .iter()
            .zip(0u32..)
            .map(|(at, point)| at.checked_sub(ms(100) * point).unwrap())
            .collect();
        // Timers are exact to the millisecond.
        assert!(late.iter().all(|late| *late <= ms(21)), "{late:?}");
        let (early, tardy) = (ms(5), ms(15));
        assert!(late.iter().any(|late| *late < early));
        assert!(late.iter().any(|late| *late > tardy));
    }

    /// The thread stands still while a server's answer is there to be read.
    #[tokio::test]
    async fn a_timeout_in_the_agents_own_stall_is_made_again_at_once() {
        struct Stalls(u32);
        impl Check for Stalls {
            async fn make(&mut self) -> Verdict {
                self.0 += 1;
                let (kind, takes) = match self.0 {
                    1 => (Kind::ResponseTimeout, ms(200)),
                    _ => (Kind::Ok, ms(0)),
                };
                std::thread::sleep(takes);
                Finding::new(kind, "").after(takes)
            }
        }
        let pulse = Arc::new(Pulse::new(ms(100)));
        let shared = Shared {
            pulse: pulse.clone(),
            ..shared()
        };
        let (tx, mut reports) = mpsc::channel(16);
        let (_trigger, triggered) = Trigger::new();
        let mut rhythm = rhythm(Duration::from_secs(3600));
        rhythm.timeout = ms(100);
        rhythm.offset = ms(50);
        let beats = {
            let pulse = pulse.clone();
            tokio::spawn(async move { pulse.beat().await })
        };
        let checks = tokio::spawn(run((), || Stalls(0), rhythm, triggered, shared, all_to(tx)));
        let first = reports.recv().await.unwrap();
        assert_eq!(first.standing, Standing::Stalled);
        assert_eq!(first.judged(), None);
        assert!(first.late.is_some());
        // Not an hour later.
        let second = reports.recv().await.unwrap();
        assert_eq!(second.standing, Standing::Counts);
        assert_eq!(second.judged(), Some(true));
        assert_eq!(second.late, None);
        beats.abort();
        checks.abort();
    }

    /// Timeouts of a hang end one interval apart, not one timeout.
    #[tokio::test(start_paused = true)]
    async fn a_check_that_is_not_answered_does_not_hold_up_the_next() {
        let mut bench = quick(|rhythm| {
            rhythm.intervals = Intervals {
                inter: ms(10),
                fastinter: ms(10),
                downinter: ms(10),
            };
            rhythm.phase = ms(10);
            rhythm.in_flight = 3;
        });
        sleep(ms(5)).await;
        bench.becomes(Kind::ResponseTimeout);
        bench.takes(ms(100));
        sleep(ms(130)).await;
        let begun = [ms(0), ms(10), ms(20), ms(30), ms(120), ms(130)];
        assert_eq!(bench.begun(), begun);
        let ended: Vec<_> = std::iter::from_fn(|| bench.reports.try_recv().ok())
            .map(|report| (report.verdict.kind, report.standing, report.skipped))
            .collect();
        let hang = |skipped| (Kind::ResponseTimeout, Standing::Counts, skipped);
        let fine = (Kind::Ok, Standing::Counts, 0);
        // Of the grid 40 to 110 passed while three were waited for.
        assert_eq!(ended, [fine, hang(0), hang(8), hang(0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_check_that_was_judged_overtakes_an_earlier_one() {
        let mut bench = quick(|rhythm| {
            rhythm.intervals.inter = ms(100);
            rhythm.intervals.fastinter = ms(100);
            rhythm.phase = ms(100);
            rhythm.in_flight = 2;
        });
        sleep(ms(50)).await;
        bench.becomes(Kind::ResponseTimeout);
        bench.takes(ms(450));
        sleep(ms(100)).await;
        bench.becomes(Kind::Ok);
        bench.takes(ms(1));
        sleep(ms(450)).await;
        let ended: Vec<_> = std::iter::from_fn(|| bench.reports.try_recv().ok())
            .map(|report| (report.verdict.kind, report.standing))
            .collect();
        let fine = (Kind::Ok, Standing::Counts);
        let late = (Kind::ResponseTimeout, Standing::Overtaken);
        assert_eq!(ended, [fine, fine, fine, fine, fine, late]);
    }

    /// Timeouts do not count while clients have replies, and nothing else is excused by them.
    #[tokio::test(start_paused = true)]
    async fn replies_to_clients_are_signs_of_life() {
        let sent = Arc::new(AtomicU64::new(7));
        let mut bench = quick(|rhythm| {
            let sent = sent.clone();
            let replies = move || Some(sent.load(Ordering::Relaxed));
            rhythm.life_signs = Some(Replies(Arc::new(replies)));
        });
        sleep(ms(500)).await;
        bench.takes(ms(100));
        let mut ended = Vec::new();
        for (kind, replies) in [
            (Kind::ResponseTimeout, 1),
            (Kind::ConnectTimeout, 3),
            (Kind::ResponseTimeout, 0),
            (Kind::Refused, 5),
        ] {
            bench.becomes(kind);
            sleep(ms(550)).await;
            sent.fetch_add(replies, Ordering::Relaxed);
            sleep(ms(450)).await;
            while let Ok(report) = bench.reports.try_recv() {
                ended.push((report.verdict.kind, report.standing));
            }
        }
        assert_eq!(
            ended,
            [
                (Kind::Ok, Standing::Counts),
                (Kind::ResponseTimeout, Standing::LifeSign),
                (Kind::ConnectTimeout, Standing::LifeSign),
                (Kind::ResponseTimeout, Standing::Counts),
                (Kind::Refused, Standing::Counts),
            ]
        );
    }

    /// Nor does a hang hold up a burst, nor a burst that hangs the grid.
    #[tokio::test(start_paused = true)]
    async fn a_burst_and_the_grid_do_not_wait_for_each_other() {
        let bench = quick(|rhythm| {
            rhythm.intervals.inter = ms(100);
            rhythm.intervals.fastinter = ms(100);
            rhythm.intervals.downinter = ms(100);
            rhythm.phase = ms(100);
            rhythm.in_flight = 3;
        });
        sleep(ms(50)).await;
        bench.takes(ms(500));
        sleep(ms(100)).await;
        bench.trigger.pull();
        sleep(ms(100)).await;
        assert_eq!(bench.begun(), [ms(0), ms(100), ms(150), ms(200)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_stretches_the_interval_and_gives_it_back() {
        let budget = Arc::new(Budget::new(Some(100), None));
        let shared = Shared {
            budget: budget.clone(),
            ..shared()
        };
        let (tx, mut reports) = mpsc::channel(4096);
        let (_trigger, triggered) = Trigger::new();
        let mood = Arc::new(Mutex::new(Mood {
            kind: Kind::Ok,
            takes: ms(0),
            begun: Vec::new(),
            start: Instant::now(),
        }));
        let script = mood.clone();
        let checks = run(
            (),
            move || Scripted(script.clone()),
            rhythm(ms(10)),
            triggered,
            shared,
            all_to(tx),
        );
        let task = tokio::spawn(checks);
        // Another one wants as much.
        budget.wants(None, Some(ms(10)));
        sleep(ms(95)).await;
        budget.wants(Some(ms(10)), None);
        sleep(ms(40)).await;
        let begun = std::mem::take(&mut mood.lock().unwrap().begun);
        let begun: Vec<_> = begun.iter().map(Duration::as_millis).collect();
        assert_eq!(begun, [0, 10, 30, 50, 70, 90, 110, 120, 130]);
        task.abort();
        assert!(task.await.is_err());
        reports.close();
        assert_eq!(budget.stretch(), 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_anybody_to_trigger_the_grid_goes_on() {
        let mut bench = Bench::new(ms(10));
        // The other end, closed.
        bench.trigger = Trigger::new().0;
        sleep(ms(35)).await;
        assert_eq!(bench.begun(), [ms(0), ms(10), ms(20), ms(30)]);
    }
}
