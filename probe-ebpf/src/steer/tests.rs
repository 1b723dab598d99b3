//! Steering over tables made of std's hash maps.

use super::*;
use crate::abi::{
    Action, Address, Affinity, AffinityKey, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, ENDPOINT_UP,
    Endpoint, EventKind, FAMILY_V4, FAMILY_V6, FLOW_CONFIRMED, FLOW_ENDED, FLOW_FIN, FORWARD_DSR,
    FORWARD_FULL_NAT, FORWARD_NAT, FRAGMENT_LIFE, FlowKey, ForwardFlow, FragmentKey, FragmentTrack,
    KEEP_FLOWS_OF_DOWN, LINES_A_POOL, LISTENER_ENDPOINT, LISTENER_MAIN, LISTENER_OWN,
    LISTENER_SELECTION, Listener, ListenerKey, MoreSet, NO_ENDPOINT, NO_TIER, PORT_RESTING,
    PORT_USED, PREVIOUS_RING, PortLine, RING_SIZE, RecentSet, ReverseFlow, Ring, SLOT_ALONE,
    SLOT_ALONE_DIRECT, Selection, Shared, Silence, Straight, SynSet, V4, V6, seen,
};
use crate::packet::parse::{ACK, FIN, RST, SYN, TCP, UDP};
use proptest::prelude::*;
use std::{
    boxed::Box,
    cell::{Cell, RefCell},
    collections::HashMap,
    vec::Vec,
};

mod redispatch;
mod silence;

const VIP: V4 = V4::from_bytes([10, 96, 0, 10]);
const OTHER_VIP: V4 = V4::from_bytes([10, 96, 0, 11]);
const CLIENT: V4 = V4::from_bytes([10, 0, 1, 2]);
const SOURCE: V4 = V4::from_bytes([10, 0, 9, 9]);
const MASTER: u32 = 3;
const BACKUP: u32 = 4;
const MASTER_ADDR: V4 = V4::from_bytes([10, 0, 2, 2]);
const BACKUP_ADDR: V4 = V4::from_bytes([10, 0, 3, 2]);

/// Values are leaked, so references stay valid as those of map memory do.
struct Host {
    listeners: HashMap<ListenerKey<V4>, Listener>,
    selection: Selection,
    endpoints: HashMap<u32, Endpoint>,
    forward: RefCell<HashMap<FlowKey<V4>, &'static ForwardFlow>>,
    reverse: RefCell<HashMap<FlowKey<V4>, &'static ReverseFlow<V4>>>,
    fragments: RefCell<HashMap<FragmentKey<V4>, FragmentTrack<V4>>>,
    rings: HashMap<u32, Ring>,
    affinities: RefCell<HashMap<AffinityKey<V4>, &'static Affinity>>,
    recent: Vec<RecentSet<V4>>,
    syns: Vec<SynSet>,
    more: Vec<MoreSet>,
    ports: Vec<PortLine>,
    work: *mut Work<V4>,
    now_ns: Cell<u64>,
    grants: Cell<u32>,
    capacity: usize,
    counted: RefCell<Vec<Reason>>,
    events: RefCell<Vec<EventKind>>,
    silences: HashMap<u32, Silence>,
    tick: Cell<u32>,
    open: Cell<i64>,
}

