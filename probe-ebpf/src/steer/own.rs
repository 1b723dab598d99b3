//! Where a process of the node itself is sent that connects to a listener.
//!
//! Its socket is connected straight to the endpoint, so there is no flow, no translation and
//! no packet to look at afterwards; what is decided here is decided once a connection, or
//! once a datagram of a socket that is not connected.

use super::{Tables, spread};
use crate::{
    abi::{Action, Decision, LISTENER_OWN, LISTENER_SELECTION, ListenerKey, Reason, V4, V6},
    packet::rewrite::Family,
};

/// A process's `connect`, or a `sendto` of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Call<A> {
    /// Where to.
    pub to_be: A,
    /// Which port.
    pub to_port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The socket's cookie.
    pub cookie: u64,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes where it wants to.
    Pass,
    /// It goes to the endpoint.
    Steer,
    /// It fails.
    Refuse,
}

/// The decision. Every field is always there, as in [`super::Ruling`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<A> {
    /// What becomes of the call.
    pub fate: Fate,
    /// Why, unless it is steered.
    pub reason: Reason,
    /// The endpoint's address, if it is steered.
    pub addr_be: A,
    /// The endpoint's port, if it is steered.
    pub port_be: u16,
    /// Does the listener follow the selection? Else it belongs to one endpoint.
    pub follows: bool,
    /// The service, if it is steered.
    pub service: u32,
    /// The endpoint, if it is steered.
    pub endpoint: u32,
}

impl<A: Family> Answer<A> {
    #[inline(always)]
    fn plain(fate: Fate, reason: Reason) -> Self {
        Self {
            fate,
            reason,
            addr_be: A::default(),
            port_be: 0,
            follows: false,
            service: 0,
            endpoint: 0,
        }
    }
}

/// Decides.
#[inline(always)]
pub fn steer<A: Family, T: Tables<A>>(tables: &T, call: &Call<A>) -> Answer<A> {
    let at = ListenerKey {
        addr_be: call.to_be,
        port_be: call.to_port_be,
        protocol: call.protocol,
        pad: 0,
    };
    let Some(listener) = tables.listener(&at) else {
        return Answer::plain(Fate::Pass, Reason::NotListener);
    };
    if listener.kind == LISTENER_OWN {
        return Answer::plain(Fate::Pass, Reason::Direct);
    }
    let follows = listener.kind == LISTENER_SELECTION;
    let id = if follows {
        let Some(selection) = tables.selection(listener.service) else {
            return Answer::plain(Fate::Pass, Reason::Undecided);
        };
        let decision = Decision::unpack(selection.decision.get());
        match decision.action {
            Action::Pass => return Answer::plain(Fate::Pass, Reason::Undecided),
            Action::Refuse => return Answer::plain(Fate::Refuse, Reason::Refused),
            Action::Steer => decision.target,
            Action::Spread => {
                spread::of_node(tables, listener.service, selection, decision, call.cookie)
            }
        }
    } else {
        listener.endpoint
    };
    let Some(endpoint) = tables.endpoint(id) else {
        return Answer::plain(Fate::Pass, Reason::Undecided);
    };
    let Some(addr_be) = A::of_endpoint(endpoint) else {
        return Answer::plain(Fate::Refuse, Reason::NoAddress);
    };
    Answer {
        fate: Fate::Steer,
        reason: Reason::Direct,
        addr_be,
        port_be: endpoint.port_be,
        follows,
        service: listener.service,
        endpoint: id,
    }
}

/// The IPv4 address in an IPv6 one that stands for it on IPv6 sockets (RFC 4291 section
/// 2.5.5.2).
#[inline(always)]
pub fn unmapped(address: V6) -> Option<V4> {
    let [a, b, c, d] = address.0;
    (a | b == 0 && c == 0xffff_u32.to_be()).then_some(V4(d))
}

/// The reverse of [`unmapped`].
#[inline(always)]
pub fn mapped(address: V4) -> V6 {
    V6([0, 0, 0xffff_u32.to_be(), address.0])
}
