//! Tables for BPF_PROG_TEST_RUN: a description, a packet, the expected verdict and
//! the whole expected packet. Expected packets are built by another library
//! (etherparse), checksums and all, never by our own code.

mod packets_support;

use etherparse::{IpNumber, TcpOptionElement};
use packets_support::*;
use probe_ebpf::abi::{Action, Decision, ENDPOINT_DOWN, ENDPOINT_UP, KEEP_FLOWS_OF_DOWN, Reason};

/// Runs every program that sees what clients send over the same packet.
fn forward_all(lab: &mut Programs, packet: &[u8], wanted: Expect) {
    for program in Program::FORWARD {
        lab.forget_flows();
        lab.expect(program, packet, wanted.clone());
    }
}

#[test]
fn a_syn_is_steered_and_counted() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        let syn = client(family, VIP_PORT).syn();
        let steered = syn.clone().at_master();
        forward_all(&mut lab, &syn.bytes(), Expect::changed(&steered.bytes()));
    }
    assert!(lab.endpoint_counters(MASTER).flows_opened >= 2 * Program::FORWARD.count() as u64);
}

#[test]
fn the_way_back_carries_the_vip() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        for program in Program::FORWARD {
            lab.forget_flows();
            let syn = client(family, VIP_PORT).syn();
            lab.run(program, &syn.bytes());
            let answer = syn.clone().at_master().answered();
            let wanted = syn.answered();
            lab.expect(
                Program::Reverse,
                &answer.bytes(),
                Expect::changed(&wanted.bytes()),
            );
        }
    }
}

#[test]
fn data_options_and_tags_survive_translation() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    type Shape = fn(Packet) -> Packet;
    let shapes: [(&str, Shape); 7] = [
        ("bare", |p| p),
        ("odd payload", |p| p.payload(&[0xa5; 777])),
        ("full segment", |p| p.payload(&[0x5a; 1440])),
        ("TCP options", |p| {
            p.tcp_options(&[
                TcpOptionElement::MaximumSegmentSize(1460),
                TcpOptionElement::SelectiveAcknowledgementPermitted,
                TcpOptionElement::Timestamp(7, 9),
                TcpOptionElement::Noop,
                TcpOptionElement::WindowScale(7),
            ])
        }),
        ("one VLAN tag", |p| p.vlan(&[(0x8100, 5)])),
        ("two VLAN tags", |p| p.vlan(&[(0x88a8, 100), (0x8100, 5)])),
        ("padded to the Ethernet minimum", |p| p.trailer(6)),
    ];
    for (name, shape) in shapes {
        for family in Family::BOTH {
            let packet = shape(client(family, VIP_PORT).syn());
            for program in Program::FORWARD {
                lab.forget_flows();
                let wanted = packet.clone().at_master();
                println!("{name}, {family:?}, {program:?}");
                lab.expect(program, &packet.bytes(), Expect::changed(&wanted.bytes()));
            }
        }
    }
}

#[test]
fn ipv4_options_are_walked_over() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    // Router alert (RFC 2113) and padding: a header of 28 bytes.
    let options = [0x94, 0x04, 0x00, 0x00, 0x01, 0x01, 0x01, 0x00];
    let packet = client(Family::V4, VIP_PORT).syn().ipv4_options(&options);
    let wanted = packet.clone().at_master();
    forward_all(&mut lab, &packet.bytes(), Expect::changed(&wanted.bytes()));
}

