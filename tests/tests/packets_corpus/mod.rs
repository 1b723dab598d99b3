//! The corpus of bad input (`tests/cases`) through the real programs.
//!
//! What they shall do is derived from what the packet library finds in a frame, which
//! `probe-fuzz` compares with etherparse; what they left of it is checked as there.

use probe_ebpf::{
    abi::{Action, Decision, V4, V6},
    packet::{
        Quoted, Segment,
        parse::{RST, TCP},
        rewrite::{self, Side, Translation},
    },
};
use probe_fuzz::{
    Carried, Case, Found, Ip, check_error, check_piece, check_reset, check_segment, look, made,
    stored,
};

use crate::packets_support::*;

/// The places of the packet tables, in one family.
trait Place: Ip {
    fn vip() -> Self;
    fn master() -> Self;
    fn client() -> Self;
}

impl Place for V4 {
    fn vip() -> Self {
        Self::from_bytes(VIP_V4)
    }
    fn master() -> Self {
        Self::from_bytes(MASTER_V4)
    }
    fn client() -> Self {
        Self::from_bytes(made::CLIENT_V4)
    }
}

impl Place for V6 {
    fn vip() -> Self {
        Self::from_bytes(VIP_V6)
    }
    fn master() -> Self {
        Self::from_bytes(MASTER_V6)
    }
    fn client() -> Self {
        Self::from_bytes(made::CLIENT_V6)
    }
}

const REFUSE: Decision = Decision {
    action: Action::Refuse,
    flags: 0,
    tier: 0,
    target: 0,
};

/// Every stored frame, and the whole ones cut at each byte, as far as a test run can
/// take them: there is always an Ethernet header.
fn frames() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |name: String, case: &Case| {
        let frame = case.frame();
        if frame.len() >= 14 {
            all.push((name, frame.into_vec()));
        }
    };
    for (name, data) in stored() {
        if let Some(case) = Case::read(&data) {
            add(name, &case);
        }
    }
    for (name, data) in made::cases() {
        let case = Case::read(&data).expect("made with a head");
        for length in 14..case.frame().len() {
            if made::is_whole(&name) {
                add(format!("{name} cut after {length}"), &case.cut(length));
            }
        }
    }
    assert!(all.len() > 2000, "{} frames", all.len());
    all
}

/// The frame with its segment addressed to the VIP, if it carries one.
fn aimed(frame: &[u8]) -> Option<Vec<u8>> {
    fn aim<A: Place>(frame: &[u8], segment: &Segment<A>) -> Option<Vec<u8>> {
        let mut out = frame.to_vec();
        let vip = Translation {
            addr_be: A::vip(),
            port_be: VIP_PORT.to_be(),
            client_be: segment.src_be,
            client_port_be: segment.src_port_be,
        };
        rewrite::apply(out.as_mut_slice(), segment, Side::Destination, &vip)?;
        Some(out)
    }
    match look(frame) {
        Ok(Found::V4(Carried::Segment(segment))) => aim(frame, &segment),
        Ok(Found::V6(Carried::Segment(segment))) => aim(frame, &segment),
        _ => None,
    }
}

/// All of them, and as many again that are for the VIP.
fn aimed_frames() -> Vec<(String, Vec<u8>)> {
    let mut all = frames();
    let more: Vec<_> = all
        .iter()
        .filter_map(|(name, frame)| Some((format!("{name}, to the VIP"), aimed(frame)?)))
        .collect();
    all.extend(more);
    all
}

/// A later fragment's translation: it has no ports, and its client keeps its address.
fn kept<A: Place>(addr_be: A, client_be: A) -> Translation<A> {
    Translation {
        addr_be,
        port_be: 0,
        client_be,
        client_port_be: 0,
    }
}

/// Runs a program that must leave the frame alone.
fn unchanged(lab: &mut Programs, program: Program, name: &str, frame: &[u8]) {
    let (verdict, out) = lab.run(program, frame);
    assert_eq!(verdict, program.pass(), "{name}: verdict of {program:?}");
    assert_eq!(hex(&out), hex(frame), "{name}: left by {program:?}");
}

/// Every program that takes this frame.
fn programs(frame: &[u8]) -> Vec<Program> {
    Program::FORWARD
        .into_iter()
        .chain([Program::Reverse])
        .filter(|program| program.accepts(frame))
        .collect()
}

#[test]
fn where_nobody_listens_every_frame_passes_bit_for_bit() {
    let Some(mut lab) = Programs::bare() else {
        return;
    };
    for (name, frame) in aimed_frames() {
        for program in programs(&frame) {
            unchanged(&mut lab, program, &name, &frame);
        }
    }
}

