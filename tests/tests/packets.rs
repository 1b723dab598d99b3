//! Tables for BPF_PROG_TEST_RUN: a description, a packet, the expected verdict and
//! the whole expected packet. Expected packets are built by another library
//! (etherparse), checksums and all, never by our own code.

mod packets_corpus;
mod packets_redispatch;
mod packets_sent_on;
mod packets_support;

use etherparse::{IpNumber, TcpOptionElement};
use packets_support::*;
use probe_ebpf::abi::{
    Action, Decision, ENDPOINT_DOWN, ENDPOINT_UP, KEEP_FLOWS_OF_DOWN, MAX_RINGS, Reason,
};

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
        for program in Program::FORWARD {
            lab.forget_flows();
            lab.expect(program, &syn.bytes(), Expect::changed(&steered.bytes()));
            assert_eq!(lab.flows(family), (0, 0), "nobody has answered");
            lab.answer(&syn);
            assert_eq!(lab.flows(family), (1, 1));
        }
    }
    let counters = lab.endpoint_counters(MASTER);
    assert_eq!(counters.flows_opened, 2 * Program::FORWARD.count() as u64);
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

/// Options of one PadN that fills a header of eight bytes (RFC 8200 section 4.2).
const PAD_N: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

#[test]
fn ipv6_extension_headers_are_walked_over() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    let long: Vec<u8> = [&[2, 1, 20][..], &[0; 20]].concat();
    let chains: [&[(u8, &[u8])]; 4] = [
        &[(0, &PAD_N)],
        &[(0, &PAD_N), (60, &long)],
        &[(43, &[0, 2, 0, 0, 0, 0, 0])],
        &[
            (0, &PAD_N),
            (60, &PAD_N),
            (43, &[0, 2, 0, 0, 0, 0, 0]),
            (60, &PAD_N),
        ],
    ];
    for chain in chains {
        let packet = client(Family::V6, VIP_PORT).syn().extensions(chain);
        let wanted = packet.clone().at_master();
        forward_all(&mut lab, &packet.bytes(), Expect::changed(&wanted.bytes()));
    }
}

#[test]
fn fragments_follow_their_first_both_ways() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    let payload: Vec<u8> = (0..2000u16).map(|n| n as u8).collect();
    for family in Family::BOTH {
        for udp in [true, false] {
            let mut packet = client(family, VIP_PORT).syn().payload(&payload);
            if udp {
                packet = packet.udp();
            }
            for program in Program::FORWARD {
                lab.forget_flows();
                println!("{family:?} {program:?} udp {udp}");
                let there = packet.clone().at_master();
                let (heard, wanted) = (packet.fragments(600), there.fragments(600));
                assert_eq!(heard.len(), 4);
                // Any order after the first.
                for i in [0, 3, 1, 2] {
                    lab.expect(program, &heard[i], Expect::changed(&wanted[i]));
                }
                let (heard, wanted) = (there.answered(), packet.answered());
                let (heard, wanted) = (heard.fragments(600), wanted.fragments(600));
                for i in [0, 2, 1, 3] {
                    lab.expect(Program::Reverse, &heard[i], Expect::changed(&wanted[i]));
                }
            }
        }
    }
}

#[test]
fn datagrams_are_steered_both_ways() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    for family in Family::BOTH {
        let plain = client(family, VIP_PORT).udp().payload(b"who is there?");
        let mut shapes = vec![
            plain.clone(),
            plain.clone().payload(b""),
            plain.clone().vlan(&[(0x8100, 7)]),
        ];
        if family == Family::V4 {
            shapes.push(plain.clone().unsummed());
        }
        for packet in shapes {
            for program in Program::FORWARD {
                lab.forget_flows();
                let there = packet.clone().at_master();
                lab.expect(program, &packet.bytes(), Expect::changed(&there.bytes()));
                lab.expect(
                    Program::Reverse,
                    &there.answered().bytes(),
                    Expect::changed(&packet.answered().bytes()),
                );
                // Answered, so it stays where it is after a switch.
                lab.decide(steer(BACKUP));
                lab.expect(program, &packet.bytes(), Expect::changed(&there.bytes()));
                // Its endpoint down, it moves: there is nothing to reset.
                lab.mark(MASTER, ENDPOINT_DOWN);
                let moved = packet.clone().at_backup();
                lab.expect(program, &packet.bytes(), Expect::changed(&moved.bytes()));
                lab.mark(MASTER, ENDPOINT_UP);
                lab.decide(steer(MASTER));
            }
        }
    }
}

