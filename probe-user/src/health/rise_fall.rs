//! What a run of verdicts makes of an endpoint, as HAProxy's rise and fall.
//!
//! An endpoint goes down after `fall` failed checks in a row, and up after `rise`
//! good ones in a row. The first check of an endpoint that nothing is known of
//! decides at once, in either direction: there is no earlier state to protect, and
//! a service that starts wants to know now. After a restart of the agent the
//! endpoint that was in use is known to have been up, and needs `fall` failures
//! like any other time: a restart does not make anything more nervous.

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
    use proptest::prelude::*;

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

    proptest! {
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
