//! Cases, and properties over any sequence of what can happen. Time is explicit.

use std::time::Duration;

use proptest::prelude::*;

use super::{orders::NoPromotion, *};

const HOLD: Duration = Duration::from_secs(5);
const MAX_HOLD: Duration = Duration::from_secs(45);
const AUTO: Failback = Failback::Auto {
    hold: HOLD,
    max_hold: MAX_HOLD,
};

fn member(tier: u8, state: State) -> Member {
    Member {
        tier,
        weighs: true,
        state,
        mode: Mode::Ready,
    }
}

fn two(failback: Failback, all_down: AllDown, now: Instant) -> Failover {
    let unknown = [member(0, State::Unknown), member(1, State::Unknown)];
    Failover::new(failback, all_down, &unknown, None, now)
}

fn to(switch: Option<Switch>) -> Option<(Target, Reason)> {
    switch.map(|s| (s.to, s.reason))
}

fn at(members: &[usize]) -> Target {
    Target::Endpoints(members.to_vec())
}

#[test]
fn over_at_once_and_back_after_the_hold_time() {
    let start = Instant::now();
    let after = |s| start + Duration::from_secs(s);
    let mut f = two(AUTO, AllDown::Keep, start);
    assert_eq!(f.selected(), &at(&[0]));
    assert_eq!(f.observe(0, State::Up, start), None);
    assert_eq!(f.observe(1, State::Up, start), None);
    assert_eq!(
        to(f.observe(0, State::Down, after(10))),
        Some((at(&[1]), Reason::MasterDown))
    );
    assert_eq!(f.due(), None);
    assert_eq!(f.observe(0, State::Up, after(20)), None);
    assert_eq!(f.due(), Some(after(25)));
    assert_eq!(f.tick(after(24)), None);
    // A relapse begins the hold time again.
    assert_eq!(f.observe(0, State::Down, after(24)), None);
    assert_eq!(f.due(), None);
    assert_eq!(f.observe(0, State::Up, after(30)), None);
    assert_eq!(f.tick(after(34)), None);
    assert_eq!(to(f.tick(after(35))), Some((at(&[0]), Reason::Failback)));
    assert_eq!(f.due(), None);
}

#[test]
fn the_master_takes_over_from_a_lost_backup_without_hold() {
    let start = Instant::now();
    let mut f = two(AUTO, AllDown::Keep, start);
    f.observe(1, State::Up, start);
    f.observe(0, State::Down, start);
    f.observe(0, State::Up, start);
    assert_eq!(
        to(f.observe(1, State::Down, start)),
        Some((at(&[0]), Reason::MasterDown))
    );
}

#[test]
fn a_backup_that_nobody_checked_yet_is_better_than_a_master_that_is_down() {
    let start = Instant::now();
    let mut f = two(AUTO, AllDown::Refuse, start);
    assert_eq!(
        to(f.observe(0, State::Down, start)),
        Some((at(&[1]), Reason::MasterDown))
    );
    assert_eq!(
        to(f.observe(1, State::Down, start)),
        Some((Target::Refuse, Reason::AllDown))
    );
}

#[test]
fn all_down() {
    let start = Instant::now();
    let mut keep = two(AUTO, AllDown::Keep, start);
    keep.observe(1, State::Down, start);
    assert_eq!(keep.observe(0, State::Down, start), None);
    assert_eq!(keep.selected(), &at(&[0]));
    // Whoever comes first serves.
    assert_eq!(
        to(keep.observe(1, State::Up, start)),
        Some((at(&[1]), Reason::MasterDown))
    );
    let mut refuse = two(Failback::Manual, AllDown::Refuse, start);
    refuse.observe(1, State::Down, start);
    assert_eq!(
        to(refuse.observe(0, State::Down, start)),
        Some((Target::Refuse, Reason::AllDown))
    );
    assert_eq!(
        to(refuse.observe(1, State::Up, start)),
        Some((at(&[1]), Reason::Failback))
    );
}

