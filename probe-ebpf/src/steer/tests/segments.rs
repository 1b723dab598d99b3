//! What clients and endpoints send, and where it goes.

use super::*;

pub(super) fn segment(src: (V4, u16), dst: (V4, u16), flags: u8) -> Segment<V4> {
    Segment {
        l3: 14,
        l4: 34,
        protocol: TCP,
        src_be: src.0,
        dst_be: dst.0,
        src_port_be: src.1.to_be(),
        dst_port_be: dst.1.to_be(),
        seq: 1000,
        ack: if flags & ACK != 0 { 5000 } else { 0 },
        flags,
        options: 0,
        window_be: 0,
        payload: 0,
        end: 54,
        fragmented: false,
        id_be: 0,
    }
}

pub(super) fn from_client(flags: u8) -> Segment<V4> {
    segment((CLIENT, 40000), (VIP, 80), flags)
}

pub(super) fn from_port(port: u16, flags: u8) -> Segment<V4> {
    segment((CLIENT, port), (VIP, 80), flags)
}

pub(super) fn from_master(flags: u8) -> Segment<V4> {
    segment((MASTER_ADDR, 8080), (CLIENT, 40000), flags)
}

/// A connection straight to the master's own address.
pub(super) fn direct(flags: u8) -> Segment<V4> {
    segment((CLIENT, 40000), (MASTER_ADDR, 8080), flags)
}

pub(super) fn datagram(port: u16) -> Segment<V4> {
    Segment {
        protocol: UDP,
        ..from_port(port, 0)
    }
}

pub(super) fn forward(host: &Host, segment: &Segment<V4>) -> Verdict<V4> {
    super::super::forward(host, &[][..], segment).verdict()
}

pub(super) fn reverse(host: &Host, segment: &Segment<V4>) -> Verdict<V4> {
    super::super::reverse(host, segment).verdict()
}

pub(super) fn goes_to(verdict: Verdict<V4>) -> u32 {
    match verdict {
        Verdict::Translate(_, id) => id,
        other => panic!("not steered: {other:?}"),
    }
}

pub(super) fn connect(host: &Host) {
    assert_eq!(goes_to(forward(host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(host, &from_master(SYN | ACK))), MASTER);
    assert_eq!(goes_to(forward(host, &from_client(ACK))), MASTER);
}
