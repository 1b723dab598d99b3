//! What becomes of flows whose endpoint is not selected any more.
//!
//! [`Drains`] is pure, as [`super::Failover`] is. An endpoint that is left keeps its flows for
//! a time, then they are reset: while it is up, mostly the backup at a fail-back, as
//! `on_failback` says, and while it is down as `on_marked_down` says. It is over earlier when a
//! sweep shows that no flow is left, or when the endpoint is selected again. One that goes down
//! while it drains gets no more time than it had; one that comes up again before it is selected
//! keeps its flows: nobody left it for a better one.

use std::time::Duration;

use tokio::time::Instant;

/// How long after the switch a flow may still begin with the endpoint that was left: a
/// client repeats an unanswered SYN sooner (RFC 6298 section 2: after a second, some
/// after three), and that one follows the selection.
const GRACE: Duration = Duration::from_secs(5);

/// One endpoint's part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It was not selected since the agent knows it, or its flows have ended, or it is down and
    /// its flows have no time of their own: they are reset at once, or kept.
    Idle,
    /// New flows go to it.
    Selected,
    /// It was left; its flows may end by themselves.
    Draining(Draining),
    /// Their time is over.
    Drained(Draining),
}

/// An endpoint that was left with flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// Since when.
    pub since: Instant,
    /// When its flows are reset; nothing if never.
    pub until: Option<Instant>,
    /// How many are left, if a sweep has counted them.
    pub flows: Option<u64>,
    /// Because it is down?
    down: bool,
}

impl Draining {
    fn begin(since: Instant, limit: Option<Duration>, down: bool) -> Self {
        Self {
            since,
            until: limit.map(|limit| since + limit),
            flows: None,
            down,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// The state of one service's endpoints, numbered as the service lists them.
#[derive(Clone, Debug)]
pub struct Drains {
    limits: Limits,
    stages: Vec<Stage>,
    /// What operators allow instead of [`Limits::left`], see [`Drains::allow`].
    allowed: Vec<Option<Left>>,
}

/// For how long flows may go on with an endpoint that was left; nothing if as long as they like.
pub type Left = Option<Duration>;

/// How long flows may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// With an endpoint that is up and was left; nothing if as long as they like.
    pub left: Option<Duration>,
    /// With an endpoint that went down; nothing if its flows have no time of their own.
    pub down: Option<Duration>,
}

/// How an earlier agent marked an endpoint's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// They went on.
    Up,
    /// It was down.
    Down,
    /// Their time was over.
    Drained,
}

impl Drains {
    /// For endpoints that nobody selected yet.
    pub fn new(limits: Limits, endpoints: usize) -> Self {
        Self {
            limits,
            stages: vec![Stage::Idle; endpoints],
            allowed: vec![None; endpoints],
        }
    }

    /// An operator decides how long this endpoint's flows may go on when it is left, or now if
    /// it was, until it is selected again; nothing if the service's policy does.
    pub fn allow(&mut self, endpoint: usize, left: Option<Left>, now: Instant) {
        if self.allowed[endpoint] == left {
            return;
        }
        self.allowed[endpoint] = left;
        if let (Some(left), Stage::Draining(draining)) = (left, &mut self.stages[endpoint])
            && !draining.down
        {
            draining.until = left.map(|left| now + left);
        }
    }

    /// What an operator decided for each endpoint.
    pub fn allowed(&self, endpoint: usize) -> Option<Left> {
        self.allowed[endpoint]
    }

    fn left(&self, endpoint: usize) -> Left {
        self.allowed[endpoint].unwrap_or(self.limits.left)
    }

