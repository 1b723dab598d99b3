//! Source ports of full NAT: the agent's part is to free those that rest.

use std::{collections::HashSet, os::fd::AsFd, sync::atomic::Ordering};

use probe_ebpf::abi::{LINES_A_POOL, MAX_POOLS, PORT_FREE, PORT_RESTING, PORT_USED, PortLine};

use super::{Error, mapping::Mapping};

/// Sweeps for which a port rests, about a minute: as long as Linux keeps a connection in
/// TIME_WAIT.
const REST: u8 = 12;
const PORTS: usize = 1 << 16;

/// The mapped table.
#[derive(Debug)]
pub struct Ports(Mapping);

impl Ports {
    /// Maps the table behind this map's descriptor.
    pub fn map(fd: impl AsFd) -> Result<Self, Error> {
        let lines = MAX_POOLS * LINES_A_POOL;
        Ok(Self(Mapping::of::<PortLine>(
            fd,
            lines,
            "the source ports",
        )?))
    }

    /// After a sweep that found flows with these ports of a pool: those whose flow is gone
    /// rest, those that have rested are free. A port that came into use meanwhile may be
    /// taken for one whose flow is gone. That costs whoever tries it another try, since the
    /// reverse table decides.
    pub fn settle(&self, pool: u32, used: Option<&HashSet<u16>>) {
        for port in 0..=u16::MAX {
            let byte = self.0.byte(pool as usize * PORTS + usize::from(port));
            let next = match byte.load(Ordering::Relaxed) {
                PORT_FREE => continue,
                PORT_USED if used.is_some_and(|used| used.contains(&port)) => continue,
                PORT_USED => PORT_RESTING,
                resting if resting < PORT_RESTING + REST => resting + 1,
                _ => PORT_FREE,
            };
            byte.store(next, Ordering::Relaxed);
        }
    }
}
