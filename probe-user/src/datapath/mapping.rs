//! Kernel tables: taken out of the object, and those in the agent's memory.

use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64},
};

use aya::Ebpf;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use probe_ebpf::abi::Plain;

use super::Error;

/// Takes a map out of the object as this type.
pub fn take<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<T, Error> {
    let map = ebpf
        .take_map(name)
        .expect("the object holds every map of names, taken once");
    T::try_from(map).map_err(|e| Error::failed(format!("opening map {name}"), e))
}

/// Takes an array map out of the object and maps it into memory. Only its descriptor is
/// needed, and only now: the mapping outlives it.
pub fn take_mapped<T>(
    ebpf: &mut Ebpf,
    name: &str,
    map: impl FnOnce(&aya::maps::MapFd) -> Result<T, Error>,
) -> Result<T, Error> {
    let Some(aya::maps::Map::Array(data)) = ebpf.take_map(name) else {
        unreachable!("the object holds this map, as an array, and it is taken once");
    };
    map(data.fd())
}

/// An array map made with `BPF_F_MMAPABLE`, as words.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is plain shared memory, accessed only through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `entries` values of `T` behind this map's descriptor.
    pub fn of<T>(fd: impl AsFd, entries: u32, what: &str) -> Result<Self, Error> {
        let words = size_of::<T>() / size_of::<u64>() * entries as usize;
        let length = NonZeroUsize::new(words * size_of::<u64>()).expect("the table has entries");
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
        .map_err(|errno| Error::failed(format!("mapping {what}"), std::io::Error::from(errno)))?;
        Ok(Self {
            base: base.cast(),
            words,
        })
    }

    /// The word at this place.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < self.words, "the caller knows the table's size");
        // SAFETY: inside the mapping by the assertion; aligned, since it starts on a page.
        unsafe { self.base.add(at).as_ref() }
    }

    /// A value of the type that the table was mapped as.
    pub fn value<T: Plain + Sync>(&self, number: usize) -> &T {
        let words = size_of::<T>() / size_of::<u64>();
        assert!(
            (number + 1) * words <= self.words,
            "the caller knows the table's size"
        );
        // SAFETY: inside the mapping by the assertion and aligned, since it starts on a page and
        // values are whole words; every bit pattern is a valid value, and whoever else writes it
        // does so as `Sync` allows.
        unsafe { self.base.add(number * words).cast::<T>().as_ref() }
    }

    /// A byte, for those that are never used in words; numbered from the start of the table.
    pub fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < 8 * self.words, "the caller knows the table's size");
        // SAFETY: as in `word`.
        unsafe { self.base.cast::<AtomicU8>().add(at).as_ref() }
    }

    /// The half of a word, for those that are never used whole; numbered from the start
    /// of the table.
    pub fn half(&self, at: usize) -> &AtomicU32 {
        assert!(at < 2 * self.words, "the caller knows the table's size");
        // SAFETY: as in `word`.
        unsafe { self.base.cast::<AtomicU32>().add(at).as_ref() }
    }

    /// The quarter of a word, likewise.
    pub fn quarter(&self, at: usize) -> &AtomicU16 {
        assert!(at < 4 * self.words, "the caller knows the table's size");
        // SAFETY: as in `word`.
        unsafe { self.base.cast::<AtomicU16>().add(at).as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `of`, of this length, and `self` was its only user. It can
        // fail only for wrong arguments.
        let _ = unsafe { munmap(self.base.cast(), self.words * size_of::<u64>()) };
    }
}
