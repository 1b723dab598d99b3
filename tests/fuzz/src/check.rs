//! What must hold for any frame.
//!
//! Expected bytes are written here by hand, from offsets of the RFCs, not by the code
//! under test. Checksums are compared by what is left of them when all they cover is
//! added up (see [`residue`]): right ones stay right, and wrong ones stay wrong, so that
//! nobody takes a broken packet for a whole one because it came through us.

use probe_ebpf::{
    abi::{Reason, V4, V6},
    packet::{
        Content, Frame, FrameMut, Network, Piece, Quoted, Segment, Window, network,
        parse::{ACK, RST, TCP, TCP_LEN, UDP, content_v4, content_v6},
        reset::{self, Answer},
        rewrite::{self, Family, Side, Translation},
        too_long::{self, Report},
    },
};

use crate::{
    case::Case,
    opinion::{self, icmp_of, pseudo_tail, residue},
};

/// What the parser found in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried<A> {
    /// A TCP segment or a UDP datagram.
    Segment(Segment<A>),
    /// An ICMP error about one.
    Error(Quoted<A>),
    /// A later fragment.
    Piece(Piece<A>),
}

/// What the parser found in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An IPv4 packet.
    V4(Carried<V4>),
    /// An IPv6 packet.
    V6(Carried<V6>),
}

/// Takes everything.
struct Keep;

impl<A> Content<A> for Keep {
    type Outcome = Carried<A>;
    fn segment(self, segment: Segment<A>) -> Result<Carried<A>, Reason> {
        Ok(Carried::Segment(segment))
    }
    fn error(self, quoted: Quoted<A>) -> Result<Carried<A>, Reason> {
        Ok(Carried::Error(quoted))
    }
    fn piece(self, piece: Piece<A>) -> Result<Carried<A>, Reason> {
        Ok(Carried::Piece(piece))
    }
}

/// Parses a frame.
pub fn look<F: Frame + ?Sized>(frame: &F) -> Result<Found, Reason> {
    match network(frame)? {
        Network::V4(l3) => content_v4(frame, l3, Keep).map(Found::V4),
        Network::V6(l3) => content_v6(frame, l3, Keep).map(Found::V6),
    }
}

/// What the families do differently here.
pub trait Ip: Family + Answer + Report {
    /// Offset of the source address in the IP header.
    const SRC: usize;
    /// Offset of the destination address.
    const DST: usize;
    /// From the bytes of a decision.
    fn of(bytes: [u8; 16]) -> Self;
    /// The bytes in the packet.
    fn raw(self) -> Vec<u8>;
    /// Length of the IP packet, by its own word.
    fn length(packet: &[u8]) -> usize;
    /// What was found, if it is of this family.
    fn carried(found: Found) -> Option<Carried<Self>>;
}

impl Ip for V4 {
    const SRC: usize = 12;
    const DST: usize = 16;

    fn of([a, b, c, d, ..]: [u8; 16]) -> Self {
        Self::from_bytes([a, b, c, d])
    }

    fn raw(self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    fn length(packet: &[u8]) -> usize {
        u16::from_be_bytes([packet[2], packet[3]]).into()
    }

    fn carried(found: Found) -> Option<Carried<Self>> {
        match found {
            Found::V4(carried) => Some(carried),
            _ => None,
        }
    }
}

impl Ip for V6 {
    const SRC: usize = 8;
    const DST: usize = 24;

    fn of(bytes: [u8; 16]) -> Self {
        Self::from_bytes(bytes)
    }

    fn raw(self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    fn length(packet: &[u8]) -> usize {
        40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))
    }

    fn carried(found: Found) -> Option<Carried<Self>> {
        match found {
            Found::V6(carried) => Some(carried),
            _ => None,
        }
    }
}

/// A frame of which only the head can be reached, as of a packet of several buffers.
struct Head<'a>(&'a mut [u8], usize);

impl Frame for Head<'_> {
    fn length(&self) -> usize {
        self.1
    }

    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        (*self.0).window(offset)
    }
}

impl FrameMut for Head<'_> {
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.0.window_mut(offset)
    }
}

