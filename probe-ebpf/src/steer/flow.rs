//! Making and forgetting the two entries of a flow.

use super::{Insert, Tables, Work, recent};
use crate::{
    abi::{
        Address, Endpoint, FIRST_SOURCE_PORT, FLOW_ENDED, FLOW_FIN, FORWARD_DSR, FORWARD_FULL_NAT,
        FORWARD_NAT, FlowKey, ForwardFlow, LINES_A_POOL, MAX_POOLS, PORT_RESTING, PORT_USED,
        PORTS_A_LINE, PortLine, RecentState, ReverseFlow, Shared,
    },
    packet::{Segment, rewrite::Family},
};

/// Source ports tried for a flow: its own, then others. With one port in two
/// taken, one flow in 256 fails.
const PORT_TRIES: u32 = 8;

/// Ports below this are not used in place of a client's own.
const FIRST_PORT: u16 = 1024;

/// Notes that a packet was seen. The word is written once in its unit, not once
/// a packet, so that CPUs do not fight over the cache line.
#[inline(always)]
pub fn touch(word: &Shared<u32>, now: u32) {
    if word.get() != now {
        word.set(now);
    }
}

/// What [`Selection::exceptions`] and [`Selection::side`] are set to.
///
/// [`Selection::exceptions`]: crate::abi::Selection::exceptions
/// [`Selection::side`]: crate::abi::Selection::side
#[inline(always)]
pub fn stamp<A: Address, T: Tables<A>>(tables: &T) -> u64 {
    tables.clock() as u64 | 1 << 32
}

/// From now on every segment of the service is looked up, until a sweep has shown that it need
/// not be. Comes before the client can send what would be steered by the slot alone.
#[inline(always)]
pub fn look_everywhere<A: Address, T: Tables<A>>(tables: &T, service: u32) {
    if let Some(selection) = tables.selection(service) {
        selection.exceptions.set(stamp(tables));
    }
}

/// The next port to try: one step of a generator that visits all 65,536 values
/// (Hull and Dobell: increment odd, multiplier 1 modulo 4).
#[inline(always)]
const fn next_port(port_be: u16) -> u16 {
    let next = u16::from_be(port_be)
        .wrapping_mul(31_421)
        .wrapping_add(6_927);
    (if next < FIRST_PORT {
        next + FIRST_PORT
    } else {
        next
    })
    .to_be()
}

/// What a client's segments are known by.
#[inline(always)]
pub fn forward_key<A: Address>(segment: &Segment<A>) -> FlowKey<A> {
    FlowKey {
        client_be: segment.src_be,
        peer_be: segment.dst_be,
        client_port_be: segment.src_port_be,
        peer_port_be: segment.dst_port_be,
        protocol: segment.protocol,
        pad: 0,
        pad2: 0,
    }
}

/// Makes [`Work::back_key`] that of [`Work::key`]'s flow with an endpoint that sees this
/// port of the client. Tells whether there is such an endpoint, with an address of the
/// family.
#[inline(never)]
pub fn aim<A: Family, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    client_port_be: u16,
    id: u32,
) -> bool {
    let Some(endpoint) = tables.endpoint(id) else {
        return false;
    };
    let Some(addr_be) = A::of_endpoint(endpoint) else {
        return false;
    };
    // What is straight to the endpoint's own address stays so.
    let direct = is_direct(endpoint, &work.key);
    work.forward = if direct {
        FORWARD_NAT
    } else {
        endpoint.forward
    };
    work.hop = addr_be;
    if work.forward == FORWARD_DSR {
        // It sees what its client sent.
        work.back_key = work.key;
        return true;
    }
    work.back_key = FlowKey {
        client_be: if work.forward == FORWARD_FULL_NAT {
            tables.source()
        } else {
            work.key.client_be
        },
        peer_be: addr_be,
        client_port_be,
        peer_port_be: endpoint.port_be,
        protocol: work.key.protocol,
        pad: 0,
        pad2: 0,
    };
    true
}

/// What became of a new flow.
pub enum Entered {
    /// It is written down; the client's port as the endpoint shall see it.
    Port(u16),
    /// The tables are full.
    Full,
    /// Every port tried is taken at the endpoint.
    Clash,
}

/// Has another flow of the same client the tuple of [`Work::back_key`]?
#[inline(never)]
pub fn taken<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>) -> bool {
    match tables.reverse(&work.back_key) {
        Some(old) => !is_of(old, &work.key),
        None => recent::taken(tables, work),
    }
}

/// Is the reverse entry that of a client's segments of this key?
#[inline(always)]
fn is_of<A: Address>(back: &ReverseFlow<A>, key: &FlowKey<A>) -> bool {
    back.vip_be == key.peer_be
        && back.client_be == key.client_be
        && back.vip_port_be == key.peer_port_be
        && back.client_port_be == key.client_port_be
}

