//! TC at a client's edge and at an uplink's egress.
//!
//! `probe_forward` sees what clients send, at the ingress of their interface;
//! `probe_reverse` what is sent to them, at its egress. Both leave whatever they
//! do not answer themselves to the programs behind them (`TC_ACT_UNSPEC`, which is
//! TCX_NEXT for TCX).
//!
//! Checksums here may be partial, so they are changed by the kernel's helpers,
//! which know. Two flags of these helpers matter where the device summed the whole
//! packet (CHECKSUM_COMPLETE): the address change of IPv4 is compensated by its
//! header checksum, that of IPv6 is not, so `BPF_F_PSEUDO_HDR` (which also adjusts
//! the packet's sum) must be balanced by `BPF_F_RECOMPUTE_CSUM` when an IPv6
//! address is stored. Linux 6.16 has `BPF_F_IPV6` for this, which saves two sums and a call;
//! the agent says whether it may be used. Balancing works on all.

use core::marker::PhantomData;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode,
    },
    cty::c_void,
    helpers::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room,
        bpf_skb_change_tail, bpf_skb_store_bytes, generated::bpf_redirect_neigh,
    },
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::warn;
use probe_ebpf::{
    abi::{Reason, Syn, V4, V6},
    packet::{
        Content, Frame, Network, Piece, Quoted, Segment,
        checksum::Sum,
        network,
        parse::{
            ETHERNET_LEN, HEADERS_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN, UDP, content_v4, content_v6,
        },
        reset::{self, Answer},
        rewrite::{
            self, Change, Family, ICMP_CHECKSUM, IPV4_CHECKSUM, IPV4_TTL, IPV6_HOP_LIMIT, Side,
            TCP_CHECKSUM, Translation, UDP_CHECKSUM,
        },
        syn::{self, Again},
        too_long::{self, Report},
    },
    steer::{self, Fate, Ruling, Tables, Work},
};

use super::{
    direct::Direct,
    maps::{self, Maps},
    route::{self, Route},
};

/// At the ingress of a client's interface.
#[classifier]
pub fn probe_forward(ctx: TcContext) -> i32 {
    run::<Forward>(&ctx)
}

/// At the egress of a client's interface or of an uplink.
#[classifier]
pub fn probe_reverse(ctx: TcContext) -> i32 {
    run::<Reverse>(&ctx)
}

/// At the ingress of an uplink that has an XDP program: sends on what that left to us.
#[classifier]
pub fn probe_relay(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    match whole::<Relay>(&ctx) {
        TOO_SHORT => TC_ACT_UNSPEC,
        SEGMENT_V4 => segment::<Relay, V4>(skb),
        SEGMENT_V6 => segment::<Relay, V6>(skb),
        action => action,
    }
}

/// What the programs do differently.
trait Direction {
    const SIDE: Side;
    /// Acts only on what is sent on from here; everything else was looked at, and counted,
    /// by an XDP program.
    const ONLY_RELAYS: bool = false;
    /// `look` as in [`steer::forward_fast`].
    fn decide<A: Family>(segment: &Segment<A>, look: impl FnOnce(u32) -> Option<Syn>) -> Ruling<A>
    where
        Maps: Tables<A>;
    fn decide_slow<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>;
    fn decide_error<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>;
    fn count(endpoint: u32, bytes: u64);
}

struct Forward;
struct Reverse;
struct Relay;

impl Direction for Relay {
    const SIDE: Side = Side::Destination;
    const ONLY_RELAYS: bool = true;

    #[inline(always)]
    fn decide<A: Family>(segment: &Segment<A>, look: impl FnOnce(u32) -> Option<Syn>) -> Ruling<A>
    where
        Maps: Tables<A>,
    {
        steer::forward_fast(&Maps, segment, look)
    }

    #[inline(always)]
    fn decide_slow<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>,
    {
        steer::forward_slow(&Maps, work);
    }

    #[inline(always)]
    fn decide_error<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>,
    {
        steer::forward_error(&Maps, work);
    }

    #[inline(always)]
    fn count(endpoint: u32, bytes: u64) {
        maps::count_forward(endpoint, bytes);
    }
}

impl Direction for Forward {
    const SIDE: Side = Side::Destination;

    #[inline(always)]
    fn decide<A: Family>(segment: &Segment<A>, look: impl FnOnce(u32) -> Option<Syn>) -> Ruling<A>
    where
        Maps: Tables<A>,
    {
        steer::forward_fast(&Maps, segment, look)
    }

    #[inline(always)]
    fn decide_slow<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>,
    {
        steer::forward_slow(&Maps, work);
    }

    #[inline(always)]
    fn decide_error<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>,
    {
        steer::forward_error(&Maps, work);
    }

    #[inline(always)]
    fn count(endpoint: u32, bytes: u64) {
        maps::count_forward(endpoint, bytes);
    }
}

impl Direction for Reverse {
    const SIDE: Side = Side::Source;

    #[inline(always)]
    fn decide<A: Family>(segment: &Segment<A>, _: impl FnOnce(u32) -> Option<Syn>) -> Ruling<A>
    where
        Maps: Tables<A>,
    {
        steer::reverse_fast(&Maps, segment)
    }

    #[inline(always)]
    fn decide_slow<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>,
    {
        steer::reverse_slow(&Maps, work);
    }