/// Checks everything about one case (see [`Case`] for its bytes). Panics where
/// something does not hold.
pub fn check(data: &[u8]) {
    let Some(case) = Case::read(data) else { return };
    let mut frame = case.frame();
    if case.is_longer() {
        // Twice: lengths that the packet may claim, and those that only a super-packet has.
        for more in [usize::from(case.client_port), 0x2_0000] {
            let length = frame.len() + more;
            head(&mut Head(&mut frame, length), &case);
        }
        return;
    }
    let found = look(&*frame);
    opinion::agree(&frame, &found);
    match found {
        Ok(Found::V4(carried)) => carry(&frame, carried, &case),
        Ok(Found::V6(carried)) => carry(&frame, carried, &case),
        Err(_) => {}
    }
}

/// A frame that is only partly there is parsed and changed within what is there.
fn head(frame: &mut Head, case: &Case) {
    fn change<A: Ip>(frame: &mut Head, carried: Carried<A>, case: &Case) {
        let translation = translation(case);
        match carried {
            Carried::Segment(segment) => {
                assert!(segment.l4 + 8 <= frame.0.len());
                rewrite::apply(frame, &segment, case.side(), &translation).expect("it was parsed");
                if segment.protocol == TCP {
                    reset::apply(frame, &segment).expect("it was parsed");
                    assert!(reset::length(&segment) <= frame.0.len());
                }
            }
            Carried::Error(quoted) => {
                rewrite::apply_error(frame, &quoted, case.side(), &translation)
                    .expect("it was parsed");
            }
            Carried::Piece(piece) => {
                rewrite::apply_piece(frame, &piece, case.side(), &translation)
                    .expect("it was parsed");
            }
        }
    }
    match look(frame) {
        Ok(Found::V4(carried)) => change(frame, carried, case),
        Ok(Found::V6(carried)) => change(frame, carried, case),
        Err(_) => {}
    }
}

fn translation<A: Ip>(case: &Case) -> Translation<A> {
    Translation {
        addr_be: A::of(case.address),
        port_be: case.port.to_be(),
        client_be: A::default(),
        client_port_be: case.client_port.to_be(),
    }
}

