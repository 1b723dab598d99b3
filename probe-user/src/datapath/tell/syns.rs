//! Releasing clients whose SYN a lost endpoint has not answered.
//!
//! A client repeats its SYN after a second (RFC 6298 section 2). Those that are on their way to
//! an endpoint when it goes down need not wait: what they said stands in the programs' notes, so
//! their refusal can be sent, as if by the endpoint, and the programs make it the SYN to the
//! endpoint that serves now, as any other refusal.
//!
//! Only with NAT: with full NAT refusals come in at an interface, by which nothing can be sent from
//! here, and with direct server return none comes by. Those clients repeat their SYN.

use std::os::fd::AsFd as _;

use aya::maps::MapData;
use probe_ebpf::{
    abi::{
        Action, Address, Decision, ENDPOINT_DOWN, FORWARD_NAT, FlowKey, ForwardFlow, ListenerKey,
        MoreSet, NO_REDISPATCH, Plain, RecentSet, RecentState, SYN_WORDS, Syn, SynSet, Trace,
    },
    names,
    packet::parse::{ACK, RST, TCP},
};

use super::{
    super::{EndpointId, Error, Image, forge::Segment, mapping::Mapping, node, pins::Pins},
    Flows, Marks, at,
};

/// SYNs of the last seconds, in the unit of [`probe_ebpf::abi::seen`]: later than that a client repeats its own
/// seldom and may have gone.
const RECENTLY: u16 = 8;

/// The notes of one family, and what their SYNs said.
pub struct Notes<A: Address> {
    notes: Mapping,
    syns: Mapping,
    more: Mapping,
    family: std::marker::PhantomData<A>,
}

/// A SYN that waits for a lost endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What releases it.
    pub refusal: Segment,
    /// The endpoint.
    pub endpoint: EndpointId,
}

impl<A: Address> Notes<A>
where
    RecentSet<A>: Plain,
    FlowKey<A>: Plain,
    ListenerKey<A>: Plain,
{
    /// Maps the tables of these names.
    pub fn open(pins: &Pins, names: [&str; 3]) -> Result<Self, Error> {
        let [notes, syns, more] = names;
        Ok(Self {
            notes: map::<RecentSet<A>>(pins, notes, A::RECENT_SETS)?,
            syns: map::<SynSet>(pins, syns, A::RECENT_SETS)?,
            more: map::<MoreSet>(pins, more, A::RECENT_SETS)?,
            family: std::marker::PhantomData,
        })
    }

    /// Adds those that nobody has answered.
    pub fn waiting(
        &self,
        flows: &Flows<A>,
        marks: &Marks,
        found: &mut Vec<Waiting>,
    ) -> Result<(), Error> {
        if !flows.has_listeners() {
            return Ok(());
        }
        let now = node::now()? as u16;
        for number in 0..A::RECENT_SETS {
            let set = self.notes.value::<RecentSet<A>>(number as usize);
            for (place, note) in set.both().into_iter().enumerate() {
                if !matches!(note.state(), RecentState::Open | RecentState::OpenSide) {
                    continue;
                }
                let Some(trace) = note.trace().filter(|trace| trace.protocol == TCP) else {
                    continue;
                };
                let Some(syn) = self.syn(number as usize, place as u32) else {
                    continue;
                };
                if now.wrapping_sub(syn.seen()) > RECENTLY
                    || flows.is_there(&trace)
                    || !flows.follows(vip(&trace))
                {
                    continue;
                }
                found.extend(refusal(&trace, &syn, marks)?);
            }
        }
        Ok(())
    }

    /// What was said; nothing if it was no SYN.
    fn syn(&self, number: usize, place: u32) -> Option<Syn> {
        let cell = self.syns.value::<SynSet>(number).at(place);
        let syn = cell.read();
        let more = if syn.words() > SYN_WORDS as u32 {
            self.more.value::<MoreSet>(number).at(place).read()
        } else {
            Default::default()
        };
        let seq = cell.seq(&syn, &more);
        (syn.flags() != 0).then_some(Syn { seq, ..syn })
    }
}