    #[inline(always)]
    fn decide_error<A: Family>(work: &mut Work<A>)
    where
        Maps: Tables<A>,
    {
        steer::reverse_error(&Maps, work);
    }

    #[inline(always)]
    fn count(endpoint: u32, bytes: u64) {
        maps::count_reverse(endpoint, bytes);
    }
}

/// Most packets take a glance. What takes more is done by functions that then have the stack
/// for themselves; what is more than a TCP segment behind plain headers is read anew.
#[inline(always)]
fn run<D: Direction>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut action = match network(&direct(ctx)) {
        Ok(Network::V4(l3)) => glance_v4::<D>(skb, l3),
        Ok(Network::V6(l3)) => glance_v6::<D>(skb, l3),
        Err(reason) => pass(reason),
    };
    if action == BEYOND || action == TOO_SHORT {
        action = whole::<D>(ctx);
    }
    match action {
        SEGMENT_V4 => segment::<D, V4>(skb),
        SEGMENT_V6 => segment::<D, V6>(skb),
        TOO_SHORT => {
            maps::count(Reason::Malformed);
            TC_ACT_UNSPEC
        }
        action => action,
    }
}

/// No action: the segment in [`Tables::work`] has to be decided about.
const SEGMENT_V4: i32 = i32::MIN + 6;
/// The same in IPv6.
const SEGMENT_V6: i32 = i32::MIN + 7;

/// Lays the segment down for [`segment`].
#[inline(always)]
fn lay_down<A: Family>(segment: Segment<A>, unknown: bool) -> Result<i32, Reason>
where
    Maps: Tables<A>,
{
    let work = Tables::<A>::work(&Maps).ok_or(Reason::RewriteFailed)?;
    work.segment = segment;
    work.unknown = unknown;
    Ok(if A::VERSION == 4 {
        SEGMENT_V4
    } else {
        SEGMENT_V6
    })
}

/// Does what there is to do with the segment in [`Tables::work`], one after the other for the
/// stack's sake.
#[inline(always)]
fn segment<D: Direction, A: Family + Report + Rewrite + Route + Again>(skb: *mut __sk_buff) -> i32
where
    Maps: Tables<A>,
{
    if D::ONLY_RELAYS && !relays::<A>() {
        return TC_ACT_UNSPEC;
    }
    if let Side::Destination = D::SIDE {
        look::<A>(skb);
    }
    decide::<D, A>();
    match act::<D, A>(skb) {
        RELAY => told::<A>(skb, relay::<A>(skb, Side::Destination)),
        REPLY => told::<A>(skb, relay::<A>(skb, Side::Source)),
        AGAIN => again::<A>(skb),
        action => action,
    }
}

/// Is the segment in [`Tables::work`] one to be sent on?
#[inline(always)]
fn relays<A: Family>() -> bool
where
    Maps: Tables<A>,
{
    Tables::<A>::work(&Maps).is_some_and(|work| steer::relays(&Maps, work))
}

/// Reads what the segment in [`Tables::work`] says if it is a SYN.
#[inline(never)]
fn look<A: Family>(skb: *mut __sk_buff)
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    if let Some(work) = Tables::<A>::work(&Maps) {
        steer::look_at(&Maps, &direct(ctx), work);
    }
}

/// Everything about a packet. Its headers may lie outside the linear part of the buffer;
/// then they are brought in.
#[inline(always)]
fn whole<D: Direction>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let wanted = ctx.len().min(HEADERS_LEN as u32);
    if ctx.data() + wanted as usize > ctx.data_end() {
        // If it fails, parsing finds out what is missing.
        let _ = ctx.pull_data(wanted);
    }
    match network(&direct(ctx)) {
        Ok(Network::V4(l3)) => v4::<D>(skb, l3),
        Ok(Network::V6(l3)) => v6::<D>(skb, l3),
        Err(reason) => pass(reason),
    }
}

/// Stands for [`Reason::Malformed`] until it is clear that nothing can be done about it.
const TOO_SHORT: i32 = i32::MIN;

/// Leaves the packet to whoever comes next.
#[inline(always)]
fn pass(reason: Reason) -> i32 {
    if let Reason::Malformed = reason {
        return TOO_SHORT;
    }
    maps::count(reason);
    TC_ACT_UNSPEC
}

/// The part of the packet that may be touched directly now.
#[inline(always)]
fn direct(ctx: &TcContext) -> Direct<usize> {
    // SAFETY: of the context that the kernel called us with; callers drop the result before a
    // helper moves memory.
    unsafe {
        let end = &raw const (*ctx.skb.skb).data_end;
        Direct::new(ctx.data(), end, ctx.len() as usize)
    }
}

/// No action: a glance was not enough.
const BEYOND: i32 = i32::MIN + 1;

/// An IPv4 packet at a glance.
#[inline(never)]
fn glance_v4<D: Direction>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let ctx = &TcContext::new(skb);
    content_v4(&direct(ctx), l3, Glance::<D>(ctx, PhantomData)).unwrap_or_else(pass)
}

/// An IPv6 packet at a glance.
#[inline(never)]
fn glance_v6<D: Direction>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let ctx = &TcContext::new(skb);
    content_v6(&direct(ctx), l3, Glance::<D>(ctx, PhantomData)).unwrap_or_else(pass)
}

