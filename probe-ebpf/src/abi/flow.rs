//! What the programs remember of connections.

use super::{Address, Shared};

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

/// Bit of a flow's `state`: the endpoint has sent more than its SYN-ACK, which it does
/// only if the client has answered that. No forged SYN brings a flow here.
pub const FLOW_CONFIRMED: u32 = 4;
/// Bit of a flow's `state`: it came by a side way, see [`super::LISTENER_MAIN`].
pub const FLOW_SIDE: u32 = 8;
/// Bit of a flow's `state`: it has ended, and its entries stay for what comes late, until
/// they are swept as those of a flow that closes.
pub const FLOW_ENDED: u32 = 16;

/// Bit of a flow's `state`: its SYN was refused elsewhere and sent on to this endpoint, whatever
/// the selection says.
pub const FLOW_MOVED: u32 = 32;

/// The clock of [`ForwardFlow::seen`]: CLOCK_MONOTONIC in units of 2^30 ns, about
/// 1.07 s.
#[inline(always)]
pub const fn seen(now_ns: u64) -> u32 {
    (now_ns >> 30) as u32
}

/// What a client's packets to the VIP become. Fields that packets change are
/// shared words: two CPUs may hold the same flow.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct ForwardFlow {
    /// When a packet was last seen that needed this entry, see [`seen`].
    pub seen: Shared<u32>,
    /// `FLOW_*` bits.
    pub state: Shared<u32>,
    /// The sequence number after the client's FIN, host order, if it has sent one.
    pub fin_end: Shared<u32>,
    /// Where the flow goes.
    pub endpoint: u32,
    /// Its service.
    pub service: u32,
    /// The client's port as the endpoint sees it.
    pub client_port_be: u16,
    /// One more than the id of the endpoint that was asked first, if the SYN was sent on;
    /// else zero.
    pub origin: u16,
}

/// What an endpoint's packets to a client become.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct ReverseFlow<A> {
    /// When a packet was last seen, see [`seen`].
    pub seen: Shared<u32>,
    /// `FLOW_*` bits.
    pub state: Shared<u32>,
    /// The sequence number after the endpoint's FIN, host order, if it has sent one.
    pub fin_end: Shared<u32>,
    /// The endpoint's id.
    pub endpoint: u32,
    /// Its service.
    pub service: u32,
    /// The client, which the endpoint does not see with [`super::FORWARD_FULL_NAT`].
    pub client_be: A,
    /// The VIP the client talks to.
    pub vip_be: A,
    /// The VIP's port.
    pub vip_port_be: u16,
    /// The client's own port.
    pub client_port_be: u16,
}

/// A flow that is not in the flow tables: not answered yet, just closed, or the
/// tables are full.
///
/// Two CPUs may write one entry at once, each word whole. `check` shows such a
/// mixture, which is then nobody's.
#[repr(C)]
#[derive(Default)]
pub struct Recent<A: Address> {
    client_be: A::Cells,
    vip_be: A::Cells,
    /// The client's port as the endpoint sees it, and its own above it.
    ports: Shared<u32>,
    /// The VIP's port, and the IP protocol number above it.
    what: Shared<u32>,
    endpoint: Shared<u32>,
    check: Shared<u32>,
    /// A [`RecentState`] and more, not covered by `check`: see [`Recent::origin`].
    state: Shared<u32>,
    /// Tells with the other entry's which of the two was written last, see
    /// [`RecentSet::put`].
    turn: Shared<u32>,
    fill: A::Fill,
}

/// What is remembered of a flow in a [`Recent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace<A> {
    /// The client, as the endpoint sees it.
    pub client_be: A,
    /// The VIP.
    pub vip_be: A,
    /// The client's port as the endpoint sees it.
    pub seen_port_be: u16,
    /// The client's own port.
    pub client_port_be: u16,
    /// The VIP's port.
    pub vip_port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The endpoint's id.
    pub endpoint: u32,
}

/// What the endpoint's next packet means for a [`Recent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecentState {
    /// The flow is alive: unless it is in the flow tables, it belongs there.
    Open = 0,
    /// Like `Open`, and it came by a side way.
    OpenSide = 1,
    /// The flow has ended: what comes late is still translated, but anybody may take the
    /// tuple.
    Closed = 2,
    /// The client's SYN went elsewhere meanwhile: what comes is not the client's.
    GivenUp = 3,
}

