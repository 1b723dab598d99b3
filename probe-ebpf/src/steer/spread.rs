//! Which endpoint a new flow goes to, also where several share them.

use super::{Tables, Work};
use crate::{
    abi::{
        Action, Affinity, AffinityKey, Decision, ENDPOINT_UP, LISTENER_SELECTION, ListenerKey,
        NO_ENDPOINT, PREVIOUS_RING, Selection, Shared, place, place_of_socket,
    },
    packet::rewrite::Family,
};

/// The endpoint of a new flow of [`Work::key`] that follows the selection of the service
/// of [`Work::listener`]; [`NO_ENDPOINT`] if there is none.
#[inline(never)]
pub fn target<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, selection: &Selection) -> u32 {
    let decision = Decision::unpack(selection.decision.get());
    match decision.action {
        Action::Steer => return decision.target,
        Action::Spread => {}
        Action::Pass | Action::Refuse => return NO_ENDPOINT,
    }
    let life = selection.affinity.get();
    if life != 0 {
        let id = kept(tables, work, decision.tier, life);
        if id != NO_ENDPOINT {
            return id;
        }
    }
    on_ring(tables, work, decision.target, life != 0)
}

/// The same by the selection before the last switch, or change within the tier, as far as
/// that is known.
#[inline(never)]
pub fn before<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, selection: &Selection) -> u32 {
    let previous = selection.previous.get();
    if previous & PREVIOUS_RING == 0 {
        return previous;
    }
    let ring = previous & !PREVIOUS_RING;
    on_ring(tables, work, ring, selection.affinity.get() != 0)
}

/// Where a ring sends the flow; [`NO_ENDPOINT`] if it is no ring of the service.
#[inline(never)]
fn on_ring<A: Family, T: Tables<A>>(
    tables: &T,
    work: &Work<A>,
    ring: u32,
    by_client_alone: bool,
) -> u32 {
    let port_be = if by_client_alone {
        0
    } else {
        work.key.client_port_be
    };
    let place = place(work.key.client_be, port_be);
    at(tables, work.listener.service, ring, place)
}

/// What a ring of the service names at a place, as [`on_ring`].
#[inline(always)]
fn at<A: Family, T: Tables<A>>(tables: &T, service: u32, ring: u32, place: usize) -> u32 {
    let Some(ring) = tables.ring(ring) else {
        return NO_ENDPOINT;
    };
    let Some(id) = ring.at(place) else {
        return NO_ENDPOINT;
    };
    match tables.endpoint(id) {
        // Another service's ring would mean that ours was given away under our hands.
        Some(endpoint) if endpoint.service == service => id,
        _ => NO_ENDPOINT,
    }
}

/// The endpoint of a new connection of the node's own to a service that spreads. The node
/// is one client, whatever its addresses: where clients keep their endpoint, it keeps one.
#[inline(always)]
pub fn of_node<A: Family, T: Tables<A>>(
    tables: &T,
    service: u32,
    selection: &Selection,
    decision: Decision,
    cookie: u64,
) -> u32 {
    let life = selection.affinity.get();
    if life == 0 {
        return at(tables, service, decision.target, place_of_socket(cookie));
    }
    // No client has this address.
    let key = AffinityKey {
        client_be: A::default(),
        service,
    };
    let mut id = fresh(tables, &key, decision.tier, life);
    if id == NO_ENDPOINT {
        id = at(tables, service, decision.target, place(A::default(), 0));
    }
    if id != NO_ENDPOINT {
        note(tables, &key, id);
    }
    id
}

#[inline(always)]
fn key<A: Family>(work: &Work<A>, service: u32) -> AffinityKey<A> {
    AffinityKey {
        client_be: work.key.client_be,
        service,
    }
}

/// The endpoint that the client keeps, unless it takes no new connections any more.
#[inline(never)]
fn kept<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, tier: u8, life: u32) -> u32 {
    fresh(tables, &key(work, work.listener.service), tier, life)
}

#[inline(always)]
fn fresh<A: Family, T: Tables<A>>(tables: &T, key: &AffinityKey<A>, tier: u8, life: u32) -> u32 {
    let Some(entry) = tables.affinity(key) else {
        return NO_ENDPOINT;
    };
    let (id, seen) = (entry.endpoint.get(), entry.seen.get());
    match tables.endpoint(id) {
        Some(endpoint)
            if tables.clock().wrapping_sub(seen) <= life
                && endpoint.state == ENDPOINT_UP
                && endpoint.tier == tier
                && endpoint.service == key.service
                && A::of_endpoint(endpoint).is_some() =>
        {
            id
        }
        _ => NO_ENDPOINT,
    }
}

/// A flow of [`Work::key`] got its entries: its client keeps the endpoint, if the service
/// says so. Not before, so that forged SYNs drive nobody out of the table.
#[inline(never)]
pub fn keep<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32) {
    let at = ListenerKey {
        addr_be: work.key.peer_be,
        port_be: work.key.peer_port_be,
        protocol: work.key.protocol,
        pad: 0,
    };
    let service = match tables.endpoint(id) {
        Some(endpoint) => endpoint.service,
        None => return,
    };
    match tables.selection(service) {
        Some(selection)
            if selection.affinity.get() != 0
                && Decision::unpack(selection.decision.get()).action == Action::Spread => {}
        _ => return,
    }
    // Who asked for this endpoint did not ask to keep it.
    match tables.listener(&at) {
        Some(listener) if listener.kind == LISTENER_SELECTION => {}
        _ => return,
    }
    note(tables, &key(work, service), id);
}

#[inline(always)]
fn note<A: Family, T: Tables<A>>(tables: &T, key: &AffinityKey<A>, id: u32) {
    let now = tables.clock();
    match tables.affinity(key) {
        Some(entry) => {
            entry.endpoint.set(id);
            entry.seen.set(now);
        }
        None => tables.put_affinity(
            key,
            &Affinity {
                endpoint: Shared::new(id),
                seen: Shared::new(now),
            },
        ),
    }
}
