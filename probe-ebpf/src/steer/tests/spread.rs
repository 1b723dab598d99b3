//! Connections spread over the endpoints of a tier by a ring.

use super::*;
use crate::abi::RING_SIZE;

#[test]
fn endpoints_share_the_connections_of_one_client() {
    let host = Host::shared();
    let mut shares: HashMap<u32, u32> = HashMap::new();
    for port in 20_000..23_000 {
        *shares
            .entry(host.answers(&from_port(port, SYN), SYN | ACK))
            .or_default() += 1;
        host.forward.borrow_mut().clear();
        host.reverse.borrow_mut().clear();
    }
    for id in [MASTER, BACKUP, THIRD] {
        assert!((800..1200).contains(&shares[&id]), "{shares:?}");
    }
    assert!(host.affinities.borrow().is_empty());
}

#[test]
fn a_flow_stays_where_it_is_when_the_ring_changes() {
    let mut host = Host::shared();
    let at: Vec<(u16, u32)> = (40_000..40_030)
        .map(|port| (port, host.answers(&from_port(port, SYN), SYN | ACK)))
        .collect();
    host.rings.insert(2, ring_of(&[BACKUP]));
    host.decide(spread_over(2));
    for (port, id) in &at {
        assert_eq!(goes_to(forward(&host, &from_port(*port, ACK))), *id);
        // Also a SYN that the endpoint has to challenge.
        assert_eq!(goes_to(forward(&host, &from_port(*port, SYN))), *id);
    }
    assert_eq!(goes_to(forward(&host, &from_port(50_000, SYN))), BACKUP);
    // Those of an endpoint that is down are told, the others live on.
    host.mark(MASTER, ENDPOINT_DOWN);
    for (port, id) in &at {
        let verdict = forward(&host, &from_port(*port, ACK));
        if *id == MASTER {
            assert_eq!(verdict, Verdict::Reset(Reason::EndpointDown));
        } else {
            assert_eq!(goes_to(verdict), *id);
        }
    }
}

#[test]
fn an_unanswered_syn_goes_the_same_way_until_the_ring_changes() {
    let mut host = Host::shared();
    let first = goes_to(forward(&host, &from_client(SYN)));
    for _ in 0..3 {
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), first);
    }
    let other = if first == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), other);
    // Its reset finds it too.
    assert_eq!(goes_to(forward(&host, &from_client(RST))), other);
}

#[test]
fn the_late_answer_to_a_syn_that_moved_on_with_the_ring_is_reset() {
    let mut host = Host::shared();
    let Verdict::Translate(there, first) = forward(&host, &from_client(SYN)) else {
        panic!("not steered");
    };
    let other = if first == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), other);
    let mut late = segment((there.addr_be, 0), (CLIENT, 40000), SYN | ACK);
    late.src_port_be = there.port_be;
    assert_eq!(reverse(&host, &late), Verdict::Reset(Reason::LateAnswer));
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn the_rest_of_a_burst_to_a_lost_endpoint_is_reset_too() {
    for keeps_clients in [0, 100] {
        let mut host = Host::shared();
        host.keep_clients(keeps_clients);
        let at = host.answers(&from_client(SYN), SYN | ACK);
        let others: Vec<u32> = [MASTER, BACKUP, THIRD]
            .into_iter()
            .filter(|id| *id != at)
            .collect();
        host.rings.insert(2, ring_of(&others));
        host.decide(spread_over(2));
        host.mark(at, ENDPOINT_DOWN);
        for _ in 0..3 {
            let verdict = forward(&host, &from_client(ACK));
            assert_eq!(verdict, Verdict::Reset(Reason::EndpointDown));
        }
        assert_eq!(host.flows(), (0, 0), "nobody else takes it up");
        // Also when the last one left goes on alone.
        host.decide(steer_to(others[0]));
        assert_eq!(goes_to(forward(&host, &from_port(50_000, SYN))), others[0]);
    }
}

#[test]
fn a_flow_that_was_lost_is_taken_up_by_the_same_endpoint() {
    let host = Host::shared();
    for port in 40_000..40_030 {
        let id = host.answers(&from_port(port, SYN), SYN | ACK);
        host.forward.borrow_mut().clear();
        host.reverse.borrow_mut().clear();
        assert_eq!(goes_to(forward(&host, &from_port(port, ACK))), id);
    }
    assert!(host.counted.borrow().contains(&Reason::Adopted));
}

#[test]
fn datagrams_are_spread_and_stay() {
    let mut host = Host::shared();
    follow_udp(&mut host);
    let at: Vec<u32> = (40_000..40_030)
        .map(|port| host.answers(&datagram(port), 0))
        .collect();
    for id in [MASTER, BACKUP, THIRD] {
        assert!(at.contains(&id));
    }
    // Not answered yet: goes with the ring.
    let fresh = goes_to(forward(&host, &datagram(50_000)));
    let other = if fresh == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    assert_eq!(goes_to(forward(&host, &datagram(50_000))), other);
    for (port, id) in (40_000..40_030).zip(at) {
        assert_eq!(goes_to(forward(&host, &datagram(port))), id);
    }
}

#[test]
fn a_ring_that_names_nobody_or_somebody_elses_steers_nothing() {
    let mut host = Host::shared();
    let undecided = Verdict::Pass(Reason::Undecided);
    host.decide(spread_over(7));
    assert_eq!(forward(&host, &from_client(SYN)), undecided);
    host.rings.insert(2, ring_of(&[9999]));
    host.decide(spread_over(2));
    assert_eq!(forward(&host, &from_client(SYN)), undecided);
    for id in [MASTER, BACKUP, THIRD] {
        host.endpoints.get_mut(&id).unwrap().service = 2;
    }
    host.decide(spread_over(1));
    assert_eq!(forward(&host, &from_client(SYN)), undecided);
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn a_ring_has_the_places_that_clients_have() {
    let ring = ring_of(&[MASTER]);
    assert_eq!(ring.at(RING_SIZE - 1), Some(MASTER));
    assert_eq!(ring.at(RING_SIZE), None);
}