#[test]
fn manual_failback() {
    let start = Instant::now();
    let later = start + Duration::from_secs(3600);
    let mut f = two(Failback::Manual, AllDown::Keep, start);
    assert_eq!(f.order_failback(start), Err(NoFailback::Lowest));
    f.observe(1, State::Up, start);
    f.observe(0, State::Down, start);
    assert_eq!(f.order_failback(start), Err(NoFailback::NoneUp));
    f.observe(0, State::Up, start);
    assert_eq!(f.due(), None);
    assert_eq!(f.tick(later), None);
    let switch = f.order_failback(start).unwrap();
    assert_eq!((switch.to, switch.reason), (at(&[0]), Reason::Manual));
}

#[test]
fn an_order_does_not_wait_for_the_hold_time() {
    let start = Instant::now();
    let mut f = two(AUTO, AllDown::Keep, start);
    assert_eq!(f.order_failback(start), Err(NoFailback::Lowest));
    f.observe(1, State::Up, start);
    f.observe(0, State::Down, start);
    assert_eq!(f.order_failback(start), Err(NoFailback::NoneUp));
    f.observe(0, State::Up, start);
    let switch = f.order_failback(start).unwrap();
    assert_eq!((switch.to, switch.reason), (at(&[0]), Reason::Manual));
    // It was no proof that the master is well.
    let later = start + Duration::from_secs(1);
    f.observe(0, State::Down, later);
    f.observe(0, State::Up, later);
    assert_eq!(f.due(), Some(later + HOLD * 2));
    assert!(f.order_failback(later).is_ok());
}

/// The hold times that a master waits which stays up for `stays` after each fail-back.
fn holds(failback: Failback, stays: Duration, times: usize) -> Vec<u64> {
    let mut now = Instant::now();
    let mut f = two(failback, AllDown::Keep, now);
    f.observe(1, State::Up, now);
    f.observe(0, State::Up, now);
    let mut holds = Vec::new();
    for _ in 0..times {
        now += stays;
        f.tick(now);
        let over = f.observe(0, State::Down, now);
        assert_eq!(to(over), Some((at(&[1]), Reason::MasterDown)));
        now += Duration::from_millis(100);
        let at_once = f.observe(0, State::Up, now);
        let due = f.due().unwrap_or(now);
        holds.push(u64::try_from((due - now).as_millis()).unwrap());
        let back = at_once.or_else(|| {
            assert_eq!(f.tick(due - Duration::from_nanos(1)), None);
            f.tick(due)
        });
        assert_eq!(to(back), Some((at(&[0]), Reason::Failback)));
        now = due;
    }
    holds
}

#[test]
fn a_master_that_relapses_waits_twice_as_long_up_to_the_bound() {
    let soon = Duration::from_secs(1);
    let expected = [5000, 10_000, 20_000, 40_000, 45_000, 45_000];
    assert_eq!(holds(AUTO, soon, 6), expected);
    // What is steady is no relapse.
    assert_eq!(holds(AUTO, damping::STEADY, 3), [5000; 3]);
    let nearly = damping::STEADY.saturating_sub(Duration::from_millis(1));
    assert_eq!(holds(AUTO, nearly, 3), [5000, 10_000, 20_000]);
    // As long as the hold time, where that is longer.
    let auto = |hold, max_hold| Failback::Auto {
        hold: Duration::from_millis(hold),
        max_hold: Duration::from_millis(max_hold),
    };
    let long = auto(100_000, 400_000);
    let minute_and_a_half = Duration::from_secs(90);
    let expected = [100_000, 200_000, 400_000, 400_000];
    assert_eq!(holds(long, minute_and_a_half, 4), expected);
    assert_eq!(holds(long, Duration::from_secs(100), 3), [100_000; 3]);
    // No time at all grows too, unless it must not.
    assert_eq!(holds(auto(0, 3000), soon, 5), [0, 1000, 2000, 3000, 3000]);
    assert_eq!(holds(auto(0, 0), soon, 3), [0; 3]);
    assert_eq!(holds(auto(5000, 5000), soon, 3), [5000; 3]);
}

