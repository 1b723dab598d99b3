//! What is remembered of sockets of the node's own processes.

use super::{Shared, V6};

/// What the programs of the node's own processes must know. There is one.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Cookie of the network namespace whose sockets are steered: the agent's own. Zero for
    /// none.
    pub netns: Shared<u64>,
    /// Cookie of the socket by which the agent asks for its namespace's cookie, which
    /// kernels before 5.14 tell programs only; zero for none.
    pub asking: Shared<u64>,
    /// The answer.
    pub answer: Shared<u64>,
    /// Not zero once a datagram was steered: until then what comes in need not be looked at.
    pub datagrams: Shared<u32>,
    /// Zero.
    pub pad: u32,
}

/// Bit of [`OwnSocket::flags`]: it came by a listener that follows the selection, so it is
/// lost with its endpoint.
pub const OWN_FOLLOWS: u16 = 1;
/// Bit of [`OwnSocket::flags`]: its protocol is UDP.
pub const OWN_DATAGRAMS: u16 = 2;

/// Where a socket's application connected to, and where that went.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnSocket {
    /// The VIP, see [`super::Address::mapped`].
    pub vip_be: V6,
    /// The endpoint, likewise.
    pub peer_be: V6,
    /// The VIP's port.
    pub vip_port_be: u16,
    /// The endpoint's port.
    pub peer_port_be: u16,
    /// `OWN_*` bits.
    pub flags: u16,
    /// Zero.
    pub pad: u16,
    /// The service.
    pub service: u32,
    /// The endpoint's id.
    pub endpoint: u32,
}

/// A datagram socket that was connected to an endpoint, or sent to one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnSender {
    /// The socket's cookie, which no other socket ever gets while the system is up.
    pub cookie: u64,
    /// The endpoint, see [`super::Address::mapped`].
    pub peer_be: V6,
    /// Its port.
    pub peer_port_be: u16,
    /// Zero. Two words, since an array of zeros becomes a call of `memset`.
    pub pad: u16,
    /// Zero.
    pub pad2: u32,
}

/// Connected sockets that are remembered. More are steered too, and not told when their
/// endpoint goes down.
pub const MAX_OWN_SOCKETS: u32 = 32_768;

/// Ways of datagrams; those that were not used for longest make place.
pub const MAX_OWN_SENDERS: u32 = 16_384;
