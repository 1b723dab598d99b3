//! What endpoints send.

use super::{Fate, Ruling, Tables, Work, flow, recent, spread};
use crate::{
    abi::{
        Action, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, EventKind, FLOW_CONFIRMED, FLOW_ENDED,
        FLOW_ESTABLISHED, FLOW_FIN, FLOW_SIDE, FORWARD_FULL_NAT, FlowKey, KEEP_FLOWS_OF_DOWN,
        LISTENER_SELECTION, ListenerKey, Reason, Recent, RecentState, ReverseFlow,
    },
    packet::{
        Segment,
        parse::{ACK, FIN, RST, SYN, UDP},
        rewrite::{Family, Side, Translation},
        syn,
    },
};

/// What has an entry, until its end: that takes more. Most packets to clients are nobody's
/// here: those of no endpoint's address are not looked up.
#[inline(always)]
pub fn fast<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Ruling<A> {
    let from = ListenerKey {
        addr_be: segment.src_be,
        port_be: segment.src_port_be,
        protocol: segment.protocol,
        pad: 0,
    };
    if !tables.listens(&from) {
        return Ruling::pass(Reason::NotSteered);
    }
    let key = key(segment);
    let Some(flow) = tables.reverse(&key) else {
        return Ruling::plain(Fate::Slow, Reason::NotSteered);
    };
    let state = flow.state.get();
    let plain = segment.flags & (SYN | RST) == 0 && !segment.fragmented;
    if !plain || state & FLOW_FIN != 0 {
        return Ruling::plain(Fate::Slow, Reason::Undecided);
    }
    if segment.flags & FIN != 0 {
        if client_ended(tables, flow, &key) {
            return Ruling::plain(Fate::Slow, Reason::Undecided);
        }
        end(flow, segment, state);
    } else if state & FLOW_CONFIRMED == 0 {
        if segment.protocol == UDP {
            return Ruling::plain(Fate::Slow, Reason::Undecided);
        }
        flow.state.set(state | FLOW_ESTABLISHED | FLOW_CONFIRMED);
    }
    flow::touch(&flow.seen, tables.clock());
    let translation = translation(flow);
    if translation.is_identity(segment, Side::Source) {
        Ruling::pass(Reason::Direct)
    } else {
        Ruling::translate(translation, flow.endpoint)
    }
}

/// Has the client of this reverse entry sent its FIN?
#[inline(always)]
fn client_ended<A: Family, T: Tables<A>>(
    tables: &T,
    flow: &ReverseFlow<A>,
    back_key: &FlowKey<A>,
) -> bool {
    tables
        .forward(&flow::of(flow, back_key))
        .is_some_and(|forth| forth.state.get() & FLOW_FIN != 0)
}

/// The endpoint's FIN.
#[inline(always)]
fn end<A: Family>(flow: &ReverseFlow<A>, segment: &Segment<A>, state: u32) {
    flow.fin_end.set(segment.next_seq());
    flow.state.set(state | FLOW_FIN);
}

/// What the endpoint's segments are known by.
#[inline(always)]
fn key<A: Family>(segment: &Segment<A>) -> FlowKey<A> {
    FlowKey {
        client_be: segment.dst_be,
        peer_be: segment.src_be,
        client_port_be: segment.dst_port_be,
        peer_port_be: segment.src_port_be,
        protocol: segment.protocol,
        pad: 0,
        pad2: 0,
    }
}

#[inline(always)]
fn translation<A: Family>(flow: &ReverseFlow<A>) -> Translation<A> {
    Translation {
        addr_be: flow.vip_be,
        port_be: flow.vip_port_be,
        client_be: flow.client_be,
        client_port_be: flow.client_port_be,
    }
}

/// Everything that takes more than a look.
#[inline(always)]
pub fn slow<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    let flow = if work.unknown {
        work.back_key = key(&work.segment);
        None
    } else {
        known(tables, work)
    };
    match flow {
        Some(flow) => progress(tables, work, flow),
        None => noted(tables, work),
    }
}

/// Rules about a segment that has an entry, which it returns. A function of its own, as
/// those called after it, for the stack's sake.
#[inline(never)]
fn known<'a, A: Family + 'a, T: Tables<A>>(
    tables: &'a T,
    work: &mut Work<A>,
) -> Option<&'a ReverseFlow<A>> {
    work.back_key = key(&work.segment);
    let flow = tables.reverse(&work.back_key)?;
    flow::touch(&flow.seen, tables.clock());
    work.steer(Side::Source, translation(flow), flow.endpoint);
    Some(flow)
}

