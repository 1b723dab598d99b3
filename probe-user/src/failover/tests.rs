//! Cases, and properties over any sequence of what can happen. Time is explicit.

use proptest::prelude::*;

use super::*;

const HOLD: Duration = Duration::from_secs(5);
const AUTO: Failback = Failback::Auto { hold: HOLD };

fn two(failback: Failback, all_down: AllDown, now: Instant) -> Failover {
    let unknown = [(0, State::Unknown), (1, State::Unknown)];
    Failover::new(failback, all_down, &unknown, None, now)
}

fn to(switch: Option<Switch>) -> Option<(Target, Reason)> {
    switch.map(|s| (s.to, s.reason))
}

const MASTER: Target = Target::Endpoint(0);
const BACKUP: Target = Target::Endpoint(1);

#[test]
fn over_at_once_and_back_after_the_hold_time() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let mut f = two(AUTO, AllDown::Keep, start);
    assert_eq!(f.selected(), MASTER);
    assert_eq!(f.observe(0, State::Up, start), None);
    assert_eq!(f.observe(1, State::Up, start), None);
    assert_eq!(
        to(f.observe(0, State::Down, at(10))),
        Some((BACKUP, Reason::MasterDown))
    );
    assert_eq!(f.due(), None);
    assert_eq!(f.observe(0, State::Up, at(20)), None);
    assert_eq!(f.due(), Some(at(25)));
    assert_eq!(f.tick(at(24)), None);
    // A relapse begins the hold time again.
    assert_eq!(f.observe(0, State::Down, at(24)), None);
    assert_eq!(f.due(), None);
    assert_eq!(f.observe(0, State::Up, at(30)), None);
    assert_eq!(f.tick(at(34)), None);
    assert_eq!(to(f.tick(at(35))), Some((MASTER, Reason::Failback)));
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
        Some((MASTER, Reason::MasterDown))
    );
}

