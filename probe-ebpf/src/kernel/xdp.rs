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
    abi::{Reason, V4, V6},
    packet::{
        Network, Segment, network,
        parse::{segment_v4, segment_v6},
        reset::{self, Answer},
        rewrite::{self, Family, Side},
    },
    steer::{self, Tables, Verdict},
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
    // SAFETY: just read from the context; no helper moves memory while the frame is used.
    let frame = unsafe { Direct::new(ctx.data(), ctx.data_end(), length) };
    let action = match network(&frame) {
        Ok(Network::V4(l3)) => {
            segment_v4(&frame, l3).and_then(|segment| steer::<V4>(ctx, frame, length, &segment))
        }
        Ok(Network::V6(l3)) => {
            segment_v6(&frame, l3).and_then(|segment| steer::<V6>(ctx, frame, length, &segment))
        }
        Err(reason) => Err(reason),
    };
    action.unwrap_or_else(|reason| {
        maps::count(reason);
        xdp_action::XDP_PASS
    })
}

#[inline(always)]
fn steer<A: Family + Answer>(
    ctx: &XdpContext,
    mut frame: Direct,
    length: usize,
    segment: &Segment<A>,
) -> Result<u32, Reason>
where
    Maps: Tables<A>,
{
    match steer::forward(&Maps, segment) {
        Verdict::Pass(reason) => Err(reason),
        Verdict::Translate(translation, endpoint) => {
            rewrite::apply(&mut frame, segment, Side::Destination, &translation)
                .ok_or(Reason::RewriteFailed)?;
            maps::count_forward(endpoint, length as u64);
            Ok(xdp_action::XDP_PASS)
        }
        Verdict::Reset(reason) => {
            maps::count(reason);
            reset::apply(&mut frame, segment).ok_or(Reason::RewriteFailed)?;
            let surplus = length as i32 - reset::length(segment) as i32;
            // SAFETY: the context is the kernel's; the frame is not touched afterwards.
            let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) };
            if cut == 0 {
                Ok(xdp_action::XDP_TX)
            } else {
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
