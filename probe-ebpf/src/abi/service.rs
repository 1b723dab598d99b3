//! What the agent writes: decisions, endpoints, names.

use super::{Address, NAME_LEN, Shared, V4, V6};

/// What to do with new connections of a service. Zero is [`Action::Pass`], so a
/// service that nobody has filled in yet disturbs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Leave packets as they are.
    Pass = 0,
    /// Steer to the endpoint [`Decision::target`].
    Steer = 1,
    /// Answer with a RST: no endpoint is fit and the service says so.
    Refuse = 2,
    /// Steer to one of several endpoints, as the [`super::Ring`] of number
    /// [`Decision::target`] says.
    Spread = 3,
}

/// Bit of [`Decision::flags`]: flows of an endpoint that is down keep going to
/// it. Without it their client gets a RST at its next packet.
pub const KEEP_FLOWS_OF_DOWN: u8 = 1;
/// Bit of [`Decision::flags`]: every known flow of the service's selection goes to
/// [`Decision::target`], so a segment in mid-connection needs this slot alone and no
/// flow entry, unless [`Selection::exceptions`] says otherwise.
pub const SLOT_ALONE: u8 = 2;
/// Bit of [`Decision::flags`]: the same for listeners that belong to one endpoint, and
/// for endpoints' own addresses.
pub const SLOT_ALONE_DIRECT: u8 = 4;

/// Bit of [`Decision::flags`]: only the selected endpoint may serve. A SYN that it
/// refuses is not sent to another.
pub const NO_REDISPATCH: u8 = 8;

/// The whole decision of a service in one word, so that a switch is one atomic
/// store that no packet sees half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do with new connections.
    pub action: Action,
    /// See [`KEEP_FLOWS_OF_DOWN`], [`SLOT_ALONE`] and [`SLOT_ALONE_DIRECT`].
    pub flags: u8,
    /// The tier that is selected.
    pub tier: u8,
    /// Where the action goes.
    pub target: u32,
}

impl Decision {
    /// Bits 0..32 the target, 32..40 the action, 40..48 the flags, 48..56 the tier.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.target as u64
            | (self.action as u64) << 32
            | (self.flags as u64) << 40
            | (self.tier as u64) << 48
    }

    /// Is the packed decision to steer with [`SLOT_ALONE`]?
    #[inline(always)]
    pub const fn is_alone(word: u64) -> bool {
        const MASK: u64 = 0xff << 32 | (SLOT_ALONE as u64) << 40;
        word & MASK == (Action::Steer as u64) << 32 | (SLOT_ALONE as u64) << 40
    }

    /// Has the packed decision [`SLOT_ALONE_DIRECT`]?
    #[inline(always)]
    pub const fn is_alone_direct(word: u64) -> bool {
        word & (SLOT_ALONE_DIRECT as u64) << 40 != 0
    }

    /// The reverse of [`Decision::pack`]. An action this version does not know is
    /// [`Action::Pass`].
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            action: match (word >> 32) as u8 {
                1 => Action::Steer,
                2 => Action::Refuse,
                3 => Action::Spread,
                _ => Action::Pass,
            },
            flags: (word >> 40) as u8,
            tier: (word >> 48) as u8,
            target: word as u32,
        }
    }
}

/// [`Selection::previous`] of a service that never switched.
pub const NO_ENDPOINT: u32 = u32::MAX;
/// Bit of [`Selection::previous`]: the rest is the number of a [`super::Ring`].
pub const PREVIOUS_RING: u32 = 1 << 31;

