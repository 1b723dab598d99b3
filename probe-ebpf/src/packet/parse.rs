//! From a frame to the TCP segment in it.
//!
//! Everything that is not a whole, unfragmented TCP segment is told by a
//! [`Reason`]; the outermost function passes it. The depth is bounded: two VLAN
//! tags (IEEE 802.1ad over 802.1Q), IPv4 options by header length, no IPv6
//! extension headers.

use super::Frame;
use crate::abi::{Address, Reason, V4, V6};

/// Ethernet header without tags.
const ETHERNET_LEN: usize = 14;
/// One 802.1Q tag.
const TAG_LEN: usize = 4;
/// TCP header without options.
pub const TCP_LEN: usize = 20;
/// IPv6 header.
const IPV6_LEN: usize = 40;
/// Bytes that parsing may need: two tags, longest IPv4 header, TCP without options.
pub const HEADERS_LEN: usize = ETHERNET_LEN + 2 * TAG_LEN + 60 + TCP_LEN;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;

/// TCP flag bits (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// What a frame carries, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// An IPv4 header at this offset.
    V4(usize),
    /// An IPv6 header at this offset.
    V6(usize),
}

/// A TCP segment and its addresses. Offsets count from the frame's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<A> {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the TCP header.
    pub l4: usize,
    /// Source address.
    pub src_be: A,
    /// Destination address.
    pub dst_be: A,
    /// Source port.
    pub src_port_be: u16,
    /// Destination port.
    pub dst_port_be: u16,
    /// Sequence number, host order.
    pub seq: u32,
    /// Acknowledgment number, host order; meaningful with [`ACK`].
    pub ack: u32,
    /// Flag bits.
    pub flags: u8,
    /// Bytes after the TCP header and its options.
    pub payload: u32,
}

impl<A> Segment<A> {
    /// Is this the first segment of a connection, a SYN without ACK?
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// The sequence number after this segment. SYN and FIN count as one each
    /// (RFC 9293 section 3.4).
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        let syn = (self.flags & SYN != 0) as u32;
        let fin = (self.flags & FIN != 0) as u32;
        self.seq
            .wrapping_add(self.payload)
            .wrapping_add(syn)
            .wrapping_add(fin)
    }
}

/// Finds the IP header behind the Ethernet header and up to two tags.
#[inline(always)]
pub fn network<F: Frame + ?Sized>(frame: &F) -> Result<Network, Reason> {
    let ethernet = frame.window::<ETHERNET_LEN>(0).ok_or(Reason::Malformed)?;
    let mut kind = u16::from_be(ethernet.u16_be::<12>());
    let mut at = ETHERNET_LEN;
    if is_tag(kind) {
        let tag = frame.window::<TAG_LEN>(at).ok_or(Reason::Malformed)?;
        kind = u16::from_be(tag.u16_be::<2>());
        at += TAG_LEN;
        if is_tag(kind) {
            let tag = frame.window::<TAG_LEN>(at).ok_or(Reason::Malformed)?;
            kind = u16::from_be(tag.u16_be::<2>());
            at += TAG_LEN;
            if is_tag(kind) {
                return Err(Reason::VlanDepth);
            }
        }
    }
    match kind {
        0x0800 => Ok(Network::V4(at)),
        0x86dd => Ok(Network::V6(at)),
        _ => Err(Reason::NotIp),
    }
}

/// TPIDs of 802.1Q and 802.1ad.
#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == 0x8100 || kind == 0x88a8
}

/// The TCP segment of the IPv4 header at `l3` (RFC 791 section 3.1).
#[inline(always)]
pub fn segment_v4<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Segment<V4>, Reason> {
    let ip = frame.window::<20>(l3).ok_or(Reason::Malformed)?;
    let version_ihl = ip.u8::<0>();
    if version_ihl >> 4 != 4 {
        return Err(Reason::Malformed);
    }
    let header = ((version_ihl & 0xf) as usize) * 4;
    if header < 20 {
        return Err(Reason::Malformed);
    }
    // More-fragments bit or an offset: ports are in the first fragment only.
    if ip.u16_be::<6>() & 0x3fff_u16.to_be() != 0 {
        return Err(Reason::Fragment);
    }
    if ip.u8::<9>() != TCP {
        return Err(Reason::NotTcp);
    }
    let rest = frame.length().wrapping_sub(l3);
    let total = match u16::from_be(ip.u16_be::<2>()) as usize {
        // A GSO super-packet of more than 64 KiB has no length (Linux 6.3, BIG TCP).
        0 if rest > 0xffff => rest,
        total => total,
    };
    if total > rest {
        return Err(Reason::Malformed);
    }
    transport(
        frame,
        l3,
        l3 + header,
        total.wrapping_sub(header),
        V4(ip.u32_be::<12>()),
        V4(ip.u32_be::<16>()),
    )
}

/// The TCP segment of the IPv6 header at `l3` (RFC 8200 section 3).
#[inline(always)]
pub fn segment_v6<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Segment<V6>, Reason> {
    let ip = frame.window::<IPV6_LEN>(l3).ok_or(Reason::Malformed)?;
    if ip.u8::<0>() >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    match ip.u8::<6>() {
        TCP => {}
        44 => return Err(Reason::Fragment),
        // Hop-by-hop, routing, authentication, destination options, mobility.
        0 | 43 | 51 | 60 | 135 => return Err(Reason::ExtensionHeader),
        _ => return Err(Reason::NotTcp),
    }
    let rest = frame.length().wrapping_sub(l3 + IPV6_LEN);
    let payload = match u16::from_be(ip.u16_be::<4>()) as usize {
        0 if rest > 0xffff => rest,
        payload => payload,
    };
    if payload > rest {
        return Err(Reason::Malformed);
    }
    transport(
        frame,
        l3,
        l3 + IPV6_LEN,
        payload,
        V6(ip.words::<8>()),
        V6(ip.words::<24>()),
    )
}

/// The TCP header at `l4` with `length` bytes of header and payload (RFC 9293
/// section 3.1).
#[inline(always)]
fn transport<F: Frame + ?Sized, A: Address>(
    frame: &F,
    l3: usize,
    l4: usize,
    length: usize,
    src_be: A,
    dst_be: A,
) -> Result<Segment<A>, Reason> {
    let tcp = frame.window::<TCP_LEN>(l4).ok_or(Reason::Malformed)?;
    let header = (tcp.u8::<12>() >> 4) as usize * 4;
    // `length` has wrapped to a huge number if the IP length did not even cover its own header.
    if header < TCP_LEN || header > length || length > frame.length() {
        return Err(Reason::Malformed);
    }
    Ok(Segment {
        l3,
        l4,
        src_be,
        dst_be,
        src_port_be: tcp.u16_be::<0>(),
        dst_port_be: tcp.u16_be::<2>(),
        seq: u32::from_be(tcp.u32_be::<4>()),
        ack: u32::from_be(tcp.u32_be::<8>()),
        flags: tcp.u8::<13>(),
        payload: (length - header) as u32,
    })
}
