//! Where kernel objects are pinned, and whether what is pinned fits.
//!
//! `<bpffs>/probe/v<ABI>/maps/NAME` and `<bpffs>/probe/v<ABI>/links/IFINDEX-HOOK`.
//! The loader reuses a pinned map whatever its shape, so shapes are compared here
//! first: a map of another shape is an error, never a guess.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::maps::{MapInfo, MapType};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use probe_ebpf::{
    abi::{
        ABI_VERSION, Address as _, Affinity, AffinityKey, CACHE_SLOTS, CachedListener, Endpoint,
        EndpointCounters, FlowKey, ForwardFlow, FragmentKey, FragmentTrack, LINES_A_POOL, Listener,
        ListenerKey, MAX_AFFINITIES, MAX_ENDPOINTS, MAX_FRAGMENTS, MAX_LISTENERS, MAX_OWN_SENDERS,
        MAX_OWN_SOCKETS, MAX_POOLS, MAX_REASONS, MAX_RINGS, MAX_SERVICES, MoreSet, Name, Node, Own,
        OwnSender, OwnSocket, PortLine, RecentSet, ReverseFlow, Ring, Selection, Sieve, SynSet, V4,
        V6,
    },
    names,
};

use super::Error;

/// Flag of maps that the agent maps into its memory (Linux 5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Interfaces that can be remembered in [`names::MAP_QDISCS`].
const MAX_QDISCS: u32 = 4096;

/// A map's shape, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    kind: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Shape {
    fn of(info: &MapInfo) -> Result<Self, Error> {
        Ok(Self {
            kind: info
                .map_type()
                .map_err(|e| Error::failed("reading a map's type", e))?,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} with keys of {} and values of {} bytes, {} entries, flags {:#x}",
            self.kind, self.key, self.value, self.entries, self.flags
        )
    }
}

const fn array<V>(entries: u32, flags: u32) -> Shape {
    Shape {
        kind: MapType::Array,
        key: 4,
        value: size_of::<V>() as u32,
        entries,
        flags,
    }
}

const fn per_cpu<V>(entries: u32) -> Shape {
    Shape {
        kind: MapType::PerCpuArray,
        ..array::<V>(entries, 0)
    }
}

const fn hash<K, V>(entries: u32) -> Shape {
    Shape {
        kind: MapType::Hash,
        key: size_of::<K>() as u32,
        ..array::<V>(entries, 0)
    }
}

const fn lru<K, V>(entries: u32) -> Shape {
    Shape {
        kind: MapType::LruHash,
        ..hash::<K, V>(entries)
    }
}

/// The shape a pinned map must have; `flows` is the configured size of the flow
/// tables.
pub fn shape(name: &str, flows: u32) -> Shape {
    match name {
        names::MAP_LISTENERS_V4 => hash::<ListenerKey<V4>, Listener>(MAX_LISTENERS),
        names::MAP_LISTENERS_V6 => hash::<ListenerKey<V6>, Listener>(MAX_LISTENERS),
        names::MAP_LISTENER_CACHE => array::<CachedListener>(CACHE_SLOTS, BPF_F_MMAPABLE),
        names::MAP_SIEVE => array::<Sieve>(1, BPF_F_MMAPABLE),
        names::MAP_SELECTIONS => array::<Selection>(MAX_SERVICES, BPF_F_MMAPABLE),
        names::MAP_RINGS => array::<Ring>(MAX_RINGS, BPF_F_MMAPABLE),
        names::MAP_AFFINITY_V4 => lru::<AffinityKey<V4>, Affinity>(MAX_AFFINITIES),
        names::MAP_AFFINITY_V6 => lru::<AffinityKey<V6>, Affinity>(MAX_AFFINITIES),
        names::MAP_ENDPOINTS => array::<Endpoint>(MAX_ENDPOINTS, 0),
        names::MAP_SERVICE_NAMES => array::<Name>(MAX_SERVICES, 0),
        names::MAP_ENDPOINT_NAMES => array::<Name>(MAX_ENDPOINTS, 0),
        names::MAP_FORWARD_V4 => hash::<FlowKey<V4>, ForwardFlow>(flows),
        names::MAP_FORWARD_V6 => hash::<FlowKey<V6>, ForwardFlow>(flows),
        names::MAP_REVERSE_V4 => hash::<FlowKey<V4>, ReverseFlow<V4>>(flows),
        names::MAP_REVERSE_V6 => hash::<FlowKey<V6>, ReverseFlow<V6>>(flows),
        names::MAP_RECENT_V4 => array::<RecentSet<V4>>(V4::RECENT_SETS, BPF_F_MMAPABLE),
        names::MAP_RECENT_V6 => array::<RecentSet<V6>>(V6::RECENT_SETS, BPF_F_MMAPABLE),
        names::MAP_SYNS_V4 => array::<SynSet>(V4::RECENT_SETS, BPF_F_MMAPABLE),
        names::MAP_SYNS_V6 => array::<SynSet>(V6::RECENT_SETS, BPF_F_MMAPABLE),
        names::MAP_MORE_V4 => array::<MoreSet>(V4::RECENT_SETS, BPF_F_MMAPABLE),
        names::MAP_MORE_V6 => array::<MoreSet>(V6::RECENT_SETS, BPF_F_MMAPABLE),
        names::MAP_PORTS => array::<PortLine>(MAX_POOLS * LINES_A_POOL, BPF_F_MMAPABLE),
        names::MAP_NODE => array::<Node>(1, BPF_F_MMAPABLE),
        names::MAP_OWN => array::<Own>(1, BPF_F_MMAPABLE),
        names::MAP_OWN_SOCKETS => hash::<u64, OwnSocket>(MAX_OWN_SOCKETS),
        names::MAP_OWN_SENDERS => lru::<OwnSender, OwnSocket>(MAX_OWN_SENDERS),
        names::MAP_FRAGMENTS_V4 => lru::<FragmentKey<V4>, FragmentTrack<V4>>(MAX_FRAGMENTS),
        names::MAP_FRAGMENTS_V6 => lru::<FragmentKey<V6>, FragmentTrack<V6>>(MAX_FRAGMENTS),
        names::MAP_ENDPOINT_COUNTERS => per_cpu::<EndpointCounters>(MAX_ENDPOINTS),
        names::MAP_REASON_COUNTERS => per_cpu::<u64>(MAX_REASONS),
        names::MAP_QDISCS => hash::<u32, u32>(MAX_QDISCS),
        other => unreachable!("{other} is not in names::PINNED_MAPS"),
    }
}

