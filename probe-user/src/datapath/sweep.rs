//! Removing flows that nobody uses any more.
//!
//! The datapath forgets a flow at its RST or its second FIN's acknowledgment. What
//! stays behind are connections that never opened, or that ended in silence. A
//! flow is idle when neither of its two entries has seen a packet.

use std::{
    collections::{HashMap as Map, HashSet},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData};
use probe_ebpf::{
    abi::{
        Address, FLOW_CONFIRMED, FLOW_ESTABLISHED, FLOW_FIN, FLOW_SIDE, FlowKey, ForwardFlow,
        OWN_DATAGRAMS, Plain, ReverseFlow, V4, V6, seen,
    },
    names,
    packet::parse::UDP,
};

use super::{
    EndpointId, Error, FlowCounts, Image, Protocol, Vip,
    batch::{self, decode},
    node::{self, Node},
    own,
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
    /// The endpoint has answered and the client has not shown that it is there, while
    /// the tables run full: forged SYNs look like this.
    pub unconfirmed: Duration,
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
            unconfirmed: Duration::from_secs(3),
        }
    }
}

/// How long after a want of room flows of unknown clients are swept soon: all that came
/// before its end are.
const AFTER: Duration = Duration::from_secs(15);

/// What a sweep found and did.
#[derive(Clone, Debug)]
pub struct Swept {
    /// When it began.
    pub began: Instant,
    /// The same on the datapath's clock.
    pub clock: u32,
    /// What began before this, on the same clock, is in the tables by now if it is still
    /// alive.
    pub settled: u32,
    /// Flows that remain.
    pub flows: FlowCounts,
    /// Flows removed.
    pub removed: u64,
    /// Services with a flow whose client's port was changed.
    pub exceptions: HashSet<u32>,
    /// Services with a flow that came by a side way.
    pub side: HashSet<u32>,
    /// Source ports of full NAT that flows have, by endpoint.
    pub(super) source_ports: Map<u32, HashSet<u16>>,
    /// Flows by where they come from and go to.
    per_way: Map<Way, u64>,
    /// The same of the node's own sockets, which are no flows: none of their packets is
    /// translated.
    own: Map<Way, u64>,
}

/// Where a flow comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Way {
    endpoint: u32,
    vip: Vip,
}

impl Swept {
    /// For tests: flows of one listener with one endpoint.
    #[cfg(test)]
    pub fn of(began: Instant, vip: Vip, endpoint: EndpointId, flows: u64) -> Self {
        let endpoint = endpoint.0;
        Self {
            began,
            clock: 0,
            settled: 0,
            flows: FlowCounts {
                v4: flows,
                ..FlowCounts::default()
            },
            removed: 0,
            exceptions: HashSet::new(),
            side: HashSet::new(),
            source_ports: Map::new(),
            per_way: Map::from([(Way { endpoint, vip }, flows)]),
            own: Map::new(),
        }
    }

    /// Flows of an endpoint that remain, and sockets of the node's own.
    pub fn connections_of(&self, endpoint: EndpointId) -> u64 {
        let of = self
            .per_way
            .iter()
            .chain(&self.own)
            .filter(|(way, _)| way.endpoint == endpoint.0);
        of.map(|(_, count)| count).sum()
    }

    /// Flows of an endpoint that remain, of those that came by this VIP.
    pub fn flows_by(&self, vip: Vip, endpoint: EndpointId) -> u64 {
        let endpoint = endpoint.0;
        self.per_way
            .get(&Way { endpoint, vip })
            .copied()
            .unwrap_or(0)
    }

    /// [`Swept::flows_by`], and sockets of the node's own.
    pub fn connections_by(&self, vip: Vip, endpoint: EndpointId) -> u64 {
        let way = Way {
            endpoint: endpoint.0,
            vip,
        };
        self.flows_by(vip, endpoint) + self.own.get(&way).copied().unwrap_or(0)
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
    own: MapData,
    gauge: Arc<FlowGauge>,
    node: Node,
    /// Flows that the tables of one family hold.
    room: u32,
    limits: Limits,
    /// When this agent began to keep the datapath's clock: it stood still before.
    started: u32,
    /// When a flow last went without entries for want of room, until that is over.
    pressed: Option<Instant>,
}

impl Sweeper {
    pub(super) fn open(
        pins: &Pins,
        gauge: Arc<FlowGauge>,
        node: Node,
        room: u32,
        limits: Limits,
    ) -> Result<Self, Error> {
        Ok(Self {
            node,
            room,
            limits,
            started: node::now()?,
            pressed: None,
            v4: Family::open(pins, names::MAP_FORWARD_V4, names::MAP_REVERSE_V4)?,
            v6: Family::open(pins, names::MAP_FORWARD_V6, names::MAP_REVERSE_V6)?,
            own: MapData::from_pin(pins.map(names::MAP_OWN_SOCKETS))
                .map_err(|e| Error::failed("opening the table of the node's own sockets", e))?,
            gauge,
        })
    }