/// An IPv4 packet that takes more than a glance.
#[inline(never)]
fn v4<D: Direction>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let ctx = &TcContext::new(skb);
    content_v4(&direct(ctx), l3, Steer::<D>(ctx, PhantomData)).unwrap_or_else(pass)
}

/// An IPv6 packet that takes more than a glance.
#[inline(never)]
fn v6<D: Direction>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let ctx = &TcContext::new(skb);
    content_v6(&direct(ctx), l3, Steer::<D>(ctx, PhantomData)).unwrap_or_else(pass)
}

/// Acts on a TCP segment that takes no more than one look.
struct Glance<'a, D>(&'a TcContext, PhantomData<D>);

impl<D: Direction, A: Family + Answer + Rewrite + Route> Content<A> for Glance<'_, D>
where
    Maps: Tables<A>,
{
    type Outcome = i32;
    const GLANCE: bool = true;

    #[inline(always)]
    fn beyond(self) -> Result<i32, Reason> {
        Ok(BEYOND)
    }

    #[inline(always)]
    fn error(self, _: Quoted<A>) -> Result<i32, Reason> {
        Err(Reason::NotSteerable)
    }

    #[inline(always)]
    fn piece(self, _: Piece<A>) -> Result<i32, Reason> {
        Err(Reason::Fragment)
    }

    #[inline(always)]
    fn segment(self, segment: Segment<A>) -> Result<i32, Reason> {
        let ctx = self.0;
        let Ruling {
            fate,
            reason,
            endpoint,
            translation,
        } = D::decide(&segment, |clock| syn::glance(&direct(ctx), &segment, clock));
        match fate {
            Fate::Pass => Err(reason),
            Fate::Translate => {
                let bytes = ctx.len() as u64;
                // The compiler cannot see that this is so, and would look whether it changes.
                let client_be = match D::SIDE {
                    Side::Destination => segment.src_be,
                    Side::Source => segment.dst_be,
                };
                let translation = Translation {
                    client_be,
                    ..translation
                };
                translate(ctx, &segment, D::SIDE, &translation).ok_or(Reason::RewriteFailed)?;
                D::count(endpoint, bytes);
                Ok(TC_ACT_UNSPEC)
            }
            _ => lay_down(segment, reason == Reason::NotSteered),
        }
    }
}

/// Acts on whatever a packet carries.
struct Steer<'a, D>(&'a TcContext, PhantomData<D>);

impl<D: Direction, A: Family + Report + Rewrite + Route> Content<A> for Steer<'_, D>
where
    Maps: Tables<A>,
{
    type Outcome = i32;

    #[inline(always)]
    fn error(self, quoted: Quoted<A>) -> Result<i32, Reason> {
        let work = Tables::<A>::work(&Maps).ok_or(Reason::RewriteFailed)?;
        work.quoted = quoted;
        let skb = self.0.skb.skb;
        // One after the other, for the stack's sake.
        decide_error::<D, A>();
        Ok(match error::<D, A>(skb) {
            RELAY => relay_error::<A>(skb, Side::Destination),
            REPLY => relay_error::<A>(skb, Side::Source),
            action => action,
        })
    }

    #[inline(always)]
    fn piece(self, piece: Piece<A>) -> Result<i32, Reason> {
        let work = Tables::<A>::work(&Maps).ok_or(Reason::RewriteFailed)?;
        work.piece = piece;
        let skb = self.0.skb.skb;
        Ok(match follow::<D, A>(skb) {
            RELAY => relay_piece::<A>(skb, Side::Destination),
            REPLY => relay_piece::<A>(skb, Side::Source),
            action => action,
        })
    }

    #[inline(always)]
    fn segment(self, segment: Segment<A>) -> Result<i32, Reason> {
        lay_down(segment, false)
    }
}

/// The sender of what [`relay`] found too long is told.
#[inline(always)]
fn told<A: Family + Report>(skb: *mut __sk_buff, action: i32) -> i32
where
    Maps: Tables<A>,
{
    if action == TOO_LONG {
        report::<A>(skb)
    } else {
        action
    }
}

/// Decides about the ICMP error in [`Tables::work`].
#[inline(never)]
fn decide_error<D: Direction, A: Family>()
where
    Maps: Tables<A>,
{
    if let Some(work) = Tables::<A>::work(&Maps) {
        D::decide_error(work);
    }
}

/// Acts on the ICMP error in [`Tables::work`].
#[inline(never)]
fn error<D: Direction, A: Family + Rewrite>(skb: *mut __sk_buff) -> i32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    match work.ruling.fate {
        Fate::Relay => return RELAY,
        Fate::Reply => return REPLY,
        _ if D::ONLY_RELAYS => return TC_ACT_UNSPEC,
        Fate::Pass => return pass(work.ruling.reason),
        _ => {}
    }
    let ctx = &TcContext::new(skb);
    match translate_error(ctx, &work.quoted, D::SIDE, &work.ruling.translation) {
        Some(()) => pass(Reason::ErrorTranslated),
        None => pass(Reason::RewriteFailed),
    }
}