fn endpoint(addr: V4, port: u16, state: u32) -> Endpoint {
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

fn listener_key(addr: V4, port: u16) -> ListenerKey<V4> {
    ListenerKey {
        addr_be: addr,
        port_be: port.to_be(),
        protocol: TCP,
        pad: 0,
    }
}

fn steer_to(target: u32) -> Decision {
    Decision {
        action: Action::Steer,
        flags: 0,
        tier: 0,
        target,
    }
}

/// By the slot alone wherever that may be.
fn alone(target: u32) -> Decision {
    Decision {
        flags: SLOT_ALONE | SLOT_ALONE_DIRECT,
        ..steer_to(target)
    }
}

impl Host {
    fn new() -> Self {
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

    fn decide(&self, decision: Decision) {
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

    fn mark(&mut self, id: u32, state: u32) {
        self.endpoints.get_mut(&id).unwrap().state = state;
    }

    fn flows(&self) -> (usize, usize) {
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

fn segment(src: (V4, u16), dst: (V4, u16), flags: u8) -> Segment<V4> {
    Segment {
        l3: 14,
        l4: 34,
        protocol: TCP,
        src_be: src.0,
        dst_be: dst.0,
        src_port_be: src.1.to_be(),
        dst_port_be: dst.1.to_be(),
        seq: 1000,
        ack: if flags & ACK != 0 { 5000 } else { 0 },
        flags,
        options: 0,
        window_be: 0,
        payload: 0,
        end: 54,
        fragmented: false,
        id_be: 0,
    }
}

fn from_client(flags: u8) -> Segment<V4> {
    segment((CLIENT, 40000), (VIP, 80), flags)
}

fn from_master(flags: u8) -> Segment<V4> {
    segment((MASTER_ADDR, 8080), (CLIENT, 40000), flags)
}

fn forward(host: &Host, segment: &Segment<V4>) -> Verdict<V4> {
    super::forward(host, &[][..], segment).verdict()
}

fn reverse(host: &Host, segment: &Segment<V4>) -> Verdict<V4> {
    super::reverse(host, segment).verdict()
}

fn goes_to(verdict: Verdict<V4>) -> u32 {
    match verdict {
        Verdict::Translate(_, id) => id,
        other => panic!("not steered: {other:?}"),
    }
}

fn connect(host: &Host) {
    assert_eq!(goes_to(forward(host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(host, &from_master(SYN | ACK))), MASTER);
    assert_eq!(goes_to(forward(host, &from_client(ACK))), MASTER);
}

#[test]
fn a_connection_is_translated_both_ways() {
    let host = Host::new();
    let Verdict::Translate(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not steered");
    };
    assert_eq!(there.addr_be, MASTER_ADDR);
    assert_eq!(u16::from_be(there.port_be), 8080);
    assert_eq!(u16::from_be(there.client_port_be), 40000);
    let Verdict::Translate(back, MASTER) = reverse(&host, &from_master(SYN | ACK)) else {
        panic!("not steered");
    };
    assert_eq!(back.addr_be, VIP);
    assert_eq!(u16::from_be(back.port_be), 80);
    assert_eq!(u16::from_be(back.client_port_be), 40000);
}

#[test]
fn what_is_for_nobody_passes() {
    let host = Host::new();
    let elsewhere = segment((CLIENT, 40000), (VIP, 81), SYN);
    assert_eq!(
        forward(&host, &elsewhere),
        Verdict::Pass(Reason::NotListener)
    );
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::NotSteered)
    );
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn a_switch_moves_new_connections_and_leaves_old_ones() {
    let host = Host::new();
    connect(&host);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    let new = segment((CLIENT, 40001), (VIP, 80), SYN);
    assert_eq!(goes_to(forward(&host, &new)), BACKUP);
}

#[test]
fn an_unanswered_syn_is_steered_anew_after_a_switch() {
    let host = Host::new();
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    assert_eq!(host.flows(), (0, 0));
    // The master's late answer belongs to no flow any more.
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Reset(Reason::LateAnswer)
    );
}

#[test]
fn a_syn_on_a_live_flow_goes_to_its_endpoint_to_be_challenged() {
    let host = Host::new();
    connect(&host);
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
}

#[test]
fn flows_of_a_down_endpoint_are_reset_unless_kept() {
    let mut host = Host::new();
    connect(&host);
    host.mark(MASTER, ENDPOINT_DOWN);
    host.decide(Decision {
        flags: KEEP_FLOWS_OF_DOWN,
        ..steer_to(BACKUP)
    });
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    host.decide(steer_to(BACKUP));
    assert_eq!(
        forward(&host, &from_client(ACK)),
        Verdict::Reset(Reason::EndpointDown)
    );
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(*host.events.borrow(), [EventKind::FlowReset]);
    assert_eq!(host.open.get(), 0);
    // The port may be used again at once.
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
}

/// Its time to end by itself is over: `keep` is for endpoints that are down.
#[test]
fn flows_of_a_drained_endpoint_are_reset_even_if_kept() {
    for flags in [0, KEEP_FLOWS_OF_DOWN] {
        let mut host = Host::new();
        connect(&host);
        host.decide(Decision {
            flags,
            ..steer_to(BACKUP)
        });
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        host.mark(MASTER, ENDPOINT_DRAINED);
        for _ in 0..3 {
            assert_eq!(
                forward(&host, &from_client(ACK)),
                Verdict::Reset(Reason::EndpointDown)
            );
        }
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    }
}

/// The endpoint is alive, and would send to a client that has gone for as long as its
/// kernel repeats: it is told the same.
#[test]
fn a_drained_endpoint_hears_of_the_end() {
    for decision in [steer_to(BACKUP), alone(BACKUP)] {
        let mut host = Host::new();
        connect(&host);
        host.decide(steer_to(BACKUP));
        host.mark(MASTER, ENDPOINT_DRAINED);
        assert_eq!(
            forward(&host, &from_client(ACK)),
            Verdict::Reset(Reason::EndpointDown)
        );
        host.decide(decision);
        assert_eq!(
            reverse(&host, &from_master(ACK)),
            Verdict::Reset(Reason::ClientGone)
        );
        // What its client says of a segment that acknowledged nothing was not meant for it.
        let mut answer = from_client(RST | ACK);
        answer.seq = 0;
        assert_eq!(forward(&host, &answer), Verdict::Pass(Reason::StrayReset));
        // If its client says so itself, that reaches it too.
        assert_eq!(goes_to(forward(&host, &from_client(RST))), MASTER);
        // Another RST of nobody's is left alone.
        let stray = segment((CLIENT, 40_001), (VIP, 80), RST);
        assert_eq!(forward(&host, &stray), Verdict::Pass(Reason::StrayReset));
    }
}

#[test]
fn a_direct_listener_reaches_its_endpoint_whatever_happens() {
    for state in [ENDPOINT_DOWN, ENDPOINT_DRAINED] {
        direct_listener_with_an_endpoint_that_is(state);
    }
}

fn direct_listener_with_an_endpoint_that_is(state: u32) {
    let mut host = Host::new();
    host.mark(BACKUP, state);
    for decision in [
        steer_to(MASTER),
        Decision {
            action: Action::Refuse,
            flags: 0,
            tier: 0,
            target: 0,
        },
    ] {
        host.decide(decision);
        let direct = segment((CLIENT, 40000), (OTHER_VIP, 80), SYN);
        assert_eq!(goes_to(forward(&host, &direct)), BACKUP);
        let data = segment((CLIENT, 40000), (OTHER_VIP, 80), ACK);
        assert_eq!(goes_to(forward(&host, &data)), BACKUP);
    }
}

#[test]
fn refusal_and_indecision() {
    let host = Host::new();
    host.decide(Decision {
        action: Action::Refuse,
        flags: 0,
        tier: 0,
        target: 0,
    });
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Reset(Reason::Refused)
    );
    assert_eq!(
        forward(&host, &from_client(RST)),
        Verdict::Pass(Reason::StrayReset)
    );
    host.decide(Decision::unpack(0));
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Pass(Reason::Undecided)
    );
    host.decide(steer_to(99));
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Pass(Reason::Undecided)
    );
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn an_endpoint_without_an_address_of_the_family_refuses() {
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().families = FAMILY_V6;
    assert_eq!(
        forward(&host, &from_client(SYN)),
        Verdict::Reset(Reason::NoAddress)
    );
}

#[test]
fn an_orderly_close_forgets_the_flow_with_the_last_acknowledgment() {
    for client_first in [true, false] {
        let host = Host::new();
        connect(&host);
        let mut client_fin = from_client(FIN | ACK);
        client_fin.seq = 100;
        client_fin.ack = if client_first { 200 } else { 201 };
        let mut master_fin = from_master(FIN | ACK);
        master_fin.seq = 200;
        master_fin.ack = if client_first { 101 } else { 100 };
        let mut last;
        if client_first {
            forward(&host, &client_fin);
            reverse(&host, &master_fin);
            last = from_client(ACK);
            for ack in [200, 201] {
                last.ack = ack;
                assert_eq!(goes_to(forward(&host, &last)), MASTER);
            }
        } else {
            reverse(&host, &master_fin);
            forward(&host, &client_fin);
            assert_eq!(host.flows(), (1, 1), "the last acknowledgment is to come");
            last = from_master(ACK);
            last.ack = 101;
            assert_eq!(goes_to(reverse(&host, &last)), MASTER);
        }
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(host.open.get(), 0);
    }
}

#[test]
fn resets_of_either_side_forget_the_flow() {
    let host = Host::new();
    connect(&host);
    assert_eq!(goes_to(forward(&host, &from_client(RST))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    connect(&host);
    assert_eq!(goes_to(reverse(&host, &from_master(RST))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    assert!(host.events.borrow().is_empty(), "nobody was refused");
}

#[test]
fn a_refused_syn_is_told() {
    let host = Host::new();
    forward(&host, &from_client(SYN));
    let refusal = Segment {
        ack: 1001,
        ..from_master(RST | ACK)
    };
    assert_eq!(goes_to(reverse(&host, &refusal)), MASTER);
    assert_eq!(*host.events.borrow(), [EventKind::EndpointRefused]);
    assert_eq!(host.flows(), (0, 0));
    // Told once, translated as often as it comes.
    assert_eq!(goes_to(reverse(&host, &refusal)), MASTER);
    assert_eq!(host.events.borrow().len(), 1);
}

#[test]
fn mid_connection_segments_take_up_lost_flows() {
    let host = Host::new();
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(*host.counted.borrow(), [Reason::Adopted]);
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
}

#[test]
fn two_listeners_of_one_endpoint_share_a_client_port() {
    let mut host = Host::new();
    host.decide(steer_to(BACKUP));
    host.endpoints.get_mut(&BACKUP).unwrap().tier = 1;
    let one = from_client(SYN);
    let two = segment((CLIENT, 40000), (OTHER_VIP, 80), SYN);
    let Verdict::Translate(first, BACKUP) = forward(&host, &one) else {
        panic!("not steered");
    };
    let Verdict::Translate(second, BACKUP) = forward(&host, &two) else {
        panic!("not steered");
    };
    assert_ne!(first.client_port_be, second.client_port_be);
    assert_eq!(*host.counted.borrow(), [Reason::PortChanged]);
    for (port_be, vip) in [
        (first.client_port_be, VIP),
        (second.client_port_be, OTHER_VIP),
    ] {
        let answer = segment(
            (BACKUP_ADDR, 8081),
            (CLIENT, u16::from_be(port_be)),
            SYN | ACK,
        );
        let Verdict::Translate(back, BACKUP) = reverse(&host, &answer) else {
            panic!("not steered");
        };
        assert_eq!(back.addr_be, vip);
        assert_eq!(u16::from_be(back.client_port_be), 40000);
    }
}

#[test]
fn full_tables_refuse_nobody_and_hold_no_half_flow() {
    for decision in [steer_to(MASTER), alone(MASTER)] {
        let mut host = Host::new();
        host.decide(decision);
        host.capacity = 1;
        connect(&host);
        let there = |flags| segment((CLIENT, 40001), (VIP, 80), flags);
        let back = |flags| segment((MASTER_ADDR, 8080), (CLIENT, 40001), flags);
        for _ in 0..2 {
            assert_eq!(goes_to(forward(&host, &there(SYN))), MASTER);
            assert_eq!(goes_to(reverse(&host, &back(SYN | ACK))), MASTER);
            assert_eq!(host.events.borrow()[0], EventKind::TableFull);
            for _ in 0..3 {
                assert_eq!(goes_to(forward(&host, &there(ACK))), MASTER);
                assert_eq!(goes_to(reverse(&host, &back(ACK))), MASTER);
            }
            assert_eq!(goes_to(forward(&host, &there(RST))), MASTER);
        }
        assert!(host.counted.borrow().contains(&Reason::TableFull));
        assert_eq!(host.flows(), (1, 1));
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        // Where there is room again, the flow gets its entries.
        host.capacity = 2;
        assert_eq!(goes_to(forward(&host, &there(SYN))), MASTER);
        assert_eq!(goes_to(reverse(&host, &back(ACK))), MASTER);
        assert_eq!(host.flows(), (2, 2));
    }
}

#[test]
fn forged_syns_get_so_many_entries_and_clients_get_theirs() {
    let host = Host::new();
    host.grants.set(1);
    forward(&host, &segment((V4(1), 1), (VIP, 80), SYN));
    reverse(&host, &segment((MASTER_ADDR, 8080), (V4(1), 1), SYN | ACK));
    assert_eq!(host.flows(), (1, 1));
    host.forward.borrow_mut().clear();
    host.reverse.borrow_mut().clear();
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    // The endpoint has heard more of the client.
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
    assert_eq!(host.flows(), (1, 1));
}

/// The client's part of the handshake makes the entries, so that nothing depends on the
/// note, which a flood overwrites.
#[test]
fn without_an_entry_the_way_by_the_slot_alone_ends() {
    let host = Host::new();
    host.decide(alone(MASTER));
    host.grants.set(0);
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(*host.counted.borrow(), [Reason::TableFull]);
    assert_ne!(host.selection.exceptions.get(), 0);
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(host.flows(), (1, 1));
    for n in 0..100_000u32 {
        let client = V4(n.wrapping_mul(0x9e37_79b9));
        forward(&host, &segment((client, 40000), (VIP, 80), SYN));
    }
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
}

/// The endpoint repeats its SYN-ACK, and a flood has overwritten the note: it comes to the client
/// as from somewhere else, whose kernel refuses it. The endpoint must not hear that: the client
/// has a connection with it.
#[test]
fn what_a_client_says_to_an_answer_without_a_note_does_not_reach_the_endpoint() {
    let host = Host::new();
    let other = |flags| segment((CLIENT, 40001), (MASTER_ADDR, 8080), flags);
    forward(&host, &other(SYN));
    // While all flows have room, a RST that no entry knows is somebody's own business.
    let passes = Verdict::Pass(Reason::Direct);
    assert_eq!(forward(&host, &direct(RST)), passes);
    host.grants.set(0);
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    // A connection of the endpoint's own address that has a note is that client's to end.
    assert_eq!(forward(&host, &other(RST)), passes);
    for n in 0..100_000u32 {
        let client = V4(n.wrapping_mul(0x9e37_79b9));
        forward(&host, &segment((client, 40000), (VIP, 80), SYN));
    }
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::NotSteered)
    );
    assert_eq!(
        forward(&host, &direct(RST)),
        Verdict::Drop(Reason::MisdirectedReset)
    );
    // A process that ends its connection says so with an acknowledgment.
    assert_eq!(forward(&host, &direct(RST | ACK)), passes);
    // What the client says then makes the flow known.
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
}

/// A client that speaks makes itself known again, whoever took its note's place.
#[test]
fn in_full_tables_each_of_the_clients_segments_renews_the_note() {
    let mut host = Host::new();
    host.decide(alone(MASTER));
    host.capacity = 0;
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    assert_eq!(goes_to(reverse(&host, &from_master(SYN | ACK))), MASTER);
    for _ in 0..3 {
        for n in 0..100_000u32 {
            let client = V4(n.wrapping_mul(0x9e37_79b9));
            forward(&host, &segment((client, 40000), (VIP, 80), SYN));
        }
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
        assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
    }
}

#[test]
fn forged_datagrams_leave_room() {
    let mut host = Host::new();
    let key = ListenerKey {
        protocol: UDP,
        ..listener_key(VIP, 80)
    };
    let listener = host.listeners[&listener_key(VIP, 80)];
    host.listeners.insert(key, listener);
    host.grants.set(2);
    let datagram = |client| Segment {
        protocol: UDP,
        ..segment((V4(client), 53), (VIP, 80), 0)
    };
    for client in 1..5 {
        assert_eq!(goes_to(forward(&host, &datagram(client))), MASTER);
    }
    assert_eq!(host.flows(), (2, 2));
    // The answer shows that somebody wants it.
    let answer = Segment {
        protocol: UDP,
        ..segment((MASTER_ADDR, 8080), (V4(4), 53), 0)
    };
    assert_eq!(goes_to(reverse(&host, &answer)), MASTER);
    assert_eq!(host.flows(), (3, 3));
}

#[test]
fn a_flood_of_syns_touches_no_entry() {
    let host = Host::new();
    host.decide(alone(MASTER));
    connect(&host);
    for n in 0..100_000u32 {
        let client = V4(n.wrapping_mul(0x9e37_79b9));
        let syn = segment((client, 40000), (VIP, 80), SYN);
        assert_eq!(goes_to(forward(&host, &syn)), MASTER);
    }
    assert_eq!(host.flows(), (1, 1));
    assert_eq!(goes_to(reverse(&host, &from_master(ACK))), MASTER);
}

#[test]
fn two_syns_of_one_set_are_both_remembered_and_the_older_makes_place() {
    let host = Host::new();
    let number = |client| RecentSet::number(host.seed(), client, 1, MASTER_ADDR, 8080_u16.to_be());
    let mut of_one_set = (0..).map(V4).filter(|client| number(*client) == 7);
    let clients: Vec<V4> = of_one_set.by_ref().take(3).collect();
    let syn = |client| segment((client, u16::from_be(1)), (VIP, 80), SYN);
    let known = |client| {
        let answer = segment((MASTER_ADDR, 8080), (client, u16::from_be(1)), RST);
        reverse(&host, &answer) != Verdict::Pass(Reason::NotSteered)
    };
    for client in &clients {
        forward(&host, &syn(*client));
        assert!(known(*client));
    }
    let remembered: Vec<_> = clients.iter().map(|client| known(*client)).collect();
    assert_eq!(remembered, [false, true, true]);
    // Who repeats a SYN takes nobody's place.
    forward(&host, &syn(clients[2]));
    forward(&host, &syn(clients[2]));
    assert!(known(clients[1]));
}

#[test]
fn by_the_slot_alone_nothing_is_written_between_handshake_and_end() {
    let host = Host::new();
    host.decide(alone(MASTER));
    connect(&host);
    let before = host.forward.borrow().clone();
    host.now_ns.set(host.now_ns.get() + (100 << 30));
    for _ in 0..10 {
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    }
    let after = host.forward.borrow().clone();
    for (key, flow) in before {
        assert_eq!(flow.seen.get(), after[&key].seen.get());
    }
    // A lost entry is not missed on the way there.
    host.forward.borrow_mut().clear();
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(host.flows().0, 0);
}

#[test]
fn a_changed_port_ends_the_way_by_the_slot_alone() {
    for direct_first in [true, false] {
        let host = Host::new();
        host.decide(alone(MASTER));
        let (first, second) = if direct_first {
            (
                direct as fn(u8) -> Segment<V4>,
                from_client as fn(u8) -> Segment<V4>,
            )
        } else {
            (from_client as _, direct as _)
        };
        forward(&host, &first(SYN));
        assert_eq!(host.selection.exceptions.get(), 0);
        let Verdict::Translate(moved, MASTER) = forward(&host, &second(SYN)) else {
            panic!("both look alike to the master");
        };
        assert_ne!(host.selection.exceptions.get(), 0);
        for _ in 0..2 {
            assert_eq!(
                forward(&host, &second(ACK)),
                Verdict::Translate(moved, MASTER)
            );
            let own = forward(&host, &first(ACK));
            match own {
                Verdict::Translate(there, MASTER) => {
                    assert_eq!(u16::from_be(there.client_port_be), 40000);
                }
                other => assert_eq!(other, Verdict::Pass(Reason::Direct)),
            }
        }
    }
}

/// Found by the real clients of the lab: nothing told the last acknowledgment from a flow
/// that was lost, which was taken up for hours under yet another port.
#[test]
fn what_comes_after_the_end_of_a_flow_with_a_changed_port_begins_none() {
    for reset in [false, true] {
        let host = Host::new();
        host.decide(alone(MASTER));
        forward(&host, &direct(SYN));
        let Verdict::Translate(moved, MASTER) = forward(&host, &from_client(SYN)) else {
            panic!("both look alike to the master");
        };
        let seen = u16::from_be(moved.client_port_be);
        let answer = |flags| segment((MASTER_ADDR, 8080), (CLIENT, seen), flags);
        let steered = |verdict| assert_eq!(verdict, Verdict::Translate(moved, MASTER));
        reverse(&host, &answer(SYN | ACK));
        let opened = host.open.get();
        if reset {
            goes_to(reverse(&host, &answer(RST)));
            steered(forward(&host, &from_client(ACK)));
        } else {
            steered(forward(&host, &from_client(FIN | ACK)));
            goes_to(reverse(&host, &answer(FIN | ACK)));
        }
        assert_eq!(host.open.get(), opened - 1);
        // The last acknowledgment, and one of a FIN that was repeated.
        for _ in 0..2 {
            steered(forward(&host, &from_client(ACK)));
            goes_to(reverse(&host, &answer(FIN | ACK)));
        }
        assert_eq!(host.open.get(), opened - 1, "ended once");
        assert_eq!(host.flows().0, 1, "swept as a flow that closes");
        let ended = |state: u32| state & FLOW_FIN != 0;
        assert!(
            host.forward
                .borrow()
                .values()
                .all(|flow| ended(flow.state.get()))
        );
        assert!(
            host.reverse
                .borrow()
                .values()
                .all(|flow| ended(flow.state.get()))
        );
        // The client's port begins anew.
        let again = forward(&host, &from_client(SYN));
        assert_eq!(goes_to(again), MASTER);
        let new = host
            .forward
            .borrow()
            .values()
            .all(|flow| !ended(flow.state.get()));
        assert!(new);
        assert_eq!(host.flows().0, host.flows().1);
    }
}

#[test]
fn the_last_acknowledgment_by_the_slot_is_steered_and_a_repeated_fin_comes_back() {
    let host = Host::new();
    host.decide(alone(MASTER));
    connect(&host);
    assert_eq!(goes_to(forward(&host, &from_client(FIN | ACK))), MASTER);
    assert_eq!(host.flows(), (1, 1));
    for _ in 0..3 {
        assert_eq!(goes_to(reverse(&host, &from_master(FIN | ACK))), MASTER);
        assert_eq!(host.flows(), (0, 0));
        assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    }
    // The port is free: for the VIP again, or for the master itself.
    assert_eq!(forward(&host, &direct(SYN)), Verdict::Pass(Reason::Direct));
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::Direct)
    );
    assert_eq!(host.selection.exceptions.get(), 0, "nobody had to make way");
}

#[test]
fn a_late_answer_does_not_take_a_moved_flow_back() {
    let host = Host::new();
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), MASTER);
    // Twice, so that the slot no longer knows the master was asked.
    host.decide(steer_to(BACKUP));
    host.decide(steer_to(99));
    host.decide(steer_to(BACKUP));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), SYN | ACK);
    assert_eq!(goes_to(reverse(&host, &answer)), BACKUP);
    assert_eq!(
        reverse(&host, &from_master(SYN | ACK)),
        Verdict::Pass(Reason::NotSteered)
    );
    assert_eq!(host.flows(), (1, 1));
}