#[test]
fn a_steady_master_is_forgiven_and_a_backup_s_time_forgives_nobody() {
    let mut now = Instant::now();
    let mut f = two(AUTO, AllDown::Keep, now);
    f.observe(1, State::Up, now);
    f.observe(0, State::Up, now);
    let back = |f: &mut Failover, now: &mut Instant| {
        f.observe(0, State::Down, *now);
        f.observe(0, State::Up, *now);
        *now = f.due().unwrap();
        assert!(f.tick(*now).is_some());
    };
    back(&mut f, &mut now);
    assert_eq!(f.steady_due(), None, "there is nothing to forgive");
    back(&mut f, &mut now);
    let damped = Damped {
        tier: 0,
        hold: HOLD * 2,
        relapses: 1,
    };
    assert_eq!(f.damped(), [damped]);
    let steady = f.steady_due().unwrap();
    assert_eq!(steady, now + damping::STEADY);
    assert_eq!(f.tick(steady - Duration::from_nanos(1)), None);
    assert_eq!(f.damped(), [damped]);
    assert_eq!(f.tick(steady), None);
    assert_eq!(f.damped(), []);
    // Down for hours after a relapse: nobody knows more of the master than before.
    now = steady;
    back(&mut f, &mut now);
    f.observe(0, State::Down, now);
    assert_eq!(f.damped(), [damped]);
    assert_eq!(f.steady_due(), None);
    now += Duration::from_secs(7200);
    f.tick(now);
    f.observe(0, State::Up, now);
    assert_eq!(f.due(), Some(now + HOLD * 2));
}

#[test]
fn who_is_kept_while_down_is_not_steady() {
    let start = Instant::now();
    let after = |s| start + Duration::from_secs(s);
    let mut f = two(AUTO, AllDown::Keep, start);
    f.observe(1, State::Up, start);
    f.observe(0, State::Down, start);
    f.observe(0, State::Up, start);
    f.tick(after(5));
    f.observe(1, State::Down, after(6));
    // It relapses and stays selected: nobody else is up.
    assert_eq!(f.observe(0, State::Down, after(7)), None);
    assert_eq!(f.damped()[0].relapses, 1);
    assert_eq!(f.steady_due(), None);
    f.observe(0, State::Up, after(100));
    assert_eq!(f.steady_due(), Some(after(160)));
    // One fail-back makes one relapse.
    f.observe(0, State::Down, after(101));
    assert_eq!(f.damped()[0].relapses, 1);
}

#[test]
fn each_tier_has_its_own_hold_time() {
    let start = Instant::now();
    let after = |s| start + Duration::from_secs(s);
    let members = [0, 1, 2].map(|tier| member(tier, State::Up));
    let mut f = Failover::new(AUTO, AllDown::Keep, &members, None, start);
    let relapse = |f: &mut Failover, i: usize, s: u64| {
        f.observe(i, State::Down, after(s));
        f.observe(i, State::Up, after(s));
    };
    // Both go; back by way of the middle one, which is no relapse of anybody's.
    f.observe(0, State::Down, start);
    f.observe(1, State::Down, start);
    f.observe(1, State::Up, start);
    assert_eq!(to(f.tick(after(5))), Some((at(&[1]), Reason::Failback)));
    f.observe(0, State::Up, after(6));
    assert_eq!(to(f.tick(after(11))), Some((at(&[0]), Reason::Failback)));
    assert_eq!(f.damped(), []);
    relapse(&mut f, 0, 12);
    assert_eq!(f.tier(), Some(1));
    assert_eq!(f.due(), Some(after(22)));
    // The middle one, which it went to and not back to, keeps the configured time.
    relapse(&mut f, 1, 13);
    assert_eq!(f.tier(), Some(0), "the master, although it should wait");
}

