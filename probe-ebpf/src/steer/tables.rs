//! What steering needs to look up and remember.

use super::Work;
use crate::abi::{
    Address, Affinity, AffinityKey, Endpoint, EventKind, FlowKey, ForwardFlow, FragmentKey,
    FragmentTrack, Listener, ListenerKey, MoreSet, PortLine, Reason, RecentSet, ReverseFlow, Ring,
    Selection, SynSet,
};

/// Why a flow could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// The key is taken.
    Exists,
    /// The table is full, or the kernel had no memory.
    Full,
}

/// The maps, as one address family sees them.
///
/// References point into shared tables: another CPU may reuse an entry that is
/// removed while it is looked at. What is read then belongs to some other flow of
/// the same table, never to freed memory; a wrong word may steer that one segment
/// wrongly, which TCP's own checks at the receiver catch.
pub trait Tables<A: Address> {
    /// This CPU's room to work in. Whoever asks has it until the verdict is reached.
    #[expect(
        clippy::mut_from_ref,
        reason = "the room is not the tables', and is asked for once a segment"
    )]
    fn work(&self) -> Option<&mut Work<A>>;
    /// CLOCK_MONOTONIC. Asked only for what is rare: reading it costs more than a lookup.
    fn now_ns(&self) -> u64;
    /// See [`crate::abi::Node::clock`].
    fn clock(&self) -> u32;
    /// See [`crate::abi::Node::seed`].
    fn seed(&self) -> u64;
    /// Both at once, which costs less.
    fn seed_and_clock(&self) -> (u64, u32);
    /// May a flow get its entries though nobody knows whether its client is there? See
    /// [`crate::abi::Node::limit`].
    fn grant(&self) -> bool;

    /// May there be a listener of this key? Costs less than [`Tables::listener`], and is wrong
    /// where that is not.
    fn listens(&self, key: &ListenerKey<A>) -> bool;
    /// The listener at a destination.
    fn listener(&self, key: &ListenerKey<A>) -> Option<Listener>;
    /// The service's slot. `None` only if the id is out of range.
    fn selection(&self, service: u32) -> Option<&Selection>;
    /// The endpoint of this id. `None` only if the id is out of range.
    fn endpoint(&self, id: u32) -> Option<&Endpoint>;

    /// The flow of a client's segments.
    fn forward(&self, key: &FlowKey<A>) -> Option<&ForwardFlow>;
    /// The flow of an endpoint's segments.
    fn reverse(&self, key: &FlowKey<A>) -> Option<&ReverseFlow<A>>;
    /// Writes a forward flow, over an old one if there is one.
    fn put_forward(&self, key: &FlowKey<A>, flow: &ForwardFlow) -> Result<(), Insert>;
    /// Writes a reverse flow; over an old one only if told to.
    fn put_reverse(
        &self,
        key: &FlowKey<A>,
        flow: &ReverseFlow<A>,
        replace: bool,
    ) -> Result<(), Insert>;
    /// Forgets a forward flow, if it is there.
    fn remove_forward(&self, key: &FlowKey<A>);
    /// Forgets a reverse flow, if it is there. Tells whether it was.
    fn remove_reverse(&self, key: &FlowKey<A>) -> bool;

    /// The source of full NAT, or zero.
    fn source(&self) -> A;
    /// A line of ports. `None` only if the number is out of range.
    fn ports(&self, number: u32) -> Option<&PortLine>;

    /// A set of notes. `None` only if the number is out of range.
    fn recent(&self, number: u32) -> Option<&RecentSet<A>>;

    /// What is remembered of the SYNs of a set of notes. `None` only if the number is out of
    /// range.
    fn syns(&self, number: u32) -> Option<&SynSet>;
    /// The rest of their options.
    fn more(&self, number: u32) -> Option<&MoreSet>;

    /// What became of a fragmented packet's first fragment.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentTrack<A>>;
    /// Remembers what became of a first fragment. May fail silently: its others are
    /// then passed.
    fn put_fragment(&self, key: &FragmentKey<A>, track: &FragmentTrack<A>);

    /// The ring of this number. `None` only if the number is out of range.
    fn ring(&self, number: u32) -> Option<&Ring>;
    /// The endpoint that a client of a service keeps.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<&Affinity>;
    /// Remembers it. May fail silently: the client then goes where the ring says.
    fn put_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity);

    /// Counts something that happens beside a packet's verdict.
    fn count(&self, reason: Reason);
    /// Counts a flow that began at an endpoint.
    fn opened(&self, endpoint: u32);
    /// Counts a flow that ended at an endpoint.
    fn closed(&self, endpoint: u32);
    /// A SYN goes to an endpoint whose answers come by here.
    fn asked(&self, endpoint: u32);
    /// Such an endpoint answered one, whoever's.
    fn answered(&self, endpoint: u32);
    /// Tells the agent, rate-limited.
    fn event(&self, kind: EventKind, service: u32, endpoint: u32, client: A, client_port_be: u16);
}
