//! The rings in the kernel, and whose they are.
//!
//! A service that needs a ring gets one, and for its next change another. It then has
//! two, and writes whichever no decision of its names. Both are its own until it leaves
//! the configuration, so a program that still looks at the one just left finds endpoints
//! of the same service there, whatever is written meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    sync::atomic::Ordering,
};

use probe_ebpf::abi::{MAX_RINGS, RING_SIZE, Ring};

use super::{Error, ServiceId, mapping::Mapping};

/// Places of a ring and what fills them up, in quarters of a word.
const STRIDE: usize = size_of::<Ring>() / 2;

/// The mapped table, and its owners.
#[derive(Debug)]
pub struct Rings {
    mapping: Mapping,
    owners: Owners,
}

impl Rings {
    /// Maps the table behind this map's descriptor. Nobody owns a ring yet.
    pub fn map(fd: impl AsFd) -> Result<Self, Error> {
        Ok(Self {
            mapping: Mapping::of::<Ring>(fd, MAX_RINGS, "the rings")?,
            owners: Owners::default(),
        })
    }

    /// An earlier agent's decision of this service names this ring.
    pub fn inherit(&mut self, service: ServiceId, ring: u32) {
        if ring < MAX_RINGS {
            self.owners.0.insert(ring, service);
        }
    }

    /// The service has left.
    pub fn release(&mut self, service: ServiceId) {
        self.owners.0.retain(|_, owner| *owner != service);
    }

    /// The endpoints of a ring. Empty if there is no such ring.
    pub fn endpoints(&self, ring: u32) -> BTreeSet<u32> {
        if ring >= MAX_RINGS {
            return BTreeSet::new();
        }
        let place = |place| u32::from(self.place(ring, place).load(Ordering::Relaxed));
        (0..RING_SIZE).map(place).collect()
    }

    /// A ring of this content for a service whose decision names `named`: that one if it
    /// is what is wanted, or another one, written now.
    pub fn put(
        &mut self,
        service: ServiceId,
        named: Option<u32>,
        content: &[u16; RING_SIZE],
    ) -> Result<u32, Error> {
        let same = |ring: &u32| {
            let mut places = content.iter().enumerate();
            places.all(|(place, id)| self.place(*ring, place).load(Ordering::Relaxed) == *id)
        };
        if let Some(named) = named.filter(|ring| *ring < MAX_RINGS).filter(same) {
            return Ok(named);
        }
        let Some(ring) = self.owners.spare(service, named) else {
            let what = format!("the ring of service {}", service.0);
            return Err(Error::Full {
                what,
                most: MAX_RINGS,
            });
        };
        for (place, id) in content.iter().enumerate() {
            self.place(ring, place).store(*id, Ordering::Relaxed);
        }
        Ok(ring)
    }

    fn place(&self, ring: u32, place: usize) -> &std::sync::atomic::AtomicU16 {
        self.mapping.quarter(ring as usize * STRIDE + place)
    }
}

/// Whose each ring is.
#[derive(Debug, Default)]
struct Owners(BTreeMap<u32, ServiceId>);

impl Owners {
    /// A ring that the service may write: its own that is not named, or one that nobody
    /// has, which then is its own.
    fn spare(&mut self, service: ServiceId, named: Option<u32>) -> Option<u32> {
        let own = |ring: &u32| self.0.get(ring) == Some(&service) && Some(*ring) != named;
        let ring = self.0.keys().copied().find(own).or_else(|| {
            let mut free = 0..MAX_RINGS;
            free.find(|ring| !self.0.contains_key(ring))
        })?;
        self.0.insert(ring, service);
        Some(ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ServiceId = ServiceId(1);
    const TWO: ServiceId = ServiceId(2);

    #[test]
    fn a_service_writes_two_rings_in_turn_and_never_the_one_it_names() {
        let mut owners = Owners::default();
        let first = owners.spare(ONE, None).unwrap();
        let other = owners.spare(TWO, None).unwrap();
        let mut named = first;
        let mut seen = BTreeSet::from([first]);
        for _ in 0..10 {
            let next = owners.spare(ONE, Some(named)).unwrap();
            assert!(next != named && next != other);
            seen.insert(next);
            named = next;
        }
        assert_eq!(seen.len(), 2);
        assert_eq!(owners.0.len(), 3);
    }

    #[test]
    fn the_table_has_an_end() {
        let mut owners = Owners::default();
        for service in 0..MAX_RINGS {
            assert!(owners.spare(ServiceId(service), None).is_some());
        }
        assert_eq!(owners.spare(ServiceId(MAX_RINGS), None), None);
        // Its own is still there for whoever names none.
        assert_eq!(owners.spare(ONE, None), Some(1));
    }
}
