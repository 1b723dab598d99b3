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
//! A timeout that the agent's own stall explains ([`Patience`](super::lateness::Patience)) does not count: the check is made
//! again at once.
//!
//! Triggers cannot add up. A burst answers all those before its last check began;
//! whatever comes later waits for a [`Gap`](course::Gap) and is answered by one more burst.

mod course;
mod grid;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::{Future, poll_fn},
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

pub(super) use course::{Begun, Cause, Course, Then};

use super::{
    budget::Budget,
    lateness::Pulse,
    rise_fall::{RiseFall, State},
    verdict::Verdict,
};

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
    /// Neither way: the agent itself was stalled, see [`Patience`](super::lateness::Patience). The check is made again
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

/// What all endpoints that are checked on a thread share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The thread's.
    pub pulse: Arc<Pulse>,
    /// The agent's.
    pub budget: Arc<Budget>,
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
        let (listens, burst) = (course.listens(), course.burst_due());
        let event = tokio::select! {
            biased;
            ended = ended(first.as_mut(), &mut others), if running > 0 => Event::Ended(ended),
            () = triggered.pulled(listens.unwrap_or(due)), if !full && listens.is_some() => {
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
