//! How a flow ends: by its own FIN or RST, or because its endpoint is down or drained.

use super::*;
use crate::abi::KEEP_FLOWS_OF_DOWN;

#[test]
fn an_orderly_close_forgets_the_flow_with_the_last_acknowledgment() {
    for client_first in [true, false] {
        let host = Host::new();
        connect(&host);
        let mut client_fin = from_client(FIN | ACK);
        client_fin.seq = 100;
        client_fin.ack = if client_first { 200 } else { 201 };
        let mut master_fin = from_master(FIN | ACK);
        master_fin.seq = 200;
        master_fin.ack = if client_first { 101 } else { 100 };
        let mut last;
        if client_first {
            forward(&host, &client_fin);
            reverse(&host, &master_fin);
            last = from_client(ACK);
            for ack in [200, 201] {
                last.ack = ack;
                assert_eq!(goes_to(forward(&host, &last)), MASTER);
            }
        } else {
            reverse(&host, &master_fin);
            forward(&host, &client_fin);
            assert_eq!(host.flows(), (1, 1), "the last acknowledgment is to come");
            last = from_master(ACK);
            last.ack = 101;
            assert_eq!(goes_to(reverse(&host, &last)), MASTER);
        }
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(host.open.get(), 0);
    }
}

#[test]
fn the_last_acknowledgment_reaches_the_endpoint_before() {
    let host = Host::new();
    connect(&host);
    host.decide(steer_to(BACKUP));
    forward(&host, &from_client(FIN | ACK));
    reverse(&host, &from_master(FIN | ACK));
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn resets_of_either_side_forget_the_flow() {
    let host = Host::new();
    connect(&host);
    assert_eq!(goes_to(forward(&host, &from_client(RST))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    connect(&host);
    assert_eq!(goes_to(reverse(&host, &from_master(RST))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    assert!(host.events.borrow().is_empty(), "nobody was refused");
}

#[test]
fn a_refused_syn_is_told() {
    let host = Host::new();
    forward(&host, &from_client(SYN));
    let refusal = Segment {
        ack: 1001,
        ..from_master(RST | ACK)
    };
    assert_eq!(goes_to(reverse(&host, &refusal)), MASTER);
    assert_eq!(*host.events.borrow(), [EventKind::EndpointRefused]);
    assert_eq!(host.flows(), (0, 0));
    // Told once, translated as often as it comes.
    assert_eq!(goes_to(reverse(&host, &refusal)), MASTER);
    assert_eq!(host.events.borrow().len(), 1);
}

#[test]
fn flows_of_a_down_endpoint_are_reset_unless_kept() {
    let mut host = Host::new();
    connect(&host);
    host.mark(MASTER, ENDPOINT_DOWN);
    host.decide(Decision {
        flags: KEEP_FLOWS_OF_DOWN,
        ..steer_to(BACKUP)
    });
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    host.decide(steer_to(BACKUP));
    assert_eq!(
        forward(&host, &from_client(ACK)),
        Verdict::Reset(Reason::EndpointDown)
    );
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(*host.events.borrow(), [EventKind::FlowReset]);
    assert_eq!(host.open.get(), 0);
    // The port may be used again at once.
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
}

/// A client may have sent more before it hears of the RST.
#[test]
fn a_whole_burst_to_a_down_endpoint_is_refused() {
    let mut host = Host::new();
    connect(&host);
    host.mark(MASTER, ENDPOINT_DOWN);
    host.decide(steer_to(BACKUP));
    for _ in 0..5 {
        assert_eq!(
            forward(&host, &from_client(ACK)),
            Verdict::Reset(Reason::EndpointDown)
        );
    }
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(host.events.borrow().len(), 1, "one flow was reset");
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), BACKUP);
}

/// Its time to end by itself is over: `keep` is for endpoints that are down.
#[test]
fn flows_of_a_drained_endpoint_are_reset_even_if_kept() {
    for flags in [0, KEEP_FLOWS_OF_DOWN] {
        let mut host = Host::new();
        connect(&host);
        host.decide(Decision {
            flags,
            ..steer_to(BACKUP)
        });
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        host.mark(MASTER, ENDPOINT_DRAINED);
        for _ in 0..3 {
            assert_eq!(
                forward(&host, &from_client(ACK)),
                Verdict::Reset(Reason::EndpointDown)
            );
        }
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    }
}

/// The endpoint is alive, and would send to a client that has gone for as long as its
/// kernel repeats: it is told the same.
#[test]
fn a_drained_endpoint_hears_of_the_end() {
    for decision in [steer_to(BACKUP), alone(BACKUP)] {
        let mut host = Host::new();
        connect(&host);
        host.decide(steer_to(BACKUP));
        host.mark(MASTER, ENDPOINT_DRAINED);
        assert_eq!(
            forward(&host, &from_client(ACK)),
            Verdict::Reset(Reason::EndpointDown)
        );
        host.decide(decision);
        assert_eq!(
            reverse(&host, &from_master(ACK)),
            Verdict::Reset(Reason::ClientGone)
        );
        // What its client says of a segment that acknowledged nothing was not meant for it.
        let mut answer = from_client(RST | ACK);
        answer.seq = 0;
        assert_eq!(forward(&host, &answer), Verdict::Pass(Reason::StrayReset));
        // If its client says so itself, that reaches it too.
        assert_eq!(goes_to(forward(&host, &from_client(RST))), MASTER);
        // Another RST of nobody's is left alone.
        let stray = segment((CLIENT, 40_001), (VIP, 80), RST);
        assert_eq!(forward(&host, &stray), Verdict::Pass(Reason::StrayReset));
    }
}
