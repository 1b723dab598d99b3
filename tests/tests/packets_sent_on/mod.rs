//! What is sent on from here instead of being left to the kernel: full NAT and direct server
//! return.
//!
//! Where it is sent is asked of the kernel's routes, so these tests run in a namespace with
//! one interface, `wire`, to which all routes lead.

use std::{fs, sync::Arc};

use anyhow::{Context, Result};
use aya::util::KernelVersion;
use lab::{
    Namespace,
    foreign::{Mode, xdp_pass},
    link::mac,
    privileged,
};
use probe_ebpf::abi::{PORT_FREE, PORT_USED, Reason};

use crate::packets_support::*;

/// Last bytes of hardware addresses: the client's, the node's, the endpoints'.
const CLIENTS: u8 = 1;
/// See [`CLIENTS`].
const NODES: u8 = 2;
/// See [`CLIENTS`].
const ENDPOINTS: u8 = 3;

/// The namespace and the programs. One room for all: the kernel makes and ends them slowly.
fn inside(test: impl FnOnce(&mut Programs, u32) -> Result<()> + Send) {
    inside_with(1500, test);
}

/// The same with `wire`'s MTU.
fn inside_with(mtu: u32, test: impl FnOnce(&mut Programs, u32) -> Result<()> + Send) {
    privileged(|| {
        let node = Namespace::new("node")?;
        furnish(&node)?;
        node.ip([format!("link set wire mtu {mtu}")])?;
        node.run(|| {
            let index = fs::read_to_string("/sys/class/net/wire/ifindex").context("wire")?;
            let mut lab = Programs::load().context("root")?;
            lab.follow_udp(VIP_PORT);
            lab.hide(SOURCE_V4, SOURCE_V6);
            test(&mut lab, index.trim().parse()?)
        })
    });
}

fn furnish(node: &Arc<Namespace>) -> Result<()> {
    node.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
    ])?;
    node.ip([
        format!(
            "link add wire address {} type veth peer name end",
            mac(NODES)
        ),
        "addr add 10.77.0.1/24 dev wire".to_owned(),
        "addr add fd00:77::1/64 dev wire nodad".to_owned(),
        "link set end up".to_owned(),
        "link set wire up".to_owned(),
    ])?;
    for (net, last) in [(1, CLIENTS), (2, ENDPOINTS)] {
        let mac = mac(last);
        node.ip([
            format!("route add 10.0.{net}.2/32 dev wire"),
            format!("route add fd00:{net}::2/128 dev wire"),
            format!("neigh replace 10.0.{net}.2 lladdr {mac} dev wire nud permanent"),
            format!("neigh replace fd00:{net}::2 lladdr {mac} dev wire nud permanent"),
        ])?;
    }
    // A queue that XDP programs can be told of is there once one was attached.
    xdp_pass(node, "wire", Mode::Native)
}

/// A program, and whether it is told that the packet came by `wire`, which is how all are
/// sent on. Otherwise they come by `lo`.
#[derive(Clone, Copy, Debug)]
struct Door {
    program: Program,
    wire: Option<u32>,
}

impl Door {
    /// Those that send on.
    fn all(wire: u32) -> Vec<Self> {
        let tc = [Program::Tc, Program::Relay].map(|program| Self {
            program,
            wire: None,
        });
        let xdp = Program::FORWARD
            .into_iter()
            .filter(|program| program.is_xdp() && may_be_told())
            .map(|program| Self {
                program,
                wire: Some(wire),
            });
        tc.into_iter().chain(xdp).collect()
    }

