//! Somebody else's BPF programs beside ours: loaded from instructions that are spelled
//! out here, so that no compiler is needed.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};

use crate::Namespace;

// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_CREATE: u32 = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const XDP_PASS: i32 = 2;

/// A hook of TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What the interface receives.
    Ingress,
    /// What it sends.
    Egress,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As `tc` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
    const fn tcx(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// Where among the programs of a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all that are there.
    First,
    /// After all that are there.
    Last,
}

/// What a program of TC answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `TC_ACT_UNSPEC`, which is TCX_NEXT: whoever comes next decides.
    Next = -1,
    /// `TC_ACT_OK`, which is TCX_PASS: the packet passes, and nobody else is asked.
    Ok = 0,
}

/// The mode of XDP, as `ip link` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// Without its help.
    Generic,
}

impl Mode {
    /// Our word, the agent's too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn keyword(self) -> &'static str {
        match self {
            Self::Native => "xdpdrv",
            Self::Generic => "xdpgeneric",
        }
    }
}

/// Which packets a [`Foreign`] program counts: IPv4 over Ethernet, by one address.
#[derive(Clone, Copy, Debug)]
pub enum Counts {
    /// From here.
    Source(Ipv4Addr),
    /// To there.
    Destination(Ipv4Addr),
}

/// A program at a TC hook that counts, may mark, and answers always the same.
pub struct Foreign {
    program: OwnedFd,
    counter: OwnedFd,
}

impl Foreign {
    /// Loads one. It gives what it counts this mark; 0 leaves the mark alone.
    pub fn load(counts: Counts, mark: i32, answer: Answer) -> Result<Self> {
        let (at, address) = match counts {
            Counts::Source(address) => (14 + 12, address),
            Counts::Destination(address) => (14 + 16, address),
        };
        let counter = Attributes::new()
            .put_u32(0, BPF_MAP_TYPE_ARRAY)
            .put_u32(4, 4)
            .put_u32(8, 8)
            .put_u32(12, 1)
            .descriptor(BPF_MAP_CREATE)
            .context("cannot make a map")?;
        let mut program = vec![
            // r6 = context; r0 = the address, in host order. No frame is too short for it.
            instruction(0xbf, 6, 1, 0, 0),
            instruction(0x20, 0, 0, 0, at),
            // w0 != address: past the counting (and marking)
            instruction(
                0x56,
                0,
                0,
                if mark == 0 { 4 } else { 6 },
                u32::from(address).cast_signed(),
            ),
            // r1 = the counter's address; r2 = 1; *(u64 *)r1 += r2
            instruction(0x18, 1, 2, 0, counter.as_raw_fd()),
            0,
            instruction(0xb7, 2, 0, 0, 1),
            instruction(0xdb, 1, 2, 0, 0),
        ];
        if mark != 0 {
            // r2 = mark; *(u32 *)(context + offset of mark) = r2
            program.push(instruction(0xb7, 2, 0, 0, mark));
            program.push(instruction(0x63, 6, 2, 8, 0));
        }
        // r0 = answer; exit
        program.push(instruction(0xb7, 0, 0, 0, answer as i32));
        program.push(instruction(0x95, 0, 0, 0, 0));
        Ok(Self {
            program: load(BPF_PROG_TYPE_SCHED_CLS, &program)?,
            counter,
        })
    }

    /// How many it counted.
    pub fn count(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        Attributes::new()
            .put_u32(0, self.counter.as_raw_fd().cast_unsigned())
            .put_pointer(8, &raw const key)
            .put_pointer(16, &raw mut value)
            .call(BPF_MAP_LOOKUP_ELEM)
            .context("cannot read a map")?;
        Ok(value)
    }

    /// Attaches it by TCX, for as long as the answer lives.
    pub fn tcx(
        &self,
        host: &Namespace,
        interface: &str,
        hook: Hook,
        place: Place,
    ) -> Result<OwnedFd> {
        attach_tcx(&self.program, host, interface, hook, place)
    }

    /// Attaches it as a filter of clsact, which must be there. A priority of 0 is the
    /// kernel's choice.
    pub fn filter(
        &self,
        host: &Arc<Namespace>,
        interface: &str,
        hook: Hook,
        priority: u16,
    ) -> Result<()> {
        let pin = format!("/sys/fs/bpf/foreign-{}", self.program.as_raw_fd());
        host.run(|| pin_program(&self.program, &pin))?;
        let priority = match priority {
            0 => String::new(),
            priority => format!("prio {priority} "),
        };
        let words = format!(
            "filter add dev {interface} {} {priority}bpf direct-action object-pinned {pin}",
            hook.name()
        );
        host.ask("tc", &words.split(' ').collect::<Vec<_>>())?;
        host.run(|| fs::remove_file(&pin).context("the pin"))
    }
}