#[test]
fn what_is_not_ours_passes_bit_for_bit() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    let mut cases: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("ARP", arp(), Reason::NotIp),
        (
            "three VLAN tags",
            client(Family::V4, VIP_PORT)
                .syn()
                .vlan(&[(0x8100, 1), (0x8100, 2), (0x8100, 3)])
                .bytes(),
            Reason::VlanDepth,
        ),
        (
            "a frame of 14 bytes claiming IPv4",
            {
                let mut frame = vec![2; 14];
                frame[12..].copy_from_slice(&[8, 0]);
                frame
            },
            Reason::Malformed,
        ),
    ];
    for family in Family::BOTH {
        let base = client(family, VIP_PORT).syn();
        cases.extend([
            (
                "another port of the VIP",
                client(family, 81).syn().bytes(),
                Reason::NotListener,
            ),
            (
                "straight to the master",
                base.clone().at_master().bytes(),
                Reason::Direct,
            ),
            ("UDP to the VIP's port", udp(family), Reason::NotTcp),
            ("ICMP", icmp(family), Reason::NotTcp),
            (
                "first fragment",
                fragment(family, 0, true),
                Reason::Fragment,
            ),
            (
                "later fragment",
                fragment(family, 64, false),
                Reason::Fragment,
            ),
            (
                "data offset below five",
                base.clone().patched(|p| p[base.l4() + 12] = 0x40),
                Reason::Malformed,
            ),
            (
                "data offset beyond the packet",
                base.clone().patched(|p| p[base.l4() + 12] = 0xf0),
                Reason::Malformed,
            ),
            (
                "length beyond the frame",
                base.clone().patched(|p| p[base.length_at()] = 0x40),
                Reason::Malformed,
            ),
            (
                "wrong version",
                base.clone().patched(|p| p[14] = 0x55),
                Reason::Malformed,
            ),
            (
                "a reset for no flow",
                client(family, VIP_PORT).rst().bytes(),
                Reason::StrayReset,
            ),
        ]);
        for cut in [34, 40, 53] {
            cases.push(("cut short", base.bytes()[..cut].to_vec(), Reason::Malformed));
        }
    }
    cases.push((
        "IPv6 hop-by-hop options",
        hop_by_hop(),
        Reason::ExtensionHeader,
    ));
    cases.push((
        "IPv4 header length below five",
        client(Family::V4, VIP_PORT).syn().patched(|p| p[14] = 0x44),
        Reason::Malformed,
    ));
    for (name, packet, reason) in cases {
        for program in Program::FORWARD.into_iter().filter(|p| p.accepts(&packet)) {
            lab.forget_flows();
            println!("{name}, {program:?}");
            let before = lab.reason(reason);
            lab.expect(program, &packet, Expect::passed(&packet));
            assert_eq!(
                lab.reason(reason),
                before + 1,
                "{name}: {reason:?} counts once"
            );
        }
        if Program::Reverse.accepts(&packet) {
            println!("{name}, reverse");
            lab.expect(Program::Reverse, &packet, Expect::passed(&packet));
        }
    }
}

#[test]
fn a_switch_is_one_word() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for program in Program::FORWARD {
        lab.forget_flows();
        lab.decide(steer(MASTER));
        let old = client(Family::V4, VIP_PORT).syn();
        lab.expect(
            program,
            &old.bytes(),
            Expect::changed(&old.clone().at_master().bytes()),
        );
        lab.answer(&old);
        lab.decide(steer(BACKUP));
        let new = client(Family::V4, VIP_PORT).port(50001).syn();
        lab.expect(
            program,
            &new.bytes(),
            Expect::changed(&new.clone().at_backup().bytes()),
        );
        let data = old.ack(b"still here");
        lab.expect(
            program,
            &data.bytes(),
            Expect::changed(&data.clone().at_master().bytes()),
        );
    }
}

#[test]
fn resets_are_what_a_closed_port_would_answer() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        lab.decide(Decision {
            action: Action::Refuse,
            flags: 0,
            endpoint: 0,
        });
        let syn = client(family, VIP_PORT)
            .syn()
            .tcp_options(&[TcpOptionElement::MaximumSegmentSize(1460)]);
        let data = client(family, VIP_PORT).ack(&[7; 1000]);
        let tagged = syn.clone().vlan(&[(0x8100, 5)]);
        for packet in [syn, data, tagged] {
            for program in Program::FORWARD {
                lab.forget_flows();
                println!("{family:?}, {program:?}");
                lab.expect(program, &packet.bytes(), Expect::reset(&packet));
            }
        }
    }
}

