//! Removing flows that nobody uses any more.
//!
//! The datapath forgets a flow at its RST or its second FIN's acknowledgment. What
//! stays behind are connections that never opened, or that ended in silence. A
//! flow is idle when neither of its two entries has seen a packet.

use std::{
    collections::{HashMap as Map, HashSet},
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData};
use nix::time::{ClockId, clock_gettime};
use probe_ebpf::{
    abi::{
        Address, FLOW_ESTABLISHED, FLOW_FIN, FlowKey, ForwardFlow, Plain, ReverseFlow, V4, V6, seen,
    },
    names,
    packet::parse::UDP,
};

use super::{
    EndpointId, Error, FlowCounts, Image, batch,
    pins::Pins,
    reader::{FlowGauge, open},
};

/// How long a flow may be idle, by its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A SYN was seen, no answer yet.
    pub opening: Duration,
    /// Both sides have spoken.
    pub established: Duration,
    /// One side has sent its FIN.
    pub closing: Duration,
    /// UDP: only the client has spoken.
    pub datagrams: Duration,
    /// UDP: both sides have spoken.
    pub datagrams_answered: Duration,
}

impl Default for Limits {
    /// Linux retries a SYN for about two minutes and sends keepalives after two
    /// hours; a FIN that is not answered is given up after about a minute. Those for UDP
    /// are conntrack's.
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(150),
            established: Duration::from_secs(3 * 3600),
            closing: Duration::from_secs(120),
            datagrams: Duration::from_secs(30),
            datagrams_answered: Duration::from_secs(180),
        }
    }
}

/// What a sweep found and did.
#[derive(Clone, Debug)]
pub struct Swept {
    /// When it began.
    pub began: Instant,
    /// Flows that remain.
    pub flows: FlowCounts,
    /// Flows removed.
    pub removed: u64,
    per_endpoint: Map<u32, u64>,
}

impl Swept {
    /// Flows of an endpoint that remain.
    pub fn flows_of(&self, endpoint: EndpointId) -> u64 {
        self.per_endpoint.get(&endpoint.0).copied().unwrap_or(0)
    }
}

/// The flow tables of one family. Values are read as bytes (`F` and `R` of them),
/// since packets change them meanwhile.
struct Family<A: Address, const F: usize, const R: usize>
where
    FlowKey<A>: Plain,
{
    forward: HashMap<MapData, Image<FlowKey<A>>, [u8; F]>,
    reverse: HashMap<MapData, Image<FlowKey<A>>, [u8; R]>,
    /// The same two maps once more, for reading in batches.
    forward_data: MapData,
    reverse_data: MapData,
}

/// Sweeps the flow tables.
pub struct Sweeper {
    v4: Family<V4, { size_of::<ForwardFlow>() }, { size_of::<ReverseFlow<V4>>() }>,
    v6: Family<V6, { size_of::<ForwardFlow>() }, { size_of::<ReverseFlow<V6>>() }>,
    gauge: Arc<FlowGauge>,
}

impl Sweeper {
    pub(super) fn open(pins: &Pins, gauge: Arc<FlowGauge>) -> Result<Self, Error> {
        Ok(Self {
            v4: Family::open(pins, names::MAP_FORWARD_V4, names::MAP_REVERSE_V4)?,
            v6: Family::open(pins, names::MAP_FORWARD_V6, names::MAP_REVERSE_V6)?,
            gauge,
        })
    }

    /// Looks at every flow and removes the idle ones. Blocks for a few milliseconds
    /// per 100,000 flows.
    pub fn sweep(&mut self, limits: &Limits) -> Result<Swept, Error> {
        let began = Instant::now();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map(Duration::from)
            .map_err(|e| Error::failed("reading the clock", std::io::Error::from(e)))?;
        let clock = Clock {
            now: seen(now.as_nanos() as u64),
            limits: *limits,
        };
        let mut per_endpoint = Map::new();
        let (v4, removed_v4) = self.v4.sweep(&clock, &mut per_endpoint)?;
        let (v6, removed_v6) = self.v6.sweep(&clock, &mut per_endpoint)?;
        let flows = FlowCounts { v4, v6 };
        self.gauge.set(flows);
        Ok(Swept {
            began,
            flows,
            removed: removed_v4 + removed_v6,
            per_endpoint,
        })
    }
}

