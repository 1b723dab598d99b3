//! SYNs that are refused, sent on, answered late.

use super::*;
use crate::abi::{FLOW_ESTABLISHED, FLOW_MOVED, NO_REDISPATCH};

const THIRD: u32 = 5;
const THIRD_ADDR: V4 = V4::from_bytes([10, 0, 4, 2]);

/// Master, backup and a third, each in a tier of its own.
fn circle() -> Host {
    let mut host = Host::new();
    host.endpoints
        .insert(THIRD, endpoint(THIRD_ADDR, 8082, ENDPOINT_UP));
    let own = Listener {
        service: 1,
        endpoint: THIRD,
        kind: LISTENER_OWN,
        flags: 0,
    };
    host.listeners.insert(listener_key(THIRD_ADDR, 8082), own);
    link(&mut host, &[&[MASTER], &[BACKUP], &[THIRD]]);
    host
}

/// Makes these tiers of the endpoints, as the agent does.
fn link(host: &mut Host, tiers: &[&[u32]]) {
    for (t, tier) in tiers.iter().enumerate() {
        for (i, id) in tier.iter().enumerate() {
            let endpoint = host.endpoints.get_mut(id).unwrap();
            endpoint.tier = t as u8;
            endpoint.next = tier[(i + 1) % tier.len()];
            endpoint.head = tier[0];
            endpoint.below = if tiers.len() > 1 {
                tiers[(t + 1) % tiers.len()][0]
            } else {
                NO_ENDPOINT
            };
        }
    }
}

/// Whoever is asked first: in which order are the others, if all refuse?
#[test]
fn others_of_the_tier_are_asked_before_those_of_another() {
    let [a, b, c, d] = [MASTER, BACKUP, THIRD, 6];
    /// Tiers, who is asked first, and who then.
    type Case<'a> = (&'a [&'a [u32]], u32, &'a [u32]);
    let cases: [Case<'_>; 6] = [
        (&[&[a, b, c], &[d]], b, &[c, a, d]),
        (&[&[a, b], &[c, d]], b, &[a, c, d]),
        (&[&[a, b], &[c, d]], d, &[c, a, b]),
        (&[&[a], &[b], &[c]], b, &[c, a]),
        (&[&[a, b]], b, &[a]),
        (&[&[a]], a, &[]),
    ];
    for (tiers, first, order) in cases {
        let mut host = circle();
        host.endpoints.insert(
            d,
            endpoint(V4::from_bytes([10, 0, 5, 2]), 8083, ENDPOINT_UP),
        );
        link(&mut host, tiers);
        host.decide(steer_to(first));
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), first);
        let mut at = first;
        for next in order {
            let ends = again(reverse(&host, &refusal(&host, at)));
            assert_eq!(ends.dst_be, host.endpoints[next].v4_be, "{tiers:?}");
            at = *next;
        }
        assert_eq!(goes_to(reverse(&host, &refusal(&host, at))), at);
    }
}

/// What an endpoint answers that nobody listens at.
fn refusal(host: &Host, id: u32) -> Segment<V4> {
    let at = &host.endpoints[&id];
    Segment {
        seq: 0,
        ack: 1001,
        src_port_be: at.port_be,
        ..segment((at.v4_be, 0), (CLIENT, 40000), RST | ACK)
    }
}

fn again(verdict: Verdict<V4>) -> Ends<V4> {
    match verdict {
        Verdict::Again(ends) => ends,
        other => panic!("not sent on: {other:?}"),
    }
}

/// The SYN that a refusal became.
fn sent(ends: Ends<V4>) -> Segment<V4> {
    Segment {
        src_port_be: ends.src_port_be,
        dst_port_be: ends.dst_port_be,
        ..segment((ends.src_be, 0), (ends.dst_be, 0), SYN)
    }
}

fn answer(host: &Host, id: u32) -> Segment<V4> {
    Segment {
        seq: 77,
        flags: SYN | ACK,
        ..refusal(host, id)
    }
}

#[test]
fn a_refused_syn_goes_to_the_next_and_its_flow_stays_there() {
    for decision in [steer_to(MASTER), alone(MASTER)] {
        let host = circle();
        host.decide(decision);
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
        let ends = again(reverse(&host, &refusal(&host, MASTER)));
        assert_eq!((ends.src_be, ends.dst_be), (CLIENT, BACKUP_ADDR));
        assert_eq!(ends.dst_port_be, 8081u16.to_be());
        assert_eq!(*host.counted.borrow(), [Reason::Redispatched]);
        assert_eq!(*host.events.borrow(), [EventKind::EndpointRefused]);
        // Nothing stands in the tables before somebody answers.
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(forward(&host, &sent(ends)), Verdict::Pass(Reason::Direct));
        assert_eq!(goes_to(reverse(&host, &answer(&host, BACKUP))), BACKUP);
        assert_eq!(host.flows(), (1, 1));
        // The selection still says master, and the slot would.
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), BACKUP);
        let other = segment((CLIENT, 40001), (VIP, 80), SYN);
        assert_eq!(goes_to(forward(&host, &other)), MASTER);
    }
}

