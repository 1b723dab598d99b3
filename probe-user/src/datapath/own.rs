//! Processes of the node itself as clients: programs at the root of the cgroups, and the
//! ending of sockets whose endpoint is lost.
//!
//! The programs see the system calls of every process below the cgroup, pods' too, and leave
//! all but those of the agent's own network namespace alone: a pod is steered at its link.

use std::{
    collections::HashMap as Map,
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
    programs::{CgroupAttachMode, Program, links::FdLink},
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use probe_ebpf::{
    abi::{
        Address as _, Endpoint, FAMILY_V4, FAMILY_V6, OWN_DATAGRAMS, OWN_FOLLOWS, Own as Words,
        OwnSender, OwnSocket, Selection, V6,
    },
    names,
};
use serde::Deserialize;
use tokio::sync::Notify;

use super::{
    Error, Image, batch, bpf, first_line, io_error,
    mapping::Mapping,
    pins::Pins,
    reader::open,
    selections::is_lost,
    sockets::{self, Kind, Outcome},
};

const NETNS: usize = std::mem::offset_of!(Words, netns) / 8;
const ASKING: usize = std::mem::offset_of!(Words, asking) / 8;
const ANSWER: usize = std::mem::offset_of!(Words, answer) / 8;
const DATAGRAMS: usize = std::mem::offset_of!(Words, datagrams) / 4;

/// Linux 5.14; not in libc for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Are processes of the node itself steered?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnMode {
    /// Where the kernel and its cgroups allow it; what is missing is said.
    #[default]
    Auto,
    /// Yes, or the agent does not start.
    On,
    /// No.
    Off,
}

/// Whether they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnState {
    /// Nobody wants it.
    Off,
    /// By programs at this cgroup.
    Attached {
        /// Its folder.
        cgroup: PathBuf,
        /// Is it the root, so that every process is below it?
        is_root: bool,
        /// An earlier agent's programs were replaced in place.
        inherited: bool,
    },
    /// Not to be had.
    Missing(String),
}

impl OwnState {
    /// The words of its states.
    pub const LABELS: [&'static str; 3] = ["off", "attached", "missing"];

    /// Its word.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Off => Self::LABELS[0],
            Self::Attached { .. } => Self::LABELS[1],
            Self::Missing(_) => Self::LABELS[2],
        }
    }
}

/// Loads the programs, if they are wanted. Before any map is taken out of the object: they name
/// its maps by descriptor.
pub fn load(ebpf: &mut Ebpf, mode: OwnMode) -> Result<(), Error> {
    if mode == OwnMode::Off {
        return Ok(());
    }
    for (name, _) in names::OWN_PROGRAMS {
        let loaded = match ebpf.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => program.load(),
            Some(Program::CgroupSock(program)) => program.load(),
            _ => unreachable!("the object holds every program of names::OWN_PROGRAMS"),
        };
        loaded.map_err(|e| Error::failed(format!("loading program {name}"), e))?;
    }
    Ok(())
}

/// The tables of the node's own sockets, mapped or opened.
pub struct Own {
    words: Mapping,
    sockets: HashMap<MapData, u64, Image<OwnSocket>>,
    senders: HashMap<MapData, Image<OwnSender>, Image<OwnSocket>>,
    /// Told when an endpoint's sockets may have to end.
    lost: Arc<Notify>,
    /// Whether the programs are there to be attached, or why not.
    loaded: Result<(), Error>,
}

impl Own {
    pub fn new(
        loaded: Result<(), Error>,
        words: Mapping,
        sockets: HashMap<MapData, u64, Image<OwnSocket>>,
        senders: HashMap<MapData, Image<OwnSender>, Image<OwnSocket>>,
    ) -> Self {
        Self {
            words,
            sockets,
            senders,
            lost: Arc::default(),
            loaded,
        }
    }

    /// The words of [`names::MAP_OWN`].
    pub fn map(fd: impl AsFd) -> Result<Mapping, Error> {
        Mapping::of::<Words>(fd, 1, "the table of the node's own sockets")
    }

    /// Some sockets may have lost their endpoint.
    pub fn lose(&self) {
        self.lost.notify_one();
    }

    /// Who is told so.
    pub fn lost(&self) -> Arc<Notify> {
        Arc::clone(&self.lost)
    }

