//! The one owner of kernel objects: loads, pins, attaches, and gives out handles.
//!
//! What lives in the kernel survives this process by design: maps and links are
//! pinned, so steering goes on while no agent runs, and the next one takes over by
//! replacing the program behind each link in place. Only a start that fails before
//! [`Datapath::commit`] undoes what it made, if it made it.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData},
    programs::{Program, SchedClassifier, Xdp},
    util::KernelVersion,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use probe_ebpf::{
    abi::{
        DEFAULT_FLOWS, ENDPOINT_FREE, Endpoint, FAMILY_V4, FAMILY_V6, MAX_ENDPOINTS, MAX_SERVICES,
        Name,
    },
    names,
};
use tokio::sync::Notify;

use super::{
    Attached, Choice, Ender, EndpointId, EndpointPlan, Error, Events, Image, KernelLog, Limits,
    LogLevel, Mark, OBJECT, OwnMode, OwnState, RawSender, Reader, Role, ServiceId, ServicePlan,
    Steering, Sweeper, Swept, TcMode, TellState, Teller, XdpMode, XdpSend, XdpWay,
    attach::{self, Interface},
    detach, first_line, mapping,
    node::Node,
    own::{self, Own},
    pins::{Lock, Pins},
    reader::FlowGauge,
    silences::{Silences, Silent},
    tables::Tables,
};

/// How the datapath is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mount point of the BPF file system.
    pub bpffs: PathBuf,
    /// How TC programs are attached.
    pub tc: TcMode,
    /// How XDP programs are attached.
    pub xdp: XdpMode,
    /// Entries of each flow table.
    pub flows: u32,
    /// Which messages the programs send.
    pub log: LogLevel,
    /// After a start without anything pinned, for how long every packet may make known
    /// a flow that was there before.
    pub learn: Duration,
    /// How long flows may be idle.
    pub timeouts: Limits,
    /// May there be uplinks? Otherwise their own programs are not loaded: the verifier's work is
    /// most of an agent's start. One that comes all the same is steered by TC.
    pub uplinks: bool,
    /// Source of [`super::Forward::FullNat`] in IPv4.
    pub source_v4: Option<Ipv4Addr>,
    /// Source of [`super::Forward::FullNat`] in IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// May XDP programs send?
    pub xdp_send: XdpSend,
    /// Are processes of the node itself steered?
    pub own: OwnMode,
    /// The cgroup whose processes those are: the root, except in tests.
    pub cgroup: PathBuf,
}

/// The loaded datapath.
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    bpffs: PathBuf,
    options: Options,
    tables: Tables,
    gauge: Arc<FlowGauge>,
    node: Node,
    silences: Silences,
    own: Own,
    /// Told when flows may have lost their endpoint, or have it again.
    marked: Arc<Notify>,
    /// Interfaces that XDP programs of others may send by.
    senders: HashMap<MapData, u32, u32>,
    /// What is loaded for uplinks.
    xdp: UplinkXdp,
    /// Nothing was pinned before, and the start is not yet complete.
    undo: bool,
    /// Uplinks whose other end may not take what XDP programs send.
    deaf: HashSet<u32>,
    _lock: Lock,
}