#[test]
fn it_goes_round_once() {
    let host = circle();
    forward(&host, &from_client(SYN));
    for (refuses, next) in [(MASTER, BACKUP_ADDR), (BACKUP, THIRD_ADDR)] {
        let ends = again(reverse(&host, &refusal(&host, refuses)));
        assert_eq!(ends.dst_be, next);
        assert_eq!(forward(&host, &sent(ends)), Verdict::Pass(Reason::Direct));
    }
    // All have refused: the client hears of it, from the VIP.
    let Verdict::Translate(to, THIRD) = reverse(&host, &refusal(&host, THIRD)) else {
        panic!("the client does not hear of it");
    };
    assert_eq!((to.addr_be, to.port_be), (VIP, 80u16.to_be()));
    assert_eq!(host.events.borrow().len(), 3);
}

#[test]
fn who_is_down_or_has_no_address_is_passed_over() {
    let mut host = circle();
    host.mark(BACKUP, ENDPOINT_DOWN);
    forward(&host, &from_client(SYN));
    let ends = again(reverse(&host, &refusal(&host, MASTER)));
    assert_eq!(ends.dst_be, THIRD_ADDR);
    let mut host = circle();
    host.mark(BACKUP, ENDPOINT_DRAINED);
    host.endpoints.get_mut(&THIRD).unwrap().families = FAMILY_V6;
    forward(&host, &from_client(SYN));
    assert_eq!(goes_to(reverse(&host, &refusal(&host, MASTER))), MASTER);
}

#[test]
fn only_exact_refusals_count() {
    let host = circle();
    forward(&host, &from_client(SYN));
    let exact = refusal(&host, MASTER);
    let wrong = [
        Segment { ack: 1000, ..exact },
        Segment { ack: 1002, ..exact },
        Segment {
            flags: RST,
            ..exact
        },
        // Not the endpoint's, or not this client's.
        Segment {
            src_be: BACKUP_ADDR,
            ..exact
        },
        Segment {
            dst_port_be: 40001u16.to_be(),
            ..exact
        },
    ];
    for segment in &wrong[2..] {
        assert!(!matches!(reverse(&host, segment), Verdict::Again(_)));
    }
    for segment in &wrong[..2] {
        let host = circle();
        forward(&host, &from_client(SYN));
        assert_eq!(goes_to(reverse(&host, segment)), MASTER);
        assert!(host.events.borrow().is_empty(), "nobody was refused");
    }
}

/// A plain one is what hosts send; what else there is must be handed on as it is.
#[test]
fn only_plain_refusals_become_syns() {
    for wrong in [
        |r: Segment<V4>| Segment { options: 12, ..r },
        |r: Segment<V4>| Segment { payload: 5, ..r },
        |r: Segment<V4>| Segment { l4: r.l4 + 4, ..r },
    ]
    .map(|change| change(refusal(&circle(), MASTER)))
    {
        let host = circle();
        forward(&host, &from_client(SYN));
        assert_eq!(goes_to(reverse(&host, &wrong)), MASTER);
        assert_eq!(*host.events.borrow(), [EventKind::EndpointRefused]);
    }
}

#[test]
fn a_refused_connection_that_was_open_is_not_sent_on() {
    let host = circle();
    connect(&host);
    assert_eq!(goes_to(reverse(&host, &refusal(&host, MASTER))), MASTER);
    assert!(host.events.borrow().is_empty());
}

#[test]
fn a_single_writer_alone_serves() {
    let host = circle();
    host.decide(Decision {
        flags: NO_REDISPATCH,
        ..steer_to(MASTER)
    });
    forward(&host, &from_client(SYN));
    assert_eq!(goes_to(reverse(&host, &refusal(&host, MASTER))), MASTER);
    assert_eq!(*host.events.borrow(), [EventKind::EndpointRefused]);
}

#[test]
fn who_asks_for_an_endpoint_gets_no_other() {
    let host = circle();
    let to_backup = segment((CLIENT, 40000), (OTHER_VIP, 80), SYN);
    assert_eq!(goes_to(forward(&host, &to_backup)), BACKUP);
    assert_eq!(goes_to(reverse(&host, &refusal(&host, BACKUP))), BACKUP);
    // Nor who comes to its own address.
    let own = segment((CLIENT, 40002), (THIRD_ADDR, 8082), SYN);
    forward(&host, &own);
    let refused = Segment {
        dst_port_be: 40002u16.to_be(),
        ..refusal(&host, THIRD)
    };
    assert_eq!(reverse(&host, &refused), Verdict::Pass(Reason::Direct));
}