fn map<T>(pins: &Pins, name: &str, entries: u32) -> Result<Mapping, Error> {
    let data = MapData::from_pin(pins.map(name))
        .map_err(|e| Error::failed(format!("opening pinned map {name}"), e))?;
    Mapping::of::<T>(data.fd().as_fd(), entries, name)
}

/// Where the client connected to.
fn vip<A: Address>(trace: &Trace<A>) -> ListenerKey<A> {
    ListenerKey {
        addr_be: trace.vip_be,
        port_be: trace.vip_port_be,
        protocol: trace.protocol,
        pad: 0,
    }
}

/// Would the programs send a SYN on that this endpoint refused? Else its client had better
/// wait: it may come back, or the selection move.
fn goes_on(decision: Decision, endpoint: u32) -> bool {
    decision.flags & NO_REDISPATCH == 0
        && match decision.action {
            Action::Steer => decision.target != endpoint,
            Action::Spread => true,
            Action::Pass | Action::Refuse => false,
        }
}

/// What the endpoint would answer if nobody listened there, if it is down.
fn refusal<A: Address>(
    trace: &Trace<A>,
    syn: &Syn,
    marks: &Marks,
) -> Result<Option<Waiting>, Error> {
    let failed = |e| Error::failed("reading endpoints", e);
    let Image(endpoint) = marks.endpoints.get(&trace.endpoint, 0).map_err(failed)?;
    if endpoint.state != ENDPOINT_DOWN || endpoint.forward != FORWARD_NAT {
        return Ok(None);
    }
    let slot = marks.selections.get(&endpoint.service, 0).map_err(failed)?;
    if !goes_on(Decision::unpack(slot[super::DECISION]), trace.endpoint) {
        return Ok(None);
    }
    Ok(A::of_endpoint(&endpoint).map(|address| Waiting {
        refusal: Segment {
            src: at(address, endpoint.port_be),
            dst: at(trace.client_be, trace.seen_port_be),
            seq: 0,
            ack: syn.seq.wrapping_add(1).wrapping_add(syn.payload()),
            flags: RST | ACK,
            window: 0,
        },
        endpoint: EndpointId(trace.endpoint),
    }))
}

impl<A: Address> Flows<A>
where
    FlowKey<A>: Plain,
{
    /// Has the flow of a note entries? Then its SYN was answered.
    fn is_there(&self, trace: &Trace<A>) -> bool {
        let key = FlowKey {
            client_be: trace.client_be,
            peer_be: trace.vip_be,
            client_port_be: trace.client_port_be,
            peer_port_be: trace.vip_port_be,
            protocol: trace.protocol,
            pad: 0,
            pad2: 0,
        };
        let flow = self.table.get(&Image(key), 0);
        flow.is_ok_and(|bytes| {
            let flow: ForwardFlow = super::decode(&bytes);
            flow.endpoint == trace.endpoint
        })
    }
}

/// The tables of the families.
pub const NAMES_V4: [&str; 3] = [names::MAP_RECENT_V4, names::MAP_SYNS_V4, names::MAP_MORE_V4];
/// See [`NAMES_V4`].
pub const NAMES_V6: [&str; 3] = [names::MAP_RECENT_V6, names::MAP_SYNS_V6, names::MAP_MORE_V6];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_go_nowhere_else_waits() {
        let decision = |action, flags, target| Decision {
            action,
            flags,
            tier: 0,
            target,
        };
        for (decision, goes) in [
            (decision(Action::Steer, 0, 2), true),
            (decision(Action::Steer, 0, 1), false),
            (decision(Action::Steer, NO_REDISPATCH, 2), false),
            (decision(Action::Spread, 0, 1), true),
            (decision(Action::Refuse, 0, 0), false),
            (decision(Action::Pass, 0, 0), false),
        ] {
            assert_eq!(goes_on(decision, 1), goes, "{decision:?}");
        }
    }
}