/// The agent lets segments go by the slot alone when a sweep found no flow elsewhere: a flow
/// whose SYN was not answered yet had no entry to be found.
#[test]
fn a_late_answer_keeps_its_flow_where_segments_go_by_the_slot_alone() {
    for listener in [VIP, OTHER_VIP] {
        let to_listener = |flags| segment((CLIENT, 40000), (listener, 80), flags);
        let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), SYN | ACK);
        let host = Host::new();
        host.decide(steer_to(BACKUP));
        assert_eq!(goes_to(forward(&host, &to_listener(SYN))), BACKUP);
        host.decide(alone(MASTER));
        assert_eq!(goes_to(reverse(&host, &answer)), BACKUP);
        assert_eq!(goes_to(forward(&host, &to_listener(ACK))), BACKUP);
        assert_eq!(goes_to(forward(&host, &to_listener(FIN | ACK))), BACKUP);
        assert_eq!(host.flows(), (1, 1));
        // What asks for this endpoint is no exception.
        let follows = listener == VIP;
        assert_eq!(host.selection.exceptions.get() != 0, follows);
    }
}

#[test]
fn datagrams_find_full_tables_too() {
    let mut host = Host::new();
    host.capacity = 0;
    let listener = host.listeners[&listener_key(VIP, 80)];
    let key = ListenerKey {
        protocol: UDP,
        ..listener_key(VIP, 80)
    };
    host.listeners.insert(key, listener);
    let datagram = |s: Segment<V4>| Segment { protocol: UDP, ..s };
    for _ in 0..2 {
        assert_eq!(goes_to(forward(&host, &datagram(from_client(0)))), MASTER);
        assert_eq!(goes_to(reverse(&host, &datagram(from_master(0)))), MASTER);
    }
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn what_the_endpoint_says_after_its_answer_confirms_the_client() {
    let host = Host::new();
    let state = || host.reverse.borrow().values().next().unwrap().state.get();
    forward(&host, &from_client(SYN));
    reverse(&host, &from_master(SYN | ACK));
    assert_eq!(state() & FLOW_CONFIRMED, 0);
    reverse(&host, &from_master(ACK));
    assert_eq!(state() & FLOW_CONFIRMED, FLOW_CONFIRMED);
}

/// A client may have sent more before it hears of the RST.
#[test]
fn a_whole_burst_to_a_down_endpoint_is_refused() {
    let mut host = Host::new();
    connect(&host);
    host.mark(MASTER, ENDPOINT_DOWN);
    host.decide(steer_to(BACKUP));
    for _ in 0..5 {
        assert_eq!(
            forward(&host, &from_client(ACK)),
            Verdict::Reset(Reason::EndpointDown)
        );
    }
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(host.events.borrow().len(), 1, "one flow was reset");
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), BACKUP);
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), BACKUP);
}

