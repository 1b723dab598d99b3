//! What clients send.

use super::{
    Fate, Ruling, Tables, Work,
    flow::{self, Entered},
    recent, spread,
};
use crate::{
    abi::{
        Action, Decision, ENDPOINT_DOWN, ENDPOINT_FREE, Endpoint, EventKind, FLOW_ESTABLISHED,
        FLOW_FIN, FLOW_SIDE, ForwardFlow, KEEP_FLOWS_OF_DOWN, LISTENER_MAIN, LISTENER_OWN,
        LISTENER_SELECTION, Listener, ListenerKey, Reason, RecentState, SLOT_ALONE,
        SLOT_ALONE_DIRECT, Selection, Straight,
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
    /// Where new flows go; of [`Action::Spread`], what [`Way::now`] says.
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

    /// The endpoint that a flow of [`Work::key`] goes to if it begins now.
    #[inline(always)]
    fn now<A: Family, T: Tables<A>>(&self, tables: &T, work: &Work<A>) -> u32 {
        if self.action == Action::Spread {
            spread::target(tables, work, self.selection)
        } else {
            self.target
        }
    }

    /// Do flows of an endpoint that is down go on to it?
    #[inline(always)]
    fn keeps(&self) -> bool {
        self.decision.flags & KEEP_FLOWS_OF_DOWN != 0
    }

    /// Are flows of this endpoint reset?
    #[inline(always)]
    fn loses<A: Family, T: Tables<A>>(&self, tables: &T, id: u32) -> bool {
        !self.keeps() && tables.endpoint(id).is_none_or(is_down)
    }

    #[inline(always)]
    fn side_bit(&self) -> u32 {
        if self.main() { 0 } else { FLOW_SIDE }
    }
}

/// Asks about the flow's note at the endpoint that was selected before, which it leaves in
/// [`Work::previous`]; false if there was none, or it does not matter any more.
#[inline(always)]
fn at_previous<A: Family, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    way: &Way<'_>,
    ask: impl Fn(&Work<A>) -> bool,
) -> bool {
    if !way.follows() || way.alone {
        return false;
    }
    work.previous = spread::before(tables, work, way.selection);
    if work.previous == way.target {
        return false;
    }
    let (port_be, previous) = (work.key.client_port_be, work.previous);
    let answer = flow::aim(tables, work, port_be, previous) && ask(work);
    // It was there a moment ago.
    flow::aim(tables, work, port_be, way.target);
    answer
}

/// Down, or no longer there?
#[inline(always)]
fn is_down(endpoint: &Endpoint) -> bool {
    matches!(endpoint.state, ENDPOINT_DOWN | ENDPOINT_FREE)
}

/// May the segment begin a flow in the ordinary way? A SYN may, and any datagram.
#[inline(always)]
fn begins<A>(segment: &Segment<A>) -> bool {
    segment.opens() || segment.protocol == UDP
}

/// What goes by the slot alone.
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
    let plain = segment.flags & (SYN | FIN | RST) == 0;
    let quick = segment.opens() && listener.flags & LISTENER_MAIN != 0;
    let simple = segment.protocol == TCP && !segment.fragmented;
    if !simple || selection.exceptions.get() != 0 || !(plain || quick) {
        return Ruling::plain(Fate::Slow, Reason::Undecided);
    }
    let ruling = if listener.kind == LISTENER_SELECTION {
        selected(tables, segment, selection)
    } else if !Decision::is_alone_direct(selection.decision.get()) {
        Ruling::plain(Fate::Slow, Reason::Undecided)
    } else if listener.kind == LISTENER_OWN {
        return Ruling::pass(Reason::Direct);
    } else {
        straight(tables, segment, listener.endpoint)
    };
    if plain || ruling.fate == Fate::Slow {
        return ruling;
    }
    // The SYNs of a flood are of this kind: nothing has to be looked up for them.
    if selection.side.get() == 0 && ruling.fate == Fate::Translate {
        recent::open(tables, segment, &ruling);
        return ruling;
    }
    Ruling::plain(Fate::Slow, Reason::Undecided)
}

/// To the selected endpoint, if all flows of the service go there.
#[inline(always)]
fn selected<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    selection: &Selection,
) -> Ruling<A> {
    if A::VERSION == 4 {
        return match Straight::unpack(selection.straight_v4.get()) {
            Some(to) => Ruling::translate(
                Translation {
                    addr_be: A::from_word(to.addr_be).unwrap_or_default(),
                    port_be: to.port_be,
                    client_port_be: segment.src_port_be,
                },
                to.endpoint,
            ),
            None => Ruling::plain(Fate::Slow, Reason::Undecided),
        };
    }
    let decision = selection.decision.get();
    if Decision::is_alone(decision) {
        straight(tables, segment, decision as u32)
    } else {
        Ruling::plain(Fate::Slow, Reason::Undecided)
    }
}

/// Everything that takes more than the slot.
#[inline(always)]
pub fn slow<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    work.key = flow::forward_key(&work.segment);
    let at = ListenerKey {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        protocol: work.key.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&at) else {
        return work.pass(Reason::NotListener);
    };
    let Some(selection) = tables.selection(listener.service) else {
        return work.pass(Reason::Undecided);
    };
    work.listener = listener;
    let mut way = Way::of(work.listener, selection, work.segment.protocol);
    let looks = !(way.alone && work.segment.opens());
    if looks
        && let Some(flow) = tables.forward(&work.key)
        && flow::aim(tables, work, flow.client_port_be, flow.endpoint)
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
    {
        let id = flow.endpoint;
        let lost = way.follows() && is_down(endpoint);
        let keep = way.keeps();
        let anew = begins(&work.segment);
        let stays = if anew {
            reopens_nothing(flow, lost, || way.now(tables, work) == id)
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
    way.target = way.now(tables, work);
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
fn reopens_nothing(flow: &ForwardFlow, lost: bool, same_target: impl Fn() -> bool) -> bool {
    let state = flow.state.get();
    if state & FLOW_ESTABLISHED == 0 {
        same_target()
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
        Action::Steer | Action::Spread => {}
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
    // More of a flow that was reset a moment ago may have been on its way, and the last
    // acknowledgment of one that was closed.
    if !begins(&work.segment) && at_previous(tables, work, way, |work| recent::ended(tables, work))
    {
        let previous = work.previous;
        if way.loses(tables, previous) {
            return refused(work, Reason::EndpointDown);
        }
        flow::aim(tables, work, own_port_be, previous);
        return there(work, previous);
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
    // What the endpoint before says about its port from now on is not the client's.
    at_previous(tables, work, way, |work| recent::give_up(tables, work));
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
            if way.follows() {
                spread::keep(tables, work, way.target);
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