/// [`super::relays`] for what an endpoint sends to the source of full NAT.
#[inline(always)]
pub fn peek<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> bool {
    work.back_key = key(&work.segment);
    match tables.reverse(&work.back_key) {
        Some(flow) => {
            work.hop = flow.client_be;
            work.forward = FORWARD_FULL_NAT;
            work.ruling.translation.client_be = flow.vip_be;
            true
        }
        None => false,
    }
}

/// What an endpoint sends to the source of full NAT goes on to the client. A function of
/// its own, for the stack's sake.
#[inline(never)]
pub fn reply<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    let Some(flow) = known(tables, work) else {
        return work.pass(Reason::NotSteered);
    };
    work.hop = work.ruling.translation.client_be;
    work.ruling.fate = Fate::Reply;
    progress(tables, work, flow);
}

/// A segment that may change the state of its flow.
#[inline(never)]
fn progress<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, flow: &ReverseFlow<A>) {
    let id = flow.endpoint;
    work.key = flow::of(flow, &work.back_key);
    let Work { segment, key, .. } = &*work;
    let state = flow.state.get();
    if segment.flags & RST != 0 {
        let service = flow.service;
        if state & FLOW_ESTABLISHED == 0 && segment.flags & ACK != 0 {
            return unopened(tables, work, service, id);
        }
        flow::close(tables, work, id, RecentState::Closed);
    } else if segment.flags & SYN != 0 {
        tables.answered(id);
        // The client's port begins anew with the same endpoint, or this is the first answer.
        let anew = state & FLOW_ESTABLISHED == 0 || state & FLOW_FIN != 0;
        if segment.flags & ACK != 0 && anew && state & FLOW_ENDED == 0 {
            let state = state & FLOW_SIDE | FLOW_ESTABLISHED;
            flow.state.set(state);
            if let Some(forth) = tables.forward(key) {
                forth.state.set(state);
            }
        }
    } else if segment.flags & FIN != 0 {
        if client_ended(tables, flow, &work.back_key) {
            // Both have sent theirs. The last acknowledgment may go by the slot alone, unseen.
            flow::close(tables, work, id, RecentState::Closed);
        } else {
            end(flow, segment, state);
        }
    } else if state & FLOW_FIN != 0 {
        if segment.flags & ACK != 0
            && let Some(forth) = tables.forward(key)
            && forth.state.get() & FLOW_FIN != 0
            && forth.fin_end.get() == segment.ack
        {
            flow::close(tables, work, id, RecentState::Closed);
        }
    } else {
        if segment.protocol == UDP
            && let Some(forth) = tables.forward(key)
        {
            forth.state.set(forth.state.get() | FLOW_ESTABLISHED);
        }
        flow.state.set(state | FLOW_ESTABLISHED | FLOW_CONFIRMED);
    }
}

/// A RST to a flow that has entries and was never answered.
#[inline(always)]
fn unopened<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, service: u32, id: u32) {
    if recent::acknowledged(tables, work) {
        refused(tables, work, service, id);
        if work.ruling.fate == Fate::Reply && syn::may_become(&work.segment) {
            work.origin = tables
                .forward(&work.key)
                .map_or(0, |flow| flow.origin as u32);
            work.target = id;
            work.ruling.fate = Fate::Again;
            return;
        }
    }
    flow::close(tables, work, id, RecentState::Closed);
}

/// A segment of a flow that has only a note, or of none.
#[inline(never)]
fn noted<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    work.pass(Reason::NotSteered);
    let Some(entry) = recent::find(tables, &work.back_key) else {
        return;
    };
    let Some(trace) = entry.trace() else {
        return;
    };
    let id = trace.endpoint;
    if work.segment.flags & RST == 0 {
        tables.answered(id);
    }
    work.key = recent::forward_key(&trace);
    let (lives, side) = match entry.state() {
        RecentState::Open => (true, 0),
        RecentState::OpenSide => (true, FLOW_SIDE),
        RecentState::Closed if work.segment.flags & RST == 0 && gone(tables, id) => {
            return work.reset(Reason::ClientGone);
        }
        RecentState::Closed => (false, 0),
        RecentState::GivenUp => {
            if work.segment.flags & (SYN | ACK | RST) == SYN | ACK {
                work.reset(Reason::LateAnswer);
            }
            return;
        }
    };
    if lives && !live(tables, work, entry, id, side) {
        return;
    }
    let again = work.ruling.fate == Fate::Again;
    let translation = Translation {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        client_be: work.key.client_be,
        client_port_be: work.key.client_port_be,
    };
    work.steer(Side::Source, translation, id);
    if again {
        work.ruling.fate = Fate::Again;
    }
}

