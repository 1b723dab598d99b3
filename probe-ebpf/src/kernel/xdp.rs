//! XDP at an uplink's ingress: what outside clients send, before the kernel sees it.
//!
//! A steered packet is rewritten and passed, so the kernel routes it to its
//! endpoint; the way back is the TC program at the same uplink's egress.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_xdp_adjust_tail, generated::bpf_xdp_get_buff_len},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::warn;
use probe_ebpf::{
    abi::{Reason, V4, V6},
    packet::{
        Content, FrameMut as _, Network, Piece, Quoted, Segment, network,
        parse::{content_v4, content_v6},
        reset::{self, Answer},
        rewrite::{self, Family, Side, Translation},
        syn::{self, Again},
    },
    steer::{self, Fate, Ruling, Tables, Work},
};

use super::{
    direct::{Direct, Length},
    maps::{self, Maps},
    route::{self, Route},
};

/// For single-buffer packets.
#[xdp]
pub fn probe_xdp(ctx: XdpContext) -> u32 {
    let length = ctx.data_end() - ctx.data();
    run(&ctx, length)
}

/// The same, telling the kernel that it copes with packets of several buffers
/// (Linux 5.18): all it reads and writes is in the first one, or it passes.
#[xdp(frags)]
pub fn probe_xdp_frags(ctx: XdpContext) -> u32 {
    run(&ctx, Buffers(ctx.ctx))
}

/// The length over all buffers, which only the kernel knows.
#[derive(Clone, Copy)]
struct Buffers(*mut xdp_md);

impl Length for Buffers {
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context is the one the kernel called us with.
        unsafe { bpf_xdp_get_buff_len(self.0) as usize }
    }
}

/// Most packets take a glance. What takes more is done by functions that then have the stack
/// for themselves; what is more than a TCP segment behind plain headers is read anew.
#[inline(always)]
fn run<L: Length + Copy>(ctx: &XdpContext, length: L) -> u32 {
    let action = match network(&direct(ctx, length)) {
        Ok(Network::V4(l3)) => match glance_v4(ctx.ctx, length, l3) {
            BEYOND => v4(ctx.ctx, length, l3),
            action => action,
        },
        Ok(Network::V6(l3)) => match glance_v6(ctx.ctx, length, l3) {
            BEYOND => v6(ctx.ctx, length, l3),
            action => action,
        },
        Err(reason) => pass(reason),
    };
    match action {
        SEGMENT_V4 => segment::<V4, L>(ctx.ctx, length),
        SEGMENT_V6 => segment::<V6, L>(ctx.ctx, length),
        action => action,
    }
}

/// No action: the segment in [`Tables::work`] has to be decided about.
const SEGMENT_V4: u32 = u32::MAX - 2;
/// The same in IPv6.
const SEGMENT_V6: u32 = u32::MAX - 3;
/// No action: the RST in [`Tables::work`] becomes a SYN.
const AGAIN: u32 = u32::MAX - 4;

/// Lays the segment down for [`segment`].
#[inline(always)]
fn lay_down<A: Family>(segment: Segment<A>, unknown: bool) -> Result<u32, Reason>
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
fn segment<A: Family + Answer + Route + Again, L: Length + Copy>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    look::<A, L>(ctx, length);
    let relays = Tables::<A>::work(&Maps).is_some_and(|work| steer::relays(&Maps, work));
    if relays && !(maps::may_send() && lead::<A>(ctx)) {
        // Untouched: `probe_relay` behind us asks the kernel for the way, and sends it.
        return xdp_action::XDP_PASS;
    }
    decide::<A>();
    if relays && !keeps_way::<A>() {
        return xdp_action::XDP_PASS;
    }
    match act::<A, L>(ctx, length) {
        AGAIN => again::<A, L>(ctx, length),
        action => action,
    }
}

/// Reads what the segment in [`Tables::work`] says if it is a SYN.
#[inline(never)]
fn look<A: Family, L: Length + Copy>(ctx: *mut xdp_md, length: L)
where
    Maps: Tables<A>,
{
    if let Some(work) = Tables::<A>::work(&Maps) {
        steer::look_at(&Maps, &direct(&XdpContext { ctx }, length), work);
    }
}

