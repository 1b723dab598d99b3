//! A translated segment or ICMP error: new address and port on the server's side, perhaps a
//! new port on the client's, checksums kept right incrementally.
//!
//! Offsets and the sums of what changes are computed here for everybody.
//! [`apply`] writes them straight into the frame, which is right where checksums
//! are complete (XDP, host). TC programs hand [`Change::address`] and
//! [`Change::ports`] to the kernel's helpers instead, since only the kernel knows
//! whether a checksum is partial.

use super::{
    Frame, FrameMut, Piece, Quoted, Segment, Window,
    checksum::{Stored, Sum},
    parse::{ICMP_LEN, IPV4_LEN, UDP},
    put_u16, put_u32,
};
use crate::abi::{Address, V4, V6};

/// Which side of the segment carries the server's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From client to VIP: the destination becomes the endpoint.
    Destination,
    /// From endpoint to client: the source becomes the VIP.
    Source,
}

impl Side {
    /// The client's side.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Destination => Self::Source,
            Self::Source => Self::Destination,
        }
    }
}

/// The new addresses of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<A> {
    /// The server's new address.
    pub addr_be: A,
    /// The server's new port.
    pub port_be: u16,
    /// The client's address from here on.
    pub client_be: A,
    /// The client's port from here on.
    pub client_port_be: u16,
}

impl<A: Address> Translation<A> {
    /// No translation, where a value must stand.
    #[inline(always)]
    pub fn nothing() -> Self {
        Self {
            addr_be: A::default(),
            port_be: 0,
            client_be: A::default(),
            client_port_be: 0,
        }
    }

    /// Does it leave the segment as it is?
    #[inline(always)]
    pub fn is_identity(&self, segment: &Segment<A>, side: Side) -> bool {
        let [ours, client_be] = match side {
            Side::Destination => [segment.dst_be, segment.src_be],
            Side::Source => [segment.src_be, segment.dst_be],
        };
        let [port_be, client_port_be] = match side {
            Side::Destination => [segment.dst_port_be, segment.src_port_be],
            Side::Source => [segment.src_port_be, segment.dst_port_be],
        };
        self.addr_be == ours
            && self.port_be == port_be
            && self.client_be == client_be
            && self.client_port_be == client_port_be
    }
}

/// Where the bytes are that change, and by how much the checksums do.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Offset of the server's address.
    pub addr_at: usize,
    /// Source and destination port as they shall stand, in this order.
    pub ports_be: [u16; 2],
    /// Does the client's address change?
    pub client_changes: bool,
    /// Sum of the change of both addresses; it counts in the IPv4 header's checksum
    /// and, by the pseudo-header, in TCP's.
    pub address: Sum,
    /// Sum of the change of both ports; it counts in TCP's checksum only.
    pub ports: Sum,
    /// Does any port change?
    pub ports_change: bool,
}

/// Offset of the TCP checksum in its header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the UDP checksum in its header.
pub const UDP_CHECKSUM: usize = 6;
/// Offset of the ICMP and ICMPv6 checksum in its header.
pub const ICMP_CHECKSUM: usize = 2;
/// Offset of the IPv4 header checksum in its header.
pub const IPV4_CHECKSUM: usize = 10;

/// What differs between the families when an address is replaced.
pub trait Family: Address {
    /// Offset of the address within the IP header.
    fn addr_at(side: Side) -> usize;
    /// The change of the sum.
    fn change(old: Self, new: Self) -> Sum;
    /// Writes the address and, if the family has one, the header's checksum.
    fn write<F: FrameMut + ?Sized>(
        frame: &mut F,
        l3: usize,
        side: Side,
        new: Self,
        delta: Sum,
    ) -> Option<()>;
}

impl Family for V4 {
    #[inline(always)]
    fn addr_at(side: Side) -> usize {
        match side {
            Side::Source => 12,
            Side::Destination => 16,
        }
    }

    #[inline(always)]
    fn change(old: Self, new: Self) -> Sum {
        Sum::new().replace_u32(old.0, new.0)
    }

    #[inline(always)]
    fn write<F: FrameMut + ?Sized>(
        frame: &mut F,
        l3: usize,
        side: Side,
        new: Self,
        delta: Sum,
    ) -> Option<()> {
        let ip = frame.window_mut::<20>(l3)?;
        let old = Stored(Window(ip).u16_be::<IPV4_CHECKSUM>());
        put_u16::<IPV4_CHECKSUM, 20>(ip, old.update(delta).0);
        match side {
            Side::Source => put_u32::<12, 20>(ip, new.0),
            Side::Destination => put_u32::<16, 20>(ip, new.0),
        }
        Some(())
    }
}

