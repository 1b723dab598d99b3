//! The sieve before the listeners: bits that only a listener's packets find set.

use std::{os::fd::AsFd, sync::atomic::Ordering};

use probe_ebpf::abi::{SIEVE_WORDS, Sieve as Bits};

use super::{Error, mapping::Mapping};

/// The mapped table.
#[derive(Debug)]
pub struct Sieve(Mapping);

impl Sieve {
    /// Maps the table behind this map's descriptor.
    pub fn map(fd: impl AsFd) -> Result<Self, Error> {
        Ok(Self(Mapping::of::<Bits>(fd, 1, "the sieve of listeners")?))
    }

    /// There will be a listener with this bit.
    pub fn add(&self, bit: u32) {
        let (word, mask) = Bits::place(bit);
        self.0.word(word).fetch_or(mask, Ordering::Release);
    }

    /// There are no listeners but with these bits, and all of them have been added.
    pub fn keep(&self, bits: impl Iterator<Item = u32>) {
        let mut words = [0; SIEVE_WORDS];
        for (word, mask) in bits.map(Bits::place) {
            words[word] |= mask;
        }
        for (at, word) in words.into_iter().enumerate() {
            self.0.word(at).store(word, Ordering::Release);
        }
    }
}
