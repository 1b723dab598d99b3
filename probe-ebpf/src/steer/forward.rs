//! What clients send.

use super::{
    Fate, Ruling, Tables, Work,
    flow::{self, Entered},
    recent, reverse, spread,
};
use crate::{
    abi::{
        Action, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, ENDPOINT_FREE, Endpoint, EventKind,
        FLOW_CONFIRMED, FLOW_ENDED, FLOW_ESTABLISHED, FLOW_FIN, FLOW_MOVED, FLOW_SIDE, FORWARD_DSR,
        FORWARD_FULL_NAT, FORWARD_NAT, ForwardFlow, KEEP_FLOWS_OF_DOWN, LISTENER_MAIN,
        LISTENER_OWN, LISTENER_SELECTION, Listener, ListenerKey, Reason, RecentState, SLOT_ALONE,
        SLOT_ALONE_DIRECT, Selection, Straight, Syn,
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

    /// Do flows go on to their endpoint that is down?
    #[inline(always)]
    fn keeps(&self, endpoint: &Endpoint) -> bool {
        self.decision.flags & KEEP_FLOWS_OF_DOWN != 0 && endpoint.state != ENDPOINT_DRAINED
    }

    /// Are flows of this endpoint reset?
    #[inline(always)]
    fn loses<A: Family, T: Tables<A>>(&self, tables: &T, id: u32) -> bool {
        let lost = |endpoint: &Endpoint| is_down(endpoint) && !self.keeps(endpoint);
        tables.endpoint(id).is_none_or(lost)
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

/// Down, drained, or no longer there?
#[inline(always)]
fn is_down(endpoint: &Endpoint) -> bool {
    matches!(
        endpoint.state,
        ENDPOINT_DOWN | ENDPOINT_DRAINED | ENDPOINT_FREE
    )
}

/// May the segment begin a flow in the ordinary way? A SYN may, and any datagram.
#[inline(always)]
fn begins<A>(segment: &Segment<A>) -> bool {
    segment.opens() || segment.protocol == UDP
}

/// What goes by the slot alone.
#[inline(always)]
pub fn fast<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    look: impl FnOnce(u32) -> Option<Syn>,
) -> Ruling<A> {
    let key = ListenerKey {
        addr_be: segment.dst_be,
        port_be: segment.dst_port_be,
        protocol: segment.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&key) else {
        return if is_source(tables, segment.dst_be) {
            Ruling::plain(Fate::Slow, Reason::NotListener)
        } else {
            Ruling::pass(Reason::NotListener)
        };
    };
    let Some(selection) = tables.selection(listener.service) else {
        return Ruling::pass(Reason::Undecided);
    };
    let plain = segment.flags & (SYN | FIN | RST) == 0;
    let quick = segment.opens() && listener.flags & LISTENER_MAIN != 0;
    let simple = segment.protocol == TCP && !segment.fragmented;
    let ends = segment.flags & (SYN | FIN | RST) == FIN;
    if !simple || selection.exceptions.get() != 0 || !(plain || quick || ends) {
        return Ruling::plain(Fate::Slow, Reason::Undecided);
    }
    let ruling = if listener.kind == LISTENER_SELECTION {
        selected(tables, segment, selection)
    } else if !Decision::is_alone_direct(selection.decision.get()) {
        Ruling::plain(Fate::Slow, Reason::Undecided)
    } else if listener.kind == LISTENER_OWN {
        return if ends {
            Ruling::plain(Fate::Slow, Reason::Undecided)
        } else {
            Ruling::pass(Reason::Direct)
        };
    } else {
        straight(tables, segment, listener.endpoint)
    };
    if plain || ruling.fate == Fate::Slow || ends && end(tables, segment, &ruling) {
        return ruling;
    }
    if ends {
        return Ruling::plain(Fate::Slow, Reason::Undecided);
    }
    // The SYNs of a flood are of this kind: nothing has to be looked up for them.
    if selection.side.get() == 0
        && ruling.fate == Fate::Translate
        && recent::open(tables, segment, &ruling, look)
    {
        return ruling;
    }
    Ruling::plain(Fate::Slow, Reason::Undecided)
}

/// The client's FIN, by the slot alone: notes it in the entry of a flow that goes the ruling's
/// way. Tells whether there is such a one.
#[inline(always)]
fn end<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>, ruling: &Ruling<A>) -> bool {
    let Some(flow) = tables.forward(&flow::forward_key(segment)) else {
        return false;
    };
    let goes = ruling.fate == Fate::Translate
        && flow.endpoint == ruling.endpoint
        && flow.client_port_be == segment.src_port_be;
    if goes {
        flow::touch(&flow.seen, tables.clock());
        finish(flow, segment);
    }
    goes
}

/// The client has sent its FIN.
#[inline(always)]
fn finish<A>(flow: &ForwardFlow, segment: &Segment<A>) {
    flow.fin_end.set(segment.next_seq());
    flow.state.set(flow.state.get() | FLOW_FIN);
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
                    client_be: segment.src_be,
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
    // One after the other, and what they tell each other in memory: so the verifier follows
    // each once, and each has the stack for itself.
    match by_entry(tables, work) {
        Outlook::Reply => reverse::reply(tables, work),
        Outlook::Unknown if unknown(tables, work) => {
            flow::open(tables, work);
            entered(tables, work);
        }
        Outlook::Ruled | Outlook::Unknown => {}
    }
}

/// How far [`by_entry`] came.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Outlook {
    /// It is ruled.
    Ruled,
    /// No entry knows the segment.
    Unknown,
    /// Nobody listens there, but replies of endpoints behind full NAT come there.
    Reply,
}

