//! Where clients connect to, and what saves most packets the look into a hash table.

use super::{Address, MAX_ENDPOINTS, MAX_SERVICES, Shared};

/// Where clients connect to: VIP, port and protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey<A> {
    /// The VIP.
    pub addr_be: A,
    /// Its port.
    pub port_be: u16,
    /// IP protocol number; TCP is 6.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl<A: Address> ListenerKey<A> {
    /// Its bit in the [`Sieve`].
    #[inline(always)]
    pub fn bit(&self) -> u32 {
        let what = (self.port_be as u64) << 48 | (self.protocol as u64) << 40;
        // The golden ratio: the product's highest bits depend on all of the key's.
        ((self.addr_be.fold() ^ what).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32
    }

    /// Itself as words, different for all keys of both families.
    #[inline(always)]
    pub fn words(&self) -> [u64; KEY_WORDS] {
        let [high, low] = self.addr_be.words();
        let version = (A::VERSION as u64) << 24;
        let rest = self.port_be as u64 | (self.protocol as u64) << 16 | version;
        [high, low, rest]
    }
}

/// Words of [`ListenerKey::words`].
pub const KEY_WORDS: usize = 3;

/// Words of a [`Sieve`].
pub const SIEVE_WORDS: usize = 1024;

/// Which listeners there may be: a bit for each [`ListenerKey::bit`]. Most packets of a node are
/// for nobody's listener, and a look at this is a load where a look into a hash table is a call.
/// The agent sets a listener's bit before it writes the listener, and takes it away after it.
/// The addresses of endpoints whose replies cross the node have their bits too, whether they are
/// listeners or not: what comes from elsewhere is no reply.
/// With a thousand listeners one of 65 others takes the call.
#[repr(C)]
pub struct Sieve([Shared<u64>; SIEVE_WORDS]);

impl Sieve {
    /// Which word this bit is in, and the word's mask.
    #[inline(always)]
    pub fn place(bit: u32) -> (usize, u64) {
        (bit as usize / 64 % SIEVE_WORDS, 1 << (bit % 64))
    }

    /// May there be a listener with this bit?
    #[inline(always)]
    pub fn may_have(&self, bit: u32) -> bool {
        let (word, mask) = Self::place(bit);
        self.0[word].get() & mask != 0
    }
}

/// [`Listener::kind`]: goes where the service's selection says.
pub const LISTENER_SELECTION: u32 = 0;
/// [`Listener::kind`]: always goes to [`Listener::endpoint`].
pub const LISTENER_ENDPOINT: u32 = 1;
/// [`Listener::kind`]: an endpoint's own address. Connections to it are not steered;
/// they are known only so that a steered one of the same client port keeps clear.
pub const LISTENER_OWN: u32 = 2;

/// Bit of [`Listener::flags`]: the main way to its endpoints. Every other way to any
/// of them (an own address, a second listener, another service's listener) is a side
/// way: whoever comes by it tells in [`Selection::side`] and looks whether its tuple is
/// taken, so who comes by the main way need not look while nobody comes by a side way.
pub const LISTENER_MAIN: u32 = 1;

/// What stands behind a VIP:port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Index into the service tables.
    pub service: u32,
    /// The endpoint, unless the listener follows the selection.
    pub endpoint: u32,
    /// [`LISTENER_SELECTION`], [`LISTENER_ENDPOINT`] or [`LISTENER_OWN`].
    pub kind: u32,
    /// [`LISTENER_MAIN`] or nothing.
    pub flags: u32,
}

/// Slots of the cache of listeners, a power of two.
pub const CACHE_SLOTS: u32 = 8192;

/// A slot of the cache of listeners: direct-mapped, by [`ListenerKey::bit`], over both families.
/// A look at it costs a few loads, one into a hash table a call and a hash. A listener whose slot
/// is another's is found in its table, which always has all of them.
///
/// The agent changes a listener by one store of `listener`. Before it gives the slot to another
/// key it leaves it empty for longer than any program runs, so whoever has read the listener
/// reads the key that belongs to it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct CachedListener {
    /// A packed [`Listener`], or zero if the slot is empty.
    pub listener: Shared<u64>,
    /// [`ListenerKey::words`].
    pub key: [Shared<u64>; KEY_WORDS],
}

