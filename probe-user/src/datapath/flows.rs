//! The flows in the tables, for people who ask.
//!
//! Reads in batches as a sweep does, and holds nothing that packets or the core wait for. What
//! changes meanwhile may be seen or not.
//!
//! A flow is ended by giving it to an id whose flows are over ([`super::Steering::grave`]): the programs
//! reset it at its next packet, and the agent tells both ends before that, as after a switch.

use std::{
    collections::HashMap as Found,
    mem::offset_of,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::{Mutex, PoisonError},
};

use aya::maps::{HashMap, MapData};
use probe_ebpf::{
    abi::{
        Address, FLOW_CONFIRMED, FLOW_ENDED, FLOW_ESTABLISHED, FLOW_FIN, FlowKey, ForwardFlow,
        Plain, ReverseFlow, V4, V6,
    },
    names,
    packet::parse::UDP,
};

use super::{
    EndpointId, Error, Image, Protocol, ServiceId, Vip,
    batch::{self, decode},
    node,
    pins::Pins,
    reader::open,
};

/// The datapath's clock has units of 2^30 ns.
const UNIT_NS: u64 = 1 << 30;

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it connected to: a VIP, or an endpoint's own address.
    pub vip: Vip,
    /// Where it goes.
    pub endpoint: EndpointId,
    /// Its service.
    pub service: ServiceId,
    /// The client's port as the endpoint sees it.
    pub seen_port: u16,
    /// How far it is.
    pub stage: Stage,
    /// For how long neither side was seen, in ms, to a second. Where segments go by their slot
    /// alone only the endpoint's count.
    pub idle_ms: u64,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The endpoint has not answered.
    Opening,
    /// Both have spoken.
    Established,
    /// One side has sent its FIN.
    Closing,
}

impl Stage {
    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }

    fn of(state: u32) -> Self {
        if state & (FLOW_FIN | FLOW_ENDED) != 0 {
            Self::Closing
        } else if state & (FLOW_ESTABLISHED | FLOW_CONFIRMED) != 0 {
            Self::Established
        } else {
            Self::Opening
        }
    }
}

struct Family<A: Address>
where
    FlowKey<A>: Plain,
{
    forward: MapData,
    reverse: MapData,
    /// The forward table once more, for writing.
    entries: Mutex<HashMap<MapData, Image<FlowKey<A>>, Entry>>,
}

/// A forward entry's bytes.
type Entry = [u8; size_of::<ForwardFlow>()];

/// Only where there is an entry (`BPF_EXIST`).
const EXIST: u64 = 2;

/// Reads the flow tables.
pub struct Flows {
    v4: Family<V4>,
    v6: Family<V6>,
}

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let data = |name: &str| {
            MapData::from_pin(pins.map(name))
                .map_err(|e| Error::failed(format!("opening pinned map {name}"), e))
        };
        Ok(Self {
            v4: Family {
                forward: data(names::MAP_FORWARD_V4)?,
                reverse: data(names::MAP_REVERSE_V4)?,
                entries: Mutex::new(open(pins, names::MAP_FORWARD_V4)?),
            },
            v6: Family {
                forward: data(names::MAP_FORWARD_V6)?,
                reverse: data(names::MAP_REVERSE_V6)?,
                entries: Mutex::new(open(pins, names::MAP_FORWARD_V6)?),
            },
        })
    }

    /// The first so many flows that are wanted. Blocks for some milliseconds per 100,000 flows.
    pub fn list(
        &self,
        most: usize,
        mut wanted: impl FnMut(&Flow) -> bool,
    ) -> Result<Vec<Flow>, Error> {
        let now = node::now()?;
        let mut found = self.v4.list(now, most, &mut wanted)?;
        let rest = most.saturating_sub(found.len());
        found.extend(self.v6.list(now, rest, &mut wanted)?);
        Ok(found)
    }

    /// Gives a flow to an id whose flows are over; false if it is gone, or another's by now.
    pub fn bury(&self, flow: &Flow, grave: EndpointId) -> bool {
        match (flow.client.ip(), flow.vip.address.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                let (client, vip) = (client.octets(), vip.octets());
                let key = key(V4::from_bytes(client), V4::from_bytes(vip), flow);
                self.v4.bury(key, flow, grave)
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                let (client, vip) = (client.octets(), vip.octets());
                let key = key(V6::from_bytes(client), V6::from_bytes(vip), flow);
                self.v6.bury(key, flow, grave)
            }
            _ => false,
        }
    }
}

fn key<A>(client_be: A, peer_be: A, flow: &Flow) -> FlowKey<A> {
    FlowKey {
        client_be,
        peer_be,
        client_port_be: flow.client.port().to_be(),
        peer_port_be: flow.vip.address.port().to_be(),
        protocol: flow.vip.protocol.number(),
        pad: 0,
        pad2: 0,
    }
}