    /// An earlier agent left this endpoint so long ago, if it ever selected it: whether
    /// there are flows a sweep will tell.
    pub fn inherit(&mut self, endpoint: usize, ago: Duration, before: Before, now: Instant) {
        let since = now.checked_sub(ago).unwrap_or(now);
        let down = before == Before::Down;
        let limit = if down {
            self.limits.down
        } else {
            self.left(endpoint)
        };
        let draining = Draining {
            flows: Some(0),
            ..Draining::begin(since, limit, down)
        };
        self.stages[endpoint] = if before == Before::Drained {
            Stage::Drained(draining)
        } else {
            Stage::Draining(draining).at(now)
        };
    }

    /// The selection or an endpoint's health changed.
    pub fn follow(
        &mut self,
        is_selected: impl Fn(usize) -> bool,
        is_down: impl Fn(usize) -> bool,
        now: Instant,
    ) {
        for i in 0..self.stages.len() {
            let stage = self.stages[i];
            self.stages[i] = if is_selected(i) {
                self.allowed[i] = None;
                Stage::Selected
            } else if is_down(i) {
                stage.while_down(self.limits.down, now)
            } else {
                stage.while_up(self.left(i), now)
            };
        }
    }

    /// When [`Drains::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let until = |stage: &Stage| match stage {
            Stage::Draining(draining) => draining.until,
            _ => None,
        };
        self.stages.iter().filter_map(until).min()
    }

    /// Time passed. Answers for which endpoints the time is over now.
    pub fn tick(&mut self, now: Instant) -> Vec<usize> {
        let mut over = Vec::new();
        for (i, stage) in self.stages.iter_mut().enumerate() {
            let after = stage.at(now);
            if after != *stage {
                over.push(i);
            }
            *stage = after;
        }
        over
    }

    /// A sweep that began then found so many flows of the endpoint.
    pub fn swept(&mut self, endpoint: usize, flows: u64, began: Instant) {
        let stage = &mut self.stages[endpoint];
        if let Stage::Draining(draining) | Stage::Drained(draining) = stage
            && began >= draining.since
        {
            draining.flows = Some(flows);
            if flows == 0 && began >= draining.since + GRACE {
                *stage = Stage::Idle;
            }
        }
    }

    /// Is this endpoint's time over?
    pub fn is_drained(&self, endpoint: usize) -> bool {
        matches!(self.stages[endpoint], Stage::Drained(_))
    }

    /// What there is to say of an endpoint that may still have flows to lose.
    pub fn draining(&self, endpoint: usize) -> Option<Draining> {
        match self.stages[endpoint] {
            Stage::Draining(draining) | Stage::Drained(draining) if draining.flows != Some(0) => {
                Some(draining)
            }
            _ => None,
        }
    }
}

impl Stage {
    fn while_up(self, limit: Option<Duration>, now: Instant) -> Self {
        match self {
            Self::Selected => Self::Draining(Draining::begin(now, limit, false)).at(now),
            Self::Draining(draining) | Self::Drained(draining) if draining.down => {
                Self::Draining(Draining {
                    until: None,
                    down: false,
                    ..draining
                })
            }
            stage => stage,
        }
    }

    fn while_down(self, limit: Option<Duration>, now: Instant) -> Self {
        let Some(time) = limit else {
            return Self::Idle;
        };
        match self {
            Self::Selected => Self::Draining(Draining::begin(now, limit, true)).at(now),
            Self::Draining(draining) if !draining.down => {
                let until = draining.until.unwrap_or(now + time).min(now + time);
                Self::Draining(Draining {
                    until: Some(until),
                    down: true,
                    ..draining
                })
                .at(now)
            }
            stage => stage,
        }
    }

