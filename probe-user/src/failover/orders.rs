//! What operators order, and how it bends the rules of [`Failover`].
//!
//! The words are HAProxy's (`set server ... state`), and so is what they mean: an endpoint in
//! *drain* gets no new connections and is checked as ever; one in *maint* is not checked either and
//! counts as down; *ready* ends both. *Promoting* an endpoint selects it whatever its tier, and
//! holds it until it is down, taken out of service, or there is another order: it is a planned
//! failover, not a pin. A service that is *frozen* goes nowhere by itself.
//!
//! An order is carried out even where the service is frozen, since it is not automatic. What an
//! order would do is found out by giving it to a copy.

use tokio::time::Instant;

use super::{By, Failover, NoFailback, Reason, Switch, Target};
use crate::health::State;

/// What an operator says of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Its checks decide.
    #[default]
    Ready,
    /// No new connections; its checks go on.
    Drain,
    /// No new connections and no checks; it counts as down.
    Maint,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maint];

    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    /// The mode of a word.
    pub fn of_label(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.label() == word)
    }
}

/// An endpoint that an operator chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// Which.
    pub endpoint: usize,
    /// Although it was not up: until it has been.
    pub forced: bool,
}

/// Why an endpoint is not promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPromotion {
    /// It would refuse or ignore its clients.
    #[error("it is {}, and clients would fail; --force promotes it all the same", .0.label())]
    NotUp(State),
    /// The operator has to say first that it may serve.
    #[error("it is in {}; say `ready` first", .0.label())]
    OutOfService(Mode),
    /// The configuration gives it no connections, or nobody knows where it is.
    #[error("its weight is 0, or its name has no address, so it takes no new connections")]
    Weightless,
}

impl Failover {
    /// Goes on with the orders of an earlier agent. To be called before anything happens.
    #[must_use]
    pub fn with_orders(mut self, promoted: Option<Promotion>, frozen: bool, now: Instant) -> Self {
        self.frozen = frozen;
        self.promoted = promoted.filter(|of| self.may_serve(of.endpoint));
        self.settle_promotion();
        if let Some(promoted) = self.promoted {
            let to = Target::Endpoints(vec![promoted.endpoint]);
            if self.selected != to {
                self.switch_to(to, Reason::Manual, now);
            }
        }
        self
    }

    /// Is it anybody, and not one whose place nobody knows?
    pub(super) fn may_serve(&self, endpoint: usize) -> bool {
        let member = self.members.get(endpoint);
        member.is_some_and(|of| of.weighs || of.state != State::Down)
    }

    /// What an operator says of an endpoint.
    pub fn mode(&self, endpoint: usize) -> Mode {
        self.members.get(endpoint).map_or(Mode::Ready, |of| of.mode)
    }

    /// The endpoint that an operator chose, while that holds.
    pub fn promoted(&self) -> Option<Promotion> {
        self.promoted
    }

    /// Does nothing but an order change the selection?
    pub fn frozen(&self) -> bool {
        self.frozen
    }

    /// Since when a tier has been up without a break, if it is.
    pub fn up_since(&self, tier: u8) -> Option<Instant> {
        self.up.get(&tier).copied()
    }

    /// Tiers that are up and better than the selected one.
    pub fn better_up(&self) -> Vec<u8> {
        self.lower_up().map(|(tier, _)| tier).collect()
    }

    /// Changes an endpoint's mode. Who comes out of maintenance, or goes into it, is nobody
    /// that something is known of.
    pub fn order_mode(&mut self, endpoint: usize, mode: Mode, now: Instant) -> Option<Switch> {
        let member = self.members.get_mut(endpoint)?;
        if member.mode == Mode::Maint || mode == Mode::Maint {
            member.state = State::Unknown;
        }
        member.mode = mode;
        let tier = member.tier;
        self.reckon(tier, By::Order, now);
        self.decide(By::Order, now)
    }

    /// Selects an endpoint until it is down. Nothing if it is selected already.
    pub fn order_promotion(
        &mut self,
        endpoint: usize,
        force: bool,
        now: Instant,
    ) -> Result<Option<Switch>, NoPromotion> {
        let Some(member) = self.members.get(endpoint) else {
            return Ok(None);
        };
        match member.mode {
            Mode::Ready => {}
            mode @ (Mode::Drain | Mode::Maint) => return Err(NoPromotion::OutOfService(mode)),
        }
        if !member.weighs {
            return Err(NoPromotion::Weightless);
        }
        let forced = match member.state {
            State::Up => false,
            State::Down | State::Unknown if force => true,
            state => return Err(NoPromotion::NotUp(state)),
        };
        self.promoted = Some(Promotion { endpoint, forced });
        Ok(self.decide(By::Order, now))
    }

    /// Goes back to the lowest tier that is up, without hold time, and ends a promotion.
    pub fn order_failback(&mut self, now: Instant) -> Result<Switch, NoFailback> {
        if self.promoted.is_none()
            && let Some(tier) = self.tier()
            && self.weighing().all(|(_, member)| member.tier >= tier)
        {
            return Err(NoFailback::Lowest);
        }
        let best = match self.promoted {
            Some(_) => self.lowest(State::Up),
            None => self.lower_up().map(|(tier, _)| tier).min(),
        };
        let to = self.of(best.ok_or(NoFailback::NoneUp)?, State::Up);
        self.promoted = None;
        Ok(self.switch(to, Reason::Manual, now))
    }

    /// Holds the selection, or lets it go.
    pub fn order_freeze(&mut self, frozen: bool, now: Instant) -> Option<Switch> {
        self.frozen = frozen;
        self.decide(By::Itself, now)
    }

    /// Forgets a promotion that is over.
    pub(super) fn settle_promotion(&mut self) {
        let Some(promoted) = &mut self.promoted else {
            return;
        };
        let member = &self.members[promoted.endpoint];
        let over = match member.state {
            _ if member.mode != Mode::Ready => true,
            State::Up => {
                promoted.forced = false;
                false
            }
            State::Unknown => false,
            State::Down => !promoted.forced,
        };
        if over {
            self.promoted = None;
        }
    }
}