/// The folders of this ABI version's pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Under this BPF file system.
    pub fn new(bpffs: &Path) -> Self {
        let root = bpffs.join(names::PIN_ROOT).join(format!("v{ABI_VERSION}"));
        Self { root }
    }

    /// The version's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(names::PIN_MAPS).join(name)
    }

    /// The folder of links.
    pub fn links(&self) -> PathBuf {
        self.root.join(names::PIN_LINKS)
    }

    /// The pin of a link.
    pub fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", hook.name()))
    }

    /// Interfaces for which a link is pinned, in order.
    pub fn interfaces(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.links()) else {
            return Vec::new();
        };
        let mut found: Vec<u32> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name();
                let (ifindex, _) = name.to_str()?.split_once('-')?;
                ifindex.parse().ok()
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Checks that the file system is there, makes the folders, and takes the lock
    /// that only one agent holds.
    pub fn prepare(bpffs: &Path) -> Result<(Self, Lock), Error> {
        let there = statfs(bpffs).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if !there {
            return Err(Error::NoBpffs {
                path: bpffs.display().to_string(),
            });
        }
        let pins = Self::new(bpffs);
        pins.alone()?;
        for folder in [pins.root.join(names::PIN_MAPS), pins.links()] {
            fs::create_dir_all(&folder)
                .map_err(|e| Error::failed(format!("making {}", folder.display()), e))?;
        }
        let lock = Lock::take(&pins.root)?;
        Ok((pins, lock))
    }

    /// Refuses to start beside the pins of another version: its programs would go on
    /// steering too.
    fn alone(&self) -> Result<(), Error> {
        let versions = self.root.parent().and_then(|root| fs::read_dir(root).ok());
        for entry in versions.into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if path != self.root && path.is_dir() {
                return Err(Error::OtherVersion {
                    path: path.display().to_string(),
                });
            }
        }
        Ok(())
    }

    /// Compares what is pinned with what this version needs.
    pub fn check_shapes(&self, flows: u32) -> Result<(), Error> {
        for name in names::PINNED_MAPS {
            let path = self.map(name);
            if !path.exists() {
                continue;
            }
            let found = pinned_shape(&path)?;
            let wanted = shape(name, flows);
            if found != wanted {
                return Err(Error::Shape {
                    path: path.display().to_string(),
                    found: found.to_string(),
                    wanted: wanted.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Is the map pinned, with the shape this version needs?
    pub fn fits(&self, name: &str, flows: u32) -> bool {
        let path = self.map(name);
        path.exists() && pinned_shape(&path).is_ok_and(|found| found == shape(name, flows))
    }
}

/// What the kernel tells of a pinned map.
fn pinned_shape(path: &Path) -> Result<Shape, Error> {
    let info = MapInfo::from_pin(path)
        .map_err(|e| Error::failed(format!("reading pinned map {}", path.display()), e))?;
    Shape::of(&info)
}

/// Compares a map that is not pinned with what this version needs of a pin of that
/// name; for tests of the object.
pub fn check_shape(name: &str, info: &MapInfo, flows: u32) -> Result<(), Error> {
    let (found, wanted) = (Shape::of(info)?, shape(name, flows));
    if found == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        path: name.to_owned(),
        found: found.to_string(),
        wanted: wanted.to_string(),
    })
}

/// Where a link is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP.
    Xdp,
    /// TC ingress.
    Ingress,
    /// TC egress.
    Egress,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];

    /// As in the pin's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Held as long as the agent lives; the kernel drops it with the process.
#[derive(Debug)]
pub struct Lock {
    _flock: Flock<OwnedFd>,
}

impl Lock {
    /// Is an agent holding this version folder?
    pub fn is_held(folder: &Path) -> bool {
        matches!(Self::take(folder), Err(Error::Locked { .. }))
    }

    fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.display().to_string();
        let fd: OwnedFd = fs::File::open(folder)
            .map_err(|e| Error::failed(format!("opening {path}"), e))?
            .into();
        match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
            Ok(flock) => Ok(Self { _flock: flock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Locked { path }),
            Err((_, errno)) => Err(Error::failed(
                format!("locking {path}"),
                io::Error::from(errno),
            )),
        }
    }
}