/// Were the flows of this endpoint reset?
#[inline(always)]
fn gone<A: Family, T: Tables<A>>(tables: &T, id: u32) -> bool {
    let Some(endpoint) = tables.endpoint(id) else {
        return false;
    };
    match endpoint.state {
        ENDPOINT_DRAINED => true,
        ENDPOINT_DOWN => tables.selection(endpoint.service).is_some_and(|selection| {
            let decision = Decision::unpack(selection.decision.get());
            decision.flags & KEEP_FLOWS_OF_DOWN == 0
        }),
        _ => false,
    }
}

/// Brings a flow that has only a note into the tables, as far as this segment allows.
/// Tells whether the segment is still the client's.
#[inline(always)]
fn live<A: Family, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    entry: &Recent<A>,
    id: u32,
    side: u32,
) -> bool {
    let Some(endpoint) = tables.endpoint(id) else {
        return false;
    };
    let service = endpoint.service;
    let flags = work.segment.flags;
    if flags & RST != 0 {
        let origin = entry.origin();
        if flags & ACK != 0 && recent::acknowledged(tables, work) {
            refused(tables, work, service, id);
            if syn::may_become(&work.segment) {
                work.origin = origin.wrapping_add(1);
                work.target = id;
                work.ruling.fate = Fate::Again;
                return true;
            }
        }
        entry.set_state(RecentState::Closed);
        return true;
    }
    if flags & FIN != 0 {
        return true;
    }
    // Forged SYNs are answered too: they must not fill the tables.
    if flags & SYN != 0 && !tables.grant() {
        no_room(tables, work, service, id);
        return true;
    }
    // The client's SYN went elsewhere since.
    if let Some(forth) = tables.forward(&work.key)
        && forth.endpoint != id
    {
        entry.set_state(RecentState::GivenUp);
        return false;
    }
    let confirmed = if flags & SYN != 0 { 0 } else { FLOW_CONFIRMED };
    if flow::enter(tables, work, id, FLOW_ESTABLISHED | confirmed | side).is_err() {
        no_room(tables, work, service, id);
        return true;
    }
    if strays(tables, work, service, id) {
        flow::look_everywhere(tables, service);
    }
    spread::keep(tables, work, id);
    true
}

/// Does the flow, which follows the selection, stay with another endpoint than the selected?
/// The sweep that lets segments go by the slot alone may have come before its entries.
#[inline(never)]
fn strays<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, service: u32, id: u32) -> bool {
    let Some(selection) = tables.selection(service) else {
        return false;
    };
    let decision = Decision::unpack(selection.decision.get());
    if decision.action != Action::Steer || decision.target == id {
        return false;
    }
    let at = ListenerKey {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        protocol: work.key.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&at) else {
        return false;
    };
    listener.kind == LISTENER_SELECTION
}

/// The flow goes without entries.
#[inline(always)]
fn no_room<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, service: u32, id: u32) {
    tables.count(Reason::TableFull);
    // The client's segments shall make them, or renew the note.
    flow::look_everywhere(tables, service);
    tell(tables, work, EventKind::TableFull, service, id);
}

/// The endpoint refused a connection.
#[inline(always)]
fn refused<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, service: u32, id: u32) {
    tables.answered(id);
    tell(tables, work, EventKind::EndpointRefused, service, id);
}

#[inline(always)]
fn tell<A: Family, T: Tables<A>>(
    tables: &T,
    work: &Work<A>,
    kind: EventKind,
    service: u32,
    id: u32,
) {
    let FlowKey {
        client_be,
        client_port_be,
        ..
    } = work.key;
    tables.event(kind, service, id, client_be, client_port_be);
}
