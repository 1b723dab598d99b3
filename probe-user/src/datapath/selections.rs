//! The selection table, mapped into the agent's memory: a switch is one store.
//!
//! A syscall that updates an array element copies it with `memcpy`, which
//! promises nothing about what a program on another CPU sees meanwhile. A mapped
//! word is stored whole, and without entering the kernel.

use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use probe_ebpf::abi::{Decision, MAX_SERVICES, Selection};

use super::{Error, ServiceId};

const WORDS: usize = size_of::<Selection>() / size_of::<u64>();
const BYTES: usize = size_of::<Selection>() * MAX_SERVICES as usize;

/// One service's slot as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What the datapath does.
    pub decision: Decision,
    /// Switches so far.
    pub epoch: u64,
    /// Wall clock of the last switch, nanoseconds since 1970.
    pub changed_unix_ns: u64,
}

/// The mapped table.
#[derive(Debug)]
pub struct Selections {
    base: NonNull<AtomicU64>,
}

// SAFETY: the mapping is plain shared memory, accessed only through atomics.
unsafe impl Send for Selections {}
// SAFETY: as above.
unsafe impl Sync for Selections {}

impl Selections {
    /// Maps the table behind this map's descriptor.
    pub fn map(fd: impl AsFd) -> Result<Self, Error> {
        let length = NonZeroUsize::new(BYTES).expect("the table has entries");
        // SAFETY: a fresh shared mapping of a map whose shape was checked; nothing else in this
        // process points there.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd,
                0,
            )
        }
        .map_err(|errno| {
            Error::failed("mapping the selection table", std::io::Error::from(errno))
        })?;
        Ok(Self { base: base.cast() })
    }

    fn word(&self, service: ServiceId, word: usize) -> &AtomicU64 {
        assert!(service.0 < MAX_SERVICES, "service ids come from this table");
        // SAFETY: inside the mapping by the assertion and the callers' constants; aligned, since
        // the mapping starts on a page.
        unsafe { self.base.add(service.0 as usize * WORDS + word).as_ref() }
    }

    /// Reads a slot.
    pub fn get(&self, service: ServiceId) -> Slot {
        Slot {
            decision: Decision::unpack(self.word(service, 0).load(Ordering::Acquire)),
            epoch: self.word(service, 1).load(Ordering::Relaxed),
            changed_unix_ns: self.word(service, 3).load(Ordering::Relaxed),
        }
    }

    /// The switch. Epoch and time follow the decision, which must not wait.
    pub fn set(&self, service: ServiceId, decision: Decision, now_unix_ns: u64) {
        let before = self
            .word(service, 0)
            .swap(decision.pack(), Ordering::AcqRel);
        if before != decision.pack() {
            self.word(service, 1).fetch_add(1, Ordering::Relaxed);
            self.word(service, 3).store(now_unix_ns, Ordering::Relaxed);
        }
    }

    /// Empties a slot for the next service of this id.
    pub fn clear(&self, service: ServiceId) {
        for word in 0..WORDS {
            self.word(service, word).store(0, Ordering::Release);
        }
    }
}

impl Drop for Selections {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of this length, and `self` was its only user. It can
        // fail only for wrong arguments.
        let _ = unsafe { munmap(self.base.cast(), BYTES) };
    }
}
