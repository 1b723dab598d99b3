//! The programs in the kernel, and how one of them is run.
//!
//! The datapath is opened and filled by the agent's own code, under pins of the
//! bench's private BPF file system. Its programs are then loaded once more over the
//! same pinned maps, since the agent gives its own to nobody.

use std::{
    fs,
    mem::offset_of,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{Program, ProgramFd, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp},
};
use probe_ebpf::{abi::Node, names};
use probe_user::datapath::{
    AppliedService, Choice, EndpointPlan, Forward, Limits, LogLevel, Mark, OwnMode, ServicePlan,
    Steering, TcMode, XdpMode, XdpSend,
    kernel::{Datapath, Options},
};

use crate::{
    job::Job,
    packets::{
        BACKUP_V4, BACKUP_V6, ENDPOINT_PORT, Family, Kind, MASTER_V4, MASTER_V6, VIP_PORT, VIP_V4,
        VIP_V6, frame, template,
    },
};

/// Where the bench's namespace has its BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

/// [`Job`] as aya's maps want it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Order(Job);
// SAFETY: repr(C), integers only, padding is a named field.
unsafe impl Pod for Order {}

/// A datapath as an agent has it: one service, master and backup, master selected.
pub struct Instance {
    pub datapath: Datapath,
    pub service: AppliedService,
    pub ebpf: Ebpf,
}

impl Instance {
    /// `name` tells its pins apart; `flows` is the size of each flow table; the programs
    /// are those of `object`.
    pub fn open(name: &str, flows: u32, object: &[u8]) -> Result<Self> {
        let bpffs = Path::new(BPFFS).join(name);
        fs::create_dir(&bpffs).context("cannot make a folder for pins")?;
        let mut datapath = Datapath::open(&Options {
            timeouts: Limits::default(),
            bpffs,
            tc: TcMode::Auto,
            xdp: XdpMode::Auto,
            flows,
            log: LogLevel::Warn,
            learn: Duration::ZERO,
            uplinks: true,
            source_v4: None,
            source_v6: None,
            xdp_send: XdpSend::Auto,
            own: OwnMode::Off,
            cgroup: PathBuf::new(),
        })?;
        let endpoint = |name: &str, tier, v4, v6| EndpointPlan {
            name: name.to_owned(),
            tier,
            weight: 1,
            v4: Some(v4),
            v6: Some(v6),
            port: ENDPOINT_PORT,
            listeners: Vec::new(),
        };
        let plan = ServicePlan {
            name: "bench".to_owned(),
            listeners: [
                SocketAddr::from((VIP_V4, VIP_PORT)),
                (VIP_V6, VIP_PORT).into(),
            ]
            .map(Into::into)
            .to_vec(),
            endpoints: vec![
                endpoint("master", 0, MASTER_V4, MASTER_V6),
                endpoint("backup", 1, BACKUP_V4, BACKUP_V6),
            ],
            keep_flows_of_down: false,
            single_writer: false,
            forward: Forward::Nat,
            affinity: None,
        };
        let service = datapath
            .apply(&[plan])?
            .pop()
            .context("one service was asked for")?;
        for id in &service.endpoints {
            datapath.mark(*id, Mark::Up)?;
        }
        datapath.select(service.id, Choice::Endpoint(service.endpoints[0]))?;
        sweep(&mut datapath)?;
        let ebpf = programs(&datapath, flows, object)?;
        Ok(Self {
            datapath,
            service,
            ebpf,
        })
    }

    /// After switches: as an agent does every few seconds.
    pub fn settle(&mut self) -> Result<()> {
        sweep(&mut self.datapath)?;
        self.grant_all()
    }

    /// Lets any number of flows get their entries at the endpoint's answer, which an agent
    /// does by and by as it finds room.
    pub fn grant_all(&mut self) -> Result<()> {
        const LIMIT: usize = offset_of!(Node, limit) / 8;
        let map = self.ebpf.map_mut(names::MAP_NODE).context("no node")?;
        let mut node = Array::<_, [u64; size_of::<Node>() / 8]>::try_from(map)?;
        let mut words = node.get(&0, 0)?;
        words[LIMIT] = u64::MAX;
        Ok(node.set(0, words, 0)?)
    }
}

