//! ICMP errors about steered packets: whose are they, and what do they quote in the
//! receiver's eyes?
//!
//! Without them path MTU discovery breaks: the router that cannot forward a packet
//! quotes what it saw, the translated packet, and its sender looks for a connection
//! that it does not have (RFC 5508 section 4 asks NATs for this translation).

use super::{Fate, Tables, Work, flow, forward::is_source, recent, spread};
use crate::{
    abi::{
        FORWARD_DSR, FORWARD_FULL_NAT, FlowKey, LISTENER_SELECTION, ListenerKey, Reason, Recent,
    },
    packet::rewrite::{Family, Translation},
};

/// An error on its way to a server, about what the server sent: the quotation's
/// source is the VIP. Or one about what full NAT sent on to a server, on its way to the
/// client.
#[inline(always)]
pub fn forward<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    if is_source(tables, work.quoted.dst_be) {
        return reverse(tables, work);
    }
    let quoted = &work.quoted;
    work.key = FlowKey {
        client_be: quoted.inner_dst_be,
        peer_be: quoted.inner_src_be,
        client_port_be: quoted.inner_dst_port_be,
        peer_port_be: quoted.inner_src_port_be,
        protocol: quoted.protocol,
        pad: 0,
        pad2: 0,
    };
    let known = match tables.forward(&work.key) {
        Some(flow) => flow::aim(tables, work, flow.client_port_be, flow.endpoint),
        None => noted(tables, work),
    };
    if !known {
        return work.pass(Reason::ErrorNotSteered);
    }
    let translation = Translation {
        addr_be: work.back_key.peer_be,
        port_be: work.back_key.peer_port_be,
        client_be: work.back_key.client_be,
        client_port_be: work.back_key.client_port_be,
    };
    if work.forward == FORWARD_DSR {
        // The endpoint gets it as it is.
        work.ruling.translation = translation;
        work.ends = [work.quoted.src_be, work.quoted.dst_be];
        work.ruling.fate = Fate::Relay;
        return;
    }
    translate(work, translation, |work| &work.key);
    if work.ruling.fate == Fate::Translate && work.forward == FORWARD_FULL_NAT {
        send(work, Fate::Relay);
    }
}

/// Is there a note of the flow of [`Work::key`], at the endpoint of its listener's new
/// flows? Leaves the flow's other key in `work`.
#[inline(never)]
fn noted<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> bool {
    let at = ListenerKey {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        protocol: work.key.protocol,
        pad: 0,
    };
    if let Some(listener) = tables.listener(&at)
        && let Some(selection) = tables.selection(listener.service)
    {
        work.listener = listener;
        let target = if listener.kind == LISTENER_SELECTION {
            spread::target(tables, work, selection)
        } else {
            listener.endpoint
        };
        let port_be = work.key.client_port_be;
        return flow::aim(tables, work, port_be, target) && recent::own(tables, work).is_some();
    }
    false
}

/// An error on its way to a client, about what the client sent: the quotation's
/// destination is the endpoint. A function of its own, for the stack's sake.
#[inline(never)]
pub fn reverse<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    let quoted = &work.quoted;
    work.back_key = FlowKey {
        client_be: quoted.inner_src_be,
        peer_be: quoted.inner_dst_be,
        client_port_be: quoted.inner_src_port_be,
        peer_port_be: quoted.inner_dst_port_be,
        protocol: quoted.protocol,
        pad: 0,
        pad2: 0,
    };
    let translation = if let Some(flow) = tables.reverse(&work.back_key) {
        Translation {
            addr_be: flow.vip_be,
            port_be: flow.vip_port_be,
            client_be: flow.client_be,
            client_port_be: flow.client_port_be,
        }
    } else if let Some(trace) = recent::find(tables, &work.back_key).and_then(Recent::trace) {
        Translation {
            addr_be: trace.vip_be,
            port_be: trace.vip_port_be,
            client_be: trace.client_be,
            client_port_be: trace.client_port_be,
        }
    } else {
        return work.pass(Reason::ErrorNotSteered);
    };
    translate(work, translation, |work| &work.back_key);
    // Addressed to the source of full NAT, which nobody may own.
    if work.ruling.fate == Fate::Translate && translation.client_be != work.back_key.client_be {
        send(work, Fate::Reply);
    }
}

/// Rules that the error, which is translated, is sent on from here, to the endpoint or the
/// client, as if the other one had sent it (see [`ErrorChange::client_changes`]).
///
/// [`ErrorChange::client_changes`]: crate::packet::rewrite::ErrorChange::client_changes
#[inline(always)]
fn send<A: Family>(work: &mut Work<A>, fate: Fate) {
    let Translation {
        addr_be, client_be, ..
    } = work.ruling.translation;
    work.ends = match fate {
        Fate::Relay => [client_be, addr_be],
        _ => [addr_be, client_be],
    };
    work.hop = work.ends[1];
    work.ruling.fate = fate;
}

/// Errors go to the source of what they quote; any other is not to be trusted. A direct
/// connection that never had to make way has nothing to translate.
#[inline(always)]
fn translate<A: Family>(
    work: &mut Work<A>,
    translation: Translation<A>,
    key: impl Fn(&Work<A>) -> &FlowKey<A>,
) {
    if work.quoted.dst_be != work.quoted.inner_src_be {
        return work.pass(Reason::ErrorNotSteered);
    }
    let key = key(work);
    if translation.addr_be == key.peer_be
        && translation.port_be == key.peer_port_be
        && translation.client_port_be == key.client_port_be
    {
        return work.pass(Reason::Direct);
    }
    work.ruling.fate = Fate::Translate;
    work.ruling.translation = translation;
}
