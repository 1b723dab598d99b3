//! The maps, and [`Tables`] over them.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use probe_ebpf::{
    abi::{
        Address, Affinity, AffinityKey, CACHE_SLOTS, CachedListener, DEFAULT_FLOWS, EVENT_GAP_NS,
        EVENTS_BYTES, Endpoint, EndpointCounters, Event, EventGate, EventKind, FlowKey,
        ForwardFlow, FragmentKey, FragmentTrack, LINES_A_POOL, Listener, ListenerKey,
        MAX_AFFINITIES, MAX_ENDPOINTS, MAX_FRAGMENTS, MAX_LISTENERS, MAX_POOLS, MAX_REASONS,
        MAX_RINGS, MAX_SENDERS, MAX_SERVICES, MoreSet, Name, Node, PortLine, Reason, RecentSet,
        ReverseFlow, Ring, Selection, Shared, Sieve, Silence, SynSet, V4, V6,
    },
    steer::{Insert, Tables, Work},
};

/// `BPF_ANY` and `BPF_NOEXIST` of `bpf_map_update_elem`.
const ANY: u64 = 0;
const NOEXIST: u64 = 1;
/// The kernel's EEXIST, negated as helpers return it.
const EEXIST: i32 = -17;

#[map]
static LISTENERS_V4: HashMap<ListenerKey<V4>, Listener> =
    HashMap::with_max_entries(MAX_LISTENERS, 0);
#[map]
static LISTENERS_V6: HashMap<ListenerKey<V6>, Listener> =
    HashMap::with_max_entries(MAX_LISTENERS, 0);
#[map]
static SIEVE: Array<Sieve> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LISTENER_CACHE: Array<CachedListener> = Array::with_max_entries(CACHE_SLOTS, BPF_F_MMAPABLE);
/// The agent maps this into its memory and stores a decision with one instruction.
#[map]
static SELECTIONS: Array<Selection> = Array::with_max_entries(MAX_SERVICES, BPF_F_MMAPABLE);
/// The agent maps these too: thousands of ids in one go, and no call of the kernel.
#[map]
static RINGS: Array<Ring> = Array::with_max_entries(MAX_RINGS, BPF_F_MMAPABLE);
#[map]
static AFFINITY_V4: LruHashMap<AffinityKey<V4>, Affinity> =
    LruHashMap::with_max_entries(MAX_AFFINITIES, 0);
#[map]
static AFFINITY_V6: LruHashMap<AffinityKey<V6>, Affinity> =
    LruHashMap::with_max_entries(MAX_AFFINITIES, 0);
#[map]
static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(MAX_ENDPOINTS, 0);
/// Names are for the agent; no program reads them.
#[map]
static SERVICE_NAMES: Array<Name> = Array::with_max_entries(MAX_SERVICES, 0);
#[map]
static ENDPOINT_NAMES: Array<Name> = Array::with_max_entries(MAX_ENDPOINTS, 0);
#[map]
static FORWARD_V4: HashMap<FlowKey<V4>, ForwardFlow> = HashMap::with_max_entries(DEFAULT_FLOWS, 0);
#[map]
static FORWARD_V6: HashMap<FlowKey<V6>, ForwardFlow> = HashMap::with_max_entries(DEFAULT_FLOWS, 0);
#[map]
static REVERSE_V4: HashMap<FlowKey<V4>, ReverseFlow<V4>> =
    HashMap::with_max_entries(DEFAULT_FLOWS, 0);
#[map]
static REVERSE_V6: HashMap<FlowKey<V6>, ReverseFlow<V6>> =
    HashMap::with_max_entries(DEFAULT_FLOWS, 0);
#[map]
static RECENT_V4: Array<RecentSet<V4>> = Array::with_max_entries(V4::RECENT_SETS, BPF_F_MMAPABLE);
#[map]
static RECENT_V6: Array<RecentSet<V6>> = Array::with_max_entries(V6::RECENT_SETS, BPF_F_MMAPABLE);
#[map]
static SYNS_V4: Array<SynSet> = Array::with_max_entries(V4::RECENT_SETS, BPF_F_MMAPABLE);
#[map]
static SYNS_V6: Array<SynSet> = Array::with_max_entries(V6::RECENT_SETS, BPF_F_MMAPABLE);
#[map]
static MORE_V4: Array<MoreSet> = Array::with_max_entries(V4::RECENT_SETS, BPF_F_MMAPABLE);
#[map]
static MORE_V6: Array<MoreSet> = Array::with_max_entries(V6::RECENT_SETS, BPF_F_MMAPABLE);
#[map]
static SENDERS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_SENDERS, 0);
#[map]
static PORTS: Array<PortLine> = Array::with_max_entries(MAX_POOLS * LINES_A_POOL, BPF_F_MMAPABLE);
#[map]
static NODE: Array<Node> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static WORK_V4: PerCpuArray<Work<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static WORK_V6: PerCpuArray<Work<V6>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<V4>, FragmentTrack<V4>> =
    LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<V6>, FragmentTrack<V6>> =
    LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