#[test]
fn a_late_answer_is_reset_and_no_second_syn_passes() {
    let host = circle();
    forward(&host, &from_client(SYN));
    let ends = again(reverse(&host, &refusal(&host, MASTER)));
    assert_eq!(forward(&host, &sent(ends)), Verdict::Pass(Reason::Direct));
    assert_eq!(
        reverse(&host, &answer(&host, MASTER)),
        Verdict::Reset(Reason::LateAnswer)
    );
    assert_eq!(goes_to(reverse(&host, &answer(&host, BACKUP))), BACKUP);
    // The client's own connection to the backup's own address clashes with it, and moves.
    let Verdict::Translate(moved, BACKUP) = forward(&host, &sent(ends)) else {
        panic!("not moved");
    };
    assert_ne!(moved.client_port_be, 40000u16.to_be());
}

#[test]
fn a_repeated_syn_is_told_and_one_of_another_number_is_not() {
    let host = circle();
    forward(&host, &from_client(SYN));
    forward(&host, &from_client(SYN));
    assert_eq!(*host.events.borrow(), [EventKind::SynUnanswered]);
    let anew = Segment {
        seq: 5,
        ..from_client(SYN)
    };
    forward(&host, &anew);
    assert_eq!(host.events.borrow().len(), 1);
}

#[test]
fn a_repeated_syn_is_sent_on_again() {
    let host = circle();
    for _ in 0..3 {
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
        let ends = again(reverse(&host, &refusal(&host, MASTER)));
        assert_eq!(ends.dst_be, BACKUP_ADDR);
        assert_eq!(forward(&host, &sent(ends)), Verdict::Pass(Reason::Direct));
    }
    assert_eq!(goes_to(reverse(&host, &answer(&host, BACKUP))), BACKUP);
}

#[test]
fn payload_may_be_acknowledged_and_is_not_sent_again() {
    for acknowledged in [1001, 1101] {
        let host = circle();
        let fast_open = Segment {
            payload: 100,
            ..from_client(SYN)
        };
        forward(&host, &fast_open);
        let refused = Segment {
            ack: acknowledged,
            ..refusal(&host, MASTER)
        };
        again(reverse(&host, &refused));
        // SAFETY: nobody else looks at it.
        assert_eq!(unsafe { (*host.work).syn.seq }, 1000);
    }
}

/// Full NAT: replies come to the source's address, and entries are there from the SYN on.
#[test]
fn with_full_nat_the_flow_moves_with_its_entries() {
    let mut host = circle();
    for (pool, id) in [MASTER, BACKUP, THIRD].into_iter().enumerate() {
        let endpoint = host.endpoints.get_mut(&id).unwrap();
        endpoint.forward = FORWARD_FULL_NAT;
        endpoint.pool = pool as u32;
    }
    host.ports = std::iter::repeat_with(PortLine::default)
        .take(3 * LINES_A_POOL as usize)
        .collect();
    let mut at = MASTER;
    for next in [BACKUP, THIRD] {
        let Verdict::Relay(to, id) = forward(&host, &from_client(SYN)) else {
            panic!("not sent on");
        };
        assert_eq!(id, at);
        let refused = Segment {
            dst_be: SOURCE,
            dst_port_be: to.client_port_be,
            ..refusal(&host, at)
        };
        let ends = again(forward(&host, &refused));
        // The client's own SYN comes in again.
        assert_eq!(
            (ends.src_be, ends.src_port_be, ends.dst_be, ends.dst_port_be),
            (CLIENT, 40000u16.to_be(), VIP, 80u16.to_be())
        );
        assert_eq!(host.flows(), (1, 1));
        at = next;
    }
    let key = flow::forward_key(&from_client(SYN));
    let state = host.forward.borrow()[&key].state.get();
    assert_eq!(state & (FLOW_MOVED | FLOW_ESTABLISHED), FLOW_MOVED);
    let Verdict::Relay(to, THIRD) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    // The last one refuses too: the client hears of it.
    let refused = Segment {
        dst_be: SOURCE,
        dst_port_be: to.client_port_be,
        ..refusal(&host, THIRD)
    };
    let Verdict::Relay(home, THIRD) = forward(&host, &refused) else {
        panic!("the client does not hear of it");
    };
    assert_eq!((home.addr_be, home.client_be), (VIP, CLIENT));
    assert_eq!(host.open.get(), 0);
}
