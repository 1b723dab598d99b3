//! Types that cross the boundary between the kernel side and the agent.
//!
//! Every type is `repr(C)` with explicit, zeroed padding, holds only integers,
//! and has its size asserted at compile time. Addresses and ports whose name
//! ends in `_be` are in network byte order, exactly the bytes of the packet;
//! all other integers are in the host's order. A change of any layout here
//! raises [`ABI_VERSION`], which is part of the path where maps are pinned.

mod address;
mod flow;
mod listener;
mod own;
mod report;
mod service;
mod shared;
mod spread;
mod syn;

pub use address::{Address, V4, V6};
pub use flow::{
    FLOW_CONFIRMED, FLOW_ENDED, FLOW_ESTABLISHED, FLOW_FIN, FLOW_MOVED, FLOW_SIDE, FRAGMENT_LEFT,
    FRAGMENT_LIFE, FRAGMENT_RELAYED, FRAGMENT_REPLIED, FlowKey, ForwardFlow, FragmentKey,
    FragmentTrack, MAX_FRAGMENTS, Recent, RecentSet, RecentState, ReverseFlow, Trace, seen,
};
pub use listener::{
    CACHE_SLOTS, CachedListener, KEY_WORDS, LISTENER_ENDPOINT, LISTENER_MAIN, LISTENER_OWN,
    LISTENER_SELECTION, Listener, ListenerKey, SIEVE_WORDS, Sieve,
};
pub use own::{
    MAX_OWN_SENDERS, MAX_OWN_SOCKETS, OWN_DATAGRAMS, OWN_FOLLOWS, Own, OwnSender, OwnSocket,
};
pub use report::{
    EVENT_GAP_NS, EndpointCounters, Event, EventGate, EventKind, MAX_REASONS, Reason, Silence, tick,
};
pub use service::{
    Action, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, ENDPOINT_FREE, ENDPOINT_UP, Endpoint,
    FAMILY_V4, FAMILY_V6, FIRST_SOURCE_PORT, FORWARD_DSR, FORWARD_FULL_NAT, FORWARD_NAT,
    KEEP_FLOWS_OF_DOWN, LINES_A_POOL, MAX_POOLS, MAX_SENDERS, NO_ENDPOINT, NO_REDISPATCH, Name,
    Node, PORT_FREE, PORT_RESTING, PORT_USED, PORTS_A_LINE, PREVIOUS_RING, PortLine, SLOT_ALONE,
    SLOT_ALONE_DIRECT, Selection, Straight,
};
pub use shared::{Shared, Word};
pub use spread::{
    Affinity, AffinityKey, MAX_AFFINITIES, MAX_RINGS, MAX_TIER, NO_TIER, RING_SIZE, Ring, place,
    place_of_socket,
};
pub use syn::{
    MORE_WORDS, More, MoreCell, MoreSet, OPTION_WORDS, SYN_WORDS, Syn, SynCell, SynSet, pair,
};

/// Version of every layout in this module and of the pins that hold them.
pub const ABI_VERSION: u32 = 4;

/// Most services that one node steers.
pub const MAX_SERVICES: u32 = 4096;
/// Most endpoints over all services. An endpoint whose address changes takes a
/// new id, so leave room above the configured number.
pub const MAX_ENDPOINTS: u32 = 16_384;
/// Most listeners of one address family, endpoints' own addresses included, each once a
/// protocol.
pub const MAX_LISTENERS: u32 = 65_536;
/// Flows of one address family that the tables hold unless configured otherwise.
pub const DEFAULT_FLOWS: u32 = 131_072;
/// Bytes of the event ring; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// Longest service or endpoint name in bytes, that of a Kubernetes label.
pub const NAME_LEN: usize = 63;

/// Marks types that the agent may copy to and from kernel memory as bytes.
///
/// # Safety
///
/// The type is `repr(C)` or `repr(transparent)`, has no padding bytes, no
/// pointers, and every bit pattern is a valid value.
pub unsafe trait Plain: Sized + 'static {}

macro_rules! plain {
    ($($type:ty = $size:literal;)*) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size, stringify!($type));
            // SAFETY: repr(C) or transparent, integers only, padding is a named field, and the
            // assertion above shows that the compiler added none.
            unsafe impl Plain for $type {}
        )*
    };
}

