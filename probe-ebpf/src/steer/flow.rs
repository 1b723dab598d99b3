//! Making and forgetting the two entries of a flow.

use super::tables::{Insert, Tables};
use crate::abi::{Address, Endpoint, FlowKey, ForwardFlow, Reason, ReverseFlow, Shared};

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

/// The key of an endpoint's segments, from that of the client's.
#[inline(always)]
pub fn reverse_key<A: Address>(
    forward: &FlowKey<A>,
    client_port_be: u16,
    endpoint: &Endpoint,
    addr_be: A,
) -> FlowKey<A> {
    FlowKey {
        client_be: forward.client_be,
        peer_be: addr_be,
        client_port_be,
        peer_port_be: endpoint.port_be,
        protocol: forward.protocol,
        pad: 0,
        pad2: 0,
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

/// Writes both entries of a new flow and returns the client's port as the
/// endpoint shall see it: the client's own unless another flow of this client with
/// this endpoint has it.
#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "inlined; a struct would live on the 512-byte stack"
)]
pub fn open<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    endpoint: &Endpoint,
    addr_be: A,
    service: u32,
    id: u32,
    state: u32,
    now: u32,
) -> Result<u16, Reason> {
    let back = ReverseFlow {
        seen: Shared::new(now),
        state: Shared::new(state),
        fin_end: Shared::new(0),
        endpoint: id,
        service,
        vip_be: key.peer_be,
        vip_port_be: key.peer_port_be,
        client_port_be: key.client_port_be,
    };
    let mut back_key = reverse_key(key, key.client_port_be, endpoint, addr_be);
    let mut found = false;
    for _ in 0..PORT_TRIES {
        match tables.put_reverse(&back_key, &back, false) {
            Ok(()) => found = true,
            Err(Insert::Full) => return Err(Reason::TableFull),
            Err(Insert::Exists) => {
                // This very flow, whose forward entry was lost or taken back.
                if let Some(old) = tables.reverse(&back_key)
                    && old.vip_be == key.peer_be
                    && old.vip_port_be == key.peer_port_be
                    && old.client_port_be == key.client_port_be
                    && tables.put_reverse(&back_key, &back, true).is_ok()
                {
                    found = true;
                }
            }
        }
        if found {
            break;
        }
        back_key.client_port_be = next_port(back_key.client_port_be);
    }
    if !found {
        return Err(Reason::TupleClash);
    }
    let forth = ForwardFlow {
        seen: Shared::new(now),
        state: Shared::new(state),
        fin_end: Shared::new(0),
        endpoint: id,
        service,
        client_port_be: back_key.client_port_be,
        pad: 0,
    };
    if tables.put_forward(key, &forth).is_err() {
        tables.remove_reverse(&back_key);
        return Err(Reason::TableFull);
    }
    if !is_direct(key, &back_key) {
        tables.opened(id);
    }
    if back_key.client_port_be != key.client_port_be {
        tables.count(Reason::PortChanged);
    }
    Ok(back_key.client_port_be)
}

/// Forgets a flow, from its forward side.
#[inline(always)]
pub fn remove<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &ForwardFlow,
    endpoint: &Endpoint,
    addr_be: A,
) {
    let back_key = reverse_key(key, flow.client_port_be, endpoint, addr_be);
    remove_pair(tables, key, &back_key, flow.endpoint);
}

/// Forgets both entries. The reverse one decides whether a flow was still open, so
/// that two CPUs that end one flow count it once.
#[inline(always)]
pub fn remove_pair<A: Address, T: Tables<A>>(
    tables: &T,
    forward: &FlowKey<A>,
    reverse: &FlowKey<A>,
    endpoint: u32,
) {
    tables.remove_forward(forward);
    if tables.remove_reverse(reverse) && !is_direct(forward, reverse) {
        tables.closed(endpoint);
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
