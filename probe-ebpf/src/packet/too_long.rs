//! The ICMP error about a segment that is too long for the way on.
//!
//! What the kernel forwards it also measures; what is sent on from here has to be measured
//! here, and its sender told, or path MTU discovery breaks (RFC 1191, RFC 8201). The answer
//! comes from the address that the segment was sent to, as a RST does, and quotes the IP
//! header and what its sender needs of the next one. New headers are put before the
//! segment's, which stays where it is, and the rest is cut off.
//!
//! IPv4 packets that may be cut up (without DF) are answered too: nothing here can cut
//! them, and their sender does once it knows.
//!
//! **One checksum for both kinds of packet.** Where the kernel still owes the segment's
//! checksum (CHECKSUM_PARTIAL) it will sum up what is left of the segment, F in the
//! checksum's field included, and put the complement there. With R the sum of the rest, the
//! quoted header then adds up to R + ~(R + F), which is -F, and otherwise to R + F. Both
//! are the same if 2F = -R. Halving a one's complement number is a rotation by one bit,
//! so there always is such an F. Nobody looks at the checksum of what is quoted.

use super::{
    Frame, Segment,
    checksum::Sum,
    parse::{ICMP, ICMP_LEN, ICMPV6, IPV4_LEN, TCP_LEN, UDP, UDP_LEN},
    put_u16, put_u32,
    reset::{Answer, HOP_LIMIT},
    rewrite::{TCP_CHECKSUM, UDP_CHECKSUM},
};
use crate::abi::{V4, V6};

/// What may be taken for the way's MTU where the kernel does not tell (before Linux 5.12):
/// what every host must take (RFC 1122 section 3.3.2), and every link (RFC 8200 section 5).
pub const LEAST_MTU_V4: u16 = 576;
/// See [`LEAST_MTU_V4`].
pub const LEAST_MTU_V6: u16 = 1280;

/// What the families do differently when they report.
pub trait Report: Answer {
    /// IP and ICMP header.
    type Head: AsRef<[u8]>;
    /// Their length.
    const HEAD: usize;
    /// See [`LEAST_MTU_V4`].
    const LEAST_MTU: u16;

    /// The headers of the answer. `quoted` is the sum of the quoted TCP or UDP header.
    /// `None` if the frame is shorter than when it was parsed, or its headers are none that
    /// can be quoted.
    fn head<F: Frame + ?Sized>(
        frame: &F,
        segment: &Segment<Self>,
        mtu: u16,
        quoted: Sum,
    ) -> Option<Self::Head>;
}

/// Bytes of the TCP or UDP header that are quoted: all that a CHECKSUM_PARTIAL needs.
#[inline(always)]
const fn quoted_len(protocol: u8) -> usize {
    if protocol == UDP { UDP_LEN } else { TCP_LEN }
}

/// Where the segment's frame is cut.
#[inline(always)]
pub fn end<A>(segment: &Segment<A>) -> usize {
    segment.l4 + quoted_len(segment.protocol)
}

/// Offset of the segment's checksum.
#[inline(always)]
pub fn checksum_at<A>(segment: &Segment<A>) -> usize {
    segment.l4
        + if segment.protocol == UDP {
            UDP_CHECKSUM
        } else {
            TCP_CHECKSUM
        }
}

/// What has to stand in the field of the segment's checksum, and the sum of the quoted TCP
/// or UDP header then. `None` if the frame is shorter than when it was parsed.
#[inline(always)]
pub fn quoted<A, F: Frame + ?Sized>(frame: &F, segment: &Segment<A>) -> Option<(u16, Sum)> {
    let rest = if segment.protocol == UDP {
        let udp = frame.window::<UDP_LEN>(segment.l4)?;
        Sum::new()
            .add_u32(udp.u32_be::<0>())
            .add_u16(udp.u16_be::<4>())
    } else {
        let tcp = frame.window::<TCP_LEN>(segment.l4)?;
        Sum::new()
            .add_u32(tcp.u32_be::<0>())
            .add_u32(tcp.u32_be::<4>())
            .add_u32(tcp.u32_be::<8>())
            .add_u32(tcp.u32_be::<12>())
            .add_u16(tcp.u16_be::<18>())
    };
    let field = (!rest.fold()).rotate_right(1);
    Some((field, rest.add_u16(field)))
}

impl Report for V4 {
    type Head = [u8; IPV4_LEN + ICMP_LEN];
    const HEAD: usize = IPV4_LEN + ICMP_LEN;
    const LEAST_MTU: u16 = LEAST_MTU_V4;