/// No action: a glance was not enough.
const BEYOND: u32 = u32::MAX;

/// An IPv4 packet at a glance.
#[inline(never)]
fn glance_v4<L: Length + Copy>(ctx: *mut xdp_md, length: L, l3: usize) -> u32 {
    let ctx = &XdpContext { ctx };
    content_v4(&direct(ctx, length), l3, Glance { ctx, length }).unwrap_or_else(pass)
}

/// An IPv6 packet at a glance.
#[inline(never)]
fn glance_v6<L: Length + Copy>(ctx: *mut xdp_md, length: L, l3: usize) -> u32 {
    let ctx = &XdpContext { ctx };
    content_v6(&direct(ctx, length), l3, Glance { ctx, length }).unwrap_or_else(pass)
}

/// Leaves the packet to whoever comes next.
#[inline(always)]
fn pass(reason: Reason) -> u32 {
    maps::count(reason);
    xdp_action::XDP_PASS
}

/// An IPv4 packet that takes more than a glance.
#[inline(never)]
fn v4<L: Length + Copy>(ctx: *mut xdp_md, length: L, l3: usize) -> u32 {
    let ctx = &XdpContext { ctx };
    content_v4(&direct(ctx, length), l3, Steer { ctx, length }).unwrap_or_else(pass)
}

/// An IPv6 packet that takes more than a glance.
#[inline(never)]
fn v6<L: Length + Copy>(ctx: *mut xdp_md, length: L, l3: usize) -> u32 {
    let ctx = &XdpContext { ctx };
    content_v6(&direct(ctx, length), l3, Steer { ctx, length }).unwrap_or_else(pass)
}

/// Acts on a TCP segment that takes no more than a look at its service's slot.
struct Glance<'a, L> {
    ctx: &'a XdpContext,
    length: L,
}

impl<A: Family + Answer, L: Length + Copy> Content<A> for Glance<'_, L>
where
    Maps: Tables<A>,
{
    type Outcome = u32;
    const GLANCE: bool = true;

    #[inline(always)]
    fn beyond(self) -> Result<u32, Reason> {
        Ok(BEYOND)
    }

    #[inline(always)]
    fn error(self, _: Quoted<A>) -> Result<u32, Reason> {
        Err(Reason::NotSteerable)
    }

    #[inline(always)]
    fn piece(self, _: Piece<A>) -> Result<u32, Reason> {
        Err(Reason::Fragment)
    }

    #[inline(always)]
    fn segment(self, segment: Segment<A>) -> Result<u32, Reason> {
        let Ruling {
            fate,
            reason,
            endpoint,
            translation,
        } = steer::forward_fast(&Maps, &segment, |clock| {
            syn::glance(&direct(self.ctx, self.length), &segment, clock)
        });
        match fate {
            Fate::Pass => Err(reason),
            Fate::Translate => {
                let mut frame = direct(self.ctx, self.length);
                // The compiler cannot see that this is so, and would sum up the change.
                let translation = Translation {
                    client_be: segment.src_be,
                    client_port_be: segment.src_port_be,
                    ..translation
                };
                rewrite::apply(&mut frame, &segment, Side::Destination, &translation)
                    .ok_or(Reason::RewriteFailed)?;
                maps::count_forward(endpoint, segment.end as u64);
                Ok(xdp_action::XDP_PASS)
            }
            _ => lay_down(segment, reason == Reason::NotSteered),
        }
    }
}

/// What the program may touch of the packet.
#[inline(always)]
fn direct<L: Length>(ctx: &XdpContext, length: L) -> Direct<L> {
    // SAFETY: of the context that the kernel called us with; no helper moves memory while the
    // result is used.
    unsafe { Direct::new(ctx.data(), &raw const (*ctx.ctx).data_end, length) }
}

/// Acts on whatever a packet carries.
struct Steer<'a, L> {
    ctx: &'a XdpContext,
    length: L,
}

