//! Full NAT: the client is hidden behind the node's address and a source port.

use super::*;
use crate::abi::{PORT_RESTING, PORT_USED};

#[test]
fn full_nat_hides_the_client_and_finds_it_again() {
    let host = full_nat();
    let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    assert_eq!((there.addr_be, there.client_be), (MASTER_ADDR, SOURCE));
    let port = u16::from_be(there.client_port_be);
    assert!(port >= 1024);
    assert_eq!(host.ports[port as usize / 64].get(port.into()), PORT_USED);
    // Repeated, and later: the same way.
    for flags in [SYN, ACK] {
        assert_eq!(
            forward(&host, &from_client(flags)),
            Verdict::Relay(there, MASTER)
        );
    }
    let answer = |flags| segment((MASTER_ADDR, 8080), (SOURCE, port), flags);
    for flags in [SYN | ACK, ACK] {
        // It comes to an address of the node's, like what clients send.
        let Verdict::Relay(back, MASTER) = forward(&host, &answer(flags)) else {
            panic!("not sent back");
        };
        assert_eq!((back.addr_be, back.client_be), (VIP, CLIENT));
        assert_eq!(u16::from_be(back.client_port_be), 40000);
    }
    assert_eq!(host.open.get(), 1);
    forward(&host, &answer(RST));
    assert_eq!(host.open.get(), 0);
    assert_eq!(
        host.ports[port as usize / 64].get(port.into()),
        PORT_RESTING
    );
    // What comes late is theirs still, and ends nothing twice.
    for late in [answer(ACK), answer(RST), from_client(ACK)] {
        assert!(matches!(forward(&host, &late), Verdict::Relay(_, MASTER)));
    }
    assert_eq!(host.open.get(), 0);
    // The client begins anew.
    assert!(matches!(
        forward(&host, &from_client(SYN)),
        Verdict::Relay(_, MASTER)
    ));
    assert_eq!((host.flows(), host.open.get()), ((1, 1), 1));
    // What nobody knows has no port.
    let stranger = segment((CLIENT, 40001), (VIP, 80), ACK);
    assert_eq!(forward(&host, &stranger), Verdict::Reset(Reason::FlowLost));
}

#[test]
fn full_nat_gives_every_flow_a_port_of_its_own_until_there_is_none() {
    let mut host = full_nat();
    host.capacity = 100_000;
    let mut ports = std::collections::HashSet::new();
    let mut refused = 0;
    for n in 0..64_512u32 {
        let client = V4((0x0a01_0000 + n / 1000).to_be());
        let syn = segment((client, 10_000 + (n % 1000) as u16), (VIP, 80), SYN);
        match forward(&host, &syn) {
            Verdict::Relay(there, MASTER) => {
                assert!(u16::from_be(there.client_port_be) >= 1024);
                assert!(ports.insert(there.client_port_be), "a live port again");
            }
            Verdict::Reset(Reason::PortsExhausted) => refused += 1,
            other => panic!("{other:?}"),
        }
        if n == 60_000 {
            assert_eq!(refused, 0, "with 60,000 flows");
        }
    }
    assert!(ports.len() > 64_000, "{} of 64,512 ports used", ports.len());
    assert_eq!(host.events.borrow().len(), refused);
    // A port that rests is taken when no other is free.
    let one = *ports.iter().next().unwrap();
    let answer = segment((MASTER_ADDR, 8080), (SOURCE, u16::from_be(one)), RST);
    forward(&host, &answer);
    let again = (0..u16::MAX).find_map(|n| {
        let syn = segment((V4(77), n), (VIP, 80), SYN);
        match forward(&host, &syn) {
            Verdict::Relay(there, _) => Some(there.client_port_be),
            _ => None,
        }
    });
    assert!(again.is_some());
    assert_eq!(host.flows().0, host.flows().1);
}

/// Whoever closes first: the last acknowledgment finds its way, or who sent the last FIN would
/// wait for it for minutes.
#[test]
fn full_nat_ends_after_the_last_acknowledgment() {
    for client_first in [true, false] {
        let host = full_nat();
        let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
            panic!("not sent on");
        };
        let port = u16::from_be(there.client_port_be);
        let numbered = |mut segment: Segment<V4>, seq, ack| {
            segment.seq = seq;
            segment.ack = ack;
            segment
        };
        let mine = |flags, seq, ack| numbered(from_client(flags), seq, ack);
        let its = |flags, seq, ack| {
            let segment = segment((MASTER_ADDR, 8080), (SOURCE, port), flags);
            numbered(segment, seq, ack)
        };
        let segments = if client_first {
            [
                its(SYN | ACK, 0, 0),
                mine(FIN | ACK, 100, 900),
                its(FIN | ACK, 900, 101),
                // Repeated, for want of the acknowledgment.
                its(FIN | ACK, 900, 101),
                mine(ACK, 101, 901),
            ]
        } else {
            [
                its(SYN | ACK, 0, 0),
                its(FIN | ACK, 900, 100),
                mine(FIN | ACK, 100, 901),
                mine(FIN | ACK, 100, 901),
                its(ACK, 901, 101),
            ]
        };
        for (n, segment) in segments.iter().enumerate() {
            let verdict = forward(&host, segment);
            assert!(
                matches!(verdict, Verdict::Relay(_, MASTER)),
                "segment {n}, client first {client_first}: {verdict:?}"
            );
        }
        assert_eq!(host.open.get(), 0);
    }
}

/// Nobody is hidden who does not come by the VIP, and no port is touched.
#[test]
fn what_is_straight_to_an_endpoint_of_full_nat_stays_so() {
    let host = full_nat();
    let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    let port = u16::from_be(there.client_port_be);
    let mine = |flags| segment((CLIENT, port), (MASTER_ADDR, 8080), flags);
    let its = |flags| segment((MASTER_ADDR, 8080), (CLIENT, port), flags);
    let direct = Verdict::Pass(Reason::Direct);
    for _ in 0..2 {
        assert_eq!(forward(&host, &mine(SYN)), direct);
        assert_eq!(reverse(&host, &its(SYN | ACK)), direct);
        assert_eq!(forward(&host, &mine(ACK)), direct);
        assert_eq!(reverse(&host, &its(ACK)), direct);
        assert_eq!(forward(&host, &mine(RST)), direct);
        let used = host.ports[port as usize / 64].get(port.into());
        assert_eq!(used, PORT_USED, "the steered flow still has it");
    }
    assert_eq!(
        forward(&host, &from_client(ACK)),
        Verdict::Relay(there, MASTER)
    );
}