impl Datapath {
    /// Checks privilege, file system and pinned shapes, takes the lock, loads maps
    /// and programs. Attaches nothing and changes no entry.
    pub fn open(options: &Options) -> Result<Self, Error> {
        // Before Linux 5.11 maps count against this limit. Where it cannot be raised, creating a
        // map fails with EPERM and says so.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let (pins, lock) = Pins::prepare(&options.bpffs)?;
        let fresh = !pins.map(names::MAP_SELECTIONS).exists();
        // From here on a failure must not leave half a set of pins.
        let undo = UndoPins(fresh.then(|| options.bpffs.clone()));
        pins.check_shapes(options.flows)?;
        let mut ebpf = load(&pins, options)?;
        // All before maps are taken out of the object: programs are loaded with their descriptors.
        load_tc(&mut ebpf, names::PROGRAM_TC_FORWARD)?;
        load_tc(&mut ebpf, names::PROGRAM_TC_REVERSE)?;
        let xdp = if options.uplinks {
            load_tc(&mut ebpf, names::PROGRAM_TC_RELAY)?;
            UplinkXdp::load(&mut ebpf, options.xdp)?
        } else {
            UplinkXdp::absent(options.xdp)
        };
        let loaded = own::load(&mut ebpf, options.own);
        let learned = Instant::now() + if fresh { options.learn } else { Duration::ZERO };
        let tables = Tables::take(&mut ebpf, learned)?;
        let node = mapping::take_mapped(&mut ebpf, names::MAP_NODE, |fd| Node::open(fd))?;
        node.set_sources(options.source_v4, options.source_v6);
        let silences = mapping::take_mapped(&mut ebpf, names::MAP_SILENCES, |fd| {
            Silences::map(fd, node.clone())
        })?;
        let own = Own::new(
            loaded,
            mapping::take_mapped(&mut ebpf, names::MAP_OWN, |fd| Own::map(fd))?,
            mapping::take(&mut ebpf, names::MAP_OWN_SOCKETS)?,
            mapping::take(&mut ebpf, names::MAP_OWN_SENDERS)?,
        );
        let senders = mapping::take(&mut ebpf, names::MAP_SENDERS)?;
        undo.keep();
        Ok(Self {
            ebpf,
            senders,
            pins,
            bpffs: options.bpffs.clone(),
            options: options.clone(),
            tables,
            gauge: Arc::default(),
            node,
            silences,
            own,
            marked: Arc::default(),
            xdp,
            undo: fresh,
            deaf: HashSet::new(),
            _lock: lock,
        })
    }

    /// The start is complete: from now on what is in the kernel stays there.
    pub fn commit(&mut self) {
        self.undo = false;
    }

    /// Steers an interface, or takes over what an earlier agent attached to it.
    pub fn attach(&mut self, ifindex: u32, name: &str, role: Role) -> Result<Attached, Error> {
        let xdp = match role {
            Role::Edge => None,
            Role::Uplink => self.xdp.program,
        };
        let mut attached = attach::attach(
            &mut self.ebpf,
            &self.pins,
            &mut self.tables,
            Interface { ifindex, name },
            role,
            xdp.map(|program| (program, self.options.xdp)),
            self.options.tc,
        )?;
        if attached.xdp == XdpWay::Native && is_virtual(name) {
            self.deaf.insert(ifindex);
        } else {
            self.deaf.remove(&ifindex);
        }
        self.allow_sending();
        // What XDP cannot send out of it TC does.
        if let Err(error) = self.set_sender(ifindex, attached.xdp == XdpWay::Native) {
            attached.degraded.push(error.to_string());
        }
        if attached.xdp != XdpWay::None || (role == Role::Uplink && xdp.is_none()) {
            attached.degraded.extend(self.xdp.degraded.clone());
        }
        Ok(attached)
    }

    /// Tells the XDP programs whether they may send.
    fn allow_sending(&self) {
        self.node.allow_sending(match self.options.xdp_send {
            XdpSend::On => true,
            XdpSend::Off => false,
            XdpSend::Auto => self.deaf.is_empty(),
        });
    }

    /// Lets XDP programs of other interfaces send packets out of this one, or no longer.
    fn set_sender(&mut self, ifindex: u32, sends: bool) -> Result<(), Error> {
        if sends {
            let failed = |e| Error::failed(format!("adding sender {ifindex}"), e);
            return self.senders.insert(ifindex, ifindex, 0).map_err(failed);
        }
        // It may never have been one.
        let _ = self.senders.remove(&ifindex);
        Ok(())
    }

    /// The interface is gone, and the kernel has detached from it: drop its pins.
    pub fn forget(&mut self, ifindex: u32) {
        detach::unpin_links(&self.pins, ifindex);
        self.tables.forget_qdisc(ifindex);
        self.deaf.remove(&ifindex);
        self.allow_sending();
        let _ = self.set_sender(ifindex, false);
    }

