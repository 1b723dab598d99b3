//! Drivers: the template into the packet, the next flow's client into it, and on.

use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_SHOT, xdp_action},
    macros::{classifier, map, xdp},
    maps::{Array, ProgramArray},
    programs::{TcContext, XdpContext},
};

use crate::job::{FIRST_ADDRESS, FIRST_PORT, Job};

/// A flow's number is spread over the client's address and port: 16 ports each.
const PORT_BITS: u32 = 4;

#[map]
static JOB: Array<Job> = Array::with_max_entries(1, 0);
/// The XDP program under test.
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The TC program under test.
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// `SIZE` bytes of headers; the client's address ends at `ADDRESS + 4` and its
/// port is at `PORT`. `None`, which never is, if the packet is too short.
#[inline(always)]
fn restore<const SIZE: usize, const ADDRESS: usize, const PORT: usize>(
    start: usize,
    end: usize,
) -> Option<()> {
    if start + SIZE > end {
        return None;
    }
    let job = JOB.get_ptr_mut(0)?;
    // SAFETY: the map's only element; the bench runs one program at a time.
    let job = unsafe { &mut *job };
    let number = job
        .number
        .wrapping_mul(job.multiplier)
        .wrapping_add(job.increment);
    job.number = number;
    let flow = number & job.mask;
    let address = FIRST_ADDRESS.wrapping_add(flow >> PORT_BITS);
    let port = FIRST_PORT | (flow & ((1 << PORT_BITS) - 1)) as u16;
    let packet = start as *mut u8;
    // Everything but the client as the template has it, in words of two bytes at least:
    // every header here has an even length.
    let mut at = 0;
    while at + 8 <= SIZE {
        // SAFETY: below SIZE, which ends before the packet does and within the template.
        unsafe { *packet.add(at).cast::<u64>() = *job.template.as_ptr().add(at).cast::<u64>() };
        at += 8;
    }
    while at < SIZE {
        // SAFETY: as above.
        unsafe { *packet.add(at).cast::<u16>() = *job.template.as_ptr().add(at).cast::<u16>() };
        at += 2;
    }
    // SAFETY: both fields lie within the headers.
    unsafe {
        *packet.add(ADDRESS).cast::<u32>() = address.to_be();
        *packet.add(PORT).cast::<u16>() = port.to_be();
    }
    Some(())
}

/// Reached only if there is no target: the bench sees the verdict.
macro_rules! xdp_driver {
    ($name:ident, $size:literal, $address:literal, $port:literal) => {
        #[xdp(frags)]
        pub fn $name(ctx: XdpContext) -> u32 {
            if restore::<$size, $address, $port>(ctx.data(), ctx.data_end()).is_some() {
                // SAFETY: nothing here needs dropping.
                unsafe { XDP_TARGET.tail_call(&ctx, 0) };
            }
            xdp_action::XDP_ABORTED
        }
    };
}

macro_rules! tc_driver {
    ($name:ident, $size:literal, $address:literal, $port:literal) => {
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            if restore::<$size, $address, $port>(ctx.data(), ctx.data_end()).is_some() {
                // SAFETY: nothing here needs dropping.
                unsafe { TC_TARGET.tail_call(&ctx, 0) };
            }
            let _ = ctx.as_ptr();
            TC_ACT_SHOT
        }
    };
}

// The client is the source of what it sends, and the destination of what comes back.
xdp_driver!(drive_xdp_v4, 54, 26, 34);
xdp_driver!(drive_xdp_v6, 74, 34, 54);
tc_driver!(drive_tc_v4, 54, 26, 34);
tc_driver!(drive_tc_v6, 74, 34, 54);
tc_driver!(drive_back_v4, 54, 30, 36);
tc_driver!(drive_back_v6, 74, 50, 56);