static EP_COUNTERS: PerCpuArray<EndpointCounters> = PerCpuArray::with_max_entries(MAX_ENDPOINTS, 0);
#[map]
static SILENCES: Array<Silence> = Array::with_max_entries(MAX_ENDPOINTS, BPF_F_MMAPABLE);
#[map]
static REASON_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_REASONS, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
#[map]
static EVENT_GATES: PerCpuArray<EventGate> =
    PerCpuArray::with_max_entries(EventKind::ALL.len() as u32, 0);
/// When this CPU last sent a log message.
#[map]
static LOG_GATE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// For the agent only: interfaces to which it added the clsact qdisc.
#[map]
static QDISCS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// Counts a packet's reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASON_COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own word; programs of one CPU do not run concurrently in softirq.
        unsafe { *counter += 1 }
    }
}

/// This CPU's counters of an endpoint.
#[inline(always)]
fn counters(endpoint: u32) -> Option<&'static mut EndpointCounters> {
    // SAFETY: this CPU's own element, see `count`; each caller uses it for one addition.
    EP_COUNTERS
        .get_ptr_mut(endpoint)
        .map(|counters| unsafe { &mut *counters })
}

/// Counts a packet steered to an endpoint.
#[inline(always)]
pub fn count_forward(endpoint: u32, bytes: u64) {
    if let Some(counters) = counters(endpoint) {
        counters.forward_packets += 1;
        counters.forward_bytes += bytes;
    }
}

/// Counts a packet translated on its way back from an endpoint.
#[inline(always)]
pub fn count_reverse(endpoint: u32, bytes: u64) {
    if let Some(counters) = counters(endpoint) {
        counters.reverse_packets += 1;
        counters.reverse_bytes += bytes;
    }
}

/// Adds one to a word of this CPU from a process's context, where a program that sees
/// packets may interrupt.
#[inline(always)]
fn add_in_process(word: *mut u64) {
    // SAFETY: a word of map memory, aligned; `Shared` is transparent.
    unsafe { (*word.cast::<Shared<u64>>()).add(1) }
}

/// [`count`] in a process's context.
#[inline(always)]
pub fn count_in_process(reason: Reason) {
    if let Some(counter) = REASON_COUNTERS.get_ptr_mut(reason as u32) {
        add_in_process(counter);
    }
}

/// Counts a connection of the node's own that began at an endpoint.
#[inline(always)]
pub fn opened_in_process(endpoint: u32) {
    if let Some(counters) = EP_COUNTERS.get_ptr_mut(endpoint) {
        // SAFETY: map memory of this type; only the place is reckoned.
        add_in_process(unsafe { &raw mut (*counters).flows_opened });
    }
}

/// Counts one that ended.
#[inline(always)]
pub fn closed_in_process(endpoint: u32) {
    if let Some(counters) = EP_COUNTERS.get_ptr_mut(endpoint) {
        // SAFETY: as in `opened_in_process`.
        add_in_process(unsafe { &raw mut (*counters).flows_closed });
    }
}

/// CLOCK_MONOTONIC.
#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

/// May XDP programs send packets out of this interface, which is not their own?
#[inline(always)]
pub fn is_sender(ifindex: u32) -> bool {
    SENDERS.get_ptr(ifindex).is_some()
}

