//! Which endpoint a connection goes to, and stays with.

use super::*;

#[test]
fn a_connection_is_translated_both_ways() {
    let host = Host::new();
    let Verdict::Translate(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not steered");
    };
    assert_eq!(there.addr_be, MASTER_ADDR);
    assert_eq!(u16::from_be(there.port_be), 8080);
    assert_eq!(u16::from_be(there.client_port_be), 40000);
    let Verdict::Translate(back, MASTER) = reverse(&host, &from_master(SYN | ACK)) else {
        panic!("not steered");
    };
    assert_eq!(back.addr_be, VIP);
    assert_eq!(u16::from_be(back.port_be), 80);
    assert_eq!(u16::from_be(back.client_port_be), 40000);
}

#[test]
fn what_is_for_nobody_passes() {
    let host = Host::new();
    let elsewhere = segment((CLIENT, 40000), (VIP, 81), SYN);
    assert_eq!(
        forward(&host, &elsewhere),
        Verdict::Pass(Reason::NotListener)
    );
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::NotSteered)
    );
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn a_switch_moves_new_connections_and_leaves_old_ones() {
    let host = Host::new();
    connect(&host);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    let new = segment((CLIENT, 40001), (VIP, 80), SYN);
    assert_eq!(goes_to(forward(&host, &new)), BACKUP);
}

#[test]
fn an_unanswered_syn_is_steered_anew_after_a_switch() {
    let host = Host::new();
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    assert_eq!(host.flows(), (0, 0));
    // The master's late answer belongs to no flow any more.
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Reset(Reason::LateAnswer)
    );
}

#[test]
fn a_late_answer_does_not_take_a_moved_flow_back() {
    let host = Host::new();
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    // Twice, so that the slot no longer knows the master was asked.
    host.decide(steer_to(BACKUP));
    host.decide(steer_to(99));
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), SYN | ACK);
    assert_eq!(goes_to(reverse(&host, &answer)), BACKUP);
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::NotSteered)
    );
    assert_eq!(host.flows(), (1, 1));
}

#[test]
fn a_syn_on_a_live_flow_goes_to_its_endpoint_to_be_challenged() {
    let host = Host::new();
    connect(&host);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
}

#[test]
fn a_direct_listener_reaches_its_endpoint_whatever_happens() {
    for state in [ENDPOINT_DOWN, ENDPOINT_DRAINED] {
        direct_listener_with_an_endpoint_that_is(state);
    }
}

fn direct_listener_with_an_endpoint_that_is(state: u32) {
    let mut host = Host::new();
    host.mark(BACKUP, state);
    for decision in [
        steer_to(MASTER),
        Decision {
            action: Action::Refuse,
            flags: 0,
            tier: 0,
            target: 0,
        },
    ] {
        host.decide(decision);
        let direct = segment((CLIENT, 40000), (OTHER_VIP, 80), SYN);
        assert_eq!(goes_to(forward(&host, &direct)), BACKUP);
        let data = segment((CLIENT, 40000), (OTHER_VIP, 80), ACK);
        assert_eq!(goes_to(forward(&host, &data)), BACKUP);
    }
}

#[test]
fn refusal_and_indecision() {
    let host = Host::new();
    host.decide(Decision {
        action: Action::Refuse,
        flags: 0,
        tier: 0,
        target: 0,
    });
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Reset(Reason::Refused)
    );
    assert_eq!(
        forward(&host, &from_client(RST)),
        Verdict::Pass(Reason::StrayReset)
    );
    host.decide(Decision::unpack(0));
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Pass(Reason::Undecided)
    );
    host.decide(steer_to(99));
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Pass(Reason::Undecided)
    );
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn an_endpoint_without_an_address_of_the_family_refuses() {
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().families = FAMILY_V6;
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Reset(Reason::NoAddress)
    );
}

#[test]
fn mid_connection_segments_take_up_lost_flows() {
    let host = Host::new();
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(*host.counted.borrow(), [Reason::Adopted]);
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
}

#[test]
fn families_have_addresses_of_their_own() {
    let both = Endpoint {
        families: FAMILY_V4 | FAMILY_V6,
        v6_be: V6::from_bytes([7; 16]),
        ..endpoint(MASTER_ADDR, 1, ENDPOINT_UP)
    };
    assert_eq!(V4::of_endpoint(&both), Some(MASTER_ADDR));
    assert_eq!(V6::of_endpoint(&both), Some(V6::from_bytes([7; 16])));
}