/// Does to the frame what the case says, and checks what comes out.
fn carry<A: Ip>(frame: &[u8], carried: Carried<A>, case: &Case) {
    let side = case.side();
    let there = translation::<A>(case);
    let mut cut = frame[..usize::from(case.port) % frame.len()].to_vec();
    let untouched = cut.clone();
    let mut after = Box::<[u8]>::from(frame);
    let in_cut = match carried {
        Carried::Segment(segment) => {
            // The client keeps its address here; the packet library's own tests hide it.
            let client_be = match side {
                Side::Destination => segment.src_be,
                Side::Source => segment.dst_be,
            };
            let there = Translation { client_be, ..there };
            rewrite::apply(&mut *after, &segment, side, &there).expect("it was parsed");
            check_segment(frame, &after, &segment, side, &there);
            let back = match side {
                Side::Destination => (segment.dst_be, segment.dst_port_be, segment.src_port_be),
                Side::Source => (segment.src_be, segment.src_port_be, segment.dst_port_be),
            };
            let Carried::Segment(seen) = again::<A>(&after) else {
                panic!("a translated segment is none any more");
            };
            let back = Translation {
                client_be,
                ..translation_of(back)
            };
            rewrite::apply(&mut *after, &seen, side, &back).expect("it was parsed");
            check_back(frame, &after, &sums(&segment));
            check_report(frame, &segment, case.client_port);
            if segment.protocol == TCP && segment.flags & RST == 0 {
                let mut answer = Box::<[u8]>::from(frame);
                reset::apply(&mut *answer, &segment).expect("it was parsed");
                check_reset(frame, &answer[..reset::length(&segment)], &segment);
                if reset::apply(cut.as_mut_slice(), &segment).is_none() {
                    assert_eq!(cut, untouched, "half a RST in a frame that became shorter");
                }
                cut.clone_from(&untouched);
            }
            rewrite::apply(cut.as_mut_slice(), &segment, side, &there)
        }
        Carried::Error(quoted) => {
            // With the client's address kept, and hidden.
            let (_, _, back) = error_back(&quoted, side);
            for client_be in [back.client_be, hidden(case)] {
                let there = Translation { client_be, ..there };
                let mut after = Box::<[u8]>::from(frame);
                rewrite::apply_error(&mut *after, &quoted, side, &there).expect("it was parsed");
                check_error(frame, &after, &quoted, side, &there);
                // An address that the error did not share before and does now would be taken
                // back in both places. Who hides the client hides the reporter too.
                let (outer, outer_client, back) = error_back(&quoted, side);
                let shared = outer == back.addr_be;
                let told = if client_be == back.client_be {
                    shared || outer != there.addr_be
                } else {
                    shared && outer_client == back.client_be
                };
                if told {
                    let Carried::Error(seen) = again::<A>(&after) else {
                        panic!("a translated error is none any more");
                    };
                    rewrite::apply_error(&mut *after, &seen, side, &back).expect("it was parsed");
                    let mut sums = vec![quoted.l4 + 2];
                    if A::VERSION == 4 {
                        sums.extend([quoted.l3 + 10, quoted.inner_l3 + 10]);
                    }
                    check_back(frame, &after, &sums);
                }
            }
            let client_be = hidden(case);
            let there = Translation { client_be, ..there };
            rewrite::apply_error(cut.as_mut_slice(), &quoted, side, &there)
        }
        Carried::Piece(piece) => {
            let (addr_be, kept) = match side {
                Side::Destination => (piece.dst_be, piece.src_be),
                Side::Source => (piece.src_be, piece.dst_be),
            };
            for client_be in [kept, hidden(case)] {
                let there = Translation { client_be, ..there };
                let mut after = Box::<[u8]>::from(frame);
                rewrite::apply_piece(&mut *after, &piece, side, &there).expect("it was parsed");
                check_piece(frame, &after, &piece, side, &there);
                let Carried::Piece(seen) = again::<A>(&after) else {
                    panic!("a translated fragment is none any more");
                };
                let back = Translation {
                    client_be: kept,
                    ..translation_of((addr_be, 0, 0))
                };
                rewrite::apply_piece(&mut *after, &seen, side, &back).expect("it was parsed");
                let sums = if A::VERSION == 4 {
                    vec![piece.l3 + 10]
                } else {
                    Vec::new()
                };
                check_back(frame, &after, &sums);
            }
            let client_be = hidden(case);
            let there = Translation { client_be, ..there };
            rewrite::apply_piece(cut.as_mut_slice(), &piece, side, &there)
        }
    };
    if in_cut.is_none() {
        assert_eq!(
            cut, untouched,
            "half a change in a frame that became shorter"
        );
    }
}

/// Another address of the case's, behind which a client is hidden.
fn hidden<A: Ip>(case: &Case) -> A {
    let mut bytes = case.address;
    bytes.reverse();
    A::of(bytes)
}

fn translation_of<A: Ip>((addr_be, port_be, client_port_be): (A, u16, u16)) -> Translation<A> {
    Translation {
        addr_be,
        port_be,
        client_be: A::default(),
        client_port_be,
    }
}

/// The error's own address on the server's side and on the client's, and the translation
/// that leads back.
fn error_back<A: Ip>(quoted: &Quoted<A>, side: Side) -> (A, A, Translation<A>) {
    let (src, dst) = (
        (quoted.inner_src_be, quoted.inner_src_port_be),
        (quoted.inner_dst_be, quoted.inner_dst_port_be),
    );
    let (outer, outer_client, server, client) = match side {
        Side::Destination => (quoted.dst_be, quoted.src_be, src, dst),
        Side::Source => (quoted.src_be, quoted.dst_be, dst, src),
    };
    let back = Translation {
        addr_be: server.0,
        port_be: server.1,
        client_be: client.0,
        client_port_be: client.1,
    };
    (outer, outer_client, back)
}

/// Parses what we made ourselves.
fn again<A: Ip>(frame: &[u8]) -> Carried<A> {
    let found = look(frame).expect("what we made can be parsed");
    opinion::agree(frame, &Ok(found));
    A::carried(found).expect("the family did not change")
}