#[test]
fn an_inherited_selection_stays_until_something_speaks_against_it() {
    let start = Instant::now();
    let unknown = [member(0, State::Unknown), member(1, State::Up)];
    let new = |inherited, all_down| Failover::new(AUTO, all_down, &unknown, inherited, start);
    let mut f = new(Some(at(&[1])), AllDown::Keep);
    assert_eq!(f.selected(), &at(&[1]));
    assert_eq!(f.observe(0, State::Up, start), None);
    assert_eq!(
        to(f.tick(start + HOLD)),
        Some((at(&[0]), Reason::Failback)),
        "the hold time begins with the restart"
    );
    // What an earlier agent left and this configuration does not know is not inherited.
    assert_eq!(new(Some(at(&[2])), AllDown::Keep).selected(), &at(&[0]));
    assert_eq!(new(Some(at(&[])), AllDown::Keep).selected(), &at(&[0]));
    assert_eq!(
        new(Some(Target::Refuse), AllDown::Keep).selected(),
        &at(&[0])
    );
    let mut refuse = new(Some(Target::Refuse), AllDown::Refuse);
    assert_eq!(refuse.selected(), &Target::Refuse);
    assert_eq!(to(refuse.tick(start)), Some((at(&[1]), Reason::Failback)));
}

/// Three masters, two backups.
fn five(failback: Failback, all_down: AllDown, now: Instant) -> Failover {
    let members = [0, 0, 0, 1, 1].map(|tier| member(tier, State::Unknown));
    Failover::new(failback, all_down, &members, None, now)
}

#[test]
fn a_tier_serves_while_one_of_its_endpoints_is_up() {
    let start = Instant::now();
    let after = |s| start + Duration::from_secs(s);
    let mut f = five(AUTO, AllDown::Keep, start);
    // Nothing is known of anybody: all serve, and go on when they are judged.
    assert_eq!(f.selected(), &at(&[0, 1, 2]));
    for i in 0..5 {
        assert_eq!(f.observe(i, State::Up, start), None);
    }
    let members = Reason::MembersChanged;
    assert_eq!(
        to(f.observe(1, State::Down, after(1))),
        Some((at(&[0, 2]), members))
    );
    assert_eq!(
        to(f.observe(0, State::Down, after(2))),
        Some((at(&[2]), members))
    );
    assert!(f.serves(2) && !f.serves(0));
    // Back at once: the hold time is one between tiers.
    assert_eq!(
        to(f.observe(1, State::Up, after(2))),
        Some((at(&[1, 2]), members))
    );
    f.observe(1, State::Down, after(3));
    assert_eq!(
        to(f.observe(2, State::Down, after(3))),
        Some((at(&[3, 4]), Reason::MasterDown))
    );
    assert_eq!(f.tier(), Some(1));
    assert_eq!(
        to(f.observe(3, State::Down, after(4))),
        Some((at(&[4]), members))
    );
    // The tier is up as long as any of it is: one relays the other.
    assert_eq!(f.observe(0, State::Up, after(10)), None);
    assert_eq!(f.observe(1, State::Up, after(12)), None);
    assert_eq!(f.observe(0, State::Down, after(13)), None);
    assert_eq!(f.due(), Some(after(15)));
    assert_eq!(f.observe(2, State::Up, after(14)), None);
    assert_eq!(to(f.tick(after(15))), Some((at(&[1, 2]), Reason::Failback)));
}

#[test]
fn an_endpoint_without_weight_serves_nobody() {
    let start = Instant::now();
    let mut members = [0, 0, 1].map(|tier| member(tier, State::Unknown));
    members[0].weighs = false;
    let mut f = Failover::new(AUTO, AllDown::Keep, &members, None, start);
    assert_eq!(f.selected(), &at(&[1]));
    assert_eq!(f.observe(0, State::Up, start), None);
    f.observe(2, State::Up, start);
    assert_eq!(
        to(f.observe(1, State::Down, start)),
        Some((at(&[2]), Reason::MasterDown))
    );
    assert_eq!(f.due(), None, "nobody in tier 0 is fit");
    members[1].weighs = false;
    let inherited = Some(at(&[0, 1]));
    let f = Failover::new(AUTO, AllDown::Keep, &members, inherited, start);
    assert_eq!(
        f.selected(),
        &at(&[2]),
        "a tier may be taken out by weights"
    );
}