/// As an agent does every few seconds: from here on nothing goes elsewhere.
fn sweep(datapath: &mut Datapath) -> Result<()> {
    let swept = datapath.sweeper()?.sweep()?;
    Ok(datapath.after_sweep(&swept)?)
}

/// The datapath's programs over its pinned maps.
fn programs(datapath: &Datapath, flows: u32, object: &[u8]) -> Result<Ebpf> {
    let folder = datapath.pins().join(names::PIN_MAPS);
    let paths = names::PINNED_MAPS.map(|name| (name, folder.join(name)));
    let level = LogLevel::Warn as u8;
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &level, true);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    for name in [
        names::MAP_FORWARD_V4,
        names::MAP_FORWARD_V6,
        names::MAP_REVERSE_V4,
        names::MAP_REVERSE_V6,
    ] {
        loader.map_max_entries(name, flows);
    }
    let mut ebpf = loader.load(object).context("the datapath's object")?;
    load_all(&mut ebpf)?;
    Ok(ebpf)
}

fn load_all(ebpf: &mut Ebpf) -> Result<()> {
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            // Those of the node's own processes run once a connection, not once a packet.
            Program::CgroupSockAddr(_) | Program::CgroupSock(_) => Ok(()),
            _ => bail!("program {name} is of no kind that is benched"),
        }
        .with_context(|| format!("program {name}"))?;
    }
    Ok(())
}

/// Which driver runs a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    pub const fn shown(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::Tc => "TC",
        }
    }
}

const fn driver(hook: Hook, family: Family, back: bool) -> &'static str {
    match (hook, family, back) {
        (Hook::Xdp, Family::V4, _) => "drive_xdp_v4",
        (Hook::Xdp, Family::V6, _) => "drive_xdp_v6",
        (Hook::Tc, Family::V4, false) => "drive_tc_v4",
        (Hook::Tc, Family::V6, false) => "drive_tc_v6",
        (Hook::Tc, Family::V4, true) => "drive_back_v4",
        (Hook::Tc, Family::V6, true) => "drive_back_v6",
    }
}

/// Which flows a run walks through.
#[derive(Clone, Copy, Debug)]
pub enum Walk {
    /// All of this many, a power of two, in an order that nobody foresees.
    Among(u32),
    /// One after the other from here on.
    From(u32),
}

/// Floors and drivers.
pub struct Drivers {
    ebpf: Ebpf,
    job: Array<MapData, Order>,
    xdp: ProgramArray<MapData>,
    tc: ProgramArray<MapData>,
    /// Where the walks among flows are.
    number: u32,
}

/// What a run was like.
pub struct Ran {
    /// Of this thread's CPU time, for one packet.
    pub ns: f64,
    pub verdict: u32,
    pub packet: Vec<u8>,
}