/// One service's slot, a cache line of its own.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// A packed [`Decision`].
    pub decision: Shared<u64>,
    /// Not zero if a flow of the service may have another client port than its client
    /// gave it, or no entries for want of room: then every segment is looked up. Programs set
    /// it to [`Node::clock`] and bit 32; the agent clears it when a sweep has shown that there
    /// is none.
    pub exceptions: Shared<u64>,
    /// Not zero if a flow with one of the service's endpoints may have come by a side
    /// way, see [`super::LISTENER_MAIN`]. Set and cleared like `exceptions`.
    pub side: Shared<u64>,
    /// The endpoint selected before this one, or a ring and [`PREVIOUS_RING`], or
    /// [`NO_ENDPOINT`]: its unanswered SYNs are given up when they are repeated. Such a ring
    /// may be written for the next change; who looks meanwhile finds no note, or its own.
    pub previous: Shared<u32>,
    /// While endpoints share the new connections: for how long a client's stay with one,
    /// counted from its last, in the unit of [`Node::clock`]; zero for not at all.
    pub affinity: Shared<u32>,
    /// Counts the switches of this service. A cluster-wide decision will compare it.
    pub epoch: Shared<u64>,
    /// CLOCK_BOOTTIME after which the decision lapses; zero for never. Reserved: no
    /// program reads it yet.
    pub valid_until_ns: Shared<u64>,
    /// Wall clock of the last switch, nanoseconds since 1970.
    pub changed_unix_ns: Shared<u64>,
    /// A packed [`Straight`] while the decision is to steer with [`SLOT_ALONE`], else zero:
    /// zero before a decision that ends that is written, and not zero only after one that
    /// allows it. Saves most IPv4 packets the look at their endpoint.
    pub straight_v4: Shared<u64>,
}

/// All that an IPv4 packet needs to know of the selected endpoint, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Straight {
    /// The endpoint's address.
    pub addr_be: u32,
    /// Its port.
    pub port_be: u16,
    /// Its id.
    pub endpoint: u32,
}

const _: () = assert!(super::MAX_ENDPOINTS < 1 << 16);

impl Straight {
    /// Bits 0..32 the address, 32..48 the port, 48..64 one more than the id.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.addr_be as u64 | (self.port_be as u64) << 32 | (self.endpoint as u64 + 1) << 48
    }

    /// The reverse of [`Straight::pack`]; `None` for zero.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            addr_be: word as u32,
            port_be: (word >> 32) as u16,
            endpoint: ((word >> 48) as u32).wrapping_sub(1),
        })
    }
}

/// What all programs must know. There is one.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Secret of the hash that finds a [`super::RecentSet`], so that nobody can aim at
    /// somebody else's. Chosen when the table is made.
    pub seed: Shared<u64>,
    /// Flows that got their entries before their client had shown that it is there: only
    /// grows.
    pub granted: Shared<u64>,
    /// Up to here `granted` may grow. The agent sets it at each sweep, such that forged SYNs
    /// and datagrams cannot fill the flow tables before the next one. Past it a flow gets its
    /// entries when the client or the endpoint says more, see [`super::FLOW_CONFIRMED`].
    pub limit: Shared<u64>,
    /// The agent's clock in the unit of [`super::seen`]: it stands still while no agent
    /// runs. A load costs a hundredth of asking the kernel for the time.
    pub clock: Shared<u32>,
    /// The source of [`FORWARD_FULL_NAT`] in IPv6; zero if there is none.
    pub source_v6: <V6 as Address>::Cells,
    /// The source of [`FORWARD_FULL_NAT`] in IPv4; zero if there is none.
    pub source_v4: <V4 as Address>::Cells,
    /// Not zero if XDP programs may send packets out of their interface (`XDP_TX`) and of each
    /// other's (`XDP_REDIRECT`), which not every driver's peer takes.
    pub may_send: Shared<u32>,
    /// The agent's clock of [`super::Silence`], see [`super::tick`]: it goes on whenever the agent
    /// looks for silent endpoints, and stands still while none runs. Zero before the first look.
    pub tick: Shared<u32>,
}

impl Node {
    /// May another flow get its entries though nobody knows of its client?
    #[inline(always)]
    pub fn grant(&self) -> bool {
        let granted = self.granted.get() < self.limit.get();
        if granted {
            self.granted.add(1);
        }
        granted
    }
}

/// Most interfaces that XDP programs may send packets out of.
pub const MAX_SENDERS: u32 = 256;

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
/// [`Endpoint::state`]: fit, and the time is over that its flows had to end by themselves
/// after the selection left it: they are reset, whatever [`KEEP_FLOWS_OF_DOWN`] says.
pub const ENDPOINT_DRAINED: u32 = 3;

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
    /// 0 is the master's tier, 1 and up are backups. [`super::NO_TIER`] if it takes no new
    /// connections.
    pub tier: u8,
    /// The service it belongs to.
    pub service: u32,
    /// [`ENDPOINT_FREE`], [`ENDPOINT_UP`], [`ENDPOINT_DOWN`] or [`ENDPOINT_DRAINED`].
    pub state: u32,
    /// [`FORWARD_NAT`], [`FORWARD_FULL_NAT`] or [`FORWARD_DSR`].
    pub forward: u32,
    /// Number of the pool that its source ports come from, see [`PortLine`].
    pub pool: u32,
    /// Who of its tier is asked after it when it refuses a SYN: those that take new
    /// connections form a circle, perhaps of one. [`NO_ENDPOINT`] if it takes none itself.
    pub next: u32,
    /// The first of that circle.
    pub head: u32,
    /// The first of the circle of the next tier, and after the last tier of the first one;
    /// [`NO_ENDPOINT`] if there is no other tier.
    pub below: u32,
}

