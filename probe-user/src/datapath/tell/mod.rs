//! Telling clients, and endpoints that are alive, that their connection is over.
//!
//! A RST is believed only with exactly the receiver's RCV.NXT (RFC 5961 section 3), which nobody
//! here knows. But a SYN on an established connection, whatever its number, is answered by an
//! acknowledgment that says it (a challenge ACK, section 4). So each client of a lost flow is sent
//! a SYN as if by its server; its answer comes by the datapath like any packet of a flow whose
//! endpoint is lost, which turns it into the RST. Idle connections learn in this way what active
//! ones learn at their next packet.
//!
//! Once a flow is gone from the tables its endpoint is sent a SYN as if by the client. If it is
//! alive its answer goes to the client, who has no such connection any more and resets it.
//!
//! A RST may be lost, and with it the flow's entries are gone. So a while later each such client is
//! sent a bare acknowledgment of any number: whoever still has the connection acknowledges what it
//! has, and is reset for it; whoever has none answers with a RST. (Not a SYN, since nothing is known
//! any more of who opens a connection from that port: an acknowledgment that is not wanted leaves
//! that alone, RFC 9293 section 3.10.7.3.)
//!
//! What a SYN could harm: a connection that the client opens anew from the same port, if its own
//! SYN is on its way just then (a simultaneous open, RFC 9293 section 3.5). Its SYN makes the
//! entry another one, so each flow is looked at once more right before it is told; what remains is
//! the time that a packet takes to the client. Whoever is established answers with an
//! acknowledgment that says nothing new, and whoever has no connection with a RST that finds no
//! flow. Half-open connections are not told: their client repeats its SYN and gets the endpoint of
//! that moment.
//!
//! Nothing here is remembered of who is lost: endpoints' marks in the kernel say it, at each walk
//! and again before each few flows. So an endpoint that comes back is left alone from then on, any
//! number of switches is one walk, and a restarted agent goes on where it was.

mod plan;
mod syns;

use std::{
    collections::HashMap as Map,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, MapData};
use probe_ebpf::{
    abi::{
        Address, ENDPOINT_DOWN, ENDPOINT_DRAINED, Endpoint, FLOW_ENDED, FLOW_ESTABLISHED,
        FORWARD_DSR, FORWARD_FULL_NAT, FlowKey, ForwardFlow, LISTENER_SELECTION, Listener,
        ListenerKey, Plain, Selection, V4, V6,
    },
    names,
    packet::parse::{ACK, SYN, TCP},
};

use self::{
    plan::{Flow, Plan},
    syns::{Notes, Waiting},
};
use super::{
    EndpointId, Error, Image,
    batch::{self, decode},
    forge::Segment,
    pins::Pins,
    raw::{RawSender, Sent},
    reader::open,
    selections::is_lost,
};

/// Flows between two looks at what is lost and who wants us to end.
const CHUNK: usize = 128;
/// So many chunks are under way before the first of them is waited for. Between here and a client
/// next door is a queue a CPU, in which each flow has a packet; what does not fit is lost (a
/// thousand by default, `net.core.netdev_max_backlog`).
const UNDER_WAY: usize = 3;
/// How often a chunk is looked for, and the pause before each look. A client that is far away
/// takes longer, and its packets are not in our queues.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_micros(50);
/// Up to so many flows are told by whoever looks for them: that is a few milliseconds at most.
const FEW: usize = 256;
/// A walk may be made by a thread with real-time priority, which must not run for too long at once.
const BREATH: usize = 1 << 15;
/// From so many flows on they are told by several threads: the answers of clients next door are
/// worked on where the question was sent.
const SPLIT: usize = 2048;
const MAX_THREADS: usize = 4;
const DECISION: usize = std::mem::offset_of!(Selection, decision) / 8;

/// Can idle connections be told?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TellState {
    /// They are.
    Ready,
    /// They learn at their next packet: this is missing.
    Missing(String),
}

impl TellState {
    /// The words of its states.
    pub const LABELS: [&'static str; 2] = ["ready", "missing"];

    /// Its word.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Ready => Self::LABELS[0],
            Self::Missing(_) => Self::LABELS[1],
        }
    }
}

/// What a pass did for the flows of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TellCounts {
    /// SYNs that were not answered and are sent on.
    pub released: u64,
    /// Challenges to clients.
    pub clients: u64,
    /// Challenges to endpoints.
    pub endpoints: u64,
    /// Flows that are gone after their client was challenged.
    pub told: u64,
    /// Flows that are left to their next packet.
    pub given_up: u64,
}

