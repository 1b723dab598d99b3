//! Which endpoint each place of a ring belongs to.
//!
//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): each endpoint has an order of
//! preference over all places, a permutation that comes from its name; they take turns,
//! and who has the turn takes the free place it likes best. When one leaves, the others
//! keep nearly all of their places. Whose turn it is follows from the weights, by the
//! divisor method of Webster and Sainte-Laguë: next is who has the fewest places for its
//! weight, half a place added, after everybody has had one.
//!
//! Only names and weights matter: neither ids nor addresses nor the order of the
//! configuration. So every node, and every agent after a restart, makes the same ring of
//! the same endpoints, and [`place`](probe_ebpf::abi::place) finds a client's place there.

use std::hash::Hasher as _;

use probe_ebpf::abi::RING_SIZE;
use siphasher::sip::SipHasher24;

/// One of the endpoints that share a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Unique among them.
    pub name: &'a str,
    /// Its share of the places, in proportion to the others'; zero for none.
    pub weight: u16,
    /// What stands at its places.
    pub id: u16,
}

/// Who has the turn, and what it takes.
struct Taker<'a> {
    member: &'a Member<'a>,
    /// Where its permutation goes on, and by how much it moves on.
    next: usize,
    skip: usize,
    taken: u64,
}

impl<'a> Taker<'a> {
    fn new(service: &str, member: &'a Member<'a>) -> Self {
        // Keys of our own, so that nothing else's hash of the same names goes along with ours.
        let hash = |key| {
            let mut hasher = SipHasher24::new_with_keys(0x7072_6f62_6520_7269, key);
            // No name holds a zero byte.
            hasher.write(service.as_bytes());
            hasher.write(&[0]);
            hasher.write(member.name.as_bytes());
            hasher.finish()
        };
        let size = RING_SIZE as u64;
        Self {
            member,
            next: (hash(1) % size) as usize,
            // Any step but zero visits every place, since their number is prime.
            skip: (hash(2) % (size - 1) + 1) as usize,
            taken: 0,
        }
    }

    /// Is it this one's turn rather than the other's?
    fn goes_before(&self, other: &Self) -> bool {
        let due = |taker: &Self, against: &Self| match taker.taken {
            0 => 0,
            taken => (2 * taken + 1) * u64::from(against.member.weight),
        };
        due(self, other) < due(other, self)
    }
}