#[test]
fn a_new_endpoint_of_the_tier_serves_when_it_is_up() {
    let start = Instant::now();
    let states = [State::Up, State::Unknown, State::Down];
    let members = states.map(|state| member(0, state));
    // The earlier agent knew two, and one of them went down.
    let inherited = Some(at(&[0, 2]));
    let mut f = Failover::new(AUTO, AllDown::Keep, &members, inherited, start);
    assert_eq!(f.selected(), &at(&[0]));
    assert_eq!(f.tick(start), None);
    assert_eq!(
        to(f.observe(1, State::Up, start)),
        Some((at(&[0, 1]), Reason::MembersChanged))
    );
    // Nobody else is left: better unknown than down.
    let mut f = Failover::new(AUTO, AllDown::Keep, &members, Some(at(&[0])), start);
    assert_eq!(
        to(f.observe(0, State::Down, start)),
        Some((at(&[1]), Reason::MembersChanged))
    );
}

#[test]
fn the_last_to_serve_are_kept_when_all_are_down() {
    let start = Instant::now();
    let mut f = five(AUTO, AllDown::Keep, start);
    for i in [3, 4, 0] {
        f.observe(i, State::Down, start);
    }
    f.observe(1, State::Down, start);
    assert_eq!(f.observe(2, State::Down, start), None);
    assert_eq!(f.selected(), &at(&[2]));
    assert_eq!(
        to(f.observe(0, State::Up, start)),
        Some((at(&[0]), Reason::MembersChanged))
    );
    let mut f = five(Failback::Manual, AllDown::Refuse, start);
    for i in 0..5 {
        f.observe(i, State::Down, start);
    }
    assert_eq!(f.selected(), &Target::Refuse);
    assert_eq!(
        to(f.observe(4, State::Up, start)),
        Some((at(&[4]), Reason::Failback))
    );
    f.observe(1, State::Up, start);
    f.observe(2, State::Up, start);
    assert_eq!(f.order_failback(start).unwrap().to, at(&[1, 2]));
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    State(usize, State),
    Passed(u64),
    Order,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0usize..6, any::<bool>())
            .prop_map(|(i, up)| Happening::State(i, if up { State::Up } else { State::Down })),
        3 => (0u64..8000).prop_map(Happening::Passed),
        1 => Just(Happening::Order),
    ]
}

