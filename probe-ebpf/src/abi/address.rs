//! The two address families.

use super::{Endpoint, FAMILY_V4, FAMILY_V6, Plain, Shared};

/// An address family: IPv4 or IPv6.
pub trait Address: Plain + Copy + Default + Eq + core::hash::Hash + core::fmt::Debug {
    /// Four or six.
    const VERSION: u8;
    /// The address as words that several CPUs read and write.
    type Cells: Default + Sync;
    /// Sets in the family's table of [`super::Recent`], a power of two. So few that the
    /// table stays in a CPU's second cache, and a flood of SYNs costs little more than
    /// other packets; so many that two others seldom come between a SYN and its answer.
    const RECENT_SETS: u32;
    /// What fills a [`super::Recent`] up to a power of two.
    type Fill: Copy + Default + Sync;
    /// Reads the words.
    fn from_cells(cells: &Self::Cells) -> Self;
    /// Writes the words.
    fn to_cells(self, cells: &Self::Cells);
    /// The address from one word, in the family that has such.
    fn from_word(word_be: u32) -> Option<Self>;
    /// The address in 64 bits, for hashing: different for different IPv4 addresses.
    fn fold(self) -> u64;
    /// The address as two words, the first of which is zero in IPv4.
    fn words(self) -> [u64; 2];
    /// The address as sixteen bytes; IPv4 is mapped into `::ffff:0:0/96`
    /// (RFC 4291 section 2.5.5.2).
    fn mapped(self) -> [u8; 16];
    /// The address an endpoint has in this family, if it has one.
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self>;
}

/// An IPv4 address, the packet's four bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V4(pub u32);

/// An IPv6 address, the packet's sixteen bytes as four native words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V6(pub [u32; 4]);

impl V4 {
    /// From the address's bytes in network order.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The address's bytes in network order.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl V6 {
    /// From the address's bytes in network order.
    #[inline(always)]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }

    /// The address's bytes in network order.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }
}

impl Address for V4 {
    const VERSION: u8 = 4;
    const RECENT_SETS: u32 = 4096;
    type Cells = Shared<u32>;
    type Fill = [u32; 0];

    #[inline(always)]
    fn from_cells(cells: &Shared<u32>) -> Self {
        Self(cells.get())
    }

    #[inline(always)]
    fn to_cells(self, cells: &Shared<u32>) {
        cells.set(self.0);
    }

    #[inline(always)]
    fn from_word(word_be: u32) -> Option<Self> {
        Some(Self(word_be))
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        [0, self.0 as u64]
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        let [a, b, c, d] = self.bytes();
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self> {
        (endpoint.families & FAMILY_V4 != 0).then_some(endpoint.v4_be)
    }
}

impl Address for V6 {
    const VERSION: u8 = 6;
    const RECENT_SETS: u32 = 2048;
    type Cells = [Shared<u32>; 4];
    type Fill = [u32; 2];

    #[inline(always)]
    fn from_cells([a, b, c, d]: &[Shared<u32>; 4]) -> Self {
        Self([a.get(), b.get(), c.get(), d.get()])
    }

    #[inline(always)]
    fn to_cells(self, [a, b, c, d]: &[Shared<u32>; 4]) {
        a.set(self.0[0]);
        b.set(self.0[1]);
        c.set(self.0[2]);
        d.set(self.0[3]);
    }

    #[inline(always)]
    fn from_word(_: u32) -> Option<Self> {
        None
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        let [high, low] = self.words();
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) ^ low
    }

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        self.bytes()
    }

    #[inline(always)]
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self> {
        (endpoint.families & FAMILY_V6 != 0).then_some(endpoint.v6_be)
    }
}