plain! {
    V4 = 4;
    V6 = 16;
    ListenerKey<V4> = 8;
    ListenerKey<V6> = 20;
    Listener = 16;
    Sieve = 8192;
    CachedListener = 32;
    Selection = 64;
    Node = 56;
    PortLine = 64;
    Endpoint = 52;
    Name = 64;
    FlowKey<V4> = 16;
    FlowKey<V6> = 40;
    ForwardFlow = 24;
    ReverseFlow<V4> = 32;
    ReverseFlow<V6> = 56;
    RecentSet<V4> = 64;
    RecentSet<V6> = 128;
    SynSet = 64;
    MoreSet = 40;
    FragmentKey<V4> = 16;
    FragmentKey<V6> = 40;
    FragmentTrack<V4> = 20;
    FragmentTrack<V6> = 44;
    Ring = 4080;
    AffinityKey<V4> = 8;
    AffinityKey<V6> = 20;
    Affinity = 8;
    Own = 32;
    OwnSocket = 48;
    OwnSender = 32;
    EndpointCounters = 48;
    Silence = 8;
    Event = 48;
    EventGate = 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn decision_round_trips() {
        for action in [Action::Pass, Action::Steer, Action::Refuse, Action::Spread] {
            let decision = Decision {
                action,
                flags: 0xa5,
                target: 0xdead_beef,
                tier: 0x5a,
            };
            assert_eq!(Decision::unpack(decision.pack()), decision);
        }
        assert_eq!(Decision::unpack(0).action, Action::Pass);
        assert_eq!(Decision::unpack(7 << 32).action, Action::Pass);
    }

    #[test]
    fn straight_words_round_trip_and_none_is_zero() {
        for endpoint in [0, 1, MAX_ENDPOINTS - 1] {
            let straight = Straight {
                addr_be: 0,
                port_be: 0,
                endpoint,
            };
            assert_ne!(straight.pack(), 0);
            assert_eq!(Straight::unpack(straight.pack()), Some(straight));
        }
        assert_eq!(Straight::unpack(0), None);
    }

    #[test]
    fn offsets_are_what_this_version_pins() {
        assert_eq!(offset_of!(Selection, decision), 0);
        assert_eq!(offset_of!(Selection, affinity), 28);
        assert_eq!(offset_of!(Endpoint, v4_be), 16);
        assert_eq!(offset_of!(Endpoint, port_be), 20);
        assert_eq!(offset_of!(Endpoint, state), 28);
        assert_eq!(offset_of!(FlowKey<V4>, client_port_be), 8);
        assert_eq!(offset_of!(FlowKey<V6>, client_port_be), 32);
        assert_eq!(offset_of!(ForwardFlow, endpoint), 12);
        assert_eq!(offset_of!(ReverseFlow<V4>, vip_be), 24);
        assert_eq!(offset_of!(ReverseFlow<V6>, vip_be), 36);
        assert_eq!(offset_of!(Event, client), 24);
    }

    #[test]
    fn places_are_even_over_clients_and_their_ports() {
        // As clients come: neighbours with ports in a row, and one that uses up its ports.
        let many = (0..512u32).flat_map(|host| (0..512u16).map(move |port| (host, port)));
        let one = (0..=u16::MAX).map(|port| (7, port));
        for (clients, count) in [
            (many.collect::<std::vec::Vec<_>>(), 1 << 18),
            (one.collect(), 1 << 16),
        ] {
            let mut eighths = [0u32; 8];
            for (host, port) in clients {
                let client = V4::from_bytes((0x0a00_0000 + host).to_be_bytes());
                let here = place(client, (32_768 + port as u32) as u16);
                assert!(here < RING_SIZE);
                eighths[here * 8 / RING_SIZE] += 1;
            }
            for share in eighths {
                let even = count / 8;
                assert!(share.abs_diff(even) < even / 20, "{share} of {even}");
            }
        }
    }

    #[test]
    fn a_place_is_the_same_on_every_node() {
        // Reckoned by other means. Another hash would send clients elsewhere wherever both versions run.
        let v4 = V4::from_bytes([10, 0, 1, 2]);
        let v6 = V6::from_bytes(*b"0123456789abcdef");
        assert_eq!(
            [
                place(v4, 0),
                place(v4, 40_000u16.to_be()),
                place(v6, 0),
                place(v6, 40_000u16.to_be())
            ],
            [234, 642, 326, 1958]
        );
    }

    #[test]
    fn names_keep_their_bounds() {
        assert_eq!(Name::new("sen2").map(|n| n.as_str().len()), Some(4));
        assert!(Name::new("").is_none());
        assert!(Name::new("a\0b").is_none());
        assert!(Name::new(core::str::from_utf8(&[b'a'; 63]).unwrap()).is_some());
        assert!(Name::new(core::str::from_utf8(&[b'a'; 64]).unwrap()).is_none());
    }

    #[test]
    fn reasons_are_numbered_in_order() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
        for (i, kind) in EventKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, i);
        }
    }

    #[test]
    fn addresses_keep_their_bytes() {
        let v6 = *b"0123456789abcdef";
        assert_eq!(V6::from_bytes(v6).bytes(), v6);
        assert_eq!(V4::from_bytes([10, 0, 0, 1]).bytes(), [10, 0, 0, 1]);
        assert_eq!(
            V4::from_bytes([10, 0, 0, 1]).mapped()[10..],
            [0xff, 0xff, 10, 0, 0, 1]
        );
    }
}
