//! The programs under BPF_PROG_TEST_RUN, their tables, and packets for them.

mod packet;
mod tables;

use std::{io::Write, sync::Once};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program as AyaProgram, SchedClassifier, TestRun, TestRunOptions, Xdp},
    util::KernelVersion,
};
use probe_ebpf::{
    abi::{ENDPOINT_UP, Endpoint, FAMILY_V4, FAMILY_V6, FORWARD_NAT, LISTENER_OWN, V4, V6},
    names,
    packet::parse::{TCP, UDP},
};
use probe_user::datapath::OBJECT;

pub use packet::*;
use tables::Image;
pub use tables::{alone, place_of, spread, steer};

pub const SERVICE: u32 = 5;
pub const MASTER: u32 = 17;
pub const BACKUP: u32 = 4000;
const FLOWS: u32 = 1024;

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
}