/// Offsets of the checksums that cover a segment.
fn sums<A: Ip>(segment: &Segment<A>) -> Vec<usize> {
    let mut at = vec![segment.l4 + if segment.protocol == UDP { 6 } else { 16 }];
    if A::VERSION == 4 {
        at.push(segment.l3 + 10);
    }
    at
}

/// There and back again: every byte as before, but that a checksum that stood as 0xffff
/// may have become the other zero. RFC 1624 section 3 is why it never becomes 0xffff.
fn check_back(before: &[u8], after: &[u8], sums: &[usize]) {
    let plain = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        for at in sums {
            if frame[*at..at + 2] == [0xff, 0xff] {
                frame[*at..at + 2].fill(0);
            }
        }
        frame
    };
    assert_bytes(&plain(after), &plain(before), "there and back again");
}

/// Compares and shows where the difference is.
fn assert_bytes(is: &[u8], wanted: &[u8], what: &str) {
    if is != wanted {
        let at = is.iter().zip(wanted).position(|(a, b)| a != b);
        panic!("{what}: differs at {at:?}\n is     {is:02x?}\n wanted {wanted:02x?}");
    }
}

/// Writes bytes into what is expected.
fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The frame without these checksums, which are compared by [`residue`].
fn blank(frame: &[u8], sums: &[usize]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for at in sums {
        put(&mut frame, *at, &[0, 0]);
    }
    frame
}

/// What is left of the IPv4 header's checksum; nothing for IPv6, which has none.
fn header_residue<A: Ip>(frame: &[u8], l3: usize) -> u16 {
    if A::VERSION == 6 {
        return 0;
    }
    let header = usize::from(frame[l3] & 0xf) * 4;
    // Quotations may end within their options.
    match frame.get(l3..l3 + header) {
        Some(header) => residue(&[], header),
        None => 0,
    }
}

/// What is left of the checksum over everything from `l4` on.
fn inner_residue<A: Ip>(frame: &[u8], l3: usize, l4: usize, protocol: u8) -> u16 {
    let end = l3 + A::length(&frame[l3..]);
    let covered = &frame[l4..end];
    // In IPv4 no pseudo-header belongs to ICMP (RFC 792).
    if A::VERSION == 4 && protocol == icmp_of(4) {
        return residue(&[], covered);
    }
    let addresses = &frame[l3 + A::SRC..l3 + A::DST + (A::DST - A::SRC)];
    residue(&[addresses, &pseudo_tail(protocol, covered.len())], covered)
}

/// Offsets of the server's address in the packet and in what it quotes, where the
/// client's is the other way round.
const fn sides<A: Ip>(side: Side) -> (usize, usize) {
    match side {
        Side::Destination => (A::DST, A::SRC),
        Side::Source => (A::SRC, A::DST),
    }
}

/// Source and destination port after a translation of `side`.
fn ports<A>(side: Side, there: &Translation<A>) -> [u8; 4] {
    let (server, client) = (
        there.port_be.to_ne_bytes(),
        there.client_port_be.to_ne_bytes(),
    );
    match side {
        Side::Destination => [client[0], client[1], server[0], server[1]],
        Side::Source => [server[0], server[1], client[0], client[1]],
    }
}

/// Was the segment translated, and nothing else?
pub fn check_segment<A: Ip>(
    before: &[u8],
    after: &[u8],
    segment: &Segment<A>,
    side: Side,
    there: &Translation<A>,
) {
    let Segment { l3, l4, .. } = *segment;
    let mut wanted = before.to_vec();
    put(&mut wanted, l3 + sides::<A>(side).0, &there.addr_be.raw());
    put(&mut wanted, l4, &ports(side, there));
    let sums = sums(segment);
    assert_bytes(&blank(after, &sums), &blank(&wanted, &sums), "translated");
    assert_eq!(
        header_residue::<A>(after, l3),
        header_residue::<A>(before, l3),
        "the IPv4 header's checksum"
    );
    let field = l4 + 6;
    if segment.protocol == UDP && before[field..field + 2] == [0, 0] {
        assert_eq!(after[field..field + 2], [0, 0], "there was no checksum");
        return;
    }
    if segment.protocol == UDP {
        assert_ne!(after[field..field + 2], [0, 0], "there was a checksum");
    }
    assert_eq!(
        inner_residue::<A>(after, l3, l4, segment.protocol),
        inner_residue::<A>(before, l3, l4, segment.protocol),
        "the checksum of protocol {}",
        segment.protocol
    );
}

