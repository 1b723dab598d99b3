//! A SYN that an endpoint refused goes to the next one.
//!
//! A RST that acknowledges exactly the client's SYN (see `recent::acknowledged`) becomes that SYN, to
//! the endpoint after the one that refused: the others of its tier, then those of the tier
//! below, and of the first after the last ([`Endpoint::next`], [`Endpoint::below`]). So a client whose endpoint has died, and the agent
//! with it, is connected one round trip later. Nobody but the endpoint, or who sees its
//! packets, knows the number that such a RST has to acknowledge (RFC 5961 section 3 asks as
//! much of a client).
//!
//! It goes round once: the first that was asked stands in the note or entry of whoever is asked
//! after it (`origin`), and is not asked again. Then, or where nobody is left, the client gets
//! the RST. Endpoints that are down are passed over.
//!
//! With NAT the SYN is made out as the endpoint shall get it, and comes in again at the client's
//! interface: there it is one to the endpoint's own address, of which a note says that it may pass
//! (`recent::take_over`). Entries are written when that endpoint answers. With full NAT
//! the flow gets its entries with the next endpoint at once, and the client's own SYN comes in
//! again, to be sent on as they say. With direct server return no RST comes by.

use super::{
    Fate, Tables, Work,
    flow::{self, Entered},
    recent,
};
use crate::{
    abi::{
        Action, Decision, ENDPOINT_UP, Endpoint, FLOW_MOVED, FLOW_SIDE, FORWARD_FULL_NAT,
        LISTENER_SELECTION, ListenerKey, NO_ENDPOINT, NO_REDISPATCH, NO_TIER, Reason, RecentState,
    },
    packet::rewrite::{Family, Side, Translation},
};

/// Endpoints that are passed over at once, at most.
const STEPS: u32 = 16;

/// [`Work::segment`] refuses the SYN in [`Work::syn`], which [`Work::target`] got: sends it on
/// to another, or rules that the client hears of it.
#[inline(always)]
pub fn offer<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    let from = work.target;
    let full_nat = is_full_nat(tables, from);
    let next = next(tables, work);
    // One after the other, for the stack's sake.
    let sent = next != NO_ENDPOINT && {
        if full_nat {
            move_entries(tables, work, next)
        } else {
            move_note(tables, work, next)
        }
    };
    if sent {
        tables.count(Reason::Redispatched);
        return;
    }
    work.steer(Side::Source, work.ruling.translation, from);
    if full_nat {
        work.ruling.fate = Fate::Reply;
    }
    ends(tables, work, from);
}

/// The flow ends with the RST.
#[inline(never)]
fn ends<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, from: u32) {
    work.hop = work.ruling.translation.client_be;
    let port_be = work.segment.dst_port_be;
    if flow::aim(tables, work, port_be, from) {
        flow::close(tables, work, from, RecentState::Closed);
    }
    work.hop = work.ruling.translation.client_be;
}

#[inline(always)]
fn is_full_nat<A: Family, T: Tables<A>>(tables: &T, id: u32) -> bool {
    tables
        .endpoint(id)
        .is_some_and(|endpoint| endpoint.forward == FORWARD_FULL_NAT)
}

/// Who is asked next, or [`NO_ENDPOINT`].
#[inline(never)]
fn next<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> u32 {
    if !follows(tables, work) {
        return NO_ENDPOINT;
    }
    let from = work.target;
    let first = match work.origin {
        0 => from,
        origin => origin - 1,
    };
    let first_tier = tables.endpoint(first).map_or(NO_TIER, |first| first.tier);
    let mut id = from;
    for _ in 0..STEPS {
        let Some(endpoint) = tables.endpoint(id) else {
            break;
        };
        id = endpoint.next;
        let begun_at = if endpoint.tier == first_tier {
            first
        } else {
            endpoint.head
        };
        let round = id == begun_at;
        if round {
            id = endpoint.below;
        }
        match tables.endpoint(id) {
            None => break,
            Some(next) if round && next.tier == first_tier => break,
            Some(next) if is_fit::<A>(next) => return id,
            Some(_) => {}
        }
    }
    NO_ENDPOINT
}

#[inline(always)]
fn is_fit<A: Family>(endpoint: &Endpoint) -> bool {
    endpoint.state == ENDPOINT_UP && A::of_endpoint(endpoint).is_some()
}

/// Does the flow go wherever an endpoint serves? One that asked for this endpoint does not, nor
/// where only the selected one may serve.
#[inline(always)]
fn follows<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
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
    listener.kind == LISTENER_SELECTION
        && decision.flags & NO_REDISPATCH == 0
        && matches!(decision.action, Action::Steer | Action::Spread)
}

/// Sends the SYN to this endpoint, of which a note tells. Tells whether it can.
#[inline(never)]
fn move_note<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, id: u32) -> bool {
    let first = match work.origin {
        0 => work.target,
        origin => origin - 1,
    };
    // What the endpoint that refused says from now on is not the client's.
    recent::give_up(tables, work);
    let port_be = work.key.client_port_be;
    if !flow::aim(tables, work, port_be, id) || flow::taken(tables, work) {
        return false;
    }
    let service = tables.endpoint(id).map_or(0, |endpoint| endpoint.service);
    flow::look_everywhere(tables, service);
    recent::hand_over(tables, work, id, first);
    work.ruling.translation = Translation {
        addr_be: work.back_key.peer_be,
        port_be: work.back_key.peer_port_be,
        client_be: work.back_key.client_be,
        client_port_be: work.back_key.client_port_be,
    };
    true
}

/// Moves the flow's entries to this endpoint, and makes the client's SYN come in again. Tells whether
/// it can.
#[inline(never)]
fn move_entries<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, id: u32) -> bool {
    let state = match tables.forward(&work.key) {
        Some(flow) => flow.state.get() & FLOW_SIDE,
        None => return false,
    };
    flow::close(tables, work, work.target, RecentState::GivenUp);
    if work.origin == 0 {
        work.origin = work.target + 1;
    }
    let port_be = work.key.client_port_be;
    if !flow::aim(tables, work, port_be, id) {
        return false;
    }
    work.target = id;
    work.state = state | FLOW_MOVED;
    flow::open(tables, work);
    if !matches!(Entered::of(work.entered), Entered::Port(_)) {
        return false;
    }
    work.ruling.translation = Translation {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        client_be: work.key.client_be,
        client_port_be: work.key.client_port_be,
    };
    true
}
