//! Which endpoint a service's new connections go to.
//!
//! [`Failover`] is pure: it is told what happens and when, and says what to switch.
//! Its rules, in order:
//!
//! 1. While the selected endpoint is up, or nothing is known of it, it stays
//!    selected, except for a fail-back.
//! 2. When it is down, the service fails over at once: to the up endpoint of the
//!    lowest tier; if none is up, to the lowest of which nothing is known yet.
//! 3. When all are down the selection stays (`keep`), or clients are refused
//!    (`refuse`) until any endpoint is up; that one is then taken at once.
//! 4. Fail-back, from a higher tier to a lower: automatically when the lower
//!    endpoint has been up for the hold time without a break, or by order. A failed
//!    check that does not take it down is no break: `fall` says what counts.
//!
//! An endpoint that is down is never newly selected. At start the selection is the
//! one an earlier agent left, or else the endpoint of the lowest tier.

pub mod drain;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    config::{AllDown, Failback},
    health::State,
};

/// Where new connections go. Endpoints are numbered as the service lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this endpoint.
    Endpoint(usize),
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
    /// The endpoint that was selected went down. (It may have been a backup.)
    MasterDown,
    /// Back to a lower tier by itself, or to any endpoint from refusing.
    Failback,
    /// Back to a lower tier by order.
    Manual,
    /// No endpoint is up, and the service refuses.
    AllDown,
    /// The same endpoint at another address.
    AddressChanged,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Initial,
        Self::Inherited,
        Self::MasterDown,
        Self::Failback,
        Self::Manual,
        Self::AllDown,
        Self::AddressChanged,
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
        }
    }
}

/// A change of selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// It would happen by itself.
    #[error("the service fails back by itself (failback mode auto)")]
    Automatic,
    /// There is no lower tier.
    #[error("the selected endpoint already is of the lowest tier")]
    Lowest,
    /// Nothing to go back to.
    #[error("no endpoint of a lower tier is up")]
    NoneUp,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    tier: u8,
    state: State,
    /// Since when it has been in this state without a break.
    since: Instant,
}

/// One service's state machine.
#[derive(Clone, Debug)]
pub struct Failover {
    failback: Failback,
    all_down: AllDown,
    members: Vec<Member>,
    selected: Target,
}

impl Failover {
    /// `members` are tier and state of each endpoint, at least one. An inherited
    /// selection that names none of them is ignored.
    pub fn new(
        failback: Failback,
        all_down: AllDown,
        members: &[(u8, State)],
        inherited: Option<Target>,
        now: Instant,
    ) -> Self {
        let lowest = (0..members.len()).min_by_key(|i| members[*i].0);
        let fits = |target: &Target| match target {
            Target::Endpoint(i) => *i < members.len(),
            Target::Refuse => all_down == AllDown::Refuse,
        };
        Self {
            failback,
            all_down,
            members: members
                .iter()
                .map(|&(tier, state)| Member {
                    tier,
                    state,
                    since: now,
                })
                .collect(),
            selected: inherited
                .filter(fits)
                .or(lowest.map(Target::Endpoint))
                .unwrap_or(Target::Refuse),
        }
    }

    /// Where new connections go.
    pub fn selected(&self) -> Target {
        self.selected
    }

    /// An endpoint's state changed.
    pub fn observe(&mut self, endpoint: usize, state: State, now: Instant) -> Option<Switch> {
        let member = self.members.get_mut(endpoint)?;
        if member.state != state {
            member.state = state;
            member.since = now;
        }
        self.decide(now)
    }

    /// Time passed; see [`Failover::due`].
    pub fn tick(&mut self, now: Instant) -> Option<Switch> {
        self.decide(now)
    }

    /// When [`Failover::tick`] will fail back if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        let Failback::Auto { hold } = self.failback else {
            return None;
        };
        // Each lower endpoint has its own time; the first to come decides.
        self.lower_up().map(|i| self.members[i].since + hold).min()
    }

    /// Somebody orders to go back to the lowest tier that is up, without hold time.
    pub fn order_failback(&mut self) -> Result<Switch, NoFailback> {
        if let Failback::Auto { .. } = self.failback {
            return Err(NoFailback::Automatic);
        }
        if let Target::Endpoint(i) = self.selected
            && self.members.iter().all(|m| m.tier >= self.members[i].tier)
        {
            return Err(NoFailback::Lowest);
        }
        let best = self
            .lower_up()
            .min_by_key(|i| self.members[*i].tier)
            .ok_or(NoFailback::NoneUp)?;
        Ok(self.switch(Target::Endpoint(best), Reason::Manual))
    }

    fn decide(&mut self, now: Instant) -> Option<Switch> {
        let selected = match self.selected {
            Target::Refuse => {
                let best = self.lowest(State::Up)?;
                return Some(self.switch(Target::Endpoint(best), Reason::Failback));
            }
            Target::Endpoint(i) => i,
        };
        if self.members[selected].state == State::Down {
            if let Some(best) = self
                .lowest(State::Up)
                .or_else(|| self.lowest(State::Unknown))
            {
                return Some(self.switch(Target::Endpoint(best), Reason::MasterDown));
            }
            return match self.all_down {
                AllDown::Keep => None,
                AllDown::Refuse => Some(self.switch(Target::Refuse, Reason::AllDown)),
            };
        }
        let Failback::Auto { hold } = self.failback else {
            return None;
        };
        let best = self
            .lower_up()
            .filter(|i| held(self.members[*i].since, hold, now))
            .min_by_key(|i| self.members[*i].tier)?;
        Some(self.switch(Target::Endpoint(best), Reason::Failback))
    }

    fn lowest(&self, state: State) -> Option<usize> {
        (0..self.members.len())
            .filter(|i| self.members[*i].state == state)
            .min_by_key(|i| self.members[*i].tier)
    }

    /// Up endpoints of lower tiers than the selected one.
    fn lower_up(&self) -> impl Iterator<Item = usize> {
        let tier = match self.selected {
            Target::Endpoint(i) => self.members[i].tier,
            Target::Refuse => 0,
        };
        (0..self.members.len())
            .filter(move |i| self.members[*i].state == State::Up && self.members[*i].tier < tier)
    }

    fn switch(&mut self, to: Target, reason: Reason) -> Switch {
        let from = std::mem::replace(&mut self.selected, to);
        Switch { from, to, reason }
    }
}

fn held(since: Instant, hold: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= hold
}
