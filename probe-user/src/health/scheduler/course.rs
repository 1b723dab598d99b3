//! When an endpoint's next check is due, and what its verdicts count for, by the rules that the
//! module above tells.
//!
//! A [`Course`] makes no checks, waits for nothing and is told the time. Who makes the checks, a
//! task for each endpoint or a lane, asks it what is due, and tells it what began and what ended.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Intervals, Replies, Report, Rhythm, Standing,
    grid::{Grid, Jitter},
};
use crate::health::{
    budget::Budget,
    lateness::Patience,
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

/// Why a check is made.
#[derive(Clone, Copy, Debug)]
pub(in crate::health) enum Cause {
    /// It is this point of the grid.
    Grid(Instant),
    /// Somebody asked.
    Burst,
}

/// A check, from its beginning on.
#[derive(Clone, Copy, Debug)]
pub(in crate::health) struct Begun {
    pub(in crate::health) cause: Cause,
    pub(in crate::health) at: Instant,
    pub(in crate::health) late: Option<Duration>,
    /// What the agent had missed until then.
    pub(in crate::health) unseen: Duration,
    /// What the endpoint had sent to its clients.
    pub(in crate::health) replies: Option<u64>,
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
pub(in crate::health) struct Course {
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
pub(in crate::health) enum Then {
    /// The same again, now.
    Again,
    /// Whatever is due.
    Wait,
}

impl Course {
    pub(in crate::health) fn new(rhythm: &Rhythm, budget: Arc<Budget>, now: Instant) -> Self {
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
    pub(in crate::health) fn replies(&self) -> Option<u64> {
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
    pub(in crate::health) fn due(&self) -> Instant {
        self.grid.due() + self.jitter.of(&self.grid)
    }

    /// The grid's next check begins.
    pub(in crate::health) fn grid_begins(&mut self, now: Instant) -> (Cause, Duration) {
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

    pub(in crate::health) fn burst_begins(&mut self, now: Instant) {
        self.burst = Some(Burst {
            made: 0,
            skipped_before: self.skipped,
            state: self.health.state(),
            calm: now - self.last_burst,
            next: Some(now),
        });
    }

    /// The burst's next check begins.
    pub(in crate::health) fn burst_makes(&mut self) {
        if let Some(burst) = &mut self.burst {
            burst.next = None;
        }
    }

    /// From when on a trigger begins a burst, unless one is going on.
    pub(in crate::health) fn listens(&self) -> Option<Instant> {
        self.burst.is_none().then_some(self.quiet_until)
    }

    /// When the burst's next check begins, if it waits for that.
    pub(in crate::health) fn burst_due(&self) -> Option<Instant> {
        self.burst.as_ref()?.next
    }

    /// A check ended. `was_full`: no other could begin meanwhile. The report, whether it changes
    /// nothing, and what follows.
    pub(in crate::health) fn ended<K>(
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

/// Time between the end of a burst and the next, so that a flood of triggers makes no
/// flood of checks: twice as long after each burst that changed nothing, as long as one
/// follows the other. `inter` bounds it, so that no trigger waits longer than for the grid.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    least: Duration,
    longest: Duration,
    last: Duration,
}

impl Gap {
    pub(super) fn new(inter: Duration) -> Self {
        let least = inter.min(LEAST_GAP);
        Self {
            least,
            longest: inter.min(LONGEST_GAP),
            last: least,
        }
    }

    /// The gap after a burst that began so long after the end of the one before, and did
    /// or did not change the endpoint's state.
    pub(super) fn after(&mut self, calm: Duration, changed: bool) -> Duration {
        self.last = if changed || calm >= self.last * 2 {
            self.least
        } else {
            (self.last * 2).min(self.longest)
        };
        self.last
    }
}