    /// Looks at every flow and removes the idle ones. Blocks for a few milliseconds
    /// per 100,000 flows.
    pub fn sweep(&mut self) -> Result<Swept, Error> {
        let began = Instant::now();
        let clock = Clock {
            now: node::now()?,
            started: self.started,
            pressed: self.pressed.is_some(),
            limits: self.limits,
        };
        let mut found = Found::default();
        let (v4, removed_v4) = self.v4.sweep(&clock, &mut found)?;
        let (v6, removed_v6) = self.v6.sweep(&clock, &mut found)?;
        let mut own = Map::new();
        own::each_socket(&self.own, |_, socket| {
            let way = way_of(
                socket.vip_be.bytes(),
                socket.vip_port_be,
                socket.flags & OWN_DATAGRAMS != 0,
                socket.endpoint,
            );
            *own.entry(way).or_default() += 1;
        })?;
        let flows = FlowCounts {
            v4,
            v6,
            own: own.values().sum(),
        };
        self.gauge.set(flows);
        self.weigh(v4.max(v6));
        Ok(Swept {
            began,
            clock: clock.now,
            settled: clock.settled(),
            flows,
            removed: removed_v4 + removed_v6,
            exceptions: found.exceptions,
            side: found.side,
            source_ports: found.source_ports,
            per_way: found.per_way,
            own,
        })
    }

    /// Flows go without entries for want of room: until there is much of it and none went
    /// without for a while, those whose client has not shown that it is there are swept soon.
    pub fn press(&mut self) {
        self.pressed = Some(Instant::now());
    }

