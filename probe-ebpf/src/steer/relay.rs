//! What is sent on from here instead of being left to the kernel's forwarding, which
//! refuses packets that come in with an address of the node's own.

use super::{Tables, Work, flow, forward, reverse, spread};
use crate::{
    abi::{Action, Decision, FORWARD_NAT, LISTENER_OWN, LISTENER_SELECTION, ListenerKey},
    packet::rewrite::Family,
};

/// Is [`Work::segment`] one that is sent on from here? Then [`Work::hop`] says where to, and
/// the ruling's translation whence, as its client's. Changes nothing else, so that who cannot
/// send it may leave it to another program.
#[inline(never)]
pub fn concerns<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> bool {
    work.key = flow::forward_key(&work.segment);
    if forward::is_source(tables, work.key.peer_be) {
        return reverse::peek(tables, work);
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
    let Some(selection) = tables.selection(listener.service) else {
        return false;
    };
    let decision = Decision::unpack(selection.decision.get());
    let id = if let Some(flow) = tables.forward(&work.key) {
        flow.endpoint
    } else if listener.kind != LISTENER_SELECTION {
        listener.endpoint
    } else if decision.action == Action::Steer {
        decision.target
    } else if decision.action == Action::Spread {
        spread::target(tables, work, selection)
    } else {
        return false;
    };
    let port_be = work.key.client_port_be;
    if listener.kind == LISTENER_OWN || !flow::aim(tables, work, port_be, id) {
        return false;
    }
    work.ruling.translation.client_be = work.back_key.client_be;
    work.forward != FORWARD_NAT
}