/// What the client's segments of the flow of this reverse entry are known by.
#[inline(always)]
pub fn of<A: Address>(back: &ReverseFlow<A>, back_key: &FlowKey<A>) -> FlowKey<A> {
    FlowKey {
        client_be: back.client_be,
        peer_be: back.vip_be,
        client_port_be: back.client_port_be,
        peer_port_be: back.vip_port_be,
        protocol: back_key.protocol,
        pad: 0,
        pad2: 0,
    }
}

/// [`Work::entered`] when it is not a port.
const FULL: u32 = 1 << 16;
/// See [`FULL`].
const CLASH: u32 = 2 << 16;

impl Entered {
    /// From [`Work::entered`].
    #[inline(always)]
    pub fn of(code: u32) -> Self {
        match code {
            FULL => Self::Full,
            CLASH => Self::Clash,
            port_be => Self::Port(port_be as u16),
        }
    }
}

/// Writes both entries of a new flow with [`Work::target`], under the client's own port
/// unless another flow of this client with this endpoint has it. Both keys stand in
/// `work`; [`Work::entered`] tells what became of it.
#[inline(always)]
pub fn open<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    if work.forward == FORWARD_FULL_NAT {
        allocate(tables, work);
    } else {
        try_ports(tables, work);
    }
}

/// [`open`] with a port of the client's.
#[inline(never)]
fn try_ports<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    for _ in 0..PORT_TRIES {
        if !recent::taken(tables, work) {
            match enter(tables, work, work.target, work.state) {
                Ok(()) => {
                    work.entered = work.back_key.client_port_be as u32;
                    return;
                }
                Err(Insert::Full) => {
                    work.entered = FULL;
                    return;
                }
                Err(Insert::Exists) => {}
            }
        }
        work.back_key.client_port_be = next_port(work.back_key.client_port_be);
    }
    work.entered = CLASH;
}

/// Lines of ports that are looked at for a free one. With one port in a hundred free, 8
/// flows in 100,000 find none there.
const LINES: u32 = 16;
/// Ports tried that looked free.
const SOURCE_TRIES: u32 = 2;

/// [`open`] with a source port of the node's.
#[inline(never)]
fn allocate<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>) {
    work.entered = CLASH;
    let pool = match tables.endpoint(work.target) {
        Some(endpoint) => endpoint.pool,
        None => return,
    };
    for _ in 0..SOURCE_TRIES {
        let port = free_port(tables, work, pool);
        if port == CLASH {
            return;
        }
        work.back_key.client_port_be = (port as u16).to_be();
        let entered = enter(tables, work, work.target, work.state);
        if let Err(Insert::Full) = entered {
            work.entered = FULL;
            return;
        }
        mark_port(tables, pool, port, PORT_USED);
        if entered.is_ok() {
            work.entered = work.back_key.client_port_be as u32;
            return;
        }
    }
}

/// A port of the pool that looks free, in host order: one that nobody has used lately,
/// or else one that rests; [`CLASH`] if there is neither.
#[inline(always)]
fn free_port<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, pool: u32) -> u32 {
    match look_for_port(tables, work, pool, false) {
        CLASH => look_for_port(tables, work, pool, true),
        port => port,
    }
}

