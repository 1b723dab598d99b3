//! Types that cross the boundary between the kernel side and the agent.
//!
//! Every type is `repr(C)` with explicit, zeroed padding, holds only integers,
//! and has its size asserted at compile time. Addresses and ports whose name
//! ends in `_be` are in network byte order, exactly the bytes of the packet;
//! all other integers are in the host's order. A change of any layout here
//! raises [`ABI_VERSION`], which is part of the path where maps are pinned.

use core::cell::UnsafeCell;

/// Version of every layout in this module and of the pins that hold them.
pub const ABI_VERSION: u32 = 1;

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
/// Room for reasons, so that a new one does not change the shape of a pinned map.
pub const MAX_REASONS: u32 = 64;
/// Bytes of the event ring; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// Longest service or endpoint name in bytes, that of a Kubernetes label.
pub const NAME_LEN: usize = 63;

/// [`Listener::kind`]: goes where the service's selection says.
pub const LISTENER_SELECTION: u32 = 0;
/// [`Listener::kind`]: always goes to [`Listener::endpoint`].
pub const LISTENER_ENDPOINT: u32 = 1;
/// [`Listener::kind`]: an endpoint's own address. Connections to it are not steered;
/// they are known only so that a steered one of the same client port keeps clear.
pub const LISTENER_OWN: u32 = 2;

/// Marks types that the agent may copy to and from kernel memory as bytes.
///
/// # Safety
///
/// The type is `repr(C)` or `repr(transparent)`, has no padding bytes, no
/// pointers, and every bit pattern is a valid value.
pub unsafe trait Plain: Sized + 'static {}

/// A word of map memory that several CPUs and the agent read and write at once.
///
/// Each access is one aligned load or store, so a reader sees one writer's whole
/// word; nothing is ordered around it. (BPF targets have no 32-bit atomics in
/// `core`, hence not those.)
#[repr(transparent)]
#[derive(Default)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: all access goes through volatile, aligned, word-sized loads and stores.
unsafe impl<T: Word> Sync for Shared<T> {}

/// What [`Shared`] may hold: types the machine loads and stores in one go.
pub trait Word: Copy {}
impl Word for u32 {}
impl Word for u64 {}

impl<T: Word> Shared<T> {
    /// A word with this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The word as it is now.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the reference proves that the word is mapped and aligned.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the word.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`; a racing store loses or wins whole.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl<T: Word> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}

impl<T: Word + core::fmt::Debug> core::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

/// An address family: IPv4 or IPv6.
pub trait Address: Plain + Copy + Eq + core::hash::Hash + core::fmt::Debug {
    /// Four or six.
    const VERSION: u8;
    /// The address as sixteen bytes; IPv4 is mapped into `::ffff:0:0/96`
    /// (RFC 4291 section 2.5.5.2).
    fn mapped(self) -> [u8; 16];
    /// The address an endpoint has in this family, if it has one.
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self>;
}

/// An IPv4 address, the packet's four bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V4(pub u32);

/// An IPv6 address, the packet's sixteen bytes as four native words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V6(pub [u32; 4]);

impl V4 {
    /// From the address's bytes in network order.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The address's bytes in network order.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl V6 {
    /// From the address's bytes in network order.
    #[inline(always)]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }

    /// The address's bytes in network order.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }
}

impl Address for V4 {
    const VERSION: u8 = 4;

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        let [a, b, c, d] = self.bytes();
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self> {
        (endpoint.families & FAMILY_V4 != 0).then_some(endpoint.v4_be)
    }
}

impl Address for V6 {
    const VERSION: u8 = 6;

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        self.bytes()
    }

    #[inline(always)]
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self> {
        (endpoint.families & FAMILY_V6 != 0).then_some(endpoint.v6_be)
    }
}

/// Where clients connect to: VIP, port and protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey<A> {
    /// The VIP.
    pub addr_be: A,
    /// Its port.
    pub port_be: u16,
    /// IP protocol number; TCP is 6.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// What stands behind a VIP:port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Index into the service tables.
    pub service: u32,
    /// The endpoint, unless the listener follows the selection.
    pub endpoint: u32,
    /// [`LISTENER_SELECTION`], [`LISTENER_ENDPOINT`] or [`LISTENER_OWN`].
    pub kind: u32,
}

/// What to do with new connections of a service. Zero is [`Action::Pass`], so a
/// service that nobody has filled in yet disturbs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Leave packets as they are.
    Pass = 0,
    /// Steer to [`Decision::endpoint`].
    Steer = 1,
    /// Answer with a RST: no endpoint is fit and the service says so.
    Refuse = 2,
}

/// Bit of [`Decision::flags`]: flows of an endpoint that is down keep going to
/// it. Without it their client gets a RST at its next packet.
pub const KEEP_FLOWS_OF_DOWN: u8 = 1;