#[test]
fn the_last_acknowledgment_reaches_the_endpoint_before() {
    let host = Host::new();
    connect(&host);
    host.decide(steer_to(BACKUP));
    forward(&host, &from_client(FIN | ACK));
    reverse(&host, &from_master(FIN | ACK));
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(goes_to(forward(&host, &from_client(ACK))), MASTER);
    assert_eq!(host.flows(), (0, 0));
}

/// What may happen to one client port, in any order.
#[derive(Clone, Debug)]
enum Step {
    Client(u8),
    Direct(u8),
    Master(u8),
    Backup(u8),
    Select(u32, bool),
    Mark(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<u8>().prop_map(Step::Client),
        any::<u8>().prop_map(Step::Direct),
        any::<u8>().prop_map(Step::Master),
        any::<u8>().prop_map(Step::Backup),
        (prop_oneof![Just(MASTER), Just(BACKUP)], any::<bool>())
            .prop_map(|(id, fast)| Step::Select(id, fast)),
        (
            prop_oneof![Just(MASTER), Just(BACKUP)],
            prop_oneof![
                Just(ENDPOINT_UP),
                Just(ENDPOINT_DOWN),
                Just(ENDPOINT_DRAINED)
            ]
        )
            .prop_map(|(id, state)| Step::Mark(id, state)),
    ]
}

proptest! {
    /// Whatever happens: the entries come and go in pairs, the count of open flows
    /// is theirs, no RST is answered, and what comes back to the client comes from
    /// the VIP.
    #[test]
    fn flows_stay_paired(steps in prop::collection::vec(step(), 0..60)) {
        let mut host = Host::new();
        for step in steps {
            let verdict = match step {
                Step::Client(flags) => {
                    let verdict = forward(&host, &from_client(flags));
                    if flags & RST != 0 {
                        prop_assert!(!matches!(verdict, Verdict::Reset(_)));
                    }
                    verdict
                }
                Step::Direct(flags) => {
                    let verdict = forward(&host, &direct(flags));
                    prop_assert!(!matches!(verdict, Verdict::Reset(_)));
                    verdict
                }
                Step::Master(flags) => reverse(&host, &from_master(flags)),
                Step::Backup(flags) => {
                    let answer = segment((BACKUP_ADDR, 8081), (CLIENT, 40000), flags);
                    reverse(&host, &answer)
                }
                Step::Select(id, fast) => {
                    // As an agent finds out by a sweep.
                    let elsewhere = host.forward.borrow().iter().any(|(key, flow)| {
                        key.peer_be == VIP && flow.endpoint != id
                    });
                    let fast = fast && !elsewhere;
                    host.decide(if fast { alone(id) } else { steer_to(id) });
                    continue;
                }
                Step::Mark(id, state) => {
                    host.mark(id, state);
                    continue;
                }
            };
            if let Verdict::Translate(translation, _) = verdict {
                prop_assert!([VIP, MASTER_ADDR, BACKUP_ADDR].contains(&translation.addr_be));
            }
            let (forth, back) = host.flows();
            prop_assert_eq!(forth, back);
            let open = host.forward.borrow().iter()
                .filter(|(key, _)| key.peer_be != MASTER_ADDR)
                .filter(|(_, flow)| flow.state.get() & FLOW_ENDED == 0)
                .count();
            prop_assert_eq!(host.open.get(), open as i64);
        }
    }
}

#[test]
fn families_have_addresses_of_their_own() {
    let both = Endpoint {
        families: FAMILY_V4 | FAMILY_V6,
        v6_be: V6::from_bytes([7; 16]),
        ..endpoint(MASTER_ADDR, 1, ENDPOINT_UP)
    };
    assert_eq!(V4::of_endpoint(&both), Some(MASTER_ADDR));
    assert_eq!(V6::of_endpoint(&both), Some(V6::from_bytes([7; 16])));
}

/// What became of a later fragment.
fn follow(host: &Host, piece: &Piece<V4>, side: Side) -> Option<(V4, u32)> {
    let work = host.work().unwrap();
    work.piece = *piece;
    super::follow(host, work, side);
    let Ruling {
        fate,
        reason,
        translation,
        endpoint,
    } = work.ruling;
    match fate {
        Fate::Translate => Some((translation.addr_be, endpoint)),
        _ => {
            assert_eq!(reason, Reason::Fragment);
            None
        }
    }
}

/// A connection straight to the master's own address.
fn direct(flags: u8) -> Segment<V4> {
    segment((CLIENT, 40000), (MASTER_ADDR, 8080), flags)
}