/// Where it looks depends on the client, so that clients do not all look in one place.
#[inline(never)]
fn look_for_port<A: Family, T: Tables<A>>(
    tables: &T,
    work: &Work<A>,
    pool: u32,
    resting: bool,
) -> u32 {
    let mut hash = work.key.client_be.fold() ^ (work.key.client_port_be as u64) << 32;
    hash = (hash ^ tables.seed()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (line, within) = ((hash >> 40) as u32, (hash >> 32) as usize);
    // Not line after line, or full stretches would grow together. Odd, so that all are met.
    let step = (hash >> 50) as u32 | 1;
    for i in 0..LINES {
        let number = line.wrapping_add(i.wrapping_mul(step)) % LINES_A_POOL;
        let Some(ports) = tables.ports(pool % MAX_POOLS * LINES_A_POOL + number) else {
            return CLASH;
        };
        if number * PORTS_A_LINE < FIRST_SOURCE_PORT as u32 {
            continue;
        }
        for j in 0..PortLine::WORDS {
            let word = within.wrapping_add(j) % PortLine::WORDS;
            let found = if resting {
                ports.resting(word)
            } else {
                ports.free(word)
            };
            if let Some(place) = found {
                return number * PORTS_A_LINE + place;
            }
        }
    }
    CLASH
}

#[inline(always)]
fn mark_port<A: Family, T: Tables<A>>(tables: &T, pool: u32, port: u32, mark: u8) {
    let number = port / PORTS_A_LINE % LINES_A_POOL;
    if let Some(ports) = tables.ports(pool % MAX_POOLS * LINES_A_POOL + number) {
        ports.mark(port, mark);
    }
}

/// Writes both entries of a flow, or none. Over old entries only if they are its own.
#[inline(never)]
pub fn enter<A: Family, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    id: u32,
    state: u32,
) -> Result<(), Insert> {
    let Some(endpoint) = tables.endpoint(id) else {
        return Err(Insert::Full);
    };
    let service = endpoint.service;
    let now = tables.clock();
    let Work {
        key,
        back_key,
        forth,
        back,
        origin,
        ..
    } = work;
    *back = ReverseFlow {
        seen: Shared::new(now),
        state: Shared::new(state),
        fin_end: Shared::new(0),
        endpoint: id,
        service,
        client_be: key.client_be,
        vip_be: key.peer_be,
        vip_port_be: key.peer_port_be,
        client_port_be: key.client_port_be,
    };
    let new = match tables.put_reverse(back_key, back, false) {
        Ok(()) => true,
        Err(Insert::Full) => return Err(Insert::Full),
        Err(Insert::Exists) => match tables.reverse(back_key) {
            // This very flow, whose forward entry was lost or taken back.
            Some(old) if is_of(old, key) => {
                // Asked before it is replaced: its memory may be another flow's then.
                let ended = old.state.get() & FLOW_ENDED != 0;
                tables.put_reverse(back_key, back, true)?;
                ended
            }
            // Another's that has ended, and whose port is wanted again.
            Some(old)
                if endpoint.forward == FORWARD_FULL_NAT && old.state.get() & FLOW_ENDED != 0 =>
            {
                tables.remove_forward(&of(old, back_key));
                tables.put_reverse(back_key, back, true)?;
                true
            }
            _ => return Err(Insert::Exists),
        },
    };
    *forth = ForwardFlow {
        seen: Shared::new(now),
        state: Shared::new(state),
        fin_end: Shared::new(0),
        endpoint: id,
        service,
        client_port_be: back_key.client_port_be,
        origin: *origin as u16,
    };
    if tables.put_forward(key, forth).is_err() {
        tables.remove_reverse(back_key);
        return Err(Insert::Full);
    }
    if new && !is_direct(endpoint, key) {
        tables.opened(id);
    }
    Ok(())
}

/// Ends the flow of both keys in `work`. What comes late, as a FIN that is repeated
/// because its acknowledgment was lost, finds a note, whose state says what it means then.
///
/// A note is found by what the endpoint sees of its client. Where that is not what the client
/// sends, late segments would find none and be taken up as another flow: such entries stay for
/// a while instead. They are in nobody's way, unlike those under the client's own port.
#[inline(never)]
pub fn close<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32, then: RecentState) {
    let Some(endpoint) = tables.endpoint(id) else {
        return;
    };
    let direct = is_direct(endpoint, &work.key);
    let forward = if direct {
        FORWARD_NAT
    } else {
        endpoint.forward
    };
    if forward == FORWARD_FULL_NAT {
        let port = u16::from_be(work.back_key.client_port_be) as u32;
        mark_port(tables, endpoint.pool, port, PORT_RESTING);
    }
    let noted = forward == FORWARD_NAT && work.key.client_port_be == work.back_key.client_port_be;
    let mut open = true;
    if !noted && let Some(back) = tables.reverse(&work.back_key) {
        let state = back.state.get();
        open = state & FLOW_ENDED == 0;
        if matches!(then, RecentState::Closed) {
            let ended = FLOW_FIN | FLOW_ENDED;
            back.state.set(state | ended);
            if let Some(forth) = tables.forward(&work.key) {
                forth.state.set(forth.state.get() | ended);
                if open && !direct {
                    tables.closed(id);
                }
                return;
            }
        }
    }
    if forward == FORWARD_NAT {
        recent::put(tables, work, id, then);
    }
    tables.remove_forward(&work.key);
    // The reverse entry decides whether a flow was still open, so that two CPUs that end one
    // flow count it once.
    if tables.remove_reverse(&work.back_key) && open && !direct {
        tables.closed(id);
    }
}

/// Is the flow one between a client and the endpoint's own address? Those are not the
/// service's.
#[inline(always)]
fn is_direct<A: Family>(endpoint: &Endpoint, key: &FlowKey<A>) -> bool {
    A::of_endpoint(endpoint) == Some(key.peer_be) && endpoint.port_be == key.peer_port_be
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_a_row_differ_and_stay_unprivileged() {
        for start in 0..=u16::MAX {
            let mut tried = [start.to_be(); PORT_TRIES as usize];
            for i in 1..tried.len() {
                tried[i] = next_port(tried[i - 1]);
                assert!(u16::from_be(tried[i]) >= FIRST_PORT);
            }
            tried.sort_unstable();
            assert!(tried.windows(2).all(|w| w[0] != w[1]), "from {start}");
        }
    }
}
