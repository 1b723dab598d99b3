//! What everything that lives in the kernel is called, in one place.
//!
//! Program and map names are those of the ELF object; the kernel keeps only
//! their first 15 bytes, so they are at most that long. Pins stand under
//! `<bpffs>/probe/v<ABI_VERSION>/`, maps and links each in their own folder.
//! bpffs refuses a `.` in a name, and interface names may hold one, so links
//! are named by interface index.

/// XDP program of an uplink: steers what outside clients send.
pub const PROGRAM_XDP_FORWARD: &str = "probe_xdp";
/// The same program, declaring support for multi-buffer packets (Linux 5.18).
pub const PROGRAM_XDP_FORWARD_FRAGS: &str = "probe_xdp_frags";
/// TC program at the ingress of a client's interface: steers what it sends.
pub const PROGRAM_TC_FORWARD: &str = "probe_forward";
/// TC program at the egress towards clients: gives replies the VIP back.
pub const PROGRAM_TC_REVERSE: &str = "probe_reverse";

/// TC program at the ingress of an uplink that has an XDP program: sends on what that could
/// not.
pub const PROGRAM_TC_RELAY: &str = "probe_relay";

/// Every program that sees packets, for tools that look for what is ours.
pub const PROGRAMS: [&str; 5] = [
    PROGRAM_XDP_FORWARD,
    PROGRAM_XDP_FORWARD_FRAGS,
    PROGRAM_TC_FORWARD,
    PROGRAM_TC_REVERSE,
    PROGRAM_TC_RELAY,
];

/// cgroup programs for the node's own processes: by hook, and the name of the link's pin.
pub const OWN_PROGRAMS: [(&str, &str); 9] = [
    ("probe_connect4", "own-connect4"),
    ("probe_connect6", "own-connect6"),
    ("probe_sendmsg4", "own-sendmsg4"),
    ("probe_sendmsg6", "own-sendmsg6"),
    ("probe_recvmsg4", "own-recvmsg4"),
    ("probe_recvmsg6", "own-recvmsg6"),
    ("probe_peername4", "own-getpeername4"),
    ("probe_peername6", "own-getpeername6"),
    ("probe_release", "own-release"),
];

