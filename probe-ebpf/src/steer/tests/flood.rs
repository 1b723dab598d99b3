//! Notes, grants and full tables: what forged SYNs and datagrams cannot do.

use super::*;
use crate::abi::FLOW_CONFIRMED;

#[test]
fn full_tables_refuse_nobody_and_hold_no_half_flow() {
    for decision in [steer_to(MASTER), alone(MASTER)] {
        let mut host = Host::new();
        host.decide(decision);
        host.capacity = 1;
        connect(&host);
        let there = |flags| segment((CLIENT, 40001), (VIP, 80), flags);
        let back = |flags| segment((MASTER_ADDR, 8080), (CLIENT, 40001), flags);
        for _ in 0..2 {
            assert_eq!(goes_to(forward(&host, &there(SYN))), MASTER);
            assert_eq!(goes_to(reverse(&host, &back(SYN | ACK))), MASTER);
            assert_eq!(host.events.borrow()[0], EventKind::TableFull);
            for _ in 0..3 {
                assert_eq!(goes_to(forward(&host, &there(ACK))), MASTER);
                assert_eq!(goes_to(reverse(&host, &back(ACK))), MASTER);
            }
            assert_eq!(goes_to(forward(&host, &there(RST))), MASTER);
        }
        assert!(host.counted.borrow().contains(&Reason::TableFull));
        assert_eq!(host.flows(), (1, 1));
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        // Where there is room again, the flow gets its entries.
        host.capacity = 2;
        assert_eq!(goes_to(forward(&host, &there(SYN))), MASTER);
        assert_eq!(goes_to(reverse(&host, &back(ACK))), MASTER);
        assert_eq!(host.flows(), (2, 2));
    }
}

#[test]
fn forged_syns_get_so_many_entries_and_clients_get_theirs() {
    let host = Host::new();
    host.grants.set(1);
    forward(&host, &segment((V4(1), 1), (VIP, 80), SYN));
    reverse(&host, &segment((MASTER_ADDR, 8080), (V4(1), 1), SYN | ACK));
    assert_eq!(host.flows(), (1, 1));
    host.forward.borrow_mut().clear();
    host.reverse.borrow_mut().clear();
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    // The endpoint has heard more of the client.
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
    assert_eq!(host.flows(), (1, 1));
}

#[test]
fn what_the_endpoint_says_after_its_answer_confirms_the_client() {
    let host = Host::new();
    let state = || host.reverse.borrow().values().next().unwrap().state.get();
    forward(&host, &from_client(SYN));
    reverse(&host, &from_master(SYN | ACK));
    assert_eq!(state() & FLOW_CONFIRMED, 0);
    reverse(&host, &from_master(ACK));
    assert_eq!(state() & FLOW_CONFIRMED, FLOW_CONFIRMED);
}

/// The endpoint repeats its SYN-ACK, and a flood has overwritten the note: it comes to the client
/// as from somewhere else, whose kernel refuses it. The endpoint must not hear that: the client
/// has a connection with it.
#[test]
fn what_a_client_says_to_an_answer_without_a_note_does_not_reach_the_endpoint() {
    let host = Host::new();
    let other = |flags| segment((CLIENT, 40001), (MASTER_ADDR, 8080), flags);
    forward(&host, &other(SYN));
    // While all flows have room, a RST that no entry knows is somebody's own business.
    let passes = Verdict::Pass(Reason::Direct);
    assert_eq!(forward(&host, &direct(RST)), passes);
    host.grants.set(0);
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    // A connection of the endpoint's own address that has a note is that client's to end.
    assert_eq!(forward(&host, &other(RST)), passes);
    for n in 0..100_000u32 {
        let client = V4(n.wrapping_mul(0x9e37_79b9));
        forward(&host, &segment((client, 40000), (VIP, 80), SYN));
    }
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::NotSteered)
    );
    assert_eq!(
        forward(&host, &direct(RST)),
        Verdict::Drop(Reason::MisdirectedReset)
    );
    // A process that ends its connection says so with an acknowledgment.
    assert_eq!(forward(&host, &direct(RST | ACK)), passes);
    // What the client says then makes the flow known.
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
}

/// A client that speaks makes itself known again, whoever took its note's place.
#[test]
fn in_full_tables_each_of_the_clients_segments_renews_the_note() {
    let mut host = Host::new();
    host.decide(alone(MASTER));
    host.capacity = 0;
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    for _ in 0..3 {
        for n in 0..100_000u32 {
            let client = V4(n.wrapping_mul(0x9e37_79b9));
            forward(&host, &segment((client, 40000), (VIP, 80), SYN));
        }
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
    }
}