/// What the flow's entry says, if there is one. A function of its own, as [`unknown`], for
/// the stack's sake.
#[inline(never)]
fn by_entry<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> Outlook {
    work.key = flow::forward_key(&work.segment);
    let at = ListenerKey {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        protocol: work.key.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&at) else {
        if is_source(tables, work.segment.dst_be) {
            return Outlook::Reply;
        }
        work.pass(Reason::NotListener);
        return Outlook::Ruled;
    };
    let Some(selection) = tables.selection(listener.service) else {
        work.pass(Reason::Undecided);
        return Outlook::Ruled;
    };
    work.listener = listener;
    let way = Way::of(work.listener, selection, work.segment.protocol);
    let looks = !(way.alone && work.segment.opens());
    if looks
        && let Some(flow) = tables.forward(&work.key)
        && flow::aim(tables, work, flow.client_port_be, flow.endpoint)
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
    {
        let id = flow.endpoint;
        let lost = way.follows() && is_down(endpoint);
        let keep = way.keeps(endpoint);
        let anew = begins(&work.segment);
        let stays = if anew {
            reopens_nothing(flow, lost, || way.now(tables, work) == id)
        } else {
            !lost || keep || work.segment.flags & RST != 0
        };
        if stays {
            known(tables, work, flow);
            there(work, id);
            return Outlook::Ruled;
        }
        let then = if anew {
            RecentState::GivenUp
        } else {
            RecentState::Closed
        };
        flow::close(tables, work, id, then);
        if !anew {
            tell(tables, work, EventKind::FlowReset, id);
            refused(work, Reason::EndpointDown);
            return Outlook::Ruled;
        }
    }
    Outlook::Unknown
}

/// Rules that the segment goes to the endpoint of [`Work::back_key`]. A function of its own,
/// for the stack's sake.
#[inline(never)]
fn there<A: Family>(work: &mut Work<A>, id: u32) {
    let translation = Translation {
        addr_be: work.back_key.peer_be,
        port_be: work.back_key.peer_port_be,
        client_be: work.back_key.client_be,
        client_port_be: work.back_key.client_port_be,
    };
    work.steer(Side::Destination, translation, id);
    if work.forward != FORWARD_NAT {
        work.ruling.fate = Fate::Relay;
    }
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

/// Do replies of endpoints behind full NAT come to this address?
#[inline(always)]
pub fn is_source<A: Family, T: Tables<A>>(tables: &T, addr_be: A) -> bool {
    let source = tables.source();
    addr_be == source && source != A::default()
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
        client_be: segment.src_be,
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
    if state & FLOW_ENDED != 0 {
        false
    } else if state & FLOW_ESTABLISHED == 0 {
        state & FLOW_MOVED != 0 && !lost || same_target()
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
        finish(flow, segment);
    } else if state & FLOW_FIN != 0
        && segment.flags & ACK != 0
        && let Some(back) = tables.reverse(&work.back_key)
        && back.state.get() & FLOW_FIN != 0
        && back.fin_end.get() == segment.ack
    {
        flow::close(tables, work, id, RecentState::Closed);
    } else if work.forward == FORWARD_FULL_NAT && segment.opens() && state & FLOW_ESTABLISHED == 0 {
        remember_syn(tables, work, id);
    } else if work.forward == FORWARD_DSR && state & FLOW_CONFIRMED == 0 && !segment.opens() {
        // The endpoint's answers go past here. Who says more than a SYN has had one.
        flow.state.set(state | FLOW_ESTABLISHED | FLOW_CONFIRMED);
    }
}

/// Notes what a SYN says whose flow has entries: it may have to be sent on.
#[inline(always)]
fn remember_syn<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32) {
    if recent::repeats(tables, work) {
        tell(tables, work, EventKind::SynUnanswered, id);
    }
    recent::put(tables, work, id, RecentState::Open);
    tables.asked(id);
}