/// A checksum that comes out as zero must not turn into "there is none".
#[test]
fn a_datagram_checksum_is_never_zero_by_accident() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    for family in Family::BOTH {
        // Try payloads until the translated sum is zero, which stands as 0xffff.
        let packet = (0..=u16::MAX)
            .map(|n| client(family, VIP_PORT).udp().payload(&n.to_be_bytes()))
            .find(|p| {
                let bytes = p.clone().at_master().bytes();
                bytes[p.l4() + 6..p.l4() + 8] == [0xff, 0xff]
            })
            .expect("one in 65,536");
        let wanted = packet.clone().at_master();
        forward_all(&mut lab, &packet.bytes(), Expect::changed(&wanted.bytes()));
    }
}

#[test]
fn refused_datagrams_are_dropped_and_counted() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    lab.decide(Decision {
        action: Action::Refuse,
        flags: 0,
        tier: 0,
        target: 0,
    });
    for family in Family::BOTH {
        for program in Program::FORWARD {
            let before = lab.reason(Reason::DatagramRefused);
            let packet = client(family, VIP_PORT).udp().payload(b"?").bytes();
            assert_eq!(lab.run(program, &packet).0, program.drop());
            assert_eq!(lab.reason(Reason::DatagramRefused), before + 1);
        }
    }
}

/// A client, or a router before it, complains about a packet of the VIP's; a router
/// behind the node, or the endpoint, about one of the client's. Each must hear of
/// the packet that it sent.
#[test]
fn icmp_errors_quote_what_their_receiver_sent() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    for family in Family::BOTH {
        for udp in [false, true] {
            for program in Program::FORWARD {
                for quoted in [8, 20, 600] {
                    lab.forget_flows();
                    let mut sent = client(family, VIP_PORT).payload(&[7; 400]).syn();
                    if udp {
                        sent = sent.udp();
                    }
                    lab.run(program, &sent.bytes());
                    let seen = sent.clone().at_master();
                    let answer = seen.answered();
                    lab.run(Program::Reverse, &answer.bytes());
                    println!("{family:?} {program:?} udp {udp} quoting {quoted}");
                    let translated = lab.reason(Reason::ErrorTranslated);
                    // The quotation's own TCP or UDP checksum is nobody's business.
                    for (heard, wanted, by) in [
                        (
                            sent.answered().too_big_by_router(quoted),
                            answer.too_big_by_router(quoted),
                            program,
                        ),
                        (
                            sent.answered().too_big_by_receiver(quoted),
                            answer.too_big_by_receiver(quoted),
                            program,
                        ),
                        (
                            seen.too_big_by_router(quoted),
                            sent.too_big_by_router(quoted),
                            Program::Reverse,
                        ),
                        (
                            seen.too_big_by_receiver(quoted),
                            sent.too_big_by_receiver(quoted),
                            Program::Reverse,
                        ),
                    ] {
                        let (verdict, out) = lab.run(by, &heard);
                        assert_eq!(verdict, by.pass());
                        assert_eq!(
                            hex(&without_quoted_checksum(&sent, &out)),
                            hex(&without_quoted_checksum(&sent, &wanted))
                        );
                        check_icmp_checksum(family, &out);
                    }
                    assert_eq!(lab.reason(Reason::ErrorTranslated), translated + 4);
                }
            }
        }
    }
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
            ("UDP to the VIP's port", udp(family), Reason::NotListener),
            ("ICMP", icmp(family), Reason::NotSteerable),
            (
                "a later fragment whose first was not seen",
                base.clone().payload(&[3; 64]).fragments(64)[1].clone(),
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
    let v6 = || client(Family::V6, VIP_PORT).syn();
    cases.extend([
        (
            "a routing header with a segment left",
            v6().extensions(&[(43, &[0, 2, 1, 0, 0, 0, 0])]).bytes(),
            Reason::ExtensionHeader,
        ),
        (
            "an authentication header",
            v6().extensions(&[(51, &[0, 0, 0, 0, 0, 0, 0])]).bytes(),
            Reason::ExtensionHeader,
        ),
        (
            "five extension headers",
            v6().extensions(&[(60, &PAD_N[..]); 5]).bytes(),
            Reason::ExtensionHeader,
        ),
        (
            "an extension header longer than the packet",
            v6().extensions(&[(0, &[0xff, 1, 4, 0, 0, 0, 0])]).bytes(),
            Reason::Malformed,
        ),
        (
            "an ICMP error about nothing steered",
            v6().answered().too_big_by_router(8),
            Reason::ErrorNotSteered,
        ),
    ]);
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
            tier: 0,
            target: 0,
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
            lab.decide(steer(MASTER));
            lab.decide(steer(BACKUP));
            // The whole burst, not only what still finds the flow.
            for _ in 0..3 {
                lab.expect(program, &data.bytes(), Expect::reset(&data));
            }
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

/// The last of all.
const RING: u32 = MAX_RINGS - 1;

#[test]
fn a_ring_says_where_each_connection_goes() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    for family in Family::BOTH {
        for port in [CLIENT_PORT, 1024, u16::MAX] {
            let mine = place_of(family, port);
            for udp in [false, true] {
                let mut packet = client(family, VIP_PORT).port(port).syn();
                if udp {
                    packet = packet.udp();
                }
                for program in Program::FORWARD {
                    println!("{family:?}, port {port}, udp {udp}, {program:?}");
                    lab.forget_flows();
                    lab.fill(RING, |place| if place == mine { BACKUP } else { MASTER });
                    lab.decide(spread(RING));
                    let there = packet.clone().at_backup();
                    // Also when it is repeated.
                    for _ in 0..2 {
                        lab.expect(program, &packet.bytes(), Expect::changed(&there.bytes()));
                    }
                    lab.expect(
                        Program::Reverse,
                        &there.answered().bytes(),
                        Expect::changed(&packet.answered().bytes()),
                    );
                    assert_eq!(lab.flows(family), (1, 1));
                    let other = packet.clone().port(port ^ 1);
                    lab.expect(
                        program,
                        &other.bytes(),
                        Expect::changed(&other.clone().at_master().bytes()),
                    );
                    // Another ring: who is answered stays.
                    lab.fill(0, |_| MASTER);
                    lab.decide(spread(0));
                    let data = if udp {
                        packet.clone()
                    } else {
                        packet.ack(b"more")
                    };
                    lab.expect(
                        program,
                        &data.bytes(),
                        Expect::changed(&data.clone().at_backup().bytes()),
                    );
                    if !udp {
                        lab.mark(BACKUP, ENDPOINT_DOWN);
                        // The whole burst, not only what still finds the flow.
                        for _ in 0..3 {
                            lab.expect(program, &data.bytes(), Expect::reset(&data));
                        }
                        lab.mark(BACKUP, ENDPOINT_UP);
                    }
                }
            }
        }
    }
}