/// Acts on the later fragment in [`Tables::work`].
#[inline(never)]
fn follow<D: Direction, A: Family + Rewrite>(skb: *mut __sk_buff) -> i32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    steer::follow(&Maps, work, D::SIDE);
    match work.ruling.fate {
        Fate::Relay => return RELAY,
        Fate::Reply => return REPLY,
        _ if D::ONLY_RELAYS => return TC_ACT_UNSPEC,
        Fate::Pass => return pass(work.ruling.reason),
        _ => {}
    }
    let ctx = &TcContext::new(skb);
    let bytes = ctx.len() as u64;
    if translate_piece(ctx, &work.piece, D::SIDE, &work.ruling.translation).is_none() {
        return pass(Reason::RewriteFailed);
    }
    D::count(work.ruling.endpoint, bytes);
    TC_ACT_UNSPEC
}

/// Translates the ICMP error in [`Tables::work`] and hands it to the kernel to be sent.
#[inline(never)]
fn relay_error<A: Family + Rewrite + Route>(skb: *mut __sk_buff, side: Side) -> i32
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let out = way_out(skb, work);
    match out {
        NO_WAY => return pass(Reason::NotForwarded),
        HERE => return TC_ACT_UNSPEC,
        _ => {}
    }
    let done = A::age(ctx, work.quoted.l3).and_then(|()| {
        if work.ends_change() {
            translate_error(ctx, &work.quoted, side, &work.ruling.translation)
        } else {
            Some(())
        }
    });
    if done.is_none() {
        return pass(Reason::RewriteFailed);
    }
    maps::count(Reason::ErrorTranslated);
    send(out, work)
}

/// The same with the later fragment in [`Tables::work`].
#[inline(never)]
fn relay_piece<A: Family + Rewrite + Route>(skb: *mut __sk_buff, side: Side) -> i32
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let out = way_out(skb, work);
    match out {
        NO_WAY => return pass(Reason::NotForwarded),
        HERE => return TC_ACT_UNSPEC,
        _ => {}
    }
    let bytes = ctx.len() as u64;
    let done = A::age(ctx, work.piece.l3)
        .and_then(|()| translate_piece(ctx, &work.piece, side, &work.ruling.translation));
    if done.is_none() {
        return pass(Reason::RewriteFailed);
    }
    match side {
        Side::Destination => maps::count_forward(work.ruling.endpoint, bytes),
        Side::Source => maps::count_reverse(work.ruling.endpoint, bytes),
    }
    send(out, work)
}

/// No interface has this index.
const NO_WAY: u32 = 0;
/// Nor this: the packet is where it goes.
const HERE: u32 = u32::MAX;

/// The interface by which the ICMP error or later fragment leaves, or [`NO_WAY`] or [`HERE`].
#[inline(always)]
fn way_out<A: Family + Route>(skb: *mut __sk_buff, work: &Work<A>) -> u32 {
    // SAFETY: reads a field of the context that the kernel filled in.
    let ifindex = unsafe { (*skb).ifindex };
    let (found, params) = route::find(skb.cast(), ifindex, work.ends[0], work.hop, 0);
    let leads = found == route::FOUND || found == route::NO_NEIGHBOUR;
    if leads && (work.ends_change() || A::next_hop(&params) == work.hop) {
        params.ifindex
    } else if found == route::NOT_FORWARDED && !work.ends_change() {
        HERE
    } else {
        NO_WAY
    }
}