#[test]
fn a_backup_that_nobody_checked_yet_is_better_than_a_master_that_is_down() {
    let start = Instant::now();
    let mut f = two(AUTO, AllDown::Refuse, start);
    assert_eq!(
        to(f.observe(0, State::Down, start)),
        Some((BACKUP, Reason::MasterDown))
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
    assert_eq!(keep.selected(), MASTER);
    // Whoever comes first serves.
    assert_eq!(
        to(keep.observe(1, State::Up, start)),
        Some((BACKUP, Reason::MasterDown))
    );
    let mut refuse = two(Failback::Manual, AllDown::Refuse, start);
    refuse.observe(1, State::Down, start);
    assert_eq!(
        to(refuse.observe(0, State::Down, start)),
        Some((Target::Refuse, Reason::AllDown))
    );
    assert_eq!(
        to(refuse.observe(1, State::Up, start)),
        Some((BACKUP, Reason::Failback))
    );
}

#[test]
fn manual_failback() {
    let start = Instant::now();
    let later = start + Duration::from_secs(3600);
    let mut f = two(Failback::Manual, AllDown::Keep, start);
    assert_eq!(f.order_failback(), Err(NoFailback::Lowest));
    f.observe(1, State::Up, start);
    f.observe(0, State::Down, start);
    assert_eq!(f.order_failback(), Err(NoFailback::NoneUp));
    f.observe(0, State::Up, start);
    assert_eq!(f.due(), None);
    assert_eq!(f.tick(later), None);
    let switch = f.order_failback().unwrap();
    assert_eq!((switch.to, switch.reason), (MASTER, Reason::Manual));
    let mut auto = two(AUTO, AllDown::Keep, start);
    assert_eq!(auto.order_failback(), Err(NoFailback::Automatic));
}

#[test]
fn an_inherited_selection_stays_until_something_speaks_against_it() {
    let start = Instant::now();
    let unknown = [(0, State::Unknown), (1, State::Up)];
    let new = |inherited, all_down| Failover::new(AUTO, all_down, &unknown, inherited, start);
    let mut f = new(Some(BACKUP), AllDown::Keep);
    assert_eq!(f.selected(), BACKUP);
    assert_eq!(f.observe(0, State::Up, start), None);
    assert_eq!(
        to(f.tick(start + HOLD)),
        Some((MASTER, Reason::Failback)),
        "the hold time begins with the restart"
    );
    // What an earlier agent left and this configuration does not know is not inherited.
    assert_eq!(
        new(Some(Target::Endpoint(2)), AllDown::Keep).selected(),
        MASTER
    );
    assert_eq!(new(Some(Target::Refuse), AllDown::Keep).selected(), MASTER);
    let mut refuse = new(Some(Target::Refuse), AllDown::Refuse);
    assert_eq!(refuse.selected(), Target::Refuse);
    assert_eq!(to(refuse.tick(start)), Some((BACKUP, Reason::Failback)));
}

#[derive(Clone, Debug)]
enum Happening {
    State(usize, State),
    Passed(u64),
    Order,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0usize..4, any::<bool>())
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
        count in 1usize..=4,
        inherited in prop::option::of(0usize..5),
        history in prop::collection::vec(happening(), 0..80),
    ) {
        let failback = if manual { Failback::Manual } else { AUTO };
        let all_down = if refuse { AllDown::Refuse } else { AllDown::Keep };
        let mut now = Instant::now();
        // Tiers in an order that is not the list's.
        let tiers: Vec<u8> = (0..count).map(|i| ((i * 3 + 1) % count) as u8).collect();
        let tiers: Vec<u8> = if count == 3 { vec![2, 0, 1] } else { tiers };
        let members: Vec<_> = tiers.iter().map(|t| (*t, State::Unknown)).collect();
        let inherited = inherited.map(|i| if i == 4 { Target::Refuse } else { Target::Endpoint(i) });
        let mut f = Failover::new(failback, all_down, &members, inherited, now);
        let mut states = vec![(State::Unknown, now); count];
        for event in history {
            let before = f.selected();
            let switch = match event {
                Happening::State(i, state) if i < count => {
                    if states[i].0 != state {
                        states[i] = (state, now);
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
                Happening::Order => f.order_failback().ok(),
            };
            let any_up = states.iter().any(|s| s.0 == State::Up);
            let all_are_down = states.iter().all(|s| s.0 == State::Down);
            match f.selected() {
                Target::Endpoint(i) => {
                    // Never on a down endpoint while another is up, or unknown.
                    if states[i].0 == State::Down {
                        prop_assert!(all_are_down);
                        prop_assert!(!refuse);
                    }
                }
                Target::Refuse => {
                    prop_assert!(refuse && !any_up);
                }
            }
            // The machine says exactly what it did.
            match switch {
                None => prop_assert_eq!(f.selected(), before),
                Some(switch) => {
                    prop_assert_eq!(switch.from, before);
                    prop_assert_eq!(switch.to, f.selected());
                    prop_assert_ne!(switch.from, switch.to);
                }
            }
            if let Some(Switch { from: Target::Endpoint(from), to: Target::Endpoint(to), reason }) = switch {
                match reason {
                    Reason::MasterDown => {
                        prop_assert_eq!(states[from].0, State::Down);
                        // The lowest of those that are up.
                        if any_up {
                            let best = (0..count).filter(|i| states[*i].0 == State::Up)
                                .min_by_key(|i| tiers[*i]).unwrap();
                            prop_assert_eq!(to, best);
                        }
                    }
                    Reason::Failback => {
                        prop_assert!(!manual);
                        prop_assert!(tiers[to] < tiers[from]);
                        prop_assert_eq!(states[to].0, State::Up);
                        prop_assert!(now - states[to].1 >= HOLD, "no fail-back before the hold time");
                    }
                    Reason::Manual => {
                        prop_assert!(manual);
                        prop_assert!(tiers[to] < tiers[from]);
                        prop_assert_eq!(states[to].0, State::Up);
                    }
                    other => prop_assert!(false, "{other:?} is no reason between endpoints"),
                }
            }
            // A fail-back that may happen by itself is never overdue.
            if !manual && let Target::Endpoint(i) = f.selected() {
                for j in 0..count {
                    if states[j].0 == State::Up && tiers[j] < tiers[i] {
                        prop_assert!(now - states[j].1 <= HOLD);
                        prop_assert!(f.due().is_some());
                    }
                }
            }
        }
    }
}
