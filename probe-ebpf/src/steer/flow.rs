//! Making and forgetting the two entries of a flow.

use super::{Insert, Tables, Work, recent};
use crate::{
    abi::{Address, FlowKey, ForwardFlow, RecentState, ReverseFlow, Shared},
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
    work.back_key = FlowKey {
        client_be: work.key.client_be,
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
        && back.vip_port_be == key.peer_port_be
        && back.client_port_be == key.client_port_be
}

/// Writes both entries of a new flow, under the client's own port unless another flow
/// of this client with this endpoint has it. Both keys stand in `work`.
#[inline(always)]
pub fn open<A: Family, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    id: u32,
    state: u32,
) -> Entered {
    match try_ports(tables, work, id, state) {
        FULL => Entered::Full,
        CLASH => Entered::Clash,
        port_be => Entered::Port(port_be as u16),
    }
}

/// What [`try_ports`] answers when it is not a port.
const FULL: u32 = 1 << 16;
/// See [`FULL`].
const CLASH: u32 = 2 << 16;

/// [`open`]. A function of its own, for the stack's sake; it answers with one word, since
/// a call in BPF has room for no more.
#[inline(never)]
fn try_ports<A: Family, T: Tables<A>>(tables: &T, work: &mut Work<A>, id: u32, state: u32) -> u32 {
    for _ in 0..PORT_TRIES {
        if !recent::taken(tables, work) {
            match enter(tables, work, id, state) {
                Ok(()) => return work.back_key.client_port_be as u32,
                Err(Insert::Full) => return FULL,
                Err(Insert::Exists) => {}
            }
        }
        work.back_key.client_port_be = next_port(work.back_key.client_port_be);
    }
    CLASH
}

/// Writes both entries of a flow, or none. Over old entries only if they are its own.
#[inline(never)]
pub fn enter<A: Address, T: Tables<A>>(
    tables: &T,
    work: &mut Work<A>,
    id: u32,
    state: u32,
) -> Result<(), Insert> {
    let service = match tables.endpoint(id) {
        Some(endpoint) => endpoint.service,
        None => return Err(Insert::Full),
    };
    let now = tables.clock();
    let Work {
        key,
        back_key,
        forth,
        back,
        ..
    } = work;
    *back = ReverseFlow {
        seen: Shared::new(now),
        state: Shared::new(state),
        fin_end: Shared::new(0),
        endpoint: id,
        service,
        vip_be: key.peer_be,
        vip_port_be: key.peer_port_be,
        client_port_be: key.client_port_be,
    };
    let new = match tables.put_reverse(back_key, back, false) {
        Ok(()) => true,
        Err(Insert::Full) => return Err(Insert::Full),
        Err(Insert::Exists) => {
            // This very flow, whose forward entry was lost or taken back.
            match tables.reverse(back_key) {
                Some(old) if is_of(old, key) => tables.put_reverse(back_key, back, true)?,
                _ => return Err(Insert::Exists),
            }
            false
        }
    };
    *forth = ForwardFlow {
        seen: Shared::new(now),
        state: Shared::new(state),
        fin_end: Shared::new(0),
        endpoint: id,
        service,
        client_port_be: back_key.client_port_be,
        pad: 0,
    };
    if tables.put_forward(key, forth).is_err() {
        tables.remove_reverse(back_key);
        return Err(Insert::Full);
    }
    if new && !is_direct(key, back_key) {
        tables.opened(id);
    }
    Ok(())
}

/// Forgets the flow of both keys in `work`. What comes late, as a FIN that is repeated
/// because its acknowledgment was lost, finds a note, whose state says what it means then.
#[inline(never)]
pub fn close<A: Family, T: Tables<A>>(tables: &T, work: &Work<A>, id: u32, then: RecentState) {
    recent::put(tables, work, id, then);
    tables.remove_forward(&work.key);
    // The reverse entry decides whether a flow was still open, so that two CPUs that end one
    // flow count it once.
    if tables.remove_reverse(&work.back_key) && !is_direct(&work.key, &work.back_key) {
        tables.closed(id);
    }
}

/// Is the flow one between a client and an endpoint's own address? Those are not
/// the service's.
#[inline(always)]
fn is_direct<A: Address>(forward: &FlowKey<A>, reverse: &FlowKey<A>) -> bool {
    forward.peer_be == reverse.peer_be && forward.peer_port_be == reverse.peer_port_be
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