fn attach_tcx(
    program: &OwnedFd,
    host: &Namespace,
    interface: &str,
    hook: Hook,
    place: Place,
) -> Result<OwnedFd> {
    let flags = match place {
        Place::First => BPF_F_BEFORE,
        Place::Last => BPF_F_AFTER,
    };
    host.run(|| {
        Attributes::new()
            .put_u32(0, program.as_raw_fd().cast_unsigned())
            .put_u32(4, if_nametoindex(interface)?)
            .put_u32(8, hook.tcx())
            .put_u32(12, flags)
            .descriptor(BPF_LINK_CREATE)
            .context("cannot attach by TCX")
    })
}

/// Both directions of an interface: open, or every packet vanishes without a word. It is
/// attached long before, since attaching takes milliseconds; one store closes it.
pub struct Gate {
    shut: OwnedFd,
    _links: [OwnedFd; 2],
}

impl Gate {
    /// At this interface, open, for as long as it lives. Needs TCX, Linux 6.6.
    pub fn at(host: &Namespace, interface: &str) -> Result<Self> {
        /// `TC_ACT_SHOT`, which is TCX_DROP.
        const DROP: i32 = 2;
        let shut = Attributes::new()
            .put_u32(0, BPF_MAP_TYPE_ARRAY)
            .put_u32(4, 4)
            .put_u32(8, 8)
            .put_u32(12, 1)
            .descriptor(BPF_MAP_CREATE)
            .context("cannot make a map")?;
        let program = [
            // r1 = the switch's address; r0 = *(u64 *)r1; if r0 == 0 past the drop
            instruction(0x18, 1, 2, 0, shut.as_raw_fd()),
            0,
            instruction(0x79, 0, 1, 0, 0),
            instruction(0x15, 0, 0, 2, 0),
            instruction(0xb7, 0, 0, 0, DROP),
            instruction(0x95, 0, 0, 0, 0),
            instruction(0xb7, 0, 0, 0, Answer::Next as i32),
            instruction(0x95, 0, 0, 0, 0),
        ];
        let program = load(BPF_PROG_TYPE_SCHED_CLS, &program)?;
        let attach = |hook| attach_tcx(&program, host, interface, hook, Place::First);
        Ok(Self {
            _links: [attach(Hook::Ingress)?, attach(Hook::Egress)?],
            shut,
        })
    }

    /// Shuts or opens it.
    pub fn set(&self, shut: bool) -> Result<()> {
        let (key, value) = (0_u32, u64::from(shut));
        Attributes::new()
            .put_u32(0, self.shut.as_raw_fd().cast_unsigned())
            .put_pointer(8, &raw const key)
            .put_pointer(16, &raw const value)
            .call(BPF_MAP_UPDATE_ELEM)
            .context("cannot write a map")?;
        Ok(())
    }
}

/// How many programs are at a TCX hook.
pub(crate) fn tcx_programs(interface: &str, hook: Hook) -> Result<u32> {
    let index = if_nametoindex(interface)?;
    let mut ids = [0_u32; 16];
    let mut attributes = Attributes::new()
        .put_u32(0, index)
        .put_u32(4, hook.tcx())
        .put_pointer(16, ids.as_mut_ptr())
        .put_u32(24, 16);
    attributes.call(BPF_PROG_QUERY)?;
    let count = attributes.0[24..28].try_into().expect("four bytes");
    Ok(u32::from_ne_bytes(count))
}

/// How many programs of a kind are at a cgroup.
pub(crate) fn cgroup_programs(cgroup: &Path, attach_type: u32) -> Result<u32> {
    let folder = File::open(cgroup).context("the cgroup")?;
    let mut attributes = Attributes::new()
        .put_u32(0, folder.as_raw_fd().cast_unsigned())
        .put_u32(4, attach_type);
    attributes
        .call(BPF_PROG_QUERY)
        .context("cannot ask for a cgroup's programs")?;
    let count = attributes.0[24..28].try_into().expect("four bytes");
    Ok(u32::from_ne_bytes(count))
}