/// Hash: [`crate::abi::ListenerKey<V4>`](crate::abi::ListenerKey) to [`crate::abi::Listener`].
pub const MAP_LISTENERS_V4: &str = "LISTENERS_V4";
/// Hash: [`crate::abi::ListenerKey<V6>`](crate::abi::ListenerKey) to [`crate::abi::Listener`].
pub const MAP_LISTENERS_V6: &str = "LISTENERS_V6";
/// Array of one [`crate::abi::Sieve`] over both tables of listeners; user space maps it.
pub const MAP_SIEVE: &str = "SIEVE";
/// Array by slot of [`crate::abi::CachedListener`]; user space maps it.
pub const MAP_LISTENER_CACHE: &str = "LISTENER_CACHE";
/// Array by service id of [`crate::abi::Selection`]; user space maps it and stores one word.
pub const MAP_SELECTIONS: &str = "SELECTIONS";
/// Array of [`crate::abi::Ring`]; user space maps it.
pub const MAP_RINGS: &str = "RINGS";
/// LRU hash: [`crate::abi::AffinityKey<V4>`](crate::abi::AffinityKey) to [`crate::abi::Affinity`].
pub const MAP_AFFINITY_V4: &str = "AFFINITY_V4";
/// LRU hash of clients that keep their endpoint, IPv6.
pub const MAP_AFFINITY_V6: &str = "AFFINITY_V6";
/// Array by endpoint id of [`crate::abi::Endpoint`].
pub const MAP_ENDPOINTS: &str = "ENDPOINTS";
/// Array by service id of [`crate::abi::Name`]; an empty name marks a free id.
pub const MAP_SERVICE_NAMES: &str = "SERVICE_NAMES";
/// Array by endpoint id of [`crate::abi::Name`]; an empty name marks a free id.
pub const MAP_ENDPOINT_NAMES: &str = "ENDPOINT_NAMES";
/// Hash: client to VIP, IPv4. [`crate::abi::FlowKey<V4>`](crate::abi::FlowKey) to [`crate::abi::ForwardFlow`].
pub const MAP_FORWARD_V4: &str = "FORWARD_V4";
/// Hash: client to VIP, IPv6.
pub const MAP_FORWARD_V6: &str = "FORWARD_V6";
/// Hash: client and endpoint, IPv4, to [`crate::abi::ReverseFlow<V4>`](crate::abi::ReverseFlow).
pub const MAP_REVERSE_V4: &str = "REVERSE_V4";
/// Hash: client and endpoint, IPv6.
pub const MAP_REVERSE_V6: &str = "REVERSE_V6";
/// Array of [`crate::abi::RecentSet<V4>`](crate::abi::RecentSet): flows without entries.
pub const MAP_RECENT_V4: &str = "RECENT_V4";
/// The same, IPv6.
pub const MAP_RECENT_V6: &str = "RECENT_V6";
/// Array of [`crate::abi::SynSet`]: what the SYNs of `RECENT_V4` said, by the same numbers;
/// user space maps it.
pub const MAP_SYNS_V4: &str = "SYNS_V4";
/// The same of `RECENT_V6`.
pub const MAP_SYNS_V6: &str = "SYNS_V6";
/// Array of [`crate::abi::MoreSet`]: the rest of their options.
pub const MAP_MORE_V4: &str = "MORE_V4";
/// The same, IPv6.
pub const MAP_MORE_V6: &str = "MORE_V6";
/// Array of [`crate::abi::PortLine`]: source ports of full NAT; user space maps it.
pub const MAP_PORTS: &str = "PORTS";
/// Constant of the programs: [`BPF_F_IPV6`] where the kernel knows it, or zero.
pub const IPV6_SUM: &str = "PROBE_IPV6_SUM";
/// Flag of `bpf_l4_csum_replace` (Linux 6.16): the change of an IPv6 address is not in the
/// packet's sum, since the checksum that changes with it is part of the same packet.
pub const BPF_F_IPV6: u64 = 1 << 7;
/// Array of one [`crate::abi::Node`]; user space maps it.
pub const MAP_NODE: &str = "NODE";
/// Array of one [`crate::abi::Own`]; user space maps it.
pub const MAP_OWN: &str = "OWN";
/// Hash: a socket's cookie to [`crate::abi::OwnSocket`].
pub const MAP_OWN_SOCKETS: &str = "OWN_SOCKETS";
/// LRU hash: [`crate::abi::OwnSender`] to [`crate::abi::OwnSocket`].
pub const MAP_OWN_SENDERS: &str = "OWN_SENDERS";
/// LRU hash: [`crate::abi::FragmentKey<V4>`](crate::abi::FragmentKey) to [`crate::abi::FragmentTrack<V4>`](crate::abi::FragmentTrack).
pub const MAP_FRAGMENTS_V4: &str = "FRAGMENTS_V4";
/// LRU hash of fragmented packets, IPv6.
pub const MAP_FRAGMENTS_V6: &str = "FRAGMENTS_V6";
/// Per-CPU array by endpoint id of [`crate::abi::EndpointCounters`].
pub const MAP_ENDPOINT_COUNTERS: &str = "EP_COUNTERS";
/// Array by endpoint id of [`crate::abi::Silence`]; user space maps it. Not pinned: what was asked
/// before the agent that looks is nobody's concern.
pub const MAP_SILENCES: &str = "SILENCES";
/// Per-CPU array by [`crate::abi::Reason`] of a packet count.
pub const MAP_REASON_COUNTERS: &str = "REASON_COUNTERS";
/// Ring buffer of [`crate::abi::Event`].
pub const MAP_EVENTS: &str = "EVENTS";
/// Per-CPU array by [`crate::abi::EventKind`]: when an event was last sent, how many were held back.
pub const MAP_EVENT_GATES: &str = "EVENT_GATES";
/// Hash: interface index to 1 where this agent added the clsact qdisc. Only user space reads it.
pub const MAP_QDISCS: &str = "QDISCS";

/// Folder under the bpffs that holds every version's pins.
pub const PIN_ROOT: &str = "probe";
/// Folder of pinned maps, under the version's folder.
pub const PIN_MAPS: &str = "maps";
/// Folder of pinned links, under the version's folder.
pub const PIN_LINKS: &str = "links";
/// Interfaces that XDP programs may send packets out of. Not pinned: whoever attaches programs
/// fills it.
pub const MAP_SENDERS: &str = "SENDERS";

/// Every map that is pinned, so that a restarted agent finds its state.
pub const PINNED_MAPS: [&str; 31] = [
    MAP_LISTENERS_V4,
    MAP_LISTENERS_V6,
    MAP_SIEVE,
    MAP_LISTENER_CACHE,
    MAP_SELECTIONS,
    MAP_RINGS,
    MAP_AFFINITY_V4,
    MAP_AFFINITY_V6,
    MAP_ENDPOINTS,
    MAP_SERVICE_NAMES,
    MAP_ENDPOINT_NAMES,
    MAP_FORWARD_V4,
    MAP_FORWARD_V6,
    MAP_REVERSE_V4,
    MAP_REVERSE_V6,
    MAP_RECENT_V4,
    MAP_RECENT_V6,
    MAP_SYNS_V4,
    MAP_SYNS_V6,
    MAP_MORE_V4,
    MAP_MORE_V6,
    MAP_NODE,
    MAP_OWN,
    MAP_OWN_SOCKETS,
    MAP_OWN_SENDERS,
    MAP_PORTS,
    MAP_FRAGMENTS_V4,
    MAP_FRAGMENTS_V6,
    MAP_ENDPOINT_COUNTERS,
    MAP_REASON_COUNTERS,
    MAP_QDISCS,
];