proptest! {
    #[test]
    fn the_rules_hold_over_any_history(
        manual in any::<bool>(),
        refuse in any::<bool>(),
        shape in prop::collection::vec((0u8..3, prop::bool::weighted(0.8)), 1..6),
        inherited in prop::option::of(prop::collection::vec(0usize..6, 0..4)),
        history in prop::collection::vec(happening(), 0..80),
    ) {
        prop_assume!(shape.iter().any(|(_, weighs)| *weighs));
        let failback = if manual { Failback::Manual } else { AUTO };
        let all_down = if refuse { AllDown::Refuse } else { AllDown::Keep };
        let mut now = Instant::now();
        let count = shape.len();
        let members: Vec<_> = shape
            .iter()
            .map(|(tier, weighs)| Member { tier: *tier, weighs: *weighs, ..member(0, State::Unknown) })
            .collect();
        let inherited = inherited.map(|of| match of.as_slice() {
            [] => Target::Refuse,
            of => Target::Endpoints(of.to_vec()),
        });
        let mut f = Failover::new(failback, all_down, &members, inherited, now);
        let mut states = vec![State::Unknown; count];
        // Since when each tier has an endpoint that is up.
        let mut up: Vec<Option<Instant>> = vec![None; 3];
        for event in history {
            let before = f.selected().clone();
            let (damped_before, steady_before) = (f.damped(), f.steady_due());
            let switch = match event {
                Happening::State(i, state) if i < count => {
                    states[i] = state;
                    for (tier, since) in up.iter_mut().enumerate() {
                        let fit = (0..count).any(|i| {
                            shape[i] == (tier as u8, true) && states[i] == State::Up
                        });
                        *since = fit.then(|| since.unwrap_or(now));
                    }
                    f.observe(i, state, now)
                }
                Happening::State(..) => None,
                Happening::Passed(ms) => {
                    let end = now + Duration::from_millis(ms);
                    // As the core does: wake at the time that is due.
                    match f.due().filter(|due| *due <= end) {
                        Some(due) => {
                            now = due.max(now);
                            let switch = f.tick(now);
                            prop_assert!(switch.is_some(), "due means due");
                            switch
                        }
                        None => {
                            now = end;
                            f.tick(now)
                        }
                    }
                }
                Happening::Order => f.order_failback(now).ok(),
            };
            let weighing = || (0..count).filter(|i| shape[*i].1);
            let any_up = weighing().any(|i| states[i] == State::Up);
            let all_are_down = weighing().all(|i| states[i] == State::Down);
            match f.selected() {
                Target::Endpoints(serving) => {
                    prop_assert!(!serving.is_empty() && serving.is_sorted());
                    let tier = shape[serving[0]].0;
                    prop_assert_eq!(f.tier(), Some(tier));
                    for i in serving {
                        prop_assert_eq!(shape[*i], (tier, true));
                        // Never on a down endpoint while another is up, or unknown.
                        if states[*i] == State::Down {
                            prop_assert!(all_are_down);
                            prop_assert!(!refuse);
                        }
                    }
                    // Whoever is up serves, if its tier does.
                    for i in weighing().filter(|i| shape[*i].0 == tier) {
                        prop_assert!(states[i] != State::Up || serving.contains(&i));
                    }
                }
                Target::Refuse => {
                    prop_assert!(refuse && !any_up);
                }
            }
            // The machine says exactly what it did.
            match &switch {
                None => prop_assert_eq!(f.selected(), &before),
                Some(switch) => {
                    prop_assert_eq!(&switch.from, &before);
                    prop_assert_eq!(&switch.to, f.selected());
                    prop_assert_ne!(&switch.from, &switch.to);
                }
            }
            if let Some(Switch { from: Target::Endpoints(from), to: Target::Endpoints(to), reason }) = &switch {
                let (from_tier, to_tier) = (shape[from[0]].0, shape[to[0]].0);
                match reason {
                    Reason::MembersChanged => prop_assert_eq!(from_tier, to_tier),
                    Reason::MasterDown => {
                        prop_assert_ne!(from_tier, to_tier);
                        for i in from {
                            prop_assert_eq!(states[*i], State::Down);
                        }
                        // The lowest of those that are up.
                        if any_up {
                            let best = up.iter().position(Option::is_some).unwrap();
                            prop_assert_eq!(usize::from(to_tier), best);
                        }
                    }
                    Reason::Failback => {
                        prop_assert!(!manual);
                        prop_assert!(to_tier < from_tier);
                        let since = up[usize::from(to_tier)].unwrap();
                        prop_assert!(now - since >= HOLD, "no fail-back before the hold time");
                        let damped = damped_before.iter().find(|of| of.tier == to_tier);
                        prop_assert!(damped.is_none_or(|of| now - since >= of.hold));
                    }
                    Reason::Manual => {
                        prop_assert!(to_tier < from_tier);
                        prop_assert!(up[usize::from(to_tier)].is_some());
                    }
                    other => prop_assert!(false, "{other:?} is no reason between endpoints"),
                }
            }
            // A fail-back that may happen by itself is never overdue.
            if !manual && let Some(tier) = f.tier() {
                for (lower, since) in (0..tier).zip(&up) {
                    let Some(since) = since else { continue };
                    let of = f.damped().into_iter().find(|of| of.tier == lower);
                    prop_assert!(now - *since <= of.map_or(HOLD, |of| of.hold));
                    prop_assert!(f.due().is_some());
                }
            }
            // Hold times are bounded, grow by one relapse at a time, and only a steady tier's
            // is forgotten.
            let damped = f.damped();
            prop_assert!(damped.is_empty() || !manual);
            for of in &damped {
                let before = damped_before.iter().find(|before| before.tier == of.tier);
                prop_assert!(of.hold > HOLD && of.hold <= MAX_HOLD);
                let (hold, relapses) = before.map_or((HOLD, 0), |of| (of.hold, of.relapses));
                prop_assert!(of.relapses - relapses <= 1);
                if of.relapses == relapses {
                    prop_assert_eq!(of.hold, hold);
                } else {
                    prop_assert_eq!(of.hold, (hold * 2).min(MAX_HOLD));
                    prop_assert_eq!(up[usize::from(of.tier)], None, "who relapses is down");
                }
            }
            for before in &damped_before {
                if !damped.iter().any(|of| of.tier == before.tier) {
                    prop_assert!(steady_before.is_some_and(|steady| steady <= now));
                }
            }
            prop_assert!(f.steady_due().is_none_or(|steady| steady > now));
        }
    }
}

