//! Connections of one client that would look alike to an endpoint, and those straight to its own
//! address.

use super::*;
use crate::abi::FLOW_FIN;

#[test]
fn direct_connections_pass_and_are_known() {
    let host = Host::new();
    for flags in [SYN, ACK, FIN | ACK] {
        assert_eq!(
            forward(&host, &direct(flags)),
            Verdict::Pass(Reason::Direct)
        );
        assert_eq!(
            reverse(&host, &from_master(ACK)),
            Verdict::Pass(Reason::Direct)
        );
    }
    assert_eq!(host.flows(), (1, 1));
    assert_eq!(host.open.get(), 0, "not a flow of the service");
    assert_eq!(forward(&host, &direct(RST)), Verdict::Pass(Reason::Direct));
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn direct_connections_are_never_refused() {
    let mut host = Host::new();
    host.capacity = 0;
    assert_eq!(forward(&host, &direct(SYN)), Verdict::Pass(Reason::Direct));
    host.capacity = 100;
    host.mark(MASTER, ENDPOINT_DOWN);
    for flags in [SYN, ACK] {
        assert_eq!(
            forward(&host, &direct(flags)),
            Verdict::Pass(Reason::Direct)
        );
    }
}

#[test]
fn whichever_comes_second_gets_another_port() {
    for direct_first in [true, false] {
        let host = Host::new();
        let (first, second) = if direct_first {
            (direct(SYN), from_client(SYN))
        } else {
            (from_client(SYN), direct(SYN))
        };
        forward(&host, &first);
        let Verdict::Translate(moved, MASTER) = forward(&host, &second) else {
            panic!("both look alike to the master");
        };
        let port = u16::from_be(moved.client_port_be);
        assert_ne!(port, 40000);
        // The first one's answers are its own, the second one's come to its port.
        let answer = segment((MASTER_ADDR, 8080), (CLIENT, port), SYN | ACK);
        let Verdict::Translate(back, MASTER) = reverse(&host, &answer) else {
            panic!("not translated back");
        };
        assert_eq!(u16::from_be(back.client_port_be), 40000);
        assert_eq!(back.addr_be, if direct_first { VIP } else { MASTER_ADDR });
        let first_back = reverse(&host, &from_master(SYN | ACK));
        if direct_first {
            assert_eq!(first_back, Verdict::Pass(Reason::Direct));
        } else {
            assert_eq!(goes_to(first_back), MASTER);
        }
    }
}

#[test]
fn two_listeners_of_one_endpoint_share_a_client_port() {
    let mut host = Host::new();
    host.decide(steer_to(BACKUP));
    host.endpoints.get_mut(&BACKUP).unwrap().tier = 1;
    let one = from_client(SYN);
    let two = segment((CLIENT, 40000), (OTHER_VIP, 80), SYN);
    let Verdict::Translate(first, BACKUP) = forward(&host, &one) else {
        panic!("not steered");
    };
    let Verdict::Translate(second, BACKUP) = forward(&host, &two) else {
        panic!("not steered");
    };
    assert_ne!(first.client_port_be, second.client_port_be);
    assert_eq!(*host.counted.borrow(), [Reason::PortChanged]);
    for (port_be, vip) in [
        (first.client_port_be, VIP),
        (second.client_port_be, OTHER_VIP),
    ] {
        let answer = segment(
            (BACKUP_ADDR, 8081),
            (CLIENT, u16::from_be(port_be)),
            SYN | ACK,
        );
        let Verdict::Translate(back, BACKUP) = reverse(&host, &answer) else {
            panic!("not steered");
        };
        assert_eq!(back.addr_be, vip);
        assert_eq!(u16::from_be(back.client_port_be), 40000);
    }
}

/// Found by the real clients of the lab: nothing told the last acknowledgment from a flow
/// that was lost, which was taken up for hours under yet another port.
#[test]
fn what_comes_after_the_end_of_a_flow_with_a_changed_port_begins_none() {
    for reset in [false, true] {
        let host = Host::new();
        host.decide(alone(MASTER));
        forward(&host, &direct(SYN));
        let Verdict::Translate(moved, MASTER) = forward(&host, &from_client(SYN)) else {
            panic!("both look alike to the master");
        };
        let seen = u16::from_be(moved.client_port_be);
        let answer = |flags| segment((MASTER_ADDR, 8080), (CLIENT, seen), flags);
        let steered = |verdict| assert_eq!(verdict, Verdict::Translate(moved, MASTER));
        reverse(&host, &answer(SYN | ACK));
        let opened = host.open.get();
        if reset {
            goes_to(reverse(&host, &answer(RST)));
            steered(forward(&host, &from_client(ACK)));
        } else {
            steered(forward(&host, &from_client(FIN | ACK)));
            goes_to(reverse(&host, &answer(FIN | ACK)));
        }
        assert_eq!(host.open.get(), opened - 1);
        // The last acknowledgment, and one of a FIN that was repeated.
        for _ in 0..2 {
            steered(forward(&host, &from_client(ACK)));
            goes_to(reverse(&host, &answer(FIN | ACK)));
        }
        assert_eq!(host.open.get(), opened - 1, "ended once");
        assert_eq!(host.flows().0, 1, "swept as a flow that closes");
        let ended = |state: u32| state & FLOW_FIN != 0;
        assert!(
            host.forward
                .borrow()
                .values()
                .all(|flow| ended(flow.state.get()))
        );
        assert!(
            host.reverse
                .borrow()
                .values()
                .all(|flow| ended(flow.state.get()))
        );
        // The client's port begins anew.
        let again = forward(&host, &from_client(SYN));
        assert_eq!(goes_to(again), MASTER);
        let new = host
            .forward
            .borrow()
            .values()
            .all(|flow| !ended(flow.state.get()));
        assert!(new);
        assert_eq!(host.flows().0, host.flows().1);
    }
}