/// The ring of a service's endpoints; `None` if none of them has any weight. Of more
/// endpoints than places some get none.
pub fn build(service: &str, members: &[Member<'_>]) -> Option<[u16; RING_SIZE]> {
    let mut takers: Vec<_> = members
        .iter()
        .filter(|member| member.weight > 0)
        .map(|member| Taker::new(service, member))
        .collect();
    // Among those whose turn it is alike, the first goes first.
    takers.sort_unstable_by_key(|taker| taker.member.name);
    let mut places = [None; RING_SIZE];
    for _ in 0..RING_SIZE {
        let turn = takers.iter_mut().reduce(|first, taker| {
            if taker.goes_before(first) {
                taker
            } else {
                first
            }
        })?;
        while places[turn.next].is_some() {
            turn.next = (turn.next + turn.skip) % RING_SIZE;
        }
        places[turn.next] = Some(turn.member.id);
        turn.taken += 1;
    }
    Some(places.map(|id| id.unwrap_or(u16::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: f64 = RING_SIZE as f64;

    fn members<'a>(names: &'a [String], weights: &[u16]) -> Vec<Member<'a>> {
        let ids = 100..;
        names
            .iter()
            .zip(weights)
            .zip(ids)
            .map(|((name, weight), id)| Member {
                name,
                weight: *weight,
                id,
            })
            .collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("pod-{i}")).collect()
    }

    fn ring(members: &[Member<'_>]) -> [u16; RING_SIZE] {
        build("sense", members).expect("somebody has weight")
    }

    fn share(ring: &[u16; RING_SIZE], id: u16) -> usize {
        ring.iter().filter(|at| **at == id).count()
    }

    /// Places that belong to somebody else now, though their owner is still there.
    fn disturbed(before: &[u16; RING_SIZE], after: &[u16; RING_SIZE], gone: u16) -> usize {
        let pairs = before.iter().zip(after);
        pairs.filter(|(b, a)| **b != gone && b != a).count()
    }

    #[test]
    fn equal_endpoints_differ_by_one_place_at_most() {
        for count in [1, 2, 3, 7, 16, 100, 256] {
            let names = names(count);
            let members = members(&names, &vec![1; count]);
            let ring = ring(&members);
            let shares: Vec<_> = members.iter().map(|m| share(&ring, m.id)).collect();
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{count}: {shares:?}");
        }
    }

    #[test]
    fn one_that_leaves_disturbs_few_others() {
        for (count, bound) in [(2, 0.0), (3, 0.01), (8, 0.03), (16, 0.03)] {
            let names = names(count);
            let all = members(&names, &vec![1; count]);
            let before = ring(&all);
            let mut moved = 0;
            for leaver in &all {
                let rest: Vec<_> = all.iter().filter(|m| m != &leaver).copied().collect();
                moved += disturbed(&before, &ring(&rest), leaver.id);
            }
            let mean = moved as f64 / count as f64 / SIZE;
            println!("{count} endpoints: {:.2} % on average", 100.0 * mean);
            assert!(mean <= bound, "{count}: {mean}");
        }
    }

    #[test]
    fn nobody_with_weight_makes_no_ring() {
        let names = names(2);
        assert_eq!(build("sense", &members(&names, &[0, 0])), None);
        assert_eq!(build("sense", &[]), None);
    }

    #[test]
    fn more_endpoints_than_places_still_make_a_ring() {
        let names = names(RING_SIZE + 10);
        let all = members(&names, &vec![1; names.len()]);
        let ring = ring(&all);
        assert!(all.iter().all(|m| share(&ring, m.id) <= 1));
    }

    /// Reckoned by other means. Another hash would send clients elsewhere wherever two
    /// versions run side by side.
    #[test]
    fn rings_are_the_same_in_every_version() {
        let names = names(3);
        let ring = ring(&members(&names, &[1, 2, 3]));
        let begins = [101, 100, 100, 102, 102, 101, 101, 102, 102, 102, 101, 100];
        assert_eq!(ring[..12], begins);
    }

    #[test]
    fn services_have_rings_of_their_own() {
        let names = names(3);
        let members = members(&names, &[1; 3]);
        let rings = ["one", "two"].map(|service| build(service, &members).unwrap());
        let [one, two] = &rings;
        let same = one.iter().zip(two).filter(|(a, b)| a == b).count();
        assert!(same < RING_SIZE / 2, "a third by chance: {same}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn shares_are_in_proportion(weights in prop::collection::vec(0u16..=256, 1..20)) {
            let names = names(weights.len());
            let members = members(&names, &weights);
            let total: u32 = weights.iter().map(|w| u32::from(*w)).sum();
            prop_assume!(total > 0);
            let ring = ring(&members);
            for member in &members {
                let exact = SIZE * f64::from(member.weight) / f64::from(total);
                let got = share(&ring, member.id);
                if member.weight == 0 {
                    prop_assert_eq!(got, 0);
                } else {
                    prop_assert!(got > 0);
                    // Those too small for a place get one, at the others' cost.
                    prop_assert!((got as f64 - exact).abs() < 2.0, "{got} for {exact}");
                }
            }
        }

        #[test]
        fn the_order_does_not_matter(
            weights in prop::collection::vec(0u16..=256, 2..10),
            by in 0usize..10,
        ) {
            let names = names(weights.len());
            let mut members = members(&names, &weights);
            let before = build("sense", &members);
            members.rotate_left(by % weights.len());
            prop_assert_eq!(build("sense", &members), before);
            members.reverse();
            prop_assert_eq!(build("sense", &members), before);
        }

        #[test]
        fn who_leaves_takes_little_along(
            weights in prop::collection::vec(1u16..=20, 2..17),
            leaver in 0usize..16,
        ) {
            let names = names(weights.len());
            let all = members(&names, &weights);
            let leaver = all[leaver % all.len()];
            let before = ring(&all);
            let rest: Vec<_> = all.iter().filter(|m| m.name != leaver.name).copied().collect();
            let after = ring(&rest);
            let disturbed = disturbed(&before, &after, leaver.id);
            prop_assert!((disturbed as f64) < 0.05 * SIZE, "{disturbed} places");
            // And back again is what it was.
            prop_assert_eq!(ring(&all), before);
        }
    }
}
