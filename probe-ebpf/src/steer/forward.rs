//! What clients send.

use super::{
    Fate, Ruling, Tables, Work,
    flow::{self, Entered},
    recent,
};
use crate::{
    abi::{
        Action, Decision, ENDPOINT_DOWN, ENDPOINT_FREE, EventKind, FLOW_ESTABLISHED, FLOW_FIN,
        FLOW_SIDE, FlowKey, ForwardFlow, KEEP_FLOWS_OF_DOWN, LISTENER_MAIN, LISTENER_OWN,
        LISTENER_SELECTION, Listener, ListenerKey, Reason, RecentState, SLOT_ALONE,
        SLOT_ALONE_DIRECT, Selection,
    },
    packet::{
        Segment,
        parse::{ACK, FIN, RST, SYN, TCP, UDP},
        rewrite::{Family, Side, Translation},
    },
};

/// Where a listener's segments go.
struct Way<'a> {
    listener: Listener,
    selection: &'a Selection,
    decision: Decision,
    action: Action,
    target: u32,
    /// Segments in mid-connection need no entry.
    alone: bool,
}

impl<'a> Way<'a> {
    #[inline(always)]
    fn of(listener: Listener, selection: &'a Selection, protocol: u8) -> Self {
        let decision = Decision::unpack(selection.decision.get());
        let (action, target, alone) = if listener.kind == LISTENER_SELECTION {
            (decision.action, decision.target, SLOT_ALONE)
        } else {
            (Action::Steer, listener.endpoint, SLOT_ALONE_DIRECT)
        };
        Self {
            listener,
            selection,
            decision,
            action,
            target,
            alone: protocol == TCP
                && decision.flags & alone != 0
                && selection.exceptions.get() == 0,
        }
    }

    #[inline(always)]
    fn follows(&self) -> bool {
        self.listener.kind == LISTENER_SELECTION
    }

    /// An endpoint's own address?
    #[inline(always)]
    fn own(&self) -> bool {
        self.listener.kind == LISTENER_OWN
    }

    #[inline(always)]
    fn main(&self) -> bool {
        self.listener.flags & LISTENER_MAIN != 0
    }

    #[inline(always)]
    fn side_bit(&self) -> u32 {
        if self.main() { 0 } else { FLOW_SIDE }
    }
}

/// May the segment begin a flow in the ordinary way? A SYN may, and any datagram.
#[inline(always)]
fn begins<A>(segment: &Segment<A>) -> bool {
    segment.opens() || segment.protocol == UDP
}

/// What goes by the slot alone. Everything else takes [`Tables::work`], filled in here.
#[inline(always)]
pub fn fast<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Ruling<A> {
    let key = ListenerKey {
        addr_be: segment.dst_be,
        port_be: segment.dst_port_be,
        protocol: segment.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&key) else {
        return Ruling::pass(Reason::NotListener);
    };
    let Some(selection) = tables.selection(listener.service) else {
        return Ruling::pass(Reason::Undecided);
    };
    let way = Way::of(listener, selection, segment.protocol);
    let plain = segment.flags & (SYN | FIN | RST) == 0 && !segment.fragmented;
    if way.alone && plain && way.own() {
        return Ruling::pass(Reason::Direct);
    }
    if way.alone && plain && way.action == Action::Steer {
        return straight(tables, segment, way.target);
    }
    let Some(work) = tables.work() else {
        return Ruling::pass(Reason::Undecided);
    };
    work.segment = *segment;
    work.listener = listener;
    Ruling::plain(Fate::Slow, Reason::Undecided)
}

