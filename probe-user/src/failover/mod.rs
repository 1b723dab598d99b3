//! Which endpoints a service's new connections go to.
//!
//! [`Failover`] is pure: it is told what happens and when, and says what to switch.
//! A tier is *up* while one of its endpoints is, *unknown* while none is up and nothing is
//! known of one, else *down*. Endpoints without weight do not count. The rules, in order:
//!
//! 1. While the selected tier is up or unknown it stays selected, except for a fail-back.
//!    Of its endpoints, one that is down serves no longer, and one that is up serves; of
//!    whom nothing is known yet, who served goes on.
//! 2. When it is down, the service fails over at once: to the lowest tier that is up; if
//!    none is up, to the lowest that is unknown.
//! 3. When all are down the selection stays (`keep`), or clients are refused
//!    (`refuse`) until any endpoint is up; its tier is then taken at once.
//! 4. Fail-back, from a higher tier to a lower: automatically when the lower tier has been
//!    up for the hold time without a break, or at once by order. A failed check that does not
//!    take an endpoint down is no break: `fall` says what counts. The hold time grows for
//!    a tier that does not stay up after it, see [`damping`]. Nothing else waits for it.
//!
//! A tier that is down is never newly selected. At start the selection is the
//! one an earlier agent left, or else the lowest tier.
//!
//! What operators order comes before these rules, see [`orders`]: an endpoint in `drain` or
//! `maint` counts as down; one that was promoted is selected until it is down; and while the
//! service is frozen nothing but an order changes the selection.

pub mod cut;
pub mod damping;
pub mod distrust;
pub mod drain;
pub mod orders;
pub mod slow_start;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::{
    config::{AllDown, Failback},
    health::State,
};
use damping::{Damped, Damping};
use orders::{Mode, Promotion};

/// Where new connections go. Endpoints are numbered as the service lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To these, all of one tier, in order; never to none.
    Endpoints(Vec<usize>),
    /// Nowhere: clients get a RST.
    Refuse,
}

/// Why the selection is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The first selection of a service that nobody steered before.
    Initial,
    /// An earlier agent left it.
    Inherited,
    /// The tier that was selected went down. (It may have been a backup's.)
    MasterDown,
    /// Back to a lower tier by itself, or to any tier from refusing.
    Failback,
    /// By order of an operator.
    Manual,
    /// No endpoint is up, and the service refuses.
    AllDown,
    /// The same endpoint at another address.
    AddressChanged,
    /// Some of the selected tier's endpoints went down or came up. No failover: the tier
    /// stays selected.
    MembersChanged,
    /// The configuration changed who may serve.
    Reload,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Initial,
        Self::Inherited,
        Self::MasterDown,
        Self::Failback,
        Self::Manual,
        Self::AllDown,
        Self::AddressChanged,
        Self::MembersChanged,
        Self::Reload,
    ];

    /// The reason's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Inherited => "inherited",
            Self::MasterDown => "master-down",
            Self::Failback => "failback",
            Self::Manual => "manual",
            Self::AllDown => "all-down",
            Self::AddressChanged => "address-changed",
            Self::MembersChanged => "members-changed",
            Self::Reload => "reload",
        }
    }
}

/// A change of selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// What was selected.
    pub from: Target,
    /// What is selected now.
    pub to: Target,
    /// Why.
    pub reason: Reason,
}

/// Why an ordered fail-back is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFailback {
    /// There is no lower tier.
    #[error("the lowest tier already is selected")]
    Lowest,
    /// Nothing to go back to.
    #[error("no endpoint of a lower tier is up")]
    NoneUp,
}

/// An endpoint as far as failover cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its tier.
    pub tier: u8,
    /// May it have new connections at all?
    pub weighs: bool,
    /// What its checks say.
    pub state: State,
    /// What operators say.
    pub mode: Mode,
}

impl Member {
    /// Its state, as far as new connections are concerned.
    fn fit(&self) -> State {
        match self.mode {
            Mode::Ready => self.state,
            Mode::Drain | Mode::Maint => State::Down,
        }
    }
}

/// Who asks for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A check or a timer.
    Itself,
    /// An operator.
    Order,
}