/// The whole decision of a service in one word, so that a switch is one atomic
/// store that no packet sees half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do with new connections.
    pub action: Action,
    /// See [`KEEP_FLOWS_OF_DOWN`].
    pub flags: u8,
    /// Where [`Action::Steer`] goes.
    pub endpoint: u32,
}

impl Decision {
    /// Bits 0..32 the endpoint, 32..40 the action, 40..48 the flags.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.endpoint as u64 | (self.action as u64) << 32 | (self.flags as u64) << 40
    }

    /// The reverse of [`Decision::pack`]. An action this version does not know is
    /// [`Action::Pass`].
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            action: match (word >> 32) as u8 {
                1 => Action::Steer,
                2 => Action::Refuse,
                _ => Action::Pass,
            },
            flags: (word >> 40) as u8,
            endpoint: word as u32,
        }
    }
}

/// One service's slot. The datapath reads only [`Selection::decision`]; the rest
/// tells people and later versions when and by whom it was made.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// A packed [`Decision`].
    pub decision: Shared<u64>,
    /// Counts the switches of this service. A cluster-wide decision will compare it.
    pub epoch: Shared<u64>,
    /// CLOCK_BOOTTIME after which the decision lapses; zero for never. Reserved: no
    /// program reads it yet.
    pub valid_until_ns: Shared<u64>,
    /// Wall clock of the last switch, nanoseconds since 1970.
    pub changed_unix_ns: Shared<u64>,
}

/// Bit of [`Endpoint::families`]: [`Endpoint::v4_be`] is set.
pub const FAMILY_V4: u8 = 1;
/// Bit of [`Endpoint::families`]: [`Endpoint::v6_be`] is set.
pub const FAMILY_V6: u8 = 2;

/// [`Endpoint::state`] of an id that nobody uses.
pub const ENDPOINT_FREE: u32 = 0;
/// [`Endpoint::state`]: fit, or not yet known to be unfit.
pub const ENDPOINT_UP: u32 = 1;
/// [`Endpoint::state`]: its check failed `fall` times.
pub const ENDPOINT_DOWN: u32 = 2;

/// One address:port that can serve a service. Addresses and port never change
/// while flows may refer to the id; only `state` does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// IPv6 address, if `families` has [`FAMILY_V6`].
    pub v6_be: V6,
    /// IPv4 address, if `families` has [`FAMILY_V4`].
    pub v4_be: V4,
    /// Port in both families.
    pub port_be: u16,
    /// [`FAMILY_V4`] and [`FAMILY_V6`] bits.
    pub families: u8,
    /// 0 is the master's tier, 1 and up are backups.
    pub tier: u8,
    /// The service it belongs to.
    pub service: u32,
    /// [`ENDPOINT_FREE`], [`ENDPOINT_UP`] or [`ENDPOINT_DOWN`].
    pub state: u32,
}

/// A name of at most [`NAME_LEN`] bytes, filled up with zeros.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub [u8; 64]);

impl Name {
    /// No name: the id is free.
    pub const EMPTY: Self = Self([0; 64]);

    /// `None` if the name is empty, longer than [`NAME_LEN`] or holds a zero byte.
    pub fn new(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_LEN || bytes.contains(&0) {
            return None;
        }
        let mut out = [0; 64];
        out[..bytes.len()].copy_from_slice(bytes);
        Some(Self(out))
    }

    /// The name, or `""` where the bytes are not UTF-8.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(64);
        core::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

/// A connection as it is seen on one side of the translation.
///
/// In the forward tables `peer` is the VIP and the client's port is its own; in
/// the reverse tables `peer` is the endpoint and the port is the one the
/// endpoint sees, which differs after a tuple clash.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// The client.
    pub client_be: A,
    /// The VIP or the endpoint.
    pub peer_be: A,
    /// The client's port.
    pub client_port_be: u16,
    /// The VIP's or the endpoint's port.
    pub peer_port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero. Two words, since an array of zeros becomes a call of `memset`.
    pub pad: u8,
    /// Zero.
    pub pad2: u16,
}

/// Bit of a flow's `state`: the endpoint answered our SYN with SYN-ACK.
pub const FLOW_ESTABLISHED: u32 = 1;
/// Bit of a flow's `state`: this direction has sent its FIN.
pub const FLOW_FIN: u32 = 2;

/// The clock of [`ForwardFlow::seen`]: CLOCK_MONOTONIC in units of 2^30 ns, about
/// 1.07 s. A shift is cheaper than a division for every packet.
#[inline(always)]
pub const fn seen(now_ns: u64) -> u32 {
    (now_ns >> 30) as u32
}