/// Has the kernel send it to the next hop, whose hardware address it finds out.
#[inline(always)]
fn send<A: Family + Route>(ifindex: u32, work: &Work<A>) -> i32 {
    if !work.ends_change() {
        return send_to(ifindex, work.hop);
    }
    // SAFETY: only numbers are passed; without parameters the kernel asks its routes again.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Decides about the segment in [`Tables::work`].
#[inline(never)]
fn decide<D: Direction, A: Family>()
where
    Maps: Tables<A>,
{
    if let Some(work) = Tables::<A>::work(&Maps) {
        D::decide_slow(work);
    }
}

/// Translates the segment in [`Tables::work`] and hands it to the kernel to be sent, which
/// finds out the next hop's hardware address if need be.
#[inline(never)]
fn relay<A: Family + Rewrite + Route>(skb: *mut __sk_buff, side: Side) -> i32
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let Translation {
        addr_be, client_be, ..
    } = work.ruling.translation;
    let (from, to) = match side {
        Side::Destination => (client_be, work.hop),
        Side::Source => (addr_be, work.hop),
    };
    // With direct server return the packet keeps its destination, which is not where it goes.
    let as_it_is = side == Side::Destination && to != addr_be;
    // SAFETY: reads a field of the context that the kernel filled in.
    let ifindex = unsafe { (*skb).ifindex };
    let length = longest(skb, &work.segment);
    let (found, params) = route::find(skb.cast(), ifindex, from, to, length);
    if found == route::TOO_LONG {
        work.mtu = route::mtu(&params, length);
        return TOO_LONG;
    }
    let bytes = ctx.len() as u64;
    if as_it_is && found == route::NOT_FORWARDED {
        // The node is the endpoint.
        maps::count_forward(work.ruling.endpoint, bytes);
        return TC_ACT_UNSPEC;
    }
    let leads = found == route::FOUND || found == route::NO_NEIGHBOUR;
    if !leads || (as_it_is && A::next_hop(&params) != to) {
        return pass(Reason::NotForwarded);
    }
    let done = A::age(ctx, work.segment.l3)
        .and_then(|()| translate(ctx, &work.segment, side, &work.ruling.translation));
    if done.is_none() {
        return pass(Reason::RewriteFailed);
    }
    match side {
        Side::Destination => maps::count_forward(work.ruling.endpoint, bytes),
        Side::Source => maps::count_reverse(work.ruling.endpoint, bytes),
    }
    if as_it_is {
        return send_to(params.ifindex, to);
    }
    // SAFETY: only numbers are passed; without parameters the kernel asks its routes again.
    unsafe { bpf_redirect_neigh(params.ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Has the kernel send the packet to this neighbour, whatever its destination.
#[inline(always)]
fn send_to<A: Route>(ifindex: u32, neighbour: A) -> i32 {
    let mut to = neighbour.neighbour();
    let size = size_of_val(&to) as i32;
    // SAFETY: the parameters live on the stack, with their size.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut to, size, 0) as i32 }
}

/// The length of the IP packet, or of each of those that a super-packet becomes. The
/// kernel compares it with the way's MTU; before Linux 5.12 it compares its own, and lets
/// super-packets pass.
#[inline(always)]
fn longest<A>(skb: *mut __sk_buff, segment: &Segment<A>) -> u16 {
    // SAFETY: reads a field of the context that the kernel filled in.
    let size = unsafe { (*skb).gso_size };
    let whole = segment.end - segment.l3 as u32;
    let length = if size == 0 {
        whole
    } else {
        whole - segment.payload + size
    };
    length.min(u16::MAX as u32) as u16
}

/// Turns the segment in [`Tables::work`] into the ICMP error about its length, and sends
/// it back out of the interface it came in by.
#[inline(never)]
fn report<A: Family + Report>(skb: *mut __sk_buff) -> i32
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let segment = &work.segment;
    let mtu = match work.mtu {
        0 => A::LEAST_MTU,
        mtu => mtu,
    };
    match make_report(ctx, segment, mtu) {
        UNTOUCHED => return pass(Reason::NotForwarded),
        DONE => {}
        // Neither the segment nor its answer: nobody must see it.
        _ => {
            maps::count(Reason::ResetFailed);
            return TC_ACT_SHOT;
        }
    }
    maps::count(Reason::TooLong);
    // SAFETY: reads a field of the context that the kernel filled in.
    let ifindex = unsafe { (*skb).ifindex };
    // SAFETY: only numbers are passed. Flags zero mean the egress side.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// What [`make_report`] did.
const UNTOUCHED: u32 = 0;
/// See [`UNTOUCHED`].
const DONE: u32 = 1;
/// See [`UNTOUCHED`].
const HALF: u32 = 2;

#[inline(always)]
fn make_report<A: Report>(ctx: &TcContext, segment: &Segment<A>, mtu: u16) -> u32 {
    // The helper that makes room knows no tags.
    if segment.l3 != ETHERNET_LEN {
        return UNTOUCHED;
    }
    let frame = direct(ctx);
    let Some((field, quoted)) = too_long::quoted(&frame, segment) else {
        return UNTOUCHED;
    };
    let Some(head) = A::head(&frame, segment, mtu, quoted) else {
        return UNTOUCHED;
    };
    let Some(macs) = frame.window::<12>(0).map(reset::swapped_macs) else {
        return UNTOUCHED;
    };
    // SAFETY: only numbers are passed; `frame` is not used after this.
    let error = unsafe {
        bpf_skb_adjust_room(
            ctx.skb.skb,
            A::HEAD as i32,
            bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
            0,
        )
    };
    if error != 0 {
        return UNTOUCHED;
    }
    let end = too_long::end(segment) + A::HEAD;
    // SAFETY: only numbers are passed.
    let error = unsafe { bpf_skb_change_tail(ctx.skb.skb, end as u32, 0) };
    if error != 0 {
        return HALF;
    }
    let recompute = BPF_F_RECOMPUTE_CSUM as u64;
    let checksum_at = too_long::checksum_at(segment) + A::HEAD;
    let written = store(ctx, checksum_at, &field.to_ne_bytes(), recompute)
        .and_then(|()| store(ctx, ETHERNET_LEN, head.as_ref(), recompute))
        .and_then(|()| store(ctx, 0, &macs, 0));
    if written.is_some() { DONE } else { HALF }
}

/// No action: what [`relay`] should have sent is too long for the way.
const TOO_LONG: i32 = i32::MIN + 4;
/// No action: [`relay`] has to do it.
const RELAY: i32 = i32::MIN + 2;
/// The same, towards the client.
const REPLY: i32 = i32::MIN + 3;

/// Does to the segment what was ruled.
#[inline(never)]
fn act<D: Direction, A: Family + Answer + Rewrite + Route>(skb: *mut __sk_buff) -> i32
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let segment = &work.segment;
    let ruling = &work.ruling;
    match ruling.fate {
        Fate::Pass => pass(ruling.reason),
        Fate::Translate | Fate::Slow => {
            let bytes = ctx.len() as u64;
            if translate(ctx, segment, D::SIDE, &ruling.translation).is_none() {
                return pass(Reason::RewriteFailed);
            }
            D::count(ruling.endpoint, bytes);
            TC_ACT_UNSPEC
        }
        Fate::Relay => RELAY,
        Fate::Reply => REPLY,
        Fate::Again => AGAIN,
        Fate::Drop => {
            maps::count(ruling.reason);
            TC_ACT_SHOT
        }
        Fate::Reset => {
            maps::count(ruling.reason);
            // Back to where it came from: an endpoint's segment was about to leave.
            let flags = match D::SIDE {
                Side::Destination => 0,
                Side::Source => BPF_F_INGRESS as u64,
            };
            answer(ctx, segment, flags)
        }
    }
}

/// No action: the RST in [`Tables::work`] becomes a SYN.
const AGAIN: i32 = i32::MIN + 5;

/// Turns the RST in [`Tables::work`] into the SYN that was ruled, which comes in by this
/// interface as its client's did.
#[inline(never)]
fn again<A: Family + Rewrite + Again>(skb: *mut __sk_buff) -> i32
where
    Maps: Tables<A>,
{
    let ctx = &TcContext::new(skb);
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    if make_syn(ctx, work).is_none() {
        // Neither a RST nor a SYN any more: the client repeats its own.
        maps::count(Reason::RewriteFailed);
        return TC_ACT_SHOT;
    }
    // SAFETY: reads a field of the context that the kernel filled in.
    let ifindex = unsafe { (*skb).ifindex };
    // SAFETY: only numbers are passed.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32 }
}

#[inline(always)]
fn make_syn<A: Family + Rewrite + Again>(ctx: &TcContext, work: &Work<A>) -> Option<()> {
    let (rst, more) = (&work.segment, &work.more);
    let ends = work.ruling.ends();
    let frame = direct(ctx);
    let header = syn::header_change(&frame, rst, &work.syn, more, &ends)?;
    let pseudo = syn::pseudo_change(rst, &work.syn, &ends);
    let macs = reset::swapped_macs(frame.window::<12>(0)?);
    let length = syn::length(&work.syn);
    // SAFETY: only numbers are passed; `frame` is not used after this.
    let error = unsafe { bpf_skb_change_tail(ctx.skb.skb, (rst.l4 + length) as u32, 0) };
    if error != 0 {
        return None;
    }
    let tcp = syn::tcp_header(&work.syn, &ends);
    // All but the checksum, which the kernel keeps right or owes.
    store(ctx, rst.l4, &tcp[..TCP_CHECKSUM], 0)?;
    store(ctx, rst.l4 + TCP_CHECKSUM + 2, &tcp[TCP_CHECKSUM + 2..], 0)?;
    let words = syn::options(&work.syn, more);
    let count = work.syn.words() as usize;
    for (i, word) in words.iter().enumerate() {
        if i >= count {
            break;
        }
        store(ctx, rst.l4 + TCP_LEN + i * 4, &word.to_ne_bytes(), 0)?;
    }
    let checksum_at = (rst.l4 + TCP_CHECKSUM) as u32;
    // SAFETY: only numbers are passed; the helper checks the offset.
    let error = unsafe {
        bpf_l4_csum_replace(ctx.skb.skb, checksum_at, 0, header.fold_u32() as u64, 0)
            | bpf_l4_csum_replace(
                ctx.skb.skb,
                checksum_at,
                0,
                pseudo.fold_u32() as u64,
                BPF_F_PSEUDO_HDR as u64,
            )
    };
    if error != 0 {
        return None;
    }
    let ip = A::header(&ends, length);
    store(ctx, rst.l3, ip.as_ref(), A::HEADER_FLAGS)?;
    store(ctx, 0, &macs, 0)
}

/// `bpf_skb_store_bytes`.
#[inline(always)]
fn store(ctx: &TcContext, at: usize, bytes: &[u8], flags: u64) -> Option<()> {
    // SAFETY: the pointer and length are those of a live slice; the helper checks the offset.
    let error = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb,
            at as u32,
            bytes.as_ptr().cast::<c_void>(),
            bytes.len() as u32,
            flags,
        )
    };
    (error == 0).then_some(())
}