#[test]
fn direct_connections_pass_and_are_known() {
    let host = Host::new();
    for flags in [SYN, ACK, FIN | ACK] {
        assert_eq!(
            forward(&host, &direct(flags)),
            Verdict::Pass(Reason::Direct)
        );
        assert_eq!(
            reverse(&host, &from_master(ACK)),
            Verdict::Pass(Reason::Direct)
        );
    }
    assert_eq!(host.flows(), (1, 1));
    assert_eq!(host.open.get(), 0, "not a flow of the service");
    assert_eq!(forward(&host, &direct(RST)), Verdict::Pass(Reason::Direct));
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn whichever_comes_second_gets_another_port() {
    for direct_first in [true, false] {
        let host = Host::new();
        let (first, second) = if direct_first {
            (direct(SYN), from_client(SYN))
        } else {
            (from_client(SYN), direct(SYN))
        };
        forward(&host, &first);
        let Verdict::Translate(moved, MASTER) = forward(&host, &second) else {
            panic!("both look alike to the master");
        };
        let port = u16::from_be(moved.client_port_be);
        assert_ne!(port, 40000);
        // The first one's answers are its own, the second one's come to its port.
        let answer = segment((MASTER_ADDR, 8080), (CLIENT, port), SYN | ACK);
        let Verdict::Translate(back, MASTER) = reverse(&host, &answer) else {
            panic!("not translated back");
        };
        assert_eq!(u16::from_be(back.client_port_be), 40000);
        assert_eq!(back.addr_be, if direct_first { VIP } else { MASTER_ADDR });
        let first_back = reverse(&host, &from_master(SYN | ACK));
        if direct_first {
            assert_eq!(first_back, Verdict::Pass(Reason::Direct));
        } else {
            assert_eq!(goes_to(first_back), MASTER);
        }
    }
}

#[test]
fn direct_connections_are_never_refused() {
    let mut host = Host::new();
    host.capacity = 0;
    assert_eq!(forward(&host, &direct(SYN)), Verdict::Pass(Reason::Direct));
    host.capacity = 100;
    host.mark(MASTER, ENDPOINT_DOWN);
    for flags in [SYN, ACK] {
        assert_eq!(
            forward(&host, &direct(flags)),
            Verdict::Pass(Reason::Direct)
        );
    }
}

#[test]
fn later_fragments_follow_their_first_for_a_while() {
    let host = Host::new();
    let there = Side::Destination;
    let mut first = from_client(SYN);
    first.fragmented = true;
    first.id_be = 77;
    let piece = |id_be| Piece {
        l3: 14,
        src_be: CLIENT,
        dst_be: VIP,
        id_be,
        protocol: TCP,
    };
    assert_eq!(follow(&host, &piece(77), there), None);
    assert_eq!(goes_to(forward(&host, &first)), MASTER);
    let followed = Some((MASTER_ADDR, MASTER));
    assert_eq!(follow(&host, &piece(77), there), followed);
    assert_eq!(follow(&host, &piece(78), there), None);
    // The programs at the other end of the node see the same fragment before or after.
    assert_eq!(follow(&host, &piece(77), Side::Source), None);
    let unit = 1u64 << 30;
    host.now_ns
        .set(host.now_ns.get() + u64::from(FRAGMENT_LIFE) * unit);
    assert_eq!(follow(&host, &piece(77), there), followed);
    host.now_ns.set(host.now_ns.get() + unit);
    assert_eq!(follow(&host, &piece(77), there), None);
    // What passes unchanged leaves no trace: its others pass too.
    let mut elsewhere = segment((CLIENT, 40000), (VIP, 81), SYN);
    elsewhere.fragmented = true;
    elsewhere.id_be = 79;
    forward(&host, &elsewhere);
    assert_eq!(follow(&host, &piece(79), there), None);
}

/// The master behind full NAT.
fn full_nat() -> Host {
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().forward = FORWARD_FULL_NAT;
    host
}

#[test]
fn full_nat_hides_the_client_and_finds_it_again() {
    let host = full_nat();
    let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    assert_eq!((there.addr_be, there.client_be), (MASTER_ADDR, SOURCE));
    let port = u16::from_be(there.client_port_be);
    assert!(port >= 1024);
    assert_eq!(host.ports[port as usize / 64].get(port.into()), PORT_USED);
    // Repeated, and later: the same way.
    for flags in [SYN, ACK] {
        assert_eq!(
            forward(&host, &from_client(flags)),
            Verdict::Relay(there, MASTER)
        );
    }
    let answer = |flags| segment((MASTER_ADDR, 8080), (SOURCE, port), flags);
    for flags in [SYN | ACK, ACK] {
        // It comes to an address of the node's, like what clients send.
        let Verdict::Relay(back, MASTER) = forward(&host, &answer(flags)) else {
            panic!("not sent back");
        };
        assert_eq!((back.addr_be, back.client_be), (VIP, CLIENT));
        assert_eq!(u16::from_be(back.client_port_be), 40000);
    }
    assert_eq!(host.open.get(), 1);
    forward(&host, &answer(RST));
    assert_eq!(host.open.get(), 0);
    assert_eq!(
        host.ports[port as usize / 64].get(port.into()),
        PORT_RESTING
    );
    // What comes late is theirs still, and ends nothing twice.
    for late in [answer(ACK), answer(RST), from_client(ACK)] {
        assert!(matches!(forward(&host, &late), Verdict::Relay(_, MASTER)));
    }
    assert_eq!(host.open.get(), 0);
    // The client begins anew.
    assert!(matches!(
        forward(&host, &from_client(SYN)),
        Verdict::Relay(_, MASTER)
    ));
    assert_eq!((host.flows(), host.open.get()), ((1, 1), 1));
    // What nobody knows has no port.
    let stranger = segment((CLIENT, 40001), (VIP, 80), ACK);
    assert_eq!(forward(&host, &stranger), Verdict::Reset(Reason::FlowLost));
}

#[test]
fn full_nat_gives_every_flow_a_port_of_its_own_until_there_is_none() {
    let mut host = full_nat();
    host.capacity = 100_000;
    let mut ports = std::collections::HashSet::new();
    let mut refused = 0;
    for n in 0..64_512u32 {
        let client = V4((0x0a01_0000 + n / 1000).to_be());
        let syn = segment((client, 10_000 + (n % 1000) as u16), (VIP, 80), SYN);
        match forward(&host, &syn) {
            Verdict::Relay(there, MASTER) => {
                assert!(u16::from_be(there.client_port_be) >= 1024);
                assert!(ports.insert(there.client_port_be), "a live port again");
            }
            Verdict::Reset(Reason::PortsExhausted) => refused += 1,
            other => panic!("{other:?}"),
        }
        if n == 60_000 {
            assert_eq!(refused, 0, "with 60,000 flows");
        }
    }
    assert!(ports.len() > 64_000, "{} of 64,512 ports used", ports.len());
    assert_eq!(host.events.borrow().len(), refused);
    // A port that rests is taken when no other is free.
    let one = *ports.iter().next().unwrap();
    let answer = segment((MASTER_ADDR, 8080), (SOURCE, u16::from_be(one)), RST);
    forward(&host, &answer);
    let again = (0..u16::MAX).find_map(|n| {
        let syn = segment((V4(77), n), (VIP, 80), SYN);
        match forward(&host, &syn) {
            Verdict::Relay(there, _) => Some(there.client_port_be),
            _ => None,
        }
    });
    assert!(again.is_some());
    assert_eq!(host.flows().0, host.flows().1);
}

/// Behind direct server return: the endpoints own the VIP.
fn server_return() -> Host {
    let mut host = Host::new();
    for endpoint in host.endpoints.values_mut() {
        endpoint.forward = FORWARD_DSR;
        endpoint.port_be = 80u16.to_be();
    }
    host.listeners.retain(|_, l| l.kind != LISTENER_OWN);
    host
}

/// Sent on to this endpoint as it is?
fn as_it_is(host: &Host, segment: &Segment<V4>) -> Option<u32> {
    match forward(host, segment) {
        Verdict::Relay(translation, id) => {
            assert!(translation.is_identity(segment, Side::Destination));
            let hop = Tables::<V4>::work(host).expect("there is room").hop;
            assert_eq!(Some(hop), host.endpoints.get(&id).map(|e| e.v4_be));
            Some(id)
        }
        _ => None,
    }
}

#[test]
fn server_return_stays_where_it_began() {
    let mut host = server_return();
    assert_eq!(as_it_is(&host, &from_client(SYN)), Some(MASTER));
    host.decide(steer_to(BACKUP));
    // Not answered yet: it follows the selection, and so does its client's next word.
    assert_eq!(as_it_is(&host, &from_client(SYN)), Some(BACKUP));
    assert_eq!(as_it_is(&host, &from_client(ACK)), Some(BACKUP));
    host.decide(steer_to(MASTER));
    for flags in [ACK, FIN | ACK, ACK] {
        assert_eq!(as_it_is(&host, &from_client(flags)), Some(BACKUP));
    }
    assert_eq!((host.flows(), host.open.get()), ((1, 1), 1));
    // The backup goes down.
    host.endpoints.get_mut(&BACKUP).unwrap().state = ENDPOINT_DOWN;
    assert_eq!(
        forward(&host, &from_client(ACK)),
        Verdict::Reset(Reason::EndpointDown)
    );
    assert_eq!(host.open.get(), 0);
}

#[test]
fn server_return_ends_with_its_client() {
    let host = server_return();
    for flags in [SYN, ACK, RST] {
        assert_eq!(as_it_is(&host, &from_client(flags)), Some(MASTER));
    }
    assert_eq!(host.open.get(), 0);
    // The port again, and an end that is not seen here.
    for flags in [SYN, ACK, FIN | ACK, ACK, SYN, ACK] {
        assert_eq!(as_it_is(&host, &from_client(flags)), Some(MASTER));
    }
    assert_eq!((host.flows(), host.open.get()), ((1, 1), 1));
    // A lost table costs nothing, nor does a reset that nobody knows.
    let host = server_return();
    assert_eq!(as_it_is(&host, &from_client(RST)), Some(MASTER));
    assert_eq!(host.flows(), (0, 0));
    assert_eq!(as_it_is(&host, &from_client(ACK)), Some(MASTER));
    assert_eq!(host.flows(), (1, 1));
}

/// Where its answers cross this node they pass, and tell what they tell.
#[test]
fn server_return_of_answers_that_are_seen() {
    let host = server_return();
    assert_eq!(as_it_is(&host, &from_client(SYN)), Some(MASTER));
    let answer = |flags| segment((VIP, 80), (CLIENT, 40000), flags);
    for flags in [SYN | ACK, ACK, FIN | ACK] {
        assert_eq!(
            reverse(&host, &answer(flags)),
            Verdict::Pass(Reason::Direct)
        );
    }
    let fin = from_client(FIN | ACK);
    assert_eq!(as_it_is(&host, &fin), Some(MASTER));
    let mut last = answer(ACK);
    last.ack = fin.next_seq();
    assert_eq!(reverse(&host, &last), Verdict::Pass(Reason::Direct));
    assert_eq!(host.open.get(), 0);
}

#[test]
fn a_flood_to_server_return_goes_without_entries() {
    let host = server_return();
    host.grants.set(10);
    for port in 0..1000 {
        let syn = segment((CLIENT, port), (VIP, 80), SYN);
        assert_eq!(as_it_is(&host, &syn), Some(MASTER));
    }
    assert_eq!(host.flows(), (10, 10));
}

/// What becomes of an ICMP error by `reporter` to the source of what it quotes, which
/// went from the first to the second.
fn error(host: &Host, reporter: V4, quoted: [(V4, u16); 2]) -> (Fate, Translation<V4>, [V4; 2]) {
    let work = host.work().unwrap();
    let [src, dst] = quoted;
    work.quoted = Quoted {
        l3: 14,
        l4: 34,
        inner_l3: 42,
        inner_l4: 62,
        src_be: reporter,
        dst_be: src.0,
        protocol: TCP,
        inner_src_be: src.0,
        inner_dst_be: dst.0,
        inner_src_port_be: src.1.to_be(),
        inner_dst_port_be: dst.1.to_be(),
    };
    forward_error(host, work);
    (work.ruling.fate, work.ruling.translation, work.ends)
}

#[test]
fn errors_about_what_full_nat_sent_on_are_sent_on() {
    const ROUTER: V4 = V4::from_bytes([192, 0, 2, 1]);
    let host = full_nat();
    let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    let port = u16::from_be(there.client_port_be);
    let hidden = [(SOURCE, port), (MASTER_ADDR, 8080)];
    let back = Translation {
        addr_be: VIP,
        port_be: 80u16.to_be(),
        client_be: CLIENT,
        client_port_be: 40000u16.to_be(),
    };
    // To the client, by a router or by the endpoint itself.
    for reporter in [ROUTER, MASTER_ADDR] {
        let ruled = (Fate::Reply, back, [VIP, CLIENT]);
        assert_eq!(error(&host, reporter, hidden), ruled);
    }
    // To the endpoint, by a router or by the client itself.
    let answer = [(VIP, 80), (CLIENT, 40000)];
    for reporter in [ROUTER, CLIENT] {
        let ruled = (Fate::Relay, there, [SOURCE, MASTER_ADDR]);
        assert_eq!(error(&host, reporter, answer), ruled);
    }
    // Of no flow.
    for quoted in [
        [(SOURCE, port ^ 1), (MASTER_ADDR, 8080)],
        [(SOURCE, port), (BACKUP_ADDR, 8080)],
        [(VIP, 80), (CLIENT, 40001)],
    ] {
        assert_eq!(error(&host, ROUTER, quoted).0, Fate::Pass);
    }
    // Not addressed to whom it quotes.
    let work = host.work().unwrap();
    work.quoted.inner_src_be = VIP;
    work.quoted.inner_dst_be = CLIENT;
    work.quoted.inner_dst_port_be = 40000u16.to_be();
    work.quoted.dst_be = MASTER_ADDR;
    forward_error(&host, work);
    assert_eq!(work.ruling.fate, Fate::Pass);
}

#[test]
fn later_fragments_are_sent_on_with_their_first() {
    let host = full_nat();
    let first = |mut segment: Segment<V4>| {
        segment.fragmented = true;
        segment.id_be = 77;
        segment
    };
    let piece = |src_be, dst_be| Piece {
        l3: 14,
        src_be,
        dst_be,
        id_be: 77,
        protocol: TCP,
    };
    let followed = |piece| {
        let work = host.work().unwrap();
        work.piece = piece;
        super::follow(&host, work, Side::Destination);
        let Ruling {
            fate, translation, ..
        } = work.ruling;
        (fate, translation.addr_be, translation.client_be, work.ends)
    };
    let Verdict::Relay(there, MASTER) = forward(&host, &first(from_client(SYN))) else {
        panic!("not sent on");
    };
    assert_eq!(
        followed(piece(CLIENT, VIP)),
        (Fate::Relay, MASTER_ADDR, SOURCE, [SOURCE, MASTER_ADDR])
    );
    let port = u16::from_be(there.client_port_be);
    let answer = segment((MASTER_ADDR, 8080), (SOURCE, port), SYN | ACK);
    forward(&host, &first(answer));
    assert_eq!(
        followed(piece(MASTER_ADDR, SOURCE)),
        (Fate::Reply, VIP, CLIENT, [VIP, CLIENT])
    );
    assert_eq!(followed(piece(BACKUP_ADDR, SOURCE)).0, Fate::Pass);
}

/// Whoever closes first: the last acknowledgment finds its way, or who sent the last FIN would
/// wait for it for minutes.
#[test]
fn full_nat_ends_after_the_last_acknowledgment() {
    for client_first in [true, false] {
        let host = full_nat();
        let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
            panic!("not sent on");
        };
        let port = u16::from_be(there.client_port_be);
        let numbered = |mut segment: Segment<V4>, seq, ack| {
            segment.seq = seq;
            segment.ack = ack;
            segment
        };
        let mine = |flags, seq, ack| numbered(from_client(flags), seq, ack);
        let its = |flags, seq, ack| {
            let segment = segment((MASTER_ADDR, 8080), (SOURCE, port), flags);
            numbered(segment, seq, ack)
        };
        let segments = if client_first {
            [
                its(SYN | ACK, 0, 0),
                mine(FIN | ACK, 100, 900),
                its(FIN | ACK, 900, 101),
                // Repeated, for want of the acknowledgment.
                its(FIN | ACK, 900, 101),
                mine(ACK, 101, 901),
            ]
        } else {
            [
                its(SYN | ACK, 0, 0),
                its(FIN | ACK, 900, 100),
                mine(FIN | ACK, 100, 901),
                mine(FIN | ACK, 100, 901),
                its(ACK, 901, 101),
            ]
        };
        for (n, segment) in segments.iter().enumerate() {
            let verdict = forward(&host, segment);
            assert!(
                matches!(verdict, Verdict::Relay(_, MASTER)),
                "segment {n}, client first {client_first}: {verdict:?}"
            );
        }
        assert_eq!(host.open.get(), 0);
    }
}

