//! The kill switch: removes every kernel object of probe, of any version, without
//! configuration and without an agent.
//!
//! Links are pinned files, so unlinking them detaches. clsact filters are not;
//! they are found by the names of our programs on every interface of this network
//! namespace. A clsact qdisc goes only if the agent wrote down that it made it.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::{
        TcAttachType,
        tc::{TcError, qdisc_detach_program},
    },
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use probe_ebpf::names;

use super::{
    Error, io_error, netlink, own,
    pins::{Hook, Lock, Pins},
};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pinned links, each an attached program.
    pub links: u32,
    /// clsact filters.
    pub filters: u32,
    /// clsact qdiscs that the agent had added.
    pub qdiscs: u32,
    /// Pinned maps.
    pub maps: u32,
    /// An agent is running: it steers nothing any more, but would attach to
    /// interfaces that appear.
    pub agent_runs: bool,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("nothing of probe was in the kernel");
        }
        write!(
            f,
            "removed {} links, {} filters, {} qdiscs, {} maps",
            self.links, self.filters, self.qdiscs, self.maps
        )?;
        if self.agent_runs {
            f.write_str(
                "; an agent is still running: stop it, or it will attach to interfaces that appear",
            )?;
        }
        Ok(())
    }
}

/// Removes everything under this BPF file system and on every interface. Goes on
/// past a failure, and reports the first.
pub fn everything(bpffs: &Path) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    let mut first_error = None;
    let mut note = |result: Result<(), Error>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    let root = bpffs.join(names::PIN_ROOT);
    let there = statfs(bpffs).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    let versions = if there { folders(&root) } else { Vec::new() };

    let mut ours = BTreeSet::new();
    for version in &versions {
        removed.agent_runs |= Lock::is_held(version);
        ours.extend(owned_qdiscs(&version.join(names::PIN_MAPS)));
        // Links before maps: a program without its tables would steer nothing anyway.
        note(unlink_all(
            &version.join(names::PIN_LINKS),
            &mut removed.links,
        ));
    }
    match netlink::interfaces() {
        Ok(interfaces) => {
            for interface in interfaces {
                let made = ours.contains(&interface.ifindex);
                match remove_filters(interface.ifindex, &interface.name, made) {
                    Ok((filters, qdiscs)) => {
                        removed.filters += filters;
                        removed.qdiscs += qdiscs;
                    }
                    Err(error) => note(Err(error)),
                }
            }
        }
        Err(error) => note(Err(Error::failed("listing interfaces", error))),
    }
    for version in &versions {
        note(unlink_all(
            &version.join(names::PIN_MAPS),
            &mut removed.maps,
        ));
        note(remove_folder(version));
    }
    if there && root.exists() {
        note(remove_folder(&root));
    }
    first_error.map_or(Ok(removed), Err)
}

/// Removes our filters from one interface, and the qdisc if it was ours and
/// nobody else uses it. Answers how many of each.
pub fn remove_filters(ifindex: u32, name: &str, made_qdisc: bool) -> Result<(u32, u32), Error> {
    let mut filters = 0;
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        for program in [names::PROGRAM_TC_FORWARD, names::PROGRAM_TC_REVERSE] {
            filters += u32::from(try_remove_filter(name, direction, program)?);
        }
    }
    if !made_qdisc || has_filters(ifindex) {
        return Ok((filters, 0));
    }
    match netlink::delete_clsact(ifindex) {
        Ok(()) => Ok((filters, 1)),
        // Gone with its interface, or somebody was faster.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok((filters, 0))
        }
        Err(e) => Err(Error::failed(
            format!("removing the clsact qdisc of {name}"),
            e,
        )),
    }
}

/// Removes one program's filter, if it is there.
pub fn remove_filter(name: &str, direction: TcAttachType, program: &str) -> Result<(), Error> {
    try_remove_filter(name, direction, program).map(drop)
}

fn try_remove_filter(name: &str, direction: TcAttachType, program: &str) -> Result<bool, Error> {
    match qdisc_detach_program(name, direction, program) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(Error::failed(
            format!("removing filter {program} from {name}"),
            error,
        )),
    }
}

/// No such filter, no clsact at all, or no such interface.
fn is_absent(error: &TcError) -> bool {
    io_error(error).is_some_and(|error| {
        error.kind() == io::ErrorKind::NotFound
            || matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP)
            )
    })
}

/// Are there filters of others on the interface's clsact?
fn has_filters(ifindex: u32) -> bool {
    // Unsure means leave it.
    netlink::clsact_filters(ifindex).map_or(true, |filters| filters > 0)
}

/// Drops an interface's pinned links.
pub fn unpin_links(pins: &Pins, ifindex: u32) {
    for hook in Hook::ALL {
        // Not every hook is used.
        let _ = fs::remove_file(pins.link(ifindex, hook));
    }
}

/// Interfaces to which an agent of this version folder added clsact.
fn owned_qdiscs(maps: &Path) -> BTreeSet<u32> {
    let read = || -> Option<BTreeSet<u32>> {
        let data = MapData::from_pin(maps.join(names::MAP_QDISCS)).ok()?;
        let map: HashMap<_, u32, u32> = Map::from_map_data(data).ok()?.try_into().ok()?;
        Some(map.keys().filter_map(Result::ok).collect())
    };
    read().unwrap_or_default()
}

/// The version folders.
fn folders(root: &Path) -> Vec<PathBuf> {
    fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect()
}

/// Removes every file of a folder and the folder.
fn unlink_all(folder: &Path, count: &mut u32) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::failed(format!("reading {}", folder.display()), e)),
    };
    for entry in entries {
        let path = entry
            .map_err(|e| Error::failed(format!("reading {}", folder.display()), e))?
            .path();
        // Of a map's pin there is nothing to detach.
        own::unpin(&path).map_err(|e| Error::failed(format!("removing {}", path.display()), e))?;
        *count += 1;
    }
    remove_folder(folder)
}

fn remove_folder(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::failed(format!("removing {}", folder.display()), e))
        }
        _ => Ok(()),
    }
}
