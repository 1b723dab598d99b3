//! A RST in place of a segment: the answer of a host that has no such connection.
//!
//! Sequence numbers follow RFC 9293 section 3.10.7.1: to a segment with ACK,
//! `<SEQ=SEG.ACK><CTL=RST>`; otherwise `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>`.
//! SEG.ACK of a live client is its RCV.NXT, the only value at which RFC 5961
//! section 3.2 lets a RST take effect at once.
//!
//! **One header for both kinds of checksum.** A packet in TC may be one whose
//! checksum the kernel still owes (CHECKSUM_PARTIAL: the field holds the folded
//! pseudo-header sum P, and the sum of the segment is added later) or one whose
//! checksum is complete. A program cannot tell which. But the window of a RST
//! means nothing, so it is free: with H the sum of the header without checksum,
//! a complete checksum is ~(P + H), and that equals P exactly if H = ~2P. The
//! window is chosen to make it so, and the same bytes are right either way.

use super::{
    Frame, FrameMut, Segment, Window,
    checksum::{Stored, Sum},
    parse::{ACK, RST, TCP, TCP_LEN},
    put_u16, put_u32,
    rewrite::IPV4_CHECKSUM,
};
use crate::abi::{Address, V4, V6};

/// Hop limit of packets that we originate; Linux's default.
pub(super) const HOP_LIMIT: u8 = 64;

/// What the families do differently when a packet is turned round.
pub trait Answer: Address {
    /// The IP header without options.
    type Header: AsRef<[u8]>;

    /// Offset of the answer's TCP header. IPv6 extension headers are not sent back, as
    /// Linux does not: they were about the other direction.
    fn tcp_at(segment: &Segment<Self>) -> usize;

    /// What the address adds to a pseudo-header.
    fn sum(self) -> Sum;

    /// The IP header of the answer: addresses swapped, the length that of a bare
    /// TCP header, a hop limit of our own, and no fragment whatever it answers. IPv4
    /// options stay where they are, behind the bytes returned. `None` if the frame is
    /// shorter than when it was parsed.
    fn ip_header<F: Frame + ?Sized>(frame: &F, segment: &Segment<Self>) -> Option<Self::Header>;

    /// Copies the header into the frame.
    fn write<F: FrameMut + ?Sized>(frame: &mut F, l3: usize, header: &Self::Header) -> Option<()>;
}

impl Answer for V4 {
    type Header = [u8; 20];

    #[inline(always)]
    fn tcp_at(segment: &Segment<Self>) -> usize {
        segment.l4
    }

    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::new().add_u32(self.0)
    }

    #[inline(always)]
    fn ip_header<F: Frame + ?Sized>(frame: &F, segment: &Segment<Self>) -> Option<[u8; 20]> {
        let old = frame.window::<20>(segment.l3)?;
        let total = ((segment.l4 - segment.l3 + TCP_LEN) as u16).to_be();
        let ttl_protocol = u16::from_be_bytes([HOP_LIMIT, TCP]).to_be();
        let more_fragments = 0x2000_u16.to_be();
        let fragment = old.u16_be::<6>() & !more_fragments;
        // Swapped addresses add up to what they did before.
        let delta = Sum::new()
            .replace_u16(old.u16_be::<2>(), total)
            .replace_u16(old.u16_be::<6>(), fragment)
            .replace_u16(old.u16_be::<8>(), ttl_protocol);
        let checksum = Stored(old.u16_be::<IPV4_CHECKSUM>()).update(delta);
        let mut new = *old.0;
        put_u16::<2, 20>(&mut new, total);
        put_u16::<6, 20>(&mut new, fragment);
        put_u16::<8, 20>(&mut new, ttl_protocol);
        put_u16::<IPV4_CHECKSUM, 20>(&mut new, checksum.0);
        put_u32::<12, 20>(&mut new, segment.dst_be.0);
        put_u32::<16, 20>(&mut new, segment.src_be.0);
        Some(new)
    }

    #[inline(always)]
    fn write<F: FrameMut + ?Sized>(frame: &mut F, l3: usize, header: &[u8; 20]) -> Option<()> {
        *frame.window_mut::<20>(l3)? = *header;
        Some(())
    }
}

impl Answer for V6 {
    type Header = [u8; 40];