/// A telling that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Telling {
    /// Flows that are gone.
    pub told: u64,
    /// Flows that are left to their next packet.
    pub given_up: u64,
    /// From the walk that found the first to the one that missed the last who went.
    pub took: Duration,
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct Told {
    /// By endpoint.
    pub counts: Map<EndpointId, TellCounts>,
    /// What became of the challenges.
    pub sent: Sent,
    /// Nobody is left to be told.
    pub finished: Option<Telling>,
}

impl Told {
    fn of(&mut self, flow: &Flow) -> &mut TellCounts {
        self.counts.entry(flow.endpoint).or_default()
    }

    fn add(&mut self, other: Self) {
        for (endpoint, more) in other.counts {
            let counts = self.counts.entry(endpoint).or_default();
            counts.released += more.released;
            counts.clients += more.clients;
            counts.endpoints += more.endpoints;
            counts.told += more.told;
            counts.given_up += more.given_up;
        }
        self.sent.add(other.sent);
    }
}

/// Flows of lost endpoints.
#[derive(Debug)]
pub struct Found {
    flows: Vec<Flow>,
    /// When it was looked.
    began: Instant,
}

/// What came of a look.
#[derive(Debug)]
pub enum Look {
    /// This was done.
    Done(Told),
    /// These are to be told, which takes a while.
    Many(Found),
}

/// The forward table of one family.
struct Flows<A: Address>
where
    FlowKey<A>: Plain,
{
    table: HashMap<MapData, Image<FlowKey<A>>, [u8; size_of::<ForwardFlow>()]>,
    /// The same map once more, for reading in batches.
    data: MapData,
    listeners: HashMap<MapData, Image<ListenerKey<A>>, Image<Listener>>,
}

/// Tells them.
pub struct Teller {
    v4: Flows<V4>,
    v6: Flows<V6>,
    notes_v4: Notes<V4>,
    notes_v6: Notes<V6>,
    marks: Marks,
    /// Sources of full NAT.
    sources: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    sender: RawSender,
    plan: Plan,
    /// The sequence number of challenges: any, and not one to be guessed.
    seq: u32,
    halt: Arc<AtomicBool>,
    /// What was done since there was nobody to be told.
    telling: Option<(Instant, Telling)>,
}

/// What the kernel holds of endpoints and services.
struct Marks {
    endpoints: Array<MapData, Image<Endpoint>>,
    selections: Array<MapData, [u64; size_of::<Selection>() / 8]>,
}

impl Marks {
    /// The endpoint, if its flows are over.
    fn lost(&self, id: u32) -> Result<Option<Endpoint>, Error> {
        let failed = |e| Error::failed("reading endpoints", e);
        let Image(endpoint) = self.endpoints.get(&id, 0).map_err(failed)?;
        if !matches!(endpoint.state, ENDPOINT_DOWN | ENDPOINT_DRAINED) {
            return Ok(None);
        }
        let slot = self.selections.get(&endpoint.service, 0).map_err(failed)?;
        Ok(is_lost(endpoint.state, slot[DECISION]).then_some(endpoint))
    }
}

/// Whose flows are over, each looked up once.
struct Lost<'a> {
    marks: &'a Marks,
    known: Map<u32, Option<Endpoint>>,
    error: Option<Error>,
}

impl<'a> Lost<'a> {
    fn now(marks: &'a Marks) -> Self {
        Self {
            marks,
            known: Map::new(),
            error: None,
        }
    }

    /// What cannot be read is not lost; [`Lost::error`] says why.
    fn get(&mut self, id: u32) -> Option<Endpoint> {
        *self
            .known
            .entry(id)
            .or_insert_with(|| match self.marks.lost(id) {
                Ok(lost) => lost,
                Err(error) => {
                    self.error = Some(error);
                    None
                }
            })
    }
}

/// May a flow in this state be told? Its client has a connection then.
fn is_open(flow: &ForwardFlow) -> bool {
    flow.state.get() & (FLOW_ESTABLISHED | FLOW_ENDED) == FLOW_ESTABLISHED
}

fn at<A: Address>(address: A, port_be: u16) -> SocketAddr {
    let ip = Ipv6Addr::from(address.mapped()).to_canonical();
    SocketAddr::new(ip, u16::from_be(port_be))
}