/// Was the error translated, and nothing else?
pub fn check_error<A: Ip>(
    before: &[u8],
    after: &[u8],
    quoted: &Quoted<A>,
    side: Side,
    there: &Translation<A>,
) {
    let Quoted {
        l3, l4, inner_l3, ..
    } = *quoted;
    // In the quotation the sides are exchanged.
    let (outer_at, inner_at) = sides::<A>(side);
    let inner_side = match side {
        Side::Destination => Side::Source,
        Side::Source => Side::Destination,
    };
    let (outer, _, old) = error_back(quoted, side);
    let mut wanted = before.to_vec();
    put(&mut wanted, inner_l3 + inner_at, &there.addr_be.raw());
    put(&mut wanted, inner_l3 + outer_at, &there.client_be.raw());
    put(&mut wanted, quoted.inner_l4, &ports(inner_side, there));
    let hides = there.client_be != old.client_be;
    if outer == old.addr_be || hides {
        put(&mut wanted, l3 + outer_at, &there.addr_be.raw());
    }
    if hides {
        put(&mut wanted, l3 + inner_at, &there.client_be.raw());
    }
    let mut sums = vec![l4 + 2];
    if A::VERSION == 4 {
        sums.extend([l3 + 10, inner_l3 + 10]);
    }
    assert_bytes(&blank(after, &sums), &blank(&wanted, &sums), "translated");
    for l3 in [l3, inner_l3] {
        assert_eq!(
            header_residue::<A>(after, l3),
            header_residue::<A>(before, l3),
            "the checksum of the IPv4 header at {l3}"
        );
    }
    assert_eq!(
        inner_residue::<A>(after, l3, l4, icmp_of(A::VERSION)),
        inner_residue::<A>(before, l3, l4, icmp_of(A::VERSION)),
        "the ICMP checksum"
    );
}

/// Did the fragment get its addresses, and nothing else?
pub fn check_piece<A: Ip>(
    before: &[u8],
    after: &[u8],
    piece: &Piece<A>,
    side: Side,
    there: &Translation<A>,
) {
    let (server_at, client_at) = sides::<A>(side);
    let mut wanted = before.to_vec();
    put(&mut wanted, piece.l3 + server_at, &there.addr_be.raw());
    put(&mut wanted, piece.l3 + client_at, &there.client_be.raw());
    let sums: &[usize] = if A::VERSION == 4 {
        &[piece.l3 + 10]
    } else {
        &[]
    };
    assert_bytes(&blank(after, sums), &blank(&wanted, sums), "translated");
    assert_eq!(
        header_residue::<A>(after, piece.l3),
        header_residue::<A>(before, piece.l3),
        "the IPv4 header's checksum"
    );
}