/// One service's state machine.
#[derive(Clone, Debug)]
pub struct Failover {
    /// Nothing where fail-back waits for an order.
    damping: Option<Damping>,
    all_down: AllDown,
    members: Vec<Member>,
    /// The tiers that are up, each with the time since when it has been without a break.
    up: BTreeMap<u8, Instant>,
    selected: Target,
    promoted: Option<Promotion>,
    frozen: bool,
}

impl Failover {
    /// Where no member weighs anything clients are refused. Of an inherited selection only members
    /// that do count, and only those of the lowest tier among them.
    pub fn new(
        failback: Failback,
        all_down: AllDown,
        members: &[Member],
        inherited: Option<Target>,
        now: Instant,
    ) -> Self {
        let weighs = |i: &usize| members.get(*i).is_some_and(|member| member.weighs);
        let lowest = |of: Vec<usize>| {
            let of: Vec<_> = of.into_iter().filter(weighs).collect();
            let tier = of.iter().map(|i| members[*i].tier).min()?;
            let all: Vec<_> = (0..members.len())
                .filter(|i| of.contains(i) && members[*i].tier == tier)
                .collect();
            let not_down = all.iter().filter(|i| members[**i].fit() != State::Down);
            let not_down: Vec<_> = not_down.copied().collect();
            Some(Target::Endpoints(if not_down.is_empty() {
                all
            } else {
                not_down
            }))
        };
        let inherited = match inherited {
            Some(Target::Endpoints(of)) => lowest(of),
            Some(Target::Refuse) if all_down == AllDown::Refuse => Some(Target::Refuse),
            _ => None,
        };
        let mut failover = Self {
            damping: match failback {
                Failback::Auto { hold, max_hold } => Some(Damping::new(hold, max_hold)),
                Failback::Manual => None,
            },
            all_down,
            members: members.to_vec(),
            up: BTreeMap::new(),
            selected: inherited
                .or_else(|| lowest((0..members.len()).collect()))
                .unwrap_or(Target::Refuse),
            promoted: None,
            frozen: false,
        };
        for member in members {
            failover.reckon(member.tier, By::Itself, now);
        }
        failover.tell_damping(false, now);
        failover
    }

    /// Goes on with the hold times of an earlier agent. To be called before anything happens.
    #[must_use]
    pub fn with_damped(mut self, damped: impl IntoIterator<Item = Damped>) -> Self {
        if let Some(damping) = &mut self.damping {
            let tiers: Vec<_> = self.members.iter().map(|member| member.tier).collect();
            let known = damped.into_iter().filter(|of| tiers.contains(&of.tier));
            known.for_each(|of| damping.restore(of));
        }
        self
    }

    /// The configuration changed. `from` says of each new member where it stood among the
    /// old ones, if it did. Who is selected stays so as long as it is a member that weighs; if
    /// nobody is left, the lowest tier that is up is selected, before one of which nothing is
    /// known. Times that are running go on where the tier is the same.
    pub fn reform(
        &mut self,
        failback: Failback,
        all_down: AllDown,
        members: &[Member],
        from: &[Option<usize>],
        promoted: Option<Promotion>,
        now: Instant,
    ) {
        let tier_before = self.tier();
        let stays = |i: usize| -> bool {
            let (member, old) = (members[i], from[i].and_then(|old| self.members.get(old)));
            old.is_some_and(|old| old.tier == member.tier && old.weighs == member.weighs)
        };
        let mut up = BTreeMap::new();
        for (i, member) in members.iter().enumerate() {
            if member.weighs && member.fit() == State::Up {
                let before = self.up.get(&member.tier).filter(|_| stays(i));
                let since = up.entry(member.tier).or_insert(now);
                *since = before.copied().unwrap_or(*since).min(*since);
            }
        }
        let kept = match &self.selected {
            Target::Endpoints(serving) => {
                let serves = |i: &usize| from[*i].is_some_and(|old| serving.contains(&old));
                let all = (0..members.len()).filter(serves);
                let all: Vec<_> = all.filter(|i| members[*i].weighs).collect();
                let tier = all.iter().map(|i| members[*i].tier).min();
                let of_tier = |i: &usize| Some(members[*i].tier) == tier;
                Target::Endpoints(all.into_iter().filter(of_tier).collect())
            }
            Target::Refuse => Target::Refuse,
        };
        self.damping = match (failback, self.damping.take()) {
            (Failback::Auto { hold, max_hold }, Some(mut damping)) => {
                damping.reform(hold, max_hold);
                Some(damping)
            }
            (Failback::Auto { hold, max_hold }, None) => Some(Damping::new(hold, max_hold)),
            (Failback::Manual, _) => None,
        };
        self.all_down = all_down;
        self.members = members.to_vec();
        self.promoted = promoted.filter(|of| self.may_serve(of.endpoint));
        self.up = up;
        self.selected = match kept {
            Target::Refuse if all_down == AllDown::Refuse => Target::Refuse,
            Target::Endpoints(kept) if !kept.is_empty() => Target::Endpoints(kept),
            Target::Refuse | Target::Endpoints(_) => self.best(),
        };
        if self.tier() != tier_before {
            self.tell_damping(false, now);
        }
        // Who of the tier serves may be others now; the caller compares.
        drop(self.decide(By::Itself, now));
    }

