//! XDP at an uplink's ingress: what outside clients send, before the kernel sees it.
//!
//! A steered packet is rewritten and passed, so the kernel routes it to its
//! endpoint; the way back is the TC program at the same uplink's egress.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_tail, generated::bpf_xdp_get_buff_len},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::warn;
use probe_ebpf::{
    abi::Reason,
    packet::{
        Content, Network, Piece, Quoted, Segment, network,
        parse::{content_v4, content_v6},
        reset::{self, Answer},
        rewrite::{self, Family, Side},
    },
    steer::{self, ErrorVerdict, PieceVerdict, Tables, Verdict},
};

use super::{
    direct::Direct,
    maps::{self, Maps},
};

/// For single-buffer packets.
#[xdp]
pub fn probe_xdp(ctx: XdpContext) -> u32 {
    run(&ctx, ctx.data_end() - ctx.data())
}

/// The same, telling the kernel that it copes with packets of several buffers
/// (Linux 5.18): all it reads and writes is in the first one, or it passes.
#[xdp(frags)]
pub fn probe_xdp_frags(ctx: XdpContext) -> u32 {
    // SAFETY: the context is the one the kernel called us with.
    let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    run(&ctx, length as usize)
}

/// `length` is that of the whole frame, over all its buffers.
#[inline(always)]
fn run(ctx: &XdpContext, length: usize) -> u32 {
    let frame = direct(ctx, length);
    let steer = Steer { ctx, length };
    let action = match network(&frame) {
        Ok(Network::V4(l3)) => content_v4(&frame, l3, steer),
        Ok(Network::V6(l3)) => content_v6(&frame, l3, steer),
        Err(reason) => Err(reason),
    };
    action.unwrap_or_else(|reason| {
        maps::count(reason);
        xdp_action::XDP_PASS
    })
}

/// What the program may touch of the packet.
#[inline(always)]
fn direct(ctx: &XdpContext, length: usize) -> Direct {
    // SAFETY: of the context that the kernel called us with; no helper moves memory while the
    // result is used.
    unsafe { Direct::new(ctx.data(), &raw const (*ctx.ctx).data_end, length) }
}

/// Acts on what a packet carries.
struct Steer<'a> {
    ctx: &'a XdpContext,
    length: usize,
}

impl<A: Family + Answer> Content<A> for Steer<'_>
where
    Maps: Tables<A>,
{
    type Outcome = u32;

    #[inline(always)]
    fn error(self, quoted: Quoted<A>) -> Result<u32, Reason> {
        match steer::forward_error(&Maps, &quoted) {
            ErrorVerdict::Pass(reason) => Err(reason),
            ErrorVerdict::Translate(translation) => {
                let mut frame = direct(self.ctx, self.length);
                rewrite::apply_error(&mut frame, &quoted, Side::Destination, &translation)
                    .ok_or(Reason::RewriteFailed)?;
                maps::count(Reason::ErrorTranslated);
                Ok(xdp_action::XDP_PASS)
            }
        }
    }

    #[inline(always)]
    fn piece(self, piece: Piece<A>) -> Result<u32, Reason> {
        match steer::follow(&Maps, &piece, Side::Destination) {
            PieceVerdict::Pass(reason) => Err(reason),
            PieceVerdict::Translate(addr_be, endpoint) => {
                let mut frame = direct(self.ctx, self.length);
                rewrite::apply_piece(&mut frame, &piece, Side::Destination, addr_be)
                    .ok_or(Reason::RewriteFailed)?;
                maps::count_forward(endpoint, self.length as u64);
                Ok(xdp_action::XDP_PASS)
            }
        }
    }

    #[inline(always)]
    fn segment(self, segment: Segment<A>) -> Result<u32, Reason> {
        let Self { ctx, length } = self;
        match steer::forward(&Maps, &segment) {
            Verdict::Pass(reason) => Err(reason),
            Verdict::Translate(translation, endpoint) => {
                let mut frame = direct(ctx, length);
                rewrite::apply(&mut frame, &segment, Side::Destination, &translation)
                    .ok_or(Reason::RewriteFailed)?;
                maps::count_forward(endpoint, length as u64);
                Ok(xdp_action::XDP_PASS)
            }
            Verdict::Drop(reason) => {
                maps::count(reason);
                Ok(xdp_action::XDP_DROP)
            }
            Verdict::Reset(reason) => {
                maps::count(reason);
                let mut frame = direct(ctx, length);
                reset::apply(&mut frame, &segment).ok_or(Reason::RewriteFailed)?;
                let surplus = length as i32 - reset::length(&segment) as i32;
                // SAFETY: the context is the kernel's; the frame is not touched afterwards.
                let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) };
                if cut == 0 {
                    return Ok(xdp_action::XDP_TX);
                }
                // Turned round but too long: nobody must see it.
                maps::count(Reason::ResetFailed);
                if maps::may_log() {
                    warn!(ctx, "cannot cut a packet of {} bytes to a RST", length);
                }
                Ok(xdp_action::XDP_DROP)
            }
        }
    }
}