    /// Decides by how full the fuller family's tables are: three quarters may go to flows
    /// whose client has not shown that it is there.
    fn weigh(&mut self, flows: u64) {
        let room = u64::from(self.room);
        let most = room * 3 / 4;
        self.node.grant(most.saturating_sub(flows));
        if flows > most {
            self.press();
        } else if flows * 2 < room && self.pressed.is_some_and(|at| at.elapsed() > AFTER) {
            self.pressed = None;
        }
    }
}

/// `vip` in IPv6 or mapped into it.
fn way_of(vip: [u8; 16], port_be: u16, datagrams: bool, endpoint: u32) -> Way {
    let ip = std::net::Ipv6Addr::from(vip).to_canonical();
    let vip = Vip {
        address: SocketAddr::new(ip, u16::from_be(port_be)),
        protocol: if datagrams {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
    };
    Way { endpoint, vip }
}

/// What a sweep learns by the way.
#[derive(Default)]
struct Found {
    per_way: Map<Way, u64>,
    exceptions: HashSet<u32>,
    side: HashSet<u32>,
    source_ports: Map<u32, HashSet<u16>>,
}

/// Judges idleness in the unit of [`seen`].
struct Clock {
    now: u32,
    started: u32,
    pressed: bool,
    limits: Limits,
}

impl Clock {
    /// See [`Swept::settled`]: as long as a handshake may take, or a flow whose end was
    /// seen may still be heard of.
    fn settled(&self) -> u32 {
        let Limits {
            opening, closing, ..
        } = self.limits;
        let life = seen(opening.max(closing).as_nanos() as u64);
        self.now.saturating_sub(life)
    }

    fn idle(&self, protocol: u8, seen_at: u32, state: u32) -> bool {
        let limit = if protocol == UDP && state & FLOW_ESTABLISHED != 0 {
            self.limits.datagrams_answered
        } else if protocol == UDP {
            self.limits.datagrams
        } else if state & FLOW_FIN != 0 {
            self.limits.closing
        } else if self.pressed && state & (FLOW_ESTABLISHED | FLOW_CONFIRMED) == FLOW_ESTABLISHED {
            // Forward entries are never confirmed; a reverse one that is keeps both.
            self.limits.unconfirmed
        } else if state & FLOW_ESTABLISHED != 0 {
            self.limits.established
        } else {
            self.limits.opening
        };
        // A flow may be seen after the clock was read; it is then younger than nothing.
        // While no agent ran nobody kept the clock that packets are seen by.
        let age = self.now.saturating_sub(seen_at.max(self.started));
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
    fn sweep(&mut self, clock: &Clock, found: &mut Found) -> Result<(u64, u64), Error> {
        let mut plan = Plan::new(clock, found);
        let reading = |e| Error::failed("reading the flow tables", e);
        let fd = self.forward_data.fd().as_fd();
        batch::for_each(fd, size_of::<FlowKey<A>>(), F, |key, value| {
            plan.forward(decode(key), &decode(value));
        })
        .map_err(reading)?;
        let fd = self.reverse_data.fd().as_fd();
        batch::for_each(fd, size_of::<FlowKey<A>>(), R, |key, value| {
            plan.reverse(decode(key), &decode(value));
        })
        .map_err(reading)?;
        let remain = plan.remain;
        let (forward, reverse) = plan.finish(|key| self.forward.get(&Image(*key), 0).is_ok());
        // Gone already is as good.
        for key in &forward {
            let _ = self.forward.remove(&Image(*key));
        }
        for key in &reverse {
            let _ = self.reverse.remove(&Image(*key));
        }
        Ok((remain, forward.len().max(reverse.len()) as u64))
    }
}

/// What a sweep of one family's tables makes of their entries: first of all forward
/// ones, then of all reverse ones.
struct Plan<'a, A> {
    clock: &'a Clock,
    found: &'a mut Found,
    remain: u64,
    /// Forward entries that are idle, with their endpoint.
    idle: Map<FlowKey<A>, u32>,
    /// Reverse entries that are idle, with the forward key that belongs to them.
    stale: Vec<(FlowKey<A>, FlowKey<A>)>,
}

impl<'a, A: Address> Plan<'a, A> {
    fn new(clock: &'a Clock, found: &'a mut Found) -> Self {
        Self {
            clock,
            found,
            remain: 0,
            idle: Map::new(),
            stale: Vec::new(),
        }
    }

    fn stays(&mut self, key: &FlowKey<A>, endpoint: u32) {
        self.remain += 1;
        let peer = key.peer_be.mapped();
        let way = way_of(peer, key.peer_port_be, key.protocol == UDP, endpoint);
        *self.found.per_way.entry(way).or_default() += 1;
    }

    fn forward(&mut self, key: FlowKey<A>, flow: &ForwardFlow) {
        if self
            .clock
            .idle(key.protocol, flow.seen.get(), flow.state.get())
        {
            self.idle.insert(key, flow.endpoint);
        } else {
            self.stays(&key, flow.endpoint);
        }
    }

    fn reverse(&mut self, key: FlowKey<A>, flow: &ReverseFlow<A>) {
        // This entry names the client's port and the VIP, which make the forward key.
        if key.client_be != flow.client_be {
            let ports = self.found.source_ports.entry(flow.endpoint).or_default();
            ports.insert(u16::from_be(key.client_port_be));
        } else if key.client_port_be != flow.client_port_be {
            self.found.exceptions.insert(flow.service);
        }
        if flow.state.get() & FLOW_SIDE != 0 {
            self.found.side.insert(flow.service);
        }
        let forward = FlowKey {
            client_be: flow.client_be,
            peer_be: flow.vip_be,
            peer_port_be: flow.vip_port_be,
            client_port_be: flow.client_port_be,
            ..key
        };
        if self
            .clock
            .idle(key.protocol, flow.seen.get(), flow.state.get())
        {
            self.stale.push((key, forward));
        } else if let Some(endpoint) = self.idle.remove(&forward) {
            // One side that is not idle keeps both alive.
            self.stays(&forward, endpoint);
        }
    }

    /// The forward and reverse entries to remove. A forward entry that is still idle
    /// here has an idle other side, or none. `exists` tells whether there is a forward
    /// entry of this key.
    fn finish(self, exists: impl Fn(&FlowKey<A>) -> bool) -> (Vec<FlowKey<A>>, Vec<FlowKey<A>>) {
        let reverse = self
            .stale
            .iter()
            .filter(|(_, forward)| self.idle.contains_key(forward) || !exists(forward))
            .map(|(reverse, _)| *reverse)
            .collect();
        (self.idle.into_keys().collect(), reverse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe_ebpf::{abi::Shared, packet::parse::TCP};

    const NOW: u32 = 1_000_000;
    const ENDPOINT: u32 = 7;
    const VIP: V4 = V4::from_bytes([10, 96, 0, 10]);
    const HOST: V4 = V4::from_bytes([10, 0, 2, 2]);

    fn key(peer_be: V4, port: u16) -> FlowKey<V4> {
        FlowKey {
            client_be: V4::from_bytes([10, 0, 1, 2]),
            peer_be,
            client_port_be: port,
            peer_port_be: 80,
            protocol: TCP,
            pad: 0,
            pad2: 0,
        }
    }

    fn forth(seen: u32) -> ForwardFlow {
        ForwardFlow {
            seen: Shared::new(seen),
            endpoint: ENDPOINT,
            ..ForwardFlow::default()
        }
    }

    fn back(seen: u32, client_port_be: u16) -> ReverseFlow<V4> {
        ReverseFlow {
            seen: Shared::new(seen),
            client_be: V4::from_bytes([10, 0, 1, 2]),
            vip_be: VIP,
            vip_port_be: 80,
            client_port_be,
            endpoint: ENDPOINT,
            ..ReverseFlow::default()
        }
    }

    /// Which entries of these go, and how many flows the endpoint still has.
    fn sweep(
        forward: &[(FlowKey<V4>, ForwardFlow)],
        reverse: &[(FlowKey<V4>, ReverseFlow<V4>)],
    ) -> (Vec<FlowKey<V4>>, Vec<FlowKey<V4>>, u64) {
        let clock = Clock {
            now: NOW,
            started: 0,
            pressed: false,
            limits: Limits::default(),
        };
        let mut found = Found::default();
        let mut plan = Plan::new(&clock, &mut found);
        for (key, flow) in forward {
            plan.forward(*key, flow);
        }
        for (key, flow) in reverse {
            plan.reverse(*key, flow);
        }
        let (gone, gone_back) = plan.finish(|key| forward.iter().any(|(k, _)| k == key));
        let left = found.per_way.values().sum();
        (gone, gone_back, left)
    }

    #[test]
    fn both_sides_idle_go_and_one_side_keeps_both() {
        // The endpoint sees another port of the client, as after a clash.
        let (there, here) = (key(VIP, 1), key(HOST, 2));
        let gone = sweep(&[(there, forth(0))], &[(here, back(0, 1))]);
        assert_eq!(gone, (vec![there], vec![here], 0));
        for (forward, reverse) in [(NOW, 0), (0, NOW), (NOW, NOW)] {
            let kept = sweep(&[(there, forth(forward))], &[(here, back(reverse, 1))]);
            assert_eq!(kept, (vec![], vec![], 1), "seen {forward} and {reverse}");
        }
    }

    #[test]
    fn halves_without_their_other_half_go_when_idle() {
        let (there, here) = (key(VIP, 1), key(HOST, 1));
        assert_eq!(sweep(&[(there, forth(0))], &[]), (vec![there], vec![], 0));
        assert_eq!(sweep(&[], &[(here, back(0, 1))]), (vec![], vec![here], 0));
        assert_eq!(sweep(&[], &[(here, back(NOW, 1))]), (vec![], vec![], 0));
    }

    /// No packet of theirs is translated, so they keep no segment from going by the slot alone;
    /// but an endpoint that drains, or an id that retires, waits for them.
    #[test]
    fn sockets_of_the_node_are_connections_and_no_flows() {
        let vip: Vip = "10.96.0.10:80".parse().unwrap();
        let (here, other) = (EndpointId(ENDPOINT), EndpointId(8));
        let mut swept = Swept::of(Instant::now(), vip, here, 2);
        let way = way_of(VIP.mapped(), 80u16.to_be(), false, ENDPOINT);
        swept.own.insert(way, 3);
        assert_eq!(swept.flows_by(vip, here), 2);
        assert_eq!(swept.connections_by(vip, here), 5);
        assert_eq!(swept.connections_of(here), 5);
        assert_eq!(swept.connections_by(vip, other), 0);
        assert_eq!(swept.connections_of(other), 0);
    }

    #[test]
    fn idle_times_are_those_of_the_state() {
        let limits = Limits::default();
        let mut clock = Clock {
            now: NOW,
            started: 0,
            pressed: false,
            limits,
        };
        let units = |limit: Duration| seen(limit.as_nanos() as u64);
        for (protocol, state, limit) in [
            (TCP, 0, limits.opening),
            (TCP, FLOW_ESTABLISHED, limits.established),
            (TCP, FLOW_ESTABLISHED | FLOW_FIN, limits.closing),
            (UDP, 0, limits.datagrams),
            (UDP, FLOW_ESTABLISHED, limits.datagrams_answered),
        ] {
            assert!(!clock.idle(protocol, NOW - units(limit), state));
            assert!(clock.idle(protocol, NOW - units(limit) - 1, state));
            // Seen after the clock was read.
            assert!(!clock.idle(protocol, NOW + 1, state));
        }
        // Nobody kept the clock before.
        clock.started = NOW - 1;
        assert!(!clock.idle(TCP, 0, 0));
    }

    #[test]
    fn under_pressure_only_unconfirmed_flows_go_sooner() {
        let limits = Limits::default();
        let clock = |pressed| Clock {
            now: NOW,
            started: 0,
            pressed,
            limits,
        };
        let long_ago = NOW - seen(limits.unconfirmed.as_nanos() as u64) - 1;
        for (state, goes) in [
            (FLOW_ESTABLISHED, true),
            (FLOW_ESTABLISHED | FLOW_CONFIRMED, false),
            (FLOW_ESTABLISHED | FLOW_FIN, false),
            (0, false),
        ] {
            assert_eq!(clock(true).idle(TCP, long_ago, state), goes);
            assert!(!clock(false).idle(TCP, long_ago, state));
        }
        assert!(!clock(true).idle(UDP, long_ago, FLOW_ESTABLISHED));
    }
}