    /// Of whom most is to be hoped, when nobody is selected.
    fn best(&self) -> Target {
        for state in [State::Up, State::Unknown] {
            if let Some(tier) = self.lowest(state) {
                return Target::Endpoints(self.of(tier, state));
            }
        }
        match (self.all_down, self.lowest(State::Down)) {
            (AllDown::Keep, Some(tier)) => Target::Endpoints(self.of(tier, State::Down)),
            (AllDown::Refuse, _) | (_, None) => Target::Refuse,
        }
    }

    /// Where new connections go.
    pub fn selected(&self) -> &Target {
        &self.selected
    }

    /// What was told of an endpoint last.
    pub fn state(&self, endpoint: usize) -> Option<State> {
        self.members.get(endpoint).map(|member| member.state)
    }

    /// Do new connections go to this endpoint?
    pub fn serves(&self, endpoint: usize) -> bool {
        matches!(&self.selected, Target::Endpoints(serving) if serving.contains(&endpoint))
    }

    /// The selected tier, unless clients are refused.
    pub fn tier(&self) -> Option<u8> {
        match &self.selected {
            Target::Endpoints(serving) => serving.first().map(|i| self.members[*i].tier),
            Target::Refuse => None,
        }
    }

    /// An endpoint's state changed.
    pub fn observe(&mut self, endpoint: usize, state: State, now: Instant) -> Option<Switch> {
        let member = self.members.get_mut(endpoint)?;
        member.state = state;
        let tier = member.tier;
        self.reckon(tier, By::Itself, now);
        self.decide(By::Itself, now)
    }

    /// An endpoint may have new connections from now on, or may not. Who wants none has not
    /// failed.
    pub fn weigh(&mut self, endpoint: usize, weighs: bool, now: Instant) -> Option<Switch> {
        let member = self.members.get_mut(endpoint)?;
        member.weighs = weighs;
        let tier = member.tier;
        self.reckon(tier, By::Order, now);
        self.decide(By::Itself, now)
    }

    /// Time passed; see [`Failover::due`].
    pub fn tick(&mut self, now: Instant) -> Option<Switch> {
        self.decide(By::Itself, now)
    }