#[test]
fn whatever_is_for_a_listener_is_translated_there_and_back() {
    fn one<A: Place>(
        lab: &mut Programs,
        program: Program,
        name: &str,
        frame: &[u8],
        carried: Carried<A>,
    ) -> bool {
        let segment = match carried {
            Carried::Segment(segment) => segment,
            // A flow of its own would be needed.
            Carried::Error(_) => {
                unchanged(lab, program, name, frame);
                return false;
            }
            Carried::Piece(piece) => {
                // It follows a first fragment among the frames before it, if there was one.
                let (verdict, out) = lab.run(program, frame);
                assert_eq!(verdict, program.pass());
                if out != frame {
                    let there = kept(A::master(), piece.src_be);
                    check_piece(frame, &out, &piece, Side::Destination, &there);
                }
                return false;
            }
        };
        let ours = segment.dst_be == A::vip() && segment.dst_port_be == VIP_PORT.to_be();
        if !ours || segment.flags & RST != 0 {
            // Of what came before there may be a note, and its RST would go where it went.
            lab.forget_flows();
            unchanged(lab, program, name, frame);
            return false;
        }
        let (verdict, out) = lab.run(program, frame);
        assert_eq!(verdict, program.pass(), "{name}: verdict of {program:?}");
        let there = Translation {
            addr_be: A::master(),
            port_be: MASTER_PORT.to_be(),
            client_be: segment.src_be,
            client_port_be: segment.src_port_be,
        };
        check_segment(frame, &out, &segment, Side::Destination, &there);

        // The master answers with the same bytes: checksums hold either way round.
        let answer = turned(&out, &segment);
        let seen = match look(answer.as_slice()).map(A::carried) {
            Ok(Some(Carried::Segment(seen))) => seen,
            other => panic!("{name}: turned round it is {other:?}"),
        };
        let (verdict, out) = lab.run(Program::Reverse, &answer);
        assert_eq!(verdict, Program::Reverse.pass());
        let back = Translation {
            addr_be: A::vip(),
            port_be: VIP_PORT.to_be(),
            client_be: segment.src_be,
            client_port_be: segment.src_port_be,
        };
        check_segment(&answer, &out, &seen, Side::Source, &back);
        true
    }

    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    let mut steered = 0;
    for (name, frame) in aimed_frames() {
        for program in programs(&frame) {
            if program == Program::Reverse {
                // There is no flow that it could belong to; fragments follow theirs.
                let (verdict, out) = lab.run(program, &frame);
                assert_eq!(verdict, program.pass());
                match look(frame.as_slice()) {
                    Ok(Found::V4(Carried::Piece(piece))) if out != frame => {
                        let back = kept(V4::vip(), piece.dst_be);
                        check_piece(&frame, &out, &piece, Side::Source, &back);
                    }
                    Ok(Found::V6(Carried::Piece(piece))) if out != frame => {
                        let back = kept(V6::vip(), piece.dst_be);
                        check_piece(&frame, &out, &piece, Side::Source, &back);
                    }
                    _ => assert_eq!(hex(&out), hex(&frame), "{name}: left by {program:?}"),
                }
                continue;
            }
            steered += u32::from(match look(frame.as_slice()) {
                Ok(Found::V4(carried)) => one(&mut lab, program, &name, &frame, carried),
                Ok(Found::V6(carried)) => one(&mut lab, program, &name, &frame, carried),
                Err(_) => {
                    unchanged(&mut lab, program, &name, &frame);
                    // There is no flow to forget, which takes long.
                    continue;
                }
            });
            lab.forget_flows();
        }
    }
    assert!(steered > 300, "{steered} translations");
}

/// The frame with source and destination exchanged.
fn turned<A: Ip>(frame: &[u8], segment: &Segment<A>) -> Vec<u8> {
    let mut out = frame.to_vec();
    let width = A::DST - A::SRC;
    let src = segment.l3 + A::SRC;
    out[src..src + 2 * width].rotate_left(width);
    out[segment.l4..segment.l4 + 4].rotate_left(2);
    out
}