impl<A: Address> Recent<A> {
    /// A sum over words that differ between flows, each weighted by its place.
    #[inline(always)]
    fn sum(client: A, vip: A, ports: u32, what: u32, endpoint: u32) -> u32 {
        let mut sum = client.fold().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum = sum.wrapping_add(vip.fold().wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
        let small = (ports as u64) << 32 | what as u64;
        sum = sum.wrapping_add(small.wrapping_mul(0x1656_67b1_9e37_79f9));
        sum = sum.wrapping_add((endpoint as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        (sum >> 32) as u32
    }

    /// The entry as it is now, if it is whole.
    #[inline(always)]
    pub fn trace(&self) -> Option<Trace<A>> {
        let (client_be, vip_be) = (A::from_cells(&self.client_be), A::from_cells(&self.vip_be));
        let (ports, what, endpoint) = (self.ports.get(), self.what.get(), self.endpoint.get());
        let whole = self.check.get() == Self::sum(client_be, vip_be, ports, what, endpoint);
        whole.then_some(Trace {
            client_be,
            vip_be,
            seen_port_be: ports as u16,
            client_port_be: (ports >> 16) as u16,
            vip_port_be: what as u16,
            protocol: (what >> 16) as u8,
            endpoint,
        })
    }

    /// Is it about a client's segments from this port of its own to this VIP?
    #[inline(always)]
    pub fn is_towards(&self, vip_be: A, vip_port_be: u16, client_port_be: u16) -> bool {
        A::from_cells(&self.vip_be) == vip_be
            && self.what.get() as u16 == vip_port_be
            && (self.ports.get() >> 16) as u16 == client_port_be
    }

    /// Is it about this client's packets as the endpoint sees them? The endpoint's
    /// address is for the caller to compare.
    #[inline(always)]
    fn is_of(&self, client_be: A, seen_port_be: u16, protocol: u8) -> bool {
        // The port first: it differs most often.
        self.ports.get() as u16 == seen_port_be
            && A::from_cells(&self.client_be) == client_be
            && (self.what.get() >> 16) as u8 == protocol
    }

    #[inline(always)]
    fn write(
        &self,
        key: &FlowKey<A>,
        back_key: &FlowKey<A>,
        endpoint: u32,
        state: RecentState,
        turn: u32,
    ) {
        let ports = back_key.client_port_be as u32 | (key.client_port_be as u32) << 16;
        let what = key.peer_port_be as u32 | (key.protocol as u32) << 16;
        back_key.client_be.to_cells(&self.client_be);
        key.peer_be.to_cells(&self.vip_be);
        self.ports.set(ports);
        self.what.set(what);
        self.endpoint.set(endpoint);
        let sum = Self::sum(back_key.client_be, key.peer_be, ports, what, endpoint);
        self.check.set(sum);
        self.state.set(state as u32);
        self.turn.set(turn);
    }

    /// What the endpoint's next packet means.
    #[inline(always)]
    pub fn state(&self) -> RecentState {
        match self.state.get() & 0xff {
            0 => RecentState::Open,
            1 => RecentState::OpenSide,
            2 => RecentState::Closed,
            _ => RecentState::GivenUp,
        }
    }

    /// Changes it.
    #[inline(always)]
    pub fn set_state(&self, state: RecentState) {
        self.state.set(state as u32);
    }

    /// Which endpoint refused the SYN first, if it was sent on from one.
    #[inline(always)]
    pub fn origin(&self) -> u32 {
        (self.state.get() >> ORIGIN).wrapping_sub(1)
    }

    /// The SYN was sent on from another endpoint, and comes in as one to the endpoint's own
    /// address: once.
    #[inline(always)]
    pub fn hand_over(&self, origin: u32) {
        let state = RecentState::Open as u32 | HANDED | (origin + 1) << ORIGIN;
        self.state.set(state);
    }

    /// Is that SYN still to come? Not from now on.
    #[inline(always)]
    pub fn take_over(&self) -> bool {
        let state = self.state.get();
        self.state.set(state & !HANDED);
        state & HANDED != 0
    }
}

/// Bit of [`Recent`]'s state, see [`Recent::take_over`].
const HANDED: u32 = 1 << 8;
/// Where [`Recent::origin`] begins in its state.
const ORIGIN: u32 = 16;

/// Two entries; a flow may be in either. In IPv4 they share a cache line.
#[repr(C)]
#[derive(Default)]
pub struct RecentSet<A: Address>([Recent<A>; 2]);

impl<A: Address> RecentSet<A> {
    /// The number of the set that a flow belongs into, by what its endpoint sees of it.
    #[inline(always)]
    pub fn number(
        seed: u64,
        client_be: A,
        seen_port_be: u16,
        endpoint_be: A,
        endpoint_port_be: u16,
    ) -> u32 {
        let ports = seen_port_be as u64 | (endpoint_port_be as u64) << 16;
        let mut hash = (client_be.fold() ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32 ^ ports << 32 ^ endpoint_be.fold();
        hash = hash.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        (hash >> 48) as u32 & (A::RECENT_SETS - 1)
    }

    /// Both entries.
    pub fn both(&self) -> [&Recent<A>; 2] {
        let [first, second] = &self.0;
        [first, second]
    }

    /// The entry about this client's packets as an endpoint sees them. Whether it
    /// is this endpoint, by its id, the caller knows.
    #[inline(always)]
    pub fn find(
        &self,
        client_be: A,
        seen_port_be: u16,
        protocol: u8,
        is_endpoint: impl Fn(u32) -> bool,
    ) -> Option<(&Recent<A>, u32)> {
        let [first, second] = &self.0;
        let matches = |entry: &Recent<A>| {
            entry.is_of(client_be, seen_port_be, protocol) && is_endpoint(entry.endpoint.get())
        };
        if matches(first) {
            Some((first, 0))
        } else if matches(second) {
            Some((second, 1))
        } else {
            None
        }
    }

    /// Writes an entry for the flow of these keys, the client's and the endpoint's: over
    /// the one of the same client, port and endpoint, or else over the older one. Turns that are
    /// equal mean that the second was written last, turns that differ that the first was: one
    /// word decides without a clock. Tells which place in the set it is.
    #[inline(always)]
    pub fn put(
        &self,
        key: &FlowKey<A>,
        back_key: &FlowKey<A>,
        endpoint: u32,
        state: RecentState,
    ) -> u32 {
        let [first, second] = &self.0;
        let same = |entry: &Recent<A>| {
            entry.endpoint.get() == endpoint
                && entry.is_of(back_key.client_be, back_key.client_port_be, key.protocol)
        };
        let (one, two) = (first.turn.get(), second.turn.get());
        let (place, entry, turn) = if same(first) || (one == two && !same(second)) {
            (0, first, two ^ 1)
        } else {
            (1, second, one)
        };
        entry.write(key, back_key, endpoint, state, turn);
        place
    }

    /// As [`RecentSet::put`] in [`RecentState::Open`], unless there is one of the same client, port and
    /// endpoint.
    #[inline(always)]
    pub fn add(&self, key: &FlowKey<A>, back_key: &FlowKey<A>, endpoint: u32) -> Option<u32> {
        let [first, second] = &self.0;
        let same = |entry: &Recent<A>| {
            entry.endpoint.get() == endpoint
                && entry.is_of(back_key.client_be, back_key.client_port_be, key.protocol)
        };
        if same(first) || same(second) {
            return None;
        }
        // As in `put`, without a branch, which nobody could predict in a flood of SYNs.
        let two = second.turn.get();
        let place = (first.turn.get() ^ two) & 1;
        let entry = &self.0[place as usize];
        entry.write(key, back_key, endpoint, RecentState::Open, two & 1 ^ 1);
        Some(place)
    }
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
    /// The client's address from here on.
    pub client_be: A,
    /// The endpoint, for its counters.
    pub endpoint: u32,
    /// When it was seen, see [`seen`].
    pub seen: u32,
    /// One of `FRAGMENT_LEFT`, `FRAGMENT_RELAYED` and `FRAGMENT_REPLIED`.
    pub way: u32,
}

/// [`FragmentTrack::way`]: the kernel forwards it.
pub const FRAGMENT_LEFT: u32 = 0;
/// [`FragmentTrack::way`]: it is sent on from here, to the endpoint.
pub const FRAGMENT_RELAYED: u32 = 1;
/// [`FragmentTrack::way`]: it is sent on from here, to the client.
pub const FRAGMENT_REPLIED: u32 = 2;

/// How long later fragments may follow, in the unit of [`seen`]: about a minute, as
/// receivers wait (RFC 8200 section 4.5).
pub const FRAGMENT_LIFE: u32 = 56;

/// Fragmented packets of one family that are remembered; the oldest make place.
pub const MAX_FRAGMENTS: u32 = 8192;