/// See [`probe_ebpf::names::IPV6_SUM`].
#[unsafe(no_mangle)]
static PROBE_IPV6_SUM: u64 = 0;

/// What TC programs do differently for the families.
trait Rewrite: Sized {
    /// Flags of `bpf_skb_store_bytes` for a whole IP header: that of IPv4 has a checksum over
    /// itself, so it adds nothing to the packet's sum.
    const HEADER_FLAGS: u64;

    /// Replaces address and ports of a segment and keeps the checksums over them right,
    /// TCP's and UDP's excepted.
    fn ends(
        ctx: &TcContext,
        segment: &Segment<Self>,
        side: Side,
        change: &Change,
        translation: &Translation<Self>,
    ) -> Option<()>;
    /// A flag of `bpf_l4_csum_replace` beside `BPF_F_PSEUDO_HDR`.
    fn sum_flag() -> u64;
    /// Takes one from the time to live; `None` if none would be left.
    fn age(ctx: &TcContext, l3: usize) -> Option<()>;
    /// Changes the IP header's checksum, if there is one.
    fn header_checksum(ctx: &TcContext, l3: usize, delta: Sum) -> Option<()>;
    /// Writes an address, with the flags of `bpf_skb_store_bytes`.
    fn store(ctx: &TcContext, at: usize, addr: Self, flags: u64) -> Option<()>;
}

impl Rewrite for V4 {
    const HEADER_FLAGS: u64 = 0;

