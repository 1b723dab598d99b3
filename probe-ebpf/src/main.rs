//! The kernel side: XDP and TC programs. Thin on purpose: each reads its context,
//! asks the library, touches maps and returns an action.
#![no_std]
#![no_main]

mod kernel;

/// The kernel compares this with its list of GPL-compatible licences.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A reachable panic must not load: the verifier refuses an endless loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