    #[inline(always)]
    fn tcp_at(segment: &Segment<Self>) -> usize {
        segment.l3 + 40
    }

    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::new()
            .add_u32(self.0[0])
            .add_u32(self.0[1])
            .add_u32(self.0[2])
            .add_u32(self.0[3])
    }

    #[inline(always)]
    fn ip_header<F: Frame + ?Sized>(frame: &F, segment: &Segment<Self>) -> Option<[u8; 40]> {
        let old = frame.window::<40>(segment.l3)?;
        let mut new = *old.0;
        put_u16::<4, 40>(&mut new, (TCP_LEN as u16).to_be());
        put_u16::<6, 40>(&mut new, u16::from_be_bytes([TCP, HOP_LIMIT]).to_be());
        let [a, b, c, d] = segment.dst_be.0;
        put_u32::<8, 40>(&mut new, a);
        put_u32::<12, 40>(&mut new, b);
        put_u32::<16, 40>(&mut new, c);
        put_u32::<20, 40>(&mut new, d);
        let [a, b, c, d] = segment.src_be.0;
        put_u32::<24, 40>(&mut new, a);
        put_u32::<28, 40>(&mut new, b);
        put_u32::<32, 40>(&mut new, c);
        put_u32::<36, 40>(&mut new, d);
        Some(new)
    }

    #[inline(always)]
    fn write<F: FrameMut + ?Sized>(frame: &mut F, l3: usize, header: &[u8; 40]) -> Option<()> {
        *frame.window_mut::<40>(l3)? = *header;
        Some(())
    }
}

/// The TCP header of a RST that answers `segment`, addressed back to its source.
/// A RST itself is never answered (RFC 9293 section 3.5.2); callers see to it.
#[inline(always)]
pub fn tcp_header<A: Answer>(segment: &Segment<A>) -> [u8; TCP_LEN] {
    let (seq, ack, flags) = if segment.flags & ACK != 0 {
        (segment.ack, 0, RST)
    } else {
        (0, segment.next_seq(), RST | ACK)
    };
    let offset_flags = u16::from_be_bytes([((TCP_LEN / 4) as u8) << 4, flags]).to_be();
    let pseudo = segment
        .src_be
        .sum()
        .add(segment.dst_be.sum())
        .add_u16((TCP as u16).to_be())
        .add_u16((TCP_LEN as u16).to_be())
        .fold();
    let window = !Sum::new()
        .add_u16(pseudo)
        .add_u16(pseudo)
        .add_u16(segment.dst_port_be)
        .add_u16(segment.src_port_be)
        .add_u32(seq.to_be())
        .add_u32(ack.to_be())
        .add_u16(offset_flags)
        .fold();
    let mut new = [0; TCP_LEN];
    put_u16::<0, TCP_LEN>(&mut new, segment.dst_port_be);
    put_u16::<2, TCP_LEN>(&mut new, segment.src_port_be);
    put_u32::<4, TCP_LEN>(&mut new, seq.to_be());
    put_u32::<8, TCP_LEN>(&mut new, ack.to_be());
    put_u16::<12, TCP_LEN>(&mut new, offset_flags);
    put_u16::<14, TCP_LEN>(&mut new, window);
    put_u16::<16, TCP_LEN>(&mut new, pseudo);
    new
}

/// Length of the answer's frame: up to the end of a bare TCP header.
#[inline(always)]
pub fn length<A: Answer>(segment: &Segment<A>) -> usize {
    A::tcp_at(segment) + TCP_LEN
}

/// Turns the segment in the frame into the RST that answers it. The caller then
/// cuts the frame to [`length`]. `None` if the frame is shorter than when it was
/// parsed.
#[inline(always)]
pub fn apply<A: Answer, F: FrameMut + ?Sized>(frame: &mut F, segment: &Segment<A>) -> Option<()> {
    let ip = A::ip_header(frame, segment)?;
    *frame.window_mut::<TCP_LEN>(A::tcp_at(segment))? = tcp_header(segment);
    A::write(frame, segment.l3, &ip)?;
    let macs = frame.window_mut::<12>(0)?;
    *macs = swapped_macs(Window(macs));
    Some(())
}

/// Destination and source link addresses, swapped.
#[inline(always)]
pub fn swapped_macs(ethernet: Window<'_, 12>) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *ethernet.0;
    [g, h, i, j, k, l, a, b, c, d, e, f]
}