    fn run(self, lab: &mut Programs, packet: &[u8]) -> (u32, Vec<u8>) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context = |wire: u32| {
            [0, packet.len() as u32, 0, wire, 0, 0]
                .map(u32::to_ne_bytes)
                .concat()
        };
        let context = self.wire.map(context);
        lab.run_in(self.program, packet, context.as_deref())
    }

    /// The packet goes on as `wanted`, but that a hop is gone, to a next hop.
    fn sends(self, lab: &mut Programs, packet: &[u8], wanted: &[u8], to: u8) {
        let (verdict, out) = self.run(lab, packet);
        assert_eq!(verdict, self.program.turn_round(), "verdict of {self:?}");
        assert_eq!(hex(&out), hex(&self.beyond(wanted, to)), "left by {self:?}");
    }

    /// The same for an ICMP error about a packet of `about`'s shape.
    fn sends_error(self, lab: &mut Programs, about: &Packet, error: [&[u8]; 2], to: u8) {
        let [packet, wanted] = error;
        let translated = lab.reason(Reason::ErrorTranslated);
        let (verdict, out) = self.run(lab, packet);
        assert_eq!(verdict, self.program.turn_round(), "verdict of {self:?}");
        assert_eq!(
            hex(&without_quoted_checksum(about, &out)),
            hex(&without_quoted_checksum(about, &self.beyond(wanted, to))),
            "left by {self:?}"
        );
        check_icmp_checksum(about.family(), &out);
        assert_eq!(lab.reason(Reason::ErrorTranslated), translated + 1);
    }

    /// TC leaves the hardware addresses to the kernel.
    fn beyond(self, wanted: &[u8], to: u8) -> Vec<u8> {
        let mac = |last| [2, 0, 0, 0, 0, last];
        let macs = self.wire.map(|_| [mac(to), mac(NODES)]);
        forwarded(wanted.to_vec(), macs)
    }

    fn leaves(self, lab: &mut Programs, packet: &[u8]) {
        let (verdict, out) = self.run(lab, packet);
        assert_eq!(verdict, self.program.pass(), "verdict of {self:?}");
        assert_eq!(hex(&out), hex(packet), "left by {self:?}");
    }

    /// Sends a client's first packet through, and answers what its endpoint sees.
    fn opens(self, lab: &mut Programs, first: &Packet) -> Packet {
        let (_, out) = self.run(lab, &first.bytes());
        let port = u16::from_be_bytes([out[first.l4()], out[first.l4() + 1]]);
        assert!(port >= 1024, "{port} is a port of full NAT's");
        first.clone().at_master().hidden(port)
    }
}

/// Linux 5.15 lets a test run say by which interface a packet came (47316f4a3053).
fn may_be_told() -> bool {
    KernelVersion::current().expect("uname") >= KernelVersion::new(5, 15, 0)
}

/// Every door, family and protocol, without flows.
fn each(lab: &mut Programs, wire: u32, test: impl Fn(&mut Programs, Door, &Packet)) {
    for family in Family::BOTH {
        for udp in [false, true] {
            for door in Door::all(wire) {
                println!("{family:?}, udp {udp}, {door:?}");
                lab.forget_flows();
                let first = client(family, VIP_PORT).syn();
                test(lab, door, &if udp { first.udp() } else { first });
            }
        }
    }
}

#[test]
fn connections_are_sent_on_both_ways() {
    inside(|lab, wire| {
        each(lab, wire, |lab, door, first| {
            let seen = door.opens(lab, first);
            // Repeated, it goes the same way.
            door.sends(lab, &first.bytes(), &seen.bytes(), ENDPOINTS);
            let answer = seen.answered();
            door.sends(lab, &answer.bytes(), &first.answered().bytes(), CLIENTS);
            assert_eq!(lab.flows(first.family()), (1, 1));
            for data in [&b"odd"[..], &[0x5a; 1400]] {
                let there = (first.ack(data).bytes(), seen.ack(data).bytes());
                door.sends(lab, &there.0, &there.1, ENDPOINTS);
                let back = (answer.ack(data), first.answered().ack(data));
                door.sends(lab, &back.0.bytes(), &back.1.bytes(), CLIENTS);
            }
        });
        Ok(())
    });
}

/// What an endpoint refuses comes in again as the client's own SYN, and goes to the next one.
#[test]
fn refusals_come_in_again_as_the_clients_syn() {
    inside(|lab, wire| {
        for (name, wishes) in crate::packets_redispatch::wishes() {
            each(lab, wire, |lab, door, first| {
                let syn = first.clone().syn().tcp_options(&wishes);
                if first.is_udp() {
                    return;
                }
                println!("{name}, {door:?}");
                lab.forget_flows();
                let seen = door.opens(lab, &syn);
                let (verdict, out) = door.run(lab, &seen.refused().bytes());
                let again = syn.clone().anew();
                if door.program.is_xdp() {
                    // `probe_relay` behind it takes it from there.
                    assert_eq!(verdict, door.program.pass(), "verdict of {door:?}");
                    let came = again.back_to_back();
                    assert_eq!(hex(&out), hex(&came.bytes()), "left by {door:?}");
                } else {
                    assert_eq!(verdict, door.program.turn_round(), "verdict of {door:?}");
                    assert_eq!(hex(&out), hex(&again.bytes()), "left by {door:?}");
                }
                assert_eq!(lab.flows(syn.family()), (1, 1), "it has moved");
            });
        }
        Ok(())
    });
}

