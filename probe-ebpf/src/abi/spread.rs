//! Several endpoints in a tier: which one a client's new connections go to.

use super::{Address, MAX_ENDPOINTS, Shared};

/// Places of a [`Ring`]; a prime, as Maglev's permutations want it. With 16 endpoints in
/// a tier each has 127 places, so their shares are right to one place, 0.05 % of all
/// connections, and a ring is one page of memory.
pub const RING_SIZE: usize = 2039;

/// Rings of a node. A service with several endpoints in a tier has two: the one its
/// decision names, and the one that the next change is prepared in.
pub const MAX_RINGS: u32 = 1024;

/// Endpoints that a tier may have: of equal weight, each then still has seven places or eight.
pub const MAX_TIER: usize = 256;

/// [`super::Endpoint::tier`] of one that takes no new connections: its weight is zero, or
/// it has left the configuration. No decision names it.
pub const NO_TIER: u8 = u8::MAX;

/// Where each new connection goes: a table that the agent fills by Maglev hashing
/// (Eisenbud et al., NSDI 2016, section 3.4). It is complete before a decision names it
/// and does not change while one does.
#[repr(C)]
pub struct Ring {
    places: [Shared<u16>; RING_SIZE],
    pad: Shared<u16>,
}

const _: () = assert!(MAX_ENDPOINTS < 1 << 16);

impl Ring {
    /// The endpoint's id at a place, see [`place()`].
    #[inline(always)]
    pub fn at(&self, place: usize) -> Option<u32> {
        self.places.get(place).map(|id| id.get() as u32)
    }

    /// A ring of these ids.
    pub fn new(ids: [u16; RING_SIZE]) -> Self {
        Self {
            places: ids.map(Shared::new),
            pad: Shared::new(0),
        }
    }
}

/// The place of a client in every ring, by its address and port, or by its address and
/// port zero where all its connections shall go one way.
///
/// It is the same on every node: a client whose packets take another way in still comes
/// to the same endpoint. Hence no secret is in it, and who can choose its source ports
/// can choose its endpoint.
#[inline(always)]
pub fn place<A: Address>(client_be: A, client_port_be: u16) -> usize {
    spot(client_be.fold() ^ (u16::from_be(client_port_be) as u64) << 48)
}

/// The place of a socket of the node's own, whose port is not yet known when it connects.
#[inline(always)]
pub fn place_of_socket(cookie: u64) -> usize {
    spot(cookie)
}

#[inline(always)]
fn spot(hash: u64) -> usize {
    // The finalizer of MurmurHash3: each bit of the input changes each of the output in
    // one of two cases.
    let mut hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    // Without a division, whose result the verifier would know nothing of.
    (((hash >> 32) * RING_SIZE as u64) >> 32) as usize
}

/// A client of a service that keeps its endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    /// The client.
    pub client_be: A,
    /// The service.
    pub service: u32,
}

/// Where the client's last new connection went. Shared words: two CPUs may refresh one.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    /// The endpoint's id.
    pub endpoint: Shared<u32>,
    /// When, by [`super::Node::clock`].
    pub seen: Shared<u32>,
}

/// Clients of one family whose endpoint is remembered; those whose last new connection is
/// longest ago make place.
pub const MAX_AFFINITIES: u32 = 65_536;