/// Nobody is hidden who does not come by the VIP, and no port is touched.
#[test]
fn what_is_straight_to_an_endpoint_of_full_nat_stays_so() {
    let host = full_nat();
    let Verdict::Relay(there, MASTER) = forward(&host, &from_client(SYN)) else {
        panic!("not sent on");
    };
    let port = u16::from_be(there.client_port_be);
    let mine = |flags| segment((CLIENT, port), (MASTER_ADDR, 8080), flags);
    let its = |flags| segment((MASTER_ADDR, 8080), (CLIENT, port), flags);
    let direct = Verdict::Pass(Reason::Direct);
    for _ in 0..2 {
        assert_eq!(forward(&host, &mine(SYN)), direct);
        assert_eq!(reverse(&host, &its(SYN | ACK)), direct);
        assert_eq!(forward(&host, &mine(ACK)), direct);
        assert_eq!(reverse(&host, &its(ACK)), direct);
        assert_eq!(forward(&host, &mine(RST)), direct);
        let used = host.ports[port as usize / 64].get(port.into());
        assert_eq!(used, PORT_USED, "the steered flow still has it");
    }
    assert_eq!(
        forward(&host, &from_client(ACK)),
        Verdict::Relay(there, MASTER)
    );
}

const THIRD: u32 = 5;
const THIRD_ADDR: V4 = V4::from_bytes([10, 0, 4, 2]);