    /// The interface is still there and shall no longer be steered.
    pub fn detach_interface(&mut self, ifindex: u32, name: &str) -> Result<(), Error> {
        self.set_sender(ifindex, false)?;
        detach::unpin_links(&self.pins, ifindex);
        detach::remove_filters(ifindex, name, self.tables.owns_qdisc(ifindex))?;
        self.tables.forget_qdisc(ifindex);
        Ok(())
    }

    /// Steers processes of the node itself, as far as that is wanted and to be had, or takes
    /// over from an earlier agent.
    pub fn attach_own(&mut self) -> Result<OwnState, Error> {
        let Options { own, cgroup, .. } = &self.options;
        let state = self.own.attach(&mut self.ebpf, &self.pins, *own, cgroup)?;
        // An earlier agent may have ended between a mark and its sockets.
        self.own.lose();
        Ok(state)
    }

    /// Who ends sockets of lost endpoints, and who is told when to.
    pub fn ender(&self) -> Result<(Ender, Arc<Notify>), Error> {
        Ok((Ender::open(&self.pins)?, self.own.lost()))
    }

    /// Who tells clients that their connection is over, and who is told when to. Nobody, if
    /// something is missing for that.
    pub fn teller(&self) -> Result<(Result<Teller, TellState>, Arc<Notify>), Error> {
        // An earlier agent may have ended between a mark and its flows.
        self.marked.notify_one();
        let marked = Arc::clone(&self.marked);
        let sender = match RawSender::open() {
            Ok(sender) => sender,
            Err(e) => {
                let missing = format!("opening a raw socket: {e}; it takes CAP_NET_RAW");
                return Ok((Err(TellState::Missing(missing)), marked));
            }
        };
        let sources = (self.options.source_v4, self.options.source_v6);
        Ok((Ok(Teller::open(&self.pins, sources, sender)?), marked))
    }

    /// Interfaces that are pinned now, also by an earlier agent.
    pub fn attached(&self) -> Vec<u32> {
        self.pins.interfaces()
    }

    /// The datapath's events. They can be taken once.
    pub fn events(&mut self) -> Result<Events, Error> {
        Events::take(&mut self.ebpf)
    }

    /// The datapath's log messages. They can be taken once.
    pub fn kernel_log(&mut self) -> Result<KernelLog, Error> {
        KernelLog::take(&mut self.ebpf)
    }

    /// A handle that reads counters.
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::open(&self.pins, self.gauge.clone())
    }

    /// A handle that removes flows nobody uses any more.
    pub fn sweeper(&self) -> Result<Sweeper, Error> {
        let (gauge, node) = (self.gauge.clone(), self.node.clone());
        let Options {
            flows, timeouts, ..
        } = self.options;
        Sweeper::open(&self.pins, gauge, node, flows, timeouts)
    }

    /// For who asks what becomes of a packet.
    pub fn trial(&self) -> Result<super::Trial, Error> {
        let fd = |name: &str| {
            let program = match self.ebpf.program(name) {
                Some(Program::SchedClassifier(program)) => program.fd(),
                Some(Program::Xdp(program)) => program.fd(),
                _ => return Err(Error::failed(format!("finding {name}"), "it is not loaded")),
            };
            program.map_err(|e| Error::failed(format!("finding {name}"), e))
        };
        let xdp = self.xdp.program.map(fd).transpose()?;
        super::Trial::of(fd(names::PROGRAM_TC_FORWARD)?, xdp)
    }

    /// For who asks which flows there are.
    pub fn flows(&self) -> Result<super::Flows, Error> {
        super::Flows::open(&self.pins)
    }

    /// What the agent tells all programs: somebody must [`Node::tick`].
    pub fn node(&self) -> Node {
        self.node.clone()
    }

    /// Draws the conclusions of a sweep: frees ids of endpoints that left the plan and
    /// have no flow any more, and lets segments go by their service's slot alone where no
    /// flow goes elsewhere.
    pub fn after_sweep(&mut self, swept: &Swept) -> Result<(), Error> {
        self.tables.settle(swept);
        self.tables.release_retired(swept)
    }

    /// The folder of this version's pins.
    pub fn pins(&self) -> &Path {
        self.pins.root()
    }

    /// Removes everything from the kernel, as `probe detach` does.
    pub fn remove(mut self) -> Result<detach::Removed, Error> {
        self.undo = false;
        detach::everything(&self.bpffs)
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        if self.undo {
            // A failed start: the caller reports why; a failure here could add nothing to it.
            let _ = detach::everything(&self.bpffs);
        }
    }
}

