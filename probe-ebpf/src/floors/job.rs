//! What the bench orders from its drivers. The bench includes this very file, so
//! both sides have one layout.

/// Most bytes of headers that a driver restores: Ethernet, IPv6, TCP.
pub const TEMPLATE_LEN: usize = 14 + 40 + 20;

/// The headers to restore before each packet, and which flow comes next.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Job {
    /// Bytes from the link header on; drivers of IPv4 write the first 54.
    pub template: [u8; TEMPLATE_LEN],
    /// Zero.
    pub pad: [u8; 6],
    /// The generator's last number: a linear congruential one, so that with a
    /// multiplier of 1 modulo 4 and an odd increment it visits every flow
    /// (Hull and Dobell) in an order that no prefetcher foresees.
    pub number: u32,
    /// See `number`. With 1 and 1 flows come in a row.
    pub multiplier: u32,
    /// See `number`.
    pub increment: u32,
    /// Flows less one, a power of two less one.
    pub mask: u32,
}

/// The client's first port.
pub const FIRST_PORT: u16 = 0x8000;
/// The client's first address, 10.128.0.0; in IPv6 these are its last four bytes.
pub const FIRST_ADDRESS: u32 = 0x0a80_0000;
