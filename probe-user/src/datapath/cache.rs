//! The cache before the tables of listeners, see [`CachedListener`].
//!
//! What stands in a slot says the same as its table. Programs look at a slot without a lock: its
//! listener is one word, and its key is written only while no program can hold a listener
//! that it read there before.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use probe_ebpf::abi::{CACHE_SLOTS, CachedListener, KEY_WORDS, Listener};

use super::{Error, mapping::Mapping};

/// How long a slot stays empty before another key has it: far longer than a program runs.
const REST: Duration = Duration::from_secs(10);

/// Words of a slot: the listener, then its key.
const WORDS: usize = size_of::<CachedListener>() / size_of::<u64>();
const _: () = assert!(WORDS == 1 + KEY_WORDS);

/// Where a listener stands: its bit, and its key as words.
pub type Place = (u32, [u64; KEY_WORDS]);

/// The mapped table.
#[derive(Debug)]
pub struct Cache {
    slots: Mapping,
    /// When the slot lost its listener.
    emptied: HashMap<u32, Instant>,
}

impl Cache {
    /// Maps the table behind this map's descriptor, and empties it: an agent that knows of no
    /// cache may have changed the listeners since.
    pub fn map(fd: impl AsFd, now: Instant) -> Result<Self, Error> {
        let slots = Mapping::of::<CachedListener>(fd, CACHE_SLOTS, "the cache of listeners")?;
        let mut cache = Self {
            slots,
            emptied: HashMap::new(),
        };
        for slot in 0..CACHE_SLOTS {
            cache.empty(slot, now);
        }
        Ok(cache)
    }

    /// Writes a listener that stands in its table, unless the slot is another's, or was a moment
    /// ago.
    pub fn put(&mut self, (bit, key): Place, listener: Listener, now: Instant) {
        let slot = CachedListener::slot(bit);
        let [ours, words @ ..] = self.words(slot);
        if words.each_ref().map(|word| word.load(Ordering::Relaxed)) != key {
            let rests = |at: &Instant| now.saturating_duration_since(*at) < REST;
            if ours.load(Ordering::Relaxed) != 0 || self.emptied.get(&slot).is_some_and(rests) {
                return;
            }
            for (word, value) in words.into_iter().zip(key) {
                word.store(value, Ordering::Relaxed);
            }
        }
        ours.store(listener.pack(), Ordering::Release);
        self.emptied.remove(&slot);
    }

    /// Forgets a listener that is about to leave its table.
    pub fn remove(&mut self, (bit, key): Place, now: Instant) {
        let slot = CachedListener::slot(bit);
        let [_, words @ ..] = self.words(slot);
        if words.map(|word| word.load(Ordering::Relaxed)) == key {
            self.empty(slot, now);
        }
    }

    fn empty(&mut self, slot: u32, now: Instant) {
        let [listener, ..] = self.words(slot);
        if listener.swap(0, Ordering::Relaxed) != 0 {
            self.emptied.insert(slot, now);
        }
    }

    fn words(&self, slot: u32) -> [&std::sync::atomic::AtomicU64; WORDS] {
        std::array::from_fn(|word| self.slots.word(slot as usize * WORDS + word))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{
        sys::memfd::{MFdFlags, memfd_create},
        unistd::ftruncate,
    };
    use probe_ebpf::abi::{LISTENER_ENDPOINT, ListenerKey, V4};

    use super::*;

    fn table() -> OwnedFd {
        let fd = memfd_create(c"cache", MFdFlags::empty()).expect("memory");
        let length = size_of::<CachedListener>() * CACHE_SLOTS as usize;
        ftruncate(&fd, length as i64).expect("memory");
        fd
    }

    fn key(port: u16) -> ListenerKey<V4> {
        ListenerKey {
            addr_be: V4::from_bytes([10, 96, 0, 1]),
            port_be: port.to_be(),
            protocol: 6,
            pad: 0,
        }
    }

    fn place(port: u16) -> Place {
        (key(port).bit(), key(port).words())
    }

    fn listener(endpoint: u32) -> Listener {
        Listener {
            service: 3,
            endpoint,
            kind: LISTENER_ENDPOINT,
            flags: 0,
        }
    }

    /// What a program finds.
    fn found(cache: &Cache, port: u16) -> Option<u32> {
        let key = key(port);
        let slot = CachedListener::slot(key.bit()) as usize;
        let slot = cache.slots.value::<CachedListener>(slot);
        slot.find(&key).map(|listener| listener.endpoint)
    }

    /// Two ports whose listeners want the same slot.
    fn rivals() -> (u16, u16) {
        let slot = |port| CachedListener::slot(key(port).bit());
        (81..=u16::MAX)
            .find(|port| slot(*port) == slot(80))
            .map(|port| (80, port))
            .expect("more ports than slots")
    }

    #[test]
    fn a_slot_is_its_first_key_s_until_that_has_been_gone_for_long() {
        let (first, second) = rivals();
        let now = Instant::now();
        let mut cache = Cache::map(table(), now).expect("mapped");
        cache.put(place(first), listener(1), now);
        cache.put(place(second), listener(2), now);
        assert_eq!(
            (found(&cache, first), found(&cache, second)),
            (Some(1), None)
        );
        cache.put(place(first), listener(4), now);
        assert_eq!(found(&cache, first), Some(4));
        // Another's removal is not ours.
        cache.remove(place(second), now);
        assert_eq!(found(&cache, first), Some(4));

        cache.remove(place(first), now);
        assert_eq!(found(&cache, first), None);
        let soon = now + REST / 2;
        cache.put(place(second), listener(2), soon);
        assert_eq!(found(&cache, second), None);
        // The same key may come back at once.
        cache.put(place(first), listener(5), soon);
        assert_eq!(found(&cache, first), Some(5));
        cache.remove(place(first), soon);
        cache.put(place(second), listener(2), soon + REST);
        assert_eq!(
            (found(&cache, first), found(&cache, second)),
            (None, Some(2))
        );
    }

    #[test]
    fn what_an_earlier_agent_left_is_not_believed() {
        let (first, second) = rivals();
        let (fd, now) = (table(), Instant::now());
        let mut before = Cache::map(&fd, now).expect("mapped");
        before.put(place(first), listener(1), now);
        let mut cache = Cache::map(&fd, now).expect("mapped");
        assert_eq!(found(&cache, first), None);
        cache.put(place(second), listener(2), now);
        assert_eq!(found(&cache, second), None);
        cache.put(place(first), listener(3), now);
        assert_eq!(found(&cache, first), Some(3));
    }
}