/// [`Endpoint::forward`]: only the server's address is translated. The endpoint sees its
/// client's address, and its replies must cross this node.
pub const FORWARD_NAT: u32 = 0;
/// [`Endpoint::forward`]: the source becomes [`Node::source_v4`] or `source_v6` too, so
/// replies come back to this node from wherever the endpoint is.
pub const FORWARD_FULL_NAT: u32 = 1;
/// [`Endpoint::forward`]: direct server return. The endpoint owns the VIP and is a
/// neighbour of this node: only hardware addresses change, and it answers its client itself.
pub const FORWARD_DSR: u32 = 2;

/// Source ports of one pool are those from here on.
pub const FIRST_SOURCE_PORT: u16 = 1024;
/// Endpoints with source ports of their own.
pub const MAX_POOLS: u32 = 64;
/// Ports of one [`PortLine`].
pub const PORTS_A_LINE: u32 = 64;
/// Lines of a pool.
pub const LINES_A_POOL: u32 = 65_536 / PORTS_A_LINE;

/// [`PortLine`]: nobody uses the port.
pub const PORT_FREE: u8 = 0;
/// [`PortLine`]: a flow uses the port.
pub const PORT_USED: u8 = 1;
/// [`PortLine`], and every value above: a flow used the port until lately, and its
/// endpoint may still hold the connection (TIME_WAIT). The agent counts such ports up and
/// frees them; they are taken before that only if no other is free.
pub const PORT_RESTING: u8 = 2;

/// What 64 ports of a pool are used for, a byte each: bytes can be written alone. It
/// says where to try; whether a port is free the reverse table decides.
///
/// Ports are looked for eight at a time, and without a loop over bytes, of which the
/// kernel's verifier would follow each way.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PortLine([Shared<u64>; PORTS_A_LINE as usize / 8]);

/// One in every byte.
const ONES: u64 = 0x0101_0101_0101_0101;

impl PortLine {
    /// Words of a line.
    pub const WORDS: usize = PORTS_A_LINE as usize / 8;

    /// A free port among the eight of a word, by its place in the line.
    #[inline(always)]
    pub fn free(&self, word: usize) -> Option<u32> {
        let ports = self.0[word % Self::WORDS].get();
        first(word, ports.wrapping_sub(ONES) & !ports)
    }

    /// A port that rests, as [`PortLine::free`].
    #[inline(always)]
    pub fn resting(&self, word: usize) -> Option<u32> {
        let resting = self.0[word % Self::WORDS].get() & !ONES;
        let low = 0x7f * ONES;
        first(word, ((resting & low) + low) | resting)
    }

    /// Writes what a port is used for.
    #[inline(always)]
    pub fn mark(&self, place: u32, mark: u8) {
        let bytes = self.0.as_ptr().cast::<Shared<u8>>();
        // SAFETY: within the line by the modulo; bytes of shared words are shared bytes.
        unsafe { (*bytes.add((place % PORTS_A_LINE) as usize)).set(mark) }
    }

    /// What a port is used for.
    #[inline(always)]
    pub fn get(&self, place: u32) -> u8 {
        let bytes = self.0.as_ptr().cast::<Shared<u8>>();
        // SAFETY: as in `mark`.
        unsafe { (*bytes.add((place % PORTS_A_LINE) as usize)).get() }
    }
}

/// The first byte whose highest bit is set, by its place in the line.
#[inline(always)]
fn first(word: usize, marks: u64) -> Option<u32> {
    let marks = u64::from_le(marks) & (0x80 * ONES);
    if marks == 0 {
        return None;
    }
    // The lowest mark alone times this has the number of its byte on top.
    let alone = (marks & marks.wrapping_neg()) >> 7;
    let byte = alone.wrapping_mul(0x0001_0203_0405_0607) >> 56;
    Some((word % PortLine::WORDS) as u32 * 8 + byte as u32)
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
