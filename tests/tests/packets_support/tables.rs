//! The tables of the programs: filled as the agent fills them, read, and emptied.

use std::{
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use probe_ebpf::{
    abi::{
        Action, Affinity, AffinityKey, CachedListener, Decision, Endpoint, EndpointCounters,
        FORWARD_DSR, FORWARD_FULL_NAT, FlowKey, ForwardFlow, KEY_WORDS, LINES_A_POOL,
        LISTENER_ENDPOINT, LISTENER_MAIN, LISTENER_SELECTION, Listener, ListenerKey, NO_ENDPOINT,
        Node, PREVIOUS_RING, Plain, PortLine, RING_SIZE, Reason, ReverseFlow, Ring, SIEVE_WORDS,
        SLOT_ALONE, SLOT_ALONE_DIRECT, Selection, Sieve, V4, V6, place,
    },
    names,
    packet::parse::{TCP, UDP},
};

use super::{
    BACKUP, CLIENT_V4, CLIENT_V6, FLOWS, Family, MASTER, Programs, SERVICE, VIP_PORT, VIP_V4,
    VIP_V6,
};

/// An ABI type as aya's maps want it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Image<T>(pub(super) T);
// SAFETY: `Plain` promises what `Pod` wants.
unsafe impl<T: Plain + Copy> Pod for Image<T> {}

impl Programs {
    pub(super) fn array<T: Pod>(&mut self, name: &str) -> Array<&mut MapData, T> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }

    /// Makes a port of the VIP follow the selection, in both families.
    pub fn follow(&mut self, port: u16) {
        self.listener(VIP_V4, VIP_V6, port, TCP, 0, LISTENER_SELECTION);
    }

    /// The same for datagrams.
    pub fn follow_udp(&mut self, port: u16) {
        self.listener(VIP_V4, VIP_V6, port, UDP, 0, LISTENER_SELECTION);
    }

    /// Makes a port of the VIP reach one endpoint, in both families.
    pub fn pin(&mut self, port: u16, endpoint: u32) {
        self.listener(VIP_V4, VIP_V6, port, TCP, endpoint, LISTENER_ENDPOINT);
    }

    pub(super) fn listener(
        &mut self,
        v4: [u8; 4],
        v6: [u8; 16],
        port: u16,
        protocol: u8,
        endpoint: u32,
        kind: u32,
    ) {
        fn key<A>(addr_be: A, port: u16, protocol: u8) -> Image<ListenerKey<A>> {
            Image(ListenerKey {
                addr_be,
                port_be: port.to_be(),
                protocol,
                pad: 0,
            })
        }
        let listener = Image(Listener {
            service: SERVICE,
            endpoint,
            kind,
            flags: match kind {
                LISTENER_SELECTION if port == VIP_PORT => LISTENER_MAIN,
                _ => 0,
            },
        });
        let v4_key = key(V4::from_bytes(v4), port, protocol);
        let v6_key = key(V6::from_bytes(v6), port, protocol);
        let mut sieve = self.array::<[u64; SIEVE_WORDS]>(names::MAP_SIEVE);
        let mut words = sieve.get(&0, 0).expect("in range");
        for bit in [v4_key.0.bit(), v6_key.0.bit()] {
            let (word, mask) = Sieve::place(bit);
            words[word] |= mask;
        }
        sieve.set(0, words, 0).expect("in range");
        // Half of them stand in the cache, so rows come by both ways.
        if port.is_multiple_of(2) {
            let places = [
                (v4_key.0.bit(), v4_key.0.words()),
                (v6_key.0.bit(), v6_key.0.words()),
            ];
            let mut cache = self.array::<[u64; 1 + KEY_WORDS]>(names::MAP_LISTENER_CACHE);
            for (bit, [high, low, rest]) in places {
                let slot = [listener.0.pack(), high, low, rest];
                cache
                    .set(CachedListener::slot(bit), slot, 0)
                    .expect("in range");
            }
        }
        self.hash(names::MAP_LISTENERS_V4)
            .insert(v4_key, listener, 0)
            .expect("room");
        self.hash(names::MAP_LISTENERS_V6)
            .insert(v6_key, listener, 0)
            .expect("room");
    }

    pub fn decide(&mut self, decision: Decision) {
        const WORDS: usize = size_of::<Selection>() / 8;
        let mut slots = self.array::<[u64; WORDS]>(names::MAP_SELECTIONS);
        let before = slots.get(&SERVICE, 0).expect("in range");
        let mut words = [0u64; WORDS];
        words[0] = decision.pack();
        // The words before: what was decided.
        let previous = match Decision::unpack(before[0]) {
            Decision {
                action: Action::Steer,
                target,
                ..
            } => target,
            Decision {
                action: Action::Spread,
                target,
                ..
            } => target | PREVIOUS_RING,
            _ => NO_ENDPOINT,
        };
        let at = offset_of!(Selection, previous) / 8;
        // The other half is the affinity's.
        words[at] = before[at] >> 32 << 32 | u64::from(previous);
        slots.set(SERVICE, words, 0).expect("in range");
    }

    /// Writes a ring: what stands at each place.
    pub fn fill(&mut self, ring: u32, at: impl Fn(usize) -> u32) {
        const PLACES: usize = size_of::<Ring>() / 2;
        let mut places = [0u16; PLACES];
        for (place, id) in places.iter_mut().enumerate().take(RING_SIZE) {
            *id = at(place) as u16;
        }
        self.array::<[u16; PLACES]>(names::MAP_RINGS)
            .set(ring, places, 0)
            .expect("in range");
    }

    /// Clients keep their endpoint for so long.
    pub fn keep_clients(&mut self, units: u32) {
        const WORDS: usize = size_of::<Selection>() / 8;
        let mut slots = self.array::<[u64; WORDS]>(names::MAP_SELECTIONS);
        let mut words = slots.get(&SERVICE, 0).expect("in range");
        let at = offset_of!(Selection, affinity);
        assert_eq!(at % 8, 4);
        words[at / 8] = words[at / 8] as u32 as u64 | u64::from(units) << 32;
        slots.set(SERVICE, words, 0).expect("in range");
    }

    /// Lets the agent's clock go on.
    pub fn later(&mut self, units: u32) {
        let mut node = self.array::<[u64; 7]>(names::MAP_NODE);
        let mut words = node.get(&0, 0).expect("there");
        words[3] += u64::from(units);
        node.set(0, words, 0).expect("there");
    }

    /// Whether the way by the slot alone has ended, and whether there are side ways.
    pub fn stamps(&mut self) -> (bool, bool) {
        const WORDS: usize = size_of::<Selection>() / 8;
        let slots = self.array::<[u64; WORDS]>(names::MAP_SELECTIONS);
        let words = slots.get(&SERVICE, 0).expect("in range");
        let set = |offset: usize| words[offset / 8] != 0;
        (
            set(offset_of!(Selection, exceptions)),
            set(offset_of!(Selection, side)),
        )
    }

    pub fn mark(&mut self, id: u32, state: u32) {
        let mut endpoints = self.array::<Image<Endpoint>>(names::MAP_ENDPOINTS);
        let Image(endpoint) = endpoints.get(&id, 0).expect("in range");
        endpoints
            .set(id, Image(Endpoint { state, ..endpoint }), 0)
            .expect("in range");
    }

    /// Hides the clients of both endpoints behind these addresses (full NAT). XDP programs
    /// may send.
    pub fn hide(&mut self, v4: [u8; 4], v6: [u8; 16]) {
        for (pool, id) in [MASTER, BACKUP].into_iter().enumerate() {
            let mut endpoints = self.array::<Image<Endpoint>>(names::MAP_ENDPOINTS);
            let Image(mut endpoint) = endpoints.get(&id, 0).expect("in range");
            endpoint.forward = FORWARD_FULL_NAT;
            endpoint.pool = pool as u32;
            endpoints.set(id, Image(endpoint), 0).expect("in range");
        }
        self.patch_node(offset_of!(Node, source_v4), &v4);
        self.patch_node(offset_of!(Node, source_v6), &v6);
        self.patch_node(offset_of!(Node, may_send), &[1, 0, 0, 0]);
    }

    /// Puts the endpoints behind direct server return: they listen at the VIP's port.
    pub fn return_directly(&mut self) {
        for id in [MASTER, BACKUP] {
            let mut endpoints = self.array::<Image<Endpoint>>(names::MAP_ENDPOINTS);
            let Image(mut endpoint) = endpoints.get(&id, 0).expect("in range");
            endpoint.forward = FORWARD_DSR;
            endpoint.port_be = VIP_PORT.to_be();
            endpoints.set(id, Image(endpoint), 0).expect("in range");
        }
        self.patch_node(offset_of!(Node, may_send), &[1, 0, 0, 0]);
    }

    /// The agent looks for silent endpoints.
    pub fn look(&mut self, tick: u32) {
        self.patch_node(offset_of!(Node, tick), &tick.to_ne_bytes());
    }

    /// Since when an endpoint has answered no SYN, which is forgotten.
    pub fn silent_since(&mut self, id: u32) -> u32 {
        let mut silences = self.array::<[u32; 2]>(names::MAP_SILENCES);
        let [since, _] = silences.get(&id, 0).expect("in range");
        silences.set(id, [0; 2], 0).expect("in range");
        since
    }

    /// XDP programs may not send any more.
    pub fn forbid_sending(&mut self) {
        self.patch_node(offset_of!(Node, may_send), &[0; 4]);
    }

    fn patch_node(&mut self, at: usize, bytes: &[u8]) {
        const SIZE: usize = size_of::<Node>();
        let mut node = self.array::<[u8; SIZE]>(names::MAP_NODE);
        let mut words = node.get(&0, 0).expect("there");
        words[at..at + bytes.len()].copy_from_slice(bytes);
        node.set(0, words, 0).expect("there");
    }

    /// Marks every source port towards an endpoint, by the number of its pool.
    pub fn mark_ports(&mut self, pool: u32, mark: u8) {
        const SIZE: usize = size_of::<PortLine>();
        let mut ports = self.array::<[u8; SIZE]>(names::MAP_PORTS);
        for line in pool * LINES_A_POOL..(pool + 1) * LINES_A_POOL {
            ports.set(line, [mark; SIZE], 0).expect("in range");
        }
    }

    pub fn reason(&self, reason: Reason) -> u64 {
        let map = self.ebpf.map(names::MAP_REASON_COUNTERS).expect("there");
        let counters: PerCpuArray<_, u64> = map.try_into().expect("its type");
        counters
            .get(&(reason as u32), 0)
            .expect("in range")
            .iter()
            .sum()
    }

    pub fn endpoint_counters(&self, id: u32) -> EndpointCounters {
        let map = self.ebpf.map(names::MAP_ENDPOINT_COUNTERS).expect("there");
        let counters: PerCpuArray<_, Image<EndpointCounters>> = map.try_into().expect("its type");
        let mut sum = EndpointCounters::default();
        for Image(cpu) in counters.get(&id, 0).expect("in range").iter() {
            sum.forward_packets += cpu.forward_packets;
            sum.flows_opened += cpu.flows_opened;
        }
        sum
    }

    fn tables<K: Pod, const F: usize, const R: usize>(
        &mut self,
        names: [&str; 2],
        forget: bool,
    ) -> (usize, usize) {
        let mut forward = self.hash::<K, [u8; F]>(names[0]);
        let keys: Vec<K> = forward.keys().map(|k| k.expect("iterates")).collect();
        let count = keys.len();
        for key in keys.iter().filter(|_| forget) {
            forward.remove(key).expect("was there");
        }
        let mut reverse = self.hash::<K, [u8; R]>(names[1]);
        let keys: Vec<K> = reverse.keys().map(|k| k.expect("iterates")).collect();
        for key in keys.iter().filter(|_| forget) {
            reverse.remove(key).expect("was there");
        }
        (count, keys.len())
    }

    fn family_tables(&mut self, family: Family, forget: bool) -> (usize, usize) {
        const F: usize = size_of::<ForwardFlow>();
        match family {
            Family::V4 => self.tables::<Image<FlowKey<V4>>, F, { size_of::<ReverseFlow<V4>>() }>(
                [names::MAP_FORWARD_V4, names::MAP_REVERSE_V4],
                forget,
            ),
            Family::V6 => self.tables::<Image<FlowKey<V6>>, F, { size_of::<ReverseFlow<V6>>() }>(
                [names::MAP_FORWARD_V6, names::MAP_REVERSE_V6],
                forget,
            ),
        }
    }

    /// Entries of the forward and the reverse table.
    pub fn flows(&mut self, family: Family) -> (usize, usize) {
        self.family_tables(family, false)
    }

    pub fn forget_flows(&mut self) {
        for family in Family::BOTH {
            self.family_tables(family, true);
        }
        self.forget_clients::<AffinityKey<V4>>(names::MAP_AFFINITY_V4);
        self.forget_clients::<AffinityKey<V6>>(names::MAP_AFFINITY_V6);
        self.forget_notes();
    }

    fn forget_clients<K: Plain + Copy>(&mut self, name: &str) {
        let mut clients = self.hash::<Image<K>, [u8; size_of::<Affinity>()]>(name);
        let keys: Vec<_> = clients.keys().map(|k| k.expect("iterates")).collect();
        for key in keys {
            clients.remove(&key).expect("was there");
        }
    }

    /// Clients of a family that keep their endpoint.
    pub fn clients(&mut self, family: Family) -> usize {
        const SIZE: usize = size_of::<Affinity>();
        match family {
            Family::V4 => {
                let map = self.hash::<Image<AffinityKey<V4>>, [u8; SIZE]>(names::MAP_AFFINITY_V4);
                map.keys().count()
            }
            Family::V6 => {
                let map = self.hash::<Image<AffinityKey<V6>>, [u8; SIZE]>(names::MAP_AFFINITY_V6);
                map.keys().count()
            }
        }
    }

    /// Empties the tables of notes, which the kernel lets us map: thousands of tests would
    /// wait for thousands of system calls each.
    fn forget_notes(&mut self) {
        for name in [
            names::MAP_RECENT_V4,
            names::MAP_RECENT_V6,
            names::MAP_SYNS_V4,
            names::MAP_SYNS_V6,
        ] {
            let Some(Map::Array(data)) = self.ebpf.map(name) else {
                panic!("{name} is an array");
            };
            let info = data.info().expect("the kernel tells");
            let length = (info.value_size() * info.max_entries()) as usize;
            let fd = data.fd().as_fd().as_raw_fd();
            // SAFETY: a fresh mapping of the map's whole memory, written and unmapped here; no
            // program runs meanwhile.
            unsafe {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let notes = libc::mmap(
                    std::ptr::null_mut(),
                    length,
                    access,
                    libc::MAP_SHARED,
                    fd,
                    0,
                );
                assert_ne!(notes, libc::MAP_FAILED, "{name} can be mapped");
                notes.cast::<u8>().write_bytes(0, length);
                libc::munmap(notes, length);
            }
        }
    }

    /// Compares every map that would be pinned with what the agent expects of a pin.
    pub fn check_shapes(&self) {
        for name in names::PINNED_MAPS {
            let data = match self.ebpf.map(name).expect(name) {
                Map::Array(data)
                | Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::PerCpuArray(data) => data,
                other => panic!("{name} is {other:?}"),
            };
            let info = data.info().expect("the kernel tells");
            probe_user::datapath::check_shape(name, &info, FLOWS).expect(name);
        }
    }
}

pub fn steer(endpoint: u32) -> Decision {
    Decision {
        action: Action::Steer,
        flags: 0,
        tier: 0,
        target: endpoint,
    }
}

/// By the slot alone wherever that may be.
pub fn alone(endpoint: u32) -> Decision {
    Decision {
        flags: SLOT_ALONE | SLOT_ALONE_DIRECT,
        ..steer(endpoint)
    }
}

/// To several, as this ring says.
pub fn spread(ring: u32) -> Decision {
    Decision {
        action: Action::Spread,
        flags: SLOT_ALONE_DIRECT,
        tier: 0,
        target: ring,
    }
}

/// A client's place in a ring.
pub fn place_of(family: Family, client_port: u16) -> usize {
    match family {
        Family::V4 => place(V4::from_bytes(CLIENT_V4), client_port.to_be()),
        Family::V6 => place(V6::from_bytes(CLIENT_V6), client_port.to_be()),
    }
}