/// Everything that takes more than the slot.
#[inline(always)]
pub fn slow<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    let Some(selection) = tables.selection(work.listener.service) else {
        return work.pass(Reason::Undecided);
    };
    work.key = FlowKey {
        client_be: work.segment.src_be,
        peer_be: work.segment.dst_be,
        client_port_be: work.segment.src_port_be,
        peer_port_be: work.segment.dst_port_be,
        protocol: work.segment.protocol,
        pad: 0,
        pad2: 0,
    };
    let way = Way::of(work.listener, selection, work.segment.protocol);
    let looks = !(way.alone && work.segment.opens());
    if looks
        && let Some(flow) = tables.forward(&work.key)
        && flow::aim(tables, work, flow.client_port_be, flow.endpoint)
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
    {
        let id = flow.endpoint;
        let lost = way.follows() && matches!(endpoint.state, ENDPOINT_DOWN | ENDPOINT_FREE);
        let keep = way.decision.flags & KEEP_FLOWS_OF_DOWN != 0;
        let anew = begins(&work.segment);
        let stays = if anew {
            let same_target = way.action == Action::Steer && id == way.target;
            reopens_nothing(flow, same_target, lost)
        } else {
            !lost || keep || work.segment.flags & RST != 0
        };
        if stays {
            known(tables, work, flow);
            return there(work, id);
        }
        let then = if anew {
            RecentState::GivenUp
        } else {
            RecentState::Closed
        };
        flow::close(tables, work, id, then);
        if !anew {
            tell(tables, work, EventKind::FlowReset, id);
            return refused(work, Reason::EndpointDown);
        }
    }
    unknown(tables, work, &way);
}

/// Rules that the segment goes to the endpoint of [`Work::back_key`].
#[inline(always)]
fn there<A: Family>(work: &mut Work<A>, id: u32) {
    let translation = Translation {
        addr_be: work.back_key.peer_be,
        port_be: work.back_key.peer_port_be,
        client_port_be: work.back_key.client_port_be,
    };
    work.steer(Side::Destination, translation, id);
}

/// Rules that the segment is refused, as its protocol can.
#[inline(always)]
fn refused<A: Family>(work: &mut Work<A>, reason: Reason) {
    let datagram = work.segment.protocol == UDP;
    work.ruling.fate = if datagram { Fate::Drop } else { Fate::Reset };
    work.ruling.reason = if datagram {
        Reason::DatagramRefused
    } else {
        reason
    };
}

#[inline(always)]
fn tell<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, kind: EventKind, id: u32) {
    let Work { segment, .. } = work;
    let service = work.listener.service;
    tables.event(kind, service, id, segment.src_be, segment.src_port_be);
}

/// By the slot alone: no entry, no clock. TCP only.
#[inline(always)]
fn straight<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>, target: u32) -> Ruling<A> {
    let Some(endpoint) = tables.endpoint(target) else {
        return Ruling::pass(Reason::Undecided);
    };
    let Some(addr_be) = A::of_endpoint(endpoint) else {
        return Ruling::plain(Fate::Reset, Reason::NoAddress);
    };
    let translation = Translation {
        addr_be,
        port_be: endpoint.port_be,
        client_port_be: segment.src_port_be,
    };
    Ruling::translate(translation, target)
}

/// May a SYN or datagram of a known tuple go the way of its flow? It may if it repeats
/// an unanswered one and the selection is still the same; or if the connection is
/// alive, so that the endpoint can challenge it (RFC 9293 section 3.10.7.4).
#[inline(always)]
fn reopens_nothing(flow: &ForwardFlow, same_target: bool, lost: bool) -> bool {
    let state = flow.state.get();
    if state & FLOW_ESTABLISHED == 0 {
        same_target
    } else {
        !lost && state & FLOW_FIN == 0
    }
}

/// A segment of a flow that stays where it is.
#[inline(always)]
fn known<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, flow: &ForwardFlow) {
    let Work { segment, .. } = work;
    flow::touch(&flow.seen, tables.clock());
    let state = flow.state.get();
    let id = flow.endpoint;
    if segment.flags & RST != 0 {
        flow::close(tables, work, id, RecentState::Closed);
    } else if segment.flags & FIN != 0 {
        flow.fin_end.set(segment.next_seq());
        flow.state.set(state | FLOW_FIN);
    } else if state & FLOW_FIN != 0
        && segment.flags & ACK != 0
        && let Some(back) = tables.reverse(&work.back_key)
        && back.state.get() & FLOW_FIN != 0
        && back.fin_end.get() == segment.ack
    {
        flow::close(tables, work, id, RecentState::Closed);
    }
}