#[test]
fn a_ring_of_nobody_steers_nothing() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    for id in [u32::from(u16::MAX), 0] {
        lab.fill(RING, |_| id);
        for ring in [RING, MAX_RINGS] {
            lab.decide(spread(ring));
            for family in Family::BOTH {
                let packet = client(family, VIP_PORT).syn().bytes();
                forward_all(&mut lab, &packet, Expect::passed(&packet));
            }
        }
    }
}

#[test]
fn an_error_about_an_unanswered_syn_finds_the_ring() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.fill(RING, |place| if place % 2 == 0 { BACKUP } else { MASTER });
    lab.decide(spread(RING));
    for family in Family::BOTH {
        for port in 50_000..50_010 {
            let sent = client(family, VIP_PORT).port(port).syn();
            let seen = if place_of(family, port).is_multiple_of(2) {
                sent.clone().at_backup()
            } else {
                sent.clone().at_master()
            };
            for program in Program::FORWARD {
                lab.forget_flows();
                lab.run(program, &sent.bytes());
                let (_, out) = lab.run(program, &sent.answered().too_big_by_router(8));
                let wanted = seen.answered().too_big_by_router(8);
                assert_eq!(
                    hex(&without_quoted_checksum(&sent, &out)),
                    hex(&without_quoted_checksum(&sent, &wanted))
                );
            }
        }
    }
}