/// Judges idleness in the unit of [`seen`].
struct Clock {
    now: u32,
    limits: Limits,
}

impl Clock {
    fn idle(&self, protocol: u8, seen_at: u32, state: u32) -> bool {
        let limit = if protocol == UDP && state & FLOW_ESTABLISHED != 0 {
            self.limits.datagrams_answered
        } else if protocol == UDP {
            self.limits.datagrams
        } else if state & FLOW_FIN != 0 {
            self.limits.closing
        } else if state & FLOW_ESTABLISHED != 0 {
            self.limits.established
        } else {
            self.limits.opening
        };
        // A flow may be seen after the clock was read; it is then younger than nothing.
        let age = self.now.saturating_sub(seen_at);
        u64::from(age) > u64::from(seen(limit.as_nanos() as u64))
    }
}

impl<A: Address, const F: usize, const R: usize> Family<A, F, R>
where
    FlowKey<A>: Plain,
    ReverseFlow<A>: Plain,
{
    fn open(pins: &Pins, forward: &str, reverse: &str) -> Result<Self, Error> {
        let data = |name: &str| {
            MapData::from_pin(pins.map(name))
                .map_err(|e| Error::failed(format!("opening pinned map {name}"), e))
        };
        Ok(Self {
            forward: open(pins, forward)?,
            reverse: open(pins, reverse)?,
            forward_data: data(forward)?,
            reverse_data: data(reverse)?,
        })
    }

    /// Answers how many flows remain and how many were removed.
    fn sweep(
        &mut self,
        clock: &Clock,
        per_endpoint: &mut Map<u32, u64>,
    ) -> Result<(u64, u64), Error> {
        let (mut remain, mut removed) = (0, 0);
        let mut idle = HashSet::new();
        let reading = |e| Error::failed("reading the flow tables", e);
        let fd = self.forward_data.fd().as_fd();
        batch::for_each(fd, size_of::<FlowKey<A>>(), F, |key, value| {
            let flow: ForwardFlow = decode(value);
            let key: FlowKey<A> = decode(key);
            if clock.idle(key.protocol, flow.seen.get(), flow.state.get()) {
                idle.insert(key);
            } else {
                remain += 1;
                *per_endpoint.entry(flow.endpoint).or_default() += 1;
            }
        })
        .map_err(reading)?;
        // The endpoint's side is where the other half of a flow is found from: its entry names the
        // client's port and the VIP, which make the forward key.
        let mut stale = Vec::new();
        let fd = self.reverse_data.fd().as_fd();
        batch::for_each(fd, size_of::<FlowKey<A>>(), R, |key, value| {
            let flow: ReverseFlow<A> = decode(value);
            let key: FlowKey<A> = decode(key);
            if clock.idle(key.protocol, flow.seen.get(), flow.state.get()) {
                let forward = FlowKey {
                    peer_be: flow.vip_be,
                    peer_port_be: flow.vip_port_be,
                    client_port_be: flow.client_port_be,
                    ..key
                };
                stale.push((key, forward));
            }
        })
        .map_err(reading)?;
        for (reverse, forward) in stale {
            // One side that is not idle keeps both alive.
            let alone = self.forward.get(&Image(forward), 0).is_err();
            if !alone && !idle.contains(&forward) {
                continue;
            }
            // Gone already is as good.
            let _ = self.forward.remove(&Image(forward));
            let _ = self.reverse.remove(&Image(reverse));
            removed += 1;
        }
        // What was idle on the client's side and stays for its other side still counts.
        remain += (idle.len() as u64).saturating_sub(removed);
        Ok((remain, removed))
    }
}

/// A value of the ABI from the kernel's bytes.
fn decode<T: Plain>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>(), "the map's shape was checked");
    // SAFETY: `Plain` makes every bit pattern valid, and the length was just checked.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
