//! ICMP errors about steered packets: whose are they, and what do they quote in the
//! receiver's eyes?
//!
//! Without them path MTU discovery breaks: the router that cannot forward a packet
//! quotes what it saw, the translated packet, and its sender looks for a connection
//! that it does not have (RFC 5508 section 4 asks NATs for this translation).

use super::Tables;
use crate::{
    abi::{FlowKey, Reason},
    packet::{
        Quoted,
        rewrite::{Family, Translation},
    },
};

/// What becomes of an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorVerdict<A> {
    /// It goes on as it is.
    Pass(Reason),
    /// Its quotation, and where the server is the error's sender or receiver also the
    /// packet itself, is translated.
    Translate(Translation<A>),
}

/// An error on its way to a server, about what the server sent: the quotation's
/// source is the VIP.
#[inline(always)]
pub fn forward_error<A: Family, T: Tables<A>>(tables: &T, quoted: &Quoted<A>) -> ErrorVerdict<A> {
    let key = FlowKey {
        client_be: quoted.inner_dst_be,
        peer_be: quoted.inner_src_be,
        client_port_be: quoted.inner_dst_port_be,
        peer_port_be: quoted.inner_src_port_be,
        protocol: quoted.protocol,
        pad: 0,
        pad2: 0,
    };
    // Errors go to the source of what they quote; any other is not to be trusted.
    if quoted.dst_be == quoted.inner_src_be
        && let Some(flow) = tables.forward(&key)
        && let Some(endpoint) = tables.endpoint(flow.endpoint)
        && let Some(addr_be) = A::of_endpoint(endpoint)
    {
        return translate(
            &key,
            Translation {
                addr_be,
                port_be: endpoint.port_be,
                client_port_be: flow.client_port_be,
            },
        );
    }
    ErrorVerdict::Pass(Reason::ErrorNotSteered)
}

/// An error on its way to a client, about what the client sent: the quotation's
/// destination is the endpoint.
#[inline(always)]
pub fn reverse_error<A: Family, T: Tables<A>>(tables: &T, quoted: &Quoted<A>) -> ErrorVerdict<A> {
    let key = FlowKey {
        client_be: quoted.inner_src_be,
        peer_be: quoted.inner_dst_be,
        client_port_be: quoted.inner_src_port_be,
        peer_port_be: quoted.inner_dst_port_be,
        protocol: quoted.protocol,
        pad: 0,
        pad2: 0,
    };
    if quoted.dst_be == quoted.inner_src_be
        && let Some(flow) = tables.reverse(&key)
    {
        return translate(
            &key,
            Translation {
                addr_be: flow.vip_be,
                port_be: flow.vip_port_be,
                client_port_be: flow.client_port_be,
            },
        );
    }
    ErrorVerdict::Pass(Reason::ErrorNotSteered)
}

/// A direct connection that never had to make way has nothing to translate.
#[inline(always)]
fn translate<A: Family>(key: &FlowKey<A>, translation: Translation<A>) -> ErrorVerdict<A> {
    if translation.addr_be == key.peer_be
        && translation.port_be == key.peer_port_be
        && translation.client_port_be == key.client_port_be
    {
        ErrorVerdict::Pass(Reason::Direct)
    } else {
        ErrorVerdict::Translate(translation)
    }
}