impl Drivers {
    pub fn load(object: &Path) -> Result<Self> {
        let bytes = fs::read(object)
            .with_context(|| format!("cannot read the floors {}", object.display()))?;
        let mut ebpf = EbpfLoader::new().load(&bytes).context("the floors' maps")?;
        load_all(&mut ebpf)?;
        let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("map {name}"));
        let job = take("JOB")?.try_into()?;
        let xdp = take("XDP_TARGET")?.try_into()?;
        let tc = take("TC_TARGET")?.try_into()?;
        let mut drivers = Self {
            ebpf,
            job,
            xdp,
            tc,
            number: 0,
        };
        drivers.fill_vips()?;
        Ok(drivers)
    }

    /// The floors know the same VIP and endpoint as the datapath.
    fn fill_vips(&mut self) -> Result<()> {
        const SLOT: u32 = 7;
        fn entry<const N: usize>(addr: &[u8], port: u16, last: u16) -> [u8; N] {
            let mut bytes = [0; N];
            bytes[..N - 4].copy_from_slice(addr);
            bytes[N - 4..N - 2].copy_from_slice(&port.to_be_bytes());
            bytes[N - 2..].copy_from_slice(&last.to_ne_bytes());
            bytes
        }
        const TCP: u16 = 6;
        let vip = VIP_V4.octets();
        self.hash::<[u8; 8]>("FLOOR_VIPS_V4")?
            .insert(entry(&vip, VIP_PORT, TCP), SLOT, 0)?;
        let vip = VIP_V6.octets();
        self.hash::<[u8; 20]>("FLOOR_VIPS_V6")?
            .insert(entry(&vip, VIP_PORT, TCP), SLOT, 0)?;
        let endpoint = MASTER_V4.octets();
        self.slots::<[u8; 8]>("FLOOR_SLOTS_V4")?.set(
            SLOT,
            entry(&endpoint, ENDPOINT_PORT, 0),
            0,
        )?;
        let endpoint = MASTER_V6.octets();
        self.slots::<[u8; 20]>("FLOOR_SLOTS_V6")?.set(
            SLOT,
            entry(&endpoint, ENDPOINT_PORT, 0),
            0,
        )?;
        Ok(())
    }

    fn hash<K: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, u32>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("map {name}"))?;
        Ok(map.try_into()?)
    }

    fn slots<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("map {name}"))?;
        Ok(map.try_into()?)
    }

    /// A program of the floors.
    pub fn floor(&self, name: &str) -> Result<ProgramFd> {
        descriptor(&self.ebpf, name)
    }

    /// Points the driver at a program and runs it over packets of a kind.
    pub fn run(
        &mut self,
        target: &ProgramFd,
        hook: Hook,
        family: Family,
        kind: Kind,
        walk: Walk,
        repeat: u32,
    ) -> Result<Ran> {
        let (number, multiplier, increment, mask) = match walk {
            Walk::Among(flows) => (self.number, 1_664_525, 1_013_904_223, flows - 1),
            Walk::From(first) => (first.wrapping_sub(1), 1, 1, u32::MAX),
        };
        let job = Job {
            template: template(kind, family),
            pad: [0; 6],
            number,
            multiplier,
            increment,
            mask,
        };
        self.job.set(0, Order(job), 0)?;
        match hook {
            Hook::Xdp => self.xdp.set(0, target, 0),
            Hook::Tc => self.tc.set(0, target, 0),
        }
        .context("the driver does not take its target")?;
        let name = driver(hook, family, kind.is_back());
        let packet = frame(kind, family);
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let begun = thread_time()?;
        let result = test_run(&self.ebpf, name, options)?;
        let spent = thread_time()?.saturating_sub(begun);
        if let Walk::Among(_) = walk {
            self.number = self.job.get(&0, 0)?.0.number;
        }
        out.truncate(result.data_size_out as usize);
        Ok(Ran {
            ns: spent.as_nanos() as f64 / f64::from(repeat),
            verdict: result.return_value,
            packet: out,
        })
    }
}

/// A loaded program's descriptor.
pub fn descriptor(ebpf: &Ebpf, name: &str) -> Result<ProgramFd> {
    let program = ebpf
        .program(name)
        .with_context(|| format!("there is no program {name}"))?;
    let fd = match program {
        Program::Xdp(program) => program.fd(),
        Program::SchedClassifier(program) => program.fd(),
        _ => bail!("program {name} is of no kind that is benched"),
    };
    fd.and_then(|fd| Ok(fd.try_clone()?))
        .with_context(|| format!("program {name}"))
}

/// `BPF_PROG_TEST_RUN` of a program of either kind.
pub fn test_run(ebpf: &Ebpf, name: &str, options: TestRunOptions<'_>) -> Result<TestRunResult> {
    match ebpf.program(name) {
        Some(Program::Xdp(program)) => Xdp::test_run(program, options),
        Some(Program::SchedClassifier(program)) => SchedClassifier::test_run(program, options),
        _ => bail!("there is no program {name}"),
    }
    .with_context(|| format!("running {name}"))
}

/// CPU time of this thread: what others do on the CPU meanwhile is not in it.
fn thread_time() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("cannot read the thread's CPU time")?;
    let duration = Duration::from(time);
    ensure!(!duration.is_zero(), "the thread's CPU time stands still");
    Ok(duration)
}

/// Keeps this thread on a CPU: per-CPU data and caches stay the same.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).context("no such CPU")?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("cannot stay on CPU {cpu}"))
}
