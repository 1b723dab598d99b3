//! A client's SYN: what another one needs to be like it, and that other one.
//!
//! An endpoint that refuses a SYN answers with a RST (RFC 9293 section 3.10.7.1), which
//! becomes the SYN to the next endpoint: the same ends but one, sequence number, window, flags
//! and options (RFC 7323 and RFC 2018 are negotiated in them). Payload is never sent again: TCP
//! Fast Open (RFC 7413) has its client repeat what a SYN-ACK does not acknowledge.
//!
//! The RST is changed in place. What its checksum is, complete or owed by the kernel, only
//! the kernel knows, hence sums of what changes ([`Again::header_change`],
//! [`Again::pseudo_change`]) for its helpers; XDP writes a complete one.

use super::{
    Frame, FrameMut, Segment,
    checksum::Sum,
    parse::{IPV4_LEN, IPV6_LEN, TCP, TCP_LEN},
    put_u16, put_u32,
    reset::{Answer, HOP_LIMIT},
    rewrite::{IPV4_CHECKSUM, TCP_CHECKSUM},
};
use crate::abi::{Address, More, OPTION_WORDS, SYN_WORDS, Syn, V4, V6, pair};

/// Bytes of options that systems mostly send: Linux's.
const USUAL: usize = SYN_WORDS * 4;

/// What is remembered of a SYN without options or with as many as usual. `None` for others:
/// [`read`] takes the time for those.
#[inline(always)]
pub fn glance<A, F: Frame + ?Sized>(frame: &F, segment: &Segment<A>, seen: u32) -> Option<Syn> {
    let mut syn = bare(segment, seen);
    match segment.options as usize {
        0 => {}
        USUAL => {
            let options = frame.window::<USUAL>(segment.l4 + TCP_LEN)?;
            syn.options = [options.u64_be::<0>(), options.u64_be::<8>()];
            syn.last = options.u32_be::<16>();
        }
        _ => return None,
    }
    Some(syn)
}

/// All but the options themselves.
#[inline(always)]
fn bare<A>(segment: &Segment<A>, seen: u32) -> Syn {
    Syn {
        seq: segment.seq,
        window: segment.window_be as u32 | segment.payload.min(0xffff) << 16,
        what: Syn::what(seen, segment.options as u32 / 4, segment.flags),
        ..Syn::default()
    }
}

/// What is remembered of any SYN, with the words of options beyond the first five. A frame that
/// is shorter than when it was parsed gives it fewer options.
#[inline(always)]
pub fn read<A, F: Frame + ?Sized>(
    frame: &F,
    segment: &Segment<A>,
    seen: u32,
    syn: &mut Syn,
    more: &mut More,
) {
    let mut words = [0; OPTION_WORDS];
    let mut count = 0;
    for word in &mut words {
        if count >= segment.options as usize / 4 {
            break;
        }
        let Some(option) = frame.window::<4>(segment.l4 + TCP_LEN + count * 4) else {
            break;
        };
        *word = option.u32_be::<0>();
        count += 1;
    }
    *syn = Syn {
        what: Syn::what(seen, count as u32, segment.flags),
        options: [pair(words[0], words[1]), pair(words[2], words[3])],
        last: words[4],
        ..bare(segment, seen)
    };
    *more = [words[5], words[6], words[7], words[8], words[9]];
}

/// The four ends of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    /// Source address.
    pub src_be: A,
    /// Destination address.
    pub dst_be: A,
    /// Source port.
    pub src_port_be: u16,
    /// Destination port.
    pub dst_port_be: u16,
}

/// What the families do differently when a RST becomes a SYN.
pub trait Again: Answer {
    /// The IP header between these ends, of a packet with so many bytes behind it.
    fn header(ends: &Ends<Self>, length: usize) -> Self::Header;
}

impl Again for V4 {
    #[inline(always)]
    fn header(ends: &Ends<Self>, length: usize) -> [u8; 20] {
        let mut new = [0; IPV4_LEN];
        new[0] = 0x45;
        put_u16::<2, 20>(&mut new, ((IPV4_LEN + length) as u16).to_be());
        // Not to be fragmented, hence without identification (RFC 6864 section 4.1).
        put_u16::<6, 20>(&mut new, 0x4000_u16.to_be());
        let ttl_protocol = u16::from_be_bytes([HOP_LIMIT, TCP]).to_be();
        put_u16::<8, 20>(&mut new, ttl_protocol);
        put_u32::<12, 20>(&mut new, ends.src_be.0);
        put_u32::<16, 20>(&mut new, ends.dst_be.0);
        let sum = Sum::new()
            .add_u16(0x4500_u16.to_be())
            .add_u16(((IPV4_LEN + length) as u16).to_be())
            .add_u16(0x4000_u16.to_be())
            .add_u16(ttl_protocol)
            .add_u32(ends.src_be.0)
            .add_u32(ends.dst_be.0);
        put_u16::<IPV4_CHECKSUM, 20>(&mut new, sum.store().0);
        new
    }
}

impl Again for V6 {
    #[inline(always)]
    fn header(ends: &Ends<Self>, length: usize) -> [u8; 40] {
        let mut new = [0; 40];
        new[0] = 0x60;
        put_u16::<4, 40>(&mut new, (length as u16).to_be());
        put_u16::<6, 40>(&mut new, u16::from_be_bytes([TCP, HOP_LIMIT]).to_be());
        let [a, b, c, d] = ends.src_be.0;
        put_u32::<8, 40>(&mut new, a);
        put_u32::<12, 40>(&mut new, b);
        put_u32::<16, 40>(&mut new, c);
        put_u32::<20, 40>(&mut new, d);
        let [a, b, c, d] = ends.dst_be.0;
        put_u32::<24, 40>(&mut new, a);
        put_u32::<28, 40>(&mut new, b);
        put_u32::<32, 40>(&mut new, c);
        put_u32::<36, 40>(&mut new, d);
        new
    }
}

