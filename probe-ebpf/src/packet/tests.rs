//! Parsing, translating and resetting, with etherparse as the second opinion.

use std::vec::Vec;

use etherparse::{
    Ipv4Header, Ipv6FlowLabel, Ipv6Header, LinkSlice, NetSlice, PacketBuilder, SlicedPacket,
    TcpHeaderSlice, TransportSlice,
};
use proptest::prelude::*;

use super::{
    Content, Frame, Network, Piece, Quoted, Segment, network,
    parse::{ACK, FIN, RST, SYN, TCP, content_v4, content_v6},
    reset::{self, Answer},
    rewrite::{self, Family, Side, Translation},
};
use crate::abi::{Reason, V4, V6};

/// What a test packet varies.
#[derive(Clone, Debug)]
struct Wire {
    v6: bool,
    tags: usize,
    src: [u8; 16],
    dst: [u8; 16],
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    payload: Vec<u8>,
    trailer: usize,
}

fn wire() -> impl Strategy<Value = Wire> {
    (
        any::<(bool, [u8; 16], [u8; 16], (u16, u16), u32, u32)>(),
        0..3_usize,
        prop::sample::select(std::vec![
            SYN,
            ACK,
            SYN | ACK,
            FIN | ACK,
            RST,
            RST | ACK,
            FIN
        ]),
        prop::collection::vec(any::<u8>(), 0..64),
        0..8_usize,
    )
        .prop_map(
            |((v6, src, dst, ports, seq, ack), tags, flags, payload, trailer)| Wire {
                v6,
                tags,
                src,
                dst,
                ports,
                seq,
                ack,
                flags,
                payload,
                trailer,
            },
        )
}

fn first_four(bytes: [u8; 16]) -> [u8; 4] {
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

impl Wire {
    fn bytes(&self) -> Vec<u8> {
        let mut tcp = etherparse::TcpHeader::new(self.ports.0, self.ports.1, self.seq, 1024);
        tcp.acknowledgment_number = self.ack;
        tcp.syn = self.flags & SYN != 0;
        tcp.ack = self.flags & ACK != 0;
        tcp.fin = self.flags & FIN != 0;
        tcp.rst = self.flags & RST != 0;
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut out = Vec::new();
        if self.v6 {
            let ip = Ipv6Header {
                source: self.src,
                destination: self.dst,
                hop_limit: 9,
                flow_label: Ipv6FlowLabel::try_new(0x12345).unwrap(),
                ..Ipv6Header::default()
            };
            let whole = link.ip(etherparse::IpHeaders::Ipv6(ip, Default::default()));
            whole
                .tcp_header(tcp)
                .write(&mut out, &self.payload)
                .unwrap();
        } else {
            let ip = Ipv4Header {
                source: first_four(self.src),
                destination: first_four(self.dst),
                time_to_live: 9,
                identification: 77,
                ..Ipv4Header::default()
            };
            let whole = link.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
            whole
                .tcp_header(tcp)
                .write(&mut out, &self.payload)
                .unwrap();
        }
        for _ in 0..self.tags {
            out.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
        }
        out.extend(std::iter::repeat_n(0, self.trailer));
        out
    }
}

/// Takes segments, and nothing else.
struct OnlySegments;

impl<A> Content<A> for OnlySegments {
    type Outcome = Segment<A>;
    fn segment(self, segment: Segment<A>) -> Result<Segment<A>, Reason> {
        Ok(segment)
    }
    fn error(self, _: Quoted<A>) -> Result<Segment<A>, Reason> {
        Err(Reason::NotSteerable)
    }
    fn piece(self, _: Piece<A>) -> Result<Segment<A>, Reason> {
        Err(Reason::Fragment)
    }
}

fn segment_v4<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Segment<V4>, Reason> {
    content_v4(frame, l3, OnlySegments)
}

fn segment_v6<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Segment<V6>, Reason> {
    content_v6(frame, l3, OnlySegments)
}

/// Our view of a frame, with addresses as sixteen bytes.
fn ours(frame: &[u8]) -> Result<Segment<V6>, Reason> {
    match network(frame)? {
        Network::V4(l3) => {
            let s = segment_v4(frame, l3)?;
            let wide = |addr: V4| {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&addr.bytes());
                V6::from_bytes(bytes)
            };
            Ok(Segment {
                src_be: wide(s.src_be),
                dst_be: wide(s.dst_be),
                l3: s.l3,
                l4: s.l4,
                protocol: s.protocol,
                src_port_be: s.src_port_be,
                dst_port_be: s.dst_port_be,
                seq: s.seq,
                ack: s.ack,
                flags: s.flags,
                options: s.options,
                window_be: s.window_be,
                payload: s.payload,
                end: s.end,
                fragmented: s.fragmented,
                id_be: s.id_be,
            })
        }
        Network::V6(l3) => segment_v6(frame, l3),
    }
}