/// What a client's packets to the VIP become. Fields that packets change are
/// shared words: two CPUs may hold the same flow.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct ForwardFlow {
    /// When a packet was last seen, see [`seen`].
    pub seen: Shared<u32>,
    /// [`FLOW_ESTABLISHED`] and [`FLOW_FIN`].
    pub state: Shared<u32>,
    /// The sequence number after the client's FIN, host order, if it has sent one.
    pub fin_end: Shared<u32>,
    /// Where the flow goes.
    pub endpoint: u32,
    /// Its service.
    pub service: u32,
    /// The client's port as the endpoint sees it.
    pub client_port_be: u16,
    /// Zero.
    pub pad: u16,
}

/// What an endpoint's packets to a client become.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct ReverseFlow<A> {
    /// When a packet was last seen, see [`seen`].
    pub seen: Shared<u32>,
    /// [`FLOW_ESTABLISHED`] and [`FLOW_FIN`].
    pub state: Shared<u32>,
    /// The sequence number after the endpoint's FIN, host order, if it has sent one.
    pub fin_end: Shared<u32>,
    /// The endpoint's id.
    pub endpoint: u32,
    /// Its service.
    pub service: u32,
    /// The VIP the client talks to.
    pub vip_be: A,
    /// The VIP's port.
    pub vip_port_be: u16,
    /// The client's own port.
    pub client_port_be: u16,
}

/// A fragmented packet: what all of its fragments have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src_be: A,
    /// Destination address.
    pub dst_be: A,
    /// Identification, as it stands in the packet.
    pub id_be: u32,
    /// IP protocol number in IPv4, zero in IPv6.
    pub protocol: u8,
    /// 0 if clients' packets are translated here, 1 if endpoints' are. One fragment may
    /// pass programs of both kinds, and only one of them has anything to do with it.
    pub direction: u8,
    /// Zero.
    pub pad: u16,
}

/// What became of the first fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentTrack<A> {
    /// The server's new address.
    pub addr_be: A,
    /// The endpoint, for its counters.
    pub endpoint: u32,
    /// When it was seen, see [`seen`].
    pub seen: u32,
}

/// How long later fragments may follow, in the unit of [`seen`]: about a minute, as
/// receivers wait (RFC 8200 section 4.5).
pub const FRAGMENT_LIFE: u32 = 56;

/// Fragmented packets of one family that are remembered; the oldest make place.
pub const MAX_FRAGMENTS: u32 = 8192;

/// Traffic of one endpoint, counted on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounters {
    /// Packets steered to it. A GSO super-packet counts once.
    pub forward_packets: u64,
    /// Bytes steered to it, link header included.
    pub forward_bytes: u64,
    /// Packets translated on their way back.
    pub reverse_packets: u64,
    /// Bytes translated on their way back, link header included.
    pub reverse_bytes: u64,
    /// Flows that began.
    pub flows_opened: u64,
    /// Flows seen to end, by FIN in both directions or by RST.
    pub flows_closed: u64,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $verdict:literal, $label:literal;)*) => {
        /// Why a packet was passed unchanged, answered or dropped. Each has a counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// `pass`, `reset` or `drop`: what happens to the packet.
            pub const fn verdict(self) -> &'static str {
                match self { $(Self::$name => $verdict,)* }
            }

            /// The reason as a metric label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6.
    NotIp = 0, "pass", "not_ip";
    /// Neither TCP nor UDP nor an ICMP error about one.
    NotSteerable = 1, "pass", "not_steerable";
    /// More than two VLAN tags.
    VlanDepth = 2, "pass", "vlan_depth";
    /// A later fragment of a packet of which the first was not steered, or not seen
    /// yet; or a fragment of an ICMP error.
    Fragment = 3, "pass", "fragment";
    /// An IPv6 extension header that is not walked over, or too many of them.
    ExtensionHeader = 4, "pass", "extension_header";
    /// The frame ends before its headers do, or a length field contradicts another.
    Malformed = 5, "pass", "malformed";
    /// Nobody listens at the destination.
    NotListener = 6, "pass", "not_listener";
    /// From no endpoint of a steered flow.
    NotSteered = 7, "pass", "not_steered";
    /// The service has no decision yet.
    Undecided = 8, "pass", "undecided";
    /// A RST for a VIP that belongs to no flow.
    StrayReset = 9, "pass", "stray_reset";
    /// The kernel refused to change the packet; it went on unsteered.
    RewriteFailed = 10, "pass", "rewrite_failed";
    /// All endpoints are down and the service refuses.
    Refused = 11, "reset", "refused";
    /// The flow's endpoint is down.
    EndpointDown = 12, "reset", "endpoint_down";
    /// The endpoint has no address in the client's family.
    NoAddress = 13, "reset", "no_address";
    /// The flow table is full.
    TableFull = 14, "reset", "table_full";
    /// Every port tried for the flow is taken at the endpoint.
    TupleClash = 15, "reset", "tuple_clash";
    /// A reset could not be built for a packet that had to be refused.
    ResetFailed = 16, "drop", "reset_failed";
    /// An event that found its ring buffer full. Counts events, not packets.
    EventLost = 17, "pass", "event_lost";
    /// A packet in mid-connection took up a flow nobody knew. Counted beside its steering.
    Adopted = 18, "steer", "adopted";
    /// A flow got another source port because its own was taken. Counted beside its steering.
    PortChanged = 19, "steer", "port_changed";
    /// Between a client and an endpoint's own address.
    Direct = 20, "pass", "direct";
    /// An ICMP error about a packet of no steered flow.
    ErrorNotSteered = 21, "pass", "icmp_not_steered";
    /// An ICMP error about a steered packet. Counted beside its translation.
    ErrorTranslated = 22, "steer", "icmp_translated";
    /// A datagram that had to be refused; UDP has no RST.
    DatagramRefused = 23, "drop", "datagram_refused";
}