/// May this RST become a SYN? It has to be the plain one that hosts send: nothing between
/// the headers or behind them.
#[inline(always)]
pub fn may_become<A: Address>(rst: &Segment<A>) -> bool {
    let plain = if A::VERSION == 4 { IPV4_LEN } else { IPV6_LEN };
    rst.l4 == rst.l3 + plain && rst.options == 0 && rst.payload == 0 && !rst.fragmented
}

/// The TCP header of the SYN between these ends, its checksum zero.
#[inline(always)]
pub fn tcp_header<A>(syn: &Syn, ends: &Ends<A>) -> [u8; TCP_LEN] {
    let mut new = [0; TCP_LEN];
    put_u16::<0, TCP_LEN>(&mut new, ends.src_port_be);
    put_u16::<2, TCP_LEN>(&mut new, ends.dst_port_be);
    put_u32::<4, TCP_LEN>(&mut new, syn.seq.to_be());
    let offset = ((TCP_LEN / 4) as u8 + syn.words() as u8) << 4;
    put_u16::<12, TCP_LEN>(&mut new, u16::from_be_bytes([offset, syn.flags()]).to_be());
    put_u16::<14, TCP_LEN>(&mut new, syn.window_be());
    new
}

/// What that header and the options add up to.
#[inline(always)]
fn sum<A>(syn: &Syn, more: &More, ends: &Ends<A>) -> Sum {
    let offset = ((TCP_LEN / 4) as u8 + syn.words() as u8) << 4;
    let [a, b, c, d, e] = syn.option_words();
    let [f, g, h, i, j] = *more;
    Sum::new()
        .add_u16(ends.src_port_be)
        .add_u16(ends.dst_port_be)
        .add_u32(syn.seq.to_be())
        .add_u16(u16::from_be_bytes([offset, syn.flags()]).to_be())
        .add_u16(syn.window_be())
        .add_u32(a)
        .add_u32(b)
        .add_u32(c)
        .add_u32(d)
        .add_u32(e)
        .add_u32(f)
        .add_u32(g)
        .add_u32(h)
        .add_u32(i)
        .add_u32(j)
}

/// Bytes of the SYN's TCP header, options included.
#[inline(always)]
pub const fn length(syn: &Syn) -> usize {
    TCP_LEN + syn.words() as usize * 4
}

/// What the change from the RST's TCP header, which [`may_become`] a SYN, to the SYN's, options
/// included, adds to the checksum over it. `None` if the frame is shorter than when it was parsed.
#[inline(always)]
pub fn header_change<A: Again, F: Frame + ?Sized>(
    frame: &F,
    rst: &Segment<A>,
    syn: &Syn,
    more: &More,
    ends: &Ends<A>,
) -> Option<Sum> {
    let old = frame.window::<TCP_LEN>(rst.l4)?;
    let before = Sum::new()
        .add_u32(old.u32_be::<0>())
        .add_u32(old.u32_be::<4>())
        .add_u32(old.u32_be::<8>())
        .add_u32(old.u32_be::<12>())
        .add_u16(old.u16_be::<18>());
    Some(sum(syn, more, ends).add_u16(!before.fold()))
}

/// The same of the pseudo-header.
#[inline(always)]
pub fn pseudo_change<A: Again>(rst: &Segment<A>, syn: &Syn, ends: &Ends<A>) -> Sum {
    let before = rst.src_be.sum().add(rst.dst_be.sum());
    ends.src_be
        .sum()
        .add(ends.dst_be.sum())
        .replace_u16((TCP_LEN as u16).to_be(), (length(syn) as u16).to_be())
        .add_u16(!before.fold())
}

/// The words of options in the order of the packet.
#[inline(always)]
pub fn options(syn: &Syn, more: &More) -> [u32; OPTION_WORDS] {
    let [a, b, c, d, e] = syn.option_words();
    let [f, g, h, i, j] = *more;
    [a, b, c, d, e, f, g, h, i, j]
}

/// Writes the SYN over a RST that [`may_become`] one. The frame has the SYN's length already, see
/// [`length`].
#[inline(always)]
pub fn apply<A: Again, F: FrameMut + ?Sized>(
    frame: &mut F,
    rst: &Segment<A>,
    syn: &Syn,
    more: &More,
    ends: &Ends<A>,
) -> Option<()> {
    let mut tcp = tcp_header(syn, ends);
    let pseudo = ends
        .src_be
        .sum()
        .add(ends.dst_be.sum())
        .add_u16((TCP as u16).to_be())
        .add_u16((length(syn) as u16).to_be());
    let checksum = sum(syn, more, ends).add(pseudo).store();
    put_u16::<TCP_CHECKSUM, TCP_LEN>(&mut tcp, checksum.0);
    *frame.window_mut::<TCP_LEN>(rst.l4)? = tcp;
    let words = options(syn, more);
    let count = syn.words() as usize;
    for (i, word) in words.iter().enumerate() {
        if i >= count {
            break;
        }
        *frame.window_mut::<4>(rst.l4 + TCP_LEN + i * 4)? = word.to_ne_bytes();
    }
    A::write(frame, rst.l3, &A::header(ends, length(syn)))
}