#[test]
fn whatever_is_refused_is_answered_by_a_whole_reset() {
    fn one<A: Place>(
        lab: &mut Programs,
        program: Program,
        name: &str,
        frame: &[u8],
        carried: Carried<A>,
    ) -> bool {
        let Carried::Segment(segment) = carried else {
            unchanged(lab, program, name, frame);
            return false;
        };
        let ours = segment.dst_be == A::vip() && segment.dst_port_be == VIP_PORT.to_be();
        if !ours || segment.flags & RST != 0 {
            // Of what came before there may be a note, and its RST would go where it went.
            lab.forget_flows();
            unchanged(lab, program, name, frame);
            return false;
        }
        let (verdict, out) = lab.run(program, frame);
        if segment.protocol == TCP {
            let turned = program.turn_round();
            assert_eq!(verdict, turned, "{name}: verdict of {program:?}");
            check_reset(frame, &out, &segment);
            return true;
        }
        assert_eq!(verdict, program.drop(), "{name}: verdict of {program:?}");
        false
    }

    let Some(mut lab) = Programs::load() else {
        return;
    };
    lab.follow_udp(VIP_PORT);
    lab.decide(REFUSE);
    let mut resets = 0;
    for (name, frame) in aimed_frames() {
        let there = Program::FORWARD.into_iter();
        for program in there.filter(|program| program.accepts(&frame)) {
            resets += u32::from(match look(frame.as_slice()) {
                Ok(Found::V4(carried)) => one(&mut lab, program, &name, &frame, carried),
                Ok(Found::V6(carried)) => one(&mut lab, program, &name, &frame, carried),
                Err(_) => {
                    unchanged(&mut lab, program, &name, &frame);
                    false
                }
            });
        }
    }
    assert!(resets > 200, "{resets} resets");
}

#[test]
fn errors_about_a_flow_are_translated_and_no_others() {
    /// Is it about what the server's side of the flow sent, and from where to where is the
    /// flow as it is quoted?
    fn about<A: Place>(quoted: &Quoted<A>, server: (A, u16), side: Side) -> bool {
        let quotation = (
            (quoted.inner_src_be, u16::from_be(quoted.inner_src_port_be)),
            (quoted.inner_dst_be, u16::from_be(quoted.inner_dst_port_be)),
        );
        let client = (A::client(), CLIENT_PORT);
        let wanted = match side {
            Side::Destination => (server, client),
            Side::Source => (client, server),
        };
        quoted.protocol == TCP && quoted.dst_be == quoted.inner_src_be && quotation == wanted
    }

    fn one<A: Place>(
        lab: &mut Programs,
        program: Program,
        name: &str,
        frame: &[u8],
        quoted: &Quoted<A>,
    ) -> bool {
        let (side, from, to) = match program {
            Program::Reverse => (
                Side::Source,
                (A::master(), MASTER_PORT),
                (A::vip(), VIP_PORT),
            ),
            _ => (
                Side::Destination,
                (A::vip(), VIP_PORT),
                (A::master(), MASTER_PORT),
            ),
        };
        if !about(quoted, from, side) {
            unchanged(lab, program, name, frame);
            return false;
        }
        let (verdict, out) = lab.run(program, frame);
        assert_eq!(verdict, program.pass(), "{name}: verdict of {program:?}");
        let there = Translation {
            addr_be: to.0,
            port_be: to.1.to_be(),
            client_be: A::client(),
            client_port_be: CLIENT_PORT.to_be(),
        };
        check_error(frame, &out, quoted, side, &there);
        true
    }

    let Some(mut lab) = Programs::load() else {
        return;
    };
    for family in Family::BOTH {
        let syn = client(family, VIP_PORT).syn();
        lab.expect(
            Program::Tc,
            &syn.bytes(),
            Expect::changed(&syn.clone().at_master().bytes()),
        );
    }
    let mut translated = 0;
    for (name, frame) in frames() {
        for program in programs(&frame) {
            translated += u32::from(match look(frame.as_slice()) {
                Ok(Found::V4(Carried::Error(quoted))) => {
                    one(&mut lab, program, &name, &frame, &quoted)
                }
                Ok(Found::V6(Carried::Error(quoted))) => {
                    one(&mut lab, program, &name, &frame, &quoted)
                }
                _ => false,
            });
        }
    }
    assert!(translated > 30, "{translated} translated errors");
}

/// The hand-made cases are for the listeners of these tables.
#[test]
fn the_made_cases_know_the_places() {
    assert_eq!(made::VIP_V4, VIP_V4);
    assert_eq!(made::VIP_V6, VIP_V6);
    assert_eq!(made::MASTER_V4, MASTER_V4);
    assert_eq!(made::MASTER_V6, MASTER_V6);
    assert_eq!(
        [made::VIP_PORT, made::MASTER_PORT, made::CLIENT_PORT],
        [VIP_PORT, MASTER_PORT, CLIENT_PORT]
    );
}
