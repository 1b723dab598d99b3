//! Floors at XDP.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::floor::{
    Target, Tuple, V4, V6, Words, by_flow, by_slot, learn, parse, port_change, update, write,
};

/// Does nothing: its cost is the harness's.
#[xdp(frags)]
pub fn empty_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Swaps the hardware addresses and sends the packet back.
#[xdp(frags)]
pub fn swap_xdp(ctx: XdpContext) -> u32 {
    if ctx.data() + 14 > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    let macs = ctx.data() as *mut [u16; 6];
    // SAFETY: twelve bytes that were just checked.
    unsafe {
        let [a, b, c, d, e, f] = *macs;
        *macs = [d, e, f, a, b, c];
    }
    xdp_action::XDP_TX
}

#[inline(always)]
fn parsed<A: Words>(ctx: &XdpContext) -> Option<Tuple<A>> {
    // SAFETY: just read from the context.
    unsafe { parse(ctx.data(), ctx.data_end()) }
}

#[inline(always)]
fn parse_only<A: Words>(ctx: &XdpContext) -> u32 {
    match parsed::<A>(ctx) {
        // No packet has it; without a use of the fields they would not be read.
        Some(tuple) if tuple.src == tuple.dst && tuple.ports[0] == tuple.ports[1] => {
            xdp_action::XDP_DROP
        }
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn dnat<A: Words>(ctx: &XdpContext, find: impl Fn(&Tuple<A>) -> Option<Target<A>>) -> Option<()> {
    let tuple = parsed::<A>(ctx)?;
    let target = find(&tuple)?;
    let change = tuple.dst.change(target.addr);
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + A::HEADERS > end {
        return None;
    }
    let sum = (start + A::L4 + 16) as *mut u16;
    // SAFETY: within the headers that were just checked; both callees check again.
    unsafe {
        *sum = update(*sum, change + port_change(tuple.ports[1], target.port));
        write(start, end, &target, change);
    }
    Some(())
}

macro_rules! floors {
    ($family:ty: $parse:ident, $flow:ident, $slot:ident, $learn:ident) => {
        #[xdp(frags)]
        pub fn $parse(ctx: XdpContext) -> u32 {
            parse_only::<$family>(&ctx)
        }

        #[xdp(frags)]
        pub fn $flow(ctx: XdpContext) -> u32 {
            let _ = dnat::<$family>(&ctx, by_flow);
            xdp_action::XDP_PASS
        }

        #[xdp(frags)]
        pub fn $slot(ctx: XdpContext) -> u32 {
            let _ = dnat::<$family>(&ctx, by_slot);
            xdp_action::XDP_PASS
        }

        /// Fills the table that the floor looks into.
        #[xdp(frags)]
        pub fn $learn(ctx: XdpContext) -> u32 {
            let _ = parsed::<$family>(&ctx).and_then(|tuple| learn(&tuple));
            xdp_action::XDP_PASS
        }
    };
}

floors!(V4: parse_xdp_v4, flow_xdp_v4, slot_xdp_v4, learn_xdp_v4);
floors!(V6: parse_xdp_v6, flow_xdp_v6, slot_xdp_v6, learn_xdp_v6);