#[test]
fn xdp_leaves_to_tc_what_it_cannot_send() {
    inside(|lab, wire| {
        each(lab, wire, |lab, door, first| {
            if !door.program.is_xdp() {
                return;
            }
            // Told nothing, it takes the packet to have come by `lo`.
            let lost = Door { wire: None, ..door };
            lost.leaves(lab, &first.bytes());
            assert_eq!(lab.flows(first.family()), (0, 0), "nothing is written down");
            let seen = Door {
                program: Program::Relay,
                wire: None,
            }
            .opens(lab, first);
            let later = first.clone().payload(&[1; 64]).fragments(64)[1].clone();
            let translated = lab.reason(Reason::ErrorTranslated);
            for packet in [
                seen.answered().bytes(),
                seen.too_big_by_router(8),
                first.answered().too_big_by_receiver(8),
                later,
            ] {
                lost.leaves(lab, &packet);
            }
            assert_eq!(lab.reason(Reason::ErrorTranslated), translated);
        });
        lab.forbid_sending();
        each(lab, wire, |lab, door, first| {
            if door.program.is_xdp() {
                door.leaves(lab, &first.bytes());
                assert_eq!(lab.flows(first.family()), (0, 0), "nothing is written down");
            }
        });
        Ok(())
    });
}

#[test]
fn nobody_is_sent_on_without_a_port() {
    inside(|lab, wire| {
        lab.mark_ports(0, PORT_USED);
        each(lab, wire, |lab, door, first| {
            let before = [Reason::PortsExhausted, Reason::DatagramRefused].map(|r| lab.reason(r));
            let (verdict, out) = door.run(lab, &first.bytes());
            let after = [Reason::PortsExhausted, Reason::DatagramRefused].map(|r| lab.reason(r));
            if first.is_udp() {
                assert_eq!(verdict, door.program.drop());
                assert_eq!(after, [before[0], before[1] + 1]);
            } else {
                assert_eq!(verdict, door.program.turn_round());
                check_reset(first, &out);
                assert_eq!(after, [before[0] + 1, before[1]]);
            }
            assert_eq!(lab.flows(first.family()), (0, 0));
        });
        lab.mark_ports(0, PORT_FREE);
        Ok(())
    });
}

#[test]
fn what_is_nobodys_reply_passes_bit_for_bit() {
    inside(|lab, wire| {
        each(lab, wire, |lab, door, first| {
            let seen = door.opens(lab, first);
            let port = seen.source_port();
            let other = seen.clone().hidden(port ^ 1);
            let elsewhere = seen.clone().at_backup();
            for packet in [
                other.answered().bytes(),
                elsewhere.answered().bytes(),
                // Not about what was sent on, or not to whom it quotes.
                other.too_big_by_router(8),
                elsewhere.too_big_by_receiver(8),
                first.clone().port(1).answered().too_big_by_router(8),
                // A later fragment of a packet that nobody knows.
                seen.answered().payload(&[3; 64]).fragments(64)[1].clone(),
            ] {
                door.leaves(lab, &packet);
            }
            // Straight to the endpoint.
            let straight = first.clone().at_master();
            door.leaves(lab, &straight.bytes());
        });
        Ok(())
    });
}

#[test]
fn errors_are_sent_on_about_what_their_receiver_sent() {
    inside(|lab, wire| {
        each(lab, wire, |lab, door, first| {
            for quoted in [8, 20, 600] {
                let first = first.clone().payload(&[7; 400]);
                let seen = door.opens(lab, &first);
                let (heard, said) = (seen.answered(), first.answered());
                // Whoever reports, it comes from whom their receiver knows.
                for (about, error, to) in [
                    (
                        &first,
                        [
                            seen.too_big_by_router(quoted),
                            first.too_big_by_receiver(quoted),
                        ],
                        CLIENTS,
                    ),
                    (
                        &first,
                        [
                            seen.too_big_by_receiver(quoted),
                            first.too_big_by_receiver(quoted),
                        ],
                        CLIENTS,
                    ),
                    (
                        &said,
                        [
                            said.too_big_by_router(quoted),
                            heard.too_big_by_receiver(quoted),
                        ],
                        ENDPOINTS,
                    ),
                    (
                        &said,
                        [
                            said.too_big_by_receiver(quoted),
                            heard.too_big_by_receiver(quoted),
                        ],
                        ENDPOINTS,
                    ),
                ] {
                    let [packet, wanted] = &error;
                    door.sends_error(lab, about, [packet, wanted], to);
                }
            }
            // The node's own error leaves towards whoever has the source's address.
            let seen = door.opens(lab, first);
            let egress = Door {
                program: Program::Reverse,
                wire: None,
            };
            let error = [seen.too_big_by_router(8), first.too_big_by_receiver(8)];
            egress.sends_error(lab, first, [&error[0], &error[1]], CLIENTS);
        });
        Ok(())
    });
}

