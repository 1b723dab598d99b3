//! Packet memory between `data` and `data_end`, checked as the verifier wants it.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use probe_ebpf::packet::{FORGOTTEN_MAX, Frame, FrameMut, Window};

/// The part of a frame that the program may touch directly.
pub struct Direct<L> {
    start: usize,
    end: *const u32,
    length: L,
}

/// Tells the whole frame's length, over all its buffers.
pub trait Length {
    /// In bytes. May take a call of the kernel.
    fn length(&self) -> usize;
}

/// A length that costs nothing to know.
impl Length for usize {
    #[inline(always)]
    fn length(&self) -> usize {
        *self
    }
}

impl<L: Length> Direct<L> {
    /// From the context's `data`, the place of its `data_end`, and what tells the whole
    /// frame's length.
    ///
    /// # Safety
    ///
    /// `start` was just read from the program's context, `end` points into it, and no
    /// helper that may move packet memory runs while this lives.
    #[inline(always)]
    pub unsafe fn new(start: usize, end: *const u32, length: L) -> Self {
        Self { start, end, length }
    }

    /// The address of an offset. No real one is above the mask; the verifier wants it for
    /// those that lay in map memory meanwhile, of which it knows nothing.
    #[inline(always)]
    fn at(&self, offset: usize) -> usize {
        self.start + (offset & FORGOTTEN_MAX as usize)
    }

    /// Where the packet ends, read anew for every check. Were it the same value each
    /// time, the compiler would drop a check that follows from an earlier one (a TCP
    /// header behind the IP header is there, so the IP header is), and the verifier,
    /// which does not reason across pointers, would miss it.
    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: it points into the context by the contract of `new`.
        unsafe { self.end.read_volatile() as usize }
    }
}

impl<L: Length> Frame for Direct<L> {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length.length()
    }

    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        length <= self.end() - self.start || length <= self.length.length()
    }

    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        let from = self.at(offset);
        if from + N > self.end() {
            return None;
        }
        // SAFETY: N bytes from here end before `data_end`; the verifier checks it again. A packet is
        // not at address zero; without a word the compiler would ask.
        unsafe { core::hint::assert_unchecked(from != 0) };
        // SAFETY: as above.
        Some(Window(unsafe { &*(from as *const [u8; N]) }))
    }

    #[inline(always)]
    fn forget<const N: usize>(&self, numbers: [u32; N]) -> [u32; N] {
        let mut out = launder(numbers);
        for number in &mut out[..N - 1] {
            *number &= FORGOTTEN_MAX;
        }
        out
    }
}

/// Where [`Frame::forget`] lays numbers down.
#[map]
static SCRATCH: PerCpuArray<[u32; WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Numbers that can be forgotten at once.
const WORDS: usize = 8;

/// Lays numbers down in map memory and picks them up again: of those the verifier
/// knows nothing.
#[inline(always)]
fn launder<const N: usize>(numbers: [u32; N]) -> [u32; N] {
    const { assert!(N <= WORDS) };
    let mut out = [0; N];
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        for (i, number) in numbers.into_iter().enumerate() {
            // SAFETY: within the element by the assertion; it is this CPU's own, and programs of
            // one CPU do not run concurrently in softirq.
            unsafe {
                let word = scratch.cast::<u32>().add(i);
                word.write_volatile(number);
                out[i] = word.read_volatile();
            }
        }
    }
    out
}

impl<L: Length> FrameMut for Direct<L> {
    #[inline(always)]
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let from = self.at(offset);
        if from + N > self.end() {
            return None;
        }
        // SAFETY: as in `window`.
        unsafe { core::hint::assert_unchecked(from != 0) };
        // SAFETY: as in `window`; `&mut self` keeps other windows away.
        Some(unsafe { &mut *(from as *mut [u8; N]) })
    }
}