#[test]
fn forged_datagrams_leave_room() {
    let mut host = Host::new();
    let key = ListenerKey {
        protocol: UDP,
        ..listener_key(VIP, 80)
    };
    let listener = host.listeners[&listener_key(VIP, 80)];
    host.listeners.insert(key, listener);
    host.grants.set(2);
    let datagram = |client| Segment {
        protocol: UDP,
        ..segment((V4(client), 53), (VIP, 80), 0)
    };
    for client in 1..5 {
        assert_eq!(goes_to(forward(&host, &datagram(client))), MASTER);
    }
    assert_eq!(host.flows(), (2, 2));
    // The answer shows that somebody wants it.
    let answer = Segment {
        protocol: UDP,
        ..segment((MASTER_ADDR, 8080), (V4(4), 53), 0)
    };
    assert_eq!(goes_to(reverse(&host, &answer)), MASTER);
    assert_eq!(host.flows(), (3, 3));
}

#[test]
fn datagrams_find_full_tables_too() {
    let mut host = Host::new();
    host.capacity = 0;
    let listener = host.listeners[&listener_key(VIP, 80)];
    let key = ListenerKey {
        protocol: UDP,
        ..listener_key(VIP, 80)
    };
    host.listeners.insert(key, listener);
    let datagram = |s: Segment<V4>| Segment { protocol: UDP, ..s };
    for _ in 0..2 {
        assert_eq!(goes_to(forward(&host, &datagram(from_client(0)))), MASTER);
        assert_eq!(goes_to(reverse(&host, &datagram(from_master(0)))), MASTER);
    }
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn a_flood_of_syns_touches_no_entry() {
    let host = Host::new();
    host.decide(alone(MASTER));
    connect(&host);
    for n in 0..100_000u32 {
        let client = V4(n.wrapping_mul(0x9e37_79b9));
        let syn = segment((client, 40000), (VIP, 80), SYN);
        assert_eq!(goes_to(forward(&host, &syn)), MASTER);
    }
    assert_eq!(host.flows(), (1, 1));
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
}

#[test]
fn two_syns_of_one_set_are_both_remembered_and_the_older_makes_place() {
    let host = Host::new();
    let number = |client| RecentSet::number(host.seed(), client, 1, MASTER_ADDR, 8080_u16.to_be());
    let mut of_one_set = (0..).map(V4).filter(|client| number(*client) == 7);
    let clients: Vec<V4> = of_one_set.by_ref().take(3).collect();
    let syn = |client| segment((client, u16::from_be(1)), (VIP, 80), SYN);
    let known = |client| {
        let answer = segment((MASTER_ADDR, 8080), (client, u16::from_be(1)), RST);
        reverse(&host, &answer) != Verdict::Pass(Reason::NotSteered)
    };
    for client in &clients {
        forward(&host, &syn(*client));
        assert!(known(*client));
    }
    let remembered: Vec<_> = clients.iter().map(|client| known(*client)).collect();
    assert_eq!(remembered, [false, true, true]);
    // Who repeats a SYN takes nobody's place.
    forward(&host, &syn(clients[2]));
    forward(&host, &syn(clients[2]));
    assert!(known(clients[1]));
}

/// The note says which endpoint it is: a switch takes no connection along for want of room.
#[test]
fn after_a_switch_a_connection_without_entries_goes_by_its_note() {
    for lost in [false, true] {
        let mut host = Host::new();
        host.capacity = 0;
        connect(&host);
        host.decide(steer_to(BACKUP));
        if lost {
            host.mark(MASTER, ENDPOINT_DOWN);
            assert_eq!(
                forward(&host, &from_client(ACK)),
                Verdict::Reset(Reason::EndpointDown)
            );
            continue;
        }
        for _ in 0..3 {
            assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
            assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
        }
        // Once there is room it gets its entries where it is.
        host.capacity = 100;
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        assert_eq!(host.flows(), (1, 1));
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
        assert_eq!(goes_to(forward(&host, &from_client(RST))), MASTER);
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    }
}

/// A client that resets a connection without entries is heard by its endpoint.
#[test]
fn after_a_switch_the_reset_of_a_connection_without_entries_reaches_its_endpoint() {
    let mut host = Host::new();
    host.capacity = 0;
    connect(&host);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(RST))), MASTER);
    // Its port is free.
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), SYN | ACK);
    assert_eq!(goes_to(reverse(&host, &answer)), BACKUP);
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), BACKUP);
}
