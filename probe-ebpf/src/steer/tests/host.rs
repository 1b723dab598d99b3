//! Tables made of std's hash maps: one service, its endpoints and what steering keeps of flows.

use super::*;
use crate::abi::{
    Affinity, AffinityKey, FORWARD_NAT, FlowKey, ForwardFlow, FragmentKey, FragmentTrack,
    LISTENER_ENDPOINT, LISTENER_MAIN, LISTENER_SELECTION, MoreSet, PREVIOUS_RING, ReverseFlow,
    Ring, SLOT_ALONE, SLOT_ALONE_DIRECT, Selection, Shared, Silence, Straight, SynSet, seen,
};
use std::{
    boxed::Box,
    cell::{Cell, RefCell},
};

pub(super) const VIP: V4 = V4::from_bytes([10, 96, 0, 10]);
pub(super) const OTHER_VIP: V4 = V4::from_bytes([10, 96, 0, 11]);
pub(super) const CLIENT: V4 = V4::from_bytes([10, 0, 1, 2]);
pub(super) const SOURCE: V4 = V4::from_bytes([10, 0, 9, 9]);
pub(super) const MASTER: u32 = 3;
pub(super) const BACKUP: u32 = 4;
pub(super) const THIRD: u32 = 5;
pub(super) const MASTER_ADDR: V4 = V4::from_bytes([10, 0, 2, 2]);
pub(super) const BACKUP_ADDR: V4 = V4::from_bytes([10, 0, 3, 2]);
const THIRD_ADDR: V4 = V4::from_bytes([10, 0, 4, 2]);

/// Values are leaked, so references stay valid as those of map memory do.
pub(super) struct Host {
    pub(super) listeners: HashMap<ListenerKey<V4>, Listener>,
    pub(super) selection: Selection,
    pub(super) endpoints: HashMap<u32, Endpoint>,
    pub(super) forward: RefCell<HashMap<FlowKey<V4>, &'static ForwardFlow>>,
    pub(super) reverse: RefCell<HashMap<FlowKey<V4>, &'static ReverseFlow<V4>>>,
    fragments: RefCell<HashMap<FragmentKey<V4>, FragmentTrack<V4>>>,
    pub(super) rings: HashMap<u32, Ring>,
    pub(super) affinities: RefCell<HashMap<AffinityKey<V4>, &'static Affinity>>,
    recent: Vec<RecentSet<V4>>,
    syns: Vec<SynSet>,
    more: Vec<MoreSet>,
    pub(super) ports: Vec<PortLine>,
    pub(super) work: *mut Work<V4>,
    pub(super) now_ns: Cell<u64>,
    pub(super) grants: Cell<u32>,
    pub(super) capacity: usize,
    pub(super) counted: RefCell<Vec<Reason>>,
    pub(super) events: RefCell<Vec<EventKind>>,
    pub(super) silences: HashMap<u32, Silence>,
    pub(super) tick: Cell<u32>,
    pub(super) open: Cell<i64>,
}

pub(super) fn endpoint(addr: V4, port: u16, state: u32) -> Endpoint {
    Endpoint {
        v6_be: V6::default(),
        v4_be: addr,
        port_be: port.to_be(),
        families: FAMILY_V4,
        tier: 0,
        service: 1,
        state,
        forward: FORWARD_NAT,
        pool: 0,
        next: NO_ENDPOINT,
        head: NO_ENDPOINT,
        below: NO_ENDPOINT,
    }
}

pub(super) fn listener_key(addr: V4, port: u16) -> ListenerKey<V4> {
    ListenerKey {
        addr_be: addr,
        port_be: port.to_be(),
        protocol: TCP,
        pad: 0,
    }
}

pub(super) fn steer_to(target: u32) -> Decision {
    Decision {
        action: Action::Steer,
        flags: 0,
        tier: 0,
        target,
    }
}

/// By the slot alone wherever that may be.
pub(super) fn alone(target: u32) -> Decision {
    Decision {
        flags: SLOT_ALONE | SLOT_ALONE_DIRECT,
        ..steer_to(target)
    }
}

pub(super) fn spread_over(ring: u32) -> Decision {
    Decision {
        action: Action::Spread,
        flags: SLOT_ALONE_DIRECT,
        tier: 0,
        target: ring,
    }
}

/// A ring whose places belong to these endpoints in turn.
pub(super) fn ring_of(ids: &[u32]) -> Ring {
    Ring::new(core::array::from_fn(|place| ids[place % ids.len()] as u16))
}

