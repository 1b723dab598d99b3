//! Counters, summed over CPUs, for metrics and status.

use std::{
    mem::offset_of,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use probe_ebpf::{
    abi::{Decision, EndpointCounters, Reason, Selection},
    names,
};

use super::{EndpointId, Error, Image, ServiceId, pins::Pins};

const DECISION: usize = offset_of!(Selection, decision) / 8;
const EXCEPTIONS: usize = offset_of!(Selection, exceptions) / 8;

/// Flows in the tables at the last sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// IPv4.
    pub v4: u64,
    /// IPv6.
    pub v6: u64,
    /// Connected sockets of the node's own processes.
    pub own: u64,
}

/// Where a sweep leaves its counts for readers.
#[derive(Debug, Default)]
pub(super) struct FlowGauge {
    v4: AtomicU64,
    v6: AtomicU64,
    own: AtomicU64,
}

impl FlowGauge {
    pub fn set(&self, counts: FlowCounts) {
        self.v4.store(counts.v4, Ordering::Relaxed);
        self.v6.store(counts.v6, Ordering::Relaxed);
        self.own.store(counts.own, Ordering::Relaxed);
    }
}

/// Reads counters; cheap to clone, safe to use from any task.
#[derive(Clone)]
pub struct Reader {
    maps: Arc<Maps>,
    gauge: Arc<FlowGauge>,
}

struct Maps {
    endpoints: PerCpuArray<MapData, Image<EndpointCounters>>,
    reasons: PerCpuArray<MapData, u64>,
    selections: Array<MapData, [u64; size_of::<Selection>() / 8]>,
}

/// Opens a pinned map as this type.
pub(super) fn open<T: TryFrom<Map, Error = MapError>>(pins: &Pins, name: &str) -> Result<T, Error> {
    let failed = |e| Error::failed(format!("opening pinned map {name}"), e);
    let data = MapData::from_pin(pins.map(name)).map_err(failed)?;
    Map::from_map_data(data)
        .and_then(T::try_from)
        .map_err(failed)
}

impl Reader {
    pub(super) fn open(pins: &Pins, gauge: Arc<FlowGauge>) -> Result<Self, Error> {
        let maps = Maps {
            endpoints: open(pins, names::MAP_ENDPOINT_COUNTERS)?,
            reasons: open(pins, names::MAP_REASON_COUNTERS)?,
            selections: open(pins, names::MAP_SELECTIONS)?,
        };
        Ok(Self {
            maps: Arc::new(maps),
            gauge,
        })
    }

    /// One endpoint's traffic since its id was given out.
    pub fn endpoint_counters(&self, id: EndpointId) -> Result<EndpointCounters, Error> {
        let values = self
            .maps
            .endpoints
            .get(&id.0, 0)
            .map_err(|e| Error::failed(format!("reading counters of endpoint {}", id.0), e))?;
        Ok(values
            .iter()
            .fold(EndpointCounters::default(), |sum, Image(cpu)| {
                EndpointCounters {
                    forward_packets: sum.forward_packets + cpu.forward_packets,
                    forward_bytes: sum.forward_bytes + cpu.forward_bytes,
                    reverse_packets: sum.reverse_packets + cpu.reverse_packets,
                    reverse_bytes: sum.reverse_bytes + cpu.reverse_bytes,
                    flows_opened: sum.flows_opened + cpu.flows_opened,
                    flows_closed: sum.flows_closed + cpu.flows_closed,
                }
            }))
    }

    /// Packets by reason, in the order of [`Reason::ALL`].
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Reason::ALL
            .iter()
            .map(|reason| {
                let values = self
                    .maps
                    .reasons
                    .get(&(*reason as u32), 0)
                    .map_err(|e| Error::failed("reading the reason counters", e))?;
                Ok((*reason, values.iter().sum()))
            })
            .collect()
    }

    /// Do segments in mid-connection of the service's selection go by its slot alone, without
    /// a look at the flow tables?
    pub fn slot_alone(&self, id: ServiceId) -> Result<bool, Error> {
        let slot = self
            .maps
            .selections
            .get(&id.0, 0)
            .map_err(|e| Error::failed(format!("reading the slot of service {}", id.0), e))?;
        Ok(Decision::is_alone(slot[DECISION]) && slot[EXCEPTIONS] == 0)
    }

    /// Flows in the tables at the last sweep.
    pub fn flow_counts(&self) -> FlowCounts {
        FlowCounts {
            v4: self.gauge.v4.load(Ordering::Relaxed),
            v6: self.gauge.v6.load(Ordering::Relaxed),
            own: self.gauge.own.load(Ordering::Relaxed),
        }
    }
}