/// Removes pins on drop unless told to keep them.
struct UndoPins(Option<PathBuf>);

impl UndoPins {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for UndoPins {
    fn drop(&mut self) {
        if let Some(bpffs) = &self.0 {
            // See `Datapath::drop`.
            let _ = detach::everything(bpffs);
        }
    }
}

impl Steering for Datapath {
    fn apply(&mut self, plan: &[ServicePlan]) -> Result<Vec<super::AppliedService>, Error> {
        self.tables.apply(plan)
    }

    fn fits(&self, plan: &[ServicePlan]) -> Result<(), Error> {
        self.tables.fits(plan)
    }

    fn readdress(
        &mut self,
        service: ServiceId,
        old: EndpointId,
        endpoint: &EndpointPlan,
    ) -> Result<EndpointId, Error> {
        self.tables.readdress(service, old, endpoint)
    }

    fn select(&mut self, service: ServiceId, choice: Choice) -> Result<(), Error> {
        self.tables.select(service, choice)
    }

    fn rest(
        &mut self,
        service: ServiceId,
        endpoint: EndpointId,
        tier: Option<u8>,
    ) -> Result<(), Error> {
        self.tables.rest(service, endpoint, tier)
    }

    fn grave(&mut self, endpoint: EndpointId) -> Result<Option<EndpointId>, Error> {
        self.tables.grave(endpoint)
    }

    fn buried(&mut self) {
        self.marked.notify_one();
    }

    fn weigh(&mut self, endpoint: EndpointId, weight: u16) {
        self.tables.weigh(endpoint, weight);
    }

    fn silent(&self, at_least: Duration) -> Result<Vec<Silent>, Error> {
        self.silences.look(self.tables.ids(), at_least)
    }

    fn heard(&self, endpoint: EndpointId) {
        self.silences.heard(endpoint);
    }

    fn packets_from(&self, endpoint: EndpointId) -> Option<u64> {
        self.tables.packets_from(endpoint)
    }

    fn mark(&mut self, endpoint: EndpointId, mark: Mark) -> Result<(), Error> {
        self.tables.mark(endpoint, mark)?;
        self.marked.notify_one();
        if mark != Mark::Up {
            self.own.lose();
        }
        Ok(())
    }
}

/// Has the interface no device behind it?
fn is_virtual(name: &str) -> bool {
    !Path::new("/sys/class/net")
        .join(name)
        .join("device")
        .exists()
}

/// Loads the maps, pinned ones from their pins.
fn load(pins: &Pins, options: &Options) -> Result<Ebpf, Error> {
    let level = options.log as u8;
    let paths: Vec<_> = names::PINNED_MAPS
        .iter()
        .map(|name| (*name, pins.map(name)))
        .collect();
    let ipv6_sum = match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(6, 16, 0) => names::BPF_F_IPV6,
        _ => 0,
    };
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, true);
    loader.override_global(names::IPV6_SUM, &ipv6_sum, true);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    for name in [
        names::MAP_FORWARD_V4,
        names::MAP_FORWARD_V6,
        names::MAP_REVERSE_V4,
        names::MAP_REVERSE_V6,
    ] {
        loader.map_max_entries(name, options.flows);
    }
    loader
        .load(OBJECT)
        .map_err(|e| Error::failed("loading the datapath's maps", e))
}

