//! Reading a frame within its bounds, and changing it.
//!
//! The same code runs in the kernel over packet memory and on the host over
//! slices. A [`Frame`] hands out [`Window`]s: references to a fixed number of
//! bytes whose presence was checked once, so that every later field access is
//! bounds-checked at compile time and costs one load.
//!
//! - [`parse`]: frame to [`Segment`] or [`Quoted`], or the [`Reason`](crate::abi::Reason) why not.
//! - [`checksum`]: Internet checksums, whole and incremental.
//! - [`rewrite`]: a translated segment, or ICMP error about one.
//! - [`reset`]: a RST in place of a segment.
//! - [`syn`]: a SYN in place of the RST that refused it.
//! - [`too_long`]: an ICMP error in place of a segment.

pub mod checksum;
pub mod parse;
pub mod reset;
pub mod rewrite;
pub mod syn;
pub mod too_long;

pub use parse::{Content, Network, Piece, Quoted, Segment, network};

/// A whole frame, from its link header on.
pub trait Frame {
    /// Length on the wire, which may be more than [`Frame::window`] can reach.
    fn length(&self) -> usize;

    /// Is the frame at least this long on the wire? Cheaper to ask than its length.
    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        length <= self.length()
    }

    /// The `N` bytes at `offset`, if they can be reached.
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>>;

    /// The same numbers, none above [`FORGOTTEN_MAX`] but the last, with their history
    /// forgotten. The kernel's verifier follows each way in which an offset came
    /// about through all the code behind it; forgetting makes one way of many.
    #[inline(always)]
    fn forget<const N: usize>(&self, numbers: [u32; N]) -> [u32; N] {
        numbers
    }
}

/// What [`Frame::forget`] keeps of a number: more than any offset that parsing knows.
pub const FORGOTTEN_MAX: u32 = 0x3fff;

/// A frame whose bytes can be changed in place.
pub trait FrameMut: Frame {
    /// The `N` bytes at `offset` for writing.
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;
}

impl Frame for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        self.get(offset..)?.first_chunk().map(Window)
    }
}

impl FrameMut for [u8] {
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.get_mut(offset..)?.first_chunk_mut()
    }
}

/// `N` bytes that are known to be there.
#[derive(Clone, Copy)]
pub struct Window<'a, const N: usize>(pub &'a [u8; N]);

impl<const N: usize> Window<'_, N> {
    /// The byte at `AT`.
    #[inline(always)]
    pub fn u8<const AT: usize>(self) -> u8 {
        const { assert!(AT < N) };
        self.0[AT]
    }

    /// The two bytes at `AT` as they stand in the packet.
    #[inline(always)]
    pub fn u16_be<const AT: usize>(self) -> u16 {
        const { assert!(AT + 2 <= N) };
        // SAFETY: the assertion keeps the access within the N bytes of the window.
        unsafe { load(self.0.as_ptr().add(AT).cast()) }
    }

    /// The four bytes at `AT` as they stand in the packet.
    #[inline(always)]
    pub fn u32_be<const AT: usize>(self) -> u32 {
        const { assert!(AT + 4 <= N) };
        // SAFETY: the assertion keeps the access within the N bytes of the window.
        unsafe { load(self.0.as_ptr().add(AT).cast()) }
    }

    /// The eight bytes at `AT` as they stand in the packet.
    #[inline(always)]
    pub fn u64_be<const AT: usize>(self) -> u64 {
        const { assert!(AT + 8 <= N) };
        // SAFETY: the assertion keeps the access within the N bytes of the window.
        unsafe { load(self.0.as_ptr().add(AT).cast()) }
    }

    /// Four words from `AT` on, as an IPv6 address stands in the packet.
    #[inline(always)]
    pub fn words<const AT: usize>(self) -> [u32; 4] {
        const { assert!(AT + 16 <= N) };
        let base = self.0.as_ptr();
        // SAFETY: the assertion keeps all four accesses within the N bytes of the window.
        unsafe {
            [
                load(base.add(AT).cast()),
                load(base.add(AT + 4).cast()),
                load(base.add(AT + 8).cast()),
                load(base.add(AT + 12).cast()),
            ]
        }
    }
}

/// One load of a word at any address.
///
/// # Safety
///
/// `from` points to readable memory of the size of `T`.
#[inline(always)]
unsafe fn load<T: Copy>(from: *const T) -> T {
    #[cfg(target_arch = "bpf")]
    // SAFETY: readable by contract. Alignment: LLVM would split an unaligned read into bytes,
    // ten instructions instead of one. BPF itself has no alignment; where a machine does need
    // it, the kernel's verifier refuses the program instead of running it.
    return unsafe { *from };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: readable by contract.
    return unsafe { from.read_unaligned() };
}

/// One store of a word at any address, see [`load`].
///
/// # Safety
///
/// `to` points to writable memory of the size of `T`.
#[inline(always)]
unsafe fn store<T: Copy>(to: *mut T, value: T) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: writable by contract; for alignment see `load`.
    unsafe {
        *to = value;
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: writable by contract.
    unsafe {
        to.write_unaligned(value);
    }
}

/// Writes two bytes, as they shall stand in the packet, at `AT`.
#[inline(always)]
pub fn put_u16<const AT: usize, const N: usize>(window: &mut [u8; N], value_be: u16) {
    const { assert!(AT + 2 <= N) };
    // SAFETY: the assertion keeps the access within the window.
    unsafe { store(window.as_mut_ptr().add(AT).cast(), value_be) }
}

/// Writes four bytes, as they shall stand in the packet, at `AT`.
#[inline(always)]
pub fn put_u32<const AT: usize, const N: usize>(window: &mut [u8; N], value_be: u32) {
    const { assert!(AT + 4 <= N) };
    // SAFETY: the assertion keeps the access within the window.
    unsafe { store(window.as_mut_ptr().add(AT).cast(), value_be) }
}

#[cfg(test)]
mod tests;
