//! From a frame to the TCP segment, UDP datagram, ICMP error or fragment in it.
//!
//! Everything else is told by a [`Reason`]; the outermost function passes it. The
//! depth is bounded: two VLAN tags (IEEE 802.1ad over 802.1Q), IPv4 options by
//! header length, at most [`EXTENSIONS`] IPv6 extension headers.

use super::Frame;
use crate::abi::{Address, Reason, V4, V6};

/// Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// One 802.1Q tag.
const TAG_LEN: usize = 4;
/// IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// IPv6 header.
pub const IPV6_LEN: usize = 40;
/// TCP header without options.
pub const TCP_LEN: usize = 20;
/// UDP header.
pub const UDP_LEN: usize = 8;
/// ICMP header, the unused or MTU field of an error included.
pub const ICMP_LEN: usize = 8;
/// Source and destination port, where TCP and UDP headers begin.
const PORTS_LEN: usize = 4;
/// IPv6 extension headers that are walked over.
pub const EXTENSIONS: usize = 4;
/// Bytes that parsing may need: two tags, longest IPv4 header, an ICMP error and the
/// head of what it quotes.
pub const HEADERS_LEN: usize = ETHERNET_LEN + 2 * TAG_LEN + 60 + ICMP_LEN + 60 + 8;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

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

/// Who is told what an IP packet carries.
///
/// Not an enum: its variants would share memory, and the compiler then joins and
/// splits their fields until the kernel's verifier no longer knows the bounds of an
/// offset.
pub trait Content<A> {
    /// What comes of it.
    type Outcome;
    /// Takes only whole TCP segments behind plain headers. Of everything else only
    /// [`Content::beyond`] is told, and it is not read.
    const GLANCE: bool = false;
    /// A glance was not enough.
    fn beyond(self) -> Result<Self::Outcome, Reason>
    where
        Self: Sized,
    {
        Err(Reason::NotSteerable)
    }
    /// A TCP segment or a UDP datagram.
    fn segment(self, segment: Segment<A>) -> Result<Self::Outcome, Reason>;
    /// An ICMP error about one.
    fn error(self, quoted: Quoted<A>) -> Result<Self::Outcome, Reason>;
    /// A later fragment of one: no ports, only addresses.
    fn piece(self, piece: Piece<A>) -> Result<Self::Outcome, Reason>;
}

/// A fragment that is not the first of its packet. Offsets count from the frame's
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<A> {
    /// Offset of the IP header.
    pub l3: usize,
    /// Source address.
    pub src_be: A,
    /// Destination address.
    pub dst_be: A,
    /// The packet's identification, as it stands in the packet.
    pub id_be: u32,
    /// The packet's protocol in IPv4; zero in IPv6, where only the first fragment
    /// names it (RFC 8200 section 4.5).
    pub protocol: u8,
}

/// A TCP segment or UDP datagram and its addresses. Offsets count from the frame's
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<A> {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the TCP or UDP header.
    pub l4: usize,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Source address.
    pub src_be: A,
    /// Destination address.
    pub dst_be: A,
    /// Source port.
    pub src_port_be: u16,
    /// Destination port.
    pub dst_port_be: u16,
    /// Sequence number, host order; zero for UDP.
    pub seq: u32,
    /// Acknowledgment number, host order; meaningful with [`ACK`].
    pub ack: u32,
    /// Flag bits; none for UDP.
    pub flags: u8,
    /// Bytes of TCP options; none for UDP.
    pub options: u8,
    /// TCP's window as it stands in the packet; zero for UDP.
    pub window_be: u16,
    /// Bytes after the TCP header and its options, or after the UDP header.
    pub payload: u32,
    /// Offset of the IP packet's end: the frame's length without padding.
    pub end: u32,
    /// The first of several fragments? The others follow it by `id_be`.
    pub fragmented: bool,
    /// The packet's identification, as it stands in the packet, if it is fragmented.
    pub id_be: u32,
}

/// An ICMP error and the head of the packet that it is about (RFC 792, RFC 4443
/// section 2.4 c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Offset of the outer IP header.
    pub l3: usize,
    /// Offset of the ICMP header.
    pub l4: usize,
    /// Offset of the quoted IP header.
    pub inner_l3: usize,
    /// Offset of the quoted TCP or UDP header, of which at least the ports are there.
    pub inner_l4: usize,
    /// Who reports.
    pub src_be: A,
    /// To whom: the source of the quoted packet.
    pub dst_be: A,
    /// The quoted packet's protocol, [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// The quoted packet's source.
    pub inner_src_be: A,
    /// The quoted packet's destination.
    pub inner_dst_be: A,
    /// The quoted packet's source port.
    pub inner_src_port_be: u16,
    /// The quoted packet's destination port.
    pub inner_dst_port_be: u16,
}

