//! Notes of flows that have no entries: not answered yet, just ended, or for want of
//! room.
//!
//! A small table of sets of two, addressed by a hash of what the endpoint sees of a
//! flow. Writing costs no more than the cache line, whoever is thrown out, so a flood
//! of SYNs moves nothing else; reading is tried when the flow table knows nothing. To
//! be thrown out before its answer comes, a SYN must be followed within that time by
//! two more of the same set, one in 4,096.

use super::{Ruling, Tables, Work, flow};
use crate::{
    abi::{Address, FlowKey, Recent, RecentSet, RecentState, Trace},
    packet::{Segment, rewrite::Family},
};

/// The set of a flow, by the key of its endpoint's segments.
#[inline(always)]
fn set<'a, A: Address + 'a, T: Tables<A>>(
    tables: &'a T,
    back_key: &FlowKey<A>,
) -> Option<&'a RecentSet<A>> {
    let number = RecentSet::number(
        tables.seed(),
        back_key.client_be,
        back_key.client_port_be,
        back_key.peer_be,
        back_key.peer_port_be,
    );
    tables.recent(number)
}

/// The note of a flow, by the key of its endpoint's segments.
#[inline(always)]
pub fn find<'a, A: Family + 'a, T: Tables<A>>(
    tables: &'a T,
    back_key: &FlowKey<A>,
) -> Option<&'a Recent<A>> {
    let is_endpoint = |id| {
        tables.endpoint(id).is_some_and(|endpoint| {
            endpoint.port_be == back_key.peer_port_be
                && A::of_endpoint(endpoint) == Some(back_key.peer_be)
        })
    };
    set(tables, back_key)?.find(
        back_key.client_be,
        back_key.client_port_be,
        back_key.protocol,
        is_endpoint,
    )
}

/// Is the note about a client's segments of this key?
#[inline(always)]
fn is_of<A: Address>(entry: &Recent<A>, key: &FlowKey<A>) -> bool {
    entry.is_towards(key.peer_be, key.peer_port_be, key.client_port_be)
}

/// The key of a client's segments.
#[inline(always)]
pub fn forward_key<A: Address>(trace: &Trace<A>) -> FlowKey<A> {
    FlowKey {
        client_be: trace.client_be,
        peer_be: trace.vip_be,
        client_port_be: trace.client_port_be,
        peer_port_be: trace.vip_port_be,
        protocol: trace.protocol,
        pad: 0,
        pad2: 0,
    }
}

/// Notes the flow of a SYN that goes where the ruling says.
#[inline(always)]
pub fn open<A: Family, T: Tables<A>>(tables: &T, segment: &Segment<A>, ruling: &Ruling<A>) {
    let key = flow::forward_key(segment);
    let back_key = FlowKey {
        peer_be: ruling.translation.addr_be,
        peer_port_be: ruling.translation.port_be,
        ..key
    };
    if let Some(set) = set(tables, &back_key) {
        set.put(&key, &back_key, ruling.endpoint, RecentState::Open);
    }
}

/// Notes the flow of both keys in `work`.
#[inline(never)]
pub fn put<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32, state: RecentState) {
    if let Some(set) = set(tables, &work.back_key) {
        set.put(&work.key, &work.back_key, id, state);
    }
}

/// The note of the flow of both keys in `work`. A function of its own, as some others
/// here, for the stack's sake.
#[inline(never)]
pub fn own<'a, A: Family + 'a, T: Tables<A>>(
    tables: &'a T,
    work: &Work<A>,
) -> Option<&'a Recent<A>> {
    find(tables, &work.back_key).filter(|entry| is_of(entry, &work.key))
}

/// The client has reset the flow. Tells whether there was a note of it.
#[inline(always)]
pub fn end<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    match own(tables, work) {
        Some(entry) => {
            entry.set_state(RecentState::Closed);
            true
        }
        None => false,
    }
}

/// The client opens a connection anew, elsewhere: what this endpoint still says is not
/// the client's any more. Unsteered, it makes the client reset it. Tells whether there was
/// a note.
#[inline(always)]
pub fn give_up<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    match own(tables, work) {
        Some(entry) => {
            entry.set_state(RecentState::GivenUp);
            true
        }
        None => false,
    }
}

/// Has the flow ended, by a note? Its last segments shall not begin it anew.
#[inline(always)]
pub fn ended<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    own(tables, work).is_some_and(|entry| matches!(entry.state(), RecentState::Closed))
}

/// Has another flow of the same client the tuple, by a note?
#[inline(never)]
pub fn taken<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    find(tables, &work.back_key).is_some_and(|entry| {
        matches!(entry.state(), RecentState::Open | RecentState::OpenSide)
            && !is_of(entry, &work.key)
    })
}