impl Family for V6 {
    #[inline(always)]
    fn addr_at(side: Side) -> usize {
        match side {
            Side::Source => 8,
            Side::Destination => 24,
        }
    }

    #[inline(always)]
    fn change(old: Self, new: Self) -> Sum {
        Sum::new()
            .replace_u32(old.0[0], new.0[0])
            .replace_u32(old.0[1], new.0[1])
            .replace_u32(old.0[2], new.0[2])
            .replace_u32(old.0[3], new.0[3])
    }

    #[inline(always)]
    fn write<F: FrameMut + ?Sized>(
        frame: &mut F,
        l3: usize,
        side: Side,
        new: Self,
        _delta: Sum,
    ) -> Option<()> {
        let addr = frame.window_mut::<16>(l3 + Self::addr_at(side))?;
        put_u32::<0, 16>(addr, new.0[0]);
        put_u32::<4, 16>(addr, new.0[1]);
        put_u32::<8, 16>(addr, new.0[2]);
        put_u32::<12, 16>(addr, new.0[3]);
        Some(())
    }
}

/// What `translation` changes in `segment`.
#[inline(always)]
pub fn change<A: Family>(segment: &Segment<A>, side: Side, translation: &Translation<A>) -> Change {
    let (old, old_client, ports_be) = match side {
        Side::Destination => (
            segment.dst_be,
            segment.src_be,
            [translation.client_port_be, translation.port_be],
        ),
        Side::Source => (
            segment.src_be,
            segment.dst_be,
            [translation.port_be, translation.client_port_be],
        ),
    };
    let client_changes = translation.client_be != old_client;
    let mut address = A::change(old, translation.addr_be);
    if client_changes {
        address = address.add(A::change(old_client, translation.client_be));
    }
    let [src, dst] = ports_be;
    Change {
        addr_at: segment.l3 + A::addr_at(side),
        ports_be,
        client_changes,
        address,
        ports: Sum::new()
            .replace_u16(segment.src_port_be, src)
            .replace_u16(segment.dst_port_be, dst),
        ports_change: src != segment.src_port_be || dst != segment.dst_port_be,
    }
}

/// Translates the segment in the frame. `None` if the frame is shorter than it
/// was when parsed; nothing is written then.
#[inline(always)]
pub fn apply<A: Family, F: FrameMut + ?Sized>(
    frame: &mut F,
    segment: &Segment<A>,
    side: Side,
    translation: &Translation<A>,
) -> Option<()> {
    let change = change(segment, side, translation);
    let delta = change.address.add(change.ports);
    let [src, dst] = change.ports_be;
    if segment.protocol == UDP {
        let udp = frame.window_mut::<8>(segment.l4)?;
        let old = Window(udp).u16_be::<UDP_CHECKSUM>();
        put_u16::<0, 8>(udp, src);
        put_u16::<2, 8>(udp, dst);
        // Zero means that the sender made none (RFC 768), so a sum that comes out as zero is
        // written as its other representation.
        if old != 0 {
            let new = match Stored(old).update(delta).0 {
                0 => 0xffff,
                new => new,
            };
            put_u16::<UDP_CHECKSUM, 8>(udp, new);
        }
    } else {
        let tcp = frame.window_mut::<20>(segment.l4)?;
        let old = Stored(Window(tcp).u16_be::<TCP_CHECKSUM>());
        put_u16::<0, 20>(tcp, src);
        put_u16::<2, 20>(tcp, dst);
        put_u16::<TCP_CHECKSUM, 20>(tcp, old.update(delta).0);
    }
    A::write(frame, segment.l3, side, translation.addr_be, change.address)?;
    if change.client_changes {
        // The header's checksum has both changes already.
        let client_be = translation.client_be;
        A::write(frame, segment.l3, side.other(), client_be, Sum::new())?;
    }
    Some(())
}

/// Offset of the time to live in the IPv4 header, with the protocol after it.
pub const IPV4_TTL: usize = 8;
/// Offset of the hop limit in the IPv6 header.
pub const IPV6_HOP_LIMIT: usize = 7;

/// Takes one from the time to live, as whoever forwards a packet does (RFC 1812 section
/// 5.3.1). `None` if none would be left, or the frame is shorter than when it was parsed.
#[inline(always)]
pub fn age<A: Family, F: FrameMut + ?Sized>(frame: &mut F, l3: usize) -> Option<()> {
    let ip = frame.window_mut::<20>(l3)?;
    if A::VERSION == 6 {
        let left = Window(ip).u8::<IPV6_HOP_LIMIT>();
        if left < 2 {
            return None;
        }
        ip[IPV6_HOP_LIMIT] = left - 1;
        return Some(());
    }
    let old_be = Window(ip).u16_be::<IPV4_TTL>();
    if Window(ip).u8::<IPV4_TTL>() < 2 {
        return None;
    }
    ip[IPV4_TTL] -= 1;
    let new_be = Window(ip).u16_be::<IPV4_TTL>();
    let sum = Stored(Window(ip).u16_be::<IPV4_CHECKSUM>());
    let sum = sum.update(Sum::new().replace_u16(old_be, new_be));
    put_u16::<IPV4_CHECKSUM, 20>(ip, sum.0);
    Some(())
}