/// A segment that no entry knows: the first of a connection, or one whose flow was lost,
/// or never got an entry. Tells whether it shall get entries; else it is ruled.
#[inline(never)]
fn unknown<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> bool {
    match tables.selection(work.listener.service) {
        Some(selection) => asks_for_entries(tables, work, selection),
        None => {
            work.pass(Reason::Undecided);
            false
        }
    }
}

#[inline(always)]
fn asks_for_entries<A: Family, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    selection: &Selection,
) -> bool {
    let mut way = Way::of(work.listener, selection, work.segment.protocol);
    way.target = way.now(tables, work);
    let way = &way;
    let resets = work.segment.flags & RST != 0;
    match way.action {
        Action::Steer | Action::Spread => {}
        _ if resets => {
            work.pass(Reason::StrayReset);
            return false;
        }
        Action::Refuse => {
            refused(work, Reason::Refused);
            return false;
        }
        Action::Pass => {
            work.pass(Reason::Undecided);
            return false;
        }
    }
    let own_port_be = work.key.client_port_be;
    if !flow::aim(tables, work, own_port_be, way.target) {
        // An endpoint that is there has no address of this family.
        match tables.endpoint(way.target) {
            None => work.pass(Reason::Undecided),
            Some(_) if resets => work.pass(Reason::StrayReset),
            Some(_) => refused(work, Reason::NoAddress),
        }
        return false;
    }
    if resets {
        if way.own() {
            own_reset(tables, work, selection);
        } else if answers_no_acknowledgment(&work.segment) {
            // To a challenge of the agent's, which came after the RST: the endpoint was
            // told by another, and connection tracking would call this one invalid.
            work.pass(Reason::StrayReset);
        } else if work.forward == FORWARD_DSR || recent::end(tables, work) {
            there(work, way.target);
        } else if way.follows()
            && flow::aim(tables, work, own_port_be, way.selection.previous.get())
            && recent::stays(tables, work)
        {
            // The flow was reset towards its client, who tells the endpoint now; or it has no
            // entries.
            recent::end(tables, work);
            there(work, way.selection.previous.get());
        } else {
            work.pass(Reason::StrayReset);
        }
        return false;
    }
    // More of a flow that was reset a moment ago may have been on its way, and the last
    // acknowledgment of one that was closed; or the flow had no room for entries.
    if !begins(&work.segment)
        && !recent::is_open(tables, work)
        && at_previous(tables, work, way, |work| recent::stays(tables, work))
    {
        let previous = work.previous;
        if way.loses(tables, previous) {
            refused(work, Reason::EndpointDown);
            return false;
        }
        flow::aim(tables, work, own_port_be, previous);
        if recent::ended(tables, work) {
            there(work, previous);
            return false;
        }
        flow::look_everywhere(tables, work.listener.service);
        work.target = previous;
        work.state = way.side_bit() | FLOW_ESTABLISHED;
        return true;
    }
    if work.forward == FORWARD_FULL_NAT && !begins(&work.segment) {
        refused(work, Reason::FlowLost);
        return false;
    }
    if way.own() && work.segment.opens() && recent::take_over(tables, work) {
        work.pass(Reason::Direct);
        return false;
    }
    let noted = if work.forward != FORWARD_NAT {
        false
    } else if work.segment.opens() {
        announce(tables, work, way)
    } else {
        way.alone || recent::ended(tables, work)
    };
    if noted {
        there(work, way.target);
        return false;
    }
    let established = if begins(&work.segment) {
        0
    } else {
        FLOW_ESTABLISHED
    };
    // Anybody can forge datagrams, and what is never answered here. Those straight to the
    // endpoint have to be known.
    let forgeable = work.key.protocol == UDP && work.forward == FORWARD_NAT && !way.own();
    if (forgeable || work.forward == FORWARD_DSR) && !tables.grant() {
        without_entries(tables, work, way.target);
        there(work, way.target);
        return false;
    }
    work.target = way.target;
    work.state = way.side_bit() | established;
    true
}

