//! Segments that go by the slot alone, and what ends that.

use super::*;

#[test]
fn by_the_slot_alone_nothing_is_written_between_handshake_and_end() {
    let host = Host::new();
    host.decide(alone(MASTER));
    connect(&host);
    let before = host.forward.borrow().clone();
    host.now_ns.set(host.now_ns.get() + (100 << 30));
    for _ in 0..10 {
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    }
    let after = host.forward.borrow().clone();
    for (key, flow) in before {
        assert_eq!(flow.seen.get(), after[&key].seen.get());
    }
    // A lost entry is not missed on the way there.
    host.forward.borrow_mut().clear();
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(host.flows().0, 0);
}

/// The client's part of the handshake makes the entries, so that nothing depends on the
/// note, which a flood overwrites.
#[test]
fn without_an_entry_the_way_by_the_slot_alone_ends() {
    let host = Host::new();
    host.decide(alone(MASTER));
    host.grants.set(0);
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(*host.counted.borrow(), [Reason::TableFull]);
    assert_ne!(host.selection.exceptions.get(), 0);
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(host.flows(), (1, 1));
    for n in 0..100_000u32 {
        let client = V4(n.wrapping_mul(0x9e37_79b9));
        forward(&host, &segment((client, 40000), (VIP, 80), SYN));
    }
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
}

#[test]
fn a_changed_port_ends_the_way_by_the_slot_alone() {
    for direct_first in [true, false] {
        let host = Host::new();
        host.decide(alone(MASTER));
        let (first, second) = if direct_first {
            (
                direct as fn(u8) -> Segment<V4>,
                from_client as fn(u8) -> Segment<V4>,
            )
        } else {
            (from_client as _, direct as _)
        };
        forward(&host, &first(SYN));
        assert_eq!(host.selection.exceptions.get(), 0);
        let Verdict::Translate(moved, MASTER) = forward(&host, &second(SYN)) else {
            panic!("both look alike to the master");
        };
        assert_ne!(host.selection.exceptions.get(), 0);
        for _ in 0..2 {
            assert_eq!(
                forward(&host, &second(ACK)),
                Verdict::Translate(moved, MASTER)
            );
            let own = forward(&host, &first(ACK));
            match own {
                Verdict::Translate(there, MASTER) => {
                    assert_eq!(u16::from_be(there.client_port_be), 40000);
                }
                other => assert_eq!(other, Verdict::Pass(Reason::Direct)),
            }
        }
    }
}

#[test]
fn the_last_acknowledgment_by_the_slot_is_steered_and_a_repeated_fin_comes_back() {
    let host = Host::new();
    host.decide(alone(MASTER));
    connect(&host);
    assert_eq!(goes_to(forward(&host, &from_client(FIN | ACK))), MASTER);
    assert_eq!(host.flows(), (1, 1));
    for _ in 0..3 {
        assert_eq!(goes_to(reverse(&host, &from_master(FIN | ACK))), MASTER);
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    }
    // The port is free: for the VIP again, or for the master itself.
    assert_eq!(forward(&host, &direct(SYN)), Verdict::Pass(Reason::Direct));
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::Direct)
    );
    assert_eq!(host.selection.exceptions.get(), 0, "nobody had to make way");
}

/// The agent lets segments go by the slot alone when a sweep found no flow elsewhere: a flow
/// whose SYN was not answered yet had no entry to be found.
#[test]
fn a_late_answer_keeps_its_flow_where_segments_go_by_the_slot_alone() {
    for listener in [VIP, OTHER_VIP] {
        let to_listener = |flags| segment((CLIENT, 40000), (listener, 80), flags);
        let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), SYN | ACK);
        let host = Host::new();
        host.decide(steer_to(BACKUP));
        assert_eq!(goes_to(forward(&host, &to_listener(SYN))), BACKUP);
        host.decide(alone(MASTER));
        assert_eq!(goes_to(reverse(&host, &answer)), BACKUP);
        assert_eq!(goes_to(forward(&host, &to_listener(ACK))), BACKUP);
        assert_eq!(goes_to(forward(&host, &to_listener(FIN | ACK))), BACKUP);
        assert_eq!(host.flows(), (1, 1));
        // What asks for this endpoint is no exception.
        let follows = listener == VIP;
        assert_eq!(host.selection.exceptions.get() != 0, follows);
    }
}