/// Attaches a program to `connect` of IPv4 that allows everything, as one of several or as the
/// only one. It goes with the cgroup.
pub fn cgroup_connect(cgroup: &Path, only: bool) -> Result<()> {
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    const BPF_PROG_ATTACH: u32 = 8;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    const ALLOW: [u64; 2] = [instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)];
    let program = Attributes::new()
        .put_u32(0, BPF_PROG_TYPE_CGROUP_SOCK_ADDR)
        .put_u32(4, u32::try_from(ALLOW.len())?)
        .put_pointer(8, ALLOW.as_ptr())
        .put_pointer(16, c"GPL".as_ptr())
        .put(48, b"foreign")
        .put_u32(68, BPF_CGROUP_INET4_CONNECT)
        .descriptor(BPF_PROG_LOAD)
        .context("cannot load a program")?;
    let folder = File::open(cgroup).context("the cgroup")?;
    Attributes::new()
        .put_u32(0, folder.as_raw_fd().cast_unsigned())
        .put_u32(4, program.as_raw_fd().cast_unsigned())
        .put_u32(8, BPF_CGROUP_INET4_CONNECT)
        .put_u32(12, if only { 0 } else { BPF_F_ALLOW_MULTI })
        .call(BPF_PROG_ATTACH)
        .context("cannot attach to the cgroup")?;
    Ok(())
}

/// Whether the kernel takes XDP programs for packets in several buffers.
pub(crate) fn xdp_frags() -> Result<()> {
    const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
    load_with(BPF_PROG_TYPE_XDP, &PASS, BPF_F_XDP_HAS_FRAGS).map(drop)
}

/// An XDP program that passes everything.
const PASS: [u64; 2] = [
    instruction(0xb7, 0, 0, 0, XDP_PASS),
    instruction(0x95, 0, 0, 0, 0),
];

/// Attaches an XDP program named `foreign` that passes everything.
pub fn xdp_pass(host: &Arc<Namespace>, interface: &str, mode: Mode) -> Result<()> {
    const PIN: &str = "/sys/fs/bpf/foreign";
    host.run(|| pin_program(&load(BPF_PROG_TYPE_XDP, &PASS)?, PIN))?;
    host.ip([format!(
        "link set dev {interface} {} pinned {PIN}",
        mode.keyword()
    )])?;
    // The interface holds it from here on.
    host.run(|| fs::remove_file(PIN).context("the pin"))
}

/// Takes it away again.
pub fn xdp_off(host: &Arc<Namespace>, interface: &str, mode: Mode) -> Result<()> {
    host.ip([format!("link set dev {interface} {} off", mode.keyword())])
}

/// One instruction, `struct bpf_insn`, on a little-endian machine.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

fn load(kind: u32, program: &[u64]) -> Result<OwnedFd> {
    load_with(kind, program, 0)
}

fn load_with(kind: u32, program: &[u64], flags: u32) -> Result<OwnedFd> {
    Attributes::new()
        .put_u32(0, kind)
        .put_u32(4, u32::try_from(program.len())?)
        .put_pointer(8, program.as_ptr())
        .put_pointer(16, c"GPL".as_ptr())
        .put_u32(44, flags)
        .put(48, b"foreign")
        .descriptor(BPF_PROG_LOAD)
        .context("cannot load a program")
}

fn pin_program(program: &OwnedFd, pin: &str) -> Result<()> {
    let path = CString::new(pin).context("a path")?;
    Attributes::new()
        .put_pointer(0, path.as_ptr())
        .put_u32(8, program.as_raw_fd().cast_unsigned())
        .call(BPF_OBJ_PIN)
        .context("cannot pin a program")?;
    Ok(())
}

/// `union bpf_attr`, of which each command reads the first bytes.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Attributes {
    fn new() -> Self {
        Self([0; 128])
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn put_u32(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_ne_bytes())
    }

    fn put_pointer<T>(self, at: usize, to: *const T) -> Self {
        self.put(at, &(to.expose_provenance() as u64).to_ne_bytes())
    }

    fn call(&mut self, command: u32) -> io::Result<i32> {
        // SAFETY: the attributes are a zero-padded bpf_attr of the stated size; the
        // callers keep what its pointers point at alive over the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                self.0.as_mut_ptr(),
                size_of::<Self>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(i32::try_from(result).expect("a descriptor or zero"))
    }

    /// A command that answers with a descriptor.
    fn descriptor(mut self, command: u32) -> io::Result<OwnedFd> {
        // Before Linux 5.11 maps and programs count as locked memory of the user, the agent's
        // with them. Where it is refused, the call below tells.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let raw = self.call(command)?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}