impl Host {
    pub(super) fn new() -> Self {
        let follow = Listener {
            service: 1,
            endpoint: 0,
            kind: LISTENER_SELECTION,
            flags: LISTENER_MAIN,
        };
        let direct = Listener {
            service: 1,
            endpoint: BACKUP,
            kind: LISTENER_ENDPOINT,
            flags: 0,
        };
        let own = |endpoint| Listener {
            service: 1,
            endpoint,
            kind: LISTENER_OWN,
            flags: 0,
        };
        let host = Self {
            listeners: HashMap::from([
                (listener_key(VIP, 80), follow),
                (listener_key(OTHER_VIP, 80), direct),
                (listener_key(MASTER_ADDR, 8080), own(MASTER)),
                (listener_key(BACKUP_ADDR, 8081), own(BACKUP)),
            ]),
            selection: Selection {
                previous: Shared::new(NO_ENDPOINT),
                ..Selection::default()
            },
            endpoints: HashMap::from([
                (MASTER, endpoint(MASTER_ADDR, 8080, ENDPOINT_UP)),
                (BACKUP, endpoint(BACKUP_ADDR, 8081, ENDPOINT_UP)),
            ]),
            forward: RefCell::default(),
            reverse: RefCell::default(),
            fragments: RefCell::default(),
            rings: HashMap::new(),
            affinities: RefCell::default(),
            recent: std::iter::repeat_with(RecentSet::default)
                .take(V4::RECENT_SETS as usize)
                .collect(),
            syns: std::iter::repeat_with(SynSet::default)
                .take(V4::RECENT_SETS as usize)
                .collect(),
            more: std::iter::repeat_with(MoreSet::default)
                .take(V4::RECENT_SETS as usize)
                .collect(),
            ports: std::iter::repeat_with(PortLine::default)
                .take(LINES_A_POOL as usize)
                .collect(),
            // SAFETY: zeros are a valid value, as in map memory.
            work: Box::into_raw(unsafe { Box::<Work<V4>>::new_zeroed().assume_init() }),
            now_ns: Cell::new(1_000_000_000),
            grants: Cell::new(u32::MAX),
            capacity: 100,
            counted: RefCell::default(),
            events: RefCell::default(),
            silences: (0..8).map(|id| (id, Silence::default())).collect(),
            tick: Cell::new(0),
            open: Cell::new(0),
        };
        host.decide(steer_to(MASTER));
        host
    }

    pub(super) fn decide(&self, decision: Decision) {
        let before = Decision::unpack(self.selection.decision.get());
        if (before.action, before.target) != (decision.action, decision.target) {
            match before.action {
                Action::Steer => self.selection.previous.set(before.target),
                Action::Spread => {
                    let ring = before.target | PREVIOUS_RING;
                    self.selection.previous.set(ring);
                }
                Action::Pass | Action::Refuse => {}
            }
        }
        self.selection.decision.set(decision.pack());
        let straight = Decision::is_alone(decision.pack()).then(|| {
            let endpoint = &self.endpoints[&decision.target];
            Straight {
                addr_be: endpoint.v4_be.0,
                port_be: endpoint.port_be,
                endpoint: decision.target,
            }
        });
        self.selection
            .straight_v4
            .set(straight.map_or(0, Straight::pack));
    }

    pub(super) fn mark(&mut self, id: u32, state: u32) {
        self.endpoints.get_mut(&id).unwrap().state = state;
    }

    pub(super) fn flows(&self) -> (usize, usize) {
        (self.forward.borrow().len(), self.reverse.borrow().len())
    }
}

