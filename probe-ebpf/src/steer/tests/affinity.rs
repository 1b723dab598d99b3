//! Clients who keep their endpoint whatever the ring says.

use super::*;
use crate::abi::NO_TIER;

#[test]
fn a_client_keeps_its_endpoint_over_ring_changes_until_its_time_is_up() {
    let mut host = Host::shared();
    host.keep_clients(100);
    let first = host.answers(&from_port(1000, SYN), SYN | ACK);
    for port in 1001..1040 {
        assert_eq!(host.answers(&from_port(port, SYN), SYN | ACK), first);
    }
    let other = if first == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    // Each connection counts anew, a SYN alone does not.
    host.later(100);
    assert_eq!(host.answers(&from_port(2000, SYN), SYN | ACK), first);
    host.later(60);
    assert_eq!(goes_to(forward(&host, &from_port(2001, SYN))), first);
    host.later(40);
    assert_eq!(goes_to(forward(&host, &from_port(2002, SYN))), first);
    host.later(1);
    assert_eq!(host.answers(&from_port(2003, SYN), SYN | ACK), other);
    host.decide(spread_over(1));
    assert_eq!(goes_to(forward(&host, &from_port(2004, SYN))), other);
    // Another client has its own.
    let stranger = V4::from_bytes([10, 0, 1, 3]);
    let ids: Vec<u32> = (0..20)
        .map(|port| {
            goes_to(forward(
                &host,
                &segment((stranger, 3000 + port), (VIP, 80), SYN),
            ))
        })
        .collect();
    assert!(
        ids.iter().all(|id| *id == ids[0]),
        "the address alone decides"
    );
}

#[test]
fn a_client_leaves_an_endpoint_that_takes_no_new_connections() {
    let unfit: [fn(&mut Endpoint); 4] = [
        |e| e.state = ENDPOINT_DOWN,
        |e| e.tier = 1,
        |e| e.tier = NO_TIER,
        |e| e.service = 2,
    ];
    for unfit in unfit {
        let mut host = Host::shared();
        host.keep_clients(100);
        let first = host.answers(&from_port(1000, SYN), SYN | ACK);
        let other = if first == MASTER { BACKUP } else { MASTER };
        host.rings.insert(2, ring_of(&[other]));
        host.decide(spread_over(2));
        assert_eq!(goes_to(forward(&host, &from_port(1001, SYN))), first);
        unfit(host.endpoints.get_mut(&first).unwrap());
        assert_eq!(host.answers(&from_port(1002, SYN), SYN | ACK), other);
        // That was its new choice.
        host.endpoints.get_mut(&first).unwrap().state = ENDPOINT_UP;
        host.decide(spread_over(1));
        assert_eq!(goes_to(forward(&host, &from_port(1003, SYN))), other);
    }
}

#[test]
fn only_connections_that_follow_the_selection_are_remembered() {
    let mut host = Host::shared();
    host.keep_clients(100);
    follow_udp(&mut host);
    // Forged SYNs, direct connections, one of a single endpoint's listener.
    for port in 1000..1100 {
        forward(&host, &from_port(port, SYN));
    }
    host.answers(&segment((CLIENT, 1), (OTHER_VIP, 80), SYN), SYN | ACK);
    forward(&host, &segment((CLIENT, 2), (MASTER_ADDR, 8080), SYN));
    let answer = segment((MASTER_ADDR, 8080), (CLIENT, 2), SYN | ACK);
    assert_eq!(reverse(&host, &answer), Verdict::Pass(Reason::Direct));
    assert!(host.affinities.borrow().is_empty());
    // While one endpoint has all, there is nothing to choose.
    host.decide(steer_to(MASTER));
    host.answers(&from_port(3, SYN), SYN | ACK);
    assert!(host.affinities.borrow().is_empty());
    host.decide(spread_over(1));
    let by_udp = host.answers(&datagram(4), 0);
    assert_eq!(host.affinities.borrow().len(), 1);
    assert_eq!(goes_to(forward(&host, &from_port(5, SYN))), by_udp);
}