impl<A> Segment<A> {
    /// Is this the first segment of a TCP connection, a SYN without ACK? Every UDP
    /// datagram may be the first.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// The sequence number after this segment. SYN and FIN count as one each
    /// (RFC 9293 section 3.4).
    #[inline(always)]
    pub const fn next_seq(&self) -> u32 {
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
    // Most frames have no tag.
    match kind {
        0x0800 => return Ok(Network::V4(at)),
        0x86dd => return Ok(Network::V6(at)),
        _ => {}
    }
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
        let [offset, _] = frame.forget([at as u32, 0]);
        at = offset as usize;
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

/// The fixed part of an IPv4 header (RFC 791 section 3.1).
struct Ipv4 {
    header: usize,
    total: u16,
    protocol: u8,
    id_be: u16,
    /// More fragments follow.
    more: bool,
    /// Not the first fragment.
    later: bool,
    src_be: V4,
    dst_be: V4,
}

/// Reads an IPv4 header.
#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Ipv4, Reason> {
    let ip = frame.window::<IPV4_LEN>(l3).ok_or(Reason::Malformed)?;
    let version_ihl = ip.u8::<0>();
    let header = ((version_ihl & 0xf) as usize) * 4;
    if version_ihl >> 4 != 4 || header < IPV4_LEN {
        return Err(Reason::Malformed);
    }
    let fragment = ip.u16_be::<6>();
    Ok(Ipv4 {
        header,
        id_be: ip.u16_be::<4>(),
        more: fragment & 0x2000_u16.to_be() != 0,
        later: fragment & 0x1fff_u16.to_be() != 0,
        total: u16::from_be(ip.u16_be::<2>()),
        protocol: ip.u8::<9>(),
        src_be: V4(ip.u32_be::<12>()),
        dst_be: V4(ip.u32_be::<16>()),
    })
}

/// Tells what the IPv4 packet at `l3` carries, or why it is nothing of ours.
#[inline(always)]
pub fn content_v4<F: Frame + ?Sized, C: Content<V4>>(
    frame: &F,
    l3: usize,
    content: C,
) -> Result<C::Outcome, Reason> {
    let mut ip = ipv4(frame, l3)?;
    if C::GLANCE {
        if ip.protocol != TCP || ip.more || ip.later || ip.header != IPV4_LEN {
            return content.beyond();
        }
        // Known, but the compiler forgets.
        ip.header = IPV4_LEN;
    }
    let total = match ip.total as usize {
        // A GSO super-packet of more than 64 KiB has no length (Linux 6.3, BIG TCP).
        0 if frame.length() - l3 > 0xffff => frame.length() - l3,
        total => total,
    };
    let end = l3 + total;
    if total < ip.header || !frame.holds(end) {
        return Err(Reason::Malformed);
    }
    let length = total - ip.header;
    let l4 = l3 + ip.header;
    let id_be = ip.id_be as u32;
    if ip.later {
        return content.piece(Piece {
            l3,
            src_be: ip.src_be,
            dst_be: ip.dst_be,
            id_be,
            protocol: ip.protocol,
        });
    }
    let ends = Ends {
        l3,
        l4,
        src_be: ip.src_be,
        dst_be: ip.dst_be,
        end,
        fragmented: ip.more,
        id_be,
    };
    match ip.protocol {
        TCP => content.segment(tcp(frame, length, ends)?),
        UDP => content.segment(udp(frame, length, ends)?),
        ICMP if ip.more => Err(Reason::Fragment),
        ICMP => {
            let icmp = frame.window::<ICMP_LEN>(l4).ok_or(Reason::Malformed)?;
            // Destination unreachable, time exceeded, parameter problem.
            if !matches!(icmp.u8::<0>(), 3 | 11 | 12) {
                return Err(Reason::NotSteerable);
            }
            let inner_l3 = l4 + ICMP_LEN;
            let inner = ipv4(frame, inner_l3)?;
            if inner.later {
                return Err(Reason::Fragment);
            }
            let inner_l4 = inner_l3 + inner.header;
            let ports = quoted_ports(frame, inner_l4, inner.protocol)?;
            if inner_l4 + PORTS_LEN > l4 + length {
                return Err(Reason::Malformed);
            }
            content.error(Quoted {
                l3,
                l4,
                inner_l3,
                inner_l4,
                src_be: ip.src_be,
                dst_be: ip.dst_be,
                protocol: inner.protocol,
                inner_src_be: inner.src_be,
                inner_dst_be: inner.dst_be,
                inner_src_port_be: ports[0],
                inner_dst_port_be: ports[1],
            })
        }
        _ => Err(Reason::NotSteerable),
    }
}

/// The fixed part of an IPv6 header (RFC 8200 section 3).
struct Ipv6 {
    payload: u16,
    next: u8,
    src_be: V6,
    dst_be: V6,
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Ipv6, Reason> {
    let ip = frame.window::<IPV6_LEN>(l3).ok_or(Reason::Malformed)?;
    if ip.u8::<0>() >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    Ok(Ipv6 {
        payload: u16::from_be(ip.u16_be::<4>()),
        next: ip.u8::<6>(),
        src_be: V6(ip.words::<8>()),
        dst_be: V6(ip.words::<24>()),
    })
}

/// Tells what the IPv6 packet at `l3` carries, or why it is nothing of ours.
#[inline(always)]
pub fn content_v6<F: Frame + ?Sized, C: Content<V6>>(
    frame: &F,
    l3: usize,
    content: C,
) -> Result<C::Outcome, Reason> {
    let ip = ipv6(frame, l3)?;
    if C::GLANCE && ip.next != TCP {
        return content.beyond();
    }
    let start = l3 + IPV6_LEN;
    let payload = match ip.payload as usize {
        // A jumbogram (RFC 2675), or a super-packet as in IPv4.
        0 if frame.length() - start > 0xffff => frame.length() - start,
        payload => payload,
    };
    let end = start + payload;
    if !frame.holds(end) {
        return Err(Reason::Malformed);
    }
    let walk = extensions(frame, start, ip.next)?;
    let l4 = start + walk.length;
    if payload < walk.length {
        return Err(Reason::Malformed);
    }
    let length = payload - walk.length;
    if walk.later {
        return content.piece(Piece {
            l3,
            src_be: ip.src_be,
            dst_be: ip.dst_be,
            id_be: walk.id_be,
            protocol: 0,
        });
    }
    let ends = Ends {
        l3,
        l4,
        src_be: ip.src_be,
        dst_be: ip.dst_be,
        end,
        fragmented: walk.more,
        id_be: walk.id_be,
    };
    match walk.next {
        TCP => content.segment(tcp(frame, length, ends)?),
        UDP => content.segment(udp(frame, length, ends)?),
        ICMPV6 if walk.more => Err(Reason::Fragment),
        ICMPV6 => {
            let icmp = frame.window::<ICMP_LEN>(l4).ok_or(Reason::Malformed)?;
            // Destination unreachable, packet too big, time exceeded, parameter problem.
            if !matches!(icmp.u8::<0>(), 1..=4) {
                return Err(Reason::NotSteerable);
            }
            let inner_l3 = l4 + ICMP_LEN;
            let inner = ipv6(frame, inner_l3)?;
            let inner_l4 = inner_l3 + IPV6_LEN;
            let ports = quoted_ports(frame, inner_l4, inner.next)?;
            if inner_l4 + PORTS_LEN > l4 + length {
                return Err(Reason::Malformed);
            }
            content.error(Quoted {
                l3,
                l4,
                inner_l3,
                inner_l4,
                src_be: ip.src_be,
                dst_be: ip.dst_be,
                protocol: inner.next,
                inner_src_be: inner.src_be,
                inner_dst_be: inner.dst_be,
                inner_src_port_be: ports[0],
                inner_dst_port_be: ports[1],
            })
        }
        _ => Err(Reason::NotSteerable),
    }
}

/// What stands behind the extension headers.
struct Walk {
    /// The protocol.
    next: u8,
    /// Their length together.
    length: usize,
    /// More fragments follow.
    more: bool,
    /// Not the first fragment.
    later: bool,
    /// The identification, if there is a fragment header.
    id_be: u32,
}

/// Walks over extension headers from `at` on, to the first header of another kind or
/// to the contents of a later fragment.
#[inline(always)]
fn extensions<F: Frame + ?Sized>(frame: &F, at: usize, next: u8) -> Result<Walk, Reason> {
    let mut walk = Walk {
        next,
        length: 0,
        more: false,
        later: false,
        id_be: 0,
    };
    if is_upper(next) {
        return Ok(walk);
    }
    for _ in 0..EXTENSIONS {
        let here = at + walk.length;
        match walk.next {
            // Hop-by-hop options, destination options (RFC 8200 sections 4.3 and 4.6).
            0 | 60 => {}
            // Routing: while segments are left the destination is not the last one, and the
            // checksum is over another address (RFC 8200 sections 4.4 and 8.1).
            43 => {
                let routing = frame.window::<4>(here).ok_or(Reason::Malformed)?;
                if routing.u8::<3>() != 0 {
                    return Err(Reason::ExtensionHeader);
                }
            }
            // Fragment (RFC 8200 section 4.5). One with neither offset nor more to come is
            // whole (RFC 6946).
            44 => {
                // A fragment of a fragment: which of them the others follow is not known.
                if walk.more {
                    return Err(Reason::ExtensionHeader);
                }
                let fragment = frame.window::<8>(here).ok_or(Reason::Malformed)?;
                let offset = u16::from_be(fragment.u16_be::<2>());
                walk.next = fragment.u8::<0>();
                walk.length += 8;
                walk.more = offset & 1 != 0;
                walk.later = offset >> 3 != 0;
                walk.id_be = fragment.u32_be::<4>();
                if walk.later {
                    break;
                }
                continue;
            }
            // Authentication, mobility, host identity, shim6.
            51 | 135 | 139 | 140 => return Err(Reason::ExtensionHeader),
            _ => break,
        }
        let header = frame.window::<2>(here).ok_or(Reason::Malformed)?;
        walk.next = header.u8::<0>();
        walk.length += (header.u8::<1>() as usize + 1) * 8;
    }
    let [length, next, more, later, id_be] = frame.forget([
        walk.length as u32,
        walk.next as u32,
        walk.more as u32,
        walk.later as u32,
        walk.id_be,
    ]);
    walk = Walk {
        next: next as u8,
        length: length as usize,
        more: more != 0,
        later: later != 0,
        id_be,
    };
    if walk.later || is_upper(walk.next) {
        return Ok(walk);
    }
    Err(match walk.next {
        0 | 43 | 44 | 60 => Reason::ExtensionHeader,
        _ => Reason::NotSteerable,
    })
}

/// Something that may be ours, and no extension header?
#[inline(always)]
const fn is_upper(next: u8) -> bool {
    matches!(next, TCP | UDP | ICMPV6)
}

/// Source and destination port of a quoted packet. Callers see to it that they are not
/// behind the end of the packet that quotes it, in the padding of the frame.
#[inline(always)]
fn quoted_ports<F: Frame + ?Sized>(frame: &F, at: usize, protocol: u8) -> Result<[u16; 2], Reason> {
    if !matches!(protocol, TCP | UDP) {
        return Err(Reason::NotSteerable);
    }
    let ports = frame.window::<PORTS_LEN>(at).ok_or(Reason::Malformed)?;
    Ok([ports.u16_be::<0>(), ports.u16_be::<2>()])
}

/// What is known of a segment before its own header is read.
struct Ends<A> {
    l3: usize,
    l4: usize,
    src_be: A,
    dst_be: A,
    end: usize,
    fragmented: bool,
    id_be: u32,
}

/// The TCP header with `length` bytes of header and payload (RFC 9293 section 3.1).
#[inline(always)]
fn tcp<F: Frame + ?Sized, A: Address>(
    frame: &F,
    length: usize,
    ends: Ends<A>,
) -> Result<Segment<A>, Reason> {
    let tcp = frame.window::<TCP_LEN>(ends.l4).ok_or(Reason::Malformed)?;
    let header = (tcp.u8::<12>() >> 4) as usize * 4;
    if header < TCP_LEN || header > length {
        return Err(Reason::Malformed);
    }
    Ok(Segment {
        l3: ends.l3,
        l4: ends.l4,
        protocol: TCP,
        src_be: ends.src_be,
        dst_be: ends.dst_be,
        src_port_be: tcp.u16_be::<0>(),
        dst_port_be: tcp.u16_be::<2>(),
        seq: u32::from_be(tcp.u32_be::<4>()),
        ack: u32::from_be(tcp.u32_be::<8>()),
        flags: tcp.u8::<13>(),
        options: (header - TCP_LEN) as u8,
        window_be: tcp.u16_be::<14>(),
        payload: (length - header) as u32,
        end: ends.end as u32,
        fragmented: ends.fragmented,
        id_be: ends.id_be,
    })
}

/// The UDP header with `length` bytes of header and payload (RFC 768). Its own length
/// field may be zero in a super-packet, and less than the IP packet's; it is more only
/// in the first of several fragments.
#[inline(always)]
fn udp<F: Frame + ?Sized, A: Address>(
    frame: &F,
    length: usize,
    ends: Ends<A>,
) -> Result<Segment<A>, Reason> {
    let udp = frame.window::<UDP_LEN>(ends.l4).ok_or(Reason::Malformed)?;
    let own = u16::from_be(udp.u16_be::<4>()) as usize;
    let beyond = own > length && !ends.fragmented;
    if length < UDP_LEN || beyond || (own != 0 && own < UDP_LEN) {
        return Err(Reason::Malformed);
    }
    Ok(Segment {
        l3: ends.l3,
        l4: ends.l4,
        protocol: UDP,
        src_be: ends.src_be,
        dst_be: ends.dst_be,
        src_port_be: udp.u16_be::<0>(),
        dst_port_be: udp.u16_be::<2>(),
        seq: 0,
        ack: 0,
        flags: 0,
        options: 0,
        window_be: 0,
        payload: (length - UDP_LEN) as u32,
        end: ends.end as u32,
        fragmented: ends.fragmented,
        id_be: ends.id_be,
    })
}