impl Tables<V4> for Host {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn listens(&self, key: &ListenerKey<V4>) -> bool {
        // The agent keeps the own addresses of all endpoints there.
        let own =
            |endpoint: &Endpoint| endpoint.v4_be == key.addr_be && endpoint.port_be == key.port_be;
        self.listeners.contains_key(key) || self.endpoints.values().any(own)
    }
    fn listener(&self, key: &ListenerKey<V4>) -> Option<Listener> {
        self.listeners.get(key).copied()
    }
    fn work(&self) -> Option<&mut Work<V4>> {
        // SAFETY: as in the kernel, the decision that runs is its one user.
        Some(unsafe { &mut *self.work })
    }
    fn clock(&self) -> u32 {
        seen(self.now_ns.get())
    }
    fn seed(&self) -> u64 {
        0x1234_5678_9abc_def0
    }
    fn seed_and_clock(&self) -> (u64, u32) {
        (self.seed(), self.clock())
    }
    fn grant(&self) -> bool {
        let left = self.grants.get();
        self.grants.set(left.saturating_sub(1));
        left > 0
    }
    fn selection(&self, service: u32) -> Option<&Selection> {
        (service == 1).then_some(&self.selection)
    }
    fn source(&self) -> V4 {
        SOURCE
    }
    fn ports(&self, number: u32) -> Option<&PortLine> {
        self.ports.get(number as usize)
    }
    fn recent(&self, number: u32) -> Option<&RecentSet<V4>> {
        self.recent.get(number as usize)
    }
    fn syns(&self, number: u32) -> Option<&SynSet> {
        self.syns.get(number as usize)
    }
    fn more(&self, number: u32) -> Option<&MoreSet> {
        self.more.get(number as usize)
    }
    fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        self.endpoints.get(&id)
    }
    fn forward(&self, key: &FlowKey<V4>) -> Option<&ForwardFlow> {
        self.forward.borrow().get(key).copied()
    }
    fn reverse(&self, key: &FlowKey<V4>) -> Option<&ReverseFlow<V4>> {
        self.reverse.borrow().get(key).copied()
    }
    fn put_forward(&self, key: &FlowKey<V4>, flow: &ForwardFlow) -> Result<(), Insert> {
        let mut map = self.forward.borrow_mut();
        if !map.contains_key(key) && map.len() >= self.capacity {
            return Err(Insert::Full);
        }
        map.insert(*key, Box::leak(Box::new(flow.clone())));
        Ok(())
    }
    fn put_reverse(
        &self,
        key: &FlowKey<V4>,
        flow: &ReverseFlow<V4>,
        replace: bool,
    ) -> Result<(), Insert> {
        let mut map = self.reverse.borrow_mut();
        if map.contains_key(key) && !replace {
            return Err(Insert::Exists);
        }
        map.insert(*key, Box::leak(Box::new(flow.clone())));
        Ok(())
    }
    fn remove_forward(&self, key: &FlowKey<V4>) {
        self.forward.borrow_mut().remove(key);
    }
    fn remove_reverse(&self, key: &FlowKey<V4>) -> bool {
        self.reverse.borrow_mut().remove(key).is_some()
    }
    fn fragment(&self, key: &FragmentKey<V4>) -> Option<FragmentTrack<V4>> {
        self.fragments.borrow().get(key).copied()
    }
    fn put_fragment(&self, key: &FragmentKey<V4>, track: &FragmentTrack<V4>) {
        self.fragments.borrow_mut().insert(*key, *track);
    }
    fn ring(&self, number: u32) -> Option<&Ring> {
        self.rings.get(&number)
    }
    fn affinity(&self, key: &AffinityKey<V4>) -> Option<&Affinity> {
        self.affinities.borrow().get(key).copied()
    }
    fn put_affinity(&self, key: &AffinityKey<V4>, affinity: &Affinity) {
        let mut map = self.affinities.borrow_mut();
        map.insert(*key, Box::leak(Box::new(affinity.clone())));
    }
    fn count(&self, reason: Reason) {
        self.counted.borrow_mut().push(reason);
    }
    fn opened(&self, _endpoint: u32) {
        self.open.set(self.open.get() + 1);
    }
    fn closed(&self, _endpoint: u32) {
        self.open.set(self.open.get() - 1);
    }
    fn asked(&self, endpoint: u32) {
        self.silences[&endpoint].asked(|| self.tick.get());
    }
    fn answered(&self, endpoint: u32) {
        self.silences[&endpoint].broken();
    }
    fn event(&self, kind: EventKind, _: u32, _: u32, _: V4, _: u16) {
        self.events.borrow_mut().push(kind);
    }
}

impl Host {
    /// Three endpoints share the tier by ring 1.
    pub(super) fn shared() -> Self {
        let mut host = Self::new();
        let third = endpoint(THIRD_ADDR, 8080, ENDPOINT_UP);
        host.endpoints.insert(THIRD, third);
        host.rings.insert(1, ring_of(&[MASTER, BACKUP, THIRD]));
        host.decide(spread_over(1));
        host
    }

    pub(super) fn keep_clients(&self, units: u32) {
        self.selection.affinity.set(units);
    }

    /// The endpoint answers whatever was sent to it.
    pub(super) fn answers(&self, sent: &Segment<V4>, flags: u8) -> u32 {
        let Verdict::Translate(there, id) = forward(self, sent) else {
            panic!("not steered");
        };
        let mut back = segment((there.addr_be, 0), (sent.src_be, 0), flags);
        back.src_port_be = there.port_be;
        back.dst_port_be = there.client_port_be;
        back.protocol = sent.protocol;
        assert_eq!(goes_to(reverse(self, &back)), id);
        id
    }

    pub(super) fn later(&self, units: u64) {
        self.now_ns.set(self.now_ns.get() + (units << 30));
    }
}

/// The master behind full NAT.
pub(super) fn full_nat() -> Host {
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().forward = FORWARD_FULL_NAT;
    host
}

pub(super) fn follow_udp(host: &mut Host) {
    let listener = host.listeners[&listener_key(VIP, 80)];
    let key = ListenerKey {
        protocol: UDP,
        ..listener_key(VIP, 80)
    };
    let side = Listener {
        flags: 0,
        ..listener
    };
    host.listeners.insert(key, side);
}
