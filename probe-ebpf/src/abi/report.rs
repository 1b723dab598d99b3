//! What the programs tell: counters, reasons, events, silence.

use super::Shared;

/// Room for reasons, so that a new one does not change the shape of a pinned map.
pub const MAX_REASONS: u32 = 64;

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
    /// Flows that the endpoint answered.
    pub flows_opened: u64,
    /// Flows seen to end, by FIN in both directions or by RST.
    pub flows_closed: u64,
}

/// How long an endpoint has answered no client that connects.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Silence {
    /// [`super::Node::tick`] of the first SYN that was sent to it after it answered one; zero if it
    /// owes no answer.
    pub since: Shared<u32>,
    /// Zero.
    pub pad: u32,
}

impl Silence {
    /// A SYN is sent to it. Stored once a silence, not once a SYN, and only then is the time asked for.
    #[inline(always)]
    pub fn asked(&self, tick: impl FnOnce() -> u32) {
        if self.since.get() == 0 {
            self.since.set(tick());
        }
    }

    /// It answered somebody.
    #[inline(always)]
    pub fn broken(&self) {
        if self.since.get() != 0 {
            self.since.set(0);
        }
    }
}

/// The unit of [`super::Node::tick`]: CLOCK_MONOTONIC in units of 2^16 ns, about 66 us, and never zero.
#[inline(always)]
pub const fn tick(now_ns: u64) -> u32 {
    let tick = (now_ns >> 16) as u32;
    if tick == 0 { 1 } else { tick }
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
            /// `pass`, `steer`, `reset`, `answer` or `drop`: what happens to the packet.
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
    /// A flow found the tables full and is steered without an entry. Counted beside its
    /// steering, once when it should have got one and at each packet that looks for it.
    TableFull = 14, "steer", "table_full";
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
    /// All source ports towards the endpoint are in use.
    PortsExhausted = 24, "reset", "ports_exhausted";
    /// A packet in mid-connection of a flow whose source port is not known any more.
    FlowLost = 25, "reset", "flow_lost";
    /// The kernel's routes do not lead on. Its own path takes the packet unchanged.
    NotForwarded = 26, "pass", "not_forwarded";
    /// Too long for the way on, of what is sent on from here. Its sender is told by an ICMP
    /// error.
    TooLong = 27, "answer", "too_long";
    /// An endpoint refused a SYN, and it went to the next one instead of the refusal to the
    /// client.
    Redispatched = 28, "steer", "redispatched";
    /// An endpoint answered a SYN that went to another one meanwhile. It is reset.
    LateAnswer = 29, "reset", "late_answer";
    /// An endpoint that is down spoke to a client whose flow was reset. It is told the same.
    ClientGone = 30, "reset", "client_gone";
    /// A client's kernel refused what an endpoint repeated after a flood had overwritten the
    /// flow's note, and which therefore came to it from an address it did not ask. The endpoint
    /// would forget a connection that the client has.
    MisdirectedReset = 31, "drop", "misdirected_reset";
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
    /// A new flow found all source ports towards its endpoint in use.
    PortsExhausted = 4,
    /// A client repeated a SYN that its endpoint has not answered.
    SynUnanswered = 5,
}

impl EventKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::EndpointRefused,
        Self::FlowReset,
        Self::TableFull,
        Self::TupleClash,
        Self::PortsExhausted,
        Self::SynUnanswered,
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
            Self::PortsExhausted => "ports_exhausted",
            Self::SynUnanswered => "syn_unanswered",
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