/// A segment that no entry knows: the first of a connection, or one whose flow was lost,
/// or never got an entry.
#[inline(always)]
fn unknown<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, way: &Way<'_>) {
    let resets = work.segment.flags & RST != 0;
    match way.action {
        Action::Steer => {}
        _ if resets => return work.pass(Reason::StrayReset),
        Action::Refuse => return refused(work, Reason::Refused),
        Action::Pass => return work.pass(Reason::Undecided),
    }
    let own_port_be = work.key.client_port_be;
    if !flow::aim(tables, work, own_port_be, way.target) {
        // An endpoint that is there has no address of this family.
        return match tables.endpoint(way.target) {
            None => work.pass(Reason::Undecided),
            Some(_) if resets => work.pass(Reason::StrayReset),
            Some(_) => refused(work, Reason::NoAddress),
        };
    }
    if resets {
        if way.own() {
            work.pass(Reason::Direct);
        } else if recent::end(tables, work) {
            there(work, way.target);
        } else {
            work.pass(Reason::StrayReset);
        }
        return;
    }
    let noted = if work.segment.opens() {
        announce(tables, work, way)
    } else {
        way.alone || recent::ended(tables, work)
    };
    if !noted {
        match enter(tables, work, way) {
            Entered::Port(_) => {}
            // Not ours to refuse.
            _ if way.own() => return work.pass(Reason::Direct),
            Entered::Clash => return refused(work, Reason::TupleClash),
            Entered::Full => {
                work.back_key.client_port_be = own_port_be;
                recent::put(tables, work, way.target, RecentState::Open);
            }
        }
    }
    there(work, way.target);
}

/// A client opens a connection: leaves a note, unless its tuple is taken. Tells whether
/// it did.
#[inline(always)]
fn announce<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, way: &Way<'_>) -> bool {
    if !way.main() {
        way.selection.side.set(stamp(tables));
    }
    let previous = way.selection.previous.get();
    if way.follows() && !way.alone && previous != way.target {
        let port_be = work.key.client_port_be;
        if flow::aim(tables, work, port_be, previous) {
            recent::give_up(tables, work);
        }
        // It was there a moment ago.
        flow::aim(tables, work, port_be, way.target);
    }
    let looks = !way.main() || way.selection.side.get() != 0;
    if looks && flow::taken(tables, work) {
        return false;
    }
    let state = if way.main() {
        RecentState::Open
    } else {
        RecentState::OpenSide
    };
    recent::put(tables, work, way.target, state);
    true
}

/// What [`Selection::exceptions`] and [`Selection::side`] are set to.
#[inline(always)]
fn stamp<A: Family, T: Tables<A>>(tables: &T) -> u64 {
    tables.clock() as u64 | 1 << 32
}

/// Writes a flow's entries at once: for datagrams, for segments in mid-connection, and
/// where the client's port has to change.
#[inline(always)]
fn enter<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, way: &Way<'_>) -> Entered {
    let opens = begins(&work.segment);
    let state = way.side_bit() | if opens { 0 } else { FLOW_ESTABLISHED };
    let entered = flow::open(tables, work, way.target, state);
    match entered {
        Entered::Port(client_port_be) => {
            if client_port_be != work.key.client_port_be {
                // Before the client can send what would be steered by the slot alone.
                way.selection.exceptions.set(stamp(tables));
                tables.count(Reason::PortChanged);
            }
            if !opens && !way.own() {
                tables.count(Reason::Adopted);
            }
        }
        _ if way.own() => {}
        Entered::Full => {
            tables.count(Reason::TableFull);
            tell(tables, work, EventKind::TableFull, way.target);
        }
        Entered::Clash => tell(tables, work, EventKind::TupleClash, way.target),
    }
    entered
}
