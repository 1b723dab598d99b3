//! The programs under BPF_PROG_TEST_RUN, and packets for them.

mod packet;

use std::{
    io::Write,
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Once,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::{Program as AyaProgram, SchedClassifier, TestRun, TestRunOptions, Xdp},
    util::KernelVersion,
};
use probe_ebpf::{
    abi::{
        Action, Affinity, AffinityKey, CachedListener, Decision, ENDPOINT_UP, Endpoint,
        EndpointCounters, FAMILY_V4, FAMILY_V6, FORWARD_DSR, FORWARD_FULL_NAT, FORWARD_NAT,
        FlowKey, ForwardFlow, KEY_WORDS, LINES_A_POOL, LISTENER_ENDPOINT, LISTENER_MAIN,
        LISTENER_OWN, LISTENER_SELECTION, Listener, ListenerKey, NO_ENDPOINT, Node, PREVIOUS_RING,
        Plain, PortLine, RING_SIZE, Reason, ReverseFlow, Ring, SIEVE_WORDS, SLOT_ALONE,
        SLOT_ALONE_DIRECT, Selection, Sieve, V4, V6, place,
    },
    names,
    packet::parse::{TCP, UDP},
};
use probe_user::datapath::OBJECT;

pub use packet::*;

pub const SERVICE: u32 = 5;
pub const MASTER: u32 = 17;
pub const BACKUP: u32 = 4000;
const FLOWS: u32 = 1024;

/// An ABI type as aya's maps want it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Image<T>(T);
// SAFETY: `Plain` promises what `Pod` wants.
unsafe impl<T: Plain + Copy> Pod for Image<T> {}

/// A program, by where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Xdp,
    XdpFrags,
    Tc,
    Reverse,
    /// Behind an XDP program: sends on what that left to it.
    Relay,
}

impl Program {
    /// Those that see what clients send, as far as this kernel has them.
    pub const FORWARD: Forward = Forward;

    /// Linux 5.18 has programs for packets of several buffers (c2f2cdbeffda) and
    /// `bpf_xdp_get_buff_len` (0165cc817075); the agent does with `probe_xdp` before.
    fn exists(self) -> bool {
        self != Self::XdpFrags
            || KernelVersion::current().expect("uname") >= KernelVersion::new(5, 18, 0)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => names::PROGRAM_XDP_FORWARD,
            Self::XdpFrags => names::PROGRAM_XDP_FORWARD_FRAGS,
            Self::Tc => names::PROGRAM_TC_FORWARD,
            Self::Reverse => names::PROGRAM_TC_REVERSE,
            Self::Relay => names::PROGRAM_TC_RELAY,
        }
    }

    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::Xdp | Self::XdpFrags)
    }

    /// The kernel's own test runner refuses to make a socket buffer of an IP packet
    /// without a whole IP header, so TC programs cannot be given one here.
    pub fn accepts(self, packet: &[u8]) -> bool {
        let whole = match packet[12..14] {
            [0x08, 0x00] => 34,
            [0x86, 0xdd] => 54,
            _ => 15,
        };
        self.is_xdp() || packet.len() >= whole
    }

    /// XDP_DROP, or TC_ACT_SHOT.
    pub const fn drop(self) -> u32 {
        if self.is_xdp() { 1 } else { 2 }
    }

    /// XDP_PASS, or TC_ACT_UNSPEC.
    pub const fn pass(self) -> u32 {
        if self.is_xdp() { 2 } else { u32::MAX }
    }

    /// XDP_TX, or TC_ACT_REDIRECT: back to the sender, or on to the next hop.
    pub const fn turn_round(self) -> u32 {
        if self.is_xdp() { 3 } else { 7 }
    }
}

/// [`Program::FORWARD`].
#[derive(Clone, Copy)]
pub struct Forward;

impl Forward {
    pub fn count(self) -> usize {
        self.into_iter().count()
    }
}

impl IntoIterator for Forward {
    type Item = Program;
    type IntoIter = std::iter::Filter<std::array::IntoIter<Program, 3>, fn(&Program) -> bool>;

    fn into_iter(self) -> Self::IntoIter {
        [Program::Xdp, Program::XdpFrags, Program::Tc]
            .into_iter()
            .filter(|program| program.exists())
    }
}

/// What a program shall answer, and the whole packet it shall leave.
#[derive(Clone)]
pub enum Expect {
    Pass(Vec<u8>),
    Reset(Box<Packet>),
}

impl Expect {
    pub fn passed(packet: &[u8]) -> Self {
        Self::Pass(packet.to_vec())
    }

    pub fn changed(packet: &[u8]) -> Self {
        Self::Pass(packet.to_vec())
    }

    pub fn reset(answered: &Packet) -> Self {
        Self::Reset(Box::new(answered.clone()))
    }
}

