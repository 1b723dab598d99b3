//! Packet memory between `data` and `data_end`, checked as the verifier wants it.

use probe_ebpf::packet::{Frame, FrameMut, Window};

/// The part of a frame that the program may touch directly.
pub struct Direct {
    start: usize,
    end: usize,
    length: usize,
}

impl Direct {
    /// From the context's pointers and the whole frame's length.
    ///
    /// # Safety
    ///
    /// `start` and `end` are the `data` and `data_end` just read from the program's
    /// context, and no helper that may move packet memory runs while this lives.
    #[inline(always)]
    pub unsafe fn new(start: usize, end: usize, length: usize) -> Self {
        Self { start, end, length }
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
        if from + N > self.end {
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
        if from + N > self.end {
            return None;
        }
        // SAFETY: as in `window`; `&mut self` keeps other windows away.
        Some(unsafe { &mut *(from as *mut [u8; N]) })
    }
}