/// Is what stands before the segment that is too long an ICMP error about it, whether or
/// not the kernel still sums the segment up?
fn check_report<A: Ip>(frame: &[u8], segment: &Segment<A>, mtu: u16) {
    let Segment { l3, l4, .. } = *segment;
    let (field, sum) = too_long::quoted(frame, segment).expect("it was parsed");
    let Some(head) = A::head(frame, segment, mtu, sum) else {
        assert!(A::VERSION == 6 && l4 != l3 + 40 && l4 != l3 + 48);
        return;
    };
    let mut answer = frame[..l3].to_vec();
    answer.extend(head.as_ref());
    answer.extend(&frame[l3..too_long::end(segment)]);
    let (icmp, shift) = (l3 + A::HEAD - 8, A::HEAD);
    let at = too_long::checksum_at(segment) + shift;
    put(&mut answer, at, &field.to_ne_bytes());
    assert_eq!(A::length(&answer[l3..]), answer.len() - l3, "its length");
    let (src, dst) = (segment.dst_be.raw(), segment.src_be.raw());
    assert_eq!(answer[l3 + A::SRC..][..src.len()], src);
    assert_eq!(answer[l3 + A::DST..][..dst.len()], dst);
    assert_eq!(answer[icmp + 6..icmp + 8], mtu.to_be_bytes());
    assert_eq!(header_residue::<A>(&answer, l3), 0);
    // A wrong header stays as wrong as it was.
    let wrong = header_residue::<A>(frame, l3);
    let sums_up = |answer: &[u8]| {
        let left = inner_residue::<A>(answer, l3, icmp, icmp_of(A::VERSION));
        assert_eq!(left, wrong, "the ICMP checksum");
    };
    sums_up(&answer);
    // As a device does: the sum of what is there, complemented.
    let completed = residue(&[], &answer[l4 + shift..]);
    put(&mut answer, at, &completed.to_ne_bytes());
    sums_up(&answer);
    let plain = l4 == l3 + 40 || A::VERSION == 4;
    if plain && wrong == 0 && !segment.fragmented {
        let Carried::Error(seen) = again::<A>(&answer) else {
            panic!("no error about a segment");
        };
        assert_eq!(
            (seen.inner_src_port_be, seen.inner_dst_port_be),
            (segment.src_port_be, segment.dst_port_be)
        );
    }
}

/// Is this the RST that a host without the connection answers the segment with
/// (RFC 9293 section 3.10.7.1), a whole packet of its own?
pub fn check_reset<A: Ip>(before: &[u8], answer: &[u8], segment: &Segment<A>) {
    let Segment { l3, .. } = *segment;
    // The link header turned round, tags kept.
    let mut wanted = before[..l3].to_vec();
    wanted[..12].rotate_left(6);
    let (header_end, sums): (_, &[usize]) = if A::VERSION == 4 {
        (segment.l4, &[l3 + 10])
    } else {
        (l3 + 40, &[])
    };
    // The IP header, options included, extension headers not.
    wanted.extend(&before[l3..header_end]);
    put(&mut wanted, l3 + A::SRC, &segment.dst_be.raw());
    put(&mut wanted, l3 + A::DST, &segment.src_be.raw());
    if A::VERSION == 4 {
        let total = (header_end - l3 + TCP_LEN) as u16;
        put(&mut wanted, l3 + 2, &total.to_be_bytes());
        // It is whole, whatever it answers.
        wanted[l3 + 6] &= !0x20;
        wanted[l3 + 8] = 64;
    } else {
        put(&mut wanted, l3 + 4, &(TCP_LEN as u16).to_be_bytes());
        put(&mut wanted, l3 + 6, &[TCP, 64]);
    }
    let headers = blank(&answer[..header_end], sums);
    assert_bytes(&headers, &blank(&wanted, sums), "headers of a RST");
    assert_eq!(answer.len(), header_end + TCP_LEN, "length of a RST");
    let right = header_residue::<A>(before, l3);
    assert_eq!(
        header_residue::<A>(answer, l3),
        right,
        "the IPv4 header's checksum"
    );
    opinion::is_reset(answer, right == 0);

    let Carried::Segment(seen) = again::<A>(answer) else {
        panic!("a RST that we do not take for a segment ourselves");
    };
    assert_eq!(
        (seen.src_port_be, seen.dst_port_be),
        (segment.dst_port_be, segment.src_port_be)
    );
    let numbers = if segment.flags & ACK != 0 {
        (segment.ack, 0, RST)
    } else {
        (0, segment.next_seq(), RST | ACK)
    };
    assert_eq!((seen.seq, seen.ack, seen.flags), numbers);

    // Where the kernel still owes the checksum, the field must hold the sum of the
    // pseudo-header: no residue when the field's complement is added to it.
    let field = [answer[header_end + 16], answer[header_end + 17]].map(|byte| !byte);
    let addresses = &answer[l3 + A::SRC..l3 + A::DST + (A::DST - A::SRC)];
    let left = residue(&[addresses, &pseudo_tail(TCP, TCP_LEN)], &field);
    assert_eq!(left, 0, "not right as a partial checksum");
}
