//! What a run of verdicts makes of an endpoint, as HAProxy's rise and fall.
//!
//! An endpoint goes down after `fall` failed checks in a row, and up after `rise`
//! good ones in a row. The first check of an endpoint that nothing is known of
//! decides at once, in either direction: there is no earlier state to protect, and
//! a service that starts wants to know now. After a restart of the agent the
//! endpoint that was in use is known to have been up, and needs `fall` failures
//! like any other time: a restart does not make anything more nervous.
//!
//! Two of these run for each endpoint: the core's decides, and the scheduler's, a copy
//! that is shown the same checks in the same order, tells when a burst of checks has
//! decided.

/// Is the endpoint fit?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No check has judged it yet.
    Unknown,
    /// Fit.
    Up,
    /// Unfit.
    Down,
}

impl State {
    /// The state's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// One endpoint's state machine.
#[derive(Clone, Debug)]
pub struct RiseFall {
    rise: u32,
    fall: u32,
    state: State,
    /// Checks in a row that spoke against the state.
    against: u32,
}

impl RiseFall {
    /// Begins in a state.
    pub fn new(rise: u32, fall: u32, state: State) -> Self {
        Self {
            rise,
            fall,
            state,
            against: 0,
        }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// Did the last check speak against the state, and not yet often enough to change it?
    pub fn undecided(&self) -> bool {
        self.against > 0
    }

    /// Checks in a row that spoke against the state.
    pub fn against(&self) -> u32 {
        self.against
    }

    /// So many of those change it.
    pub fn needed(&self) -> u32 {
        match self.state {
            State::Unknown => 1,
            State::Up => self.fall,
            State::Down => self.rise,
        }
    }

    /// Something else than a check took the endpoint down; the new state if it changed.
    /// It comes up by `rise` good checks, as from any other failure.
    pub fn take_down(&mut self) -> Option<State> {
        if self.state == State::Down {
            return None;
        }
        self.against = 0;
        self.state = State::Down;
        Some(State::Down)
    }

    /// Counts a check; the new state if it changed.
    pub fn observe(&mut self, success: bool) -> Option<State> {
        let (says, needed) = match (self.state, success) {
            (State::Unknown, true) => (State::Up, 1),
            (State::Unknown, false) => (State::Down, 1),
            (_, true) => (State::Up, self.rise),
            (_, false) => (State::Down, self.fall),
        };
        if says == self.state {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.state = says;
        Some(says)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, test_runner::TestCaseError};

    #[test]
    fn the_first_check_decides_at_once() {
        assert_eq!(
            RiseFall::new(2, 3, State::Unknown).observe(true),
            Some(State::Up)
        );
        assert_eq!(
            RiseFall::new(2, 3, State::Unknown).observe(false),
            Some(State::Down)
        );
    }

    #[test]
    fn a_good_check_forgives_failures_before_it() {
        let mut machine = RiseFall::new(2, 3, State::Up);
        for success in [false, false, true, false, false] {
            assert_eq!(machine.observe(success), None);
        }
        assert_eq!(machine.observe(false), Some(State::Down));
        for success in [true, false, true] {
            assert_eq!(machine.observe(success), None);
        }
        assert_eq!(machine.observe(true), Some(State::Up));
    }

    #[test]
    fn taken_down_it_comes_up_by_rise_good_checks() {
        let mut machine = RiseFall::new(2, 3, State::Up);
        assert_eq!(machine.observe(false), None);
        assert_eq!(machine.take_down(), Some(State::Down));
        assert_eq!(machine.take_down(), None);
        assert!(!machine.undecided());
        for success in [true, false, true] {
            assert_eq!(machine.observe(success), None);
        }
        assert_eq!(machine.observe(true), Some(State::Up));
    }

    /// A core's machine that something takes down now and then, and the scheduler's copy
    /// that does not hear of it.
    fn in_step(rise: u32, fall: u32, happened: &[Option<bool>]) -> Result<(), TestCaseError> {
        let mut core = RiseFall::new(rise, fall, State::Up);
        let mut copy = core.clone();
        for check in happened {
            match check {
                None => {
                    core.take_down();
                }
                Some(success) => {
                    core.observe(*success);
                    copy.observe(*success);
                }
            }
            if core.state() != State::Down {
                prop_assert_eq!(copy.state(), core.state());
                prop_assert_eq!(copy.undecided(), core.undecided());
            }
        }
        Ok(())
    }

    proptest! {
        /// Whenever the core calls the endpoint fit, the copy agrees with it.
        #[test]
        fn a_copy_that_misses_a_take_down_is_in_step_when_it_is_up_again(
            rise in 1u32..5,
            fall in 1u32..5,
            happened in prop::collection::vec(prop::option::weighted(0.9, any::<bool>()), 0..100),
        ) {
            in_step(rise, fall, &happened)?;
        }

        /// However it begins, a burst is over after the larger of rise and fall.
        #[test]
        fn checks_in_a_row_decide_within_rise_or_fall(
            rise in 1u32..5,
            fall in 1u32..5,
            up in any::<bool>(),
            before in prop::collection::vec(any::<bool>(), 0..20),
            burst in prop::collection::vec(any::<bool>(), 5),
        ) {
            let state = if up { State::Up } else { State::Down };
            let mut machine = RiseFall::new(rise, fall, state);
            for success in before {
                machine.observe(success);
            }
            let most = if machine.state() == State::Up { fall } else { rise } as usize;
            let made = burst.iter().position(|success| {
                machine.observe(*success);
                !machine.undecided()
            });
            prop_assert!(made.is_some_and(|last| last < most), "{made:?}");
        }

        /// The state changes exactly when the last `fall` (`rise`) checks since the last
        /// change all spoke against it, whatever came before.
        #[test]
        fn only_an_unbroken_run_changes_the_state(
            rise in 1u32..5,
            fall in 1u32..5,
            up in any::<bool>(),
            checks in prop::collection::vec(any::<bool>(), 0..100),
        ) {
            let mut state = if up { State::Up } else { State::Down };
            let mut machine = RiseFall::new(rise, fall, state);
            let mut since_change = Vec::new();
            for success in checks {
                since_change.push(success);
                let against = state != State::Up;
                let run = since_change.iter().rev().take_while(|s| **s == against).count();
                let needed = if against { rise } else { fall } as usize;
                let change = machine.observe(success);
                prop_assert_eq!(change.is_some(), run >= needed);
                if let Some(new) = change {
                    prop_assert_ne!(new, state);
                    state = new;
                    since_change.clear();
                }
                prop_assert_eq!(machine.state(), state);
            }
        }
    }
}