#[test]
fn flows_of_a_down_endpoint_are_reset_or_kept() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        for program in Program::FORWARD {
            lab.forget_flows();
            lab.mark(MASTER, ENDPOINT_UP);
            lab.decide(steer(MASTER));
            let syn = client(family, VIP_PORT).syn();
            lab.run(program, &syn.bytes());
            lab.answer(&syn);
            lab.mark(MASTER, ENDPOINT_DOWN);
            let data = syn.ack(b"hello?");
            lab.decide(Decision {
                flags: KEEP_FLOWS_OF_DOWN,
                ..steer(BACKUP)
            });
            lab.expect(
                program,
                &data.bytes(),
                Expect::changed(&data.clone().at_master().bytes()),
            );
            lab.decide(steer(BACKUP));
            lab.expect(program, &data.bytes(), Expect::reset(&data));
            lab.expect(
                program,
                &syn.bytes(),
                Expect::changed(&syn.clone().at_backup().bytes()),
            );
            lab.mark(MASTER, ENDPOINT_UP);
        }
    }
}

#[test]
fn a_direct_listener_reaches_its_endpoint() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.pin(8080, BACKUP);
    for family in Family::BOTH {
        let packet = client(family, 8080).syn();
        let wanted = packet.clone().at_backup();
        forward_all(&mut lab, &packet.bytes(), Expect::changed(&wanted.bytes()));
    }
    lab.follow(8080);
    lab.forget_flows();
    let packet = client(Family::V4, 8080).syn();
    let wanted = packet.clone().at_master();
    lab.expect(
        Program::Tc,
        &packet.bytes(),
        Expect::changed(&wanted.bytes()),
    );
}

#[test]
fn one_client_port_towards_two_listeners_becomes_two() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow(8080);
    for family in Family::BOTH {
        for program in Program::FORWARD {
            lab.forget_flows();
            let one = client(family, VIP_PORT).syn();
            let two = client(family, 8080).syn();
            lab.expect(
                program,
                &one.bytes(),
                Expect::changed(&one.clone().at_master().bytes()),
            );
            let (_, out) = lab.run(program, &two.bytes());
            let port = u16::from_be_bytes([out[two.l4()], out[two.l4() + 1]]);
            assert_ne!(port, CLIENT_PORT);
            let wanted = two.clone().at_master().port(port);
            assert_eq!(hex(&out), hex(&wanted.bytes()));
            let answer = wanted.answered();
            lab.expect(
                Program::Reverse,
                &answer.bytes(),
                Expect::changed(&two.answered().bytes()),
            );
        }
    }
}

#[test]
fn a_direct_connection_and_a_steered_one_keep_apart() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        for program in Program::FORWARD {
            for direct_first in [true, false] {
                lab.forget_flows();
                let steered = client(family, VIP_PORT).syn();
                let direct = steered.clone().at_master();
                let (first, second) = if direct_first {
                    (&direct, &steered)
                } else {
                    (&steered, &direct)
                };
                // At the endpoint the first one looks as if it had come directly.
                lab.expect(program, &first.bytes(), Expect::changed(&direct.bytes()));
                let (_, out) = lab.run(program, &second.bytes());
                let port = u16::from_be_bytes([out[second.l4()], out[second.l4() + 1]]);
                assert_ne!(port, CLIENT_PORT);
                let moved = direct.clone().port(port);
                assert_eq!(hex(&out), hex(&moved.bytes()));
                for (sent, seen) in [(first, &direct), (second, &moved)] {
                    lab.expect(
                        Program::Reverse,
                        &seen.answered().bytes(),
                        Expect::changed(&sent.answered().bytes()),
                    );
                }
            }
        }
    }
}

#[test]
fn closed_flows_leave_nothing() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        for program in Program::FORWARD {
            lab.forget_flows();
            let syn = client(family, VIP_PORT).syn();
            lab.run(program, &syn.bytes());
            lab.answer(&syn);
            assert_eq!(lab.flows(family), (1, 1));
            lab.run(program, &client(family, VIP_PORT).rst().bytes());
            assert_eq!(lab.flows(family), (0, 0));
        }
    }
}

#[test]
fn the_loaded_maps_have_the_shapes_that_pins_are_compared_with() {
    let Some(lab) = Programs::load() else { return };
    lab.check_shapes();
    assert_eq!(IpNumber::TCP.0, 6);
}