#[test]
fn drain_and_maint_count_as_down() {
    let start = Instant::now();
    for mode in [Mode::Drain, Mode::Maint] {
        for (all_down, last) in [
            (AllDown::Keep, None),
            (AllDown::Refuse, Some((Target::Refuse, Reason::AllDown))),
        ] {
            let mut f = two(AUTO, all_down, start);
            f.observe(0, State::Up, start);
            f.observe(1, State::Up, start);
            let switch = f.order_mode(0, mode, start);
            assert_eq!(to(switch), Some((at(&[1]), Reason::Manual)));
            assert_eq!(f.due(), None);
            assert_eq!(to(f.order_mode(1, mode, start)), last, "{mode:?}");
            // Whoever is ready again takes over from nobody.
            let known = f.order_mode(0, Mode::Ready, start);
            let known = known.or_else(|| f.observe(0, State::Up, start));
            assert!(known.is_some());
            assert_eq!(f.selected(), &at(&[0]));
        }
    }
}

/// Taken out of service soon after a fail-back, a master has not relapsed.
#[test]
fn an_order_is_no_relapse() {
    let start = Instant::now();
    let mut f = two(AUTO, AllDown::Keep, start);
    f.observe(0, State::Up, start);
    f.observe(1, State::Up, start);
    f.observe(0, State::Down, start);
    f.observe(0, State::Up, start);
    let back = start + HOLD;
    assert_eq!(to(f.tick(back)), Some((at(&[0]), Reason::Failback)));
    f.order_mode(0, Mode::Maint, back);
    assert_eq!(f.damped(), []);
    f.order_mode(0, Mode::Ready, back);
    assert_eq!(f.observe(0, State::Up, back), None);
    assert_eq!(f.due(), Some(back + HOLD));
}

#[test]
fn promotions() {
    let start = Instant::now();
    let mut f = two(AUTO, AllDown::Keep, start);
    let unknown = NoPromotion::NotUp(State::Unknown);
    assert_eq!(f.order_promotion(1, false, start), Err(unknown));
    f.observe(0, State::Up, start);
    f.observe(1, State::Up, start);
    let switch = f.order_promotion(1, false, start).unwrap();
    assert_eq!(to(switch), Some((at(&[1]), Reason::Manual)));
    assert_eq!(f.order_promotion(1, false, start), Ok(None));
    assert_eq!((f.due(), f.tick(start + 10 * HOLD)), (None, None));
    assert_eq!(f.order_failback(start).unwrap().to, at(&[0]));
    f.order_mode(1, Mode::Drain, start);
    let out = NoPromotion::OutOfService(Mode::Drain);
    assert_eq!(f.order_promotion(1, true, start), Err(out));
    f.order_mode(1, Mode::Ready, start);
    // By force it holds until it was up and is down again.
    f.observe(1, State::Down, start);
    f.order_promotion(1, true, start).unwrap();
    assert_eq!(f.observe(1, State::Down, start), None);
    assert_eq!(f.observe(1, State::Up, start), None);
    let switch = f.observe(1, State::Down, start);
    assert_eq!(to(switch), Some((at(&[0]), Reason::MasterDown)));
    assert_eq!(f.promoted(), None);
}