impl<A: Family + Answer + Route, L: Length + Copy> Content<A> for Steer<'_, L>
where
    Maps: Tables<A>,
{
    type Outcome = u32;

    #[inline(always)]
    fn error(self, quoted: Quoted<A>) -> Result<u32, Reason> {
        let work = Tables::<A>::work(&Maps).ok_or(Reason::RewriteFailed)?;
        work.quoted = quoted;
        let (ctx, length) = (self.ctx.ctx, self.length);
        // One after the other, for the stack's sake.
        decide_error::<A>();
        Ok(match error::<A, L>(ctx, length) {
            SENDS if leads::<A>(ctx) => send_error::<A, L>(ctx, length),
            SENDS => xdp_action::XDP_PASS,
            action => action,
        })
    }

    #[inline(always)]
    fn piece(self, piece: Piece<A>) -> Result<u32, Reason> {
        let work = Tables::<A>::work(&Maps).ok_or(Reason::RewriteFailed)?;
        work.piece = piece;
        let (ctx, length) = (self.ctx.ctx, self.length);
        Ok(match follow::<A, L>(ctx, length) {
            SENDS if leads::<A>(ctx) => send_piece::<A, L>(ctx, length),
            SENDS => xdp_action::XDP_PASS,
            action => action,
        })
    }

    #[inline(always)]
    fn segment(self, segment: Segment<A>) -> Result<u32, Reason> {
        lay_down(segment, false)
    }
}

/// Decides about the ICMP error in [`Tables::work`].
#[inline(never)]
fn decide_error<A: Family>()
where
    Maps: Tables<A>,
{
    if let Some(work) = Tables::<A>::work(&Maps) {
        steer::forward_error(&Maps, work);
    }
}

/// Acts on the ICMP error in [`Tables::work`].
#[inline(never)]
fn error<A: Family, L: Length>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    match work.ruling.fate {
        Fate::Pass => return pass(work.ruling.reason),
        Fate::Relay | Fate::Reply => return SENDS,
        _ => {}
    }
    let mut frame = direct(&XdpContext { ctx }, length);
    let (quoted, translation) = (&work.quoted, &work.ruling.translation);
    match rewrite::apply_error(&mut frame, quoted, Side::Destination, translation) {
        Some(()) => pass(Reason::ErrorTranslated),
        None => pass(Reason::RewriteFailed),
    }
}

/// Acts on the later fragment in [`Tables::work`].
#[inline(never)]
fn follow<A: Family, L: Length + Copy>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    steer::follow(&Maps, work, Side::Destination);
    match work.ruling.fate {
        Fate::Pass => return pass(work.ruling.reason),
        Fate::Relay | Fate::Reply => return SENDS,
        _ => {}
    }
    let mut frame = direct(&XdpContext { ctx }, length);
    let (piece, translation) = (&work.piece, &work.ruling.translation);
    match rewrite::apply_piece(&mut frame, piece, Side::Destination, translation) {
        Some(()) => {
            maps::count_forward(work.ruling.endpoint, length.length() as u64);
            xdp_action::XDP_PASS
        }
        None => pass(Reason::RewriteFailed),
    }
}

/// No action: what is in [`Tables::work`] has to be sent on from here.
const SENDS: u32 = u32::MAX - 1;

/// Would the ICMP error or later fragment leave by an interface that XDP sends by, to a next
/// hop whose hardware address is known? Lays the hardware addresses down. Else it passes
/// untouched, as [`relay`] has it.
#[inline(never)]
fn leads<A: Family + Route>(ctx: *mut xdp_md) -> bool
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return false;
    };
    if !maps::may_send() {
        return false;
    }
    // SAFETY: of the context that the kernel called us with.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    let (from, to) = (work.ends[0], work.hop);
    let (found, params) = route::find(ctx.cast(), ifindex, from, to, 0);
    work.macs = [params.dmac, params.smac];
    let near = work.ends_change() || A::next_hop(&params) == to;
    found == route::FOUND && near && leaves(work, ifindex, params.ifindex)
}