    /// Attaches the programs to a cgroup, or takes over those of an earlier agent.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        mode: OwnMode,
        cgroup: &Path,
    ) -> Result<OwnState, Error> {
        if mode == OwnMode::Off {
            self.detach(pins)?;
            return Ok(OwnState::Off);
        }
        let loaded = std::mem::replace(&mut self.loaded, Ok(()));
        match loaded.and_then(|()| self.try_attach(ebpf, pins, cgroup)) {
            Ok(inherited) => Ok(OwnState::Attached {
                cgroup: cgroup.to_owned(),
                // Every other one has this file.
                is_root: !cgroup.join("cgroup.events").exists(),
                inherited,
            }),
            // The agent does not start: what an earlier one left stays.
            Err(error) if mode == OwnMode::On => Err(error),
            Err(error) => {
                self.detach(pins)?;
                Ok(OwnState::Missing(first_line(&error)))
            }
        }
    }

    fn try_attach(&mut self, ebpf: &mut Ebpf, pins: &Pins, path: &Path) -> Result<bool, Error> {
        let cgroup = open_cgroup(path)?;
        let id = cgroup
            .metadata()
            .map_err(|e| Error::failed(format!("looking at {}", path.display()), e))?
            .ino();
        let cookie = netns_cookie()?;
        let mut made = Undo::default();
        for (name, pin) in names::OWN_PROGRAMS {
            let pin = pins.links().join(pin);
            let inherited =
                attach_one(ebpf, name, &pin, &cgroup, id).map_err(|e| refusal(name, path, e))?;
            if !inherited {
                made.0.push(pin);
            }
        }
        let inherited = made.0.is_empty();
        if !inherited {
            // Nobody was there when sockets of these tables were closed.
            self.clear()?;
        }
        let cookie = match cookie {
            Some(cookie) => cookie,
            None => self.ask(path)?,
        };
        // Only now do the programs do anything.
        self.words.word(NETNS).store(cookie, Ordering::Relaxed);
        made.0.clear();
        Ok(inherited)
    }

    /// Asks our own programs: before Linux 5.14 the kernel tells nobody else.
    fn ask(&self, cgroup: &Path) -> Result<u64, Error> {
        let failed = |e| Error::failed("asking for the network namespace's cookie", e);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
        let cookie = option_u64(socket.as_fd(), libc::SO_COOKIE).map_err(failed)?;
        let answer = self.words.word(ANSWER);
        answer.store(0, Ordering::Relaxed);
        self.words.word(ASKING).store(cookie, Ordering::Relaxed);
        // Sends nothing: it is a datagram socket. The program answers whatever comes of it.
        let _ = socket.connect((Ipv4Addr::LOCALHOST, 9));
        self.words.word(ASKING).store(0, Ordering::Relaxed);
        match answer.load(Ordering::Relaxed) {
            0 => Err(Error::failed(
                format!("finding out the network namespace by {}", cgroup.display()),
                "before Linux 5.14 the agent itself has to be below this cgroup",
            )),
            cookie => Ok(cookie),
        }
    }

    /// Removes the programs and what is known of sockets.
    pub fn detach(&mut self, pins: &Pins) -> Result<(), Error> {
        self.words.word(NETNS).store(0, Ordering::Relaxed);
        for (_, pin) in names::OWN_PROGRAMS {
            unpin(&pins.links().join(pin))
                .map_err(|e| Error::failed(format!("removing link {pin}"), e))?;
        }
        self.clear()
    }

    fn clear(&mut self) -> Result<(), Error> {
        let failed = |e| Error::failed("clearing the tables of the node's own sockets", e);
        let sockets: Vec<_> = self
            .sockets
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        for key in sockets {
            // Gone already is as good.
            let _ = self.sockets.remove(&key);
        }
        let senders: Vec<_> = self
            .senders
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        for key in senders {
            let _ = self.senders.remove(&key);
        }
        self.words.half(DATAGRAMS).store(0, Ordering::Relaxed);
        Ok(())
    }
}

/// Pins that go unless all of them are made.
#[derive(Default)]
struct Undo(Vec<PathBuf>);

impl Drop for Undo {
    fn drop(&mut self) {
        for pin in &self.0 {
            // The caller reports what failed before; a failure here could add nothing to it.
            let _ = unpin(pin);
        }
    }
}