impl CachedListener {
    /// The slot of this [`ListenerKey::bit`].
    #[inline(always)]
    pub const fn slot(bit: u32) -> u32 {
        bit % CACHE_SLOTS
    }

    /// The listener of this key, if it is this slot's.
    #[inline(always)]
    pub fn find<A: Address>(&self, key: &ListenerKey<A>) -> Option<Listener> {
        let word = self.listener.get();
        let [high, low, rest] = key.words();
        let [our_high, our_low, our_rest] = &self.key;
        // The highest word of all IPv4 addresses is the same.
        let high_differs = A::VERSION != 4 && our_high.get() != high;
        if our_rest.get() != rest || our_low.get() != low || high_differs {
            return None;
        }
        Listener::unpack(word)
    }
}

impl Listener {
    /// Bits 0..32 the endpoint, 32..48 the service, 48..52 the kind, 52..56 the flags, and bit 63,
    /// so that it is not zero.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        const { assert!(MAX_SERVICES <= 1 << 16 && (MAX_ENDPOINTS as u64) < 1 << 32) };
        self.endpoint as u64
            | (self.service as u64) << 32
            | (self.kind as u64 & 15) << 48
            | (self.flags as u64 & 15) << 52
            | 1 << 63
    }

    /// The reverse of [`Listener::pack`]; `None` for zero.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            service: (word >> 32) as u16 as u32,
            endpoint: word as u32,
            kind: (word >> 48) as u32 & 15,
            flags: (word >> 52) as u32 & 15,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{V4, V6};

    fn key<A>(addr_be: A, port: u16, protocol: u8) -> ListenerKey<A> {
        ListenerKey {
            addr_be,
            port_be: port.to_be(),
            protocol,
            pad: 0,
        }
    }

    #[test]
    fn packed_listeners_round_trip_and_none_is_zero() {
        for kind in [LISTENER_SELECTION, LISTENER_ENDPOINT, LISTENER_OWN] {
            for flags in [0, LISTENER_MAIN] {
                for (service, endpoint) in [(0, 0), (MAX_SERVICES - 1, MAX_ENDPOINTS - 1)] {
                    let listener = Listener {
                        service,
                        endpoint,
                        kind,
                        flags,
                    };
                    assert_eq!(Listener::unpack(listener.pack()), Some(listener));
                }
            }
        }
        assert_eq!(Listener::unpack(0), None);
    }

    #[test]
    fn a_slot_is_found_by_its_own_key_only() {
        let v4 = V4::from_bytes([10, 96, 0, 1]);
        let mapped = V6::from_bytes(v4.mapped());
        let mut other = v4.mapped();
        other[0] = 0x20;
        let ours = key(v4, 80, 6);
        let listener = Listener {
            service: 7,
            endpoint: 0,
            kind: LISTENER_SELECTION,
            flags: LISTENER_MAIN,
        };
        let slot = CachedListener::default();
        assert_eq!(slot.find(&ours), None);
        // Emptied, as the agent leaves it.
        for (cell, word) in slot.key.iter().zip(ours.words()) {
            cell.set(word);
        }
        assert_eq!(slot.find(&ours), None);
        slot.listener.set(listener.pack());
        assert_eq!(slot.find(&ours), Some(listener));
        for stranger in [
            key(v4, 81, 6),
            key(v4, 80, 17),
            key(V4::from_bytes([10, 96, 0, 2]), 80, 6),
        ] {
            assert_eq!(slot.find(&stranger), None);
        }
        assert_eq!(slot.find(&key(mapped, 80, 6)), None);
        let ours = key(mapped, 80, 6);
        for (cell, word) in slot.key.iter().zip(ours.words()) {
            cell.set(word);
        }
        assert_eq!(slot.find(&ours), Some(listener));
        assert_eq!(slot.find(&key(V6::from_bytes(other), 80, 6)), None);
        assert_eq!(slot.find(&key(v4, 80, 6)), None);
    }
}