/// Gives a later fragment the addresses that its first one got; it has no other header
/// that knows. The translation's ports mean nothing. `None` if the frame is shorter than
/// it was when parsed; nothing is written then.
#[inline(always)]
pub fn apply_piece<A: Family, F: FrameMut + ?Sized>(
    frame: &mut F,
    piece: &Piece<A>,
    side: Side,
    translation: &Translation<A>,
) -> Option<()> {
    // Its last four bytes are there, so the header is.
    frame.window::<4>(piece.l3 + A::addr_at(Side::Destination) + size_of::<A>() - 4)?;
    let change = piece_change(piece, side, translation);
    let addr_be = translation.addr_be;
    A::write(frame, piece.l3, side, addr_be, change.address)?;
    if change.client_changes {
        // The header's checksum has both changes already.
        let client_be = translation.client_be;
        A::write(frame, piece.l3, side.other(), client_be, Sum::new())?;
    }
    Some(())
}

/// What a translation changes in a later fragment.
#[derive(Clone, Copy, Debug)]
pub struct PieceChange {
    /// Does the client's address change?
    pub client_changes: bool,
    /// Sum of the change of both addresses.
    pub address: Sum,
}

/// What `translation` changes in the fragment.
#[inline(always)]
pub fn piece_change<A: Family>(
    piece: &Piece<A>,
    side: Side,
    translation: &Translation<A>,
) -> PieceChange {
    let (old, old_client) = match side {
        Side::Destination => (piece.dst_be, piece.src_be),
        Side::Source => (piece.src_be, piece.dst_be),
    };
    let client_changes = translation.client_be != old_client;
    let mut address = A::change(old, translation.addr_be);
    if client_changes {
        address = address.add(A::change(old_client, translation.client_be));
    }
    PieceChange {
        client_changes,
        address,
    }
}

/// What a translation changes in an ICMP error.
#[derive(Clone, Copy, Debug)]
pub struct ErrorChange {
    /// Which side of the quotation is the server's: the opposite of the packet's.
    pub inner_side: Side,
    /// The quotation's ports as they shall stand.
    pub inner_ports_be: [u16; 2],
    /// Sum of the change of both quoted addresses, for the quoted IPv4 header.
    pub inner_address: Sum,
    /// Does the packet's own address change too? It does where the server itself is
    /// the error's sender or receiver.
    pub outer: bool,
    /// Does the client's address change? Then it does in both headers, and the server's too,
    /// whoever reports: such an error is sent on from here, and those are the addresses
    /// that the network takes from here. A reporter's own it may not, least of all the
    /// reporter, if the way leads back to it.
    pub client_changes: bool,
    /// Sum of the change of the packet's own addresses, for its IPv4 header.
    pub outer_address: Sum,
    /// Sum of all that the ICMP checksum covers.
    pub icmp: Sum,
}

/// What `translation` changes in the error.
#[inline(always)]
pub fn error_change<A: Family>(
    quoted: &Quoted<A>,
    side: Side,
    translation: &Translation<A>,
) -> ErrorChange {
    let (outer_old, inner_old, inner_ports_be) = match side {
        Side::Destination => (
            quoted.dst_be,
            quoted.inner_src_be,
            [translation.port_be, translation.client_port_be],
        ),
        Side::Source => (
            quoted.src_be,
            quoted.inner_dst_be,
            [translation.client_port_be, translation.port_be],
        ),
    };
    let (outer_client_old, inner_client_old) = match side {
        Side::Destination => (quoted.src_be, quoted.inner_dst_be),
        Side::Source => (quoted.dst_be, quoted.inner_src_be),
    };
    let client_changes = translation.client_be != inner_client_old;
    let outer = outer_old == inner_old || client_changes;
    let mut inner_address = A::change(inner_old, translation.addr_be);
    let mut outer_address = if outer {
        A::change(outer_old, translation.addr_be)
    } else {
        Sum::new()
    };
    if client_changes {
        let client_be = translation.client_be;
        inner_address = inner_address.add(A::change(inner_client_old, client_be));
        outer_address = outer_address.add(A::change(outer_client_old, client_be));
    }
    let ports = Sum::new()
        .replace_u16(quoted.inner_src_port_be, inner_ports_be[0])
        .replace_u16(quoted.inner_dst_port_be, inner_ports_be[1]);
    // The quoted IPv4 header's checksum takes back what its addresses add. ICMPv6 covers the
    // quoted addresses, which have no checksum of their own, and a pseudo-header (RFC 4443 section
    // 2.3). The quoted TCP or UDP checksum is left alone: it may not be there, and nobody checks it.
    let icmp = if A::VERSION == 6 {
        ports.add(inner_address).add(outer_address)
    } else {
        ports
    };
    ErrorChange {
        inner_side: side.other(),
        inner_ports_be,
        inner_address,
        outer,
        client_changes,
        outer_address,
        icmp,
    }
}