impl<A: Address> Flows<A>
where
    FlowKey<A>: Plain,
    ListenerKey<A>: Plain,
{
    fn open(pins: &Pins, forward: &str, listeners: &str) -> Result<Self, Error> {
        Ok(Self {
            table: open(pins, forward)?,
            data: MapData::from_pin(pins.map(forward))
                .map_err(|e| Error::failed(format!("opening pinned map {forward}"), e))?,
            listeners: open(pins, listeners)?,
        })
    }

    /// Is there a listener? Where there is none nobody is to be told, and a table need not be walked,
    /// which takes longer than all that follows, however few flows it has.
    fn has_listeners(&self) -> bool {
        self.listeners.keys().next().is_some()
    }

    /// Adds the flows that follow a selection and whose endpoint is lost.
    fn walk(&self, lost: &mut Lost<'_>, found: &mut Vec<Flow>) -> Result<(), Error> {
        if !self.has_listeners() {
            return Ok(());
        }
        let mut follows = Map::new();
        let mut seen = 0_usize;
        let (key_size, value_size) = (size_of::<FlowKey<A>>(), size_of::<ForwardFlow>());
        batch::for_each(
            self.data.fd().as_fd(),
            key_size,
            value_size,
            |key, value| {
                let (key, flow): (FlowKey<A>, ForwardFlow) = (decode(key), decode(value));
                seen += 1;
                if seen.is_multiple_of(BREATH) {
                    std::thread::sleep(PAUSE);
                }
                if key.protocol != TCP || !is_open(&flow) || lost.get(flow.endpoint).is_none() {
                    return;
                }
                let vip = ListenerKey {
                    addr_be: key.peer_be,
                    port_be: key.peer_port_be,
                    protocol: TCP,
                    pad: 0,
                };
                let follows = follows.entry((key.peer_be.mapped(), key.peer_port_be));
                if *follows.or_insert_with(|| self.follows(vip)) {
                    found.push(Flow {
                        client: at(key.client_be, key.client_port_be),
                        vip: at(key.peer_be, key.peer_port_be),
                        seen_port: u16::from_be(flow.client_port_be),
                        endpoint: EndpointId(flow.endpoint),
                    });
                }
            },
        )
        .map_err(|e| Error::failed("reading the flow tables", e))
    }

    /// Does who connects there follow a selection? Others stay with their endpoint, and a
    /// listener that is gone has no flows.
    fn follows(&self, vip: ListenerKey<A>) -> bool {
        let listener = self.listeners.get(&Image(vip), 0);
        listener.is_ok_and(|Image(listener)| listener.kind == LISTENER_SELECTION)
    }

    /// The endpoint of the flow that a client has now.
    fn endpoint(&self, key: FlowKey<A>) -> Option<u32> {
        let bytes = self.table.get(&Image(key), 0).ok()?;
        let flow: ForwardFlow = decode(&bytes);
        is_open(&flow).then_some(flow.endpoint)
    }
}

fn key<A: Address>(client_be: A, peer_be: A, flow: &Flow) -> FlowKey<A> {
    FlowKey {
        client_be,
        peer_be,
        client_port_be: flow.client.port().to_be(),
        peer_port_be: flow.vip.port().to_be(),
        protocol: TCP,
        pad: 0,
        pad2: 0,
    }
}

impl Teller {
    pub(super) fn open(
        pins: &Pins,
        sources: (Option<Ipv4Addr>, Option<Ipv6Addr>),
        sender: RawSender,
    ) -> Result<Self, Error> {
        Ok(Self {
            v4: Flows::open(pins, names::MAP_FORWARD_V4, names::MAP_LISTENERS_V4)?,
            v6: Flows::open(pins, names::MAP_FORWARD_V6, names::MAP_LISTENERS_V6)?,
            notes_v4: Notes::open(pins, syns::NAMES_V4)?,
            notes_v6: Notes::open(pins, syns::NAMES_V6)?,
            marks: Marks {
                endpoints: open(pins, names::MAP_ENDPOINTS)?,
                selections: open(pins, names::MAP_SELECTIONS)?,
            },
            sources,
            sender,
            plan: Plan::default(),
            seq: RandomState::new().hash_one(0) as u32,
            halt: Arc::default(),
            telling: None,
        })
    }