fn spread_over(ring: u32) -> Decision {
    Decision {
        action: Action::Spread,
        flags: SLOT_ALONE_DIRECT,
        tier: 0,
        target: ring,
    }
}

/// A ring whose places belong to these endpoints in turn.
fn ring_of(ids: &[u32]) -> Ring {
    Ring::new(core::array::from_fn(|place| ids[place % ids.len()] as u16))
}

impl Host {
    /// Three endpoints share the tier by ring 1.
    fn shared() -> Self {
        let mut host = Self::new();
        let third = endpoint(THIRD_ADDR, 8080, ENDPOINT_UP);
        host.endpoints.insert(THIRD, third);
        host.rings.insert(1, ring_of(&[MASTER, BACKUP, THIRD]));
        host.decide(spread_over(1));
        host
    }

    fn keep_clients(&self, units: u32) {
        self.selection.affinity.set(units);
    }

    /// The endpoint answers whatever was sent to it.
    fn answers(&self, sent: &Segment<V4>, flags: u8) -> u32 {
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

    fn later(&self, units: u64) {
        self.now_ns.set(self.now_ns.get() + (units << 30));
    }
}

fn from_port(port: u16, flags: u8) -> Segment<V4> {
    segment((CLIENT, port), (VIP, 80), flags)
}

fn datagram(port: u16) -> Segment<V4> {
    Segment {
        protocol: UDP,
        ..from_port(port, 0)
    }
}

fn follow_udp(host: &mut Host) {
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

#[test]
fn endpoints_share_the_connections_of_one_client() {
    let host = Host::shared();
    let mut shares: HashMap<u32, u32> = HashMap::new();
    for port in 20_000..23_000 {
        *shares
            .entry(host.answers(&from_port(port, SYN), SYN | ACK))
            .or_default() += 1;
        host.forward.borrow_mut().clear();
        host.reverse.borrow_mut().clear();
    }
    for id in [MASTER, BACKUP, THIRD] {
        assert!((800..1200).contains(&shares[&id]), "{shares:?}");
    }
    assert!(host.affinities.borrow().is_empty());
}

#[test]
fn a_flow_stays_where_it_is_when_the_ring_changes() {
    let mut host = Host::shared();
    let at: Vec<(u16, u32)> = (40_000..40_030)
        .map(|port| (port, host.answers(&from_port(port, SYN), SYN | ACK)))
        .collect();
    host.rings.insert(2, ring_of(&[BACKUP]));
    host.decide(spread_over(2));
    for (port, id) in &at {
        assert_eq!(goes_to(forward(&host, &from_port(*port, ACK))), *id);
        // Also a SYN that the endpoint has to challenge.
        assert_eq!(goes_to(forward(&host, &from_port(*port, SYN))), *id);
    }
    assert_eq!(goes_to(forward(&host, &from_port(50_000, SYN))), BACKUP);
    // Those of an endpoint that is down are told, the others live on.
    host.mark(MASTER, ENDPOINT_DOWN);
    for (port, id) in &at {
        let verdict = forward(&host, &from_port(*port, ACK));
        if *id == MASTER {
            assert_eq!(verdict, Verdict::Reset(Reason::EndpointDown));
        } else {
            assert_eq!(goes_to(verdict), *id);
        }
    }
}

#[test]
fn an_unanswered_syn_goes_the_same_way_until_the_ring_changes() {
    let mut host = Host::shared();
    let first = goes_to(forward(&host, &from_client(SYN)));
    for _ in 0..3 {
        assert_eq!(goes_to(forward(&host, &from_client(SYN))), first);
    }
    let other = if first == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), other);
    // Its reset finds it too.
    assert_eq!(goes_to(forward(&host, &from_client(RST))), other);
}