/// Translates the ICMP error in the frame. `None` if the frame is shorter than it was
/// when parsed.
#[inline(always)]
pub fn apply_error<A: Family, F: FrameMut + ?Sized>(
    frame: &mut F,
    quoted: &Quoted<A>,
    side: Side,
    translation: &Translation<A>,
) -> Option<()> {
    let change = error_change(quoted, side, translation);
    let ports = frame.window_mut::<4>(quoted.inner_l4)?;
    put_u16::<0, 4>(ports, change.inner_ports_be[0]);
    put_u16::<2, 4>(ports, change.inner_ports_be[1]);
    let icmp = frame.window_mut::<ICMP_LEN>(quoted.l4)?;
    let old = Stored(Window(icmp).u16_be::<ICMP_CHECKSUM>());
    put_u16::<ICMP_CHECKSUM, ICMP_LEN>(icmp, old.update(change.icmp).0);
    A::write(
        frame,
        quoted.inner_l3,
        change.inner_side,
        translation.addr_be,
        change.inner_address,
    )?;
    if change.outer {
        let addr_be = translation.addr_be;
        A::write(frame, quoted.l3, side, addr_be, change.outer_address)?;
    }
    if change.client_changes {
        // The headers' checksums have both changes already.
        let client_be = translation.client_be;
        A::write(frame, quoted.inner_l3, side, client_be, Sum::new())?;
        A::write(frame, quoted.l3, side.other(), client_be, Sum::new())?;
    }
    Some(())
}

/// The checksum that an IPv4 header shall have after `change`, for those who cannot write
/// the frame in place. IPv6 headers have none: what is answered for them means nothing.
#[inline(always)]
pub fn ipv4_checksum<F: Frame + ?Sized>(frame: &F, l3: usize, change: Sum) -> Option<Stored> {
    let ip = frame.window::<IPV4_LEN>(l3)?;
    Some(Stored(ip.u16_be::<IPV4_CHECKSUM>()).update(change))
}

/// The bytes of an IPv6 packet without extension headers from its source address to its
/// ports, as they shall stand.
#[inline(always)]
pub fn ipv6_ends(side: Side, new: V6, client: V6, ports_be: [u16; 2]) -> [u8; 36] {
    let (src_be, dst_be) = match side {
        Side::Destination => (client, new),
        Side::Source => (new, client),
    };
    let mut bytes = [0; 36];
    put_u32::<0, 36>(&mut bytes, src_be.0[0]);
    put_u32::<4, 36>(&mut bytes, src_be.0[1]);
    put_u32::<8, 36>(&mut bytes, src_be.0[2]);
    put_u32::<12, 36>(&mut bytes, src_be.0[3]);
    put_u32::<16, 36>(&mut bytes, dst_be.0[0]);
    put_u32::<20, 36>(&mut bytes, dst_be.0[1]);
    put_u32::<24, 36>(&mut bytes, dst_be.0[2]);
    put_u32::<28, 36>(&mut bytes, dst_be.0[3]);
    put_u16::<32, 36>(&mut bytes, ports_be[0]);
    put_u16::<34, 36>(&mut bytes, ports_be[1]);
    bytes
}

/// The bytes of an IPv4 packet without options from its header's checksum to its ports,
/// as they shall stand.
#[inline(always)]
pub fn ipv4_ends(
    checksum: Stored,
    side: Side,
    new: V4,
    client: V4,
    ports_be: [u16; 2],
) -> [u8; 14] {
    let (src_be, dst_be) = match side {
        Side::Destination => (client, new),
        Side::Source => (new, client),
    };
    let mut bytes = [0; 14];
    put_u16::<0, 14>(&mut bytes, checksum.0);
    put_u32::<2, 14>(&mut bytes, src_be.0);
    put_u32::<6, 14>(&mut bytes, dst_be.0);
    put_u16::<10, 14>(&mut bytes, ports_be[0]);
    put_u16::<12, 14>(&mut bytes, ports_be[1]);
    bytes
}