#[derive(Clone, Copy, Debug)]
enum Ordered {
    By(Happening),
    Mode(usize, Mode),
    Promote(usize, bool),
    Freeze(bool),
}

fn ordered() -> impl Strategy<Value = Ordered> {
    prop_oneof![
        4 => happening().prop_map(Ordered::By),
        1 => (0usize..4, 0usize..3).prop_map(|(i, mode)| Ordered::Mode(i, Mode::ALL[mode])),
        1 => (0usize..4, any::<bool>()).prop_map(|(i, force)| Ordered::Promote(i, force)),
        1 => any::<bool>().prop_map(Ordered::Freeze),
    ]
}

proptest! {
    #[test]
    fn orders_bend_the_rules_and_nothing_else_does(
        refuse in any::<bool>(),
        tiers in prop::collection::vec(0u8..3, 1..5),
        history in prop::collection::vec(ordered(), 0..80),
    ) {
        let all_down = if refuse { AllDown::Refuse } else { AllDown::Keep };
        let mut now = Instant::now();
        let members: Vec<_> = tiers.iter().map(|tier| member(*tier, State::Unknown)).collect();
        let mut f = Failover::new(AUTO, all_down, &members, None, now);
        for event in history {
            let before = f.selected().clone();
            let frozen = f.frozen();
            let mut by_itself = false;
            let switch = match event {
                Ordered::By(Happening::State(i, state)) => {
                    by_itself = true;
                    // As the core does: who is in maintenance is not checked.
                    if f.mode(i) == Mode::Maint { None } else { f.observe(i, state, now) }
                }
                Ordered::By(Happening::Passed(ms)) => {
                    by_itself = true;
                    now += Duration::from_millis(ms);
                    f.tick(now)
                }
                Ordered::By(Happening::Order) => f.order_failback(now).ok(),
                Ordered::Mode(i, mode) if i < tiers.len() && f.mode(i) != mode => {
                    f.order_mode(i, mode, now)
                }
                Ordered::Mode(..) => None,
                Ordered::Promote(i, force) => f.order_promotion(i, force, now).unwrap_or(None),
                Ordered::Freeze(frozen) => f.order_freeze(frozen, now),
            };
            match &switch {
                None => prop_assert_eq!(f.selected(), &before),
                Some(switch) => {
                    prop_assert_eq!((&switch.from, &switch.to), (&before, f.selected()));
                    prop_assert!(!by_itself || switch.reason != Reason::Manual);
                    prop_assert!(!(by_itself && frozen), "{switch:?} of a frozen service");
                }
            }
            if f.frozen() {
                continue;
            }
            if let Some(promoted) = f.promoted() {
                prop_assert_eq!(f.selected(), &at(&[promoted.endpoint]));
                prop_assert_eq!(f.mode(promoted.endpoint), Mode::Ready);
                let state = f.members[promoted.endpoint].state;
                prop_assert!(state != State::Down || promoted.forced);
                continue;
            }
            let all_are_down = f.members.iter().all(|of| of.fit() == State::Down);
            match f.selected() {
                Target::Endpoints(serving) => for i in serving {
                    prop_assert!(f.members[*i].fit() != State::Down || (all_are_down && !refuse));
                },
                Target::Refuse => prop_assert!(refuse && f.lowest(State::Up).is_none()),
            }
        }
    }
}