    #[inline(always)]
    fn ends(
        ctx: &TcContext,
        segment: &Segment<Self>,
        side: Side,
        change: &Change,
        translation: &Translation<Self>,
    ) -> Option<()> {
        let l3 = segment.l3;
        if segment.l4 == l3 + IPV4_LEN {
            // No options: checksum, both addresses and both ports stand in a row, and each call
            // of a helper costs more than what it writes.
            let sum = rewrite::ipv4_checksum(&direct(ctx), l3, change.address)?;
            let (new, client) = (translation.addr_be, translation.client_be);
            let bytes = rewrite::ipv4_ends(sum, side, new, client, change.ports_be);
            return store(ctx, l3 + IPV4_CHECKSUM, &bytes, 0);
        }
        Self::header_checksum(ctx, l3, change.address)?;
        store(ctx, change.addr_at, &translation.addr_be.bytes(), 0)?;
        if change.client_changes {
            let at = l3 + Self::addr_at(side.other());
            store(ctx, at, &translation.client_be.bytes(), 0)?;
        }
        store_ports(ctx, segment.l4, change)
    }

    #[inline(always)]
    fn sum_flag() -> u64 {
        0
    }

    #[inline(always)]
    fn age(ctx: &TcContext, l3: usize) -> Option<()> {
        let frame = direct(ctx);
        let ip = frame.window::<IPV4_LEN>(l3)?;
        let left = ip.u8::<IPV4_TTL>();
        if left < 2 {
            return None;
        }
        let old_be = ip.u16_be::<IPV4_TTL>();
        let new = [left - 1, ip.u8::<{ IPV4_TTL + 1 }>()];
        let change = Sum::new().replace_u16(old_be, u16::from_ne_bytes(new));
        Self::header_checksum(ctx, l3, change)?;
        store(ctx, l3 + IPV4_TTL, &new, 0)
    }

    #[inline(always)]
    fn header_checksum(ctx: &TcContext, l3: usize, delta: Sum) -> Option<()> {
        let at = (l3 + IPV4_CHECKSUM) as u32;
        // A size of zero makes the helper take the difference ready-made.
        // SAFETY: only numbers are passed; the helper checks the offset.
        let error = unsafe { bpf_l3_csum_replace(ctx.skb.skb, at, 0, delta.fold_u32() as u64, 0) };
        (error == 0).then_some(())
    }

    #[inline(always)]
    fn store(ctx: &TcContext, at: usize, addr: Self, flags: u64) -> Option<()> {
        store(ctx, at, &addr.bytes(), flags)
    }
}

impl Rewrite for V6 {
    const HEADER_FLAGS: u64 = BPF_F_RECOMPUTE_CSUM as u64;

    #[inline(always)]
    fn ends(
        ctx: &TcContext,
        segment: &Segment<Self>,
        side: Side,
        change: &Change,
        translation: &Translation<Self>,
    ) -> Option<()> {
        if Self::sum_flag() != 0 && segment.l4 == segment.l3 + IPV6_LEN {
            let (new, client) = (translation.addr_be, translation.client_be);
            let bytes = rewrite::ipv6_ends(side, new, client, change.ports_be);
            return store(ctx, segment.l3 + Self::addr_at(Side::Source), &bytes, 0);
        }
        let flags = match Self::sum_flag() {
            0 => BPF_F_RECOMPUTE_CSUM as u64,
            _ => 0,
        };
        store(ctx, change.addr_at, &translation.addr_be.bytes(), flags)?;
        if change.client_changes {
            let at = segment.l3 + Self::addr_at(side.other());
            store(ctx, at, &translation.client_be.bytes(), flags)?;
        }
        store_ports(ctx, segment.l4, change)
    }

    #[inline(always)]
    fn sum_flag() -> u64 {
        // SAFETY: the agent writes it before the kernel makes it read-only.
        unsafe { (&raw const PROBE_IPV6_SUM).read_volatile() }
    }

    #[inline(always)]
    fn age(ctx: &TcContext, l3: usize) -> Option<()> {
        let frame = direct(ctx);
        let left = frame.window::<IPV4_LEN>(l3)?.u8::<IPV6_HOP_LIMIT>();
        if left < 2 {
            return None;
        }
        let flags = BPF_F_RECOMPUTE_CSUM as u64;
        store(ctx, l3 + IPV6_HOP_LIMIT, &[left - 1], flags)
    }

    #[inline(always)]
    fn header_checksum(_ctx: &TcContext, _l3: usize, _delta: Sum) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn store(ctx: &TcContext, at: usize, addr: Self, flags: u64) -> Option<()> {
        store(ctx, at, &addr.bytes(), flags)
    }
}

/// Writes both ports, if one of them changes.
#[inline(always)]
fn store_ports(ctx: &TcContext, l4: usize, change: &Change) -> Option<()> {
    if !change.ports_change {
        return Some(());
    }
    let [src, dst] = change.ports_be.map(u16::to_ne_bytes);
    store(ctx, l4, &[src[0], src[1], dst[0], dst[1]], 0)
}