/// Zero has two representations in one's complement, 0 and 0xffff. A receiver adds
/// up everything, checksum included (RFC 1071), and cannot tell them apart.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

/// Are both checksums of the frame right, says etherparse.
fn checksums_hold(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        return false;
    };
    match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            let wanted = tcp.calc_checksum_ipv4(header.source, header.destination);
            same_sum(header.calc_header_checksum(), header.header_checksum)
                && same_sum(wanted.unwrap(), tcp.checksum())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let wanted = tcp.calc_checksum_ipv6(header.source, header.destination);
            same_sum(wanted.unwrap(), tcp.checksum())
        }
        NetSlice::Arp(_) => false,
    }
}

fn translated<A: Family>(
    frame: &[u8],
    segment: &Segment<A>,
    side: Side,
    translation: &Translation<A>,
) -> Vec<u8> {
    let mut out = frame.to_vec();
    rewrite::apply(out.as_mut_slice(), segment, side, translation).expect("it was parsed");
    out
}

fn reset_of<A: Answer>(frame: &[u8], segment: &Segment<A>) -> Vec<u8> {
    let mut out = frame.to_vec();
    reset::apply(out.as_mut_slice(), segment).expect("it was parsed");
    out.truncate(reset::length(segment));
    out
}

proptest! {
    #[test]
    fn whole_segments_are_read_as_etherparse_reads_them(wire in wire()) {
        let frame = wire.bytes();
        let segment = ours(&frame).expect("a whole segment");
        prop_assert_eq!(segment.l3, 14 + 4 * wire.tags);
        let src = if wire.v6 { wire.src.to_vec() } else { wire.src[..4].to_vec() };
        prop_assert!(segment.src_be.bytes().starts_with(&src));
        prop_assert_eq!(u16::from_be(segment.src_port_be), wire.ports.0);
        prop_assert_eq!(u16::from_be(segment.dst_port_be), wire.ports.1);
        prop_assert_eq!((segment.seq, segment.ack), (wire.seq, wire.ack));
        prop_assert_eq!(segment.flags, wire.flags);
        prop_assert_eq!(segment.payload as usize, wire.payload.len(), "padding is no payload");
        let counted = u32::from(wire.flags & SYN != 0) + u32::from(wire.flags & FIN != 0);
        let end = wire.seq.wrapping_add(wire.payload.len() as u32).wrapping_add(counted);
        prop_assert_eq!(segment.next_seq(), end);
    }

    /// Whatever the bytes: no panic, and what we take for a segment etherparse takes
    /// for one too, at the same place.
    #[test]
    fn arbitrary_changes_never_confuse_us(
        wire in wire(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut frame = wire.bytes();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if !whole {
            frame.truncate(cut.index(frame.len() + 1));
        }
        if let Ok(segment) = ours(&frame) && segment.protocol == TCP {
            let tcp = TcpHeaderSlice::from_slice(&frame[segment.l4..]).expect("a TCP header");
            prop_assert_eq!(tcp.source_port(), u16::from_be(segment.src_port_be));
            prop_assert!(segment.l4 + tcp.slice().len() + segment.payload as usize <= frame.len());
            let lax = etherparse::LaxSlicedPacket::from_ethernet(&frame).expect("a link header");
            prop_assert!(matches!(lax.link, Some(LinkSlice::Ethernet2(_))));
        }
    }

    #[test]
    fn translation_keeps_checksums_and_everything_else(
        wire in wire(),
        addr in any::<[u8; 16]>(),
        port in any::<u16>(),
        client_port in any::<u16>(),
        hides in any::<Option<[u8; 16]>>(),
        source in any::<bool>(),
    ) {
        let frame = wire.bytes();
        let side = if source { Side::Source } else { Side::Destination };
        let (port_be, client_port_be) = (port.to_be(), client_port.to_be());
        let out = match network(frame.as_slice()).unwrap() {
            Network::V4(l3) => {
                let segment = segment_v4(frame.as_slice(), l3).unwrap();
                let addr_be = V4::from_bytes(first_four(addr));
                let seen = if source { segment.dst_be } else { segment.src_be };
                let client_be = hides.map_or(seen, |addr| V4::from_bytes(first_four(addr)));
                let there = Translation { addr_be, port_be, client_be, client_port_be };
                translated(&frame, &segment, side, &there)
            }
            Network::V6(l3) => {
                let segment = segment_v6(frame.as_slice(), l3).unwrap();
                let seen = if source { segment.dst_be } else { segment.src_be };
                let client_be = hides.map_or(seen, V6::from_bytes);
                let addr_be = V6::from_bytes(addr);
                let there = Translation { addr_be, port_be, client_be, client_port_be };
                translated(&frame, &segment, side, &there)
            }
        };
        let mut expected = wire.clone();
        if source {
            expected.src = addr;
            expected.dst = hides.unwrap_or(expected.dst);
            expected.ports = (port, client_port);
        } else {
            expected.dst = addr;
            expected.src = hides.unwrap_or(expected.src);
            expected.ports = (client_port, port);
        }
        prop_assert!(checksums_hold(&out));
        let blank = |mut frame: Vec<u8>| {
            let segment = ours(&frame).unwrap();
            frame[segment.l4 + 16..segment.l4 + 18].fill(0);
            if !wire.v6 {
                frame[segment.l3 + 10..segment.l3 + 12].fill(0);
            }
            frame
        };
        prop_assert_eq!(blank(out), blank(expected.bytes()));
    }

    #[test]
    fn resets_are_whole_packets_of_their_own(wire in wire()) {
        let frame = wire.bytes();
        let out = match network(frame.as_slice()).unwrap() {
            Network::V4(l3) => reset_of(&frame, &segment_v4(frame.as_slice(), l3).unwrap()),
            Network::V6(l3) => reset_of(&frame, &segment_v6(frame.as_slice(), l3).unwrap()),
        };
        prop_assert!(checksums_hold(&out));
        let (question, answer) = (ours(&frame).unwrap(), ours(&out).unwrap());
        prop_assert_eq!(answer.src_be, question.dst_be);
        prop_assert_eq!(answer.dst_be, question.src_be);
        prop_assert_eq!(answer.dst_port_be, question.src_port_be);
        prop_assert_eq!(answer.payload, 0);
        if wire.flags & ACK != 0 {
            prop_assert_eq!((answer.flags, answer.seq), (RST, wire.ack));
        } else {
            prop_assert_eq!((answer.flags, answer.seq), (RST | ACK, 0));
            prop_assert_eq!(answer.ack, question.next_seq());
        }
    }
}

#[test]
fn a_super_packet_has_the_length_of_its_frame() {
    /// A frame of more than 64 KiB of which only the head can be reached.
    struct Giant(Vec<u8>, usize);
    impl Frame for Giant {
        fn length(&self) -> usize {
            self.1
        }
        fn window<const N: usize>(&self, offset: usize) -> Option<super::Window<'_, N>> {
            self.0.as_slice().window(offset)
        }
    }
    for v6 in [false, true] {
        let wire = Wire {
            v6,
            tags: 0,
            src: [1; 16],
            dst: [2; 16],
            ports: (1, 2),
            seq: 0,
            ack: 0,
            flags: ACK,
            payload: Vec::new(),
            trailer: 0,
        };
        let mut bytes = wire.bytes();
        let (at, headers) = if v6 { (18, 54) } else { (16, 34) };
        bytes[at..at + 2].fill(0);
        let whole = headers + 20 + 150_000;
        let payload = |length| {
            let giant = Giant(bytes.clone(), length);
            match network(&giant)? {
                Network::V4(l3) => segment_v4(&giant, l3).map(|s| s.payload),
                Network::V6(l3) => segment_v6(&giant, l3).map(|s| s.payload),
            }
        };
        assert_eq!(payload(whole), Ok(150_000));
        assert_eq!(payload(1000), Err(Reason::Malformed));
    }
}

/// A pseudo-header that sums up to zero: the checksum stands as 0xffff where another
/// library would write 0. Found by the property test above.
#[test]
fn a_reset_whose_pseudo_header_sums_to_zero() {
    let wire = Wire {
        v6: true,
        tags: 0,
        src: [
            0, 96, 124, 5, 182, 29, 44, 64, 110, 34, 213, 235, 62, 11, 66, 199,
        ],
        dst: [
            40, 191, 204, 35, 117, 109, 94, 132, 184, 61, 1, 144, 254, 166, 90, 248,
        ],
        ports: (0, 0),
        seq: 0,
        ack: 0,
        flags: SYN,
        payload: Vec::new(),
        trailer: 0,
    };
    let frame = wire.bytes();
    let segment = segment_v6(frame.as_slice(), 14).unwrap();
    let out = reset_of(&frame, &segment);
    assert_eq!(out[70..72], [0xff, 0xff]);
    assert!(checksums_hold(&out));
}