    fn at(self, now: Instant) -> Self {
        match self {
            Self::Draining(draining) if draining.is_over(now) => Self::Drained(draining),
            stage => stage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(60);
    const MASTER: usize = 0;
    const BACKUP: usize = 1;

    fn limits(left: Option<Duration>) -> Limits {
        Limits { left, down: None }
    }

    fn drains(limit: Option<Duration>, selected: usize, now: Instant) -> Drains {
        let mut drains = Drains::new(limits(limit), 2);
        drains.follow(|i| i == selected, |_| false, now);
        drains
    }

    #[test]
    fn what_was_never_selected_has_nothing_to_drain() {
        let now = Instant::now();
        let mut drains = drains(Some(LIMIT), MASTER, now);
        assert_eq!(drains.draining(BACKUP), None);
        assert_eq!(drains.due(), None);
        assert!(drains.tick(now + 10 * LIMIT).is_empty());
        drains.swept(BACKUP, 7, now);
        assert_eq!(drains.draining(BACKUP), None);
    }

    #[test]
    fn who_is_left_has_its_time() {
        let now = Instant::now();
        let mut drains = drains(Some(LIMIT), BACKUP, now);
        drains.follow(|i| i == MASTER, |_| false, now);
        assert_eq!(drains.due(), Some(now + LIMIT));
        // What changes elsewhere does not begin it anew.
        drains.follow(|i| i == MASTER, |_| false, now + SECOND);
        assert_eq!(drains.due(), Some(now + LIMIT));
        assert!(drains.tick(now + LIMIT - SECOND).is_empty());
        assert!(!drains.is_drained(BACKUP));
        assert_eq!(drains.tick(now + LIMIT), [BACKUP]);
        assert!(drains.is_drained(BACKUP));
        assert!(drains.tick(now + LIMIT).is_empty(), "said once");
        assert_eq!(drains.due(), None);
    }

    #[test]
    fn selected_again_or_down_ends_it() {
        let now = Instant::now();
        for late in [SECOND, LIMIT] {
            let mut selected = drains(Some(LIMIT), BACKUP, now);
            selected.follow(|i| i == MASTER, |_| false, now);
            selected.tick(now + late);
            let mut down = selected.clone();
            selected.follow(|i| i == BACKUP, |i| i == MASTER, now + late);
            down.follow(|i| i == MASTER, |i| i == BACKUP, now + late);
            for mut drains in [selected, down] {
                assert_eq!(drains.draining(BACKUP), None);
                assert!(!drains.is_drained(BACKUP));
                assert!(drains.tick(now + 10 * LIMIT).is_empty());
            }
        }
    }

    /// A tier of several endpoints is left because some of them are down.
    #[test]
    fn who_is_well_drains_though_others_are_down() {
        let now = Instant::now();
        let mut drains = Drains::new(limits(Some(LIMIT)), 3);
        drains.follow(|i| i < 2, |_| false, now);
        drains.follow(|i| i == 2, |i| i == 0, now);
        assert_eq!(drains.draining(0), None);
        assert!(drains.draining(1).is_some());
    }

    #[test]
    fn no_time_at_all_and_all_the_time() {
        let now = Instant::now();
        let mut at_once = drains(Some(Duration::ZERO), BACKUP, now);
        at_once.follow(|i| i == MASTER, |_| false, now);
        assert!(at_once.is_drained(BACKUP));
        let mut never = drains(None, BACKUP, now);
        never.follow(|i| i == MASTER, |_| false, now);
        assert_eq!(never.due(), None);
        assert!(never.tick(now + 1000 * LIMIT).is_empty());
        assert_eq!(never.draining(BACKUP).map(|d| d.until), Some(None));
    }

    #[test]
    fn without_flows_it_is_over() {
        let now = Instant::now();
        let mut drains = drains(Some(LIMIT), BACKUP, now);
        drains.follow(|i| i == MASTER, |_| false, now + SECOND);
        let flows = |drains: &Drains| drains.draining(BACKUP).map(|d| d.flows);
        // This one did not see the switch.
        drains.swept(BACKUP, 0, now);
        assert_eq!(flows(&drains), Some(None));
        drains.swept(BACKUP, 3, now + SECOND);
        assert_eq!(flows(&drains), Some(Some(3)));
        // A handshake may not have come to its end.
        drains.swept(BACKUP, 0, now + 2 * SECOND);
        assert_eq!(flows(&drains), None);
        assert!(drains.due().is_some());
        drains.swept(BACKUP, 1, now + 3 * SECOND);
        assert_eq!(flows(&drains), Some(Some(1)));
        drains.swept(BACKUP, 0, now + SECOND + GRACE);
        assert_eq!((flows(&drains), drains.due()), (None, None));
        drains.swept(BACKUP, 1, now + 2 * GRACE);
        assert_eq!(flows(&drains), None);
    }

    #[test]
    fn after_a_restart_the_clock_has_run_on() {
        let now = Instant::now() + 10 * LIMIT;
        let mut drains = drains(Some(LIMIT), MASTER, now);
        drains.inherit(BACKUP, LIMIT - SECOND, Before::Up, now);
        assert_eq!(drains.due(), Some(now + SECOND));
        assert_eq!(drains.draining(BACKUP), None, "nobody knows of flows yet");
        drains.swept(BACKUP, 2, now);
        assert!(drains.draining(BACKUP).is_some());
        drains.inherit(BACKUP, 2 * LIMIT, Before::Up, now);
        assert!(drains.is_drained(BACKUP));
        // What was told to be reset stays so.
        drains.inherit(BACKUP, SECOND, Before::Drained, now);
        assert!(drains.is_drained(BACKUP));
    }

    fn with_time_when_down(left: Option<Duration>) -> Drains {
        let down = Some(LIMIT);
        Drains::new(Limits { left, down }, 2)
    }

    const fn none(_: usize) -> bool {
        false
    }

    #[test]
    fn who_goes_down_may_have_time_too() {
        let now = Instant::now();
        let mut drains = with_time_when_down(Some(Duration::ZERO));
        drains.follow(|i| i == MASTER, none, now);
        let is_down = |i| i == MASTER;
        drains.follow(|i| i == BACKUP, is_down, now);
        assert_eq!(drains.due(), Some(now + LIMIT));
        // What changes elsewhere does not begin it anew.
        drains.follow(|i| i == BACKUP, is_down, now + SECOND);
        assert_eq!(drains.tick(now + LIMIT), [MASTER]);
        drains.follow(|i| i == BACKUP, is_down, now + LIMIT);
        assert!(drains.is_drained(MASTER));
    }

    /// Nobody left it for a better one, so `left` is not about it.
    #[test]
    fn up_again_in_time_its_flows_go_on() {
        let now = Instant::now();
        for late in [SECOND, LIMIT] {
            let mut drains = with_time_when_down(Some(Duration::ZERO));
            drains.follow(|i| i == MASTER, none, now);
            drains.follow(|i| i == BACKUP, |i| i == MASTER, now);
            drains.tick(now + late);
            drains.follow(|i| i == BACKUP, none, now + late);
            assert!(!drains.is_drained(MASTER));
            assert_eq!(drains.due(), None);
            // And down once more.
            drains.follow(|i| i == BACKUP, |i| i == MASTER, now + late);
            assert_eq!(drains.due(), Some(now + late + LIMIT));
        }
    }

    #[test]
    fn down_while_it_drains_it_gets_no_more_time() {
        let now = Instant::now();
        let ten = 10 * SECOND;
        for (left, until) in [(None, ten + LIMIT), (Some(20 * SECOND), 20 * SECOND)] {
            let mut drains = with_time_when_down(left);
            drains.follow(|i| i == BACKUP, none, now);
            drains.follow(|i| i == MASTER, none, now);
            drains.follow(|i| i == MASTER, |i| i == BACKUP, now + ten);
            assert_eq!(drains.due(), Some(now + until));
        }
    }

    #[test]
    fn a_restart_keeps_the_time_of_who_is_down() {
        let now = Instant::now() + 10 * LIMIT;
        let mut drains = with_time_when_down(None);
        drains.inherit(MASTER, LIMIT - SECOND, Before::Down, now);
        drains.follow(|i| i == BACKUP, |i| i == MASTER, now);
        assert_eq!(drains.due(), Some(now + SECOND));
    }
}
