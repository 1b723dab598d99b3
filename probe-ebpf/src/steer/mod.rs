//! Which endpoint a segment belongs to, and what becomes of it.
//!
//! [`forward`] decides for segments from clients, [`reverse`] for segments from
//! endpoints, [`forward_error`] and [`reverse_error`] for ICMP errors about them, [`follow`] for
//! later fragments. Both are given tables by the [`Tables`] trait and answer with a
//! [`Verdict`]; neither touches the packet, so all of it runs on the host under
//! test and in the kernel over maps.
//!
//! The life of a flow: the client's SYN finds a listener, the service's decision
//! names the endpoint, and two entries are written, one keyed by what the client
//! sends (forward), one by what the endpoint sends (reverse). Later segments find
//! theirs. A RST in either direction, or the acknowledgment of the second FIN,
//! removes both at once (UDP flows end by idleness alone), since the client's kernel may use the port again for
//! another connection with the same endpoint.
//!
//! Invariants:
//! - Only a listener's destination, or a reverse entry, is ever translated.
//! - To an endpoint, two connections of one client never look alike: a connection
//!   straight to the endpoint's own address is written down too, and whichever comes
//!   second gets another source port. Until there is a clash it passes unchanged.
//! - A flow stays with its endpoint while that endpoint is not down, whatever the
//!   selection says meanwhile.
//! - A segment in mid-connection that no flow knows takes one up (as conntrack
//!   does), so a lost table costs a single-endpoint service nothing.

mod errors;
mod flow;
mod fragments;
mod tables;

pub use errors::{ErrorVerdict, forward_error, reverse_error};
pub use fragments::{PieceVerdict, follow};
pub use tables::{Insert, Tables};

use crate::abi::{
    Action, ENDPOINT_DOWN, ENDPOINT_FREE, Endpoint, EventKind, FLOW_ESTABLISHED, FLOW_FIN, FlowKey,
    ForwardFlow, KEEP_FLOWS_OF_DOWN, LISTENER_OWN, LISTENER_SELECTION, Listener, ListenerKey,
    Reason, seen,
};
use crate::packet::{
    Segment,
    parse::{ACK, FIN, RST, SYN, UDP},
    rewrite::{Family, Side, Translation},
};

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<A> {
    /// It goes on as it is.
    Pass(Reason),
    /// It is answered with a RST and goes no further.
    Reset(Reason),
    /// It goes no further: UDP has no RST to answer with.
    Drop(Reason),
    /// It goes on with other addresses, counted for this endpoint.
    Translate(Translation<A>, u32),
}

/// Refuses a segment, as its protocol can.
#[inline(always)]
fn refuse<A>(segment: &Segment<A>, reason: Reason) -> Verdict<A> {
    if segment.protocol == UDP {
        Verdict::Drop(Reason::DatagramRefused)
    } else {
        Verdict::Reset(reason)
    }
}

/// May the segment begin a flow in the ordinary way? A SYN may, and any datagram.
#[inline(always)]
fn begins<A>(segment: &Segment<A>) -> bool {
    segment.opens() || segment.protocol == UDP
}

/// A client's segment: is it for a listener, and where does it go?
#[inline(always)]
pub fn forward<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Verdict<A> {
    let verdict = decide_forward(tables, segment);
    fragments::remember(tables, segment, Side::Destination, &verdict);
    verdict
}

/// An endpoint's segment: does it belong to a steered flow?
#[inline(always)]
pub fn reverse<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Verdict<A> {
    let verdict = decide_reverse(tables, segment);
    fragments::remember(tables, segment, Side::Source, &verdict);
    verdict
}

#[inline(always)]
fn decide_forward<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Verdict<A> {
    let key = ListenerKey {
        addr_be: segment.dst_be,
        port_be: segment.dst_port_be,
        protocol: segment.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&key) else {
        return Verdict::Pass(Reason::NotListener);
    };
    let key = FlowKey {
        client_be: segment.src_be,
        peer_be: segment.dst_be,
        client_port_be: segment.src_port_be,
        peer_port_be: segment.dst_port_be,
        protocol: segment.protocol,
        pad: 0,
        pad2: 0,
    };
    let Some(decision) = tables.decision(listener.service) else {
        return Verdict::Pass(Reason::Undecided);
    };
    let follows = listener.kind == LISTENER_SELECTION;
    let (action, target) = if follows {
        (decision.action, decision.endpoint)
    } else {
        (Action::Steer, listener.endpoint)
    };

    if let Some(flow) = tables.forward(&key)
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
        && let Some(addr_be) = A::of_endpoint(endpoint)
    {
        let lost = follows && matches!(endpoint.state, ENDPOINT_DOWN | ENDPOINT_FREE);
        let keep = decision.flags & KEEP_FLOWS_OF_DOWN != 0;
        let stays = if begins(segment) {
            reopens_nothing(
                flow,
                action == Action::Steer && flow.endpoint == target,
                lost,
            )
        } else {
            !lost || keep || segment.flags & RST != 0
        };
        if stays {
            return known(tables, segment, &key, flow, endpoint, addr_be);
        }
        let service = flow.service;
        let lost_endpoint = flow.endpoint;
        flow::remove(tables, &key, flow, endpoint, addr_be);
        if !begins(segment) {
            tables.event(
                EventKind::FlowReset,
                service,
                lost_endpoint,
                segment.src_be,
                segment.src_port_be,
            );
            return refuse(segment, Reason::EndpointDown);
        }
    }
    unknown(tables, segment, &key, listener, action, target)
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
fn known<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    key: &FlowKey<A>,
    flow: &ForwardFlow,
    endpoint: &Endpoint,
    addr_be: A,
) -> Verdict<A> {
    let translation = Translation {
        addr_be,
        port_be: endpoint.port_be,
        client_port_be: flow.client_port_be,
    };
    let id = flow.endpoint;
    flow::touch(&flow.seen, seen(tables.now_ns()));
    if segment.flags & (FIN | RST) != 0 || flow.state.get() & FLOW_FIN != 0 {
        if segment.flags & RST != 0 {
            flow::remove(tables, key, flow, endpoint, addr_be);
        } else if segment.flags & FIN != 0 {
            flow.fin_end.set(segment.end());
            flow.state.set(flow.state.get() | FLOW_FIN);
        } else if segment.flags & ACK != 0
            && let Some(back) = tables.reverse(&flow::reverse_key(
                key,
                flow.client_port_be,
                endpoint,
                addr_be,
            ))
            && back.state.get() & FLOW_FIN != 0
            && back.fin_end.get() == segment.ack
        {
            flow::remove(tables, key, flow, endpoint, addr_be);
        }
    }
    steered(segment, Side::Destination, translation, id)
}

