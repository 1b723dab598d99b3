//! Floors at TC. A transport checksum may be partial there, so it is changed by the
//! kernel's helper: once for the address, which counts in a partial checksum too,
//! once for the port, which does not. All else is written directly.

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, TC_ACT_UNSPEC},
    helpers::{bpf_l4_csum_replace, bpf_redirect},
    macros::classifier,
    programs::TcContext,
};

use crate::floor::{
    Target, Tuple, V4, V6, Words, by_flow, by_slot, fold_32, parse, port_change, write,
};

/// Linux 6.16: the change of an IPv6 address is not in the packet's sum.
const BPF_F_IPV6: u64 = 1 << 7;

/// Does nothing: its cost is the harness's.
#[classifier]
pub fn empty_tc(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Swaps the hardware addresses and sends the packet back.
#[classifier]
pub fn swap_tc(ctx: TcContext) -> i32 {
    if ctx.data() + 14 > ctx.data_end() {
        return TC_ACT_UNSPEC;
    }
    let macs = ctx.data() as *mut [u16; 6];
    // SAFETY: twelve bytes that were just checked; the context's field is the kernel's.
    unsafe {
        let [a, b, c, d, e, f] = *macs;
        *macs = [d, e, f, a, b, c];
        bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32
    }
}

#[inline(always)]
fn parsed<A: Words>(ctx: &TcContext) -> Option<Tuple<A>> {
    // SAFETY: just read from the context.
    unsafe { parse(ctx.data(), ctx.data_end()) }
}

#[inline(always)]
fn parse_only<A: Words>(ctx: &TcContext) -> i32 {
    match parsed::<A>(ctx) {
        // No packet has it; without a use of the fields they would not be read.
        Some(tuple) if tuple.src == tuple.dst && tuple.ports[0] == tuple.ports[1] => 2,
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn dnat<A: Words>(ctx: &TcContext, find: impl Fn(&Tuple<A>) -> Option<Target<A>>) -> Option<()> {
    let tuple = parsed::<A>(ctx)?;
    let target = find(&tuple)?;
    let change = tuple.dst.change(target.addr);
    // SAFETY: read from the context after the last helper that could move the packet.
    unsafe { write(ctx.data(), ctx.data_end(), &target, change) };
    let at = (A::L4 + 16) as u32;
    let family = if size_of::<A>() == 16 { BPF_F_IPV6 } else { 0 };
    // SAFETY: only numbers are passed; the helper checks the offset. A size of zero means
    // that the difference is ready-made.
    unsafe {
        bpf_l4_csum_replace(
            ctx.skb.skb,
            at,
            0,
            fold_32(change),
            BPF_F_PSEUDO_HDR as u64 | family,
        );
        let ports = port_change(tuple.ports[1], target.port);
        bpf_l4_csum_replace(ctx.skb.skb, at, 0, fold_32(ports), 0);
    }
    Some(())
}

macro_rules! floors {
    ($family:ty: $parse:ident, $flow:ident, $slot:ident) => {
        #[classifier]
        pub fn $parse(ctx: TcContext) -> i32 {
            parse_only::<$family>(&ctx)
        }

        #[classifier]
        pub fn $flow(ctx: TcContext) -> i32 {
            let _ = dnat::<$family>(&ctx, by_flow);
            TC_ACT_UNSPEC
        }

        #[classifier]
        pub fn $slot(ctx: TcContext) -> i32 {
            let _ = dnat::<$family>(&ctx, by_slot);
            TC_ACT_UNSPEC
        }
    };
}

floors!(V4: parse_tc_v4, flow_tc_v4, slot_tc_v4);
floors!(V6: parse_tc_v6, flow_tc_v6, slot_tc_v6);
