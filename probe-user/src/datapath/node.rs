//! What the agent tells all programs: the time, and how much of the flow tables may go to
//! clients that nobody knows.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    mem::offset_of,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use probe_ebpf::abi::{Node as Words, V4, V6, seen};

use super::{Error, mapping::Mapping};

const SEED: usize = offset_of!(Words, seed) / 8;
const CLOCK: usize = offset_of!(Words, clock) / 4;
const GRANTED: usize = offset_of!(Words, granted) / 8;
const LIMIT: usize = offset_of!(Words, limit) / 8;
const SOURCE_V6: usize = offset_of!(Words, source_v6) / 4;
const SOURCE_V4: usize = offset_of!(Words, source_v4) / 4;
const LOOK: usize = offset_of!(Words, tick) / 4;
const MAY_SEND: usize = offset_of!(Words, may_send) / 4;

/// Time between two ticks: less than the unit of the clock.
pub const TICK: Duration = Duration::from_millis(500);

/// CLOCK_MONOTONIC in the datapath's unit.
pub fn now() -> Result<u32, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_err(|e| Error::failed("reading the clock", std::io::Error::from(e)))?;
    Ok(seen(now.as_nanos() as u64))
}

/// The mapped words; cheap to clone.
#[derive(Clone, Debug)]
pub struct Node(Arc<Mapping>);

impl Node {
    /// Maps them, chooses the seed if nobody has, and sets the clock.
    pub fn open(fd: impl AsFd) -> Result<Self, Error> {
        let node = Self(Arc::new(Mapping::of::<Words>(fd, 1, "the node's table")?));
        // Keyed by the system's random numbers, as std does for its hash maps.
        let seed = RandomState::new().build_hasher().finish() | 1;
        let _ = node
            .0
            .word(SEED)
            .compare_exchange(0, seed, Ordering::Relaxed, Ordering::Relaxed);
        node.tick()?;
        Ok(node)
    }

    /// Tells the programs what time it is.
    pub fn tick(&self) -> Result<(), Error> {
        self.0.half(CLOCK).store(now()?, Ordering::Relaxed);
        Ok(())
    }

    /// It is looked for silent endpoints, see [`Words::tick`].
    pub fn look(&self, tick: u32) {
        self.0.half(LOOK).store(tick, Ordering::Relaxed);
    }

    /// From now on so many flows may get their entries before their client has shown that it
    /// is there.
    pub fn grant(&self, flows: u64) {
        let granted = self.0.word(GRANTED).load(Ordering::Relaxed);
        self.0.word(LIMIT).store(granted + flows, Ordering::Relaxed);
    }

    /// Sets the sources of full NAT.
    pub fn set_sources(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let words = v6.map_or([0; 4], |ip| V6::from_bytes(ip.octets()).0);
        for (i, word) in words.into_iter().enumerate() {
            self.0.half(SOURCE_V6 + i).store(word, Ordering::Relaxed);
        }
        let word = v4.map_or(0, |ip| V4::from_bytes(ip.octets()).0);
        self.0.half(SOURCE_V4).store(word, Ordering::Relaxed);
    }

    /// Tells XDP programs whether they may send.
    pub fn allow_sending(&self, allowed: bool) {
        self.0
            .half(MAY_SEND)
            .store(allowed.into(), Ordering::Relaxed);
    }
}
