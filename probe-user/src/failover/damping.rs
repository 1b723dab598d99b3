//! How long a fail-back waits, so that a master that comes and goes does not take the
//! clients with it each time.
//!
//! [`Damping`] is pure, as [`super::Failover`] is, and knows nothing of failovers: they never
//! wait. Each tier has a hold time of its own, at first the configured one. A tier *relapses*
//! when it goes down before it was steady after a fail-back to it; its next fail-back waits
//! twice as long then, up to the bound. It is *steady* when, selected and without a break, it
//! has been up for as long as its hold time and for [`STEADY`] at least; then its hold time is
//! the configured one again. Time on a backup makes nobody steady.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Least time that shows that a tier is there to stay: longer than most crash loops, in which
/// a program comes up, takes clients and dies of them.
pub const STEADY: Duration = Duration::from_secs(60);
/// What no time at all grows to.
const LEAST_GROWN: Duration = Duration::from_secs(1);

/// A tier that has relapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damped {
    /// The tier.
    pub tier: u8,
    /// What a fail-back to it waits.
    pub hold: Duration,
    /// How often since it was steady last.
    pub relapses: u32,
}

/// The tier that is selected.
#[derive(Clone, Copy, Debug)]
struct Selected {
    tier: u8,
    /// By a fail-back after which it did not go down.
    back: bool,
    /// Since when it has been selected and up, if it is up.
    up: Option<Instant>,
}

/// The hold times of a service's tiers.
#[derive(Clone, Debug)]
pub struct Damping {
    hold: Duration,
    bound: Duration,
    /// By tier; the others wait the configured time.
    damped: BTreeMap<u8, Damped>,
    selected: Option<Selected>,
}

impl Damping {
    /// Nobody has relapsed. A bound below `hold` is none.
    pub fn new(hold: Duration, bound: Duration) -> Self {
        Self {
            hold,
            bound: bound.max(hold),
            damped: BTreeMap::new(),
            selected: None,
        }
    }

    /// Goes on with what an earlier agent knew of a tier.
    pub fn restore(&mut self, of: Damped) {
        let hold = of.hold.clamp(self.hold, self.bound);
        self.damped.insert(of.tier, Damped { hold, ..of });
    }

    /// The configured times changed. Who has relapsed has.
    pub fn reform(&mut self, hold: Duration, bound: Duration) {
        self.hold = hold;
        self.bound = bound.max(hold);
        for of in self.damped.values_mut() {
            of.hold = of.hold.clamp(self.hold, self.bound);
        }
    }

    /// What a fail-back to a tier waits.
    pub fn hold(&self, tier: u8) -> Duration {
        self.damped.get(&tier).map_or(self.hold, |of| of.hold)
    }

    /// Those that relapsed and were not steady since, by tier.
    pub fn damped(&self) -> impl Iterator<Item = Damped> {
        self.damped.values().copied()
    }

    /// A tier is selected now, or nobody is; by a fail-back to it, or otherwise. It is up, or
    /// not.
    pub fn select(&mut self, tier: Option<u8>, back: bool, up: bool, now: Instant) {
        self.tick(now);
        self.selected = tier.map(|tier| Selected {
            tier,
            back,
            up: up.then_some(now),
        });
    }

    /// A tier came up.
    pub fn up(&mut self, tier: u8, now: Instant) {
        if let Some(selected) = self.selected.as_mut().filter(|of| of.tier == tier) {
            selected.up = Some(now);
        }
    }

    /// A tier went down.
    pub fn down(&mut self, tier: u8, now: Instant) {
        self.tick(now);
        let hold = self.hold(tier);
        let Some(selected) = self.selected.as_mut().filter(|of| of.tier == tier) else {
            return;
        };
        let since = selected.up.take();
        // One fail-back makes one relapse. And who was steady may go down.
        let back = std::mem::take(&mut selected.back);
        let Some(since) = since.filter(|_| back) else {
            return;
        };
        if now.saturating_duration_since(since) >= steady(hold) {
            return;
        }
        let of = self.damped.entry(tier).or_insert(Damped {
            tier,
            hold,
            relapses: 0,
        });
        of.hold = hold.saturating_mul(2).max(LEAST_GROWN).min(self.bound);
        of.relapses = of.relapses.saturating_add(1);
    }

    /// An operator took a tier out of service: that is no relapse, and proves nothing.
    pub fn rest(&mut self, tier: u8, now: Instant) {
        self.tick(now);
        if let Some(selected) = self.selected.as_mut().filter(|of| of.tier == tier) {
            selected.up = None;
            selected.back = false;
        }
    }

    /// When [`Damping::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let selected = self.selected?;
        let of = self.damped.get(&selected.tier)?;
        Some(selected.up? + steady(of.hold))
    }

    /// Time passed: the selected tier may be steady.
    pub fn tick(&mut self, now: Instant) {
        if self.due().is_some_and(|due| due <= now)
            && let Some(selected) = self.selected
        {
            self.damped.remove(&selected.tier);
        }
    }
}

/// How long a tier with this hold time has to be up until it is steady.
fn steady(hold: Duration) -> Duration {
    hold.max(STEADY)
}