/// Can what came by one interface be sent out of the other? Lays down which.
#[inline(always)]
fn leaves<A: Family>(work: &mut Work<A>, from: u32, to: u32) -> bool {
    work.out = if from == to { SAME } else { to };
    from == to || maps::is_sender(to)
}

/// [`Work::out`] if that is the interface that the packet came by.
const SAME: u32 = 0;

/// Sends what is ready out of [`Work::out`].
#[inline(always)]
fn send_out<A: Family>(work: &Work<A>) -> u32 {
    match work.out {
        SAME => xdp_action::XDP_TX,
        other => maps::send_by(other),
    }
}

/// Which side of what is sent on is the server's.
#[inline(always)]
fn side_of(fate: Fate) -> Side {
    match fate {
        Fate::Reply => Side::Source,
        _ => Side::Destination,
    }
}

/// Translates and sends the ICMP error in [`Tables::work`].
#[inline(never)]
fn send_error<A: Family, L: Length>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let mut frame = direct(&XdpContext { ctx }, length);
    let side = side_of(work.ruling.fate);
    let sent = rewrite::age::<A, _>(&mut frame, work.quoted.l3)
        .and_then(|()| {
            if !work.ends_change() {
                return Some(());
            }
            let translation = &work.ruling.translation;
            rewrite::apply_error(&mut frame, &work.quoted, side, translation)
        })
        .and_then(|()| readdress(&mut frame, &work.macs));
    if sent.is_none() {
        return pass(Reason::RewriteFailed);
    }
    maps::count(Reason::ErrorTranslated);
    send_out(work)
}

/// Translates and sends the later fragment in [`Tables::work`].
#[inline(never)]
fn send_piece<A: Family, L: Length + Copy>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let mut frame = direct(&XdpContext { ctx }, length);
    let side = side_of(work.ruling.fate);
    let sent = rewrite::age::<A, _>(&mut frame, work.piece.l3)
        .and_then(|()| {
            let translation = &work.ruling.translation;
            rewrite::apply_piece(&mut frame, &work.piece, side, translation)
        })
        .and_then(|()| readdress(&mut frame, &work.macs));
    if sent.is_none() {
        return pass(Reason::RewriteFailed);
    }
    let bytes = length.length() as u64;
    match side {
        Side::Destination => maps::count_forward(work.ruling.endpoint, bytes),
        Side::Source => maps::count_reverse(work.ruling.endpoint, bytes),
    }
    send_out(work)
}

/// Writes the frame's hardware addresses, destination and source.
#[inline(always)]
fn readdress<L: Length>(frame: &mut Direct<L>, macs: &[[u8; 6]; 2]) -> Option<()> {
    let to = frame.window_mut::<12>(0)?;
    to[..6].copy_from_slice(&macs[0]);
    to[6..].copy_from_slice(&macs[1]);
    Some(())
}

/// Finds out where the segment would leave, and lays its hardware addresses down.
#[inline(never)]
fn lead<A: Family + Route>(ctx: *mut xdp_md) -> bool
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return false;
    };
    // SAFETY: of the context that the kernel called us with.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    let (to, from) = (work.hop, work.ruling.translation.client_be);
    let length = (work.segment.end - work.segment.l3 as u32) as u16;
    let (found, params) = route::find(ctx.cast(), ifindex, from, to, length);
    work.macs = [params.dmac, params.smac];
    work.led = to;
    // An endpoint that gets packets as they are must be a neighbour.
    let near = work.is_translated() || A::next_hop(&params) == to;
    found == route::FOUND && near && leaves(work, ifindex, params.ifindex)
}

/// Does the segment go where [`lead`] found the way to? The decision may have changed
/// between the two.
#[inline(never)]
fn keeps_way<A: Family>() -> bool
where
    Maps: Tables<A>,
{
    Tables::<A>::work(&Maps).is_some_and(|work| {
        let sends = matches!(work.ruling.fate, Fate::Relay | Fate::Reply);
        !sends || work.hop == work.led
    })
}

