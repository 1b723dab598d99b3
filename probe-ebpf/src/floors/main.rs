//! The programs that `cargo xtask bench datapath` compares with: floors, the least
//! that could be done about a packet, and drivers, which make a measurement fair.
//!
//! A test run that repeats hands the program the packet it left behind, and always
//! the same flow. So what is run is a driver: it restores the headers from a
//! template, picks the next flow and tail-calls the program under test. What the
//! driver costs is measured with a target that does nothing, and taken off.
//!
//! None of this is part of the agent.
#![no_std]
#![no_main]

mod drivers;
mod floor;
mod job;
mod tc;
mod xdp;

/// The kernel compares this with its list of GPL-compatible licences.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A reachable panic must not load: the verifier refuses an endless loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