/// Why a program could not be attached.
fn refusal(name: &str, cgroup: &Path, error: AnyError) -> Error {
    let what = format!("attaching {name} to {}", cgroup.display());
    let errno = io_error(error.as_ref()).and_then(io::Error::raw_os_error);
    if errno != Some(libc::EPERM) {
        return Error::failed(what, error);
    }
    // The kernel has one answer for two reasons.
    Error::Failed {
        what,
        source: "the kernel refuses: CAP_NET_ADMIN is missing, or a program of somebody else is \
                 there that was attached to be the only one (without BPF_F_ALLOW_MULTI)"
            .into(),
    }
}

/// The folder of a cgroup of version 2.
fn open_cgroup(path: &Path) -> Result<File, Error> {
    let what = || format!("attaching to cgroup {}", path.display());
    let is_cgroup = statfs(path).map(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    match is_cgroup {
        Ok(true) => File::open(path).map_err(|e| Error::failed(what(), e)),
        Ok(false) => Err(Error::failed(
            what(),
            "it is no cgroup v2 hierarchy; name the place where one is mounted in \
             datapath.cgroup, often /sys/fs/cgroup/unified beside version 1",
        )),
        Err(e) => Err(Error::failed(what(), io::Error::from(e))),
    }
}

/// The cookie of our network namespace, if the kernel tells it.
fn netns_cookie() -> Result<Option<u64>, Error> {
    let failed = |e| Error::failed("reading the network namespace's cookie", e);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
    match option_u64(socket.as_fd(), SO_NETNS_COOKIE) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

fn option_u64(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length are live, and the length is that of the value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Attaches one program. Answers whether an earlier agent's link was taken over.
fn attach_one(
    ebpf: &mut Ebpf,
    name: &str,
    pin: &Path,
    cgroup: &File,
    id: u64,
) -> Result<bool, AnyError> {
    let program = ebpf
        .program_mut(name)
        .expect("the object holds every program of names::OWN_PROGRAMS");
    if pin.exists() {
        let replaced = bpf::get(pin).and_then(|link| {
            if bpf::cgroup_of(link.as_fd())? != id {
                return Ok(false);
            }
            let program = program.fd().map_err(io::Error::other)?;
            bpf::update(link.as_fd(), program.as_fd()).map(|()| true)
        });
        if matches!(replaced, Ok(true)) {
            return Ok(true);
        }
        // Of another cgroup, or of one that is gone.
        unpin(pin)?;
    }
    // A link is always one of several: those of others stay.
    let mode = CgroupAttachMode::Single;
    let link: FdLink = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        _ => unreachable!("programs of names::OWN_PROGRAMS are of these two types"),
    };
    link.pin(pin)?;
    Ok(false)
}

/// Detaches a link and removes its pin.
pub(super) fn unpin(pin: &Path) -> io::Result<()> {
    // What cannot be detached so goes with its pin, a moment later.
    let _ = bpf::get(pin).and_then(|link| bpf::detach(link.as_fd()));
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// What became of sockets that lost their endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Their applications were told.
    pub ended: u64,
    /// The kernel would not.
    pub refused: u64,
}

/// How often a socket is looked for that is not found: a `connect` may have been decided
/// just before the switch, and its socket be there a moment after.
const TRIES: u32 = 4;

/// Ends sockets that were steered to an endpoint that is lost: down, unless the service
/// keeps its connections, or drained.
pub struct Ender {
    sockets: MapData,
    endpoints: Array<MapData, Image<Endpoint>>,
    selections: Array<MapData, [u64; size_of::<Selection>() / 8]>,
    /// Those that were dealt with, or not found so often.
    tried: Map<u64, (OwnSocket, u32)>,
}

impl Ender {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let name = names::MAP_OWN_SOCKETS;
        let sockets = MapData::from_pin(pins.map(name))
            .map_err(|e| Error::failed(format!("opening pinned map {name}"), e))?;
        Ok(Self {
            sockets,
            endpoints: open(pins, names::MAP_ENDPOINTS)?,
            selections: open(pins, names::MAP_SELECTIONS)?,
            tried: Map::new(),
        })
    }

    /// Ends what is there now. Blocks for about a millisecond, and one more per 10,000 sockets
    /// of the namespace if there is something to end.
    pub fn pass(&mut self) -> Result<Ended, Error> {
        let lost = self.lost()?;
        let mut done = Ended::default();
        // One look at the kernel's sockets for all that go to one place.
        let mut places: Map<(V6, u16, u16), Vec<u64>> = Map::new();
        for (cookie, socket) in &lost {
            let tries = self.tried.get(cookie).map_or(0, |(_, tries)| *tries);
            if tries < TRIES {
                let place = (
                    socket.peer_be,
                    socket.peer_port_be,
                    socket.flags & OWN_DATAGRAMS,
                );
                places.entry(place).or_default().push(*cookie);
            }
        }
        for ((peer_be, port_be, datagrams), cookies) in places {
            let kind = if datagrams == 0 {
                Kind::Stream
            } else {
                Kind::Datagram
            };
            let peer = std::net::Ipv6Addr::from(peer_be.bytes()).to_canonical();
            let outcomes = sockets::end(kind, (peer, u16::from_be(port_be)).into(), &cookies)
                .map_err(|e| Error::failed("ending sockets of lost endpoints", e))?;
            for cookie in cookies {
                let tries = match outcomes.get(&cookie) {
                    Some(Outcome::Ended) => {
                        done.ended += 1;
                        TRIES
                    }
                    Some(Outcome::Refused) => {
                        done.refused += 1;
                        TRIES
                    }
                    None => self.tried.get(&cookie).map_or(0, |(_, tries)| *tries) + 1,
                };
                self.tried.insert(cookie, (lost[&cookie], tries));
            }
        }
        Ok(done)
    }

    /// The sockets whose endpoint is lost now.
    fn lost(&mut self) -> Result<Map<u64, OwnSocket>, Error> {
        let mut lost = Map::new();
        let mut judged = Map::new();
        let mut sockets = Vec::new();
        each_socket(&self.sockets, |cookie, socket| {
            sockets.push((cookie, socket))
        })?;
        for (cookie, socket) in sockets {
            if socket.flags & OWN_FOLLOWS == 0 {
                continue;
            }
            let key = (socket.endpoint, socket.peer_be, socket.peer_port_be);
            let is_lost = match judged.get(&key) {
                Some(is_lost) => *is_lost,
                None => {
                    let is_lost = self.is_lost(&socket)?;
                    judged.insert(key, is_lost);
                    is_lost
                }
            };
            if is_lost {
                lost.insert(cookie, socket);
            }
        }
        // Closed, connected elsewhere since, or its endpoint is back.
        self.tried
            .retain(|cookie, (socket, _)| lost.get(cookie) == Some(socket));
        Ok(lost)
    }

    fn is_lost(&self, socket: &OwnSocket) -> Result<bool, Error> {
        let failed = |e| Error::failed("reading endpoints", e);
        let Image(endpoint) = self.endpoints.get(&socket.endpoint, 0).map_err(failed)?;
        let [v4, v6] = [
            (endpoint.families & FAMILY_V4 != 0).then(|| endpoint.v4_be.mapped()),
            (endpoint.families & FAMILY_V6 != 0).then(|| endpoint.v6_be.mapped()),
        ];
        let peer = Some(socket.peer_be.bytes());
        // The id may have been given to another one since.
        if endpoint.port_be != socket.peer_port_be || (v4 != peer && v6 != peer) {
            return Ok(false);
        }
        let slot = self.selections.get(&socket.service, 0).map_err(failed)?;
        let decision = slot[std::mem::offset_of!(Selection, decision) / 8];
        Ok(is_lost(endpoint.state, decision))
    }
}

/// Calls `each` with every connected socket that is remembered.
pub(super) fn each_socket(
    map: &MapData,
    mut each: impl FnMut(u64, OwnSocket),
) -> Result<(), Error> {
    let reading = |e| Error::failed("reading the table of the node's own sockets", e);
    batch::for_each(map.fd().as_fd(), 8, size_of::<OwnSocket>(), |key, value| {
        let mut cookie = [0; 8];
        cookie.copy_from_slice(key);
        // SAFETY: every bit pattern is a valid value (it is `Plain`), and the length is that of
        // the map's values, whose shape was checked.
        let socket = unsafe { value.as_ptr().cast::<OwnSocket>().read_unaligned() };
        each(u64::from_ne_bytes(cookie), socket);
    })
    .map_err(reading)
}