fn load_tc(ebpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    attach::program::<SchedClassifier>(ebpf, name)
        .load()
        .map_err(|e| Error::failed(format!("loading program {name}"), e))
}

/// The XDP program for uplinks.
struct UplinkXdp {
    /// The one that loaded.
    program: Option<&'static str>,
    /// A word for the log if it is not the best, or none where one is wanted.
    degraded: Option<String>,
}

impl UplinkXdp {
    /// None is loaded.
    fn absent(mode: XdpMode) -> Self {
        let word = "there was no uplink in the configuration when the agent started: TC steers this \
                    one until the next start, and XDP from then on";
        Self {
            program: None,
            degraded: (mode != XdpMode::Off).then(|| word.to_owned()),
        }
    }

    /// Loads the one that knows packets of several buffers, where the kernel has that, or
    /// else the plain one.
    fn load(ebpf: &mut Ebpf, mode: XdpMode) -> Result<Self, Error> {
        if mode == XdpMode::Off {
            return Ok(Self {
                program: None,
                degraded: None,
            });
        }
        let frags = names::PROGRAM_XDP_FORWARD_FRAGS;
        let Err(error) = attach::program::<Xdp>(ebpf, frags).load() else {
            return Ok(Self {
                program: Some(frags),
                degraded: None,
            });
        };
        let plain = names::PROGRAM_XDP_FORWARD;
        attach::program::<Xdp>(ebpf, plain)
            .load()
            .map_err(|e| Error::failed(format!("loading program {plain}"), e))?;
        Ok(Self {
            program: Some(plain),
            degraded: Some(format!(
                "XDP without multi-buffer packets ({}): native mode is refused on interfaces with \
                 a large MTU (Linux 5.18 and later have it)",
                first_line(&error)
            )),
        })
    }
}

/// An endpoint's address as an earlier agent pinned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// The service's name.
    pub service: String,
    /// The endpoint's name.
    pub endpoint: String,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Its port.
    pub port: u16,
}

/// What an earlier agent pinned; nothing if there is nothing or it is of another
/// shape. For names that do not resolve at start.
pub fn last_known(bpffs: &Path) -> Vec<LastKnown> {
    let pins = Pins::new(bpffs);
    read_last_known(&pins).unwrap_or_default()
}

fn read_last_known(pins: &Pins) -> Option<Vec<LastKnown>> {
    fn open<T: aya::Pod>(pins: &Pins, name: &str) -> Option<Array<MapData, T>> {
        // The flow tables' size does not matter to these maps.
        if !pins.fits(name, DEFAULT_FLOWS) {
            return None;
        }
        let data = MapData::from_pin(pins.map(name)).ok()?;
        Array::try_from(Map::from_map_data(data).ok()?).ok()
    }
    let endpoints = open::<Image<Endpoint>>(pins, names::MAP_ENDPOINTS)?;
    let endpoint_names = open::<Image<Name>>(pins, names::MAP_ENDPOINT_NAMES)?;
    let service_names = open::<Image<Name>>(pins, names::MAP_SERVICE_NAMES)?;
    let mut known = Vec::new();
    for id in 0..MAX_ENDPOINTS {
        let Image(endpoint) = endpoints.get(&id, 0).ok()?;
        if endpoint.state == ENDPOINT_FREE || endpoint.service >= MAX_SERVICES {
            continue;
        }
        let Image(name) = endpoint_names.get(&id, 0).ok()?;
        let Image(service) = service_names.get(&endpoint.service, 0).ok()?;
        if name == Name::EMPTY || service == Name::EMPTY {
            continue;
        }
        known.push(LastKnown {
            service: service.as_str().to_owned(),
            endpoint: name.as_str().to_owned(),
            v4: (endpoint.families & FAMILY_V4 != 0)
                .then(|| Ipv4Addr::from(endpoint.v4_be.bytes())),
            v6: (endpoint.families & FAMILY_V6 != 0)
                .then(|| Ipv6Addr::from(endpoint.v6_be.bytes())),
            port: u16::from_be(endpoint.port_be),
        });
    }
    Some(known)
}