#[test]
fn clients_keep_their_endpoint() {
    const LIFE: u32 = 100;
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    lab.fill(1, |_| MASTER);
    lab.fill(2, |_| BACKUP);
    lab.decide(spread(1));
    lab.keep_clients(LIFE);
    for family in Family::BOTH {
        for program in Program::FORWARD {
            for udp in [false, true] {
                println!("{family:?}, {program:?}, udp {udp}");
                lab.forget_flows();
                lab.decide(spread(1));
                let first = client(family, VIP_PORT).syn();
                let first = if udp { first.udp() } else { first };
                lab.run(program, &first.bytes());
                assert_eq!(
                    lab.clients(family),
                    usize::from(udp),
                    "a SYN alone is nobody"
                );
                lab.answer(&first);
                assert_eq!(lab.clients(family), 1);
                lab.decide(spread(2));
                let mut port = CLIENT_PORT;
                let mut goes = |lab: &mut Programs, backup: bool| {
                    port += 1;
                    let next = client(family, VIP_PORT).port(port).syn();
                    let there = if backup {
                        next.clone().at_backup()
                    } else {
                        next.clone().at_master()
                    };
                    lab.expect(program, &next.bytes(), Expect::changed(&there.bytes()));
                };
                lab.later(LIFE);
                goes(&mut lab, false);
                // Its endpoint is down for a while.
                lab.mark(MASTER, ENDPOINT_DOWN);
                goes(&mut lab, true);
                lab.mark(MASTER, ENDPOINT_UP);
                goes(&mut lab, false);
                // The whole tier moved, and came back.
                lab.decide(Decision {
                    tier: 1,
                    ..spread(2)
                });
                goes(&mut lab, true);
                lab.decide(spread(2));
                goes(&mut lab, false);
                lab.later(1);
                goes(&mut lab, true);
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

/// A SYN begins the silence of its endpoint, and an answer ends it.
#[test]
fn silence_is_written_down() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.look(7);
    for decision in [steer(MASTER), alone(MASTER)] {
        lab.decide(decision);
        for family in Family::BOTH {
            for program in Program::FORWARD {
                println!("{family:?} {program:?}");
                lab.forget_flows();
                let syn = client(family, VIP_PORT).syn();
                lab.run(program, &syn.bytes());
                lab.look(8);
                lab.run(program, &syn.bytes());
                lab.look(7);
                assert_eq!(lab.silent_since(MASTER), 7, "of the first");
                lab.run(program, &syn.bytes());
                lab.answer(&syn);
                assert_eq!(lab.silent_since(MASTER), 0);
                // What follows is nobody's question.
                let data = syn.ack(b"GET / HTTP/1.1\r\n\r\n");
                lab.run(program, &data.bytes());
                assert_eq!(lab.silent_since(MASTER), 0);
                lab.forget_flows();
                lab.run(program, &syn.bytes());
                let refused = syn.clone().at_master().refused();
                lab.run(Program::Reverse, &refused.bytes());
                assert_eq!(lab.silent_since(MASTER), 0);
                assert_eq!(lab.silent_since(BACKUP), 7, "who is asked next");
            }
        }
    }
}

#[test]
fn the_loaded_maps_have_the_shapes_that_pins_are_compared_with() {
    let Some(lab) = Programs::load() else { return };
    lab.check_shapes();
    assert_eq!(IpNumber::TCP.0, 6);
}

/// Where every flow goes one way, a segment in mid-connection needs no entry, and a
/// shape that is more than a glance gets what it needs all the same.
#[test]
fn by_the_slot_alone() {
    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.decide(alone(MASTER));
    for family in Family::BOTH {
        for program in Program::FORWARD {
            println!("{family:?} {program:?}");
            lab.forget_flows();
            let adopted = lab.reason(Reason::Adopted);
            let syn = client(family, VIP_PORT).syn();
            let data = syn.ack(b"GET / HTTP/1.1\r\n\r\n");
            for packet in [&syn, &data, &data.clone().vlan(&[(0x8100, 5)])] {
                let wanted = packet.clone().at_master();
                lab.expect(program, &packet.bytes(), Expect::changed(&wanted.bytes()));
            }
            assert_eq!(lab.flows(family), (0, 0));
            assert_eq!(lab.reason(Reason::Adopted), adopted);
            lab.answer(&syn);
            assert_eq!(lab.flows(family), (1, 1));
            let end = client(family, VIP_PORT).rst();
            let wanted = end.clone().at_master();
            lab.expect(program, &end.bytes(), Expect::changed(&wanted.bytes()));
            assert_eq!(lab.flows(family), (0, 0));
        }
    }
    assert_eq!(lab.stamps(), (false, false));
}

/// A port that had to change ends the way by the slot alone, for both connections.
#[test]
fn a_changed_port_is_looked_up() {
    for family in Family::BOTH {
        for direct_first in [true, false] {
            let Some(mut lab) = Programs::load() else {
                return;
            };
            lab.decide(alone(MASTER));
            for program in Program::FORWARD {
                println!("{family:?} {program:?} direct first {direct_first}");
                lab.forget_flows();
                let steered = client(family, VIP_PORT).syn();
                let direct = steered.clone().at_master();
                let (first, second) = if direct_first {
                    (&direct, &steered)
                } else {
                    (&steered, &direct)
                };
                lab.expect(program, &first.bytes(), Expect::changed(&direct.bytes()));
                let (_, out) = lab.run(program, &second.bytes());
                let port = u16::from_be_bytes([out[second.l4()], out[second.l4() + 1]]);
                assert_ne!(port, CLIENT_PORT);
                assert_eq!(lab.stamps(), (true, true));
                for (sent, port) in [(first, CLIENT_PORT), (second, port)] {
                    let wanted = direct.clone().port(port).ack(b"?");
                    lab.expect(
                        program,
                        &sent.ack(b"?").bytes(),
                        Expect::changed(&wanted.bytes()),
                    );
                }
            }
        }
    }
}
