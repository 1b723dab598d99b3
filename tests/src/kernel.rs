//! What a namespace's kernel holds for networking by BPF: to tell that a program
//! left nothing, or touched nothing. Also a foreign program to be in the way.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::Namespace;

/// Every trace that steering could leave: pins, qdiscs, filters, XDP and TCX programs.
pub fn traces(host: &Arc<Namespace>) -> Result<Vec<String>> {
    let mut found = host.run(|| {
        let mut pins = Vec::new();
        walk(Path::new("/sys/fs/bpf"), &mut pins)?;
        Ok(pins)
    })?;
    let mut interfaces: Vec<String> = host.run(|| {
        fs::read_dir("/sys/class/net")
            .context("sysfs")?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    })?;
    interfaces.sort();
    for interface in &interfaces {
        for (hook, kind) in [("ingress", TCX_INGRESS), ("egress", TCX_EGRESS)] {
            let filters = host.ask("tc", &["filter", "show", "dev", interface, hook])?;
            found.extend(lines(&format!("{interface} {hook}"), &filters));
            // A kernel before 6.6 has no TCX and nothing in it.
            let programs = host
                .run(|| Ok(query(if_nametoindex(interface.as_str())?, kind).unwrap_or_default()))?;
            if programs > 0 {
                found.push(format!("{interface} {hook} tcx: {programs} programs"));
            }
        }
        let qdiscs = host.ask("tc", &["qdisc", "show", "dev", interface])?;
        found.extend(lines(interface, &qdiscs));
        let details = host.ask("ip", &["-details", "link", "show", "dev", interface])?;
        found.extend(lines(interface, &details).filter(|line| line.contains("xdp")));
    }
    Ok(found)
}

fn lines<'a>(of: &'a str, text: &'a str) -> impl Iterator<Item = String> + 'a {
    text.lines()
        .map(move |line| format!("{of}: {}", line.trim()))
}

/// Files under a folder, in a stable order.
fn walk(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        found.push(entry.path().display().to_string());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_PROG_QUERY: u32 = 16;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

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
}

/// Whether the kernel knows TCX; its own refusal if not.
pub fn tcx() -> io::Result<()> {
    // Loopback has index 1 in every namespace (net/core/dev.c, loopback_net_init).
    query(1, TCX_INGRESS).map(drop)
}

/// Whether the kernel takes XDP programs for packets in several buffers; its own
/// refusal if not.
pub fn xdp_frags() -> io::Result<()> {
    pass_program(BPF_F_XDP_HAS_FRAGS).map(drop)
}

/// How many programs are at a TCX hook.
fn query(index: u32, hook: u32) -> io::Result<u32> {
    let mut ids = [0_u32; 16];
    let mut attributes = Attributes::new()
        .put_u32(0, index)
        .put_u32(4, hook)
        .put_pointer(16, ids.as_mut_ptr())
        .put_u32(24, 16);
    attributes.call(BPF_PROG_QUERY)?;
    let count = attributes.0[24..28].try_into().expect("four bytes");
    Ok(u32::from_ne_bytes(count))
}

/// Loads an XDP program that passes everything.
fn pass_program(flags: u32) -> io::Result<OwnedFd> {
    // r0 = XDP_PASS; exit
    let program: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    let raw = Attributes::new()
        .put_u32(0, BPF_PROG_TYPE_XDP)
        .put_u32(4, 2)
        .put_pointer(8, program.as_ptr())
        .put_pointer(16, c"GPL".as_ptr())
        .put_u32(44, flags)
        .put(48, b"foreign")
        .call(BPF_PROG_LOAD)?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Attaches an XDP program named `foreign` that passes everything.
pub fn xdp_pass(host: &Arc<Namespace>, interface: &str) -> Result<()> {
    const PIN: &str = "/sys/fs/bpf/foreign";
    host.run(|| {
        let fd = pass_program(0).context("cannot load a program")?;
        let path = std::ffi::CString::new(PIN).context("a path")?;
        Attributes::new()
            .put_pointer(0, path.as_ptr())
            .put(8, &fd.as_raw_fd().to_ne_bytes())
            .call(BPF_OBJ_PIN)
            .context("cannot pin a program")?;
        Ok(())
    })?;
    host.ip([format!("link set dev {interface} xdp pinned {PIN}")])
}
