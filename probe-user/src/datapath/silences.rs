//! Which endpoints leave clients' SYNs unanswered.
//!
//! Programs write down when the first SYN since the last answer went to an endpoint, by the agent's
//! clock, and forget it at any answer; so what stands there is about the endpoint, not about one
//! connection. Both tables are mapped: a look costs a load an endpoint and no call of the kernel.

use std::{os::fd::AsFd, time::Duration};

use nix::time::{ClockId, clock_gettime};
use probe_ebpf::abi::{MAX_ENDPOINTS, Silence, tick};

use super::{EndpointId, Error, Node, mapping::Mapping};

/// An endpoint that has answered no client for a while, though it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Tells this silence from an earlier one.
    pub since: u32,
    /// How long it lasts, counted from the look before the first of those SYNs.
    pub lasts: Duration,
}

/// The mapped table.
#[derive(Debug)]
pub struct Silences {
    table: Mapping,
    node: Node,
}

impl Silences {
    /// Maps the table behind this map's descriptor.
    pub fn map(fd: impl AsFd, node: Node) -> Result<Self, Error> {
        let table = Mapping::of::<Silence>(fd, MAX_ENDPOINTS, "the table of silences")?;
        Ok(Self { table, node })
    }

    /// Endpoints below this id that have been silent for so long. What is asked from now on counts
    /// from now.
    pub fn look(&self, below: u32, at_least: Duration) -> Result<Vec<Silent>, Error> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map(Duration::from)
            .map_err(|e| Error::failed("reading the clock", std::io::Error::from(e)))?;
        let now = tick(now.as_nanos() as u64);
        self.node.look(now);
        let mut silent = Vec::new();
        for id in 0..below.min(MAX_ENDPOINTS) {
            let since = self.of(EndpointId(id)).since.get();
            if since == 0 {
                continue;
            }
            let lasts = lasted(since, now);
            if lasts >= at_least {
                silent.push(Silent {
                    endpoint: EndpointId(id),
                    since,
                    lasts,
                });
            }
        }
        Ok(silent)
    }

    /// It answers: what it was asked before counts no longer.
    pub fn heard(&self, endpoint: EndpointId) {
        self.of(endpoint).broken();
    }

    fn of(&self, EndpointId(id): EndpointId) -> &Silence {
        self.table.value(id as usize)
    }
}

/// The time from one tick to a later one. The clock begins anew after 78 hours.
fn lasted(since: u32, now: u32) -> Duration {
    Duration::from_nanos(u64::from(now.wrapping_sub(since)) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_may_begin_anew() {
        for (since, now, ticks) in [(5, 5, 0), (5, 8, 3), (u32::MAX - 1, 2, 4)] {
            assert_eq!(lasted(since, now), ticks * Duration::from_nanos(1 << 16));
        }
    }
}
