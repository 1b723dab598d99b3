//! The contract between probe's kernel side and its agent, and every decision
//! about packet bytes.
//!
//! This library is `no_std`, has no dependency and does no I/O. The programs in
//! `main.rs` read a context, call it, touch maps and return an action; the agent
//! uses the same types to fill those maps. All of it is tested on the host,
//! without root.
//!
//! - [`abi`]: what crosses the kernel boundary, byte for byte.
//! - [`names`]: what maps, programs and pins are called.
//! - [`packet`]: reading a frame within its bounds, and changing it.
//! - [`steer`]: which endpoint a segment belongs to.
#![no_std]
// One addition that `core` has no stable name for on BPF; the kernel side is built with
// `RUSTC_BOOTSTRAP` anyway.
#![cfg_attr(
    target_arch = "bpf",
    allow(internal_features),
    feature(core_intrinsics)
)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod names;
pub mod packet;
pub mod steer;
