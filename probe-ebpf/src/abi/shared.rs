//! Words of map memory that several CPUs and the agent use at once.

use core::cell::UnsafeCell;

/// A word of map memory that several CPUs and the agent read and write at once.
///
/// Each access is one aligned load or store, so a reader sees one writer's whole
/// word; nothing is ordered around it. (BPF targets have no 32-bit atomics in
/// `core`, hence not those.)
#[repr(transparent)]
#[derive(Default)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: all access goes through volatile, aligned, word-sized loads and stores.
unsafe impl<T: Word> Sync for Shared<T> {}

/// What [`Shared`] may hold: types the machine loads and stores in one go.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl<T: Word> Shared<T> {
    /// A word with this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The word as it is now.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the reference proves that the word is mapped and aligned.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the word.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`; a racing store loses or wins whole.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl Shared<u64> {
    /// Adds to the word, whoever else does. BPF has no result of an addition before
    /// Linux 5.12, so there is none here.
    #[inline(always)]
    pub fn add(&self, more: u64) {
        let word = self.0.get();
        // `AtomicU64` has no additions for BPF, which knows some of the others not.
        #[cfg(target_arch = "bpf")]
        // SAFETY: the reference proves that the word is mapped and aligned.
        unsafe {
            use core::intrinsics::{AtomicOrdering, atomic_xadd};
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, more);
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: as above; whoever else writes it does so whole.
        unsafe {
            use core::sync::atomic::{AtomicU64, Ordering};
            AtomicU64::from_ptr(word).fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl<T: Word> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}

impl<T: Word + core::fmt::Debug> core::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}