/// Decides about the segment in [`Tables::work`].
#[inline(never)]
fn decide<A: Family>()
where
    Maps: Tables<A>,
{
    if let Some(work) = Tables::<A>::work(&Maps) {
        steer::forward_slow(&Maps, work);
    }
}

/// Translates and sends.
#[inline(always)]
fn send<A: Family, L: Length + Copy>(ctx: &XdpContext, length: L, side: Side) -> u32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let mut frame = direct(ctx, length);
    let l3 = work.segment.l3;
    let sent = rewrite::age::<A, _>(&mut frame, l3)
        .and_then(|()| {
            let translation = &work.ruling.translation;
            rewrite::apply(&mut frame, &work.segment, side, translation)
        })
        .and_then(|()| readdress(&mut frame, &work.macs));
    if sent.is_none() {
        return pass(Reason::RewriteFailed);
    }
    let bytes = work.segment.end as u64;
    match side {
        Side::Destination => maps::count_forward(work.ruling.endpoint, bytes),
        Side::Source => maps::count_reverse(work.ruling.endpoint, bytes),
    }
    send_out(work)
}

/// Does to the segment what was ruled.
#[inline(never)]
fn act<A: Family + Answer, L: Length + Copy>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    let ctx = &XdpContext { ctx };
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let segment = &work.segment;
    let ruling = &work.ruling;
    match ruling.fate {
        Fate::Pass => pass(ruling.reason),
        Fate::Translate | Fate::Slow => {
            let mut frame = direct(ctx, length);
            let translated =
                rewrite::apply(&mut frame, segment, Side::Destination, &ruling.translation);
            if translated.is_none() {
                return pass(Reason::RewriteFailed);
            }
            maps::count_forward(ruling.endpoint, segment.end as u64);
            xdp_action::XDP_PASS
        }
        Fate::Relay => send::<A, L>(ctx, length, Side::Destination),
        Fate::Reply => send::<A, L>(ctx, length, Side::Source),
        Fate::Again => AGAIN,
        Fate::Drop => {
            maps::count(ruling.reason);
            xdp_action::XDP_DROP
        }
        Fate::Reset => {
            maps::count(ruling.reason);
            let mut frame = direct(ctx, length);
            if reset::apply(&mut frame, segment).is_none() {
                return pass(Reason::RewriteFailed);
            }
            let length = length.length();
            let surplus = length as i32 - reset::length(segment) as i32;
            // SAFETY: the context is the kernel's; the frame is not touched afterwards.
            let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) };
            if cut == 0 {
                return xdp_action::XDP_TX;
            }
            // Turned round but too long: nobody must see it.
            maps::count(Reason::ResetFailed);
            if maps::may_log() {
                warn!(ctx, "cannot cut a packet of {} bytes to a RST", length);
            }
            xdp_action::XDP_DROP
        }
    }
}

/// Turns the RST in [`Tables::work`] into the SYN that was ruled, and hands it to
/// `probe_relay` behind us: where that goes is decided as for its client's.
#[inline(never)]
fn again<A: Family + Again, L: Length + Copy>(ctx: *mut xdp_md, length: L) -> u32
where
    Maps: Tables<A>,
{
    let Some(work) = Tables::<A>::work(&Maps) else {
        return pass(Reason::RewriteFailed);
    };
    let rst = &work.segment;
    let wanted = rst.l4 + syn::length(&work.syn);
    let growth = wanted as i32 - length.length() as i32;
    // SAFETY: the context is the kernel's; no window of the frame is held.
    let error = unsafe { bpf_xdp_adjust_tail(ctx, growth) };
    if error != 0 {
        // Where the driver left no room the client repeats its SYN.
        maps::count(Reason::RewriteFailed);
        return xdp_action::XDP_DROP;
    }
    let mut frame = direct(&XdpContext { ctx }, length);
    let ends = work.ruling.ends();
    if syn::apply(&mut frame, rst, &work.syn, &work.more, &ends).is_none() {
        maps::count(Reason::RewriteFailed);
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_PASS
}