    #[inline(always)]
    fn head<F: Frame + ?Sized>(
        _frame: &F,
        segment: &Segment<Self>,
        mtu: u16,
        quoted: Sum,
    ) -> Option<Self::Head> {
        let total = (Self::HEAD + end(segment) - segment.l3) as u16;
        let mut head = [0; Self::HEAD];
        // No options, no service, an identification that nothing needs (RFC 6864 section 4.1).
        head[0] = 0x45;
        put_u16::<2, 28>(&mut head, total.to_be());
        put_u16::<6, 28>(&mut head, 0x4000_u16.to_be());
        let ttl_protocol = u16::from_be_bytes([HOP_LIMIT, ICMP]).to_be();
        put_u16::<8, 28>(&mut head, ttl_protocol);
        put_u32::<12, 28>(&mut head, segment.dst_be.0);
        put_u32::<16, 28>(&mut head, segment.src_be.0);
        let sum = Sum::new()
            .add_u16(0x4500_u16.to_be())
            .add_u16(total.to_be())
            .add_u16(0x4000_u16.to_be())
            .add_u16(ttl_protocol)
            .add_u32(segment.dst_be.0)
            .add_u32(segment.src_be.0);
        put_u16::<10, 28>(&mut head, sum.store().0);
        // Destination unreachable, fragmentation needed (RFC 1191 section 4). The quoted IP
        // header adds nothing: its own checksum sees to that.
        let kind = 0x0304_u16.to_be();
        put_u16::<20, 28>(&mut head, kind);
        put_u16::<26, 28>(&mut head, mtu.to_be());
        let sum = quoted.add_u16(kind).add_u16(mtu.to_be());
        put_u16::<22, 28>(&mut head, sum.store().0);
        Some(head)
    }
}

/// IPv6 header.
const IPV6_LEN: usize = 40;
/// IPv6 fragment header, the one extension header that a long packet is likely to have.
const FRAGMENT_LEN: usize = 8;

impl Report for V6 {
    type Head = [u8; IPV6_LEN + ICMP_LEN];
    const HEAD: usize = IPV6_LEN + ICMP_LEN;
    const LEAST_MTU: u16 = LEAST_MTU_V6;

    #[inline(always)]
    fn head<F: Frame + ?Sized>(
        frame: &F,
        segment: &Segment<Self>,
        mtu: u16,
        quoted: Sum,
    ) -> Option<Self::Head> {
        let payload = (ICMP_LEN + end(segment) - segment.l3) as u16;
        let ip = frame.window::<IPV6_LEN>(segment.l3)?;
        let addresses = segment.src_be.sum().add(segment.dst_be.sum());
        // The quoted headers, and a pseudo-header with the same addresses.
        let mut sum = quoted
            .add_u32(ip.u32_be::<0>())
            .add_u32(ip.u32_be::<4>())
            .add(addresses)
            .add(addresses)
            .add_u16(payload.to_be())
            .add_u16((ICMPV6 as u16).to_be());
        if segment.l4 == segment.l3 + IPV6_LEN + FRAGMENT_LEN {
            let extension = frame.window::<FRAGMENT_LEN>(segment.l3 + IPV6_LEN)?;
            sum = sum
                .add_u32(extension.u32_be::<0>())
                .add_u32(extension.u32_be::<4>());
        } else if segment.l4 != segment.l3 + IPV6_LEN {
            return None;
        }
        let mut head = [0; Self::HEAD];
        head[0] = 0x60;
        put_u16::<4, 48>(&mut head, payload.to_be());
        let next_limit = u16::from_be_bytes([ICMPV6, HOP_LIMIT]).to_be();
        put_u16::<6, 48>(&mut head, next_limit);
        let [a, b, c, d] = segment.dst_be.0;
        put_u32::<8, 48>(&mut head, a);
        put_u32::<12, 48>(&mut head, b);
        put_u32::<16, 48>(&mut head, c);
        put_u32::<20, 48>(&mut head, d);
        let [a, b, c, d] = segment.src_be.0;
        put_u32::<24, 48>(&mut head, a);
        put_u32::<28, 48>(&mut head, b);
        put_u32::<32, 48>(&mut head, c);
        put_u32::<36, 48>(&mut head, d);
        // Packet too big (RFC 4443 section 3.2).
        let kind = 0x0200_u16.to_be();
        put_u16::<40, 48>(&mut head, kind);
        put_u16::<46, 48>(&mut head, mtu.to_be());
        let sum = sum.add_u16(kind).add_u16(mtu.to_be());
        put_u16::<42, 48>(&mut head, sum.store().0);
        Some(head)
    }
}
