//! How long an endpoint has answered no SYN.

use super::*;

/// What the agent reads of the master.
fn since(host: &Host) -> u32 {
    host.silences[&MASTER].since.get()
}

fn syn(port: u16) -> Segment<V4> {
    segment((CLIENT, port), (VIP, 80), SYN)
}

fn answer(port: u16, flags: u8) -> Segment<V4> {
    Segment {
        ack: 1001,
        ..segment((MASTER_ADDR, 8080), (CLIENT, port), flags)
    }
}

#[test]
fn it_begins_with_the_first_syn_and_ends_with_any_answer() {
    for decision in [steer_to(MASTER), alone(MASTER)] {
        let host = Host::new();
        host.decide(decision);
        for (tick, port) in [(10, 1), (11, 2), (12, 1)] {
            host.tick.set(tick);
            forward(&host, &syn(port));
            assert_eq!(
                since(&host),
                10,
                "of the first, whoever repeats or comes next"
            );
        }
        // The first SYN is lost, and the second one's answer says that the endpoint is there.
        reverse(&host, &answer(2, SYN | ACK));
        assert_eq!(since(&host), 0);
        host.tick.set(20);
        forward(&host, &syn(3));
        assert_eq!(since(&host), 20);
        // What open connections say is counted elsewhere, and costs no store here.
        forward(&host, &segment((CLIENT, 2), (VIP, 80), ACK));
        reverse(&host, &answer(2, ACK));
        reverse(&host, &answer(2, ACK));
        assert_eq!(since(&host), 20);
    }
}

#[test]
fn an_exact_refusal_is_an_answer_and_a_forged_one_is_not() {
    let host = Host::new();
    host.tick.set(10);
    forward(&host, &syn(1));
    let forged = Segment {
        ack: 7,
        ..answer(1, RST | ACK)
    };
    reverse(&host, &forged);
    assert_eq!(since(&host), 10);
    // The note of the flow ended with it; of another one the refusal is exact.
    forward(&host, &syn(2));
    reverse(&host, &answer(2, RST | ACK));
    assert_eq!(since(&host), 0);
}

#[test]
fn a_late_answer_is_one() {
    let host = Host::new();
    host.tick.set(10);
    forward(&host, &syn(1));
    host.decide(steer_to(BACKUP));
    forward(&host, &syn(1));
    assert_eq!((since(&host), host.silences[&BACKUP].since.get()), (10, 10));
    assert_eq!(
        reverse(&host, &answer(1, SYN | ACK)),
        Verdict::Reset(Reason::LateAnswer)
    );
    assert_eq!(since(&host), 0);
}

#[test]
fn nothing_is_asked_while_no_agent_looks() {
    let host = Host::new();
    forward(&host, &syn(1));
    assert_eq!(since(&host), 0);
}

/// Their answers do not come by.
#[test]
fn with_direct_server_return_nobody_waits() {
    let mut host = Host::new();
    host.tick.set(10);
    host.endpoints.get_mut(&MASTER).unwrap().forward = FORWARD_DSR;
    forward(&host, &syn(1));
    assert_eq!(since(&host), 0);
    assert_eq!(host.flows(), (1, 1));
}

#[test]
fn with_full_nat_answers_come_to_the_source() {
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().forward = FORWARD_FULL_NAT;
    for flags in [SYN | ACK, RST | ACK] {
        host.tick.set(10);
        let client = 1 + u16::from(flags);
        let Verdict::Relay(to, MASTER) = forward(&host, &syn(client)) else {
            panic!("not sent on");
        };
        assert_eq!(since(&host), 10);
        let back = Segment {
            dst_be: SOURCE,
            dst_port_be: to.client_port_be,
            ..answer(0, flags)
        };
        forward(&host, &back);
        assert_eq!(since(&host), 0);
    }
}

#[test]
fn the_clock_is_never_zero() {
    assert_eq!(crate::abi::tick(0), 1);
    assert_eq!(crate::abi::tick(1 << 48), 1);
    assert_eq!(crate::abi::tick(3 << 16), 3);
}
