//! What a namespace's kernel holds for networking by BPF: to tell that a program
//! left nothing, or touched nothing.

use std::{fs, io, path::Path, sync::Arc};

use anyhow::{Context, Result};

use crate::{
    Namespace,
    foreign::{self, Hook, tcx_programs},
};

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
        for hook in Hook::ALL {
            let name = hook.name();
            let filters = host.ask("tc", &["filter", "show", "dev", interface, name])?;
            found.extend(lines(&format!("{interface} {name}"), &filters));
            // A kernel before 6.6 has no TCX and nothing in it.
            let programs = host.run(|| Ok(tcx_programs(interface, hook).unwrap_or_default()))?;
            if programs > 0 {
                found.push(format!("{interface} {name} tcx: {programs} programs"));
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

/// Programs of the kinds that steer processes of the node, at a cgroup.
pub fn cgroup_programs(cgroup: &Path) -> Result<u32> {
    /// connect, sendmsg, recvmsg and getpeername of both families, and sock_release, by
    /// `enum bpf_attach_type`.
    const TYPES: [u32; 9] = [10, 11, 14, 15, 19, 20, 29, 30, 34];
    let counts = TYPES.map(|attach_type| foreign::cgroup_programs(cgroup, attach_type));
    counts.into_iter().sum()
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

/// Whether the kernel knows TCX; its own refusal if not.
pub fn tcx() -> Result<()> {
    tcx_programs("lo", Hook::Ingress).map(drop)
}

/// Whether the kernel takes XDP programs for packets in several buffers; its own
/// refusal if not.
pub fn xdp_frags() -> Result<()> {
    foreign::xdp_frags()
}