/// The verdict of a translation: a direct connection keeps its bytes unless it had
/// to make way.
#[inline(always)]
fn steered<A: Family>(
    segment: &Segment<A>,
    side: Side,
    translation: Translation<A>,
    endpoint: u32,
) -> Verdict<A> {
    if translation.is_identity(segment, side) {
        Verdict::Pass(Reason::Direct)
    } else {
        Verdict::Translate(translation, endpoint)
    }
}

/// A segment that no flow knows: the first of a connection, or one whose flow was lost.
#[inline(always)]
fn unknown<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    key: &FlowKey<A>,
    listener: Listener,
    action: Action,
    target: u32,
) -> Verdict<A> {
    let own = listener.kind == LISTENER_OWN;
    if segment.flags & RST != 0 {
        return Verdict::Pass(if own {
            Reason::Direct
        } else {
            Reason::StrayReset
        });
    }
    match action {
        Action::Pass => return Verdict::Pass(Reason::Undecided),
        Action::Refuse => return refuse(segment, Reason::Refused),
        Action::Steer => {}
    }
    let Some(endpoint) = tables.endpoint(target) else {
        return Verdict::Pass(Reason::Undecided);
    };
    let Some(addr_be) = A::of_endpoint(endpoint) else {
        return refuse(segment, Reason::NoAddress);
    };
    let opens = begins(segment);
    let state = if opens { 0 } else { FLOW_ESTABLISHED };
    match flow::open(
        tables,
        key,
        endpoint,
        addr_be,
        listener.service,
        target,
        state,
        seen(tables.now_ns()),
    ) {
        Ok(client_port_be) => {
            if !opens && !own {
                tables.count(Reason::Adopted);
            }
            let translation = Translation {
                addr_be,
                port_be: endpoint.port_be,
                client_port_be,
            };
            steered(segment, Side::Destination, translation, target)
        }
        // Not ours to refuse.
        Err(_) if own => Verdict::Pass(Reason::Direct),
        Err(reason) => {
            let kind = match reason {
                Reason::TupleClash => EventKind::TupleClash,
                _ => EventKind::TableFull,
            };
            tables.event(
                kind,
                listener.service,
                target,
                segment.src_be,
                segment.src_port_be,
            );
            refuse(segment, reason)
        }
    }
}

#[inline(always)]
fn decide_reverse<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>) -> Verdict<A> {
    let key = FlowKey {
        client_be: segment.dst_be,
        peer_be: segment.src_be,
        client_port_be: segment.dst_port_be,
        peer_port_be: segment.src_port_be,
        protocol: segment.protocol,
        pad: 0,
        pad2: 0,
    };
    let Some(flow) = tables.reverse(&key) else {
        return Verdict::Pass(Reason::NotSteered);
    };
    let translation = Translation {
        addr_be: flow.vip_be,
        port_be: flow.vip_port_be,
        client_port_be: flow.client_port_be,
    };
    let id = flow.endpoint;
    flow::touch(&flow.seen, seen(tables.now_ns()));
    let state = flow.state.get();
    let first_answer = segment.protocol == UDP && state & FLOW_ESTABLISHED == 0;
    if segment.flags & (SYN | FIN | RST) != 0 || state & FLOW_FIN != 0 || first_answer {
        let forward_key = FlowKey {
            client_be: key.client_be,
            peer_be: flow.vip_be,
            client_port_be: flow.client_port_be,
            peer_port_be: flow.vip_port_be,
            protocol: segment.protocol,
            pad: 0,
            pad2: 0,
        };
        if segment.flags & RST != 0 {
            if state & FLOW_ESTABLISHED == 0 && segment.flags & ACK != 0 {
                tables.event(
                    EventKind::EndpointRefused,
                    flow.service,
                    id,
                    segment.dst_be,
                    flow.client_port_be,
                );
            }
            flow::remove_pair(tables, &forward_key, &key, id);
        } else if segment.flags & SYN != 0 || first_answer {
            let answers = first_answer || segment.flags & ACK != 0;
            if answers && state & FLOW_ESTABLISHED == 0 {
                flow.state.set(state | FLOW_ESTABLISHED);
                if let Some(forth) = tables.forward(&forward_key) {
                    forth.state.set(forth.state.get() | FLOW_ESTABLISHED);
                }
            }
        } else if segment.flags & FIN != 0 {
            flow.fin_end.set(segment.end());
            flow.state.set(state | FLOW_FIN);
        } else if segment.flags & ACK != 0
            && let Some(forth) = tables.forward(&forward_key)
            && forth.state.get() & FLOW_FIN != 0
            && forth.fin_end.get() == segment.ack
        {
            flow::remove_pair(tables, &forward_key, &key, id);
        }
    }
    steered(segment, Side::Source, translation, id)
}

#[cfg(test)]
mod tests;