/// What an [`Event`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum EventKind {
    /// An endpoint answered our SYN with a RST.
    EndpointRefused = 0,
    /// A client was reset because its flow's endpoint is down.
    FlowReset = 1,
    /// A new flow found the table full.
    TableFull = 2,
    /// A new flow found no free port at its endpoint.
    TupleClash = 3,
}

impl EventKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 4] = [
        Self::EndpointRefused,
        Self::FlowReset,
        Self::TableFull,
        Self::TupleClash,
    ];

    /// The kind of this number, if this version knows it.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The kind as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::EndpointRefused => "endpoint_refused",
            Self::FlowReset => "flow_reset",
            Self::TableFull => "table_full",
            Self::TupleClash => "tuple_clash",
        }
    }
}

/// A rare thing that happened to a packet. At most one per kind, CPU and
/// [`EVENT_GAP_NS`] is sent; the next one says how many were held back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// An [`EventKind`].
    pub kind: u32,
    /// Events of this kind on this CPU that were held back since the last.
    pub held_back: u32,
    /// The service.
    pub service: u32,
    /// The endpoint.
    pub endpoint: u32,
    /// The client, see [`Address::mapped`].
    pub client: [u8; 16],
    /// The client's port.
    pub client_port_be: u16,
    /// Zero. Two words, since an array of zeros becomes a call of `memset`.
    pub pad: u16,
    /// Zero.
    pub pad2: u32,
}

/// Least time between two events of one kind on one CPU.
pub const EVENT_GAP_NS: u64 = 10_000_000;

/// One CPU's memory of when it last sent an event of a kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct EventGate {
    /// CLOCK_MONOTONIC of the last event sent.
    pub sent_ns: u64,
    /// Held back since.
    pub held_back: u64,
}

const _: () = assert!(Reason::ALL.len() <= MAX_REASONS as usize);

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
    Listener = 12;
    Selection = 32;
    Endpoint = 32;
    Name = 64;
    FlowKey<V4> = 16;
    FlowKey<V6> = 40;
    ForwardFlow = 24;
    ReverseFlow<V4> = 28;
    ReverseFlow<V6> = 40;
    FragmentKey<V4> = 16;
    FragmentKey<V6> = 40;
    FragmentTrack<V4> = 12;
    FragmentTrack<V6> = 24;
    EndpointCounters = 48;
    Event = 48;
    EventGate = 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn decision_round_trips() {
        for action in [Action::Pass, Action::Steer, Action::Refuse] {
            let decision = Decision {
                action,
                flags: 0xa5,
                endpoint: 0xdead_beef,
            };
            assert_eq!(Decision::unpack(decision.pack()), decision);
        }
        assert_eq!(Decision::unpack(0).action, Action::Pass);
        assert_eq!(Decision::unpack(7 << 32).action, Action::Pass);
    }

    #[test]
    fn offsets_are_what_the_first_version_pinned() {
        assert_eq!(offset_of!(Selection, decision), 0);
        assert_eq!(offset_of!(Endpoint, v4_be), 16);
        assert_eq!(offset_of!(Endpoint, port_be), 20);
        assert_eq!(offset_of!(Endpoint, state), 28);
        assert_eq!(offset_of!(FlowKey<V4>, client_port_be), 8);
        assert_eq!(offset_of!(FlowKey<V6>, client_port_be), 32);
        assert_eq!(offset_of!(ForwardFlow, endpoint), 12);
        assert_eq!(offset_of!(ReverseFlow<V4>, vip_be), 20);
        assert_eq!(offset_of!(ReverseFlow<V6>, vip_be), 20);
        assert_eq!(offset_of!(Event, client), 24);
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