    /// Set by who wants a pass to end soon.
    pub fn halt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.halt)
    }

    /// Endpoints may have been lost.
    pub fn switched(&mut self, now: Instant) {
        self.plan.switched(now);
    }

    /// When the next pass is to be made.
    pub fn due(&self) -> Option<Instant> {
        self.plan.due()
    }

    /// Looks for flows of lost endpoints, which takes a walk of the tables. If there are few, whoever
    /// is to be told now is told.
    pub fn look(&mut self) -> Result<Look, Error> {
        let began = Instant::now();
        let found = Found {
            flows: self.walk()?,
            began,
        };
        if found.flows.len() > FEW || self.plan.size() > FEW {
            return Ok(Look::Many(found));
        }
        // These take a few packets, and a SYN that is sent on a whole connection.
        let told = self.told(&found, Self::release)?;
        Ok(Look::Done(told))
    }

    /// Tells those of [`Look::Many`]. Blocks for about a second per 100,000 of them.
    pub fn tell(&mut self, mut found: Found) -> Result<Told, Error> {
        let released = self.release()?;
        // One client after the other: it then finds more than one of its connections ended each time
        // that it wakes up.
        found.flows.sort_unstable_by_key(|flow| flow.client);
        self.told(&found, |_| Ok(released))
    }

    /// Tells whoever is to be told now, and then does the other thing.
    fn told(
        &mut self,
        found: &Found,
        release: impl FnOnce(&Self) -> Result<Told, Error>,
    ) -> Result<Told, Error> {
        let now = found.began;
        let round = self.plan.walked(&found.flows, now);
        let mut told = self.split(&round.tell, Self::tell_clients)?;
        let released = release(self)?;
        told.add(self.split(&round.gone, Self::tell_endpoints)?);
        told.add(self.split(&round.confirm, Self::confirm)?);
        for flow in &round.given_up {
            told.of(flow).given_up += 1;
        }
        self.sum_up(&mut told, now);
        told.add(released);
        Ok(told)
    }

    /// Sends on what waits for the answer of an endpoint that is down.
    fn release(&self) -> Result<Told, Error> {
        let mut waiting = Vec::new();
        self.notes_v4.waiting(&self.v4, &self.marks, &mut waiting)?;
        self.notes_v6.waiting(&self.v6, &self.marks, &mut waiting)?;
        let mut told = Told::default();
        for chunk in waiting.chunks(CHUNK) {
            let refusals: Vec<_> = chunk.iter().map(|waiting| waiting.refusal).collect();
            told.sent.add(self.sender.send(&refusals));
            for Waiting { endpoint, .. } in chunk {
                told.counts.entry(*endpoint).or_default().released += 1;
            }
        }
        Ok(told)
    }

    fn walk(&self) -> Result<Vec<Flow>, Error> {
        let mut lost = Lost::now(&self.marks);
        let mut found = Vec::new();
        self.v4.walk(&mut lost, &mut found)?;
        self.v6.walk(&mut lost, &mut found)?;
        match lost.error {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// The endpoint of the flow that a client has now.
    fn endpoint_of(&self, flow: &Flow) -> Option<u32> {
        match (flow.client.ip(), flow.vip.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                let of = V4::from_bytes;
                self.v4
                    .endpoint(key(of(client.octets()), of(vip.octets()), flow))
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                let of = V6::from_bytes;
                self.v6
                    .endpoint(key(of(client.octets()), of(vip.octets()), flow))
            }
            _ => None,
        }
    }

    /// Does something for all of them, each thread for its part.
    fn split(
        &self,
        flows: &[Flow],
        work: impl Fn(&Self, &[Flow]) -> Result<Told, Error> + Sync,
    ) -> Result<Told, Error> {
        // To ask the system for its processors takes longer than to tell a few.
        if flows.len() < SPLIT {
            return work(self, flows);
        }
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        if threads < 2 {
            return work(self, flows);
        }
        let work = &work;
        std::thread::scope(|scope| {
            let parts = flows.chunks(flows.len().div_ceil(threads));
            let threads: Vec<_> = parts
                .map(|part| scope.spawn(move || work(self, part)))
                .collect();
            let mut told = Told::default();
            for thread in threads {
                told.add(thread.join().expect("a panic ends the process")?);
            }
            Ok(told)
        })
    }

    fn is_halted(&self) -> bool {
        self.halt.load(Ordering::Relaxed)
    }

    /// A SYN as if by the server, to all that are still there and lost.
    fn tell_clients(&self, flows: &[Flow]) -> Result<Told, Error> {
        let mut told = Told::default();
        for (i, chunk) in flows.chunks(CHUNK).enumerate() {
            if let Some(first) = i.checked_sub(UNDER_WAY) {
                self.wait_for(&flows[first * CHUNK]);
            }
            if self.is_halted() {
                break;
            }
            self.challenge_clients(chunk, &mut told)?;
        }
        Ok(told)
    }

    /// Until the flow is gone, if that is soon.
    fn wait_for(&self, flow: &Flow) {
        for _ in 0..LOOKS {
            if self.endpoint_of(flow) != Some(flow.endpoint.0) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn challenge_clients(&self, flows: &[Flow], told: &mut Told) -> Result<(), Error> {
        let mut lost = Lost::now(&self.marks);
        let mut segments = Vec::with_capacity(flows.len());
        for flow in flows {
            let id = flow.endpoint.0;
            if lost.get(id).is_some() && self.endpoint_of(flow) == Some(id) {
                segments.push(self.challenge(flow.vip, flow.client));
                told.of(flow).clients += 1;
            }
        }
        told.sent.add(self.sender.send(&segments));
        lost.error.map_or(Ok(()), Err)
    }

    /// A SYN as if by the client, to the endpoints of flows that are gone.
    fn tell_endpoints(&self, flows: &[Flow]) -> Result<Told, Error> {
        let mut told = Told::default();
        for chunk in flows.chunks(CHUNK) {
            if self.is_halted() {
                break;
            }
            self.challenge_endpoints(chunk, &mut told)?;
            // Its answers cross our queues too, and nothing here shows that they did.
            if flows.len() > UNDER_WAY * CHUNK {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(told)
    }

    /// A bare acknowledgment as if by the server, to clients of flows that have been gone for a
    /// while and not come back.
    fn confirm(&self, flows: &[Flow]) -> Result<Told, Error> {
        let mut told = Told::default();
        for chunk in flows.chunks(CHUNK) {
            if self.is_halted() {
                break;
            }
            let gone = chunk.iter().filter(|flow| self.endpoint_of(flow).is_none());
            let segments: Vec<_> = gone
                .map(|flow| Segment {
                    ack: !self.seq,
                    flags: ACK,
                    ..self.challenge(flow.vip, flow.client)
                })
                .collect();
            told.sent.add(self.sender.send(&segments));
            if flows.len() > UNDER_WAY * CHUNK {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(told)
    }

    fn challenge_endpoints(&self, flows: &[Flow], told: &mut Told) -> Result<(), Error> {
        let mut lost = Lost::now(&self.marks);
        let mut segments = Vec::with_capacity(flows.len());
        for flow in flows {
            // Its endpoint came back, or its client was quick to connect anew.
            let Some(endpoint) = lost.get(flow.endpoint.0) else {
                continue;
            };
            if self.endpoint_of(flow) == Some(flow.endpoint.0) {
                continue;
            }
            told.of(flow).told += 1;
            if let Some((client, endpoint)) = self.as_seen(flow, &endpoint) {
                segments.push(self.challenge(client, endpoint));
                told.of(flow).endpoints += 1;
            }
        }
        told.sent.add(self.sender.send(&segments));
        lost.error.map_or(Ok(()), Err)
    }

    /// Both ends of a flow as its endpoint sees them. With direct server return it sees the VIP,
    /// to which nothing but the datapath can send it a packet.
    fn as_seen(&self, flow: &Flow, endpoint: &Endpoint) -> Option<(SocketAddr, SocketAddr)> {
        if endpoint.forward == FORWARD_DSR {
            return None;
        }
        let v4 = flow.client.is_ipv4();
        let client = match (endpoint.forward, v4) {
            (FORWARD_FULL_NAT, true) => self.sources.0?.into(),
            (FORWARD_FULL_NAT, false) => self.sources.1?.into(),
            _ => flow.client.ip(),
        };
        let address = if v4 {
            at(V4::of_endpoint(endpoint)?, endpoint.port_be)
        } else {
            at(V6::of_endpoint(endpoint)?, endpoint.port_be)
        };
        Some((SocketAddr::new(client, flow.seen_port), address))
    }

    fn challenge(&self, src: SocketAddr, dst: SocketAddr) -> Segment {
        Segment {
            src,
            dst,
            seq: self.seq,
            ack: 0,
            flags: SYN,
            window: u16::MAX,
        }
    }

    /// Adds a pass to the telling that it belongs to.
    fn sum_up(&mut self, told: &mut Told, began: Instant) {
        if told.counts.is_empty() && self.telling.is_none() {
            return;
        }
        let none = Telling {
            told: 0,
            given_up: 0,
            took: Duration::ZERO,
        };
        let (since, sums) = self.telling.get_or_insert((began, none));
        for counts in told.counts.values() {
            sums.told += counts.told;
            sums.given_up += counts.given_up;
            if counts.told > 0 {
                // They had gone before this pass.
                sums.took = began.duration_since(*since);
            }
        }
        if self.plan.is_done() {
            told.finished = Some(*sums);
            self.telling = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe_ebpf::abi::Shared;

    #[test]
    fn only_who_has_a_connection_is_told() {
        for (state, told) in [
            (0, false),
            (FLOW_ESTABLISHED, true),
            (FLOW_ESTABLISHED | FLOW_ENDED, false),
            (FLOW_ENDED, false),
        ] {
            let flow = ForwardFlow {
                state: Shared::new(state),
                ..ForwardFlow::default()
            };
            assert_eq!(is_open(&flow), told, "{state}");
        }
    }
}