/// The loaded object with one service: a master and a backup behind a VIP.
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Without any listener. `None`, with a word, where BPF is not allowed; a failure
    /// where CI demands it.
    pub fn bare() -> Option<Self> {
        // SAFETY: reads the effective user id.
        if unsafe { libc::geteuid() } != 0 {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI runs these tests as root"
            );
            println!("SKIPPED: needs root for BPF_PROG_TEST_RUN");
            return None;
        }
        let mut loader = EbpfLoader::new();
        for name in [
            names::MAP_FORWARD_V4,
            names::MAP_FORWARD_V6,
            names::MAP_REVERSE_V4,
            names::MAP_REVERSE_V6,
        ] {
            loader.map_max_entries(name, FLOWS);
        }
        let mut ebpf = loader.load(OBJECT).expect("the object's maps load");
        if !Program::XdpFrags.exists() {
            // Past libtest's capture, once for all tests.
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                let name = Program::XdpFrags.name();
                let line = format!("DEGRADED: {name} needs Linux 5.18: without it here\n");
                std::io::stdout().write_all(line.as_bytes()).ok();
            });
        }
        let missing =
            |name: &&str| *name == Program::XdpFrags.name() && !Program::XdpFrags.exists();
        for name in names::PROGRAMS.into_iter().filter(|name| !missing(name)) {
            match ebpf.program_mut(name).expect(name) {
                AyaProgram::Xdp(program) => program.load().expect(name),
                AyaProgram::SchedClassifier(program) => program.load().expect(name),
                other => panic!("{name} is {other:?}"),
            }
        }
        // They see no packets; here they have to pass the verifier.
        for (name, _) in names::OWN_PROGRAMS {
            match ebpf.program_mut(name).expect(name) {
                AyaProgram::CgroupSockAddr(program) => program.load().expect(name),
                AyaProgram::CgroupSock(program) => program.load().expect(name),
                other => panic!("{name} is {other:?}"),
            }
        }
        Some(Self { ebpf })
    }

    /// [`Programs::bare`] with the service.
    pub fn load() -> Option<Self> {
        let mut programs = Self::bare()?;
        programs.follow(VIP_PORT);
        for (id, tier, v4, v6, port) in [
            (MASTER, 0, MASTER_V4, MASTER_V6, MASTER_PORT),
            (BACKUP, 1, BACKUP_V4, BACKUP_V6, BACKUP_PORT),
        ] {
            let endpoint = Endpoint {
                v6_be: V6::from_bytes(v6),
                v4_be: V4::from_bytes(v4),
                port_be: port.to_be(),
                families: FAMILY_V4 | FAMILY_V6,
                tier,
                service: SERVICE,
                state: ENDPOINT_UP,
                forward: FORWARD_NAT,
                pool: 0,
                next: id,
                head: id,
                below: if id == MASTER { BACKUP } else { MASTER },
            };
            programs
                .array(names::MAP_ENDPOINTS)
                .set(id, Image(endpoint), 0)
                .expect("in range");
            for protocol in [TCP, UDP] {
                programs.listener(v4, v6, port, protocol, id, LISTENER_OWN);
            }
        }
        programs.decide(steer(MASTER));
        // As an agent does that has swept: unknown clients may have entries.
        programs
            .array::<[u64; 7]>(names::MAP_NODE)
            .set(0, [0, 0, u64::MAX, 0, 0, 0, 0], 0)
            .expect("there is one");
        Some(programs)
    }

    fn array<T: Pod>(&mut self, name: &str) -> Array<&mut MapData, T> {
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

    fn listener(
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

    /// Runs a program once. Answers its verdict and the packet it left.
    pub fn run(&mut self, program: Program, packet: &[u8]) -> (u32, Vec<u8>) {
        self.run_in(program, packet, None)
    }

    /// The same with the context's bytes.
    pub fn run_in(
        &mut self,
        program: Program,
        packet: &[u8],
        context: Option<&[u8]>,
    ) -> (u32, Vec<u8>) {
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::default()
        };
        let done = match self.ebpf.program(program.name()).expect("loaded") {
            AyaProgram::Xdp(p) => Xdp::test_run(p, options),
            AyaProgram::SchedClassifier(p) => SchedClassifier::test_run(p, options),
            other => panic!("{other:?}"),
        }
        .expect("the test run itself works");
        out.truncate(done.data_size_out as usize);
        (done.return_value, out)
    }

    pub fn expect(&mut self, program: Program, packet: &[u8], wanted: Expect) {
        let (verdict, out) = self.run(program, packet);
        match wanted {
            Expect::Pass(bytes) => {
                assert_eq!(verdict, program.pass(), "verdict of {program:?}");
                assert_eq!(hex(&out), hex(&bytes), "packet left by {program:?}");
            }
            Expect::Reset(answered) => {
                assert_eq!(verdict, program.turn_round(), "verdict of {program:?}");
                check_reset(&answered, &out);
            }
        }
    }

    /// The endpoint's packet is turned into one that comes in where its client's did.
    pub fn redirects(&mut self, packet: &Packet, wanted: &Packet) {
        let (verdict, out) = self.run(Program::Reverse, &packet.bytes());
        assert_eq!(verdict, Program::Reverse.turn_round(), "verdict");
        assert_eq!(hex(&out), hex(&wanted.bytes()), "what comes in");
    }

    /// Lets the master answer a SYN, so that its flow is established.
    pub fn answer(&mut self, syn: &Packet) {
        let answer = syn.clone().at_master().answered();
        self.run(Program::Reverse, &answer.bytes());
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
