//! What becomes of flows whose endpoint is not selected any more, but well.
//!
//! [`Drains`] is pure, as [`super::Failover`] is. An endpoint that is left while it is
//! up, mostly the backup at a fail-back, keeps its flows for the service's `drain` time;
//! then they are reset at their next packet. It is over earlier when a sweep shows that
//! none is left, when the endpoint is selected again, or when it goes down: what
//! happens to its flows then is `on_marked_down`'s matter.

use std::time::Duration;

use tokio::time::Instant;

/// How long after the switch a flow may still begin with the endpoint that was left: a
/// client repeats an unanswered SYN sooner (RFC 6298 section 2: after a second, some
/// after three), and that one follows the selection.
const GRACE: Duration = Duration::from_secs(5);

/// One endpoint's part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is down, or it was not selected since the agent knows it, or its flows have ended.
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
}

impl Draining {
    fn begin(since: Instant, limit: Option<Duration>) -> Self {
        Self {
            since,
            until: limit.map(|limit| since + limit),
            flows: None,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// The state of one service's endpoints, numbered as the service lists them.
#[derive(Clone, Debug)]
pub struct Drains {
    limit: Option<Duration>,
    stages: Vec<Stage>,
}

impl Drains {
    /// For endpoints that nobody selected yet. No `limit` means that flows are never
    /// reset.
    pub fn new(limit: Option<Duration>, endpoints: usize) -> Self {
        Self {
            limit,
            stages: vec![Stage::Idle; endpoints],
        }
    }

    /// An earlier agent left this endpoint so long ago, if it ever selected it: whether
    /// there are flows a sweep will tell.
    pub fn inherit(&mut self, endpoint: usize, ago: Duration, now: Instant) {
        let since = now.checked_sub(ago).unwrap_or(now);
        let draining = Draining {
            flows: Some(0),
            ..Draining::begin(since, self.limit)
        };
        self.stages[endpoint] = Stage::Draining(draining).at(now);
    }

    /// The selection or an endpoint's health changed.
    pub fn follow(
        &mut self,
        is_selected: impl Fn(usize) -> bool,
        is_down: impl Fn(usize) -> bool,
        now: Instant,
    ) {
        for (i, stage) in self.stages.iter_mut().enumerate() {
            *stage = if is_selected(i) {
                Stage::Selected
            } else if is_down(i) {
                Stage::Idle
            } else if *stage == Stage::Selected {
                Stage::Draining(Draining::begin(now, self.limit)).at(now)
            } else {
                *stage
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

    fn drains(limit: Option<Duration>, selected: usize, now: Instant) -> Drains {
        let mut drains = Drains::new(limit, 2);
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
        let mut drains = Drains::new(Some(LIMIT), 3);
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
        drains.inherit(BACKUP, LIMIT - SECOND, now);
        assert_eq!(drains.due(), Some(now + SECOND));
        assert_eq!(drains.draining(BACKUP), None, "nobody knows of flows yet");
        drains.swept(BACKUP, 2, now);
        assert!(drains.draining(BACKUP).is_some());
        drains.inherit(BACKUP, 2 * LIMIT, now);
        assert!(drains.is_drained(BACKUP));
    }
}