    /// When [`Failover::tick`] will fail back if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        if self.frozen || self.promoted.is_some() {
            return None;
        }
        let damping = self.damping.as_ref()?;
        // Each lower tier has its own time; the first to come decides.
        let due = |(tier, since)| since + damping.hold(tier);
        self.lower_up().map(due).min()
    }

    /// When [`Failover::tick`] will find that the selected tier is steady, if nothing happens
    /// before; see [`damping`].
    pub fn steady_due(&self) -> Option<Instant> {
        self.damping.as_ref()?.due()
    }

    /// Tiers whose fail-backs wait longer than configured, and since how many relapses.
    pub fn damped(&self) -> Vec<Damped> {
        let damping = self.damping.as_ref();
        damping.map_or_else(Vec::new, |damping| damping.damped().collect())
    }

    /// Sets down since when a tier has been up.
    fn reckon(&mut self, tier: u8, by: By, now: Instant) {
        let (was, is) = (
            self.up.contains_key(&tier),
            !self.of(tier, State::Up).is_empty(),
        );
        match (was, is) {
            (true, false) => {
                self.up.remove(&tier);
                match &mut self.damping {
                    Some(damping) if by == By::Itself => damping.down(tier, now),
                    // Who is taken out of service has not failed.
                    Some(damping) => damping.rest(tier, now),
                    None => {}
                }
            }
            (false, true) => {
                self.up.insert(tier, now);
                if let Some(damping) = &mut self.damping {
                    damping.up(tier, now);
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Tells the damping which tier is selected, by a fail-back or otherwise.
    fn tell_damping(&mut self, back: bool, now: Instant) {
        let tier = self.tier();
        let up = tier.is_some_and(|tier| self.up.contains_key(&tier));
        if let Some(damping) = &mut self.damping {
            damping.select(tier, back, up, now);
        }
    }

    fn decide(&mut self, by: By, now: Instant) -> Option<Switch> {
        if let Some(damping) = &mut self.damping {
            damping.tick(now);
        }
        if self.frozen && by == By::Itself {
            return None;
        }
        self.settle_promotion();
        if let Some(promoted) = self.promoted {
            let to = Target::Endpoints(vec![promoted.endpoint]);
            return (self.selected != to).then(|| self.switch_to(to, Reason::Manual, now));
        }
        let Target::Endpoints(serving) = &self.selected else {
            let best = self.lowest(State::Up)?;
            return Some(self.switch(self.of(best, State::Up), Reason::Failback, now));
        };
        let tier = self.tier()?;
        let stay: Vec<_> = self
            .weighing()
            .filter(|(i, member)| match member.fit() {
                State::Up => member.tier == tier,
                State::Unknown => serving.contains(i),
                State::Down => false,
            })
            .map(|(i, _)| i)
            .collect();
        if stay.is_empty() {
            for state in [State::Up, State::Unknown] {
                if let Some(best) = self.lowest(state) {
                    let reason = match by {
                        _ if best == tier => Reason::MembersChanged,
                        By::Itself => Reason::MasterDown,
                        By::Order => Reason::Manual,
                    };
                    return Some(self.switch(self.of(best, state), reason, now));
                }
            }
            return match self.all_down {
                AllDown::Keep => None,
                AllDown::Refuse => Some(self.switch_to(Target::Refuse, Reason::AllDown, now)),
            };
        }
        if let Some(damping) = &self.damping {
            let held = |(tier, since): &(u8, Instant)| *since + damping.hold(*tier) <= now;
            let held = self.lower_up().filter(held);
            if let Some(best) = held.map(|(tier, _)| tier).min() {
                return Some(self.switch(self.of(best, State::Up), Reason::Failback, now));
            }
        }
        (stay != *serving).then(|| self.switch(stay, Reason::MembersChanged, now))
    }

    fn weighing(&self) -> impl Iterator<Item = (usize, &Member)> {
        let members = self.members.iter().enumerate();
        members.filter(|(_, member)| member.weighs)
    }

    /// Endpoints of a tier in this state.
    fn of(&self, tier: u8, state: State) -> Vec<usize> {
        self.weighing()
            .filter(|(_, member)| member.tier == tier && member.fit() == state)
            .map(|(i, _)| i)
            .collect()
    }

    /// The lowest tier with an endpoint in this state.
    fn lowest(&self, state: State) -> Option<u8> {
        let such = self.weighing().filter(|(_, member)| member.fit() == state);
        such.map(|(_, member)| member.tier).min()
    }

    /// Tiers below the selected one that are up, and since when.
    fn lower_up(&self) -> impl Iterator<Item = (u8, Instant)> {
        let tiers = 0..self.tier().unwrap_or(0);
        self.up.range(tiers).map(|(tier, since)| (*tier, *since))
    }

    fn switch(&mut self, to: Vec<usize>, reason: Reason, now: Instant) -> Switch {
        self.switch_to(Target::Endpoints(to), reason, now)
    }

    fn switch_to(&mut self, to: Target, reason: Reason, now: Instant) -> Switch {
        let before = self.tier();
        let from = std::mem::replace(&mut self.selected, to.clone());
        if self.tier() != before {
            // From refusing is no way back that had to be waited for.
            let lower = self
                .tier()
                .zip(before)
                .is_some_and(|(now, then)| now < then);
            let back = matches!(reason, Reason::Failback | Reason::Manual) && lower;
            self.tell_damping(back, now);
        }
        Switch { from, to, reason }
    }
}
