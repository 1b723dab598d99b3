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
    abi::{Address, FlowKey, More, Recent, RecentSet, RecentState, SYN_WORDS, Syn, Trace},
    packet::{Segment, parse::TCP, rewrite::Family},
};

/// The number of a flow's set, by the key of its endpoint's segments.
#[inline(always)]
fn number<A: Address>(seed: u64, back_key: &FlowKey<A>) -> u32 {
    RecentSet::number(
        seed,
        back_key.client_be,
        back_key.client_port_be,
        back_key.peer_be,
        back_key.peer_port_be,
    )
}

/// The note of a flow, by the key of its endpoint's segments.
#[inline(always)]
pub fn find<'a, A: Family + 'a, T: Tables<A>>(
    tables: &'a T,
    back_key: &FlowKey<A>,
) -> Option<&'a Recent<A>> {
    find_in(tables, back_key, number(tables.seed(), back_key)).map(|(entry, _)| entry)
}

/// The same in the set of this number, with its place there.
#[inline(always)]
fn find_in<'a, A: Family + 'a, T: Tables<A>>(
    tables: &'a T,
    back_key: &FlowKey<A>,
    number: u32,
) -> Option<(&'a Recent<A>, u32)> {
    let is_endpoint = |id| {
        tables.endpoint(id).is_some_and(|endpoint| {
            endpoint.port_be == back_key.peer_port_be
                && A::of_endpoint(endpoint) == Some(back_key.peer_be)
        })
    };
    tables.recent(number)?.find(
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

/// Notes the flow of a SYN that goes where the ruling says, with what `look` finds in it.
/// Tells whether it did: it does not if there is a note already, or if looking takes longer.
#[inline(always)]
pub fn open<A: Family, T: Tables<A>>(
    tables: &T,
    segment: &Segment<A>,
    ruling: &Ruling<A>,
    look: impl FnOnce(u32) -> Option<Syn>,
) -> bool {
    let key = flow::forward_key(segment);
    let back_key = FlowKey {
        peer_be: ruling.translation.addr_be,
        peer_port_be: ruling.translation.port_be,
        ..key
    };
    let (seed, clock) = tables.seed_and_clock();
    let Some(syn) = look(clock) else {
        return false;
    };
    let number = number(seed, &back_key);
    let Some(set) = tables.recent(number) else {
        return false;
    };
    let Some(place) = set.add(&key, &back_key, ruling.endpoint) else {
        return false;
    };
    if let Some(syns) = tables.syns(number) {
        syns.at(place).write(&syn, &More::default());
    }
    tables.asked(ruling.endpoint);
    true
}

/// Notes the flow of both keys in `work`, and what its segment says if it is a SYN.
#[inline(never)]
pub fn put<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32, state: RecentState) {
    let number = number(tables.seed(), &work.back_key);
    if let Some(set) = tables.recent(number) {
        let place = set.put(&work.key, &work.back_key, id, state);
        if work.segment.opens() && work.key.protocol == TCP {
            write(tables, work, number, place);
        }
    }
}

/// Writes what a note says of its SYN.
#[inline(always)]
fn write<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, number: u32, place: u32) {
    if let Some(syns) = tables.syns(number) {
        syns.at(place).write(&work.syn, &work.more);
    }
    if work.syn.words() > SYN_WORDS as u32
        && let Some(more) = tables.more(number)
    {
        more.at(place).write(&work.more);
    }
}

/// Notes that the SYN in [`Work::syn`] was sent on to the endpoint of [`Work::back_key`].
#[inline(never)]
pub fn hand_over<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32, origin: u32) {
    let number = number(tables.seed(), &work.back_key);
    let Some(set) = tables.recent(number) else {
        return;
    };
    let place = set.put(&work.key, &work.back_key, id, RecentState::Open);
    write(tables, work, number, place);
    if let Some((entry, _)) = find_in(tables, &work.back_key, number) {
        entry.hand_over(origin);
    }
    tables.asked(id);
}

/// Is the SYN, which goes to the endpoint's own address, one that was sent on to it? Once.
#[inline(never)]
pub fn take_over<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> bool {
    let number = number(tables.seed(), &work.back_key);
    let Some((entry, place)) = find_in(tables, &work.back_key, number) else {
        return false;
    };
    let is_open = matches!(entry.state(), RecentState::Open);
    is_open && seq(tables, work, number, place) == work.segment.seq && entry.take_over()
}

/// Repeats the SYN one that its endpoint has not answered?
#[inline(never)]
pub fn repeats<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    let number = number(tables.seed(), &work.back_key);
    let Some((entry, place)) = find_in(tables, &work.back_key, number) else {
        return false;
    };
    let is_open = matches!(entry.state(), RecentState::Open | RecentState::OpenSide);
    is_open && is_of(entry, &work.key) && {
        let (syn, more) = remembered(tables, number, place);
        tables
            .syns(number)
            .is_some_and(|syns| syns.at(place).seq(&syn, &more) == work.segment.seq)
    }
}

/// Does the segment acknowledge exactly the SYN of the note of both keys in `work`? Then that
/// stands in [`Work::syn`] and [`Work::more`].
#[inline(never)]
pub fn acknowledged<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) -> bool {
    let number = number(tables.seed(), &work.back_key);
    let Some((entry, place)) = find_in(tables, &work.back_key, number) else {
        return false;
    };
    if !is_of(entry, &work.key) {
        return false;
    }
    seq(tables, work, number, place);
    work.syn.is_acknowledged_by(work.segment.ack)
}

/// Lays down in `work` what a note says of its SYN; returns its number.
#[inline(always)]
fn seq<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, number: u32, place: u32) -> u32 {
    let (syn, more) = remembered(tables, number, place);
    let seq = tables
        .syns(number)
        .map_or(0, |syns| syns.at(place).seq(&syn, &more));
    work.syn = Syn { seq, ..syn };
    work.more = more;
    seq
}

/// What a note says of its SYN, without the number.
#[inline(always)]
fn remembered<A: Address, T: Tables<A>>(tables: &T, number: u32, place: u32) -> (Syn, More) {
    let syn = tables
        .syns(number)
        .map_or_else(Syn::default, |syns| syns.at(place).read());
    let more = match tables.more(number) {
        Some(more) if syn.words() > SYN_WORDS as u32 => more.at(place).read(),
        _ => More::default(),
    };
    (syn, more)
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

/// Do the client's segments in mid-connection belong to this endpoint, by a note, unless one of
/// another endpoint is open? They do if the client has not opened a connection elsewhere since.
#[inline(always)]
pub fn stays<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    own(tables, work).is_some_and(|entry| !matches!(entry.state(), RecentState::GivenUp))
}

/// Is the flow open or opening, by a note?
#[inline(always)]
pub fn is_open<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    own(tables, work)
        .is_some_and(|entry| matches!(entry.state(), RecentState::Open | RecentState::OpenSide))
}

/// Has another flow of the same client the tuple, by a note?
#[inline(never)]
pub fn taken<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    find(tables, &work.back_key).is_some_and(|entry| {
        matches!(entry.state(), RecentState::Open | RecentState::OpenSide)
            && !is_of(entry, &work.key)
    })
}