#[test]
fn fragments_are_sent_on_after_their_first() {
    inside(|lab, wire| {
        let payload: Vec<u8> = (0..2000u16).map(|n| n as u8).collect();
        each(lab, wire, |lab, door, first| {
            let whole = first.clone().payload(&payload);
            // The first fragment's port is not known before.
            let seen = door.opens(lab, &first.clone());
            let seen = whole.clone().at_master().hidden(seen.source_port());
            let ways = [
                (whole.clone(), seen.clone(), ENDPOINTS),
                (seen.answered(), whole.answered(), CLIENTS),
            ];
            for (heard, wanted, to) in ways {
                let (heard, wanted) = (heard.fragments(600), wanted.fragments(600));
                assert_eq!(heard.len(), 4);
                // Any order after the first.
                for i in [0, 3, 1, 2] {
                    door.sends(lab, &heard[i], &wanted[i], to);
                }
            }
        });
        Ok(())
    });
}

/// Where the kernel forwards it tells the sender itself.
#[test]
fn who_sends_too_much_is_told() {
    const MTU: u16 = 1300;
    inside_with(MTU.into(), |lab, wire| {
        each(lab, wire, |lab, door, first| {
            // Linux 5.12 says what would fit (e1850ea9bd9e).
            let told = match first.family() {
                _ if knows_mtu() => MTU,
                Family::V4 => 576,
                Family::V6 => 1280,
            };
            let seen = door.opens(lab, first);
            let header = first.bytes().len() - 14;
            for (length, fits) in [(usize::from(MTU), true), (usize::from(MTU) + 1, false)] {
                let data = vec![0x5a; length - header];
                let there = (first.ack(&data), seen.ack(&data));
                let back = (seen.answered().ack(&data), first.answered().ack(&data));
                for ((sent, wanted), to) in [(there, ENDPOINTS), (back, CLIENTS)] {
                    if fits {
                        door.sends(lab, &sent.bytes(), &wanted.bytes(), to);
                    } else if door.program.is_xdp() {
                        door.leaves(lab, &sent.bytes());
                    } else {
                        let before = lab.reason(Reason::TooLong);
                        let (verdict, out) = door.run(lab, &sent.bytes());
                        assert_eq!(verdict, door.program.turn_round());
                        check_too_long(&sent, &out, told);
                        assert_eq!(lab.reason(Reason::TooLong), before + 1);
                        // Nothing here knows how to make room behind a tag.
                        door.leaves(lab, &sent.vlan(&[(0x8100, 5)]).bytes());
                    }
                }
            }
        });
        Ok(())
    });
}

fn knows_mtu() -> bool {
    KernelVersion::current().expect("uname") >= KernelVersion::new(5, 12, 0)
}

/// Direct server return: nothing changes but where it goes.
#[test]
fn endpoints_that_own_the_vip_get_packets_as_they_are() {
    inside(|lab, wire| {
        lab.return_directly();
        each(lab, wire, |lab, door, first| {
            let mut packets = vec![first.bytes(), first.bytes()];
            packets.extend([&b""[..], b"odd", &[0x5a; 1400]].map(|data| first.ack(data).bytes()));
            if !first.is_udp() {
                packets.push(first.ack(b"").rst().bytes());
                // It may have been on its way.
                packets.push(first.ack(b"").bytes());
            }
            for packet in packets {
                door.sends(lab, &packet, &packet, ENDPOINTS);
                assert_eq!(lab.flows(first.family()), (1, 1));
            }
            // What passes on its way back is let pass.
            let answer = first.answered().bytes();
            let egress = Door {
                program: Program::Reverse,
                wire: None,
            };
            egress.leaves(lab, &answer);
        });
        Ok(())
    });
}

#[test]
fn endpoints_that_own_the_vip_get_fragments_and_errors_as_they_are() {
    inside(|lab, wire| {
        lab.return_directly();
        let payload: Vec<u8> = (0..2000u16).map(|n| n as u8).collect();
        each(lab, wire, |lab, door, first| {
            let pieces = first.clone().payload(&payload).fragments(600);
            assert_eq!(pieces.len(), 4);
            for i in [0, 3, 1, 2] {
                door.sends(lab, &pieces[i], &pieces[i], ENDPOINTS);
            }
            let said = first.answered();
            for error in [said.too_big_by_router(8), said.too_big_by_receiver(600)] {
                door.sends(lab, &error, &error, ENDPOINTS);
            }
            // Of no flow.
            let strange = first.clone().port(1).answered().too_big_by_router(8);
            door.leaves(lab, &strange);
        });
        Ok(())
    });
}