#[test]
fn the_late_answer_to_a_syn_that_moved_on_with_the_ring_is_reset() {
    let mut host = Host::shared();
    let Verdict::Translate(there, first) = forward(&host, &from_client(SYN)) else {
        panic!("not steered");
    };
    let other = if first == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    assert_eq!(goes_to(forward(&host, &from_client(SYN))), other);
    let mut late = segment((there.addr_be, 0), (CLIENT, 40000), SYN | ACK);
    late.src_port_be = there.port_be;
    assert_eq!(reverse(&host, &late), Verdict::Reset(Reason::LateAnswer));
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn the_rest_of_a_burst_to_a_lost_endpoint_is_reset_too() {
    for keeps_clients in [0, 100] {
        let mut host = Host::shared();
        host.keep_clients(keeps_clients);
        let at = host.answers(&from_client(SYN), SYN | ACK);
        let others: Vec<u32> = [MASTER, BACKUP, THIRD]
            .into_iter()
            .filter(|id| *id != at)
            .collect();
        host.rings.insert(2, ring_of(&others));
        host.decide(spread_over(2));
        host.mark(at, ENDPOINT_DOWN);
        for _ in 0..3 {
            let verdict = forward(&host, &from_client(ACK));
            assert_eq!(verdict, Verdict::Reset(Reason::EndpointDown));
        }
        assert_eq!(host.flows(), (0, 0), "nobody else takes it up");
        // Also when the last one left goes on alone.
        host.decide(steer_to(others[0]));
        assert_eq!(goes_to(forward(&host, &from_port(50_000, SYN))), others[0]);
    }
}

#[test]
fn a_flow_that_was_lost_is_taken_up_by_the_same_endpoint() {
    let host = Host::shared();
    for port in 40_000..40_030 {
        let id = host.answers(&from_port(port, SYN), SYN | ACK);
        host.forward.borrow_mut().clear();
        host.reverse.borrow_mut().clear();
        assert_eq!(goes_to(forward(&host, &from_port(port, ACK))), id);
    }
    assert!(host.counted.borrow().contains(&Reason::Adopted));
}

#[test]
fn datagrams_are_spread_and_stay() {
    let mut host = Host::shared();
    follow_udp(&mut host);
    let at: Vec<u32> = (40_000..40_030)
        .map(|port| host.answers(&datagram(port), 0))
        .collect();
    for id in [MASTER, BACKUP, THIRD] {
        assert!(at.contains(&id));
    }
    // Not answered yet: goes with the ring.
    let fresh = goes_to(forward(&host, &datagram(50_000)));
    let other = if fresh == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    assert_eq!(goes_to(forward(&host, &datagram(50_000))), other);
    for (port, id) in (40_000..40_030).zip(at) {
        assert_eq!(goes_to(forward(&host, &datagram(port))), id);
    }
}

#[test]
fn a_ring_that_names_nobody_or_somebody_elses_steers_nothing() {
    let mut host = Host::shared();
    let undecided = Verdict::Pass(Reason::Undecided);
    host.decide(spread_over(7));
    assert_eq!(forward(&host, &from_client(SYN)), undecided);
    host.rings.insert(2, ring_of(&[9999]));
    host.decide(spread_over(2));
    assert_eq!(forward(&host, &from_client(SYN)), undecided);
    for id in [MASTER, BACKUP, THIRD] {
        host.endpoints.get_mut(&id).unwrap().service = 2;
    }
    host.decide(spread_over(1));
    assert_eq!(forward(&host, &from_client(SYN)), undecided);
    assert_eq!(host.flows(), (0, 0));
}

#[test]
fn a_client_keeps_its_endpoint_over_ring_changes_until_its_time_is_up() {
    let mut host = Host::shared();
    host.keep_clients(100);
    let first = host.answers(&from_port(1000, SYN), SYN | ACK);
    for port in 1001..1040 {
        assert_eq!(host.answers(&from_port(port, SYN), SYN | ACK), first);
    }
    let other = if first == MASTER { BACKUP } else { MASTER };
    host.rings.insert(2, ring_of(&[other]));
    host.decide(spread_over(2));
    // Each connection counts anew, a SYN alone does not.
    host.later(100);
    assert_eq!(host.answers(&from_port(2000, SYN), SYN | ACK), first);
    host.later(60);
    assert_eq!(goes_to(forward(&host, &from_port(2001, SYN))), first);
    host.later(40);
    assert_eq!(goes_to(forward(&host, &from_port(2002, SYN))), first);
    host.later(1);
    assert_eq!(host.answers(&from_port(2003, SYN), SYN | ACK), other);
    host.decide(spread_over(1));
    assert_eq!(goes_to(forward(&host, &from_port(2004, SYN))), other);
    // Another client has its own.
    let stranger = V4::from_bytes([10, 0, 1, 3]);
    let ids: Vec<u32> = (0..20)
        .map(|port| {
            goes_to(forward(
                &host,
                &segment((stranger, 3000 + port), (VIP, 80), SYN),
            ))
        })
        .collect();
    assert!(
        ids.iter().all(|id| *id == ids[0]),
        "the address alone decides"
    );
}

#[test]
fn a_client_leaves_an_endpoint_that_takes_no_new_connections() {
    let unfit: [fn(&mut Endpoint); 4] = [
        |e| e.state = ENDPOINT_DOWN,
        |e| e.tier = 1,
        |e| e.tier = NO_TIER,
        |e| e.service = 2,
    ];
    for unfit in unfit {
        let mut host = Host::shared();
        host.keep_clients(100);
        let first = host.answers(&from_port(1000, SYN), SYN | ACK);
        let other = if first == MASTER { BACKUP } else { MASTER };
        host.rings.insert(2, ring_of(&[other]));
        host.decide(spread_over(2));
        assert_eq!(goes_to(forward(&host, &from_port(1001, SYN))), first);
        unfit(host.endpoints.get_mut(&first).unwrap());
        assert_eq!(host.answers(&from_port(1002, SYN), SYN | ACK), other);
        // That was its new choice.
        host.endpoints.get_mut(&first).unwrap().state = ENDPOINT_UP;
        host.decide(spread_over(1));
        assert_eq!(goes_to(forward(&host, &from_port(1003, SYN))), other);
    }
}

#[test]
fn only_connections_that_follow_the_selection_are_remembered() {
    let mut host = Host::shared();
    host.keep_clients(100);
    follow_udp(&mut host);
    // Forged SYNs, direct connections, one of a single endpoint's listener.
    for port in 1000..1100 {
        forward(&host, &from_port(port, SYN));
    }
    host.answers(&segment((CLIENT, 1), (OTHER_VIP, 80), SYN), SYN | ACK);
    forward(&host, &segment((CLIENT, 2), (MASTER_ADDR, 8080), SYN));
    let answer = segment((MASTER_ADDR, 8080), (CLIENT, 2), SYN | ACK);
    assert_eq!(reverse(&host, &answer), Verdict::Pass(Reason::Direct));
    assert!(host.affinities.borrow().is_empty());
    // While one endpoint has all, there is nothing to choose.
    host.decide(steer_to(MASTER));
    host.answers(&from_port(3, SYN), SYN | ACK);
    assert!(host.affinities.borrow().is_empty());
    host.decide(spread_over(1));
    let by_udp = host.answers(&datagram(4), 0);
    assert_eq!(host.affinities.borrow().len(), 1);
    assert_eq!(goes_to(forward(&host, &from_port(5, SYN))), by_udp);
}

#[test]
fn an_error_about_an_unanswered_syn_finds_its_endpoint() {
    let host = Host::shared();
    for port in 40_000..40_010 {
        let Verdict::Translate(there, id) = forward(&host, &from_port(port, SYN)) else {
            panic!("not steered");
        };
        // SAFETY: see `Host::work`.
        let work = unsafe { &mut *host.work };
        work.quoted.inner_src_be = VIP;
        work.quoted.inner_src_port_be = 80u16.to_be();
        work.quoted.inner_dst_be = CLIENT;
        work.quoted.inner_dst_port_be = port.to_be();
        work.quoted.dst_be = VIP;
        work.quoted.protocol = TCP;
        work.ruling.endpoint = 0;
        forward_error(&host, work);
        assert_eq!(work.ruling.fate, Fate::Translate, "port {port} at {id}");
        assert_eq!(work.ruling.translation.addr_be, there.addr_be);
    }
}

#[test]
fn a_ring_has_the_places_that_clients_have() {
    let ring = ring_of(&[MASTER]);
    assert_eq!(ring.at(RING_SIZE - 1), Some(MASTER));
    assert_eq!(ring.at(RING_SIZE), None);
}

/// A process of the node connects.
fn call(to: V4, port: u16, cookie: u64) -> own::Call<V4> {
    own::Call {
        to_be: to,
        to_port_be: port.to_be(),
        protocol: TCP,
        cookie,
    }
}

#[test]
fn a_process_of_the_node_goes_where_the_selection_says() {
    let mut host = Host::new();
    let to_vip = |host: &Host| own::steer(host, &call(VIP, 80, 7));
    let master = own::Answer {
        fate: own::Fate::Steer,
        reason: Reason::Direct,
        addr_be: MASTER_ADDR,
        port_be: 8080u16.to_be(),
        follows: true,
        service: 1,
        endpoint: MASTER,
    };
    assert_eq!(to_vip(&host), master);
    // Going by the slot alone is a matter of packets.
    host.decide(alone(MASTER));
    assert_eq!(to_vip(&host), master);
    // Down, and selected all the same: all are down.
    host.mark(MASTER, ENDPOINT_DOWN);
    assert_eq!(to_vip(&host), master);
    host.decide(steer_to(BACKUP));
    let backup = to_vip(&host);
    assert_eq!((backup.fate, backup.endpoint), (own::Fate::Steer, BACKUP));
    assert_eq!(
        (backup.addr_be, backup.port_be),
        (BACKUP_ADDR, 8081u16.to_be())
    );
    // An instance's own listener, whatever is selected.
    host.decide(steer_to(MASTER));
    let direct = own::steer(&host, &call(OTHER_VIP, 80, 7));
    assert_eq!((direct.fate, direct.endpoint), (own::Fate::Steer, BACKUP));
    assert!(!direct.follows);
    // What it does to nobody's packets is nothing.
    assert_eq!(host.flows(), (0, 0));
    assert!(host.counted.borrow().is_empty() && host.events.borrow().is_empty());
}

#[test]
fn a_process_of_the_node_is_left_alone_or_refused() {
    let host = Host::new();
    let fate = |to: V4, port: u16, protocol: u8| {
        let call = own::Call {
            protocol,
            ..call(to, port, 7)
        };
        let answer = own::steer(&host, &call);
        (answer.fate, answer.reason)
    };
    let pass = |reason| (own::Fate::Pass, reason);
    assert_eq!(fate(CLIENT, 80, TCP), pass(Reason::NotListener));
    assert_eq!(fate(VIP, 81, TCP), pass(Reason::NotListener));
    assert_eq!(fate(VIP, 80, UDP), pass(Reason::NotListener));
    // The agent's checks go there.
    assert_eq!(fate(MASTER_ADDR, 8080, TCP), pass(Reason::Direct));
    let decide = |action, target| {
        host.decide(Decision {
            action,
            ..steer_to(target)
        });
        fate(VIP, 80, TCP)
    };
    assert_eq!(decide(Action::Pass, 0), pass(Reason::Undecided));
    assert_eq!(
        decide(Action::Refuse, 0),
        (own::Fate::Refuse, Reason::Refused)
    );
    assert_eq!(decide(Action::Steer, 99), pass(Reason::Undecided));
    // A ring that is another service's.
    assert_eq!(decide(Action::Spread, 99), pass(Reason::Undecided));
    let mut host = Host::new();
    host.endpoints.get_mut(&MASTER).unwrap().families = FAMILY_V6;
    let answer = own::steer(&host, &call(VIP, 80, 7));
    assert_eq!(
        (answer.fate, answer.reason),
        (own::Fate::Refuse, Reason::NoAddress)
    );
}

#[test]
fn sockets_of_the_node_share_the_endpoints_of_a_tier() {
    let mut host = Host::shared();
    let goes = |host: &Host, cookie| own::steer(host, &call(VIP, 80, cookie)).endpoint;
    let mut shares: HashMap<u32, u32> = HashMap::new();
    for cookie in 1..=3000 {
        let id = goes(&host, cookie);
        // A datagram socket that asks again.
        assert_eq!(goes(&host, cookie), id);
        *shares.entry(id).or_default() += 1;
    }
    for id in [MASTER, BACKUP, THIRD] {
        assert!((800..1200).contains(&shares[&id]), "{shares:?}");
    }
    assert!(host.affinities.borrow().is_empty());

    // The node is one client, and stays where it is while that may be.
    host.keep_clients(10);
    let kept = goes(&host, 1);
    for cookie in 2..100 {
        assert_eq!(goes(&host, cookie), kept);
        host.later(5);
    }
    host.rings
        .insert(2, ring_of(&[MASTER, BACKUP, THIRD, THIRD]));
    host.decide(spread_over(2));
    assert_eq!(goes(&host, 100), kept);
    host.mark(kept, ENDPOINT_DOWN);
    let others: Vec<u32> = [MASTER, BACKUP, THIRD]
        .into_iter()
        .filter(|id| *id != kept)
        .collect();
    host.rings.insert(3, ring_of(&others));
    host.decide(spread_over(3));
    let next = goes(&host, 101);
    assert!(others.contains(&next));
    assert_eq!(goes(&host, 102), next);
    assert_eq!(host.affinities.borrow().len(), 1);
}

#[test]
fn mapped_addresses_are_those_of_ipv4() {
    let bytes = VIP.mapped();
    assert_eq!(own::mapped(VIP), V6::from_bytes(bytes));
    assert_eq!(own::unmapped(V6::from_bytes(bytes)), Some(VIP));
    for other in [
        V6::default(),
        V6::from_bytes(*b"0123456789abcdef"),
        V6::from_bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 10, 0, 0, 1]),
        V6::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]),
    ] {
        assert_eq!(own::unmapped(other), None);
    }
}
