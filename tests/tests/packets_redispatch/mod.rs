//! Refusals that become SYNs, and answers that come late.

use etherparse::TcpOptionElement as Element;
use probe_ebpf::abi::{Decision, ENDPOINT_DOWN, ENDPOINT_UP, NO_REDISPATCH, Reason};

use crate::packets_support::*;

/// What systems ask for in their SYNs: nothing, Linux, macOS, Windows, and as much as there
/// is room for.
pub fn wishes() -> [(&'static str, Vec<Element>); 5] {
    let segment = Element::MaximumSegmentSize(1460);
    let sack = Element::SelectiveAcknowledgementPermitted;
    let (stamp, scale) = (Element::Timestamp(0x0102_0304, 0), Element::WindowScale(7));
    let none = Element::Noop;
    [
        ("none", vec![]),
        (
            "Linux",
            vec![
                segment.clone(),
                sack.clone(),
                stamp.clone(),
                none.clone(),
                scale.clone(),
            ],
        ),
        (
            "macOS",
            vec![
                segment.clone(),
                none.clone(),
                scale.clone(),
                none.clone(),
                none.clone(),
                stamp.clone(),
                sack.clone(),
            ],
        ),
        (
            "Windows",
            vec![
                segment.clone(),
                none.clone(),
                scale,
                none.clone(),
                none,
                sack,
            ],
        ),
        (
            "as many as there can be",
            vec![
                stamp.clone(),
                stamp.clone(),
                stamp,
                segment.clone(),
                segment,
            ],
        ),
    ]
}

#[test]
fn a_refusal_becomes_the_syn_to_the_next_endpoint() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for decision in [steer(MASTER), alone(MASTER)] {
        lab.decide(decision);
        for (name, wishes) in wishes() {
            for family in Family::BOTH {
                for program in Program::FORWARD {
                    println!("{name}, {family:?}, {program:?}");
                    lab.forget_flows();
                    let syn = client(family, VIP_PORT).syn().tcp_options(&wishes);
                    let there = syn.clone().at_master();
                    lab.expect(program, &syn.bytes(), Expect::changed(&there.bytes()));
                    let again = syn.clone().at_backup().anew();
                    let counted = lab.reason(Reason::Redispatched);
                    lab.redirects(&there.refused(), &again);
                    assert_eq!(lab.reason(Reason::Redispatched), counted + 1);
                    assert_eq!(lab.flows(family), (0, 0), "nobody has answered");
                    lab.expect(program, &again.bytes(), Expect::passed(&again.bytes()));
                    let answer = again.answered();
                    let home = syn.clone().anew().answered();
                    lab.expect(
                        Program::Reverse,
                        &answer.bytes(),
                        Expect::changed(&home.bytes()),
                    );
                    assert_eq!(lab.flows(family), (1, 1));
                    // The selection still says master.
                    let data = syn.ack(b"hello");
                    let wanted = data.clone().at_backup();
                    lab.expect(program, &data.bytes(), Expect::changed(&wanted.bytes()));
                    // The master was slow, not dead.
                    let late = there.answered();
                    lab.expect(Program::Reverse, &late.bytes(), Expect::reset(&late));
                }
            }
        }
    }
}

#[test]
fn payload_is_not_sent_again() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        lab.forget_flows();
        let syn = client(family, VIP_PORT).syn();
        let fast = syn.clone().payload(&[7; 333]);
        let there = fast.clone().at_master();
        lab.expect(Program::Tc, &fast.bytes(), Expect::changed(&there.bytes()));
        lab.redirects(&there.refused(), &syn.at_backup().anew());
    }
}

#[test]
fn what_is_no_plain_refusal_of_the_syn_goes_home() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        let syn = client(family, VIP_PORT).syn();
        let refused = syn.clone().at_master().refused();
        let home = syn.refused();
        let data = [0xa5; 3];
        for (packet, wanted) in [
            (refused.clone().acks(7), home.clone().acks(7)),
            (refused.clone().rst(), home.clone().rst()),
            (refused.clone().payload(&data), home.clone().payload(&data)),
        ] {
            lab.forget_flows();
            lab.run(Program::Tc, &syn.bytes());
            lab.expect(
                Program::Reverse,
                &packet.bytes(),
                Expect::changed(&wanted.bytes()),
            );
        }
        // Nor where only one may serve, or nobody else does.
        let single = Decision {
            flags: NO_REDISPATCH,
            ..steer(MASTER)
        };
        for (decision, state) in [(single, ENDPOINT_UP), (steer(MASTER), ENDPOINT_DOWN)] {
            lab.forget_flows();
            lab.decide(decision);
            lab.mark(BACKUP, state);
            lab.run(Program::Tc, &syn.bytes());
            lab.expect(
                Program::Reverse,
                &refused.bytes(),
                Expect::changed(&home.bytes()),
            );
        }
        lab.mark(BACKUP, ENDPOINT_UP);
        lab.decide(steer(MASTER));
    }
}

#[test]
fn an_endpoint_that_is_down_hears_that_its_client_has_gone() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        lab.forget_flows();
        let syn = client(family, VIP_PORT).syn();
        lab.run(Program::Tc, &syn.bytes());
        lab.answer(&syn);
        lab.mark(MASTER, ENDPOINT_DOWN);
        let data = syn.ack(b"hello");
        lab.expect(Program::Tc, &data.bytes(), Expect::reset(&data));
        let more = syn.clone().at_master().answered().ack(b"more");
        lab.expect(Program::Reverse, &more.bytes(), Expect::reset(&more));
        lab.mark(MASTER, ENDPOINT_UP);
    }
}