impl<A: Address> Family<A>
where
    FlowKey<A>: Plain,
    ReverseFlow<A>: Plain,
{
    /// The entry is written whole, so that a bit that a packet sets in this very moment may be lost:
    /// the flow ends anyhow.
    fn bury(&self, key: FlowKey<A>, flow: &Flow, grave: EndpointId) -> bool {
        const AT: usize = offset_of!(ForwardFlow, endpoint);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(mut entry) = entries.get(&Image(key), 0) else {
            return false;
        };
        let before: ForwardFlow = decode(&entry);
        if before.endpoint != flow.endpoint.0 {
            return false;
        }
        entry[AT..AT + size_of::<u32>()].copy_from_slice(&grave.0.to_ne_bytes());
        entries.insert(Image(key), entry, EXIST).is_ok()
    }

    fn list(
        &self,
        now: u32,
        most: usize,
        wanted: &mut impl FnMut(&Flow) -> bool,
    ) -> Result<Vec<Flow>, Error> {
        let reading = |e| Error::failed("reading the flow tables", e);
        let key_size = size_of::<FlowKey<A>>();
        let mut found: Found<FlowKey<A>, Flow> = Found::new();
        let fd = self.forward.fd().as_fd();
        batch::for_each(fd, key_size, size_of::<ForwardFlow>(), |key, value| {
            let (key, value): (FlowKey<A>, ForwardFlow) = (decode(key), decode(value));
            let flow = forward(&key, &value, now);
            // Whoever counts looks at all of them.
            if wanted(&flow) && found.len() < most {
                found.insert(key, flow);
            }
        })
        .map_err(reading)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let fd = self.reverse.fd().as_fd();
        batch::for_each(fd, key_size, size_of::<ReverseFlow<A>>(), |key, value| {
            let (key, value): (FlowKey<A>, ReverseFlow<A>) = (decode(key), decode(value));
            let of = FlowKey {
                client_be: value.client_be,
                peer_be: value.vip_be,
                client_port_be: value.client_port_be,
                peer_port_be: value.vip_port_be,
                ..key
            };
            if let Some(flow) = found.get_mut(&of) {
                let stage = Stage::of(value.state.get());
                if flow.stage == Stage::Opening || stage == Stage::Closing {
                    flow.stage = stage;
                }
                flow.idle_ms = flow.idle_ms.min(idle_ms(now, value.seen.get()));
            }
        })
        .map_err(reading)?;
        let mut flows: Vec<_> = found.into_values().collect();
        flows.sort_by_key(|flow| (flow.vip, flow.client));
        Ok(flows)
    }
}

fn forward<A: Address>(key: &FlowKey<A>, flow: &ForwardFlow, now: u32) -> Flow {
    let protocol = if key.protocol == UDP {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    Flow {
        client: address(key.client_be, key.client_port_be),
        vip: Vip {
            address: address(key.peer_be, key.peer_port_be),
            protocol,
        },
        endpoint: EndpointId(flow.endpoint),
        service: ServiceId(flow.service),
        seen_port: u16::from_be(flow.client_port_be),
        stage: Stage::of(flow.state.get()),
        idle_ms: idle_ms(now, flow.seen.get()),
    }
}

fn address<A: Address>(ip: A, port_be: u16) -> SocketAddr {
    let ip: IpAddr = Ipv6Addr::from(ip.mapped()).to_canonical();
    SocketAddr::new(ip, u16::from_be(port_be))
}

fn idle_ms(now: u32, seen: u32) -> u64 {
    u64::from(now.saturating_sub(seen)) * UNIT_NS / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_told_in_host_order() {
        let key = FlowKey {
            client_be: V4::from_bytes([10, 0, 0, 9]),
            peer_be: V4::from_bytes([10, 96, 0, 10]),
            client_port_be: 40_000u16.to_be(),
            peer_port_be: 8079u16.to_be(),
            protocol: UDP,
            pad: 0,
            pad2: 0,
        };
        let value = ForwardFlow {
            endpoint: 7,
            service: 2,
            client_port_be: 40_001u16.to_be(),
            ..ForwardFlow::default()
        };
        let flow = forward(&key, &value, 10);
        assert_eq!(flow.client, "10.0.0.9:40000".parse().unwrap());
        assert_eq!(flow.vip.to_string(), "10.96.0.10:8079/udp");
        assert_eq!((flow.seen_port, flow.stage), (40_001, Stage::Opening));
        assert_eq!(flow.idle_ms, 10_737);
    }

    #[test]
    fn stages() {
        for (state, stage) in [
            (0, Stage::Opening),
            (FLOW_ESTABLISHED, Stage::Established),
            (FLOW_ESTABLISHED | FLOW_FIN, Stage::Closing),
            (FLOW_ENDED, Stage::Closing),
        ] {
            assert_eq!(Stage::of(state), stage);
        }
    }
}