/// Sends the packet out of such an interface.
#[inline(always)]
pub fn send_by(ifindex: u32) -> u32 {
    // Not by a device map: before Linux 5.15 one whose entries have room for a program keeps
    // the program from being attached in generic mode.
    // SAFETY: only numbers are passed.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// See [`Node::may_send`].
#[inline(always)]
pub fn may_send() -> bool {
    NODE.get(0).is_some_and(|node| node.may_send.get() != 0)
}

/// Least time between two log messages of one CPU.
const LOG_GAP_NS: u64 = 1_000_000_000;

/// May this CPU send a log message now? At most one a second, and none costs
/// anything when the level chosen at load leaves it out.
#[inline(always)]
pub fn may_log() -> bool {
    let now = now_ns();
    let Some(last) = LOG_GATE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's own word, see `count`.
    let last = unsafe { &mut *last };
    let open = now.wrapping_sub(*last) >= LOG_GAP_NS;
    if open {
        *last = now;
    }
    open
}

/// The maps of the programs.
pub struct Maps;

/// What the two families have of their own.
trait FamilyMaps: Address {
    const LISTENERS: &'static HashMap<ListenerKey<Self>, Listener>;
    const FORWARD: &'static HashMap<FlowKey<Self>, ForwardFlow>;
    const REVERSE: &'static HashMap<FlowKey<Self>, ReverseFlow<Self>>;
    const RECENT: &'static Array<RecentSet<Self>>;
    const SYNS: &'static Array<SynSet>;
    const MORE: &'static Array<MoreSet>;
    const WORK: &'static PerCpuArray<Work<Self>>;
    fn source(node: &Node) -> &Self::Cells;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, FragmentTrack<Self>>;
    const AFFINITY: &'static LruHashMap<AffinityKey<Self>, Affinity>;
}

impl FamilyMaps for V4 {
    const LISTENERS: &'static HashMap<ListenerKey<Self>, Listener> = &LISTENERS_V4;
    const FORWARD: &'static HashMap<FlowKey<Self>, ForwardFlow> = &FORWARD_V4;
    const REVERSE: &'static HashMap<FlowKey<Self>, ReverseFlow<Self>> = &REVERSE_V4;
    const RECENT: &'static Array<RecentSet<Self>> = &RECENT_V4;
    const SYNS: &'static Array<SynSet> = &SYNS_V4;
    const MORE: &'static Array<MoreSet> = &MORE_V4;
    const WORK: &'static PerCpuArray<Work<Self>> = &WORK_V4;

    #[inline(always)]
    fn source(node: &Node) -> &Self::Cells {
        &node.source_v4
    }
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, FragmentTrack<Self>> = &FRAGMENTS_V4;
    const AFFINITY: &'static LruHashMap<AffinityKey<Self>, Affinity> = &AFFINITY_V4;
}

impl FamilyMaps for V6 {
    const LISTENERS: &'static HashMap<ListenerKey<Self>, Listener> = &LISTENERS_V6;
    const FORWARD: &'static HashMap<FlowKey<Self>, ForwardFlow> = &FORWARD_V6;
    const REVERSE: &'static HashMap<FlowKey<Self>, ReverseFlow<Self>> = &REVERSE_V6;
    const RECENT: &'static Array<RecentSet<Self>> = &RECENT_V6;
    const SYNS: &'static Array<SynSet> = &SYNS_V6;
    const MORE: &'static Array<MoreSet> = &MORE_V6;
    const WORK: &'static PerCpuArray<Work<Self>> = &WORK_V6;

    #[inline(always)]
    fn source(node: &Node) -> &Self::Cells {
        &node.source_v6
    }
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, FragmentTrack<Self>> = &FRAGMENTS_V6;
    const AFFINITY: &'static LruHashMap<AffinityKey<Self>, Affinity> = &AFFINITY_V6;
}

#[inline(always)]
fn insert_error(error: i32) -> Insert {
    if error == EEXIST {
        Insert::Exists
    } else {
        Insert::Full
    }
}

impl<A: FamilyMaps> Tables<A> for Maps {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    #[inline(always)]
    fn work(&self) -> Option<&mut Work<A>> {
        // SAFETY: this CPU's own element, see `count`; zeros are a valid value of it, and its one
        // user is the program that runs.
        A::WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }

    #[inline(always)]
    fn clock(&self) -> u32 {
        NODE.get(0).map_or(0, |node| node.clock.get())
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        NODE.get(0).map_or(0, |node| node.seed.get())
    }

    #[inline(always)]
    fn seed_and_clock(&self) -> (u64, u32) {
        NODE.get(0)
            .map_or((0, 0), |node| (node.seed.get(), node.clock.get()))
    }

    #[inline(always)]
    fn grant(&self) -> bool {
        NODE.get(0).is_some_and(Node::grant)
    }

    #[inline(always)]
    fn listens(&self, key: &ListenerKey<A>) -> bool {
        SIEVE.get(0).is_some_and(|sieve| sieve.may_have(key.bit()))
    }

    #[inline(always)]
    fn listener(&self, key: &ListenerKey<A>) -> Option<Listener> {
        let bit = key.bit();
        if !SIEVE.get(0)?.may_have(bit) {
            return None;
        }
        let slot = LISTENER_CACHE.get(CachedListener::slot(bit));
        if let Some(listener) = slot.and_then(|slot| slot.find(key)) {
            return Some(listener);
        }
        // SAFETY: map values live until the program returns; the copy may race with the agent's
        // update of one listener, whose two words both stay valid ids.
        A::LISTENERS.get_ptr(key).map(|value| unsafe { *value })
    }

    #[inline(always)]
    fn selection(&self, service: u32) -> Option<&Selection> {
        SELECTIONS.get(service)
    }

    #[inline(always)]
    fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        ENDPOINTS.get(id)
    }

    #[inline(always)]
    fn forward(&self, key: &FlowKey<A>) -> Option<&ForwardFlow> {
        // SAFETY: preallocated map memory, never freed while the program runs; see the trait for
        // what a racing reuse means.
        A::FORWARD.get_ptr(key).map(|value| unsafe { &*value })
    }

    #[inline(always)]
    fn reverse(&self, key: &FlowKey<A>) -> Option<&ReverseFlow<A>> {
        // SAFETY: as in `forward`.
        A::REVERSE.get_ptr(key).map(|value| unsafe { &*value })
    }

    #[inline(always)]
    fn put_forward(&self, key: &FlowKey<A>, flow: &ForwardFlow) -> Result<(), Insert> {
        A::FORWARD.insert(key, flow, ANY).map_err(insert_error)
    }

    #[inline(always)]
    fn put_reverse(
        &self,
        key: &FlowKey<A>,
        flow: &ReverseFlow<A>,
        replace: bool,
    ) -> Result<(), Insert> {
        let flags = if replace { ANY } else { NOEXIST };
        A::REVERSE.insert(key, flow, flags).map_err(insert_error)
    }

    #[inline(always)]
    fn remove_forward(&self, key: &FlowKey<A>) {
        // Not there is fine: another CPU was faster.
        let _ = A::FORWARD.remove(key);
    }

    #[inline(always)]
    fn remove_reverse(&self, key: &FlowKey<A>) -> bool {
        A::REVERSE.remove(key).is_ok()
    }

    #[inline(always)]
    fn source(&self) -> A {
        NODE.get(0)
            .map_or_else(A::default, |node| A::from_cells(A::source(node)))
    }

    #[inline(always)]
    fn ports(&self, number: u32) -> Option<&PortLine> {
        PORTS.get(number)
    }

    #[inline(always)]
    fn recent(&self, number: u32) -> Option<&RecentSet<A>> {
        A::RECENT.get(number)
    }

    #[inline(always)]
    fn syns(&self, number: u32) -> Option<&SynSet> {
        A::SYNS.get(number)
    }

    #[inline(always)]
    fn more(&self, number: u32) -> Option<&MoreSet> {
        A::MORE.get(number)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentTrack<A>> {
        // SAFETY: map values live until the program returns; a racing reuse of the entry can mix
        // two records, and then a fragment of neither packet is put together by its receiver.
        A::FRAGMENTS.get_ptr(key).map(|value| unsafe { *value })
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey<A>, track: &FragmentTrack<A>) {
        // An LRU map makes place; if even that fails the others pass, counted.
        let _ = A::FRAGMENTS.insert(key, track, ANY);
    }

    #[inline(always)]
    fn ring(&self, number: u32) -> Option<&Ring> {
        RINGS.get(number)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<A>) -> Option<&Affinity> {
        // SAFETY: as in `forward`.
        A::AFFINITY.get_ptr(key).map(|value| unsafe { &*value })
    }

    #[inline(always)]
    fn put_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        // An LRU map makes place; if even that fails the client goes where the ring says.
        let _ = A::AFFINITY.insert(key, affinity, ANY);
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        count(reason);
    }

    #[inline(always)]
    fn opened(&self, endpoint: u32) {
        if let Some(counters) = counters(endpoint) {
            counters.flows_opened += 1;
        }
    }

    #[inline(always)]
    fn closed(&self, endpoint: u32) {
        if let Some(counters) = counters(endpoint) {
            counters.flows_closed += 1;
        }
    }

    #[inline(always)]
    fn asked(&self, endpoint: u32) {
        if let Some(silence) = SILENCES.get(endpoint) {
            silence.asked(|| NODE.get(0).map_or(0, |node| node.tick.get()));
        }
    }

    #[inline(always)]
    fn answered(&self, endpoint: u32) {
        if let Some(silence) = SILENCES.get(endpoint) {
            silence.broken();
        }
    }

    #[inline(always)]
    fn event(&self, kind: EventKind, service: u32, endpoint: u32, client: A, client_port_be: u16) {
        emit(kind, service, endpoint, &client.mapped(), client_port_be);
    }
}

/// Sends an event unless this CPU sent one of its kind a moment ago. Not inlined:
/// it is rare, and four copies of it cost instructions in every program.
#[inline(never)]
fn emit(kind: EventKind, service: u32, endpoint: u32, client: &[u8; 16], client_port_be: u16) {
    let now = now_ns();
    let Some(gate) = EVENT_GATES.get_ptr_mut(kind as u32) else {
        return;
    };
    // SAFETY: this CPU's own element, see `count`.
    let gate = unsafe { &mut *gate };
    if now.wrapping_sub(gate.sent_ns) < EVENT_GAP_NS {
        gate.held_back += 1;
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(Reason::EventLost);
        return;
    };
    entry.write(Event {
        time_ns: now,
        kind: kind as u32,
        held_back: gate.held_back as u32,
        service,
        endpoint,
        client: *client,
        client_port_be,
        pad: 0,
        pad2: 0,
    });
    entry.submit(0);
    gate.sent_ns = now;
    gate.held_back = 0;
}
