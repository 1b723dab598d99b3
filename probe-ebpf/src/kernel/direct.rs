//! Packet memory between `data` and `data_end`, checked as the verifier wants it.

use probe_ebpf::packet::{Frame, FrameMut, Window};

/// The part of a frame that the program may touch directly.
pub struct Direct {
    start: usize,
    end: *const u32,
    length: usize,
}

impl Direct {
    /// From the context's `data`, the place of its `data_end`, and the whole frame's
    /// length.
    ///
    /// # Safety
    ///
    /// `start` was just read from the program's context, `end` points into it, and no
    /// helper that may move packet memory runs while this lives.
    #[inline(always)]
    pub unsafe fn new(start: usize, end: *const u32, length: usize) -> Self {
        Self { start, end, length }
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

impl Frame for Direct {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        let from = self.start + offset;
        if from + N > self.end() {
            return None;
        }
        // SAFETY: N bytes from here end before `data_end`; the verifier checks it again.
        Some(Window(unsafe { &*(from as *const [u8; N]) }))
    }
}

impl FrameMut for Direct {
    #[inline(always)]
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let from = self.start + offset;
        if from + N > self.end() {
            return None;
        }
        // SAFETY: as in `window`; `&mut self` keeps other windows away.
        Some(unsafe { &mut *(from as *mut [u8; N]) })
    }
}