/// A RST to the endpoint's own address that no entry knows.
#[inline(always)]
fn own_reset<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, selection: &Selection) {
    // Flows without entries may have lost their notes, and been answered without their VIP. Who
    // does not know a connection has nothing to acknowledge (RFC 9293 section 3.10.7.1).
    let unknowing = work.segment.flags & (RST | ACK) == RST;
    if unknowing && selection.exceptions.get() != 0 && recent::own(tables, work).is_none() {
        work.ruling.fate = Fate::Drop;
        work.ruling.reason = Reason::MisdirectedReset;
    } else {
        work.pass(Reason::Direct);
    }
}

/// Is this the RST of a client without a connection to a segment that acknowledged nothing
/// (RFC 9293 section 3.10.7.1)? Endpoints send no such segment, but the agent does, as if it
/// came from the VIP.
#[inline(always)]
fn answers_no_acknowledgment<A>(segment: &Segment<A>) -> bool {
    segment.flags & (RST | ACK) == RST | ACK && segment.seq == 0
}

/// The flow has no room and goes by its note: its client's segments shall make its entries,
/// or renew the note.
#[inline(always)]
fn without_entries<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32) {
    tables.count(Reason::TableFull);
    flow::look_everywhere(tables, work.listener.service);
    tell(tables, work, EventKind::TableFull, id);
    recent::put(tables, work, id, RecentState::Open);
}

/// A client opens a connection: leaves a note, unless its tuple is taken. Tells whether
/// it did.
#[inline(always)]
fn announce<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, way: &Way<'_>) -> bool {
    if !way.main() {
        way.selection.side.set(flow::stamp(tables));
    }
    if recent::repeats(tables, work) {
        tell(tables, work, EventKind::SynUnanswered, way.target);
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
    tables.asked(way.target);
    true
}

/// What becomes of a segment whose flow got its entries, or got none. Those are written
/// at once for datagrams, for segments in mid-connection, with full NAT, and where the
/// client's port has to change.
#[inline(never)]
fn entered<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    let id = work.target;
    let own = work.listener.kind == LISTENER_OWN;
    let relays = work.forward == FORWARD_FULL_NAT;
    let own_port_be = work.key.client_port_be;
    match Entered::of(work.entered) {
        Entered::Port(client_port_be) => {
            if client_port_be != own_port_be && !relays {
                flow::look_everywhere(tables, work.listener.service);
                tables.count(Reason::PortChanged);
            }
            if work.state & FLOW_ESTABLISHED != 0 && !own {
                tables.count(Reason::Adopted);
            }
            if work.listener.kind == LISTENER_SELECTION {
                spread::keep(tables, work, id);
            }
            if relays && work.segment.opens() {
                remember_syn(tables, work, id);
            }
        }
        // Not ours to refuse.
        _ if own => return work.pass(Reason::Direct),
        Entered::Full => {
            if relays {
                tell(tables, work, EventKind::TableFull, id);
                return refused(work, Reason::TableFull);
            }
            work.back_key.client_port_be = own_port_be;
            without_entries(tables, work, id);
        }
        Entered::Clash if relays => {
            tell(tables, work, EventKind::PortsExhausted, id);
            return refused(work, Reason::PortsExhausted);
        }
        Entered::Clash => {
            tell(tables, work, EventKind::TupleClash, id);
            return refused(work, Reason::TupleClash);
        }
    }
    there(work, id);
}