/// Changes addresses, ports and checksums by the kernel's helpers.
#[inline(always)]
fn translate<A: Family + Rewrite>(
    ctx: &TcContext,
    segment: &Segment<A>,
    side: Side,
    translation: &Translation<A>,
) -> Option<()> {
    let change = rewrite::change(segment, side, translation);
    A::ends(ctx, segment, side, &change, translation)?;
    // A UDP checksum of zero means that there is none; with this flag the helper leaves it, and
    // never makes one that looks like it.
    let (checksum, none_is_zero) = if segment.protocol == UDP {
        (UDP_CHECKSUM, BPF_F_MARK_MANGLED_0 as u64)
    } else {
        (TCP_CHECKSUM, 0)
    };
    let checksum_at = (segment.l4 + checksum) as u32;
    // SAFETY: only numbers are passed; the helper checks the offset.
    let error = unsafe {
        bpf_l4_csum_replace(
            ctx.skb.skb,
            checksum_at,
            0,
            change.address.fold_u32() as u64,
            BPF_F_PSEUDO_HDR as u64 | none_is_zero | A::sum_flag(),
        )
    };
    if error != 0 {
        return None;
    }
    if change.ports_change {
        // SAFETY: as above.
        let error = unsafe {
            bpf_l4_csum_replace(
                ctx.skb.skb,
                checksum_at,
                0,
                change.ports.fold_u32() as u64,
                none_is_zero,
            )
        };
        if error != 0 {
            return None;
        }
    }
    Some(())
}

/// Translates an ICMP error. What its bytes add to the packet's sum in one place they
/// take away in another, so CHECKSUM_COMPLETE needs no care here.
#[inline(always)]
fn translate_error<A: Family + Rewrite>(
    ctx: &TcContext,
    quoted: &Quoted<A>,
    side: Side,
    translation: &Translation<A>,
) -> Option<()> {
    let change = rewrite::error_change(quoted, side, translation);
    let inner_checksum =
        rewrite::ipv4_checksum(&direct(ctx), quoted.inner_l3, change.inner_address)?;
    // SAFETY: only numbers are passed; the helper checks the offset.
    let error = unsafe {
        bpf_l4_csum_replace(
            ctx.skb.skb,
            (quoted.l4 + ICMP_CHECKSUM) as u32,
            0,
            change.icmp.fold_u32() as u64,
            0,
        )
    };
    if error != 0 {
        return None;
    }
    let [src, dst] = change.inner_ports_be.map(u16::to_ne_bytes);
    store(ctx, quoted.inner_l4, &[src[0], src[1], dst[0], dst[1]], 0)?;
    let inner_at = quoted.inner_l3 + A::addr_at(change.inner_side);
    A::store(ctx, inner_at, translation.addr_be, 0)?;
    if change.client_changes {
        let client_be = translation.client_be;
        A::store(ctx, quoted.inner_l3 + A::addr_at(side), client_be, 0)?;
        A::store(ctx, quoted.l3 + A::addr_at(side.other()), client_be, 0)?;
    }
    if A::VERSION == 4 {
        let bytes = inner_checksum.0.to_ne_bytes();
        store(ctx, quoted.inner_l3 + IPV4_CHECKSUM, &bytes, 0)?;
    }
    if change.outer {
        A::header_checksum(ctx, quoted.l3, change.outer_address)?;
        A::store(ctx, quoted.l3 + A::addr_at(side), translation.addr_be, 0)?;
    }
    Some(())
}

/// Translates a later fragment.
#[inline(always)]
fn translate_piece<A: Family + Rewrite>(
    ctx: &TcContext,
    piece: &Piece<A>,
    side: Side,
    translation: &Translation<A>,
) -> Option<()> {
    let change = rewrite::piece_change(piece, side, translation);
    // An IPv6 address has no checksum beside it that would take back what it adds to the
    // packet's sum; an IPv4 address has.
    let flags = match A::VERSION {
        6 => BPF_F_RECOMPUTE_CSUM as u64,
        _ => 0,
    };
    A::header_checksum(ctx, piece.l3, change.address)?;
    A::store(ctx, piece.l3 + A::addr_at(side), translation.addr_be, flags)?;
    if change.client_changes {
        let at = piece.l3 + A::addr_at(side.other());
        A::store(ctx, at, translation.client_be, flags)?;
    }
    Some(())
}

/// Turns the packet into a RST and sends it back the way it came, by `flags` of `bpf_redirect`.
#[inline(always)]
fn answer<A: Answer>(ctx: &TcContext, segment: &Segment<A>, flags: u64) -> i32 {
    if turn_round(ctx, segment).is_none() {
        maps::count(Reason::ResetFailed);
        if maps::may_log() {
            warn!(
                ctx,
                "cannot turn a packet of {} bytes into a RST",
                ctx.len()
            );
        }
        return TC_ACT_SHOT;
    }
    // SAFETY: reads a field of the context that the kernel filled in.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: only numbers are passed.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

#[inline(always)]
fn turn_round<A: Answer>(ctx: &TcContext, segment: &Segment<A>) -> Option<()> {
    let frame = direct(ctx);
    let ip = A::ip_header(&frame, segment)?;
    let macs = reset::swapped_macs(frame.window::<12>(0)?);
    let tcp = reset::tcp_header(segment);
    // SAFETY: only numbers are passed; `frame` is not used after this.
    let error = unsafe { bpf_skb_change_tail(ctx.skb.skb, reset::length(segment) as u32, 0) };
    if error != 0 {
        return None;
    }
    // The stored TCP header is right for a partial checksum too, see `packet::reset`.
    let recompute = BPF_F_RECOMPUTE_CSUM as u64;
    store(ctx, A::tcp_at(segment), &tcp, recompute)?;
    store(ctx, segment.l3, ip.as_ref(), recompute)?;
    store(ctx, 0, &macs, 0)
}
