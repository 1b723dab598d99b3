//! The agent's hands in the kernel: loads, attaches, pins, fills and reads.
//!
//! [`Steering`] is what the rest of the agent sees. [`kernel::Datapath`] is its
//! only real implementation; tests of the agent's core use a recorder.
//!
//! Ids are stable: a service or endpoint that keeps its name (and an endpoint
//! that keeps its addresses) keeps its id over restarts of the agent, because
//! names are stored beside the tables and the tables are pinned. An endpoint
//! whose address changes gets a new id; flows of the old one live on.

mod attach;
mod batch;
mod bpf;
mod cache;
pub mod detach;
mod events;
mod flows;
mod forge;
pub mod kernel;
mod listeners;
mod mapping;
pub(crate) mod netlink;
mod node;
mod own;
mod pins;
mod ports;
mod raw;
mod reader;
mod ring;
mod rings;
mod selections;
mod sieve;
mod silences;
mod sockets;
mod sweep;
mod tables;
mod tell;
mod trial;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use aya::programs::ProgramError;
use serde::Deserialize;

pub use events::{Events, KernelLog};
pub use flows::{Flow, Flows, Stage};
pub use forge::Segment;
pub use node::{Node, TICK};
pub use own::{Ended, Ender, OwnMode, OwnState};
pub use pins::check_shape;
pub use raw::{RawSender, Sent};
pub use reader::{FlowCounts, Reader};
pub use silences::Silent;
pub use sweep::{Limits, Sweeper, Swept};
pub use tell::{Found, Look, TellCounts, TellState, Teller, Telling, Told};
pub use trial::{Ends, Outcome, Program, Trial};

/// The kernel side, built by `cargo xtask build-ebpf` and carried in the binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PROBE_EBPF_OBJECT"));

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcMode {
    /// TCX where the kernel has it (Linux 6.6), clsact elsewhere.
    #[default]
    Auto,
    /// TCX or an error.
    Tcx,
    /// clsact, also where TCX is to be had.
    Clsact,
}

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, or generic where the driver cannot, or by TC at the uplink's
    /// ingress where the kernel takes neither: mostly because somebody else's program
    /// is there.
    #[default]
    Auto,
    /// In the driver or an error.
    Native,
    /// Generic: on every interface, but after the kernel built its buffer.
    Generic,
    /// No XDP: uplinks are steered by TC at their ingress.
    Off,
}

/// May XDP programs send packets back out of their interface?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpSend {
    /// Where the other end takes them: not on a virtual link in native mode, whose other
    /// end may lack what that needs, and drops them without a word.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No: TC at the uplink's ingress sends them.
    Off,
}

/// How connections reach the endpoints of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forward {
    /// The server's address is translated; the endpoint sees its client's. Replies must
    /// cross this node.
    #[default]
    Nat,
    /// The source becomes the node's too, so replies come back to it from anywhere.
    FullNat,
    /// Only hardware addresses change: the endpoint owns the VIP, is a neighbour of the node
    /// and answers its client itself.
    Dsr,
}

/// Which messages the programs send. Chosen at load: the others are not even there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// None.
    Off,
    /// Errors.
    Error,
    /// Errors and warnings.
    #[default]
    Warn,
    /// And what is normal but rare.
    Info,
    /// And what helps to find a fault.
    Debug,
}

/// Index into the kernel's service tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// Index into the kernel's endpoint tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// The protocols that are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => probe_ebpf::packet::parse::TCP,
            Self::Udp => probe_ebpf::packet::parse::UDP,
        }
    }
}

/// Where clients connect to. Written as `ADDRESS:PORT`, with `/udp` behind it for
/// datagrams (`/tcp` may be written, and is left out when shown).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// Address and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl From<SocketAddr> for Vip {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            protocol: Protocol::Tcp,
        }
    }
}

impl std::str::FromStr for Vip {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, protocol) = match (text.strip_suffix("/udp"), text.strip_suffix("/tcp")) {
            (Some(address), _) => (address, Protocol::Udp),
            (None, Some(address)) => (address, Protocol::Tcp),
            (None, None) => (text, Protocol::Tcp),
        };
        Ok(Self {
            address: address.parse()?,
            protocol,
        })
    }
}

impl std::fmt::Display for Vip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = match self.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
        };
        write!(f, "{}{suffix}", self.address)
    }
}

/// A service as the datapath needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// At most 63 bytes, unique.
    pub name: String,
    /// What follows the selection.
    pub listeners: Vec<Vip>,
    /// In any order; names unique within the service.
    pub endpoints: Vec<EndpointPlan>,
    /// Flows of an endpoint that is down keep going to it instead of being reset.
    pub keep_flows_of_down: bool,
    /// Only the selected endpoint may serve: what it refuses is not sent to another.
    pub single_writer: bool,
    /// How connections reach the endpoints.
    pub forward: Forward,
    /// While several endpoints share the new connections: for how long a client's stay
    /// with one, counted from its last.
    pub affinity: Option<Duration>,
    /// It has its ids, and no packet is looked at for its sake: neither its listeners nor its
    /// endpoints' own addresses are there.
    pub shadow: bool,
}

/// An endpoint as the datapath needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPlan {
    /// At most 63 bytes.
    pub name: String,
    /// 0 is the master's tier.
    pub tier: u8,
    /// Its share of the tier's new connections, in proportion to the others'; zero for
    /// none.
    pub weight: u16,
    /// Address in IPv4, if it has one.
    pub v4: Option<Ipv4Addr>,
    /// Address in IPv6, if it has one.
    pub v6: Option<Ipv6Addr>,
    /// Port in both families, host order.
    pub port: u16,
    /// What always reaches this endpoint, whatever the selection.
    pub listeners: Vec<Vip>,
    /// It was taken out of its tier, see [`Steering::rest`].
    pub resting: bool,
}

/// Where a service's new connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To this endpoint.
    Endpoint(EndpointId),
    /// To these of one tier, by their weights; each client and port to the same as long as
    /// they stay the same.
    Spread(Vec<EndpointId>),
    /// Nowhere: clients get a RST.
    Refuse,
}

/// What becomes of an endpoint's flows, of those that follow the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// They go on.
    Up,
    /// They are reset, unless the service keeps them.
    Down,
    /// They are reset: their time is over.
    Drained,
}

/// What the kernel holds for one service after [`Steering::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedService {
    /// The service's id.
    pub id: ServiceId,
    /// Ids of the plan's endpoints, in the plan's order.
    pub endpoints: Vec<EndpointId>,
    /// The selection that an earlier agent left, as far as it still names these endpoints.
    pub inherited: Option<Choice>,
    /// Per endpoint of the plan: how an earlier agent marked it.
    pub inherited_marks: Vec<Mark>,
    /// When an earlier agent made the selection; 1970 if none did.
    pub inherited_at: SystemTime,
}

/// Where an interface's packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The host's side of a pod's link: TC ingress and egress.
    Edge,
    /// The way to outside clients: XDP ingress and TC egress.
    Uplink,
}

/// How TC programs hang on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcWay {
    /// By TCX links.
    Tcx,
    /// As filters of clsact.
    Clsact,
}

impl TcWay {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];

    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Where an interface's XDP program of ours runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdpWay {
    /// Nowhere: an edge, or an uplink that TC steers at its ingress.
    None,
    /// In the driver.
    Native,
    /// After the kernel built its buffer.
    Generic,
}

impl XdpWay {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Native, Self::Generic];

    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Somebody else's XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignXdp {
    /// Its id.
    pub id: u32,
    /// Its name, as far as the agent may know it.
    pub name: String,
    /// `native`, `generic`, `offloaded` or `several`.
    pub mode: &'static str,
}

impl std::fmt::Display for ForeignXdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, name, mode } = self;
        write!(f, "XDP program id {id} ({name}) in {mode} mode")
    }
}

/// How an interface was attached, for the log and the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// By which means its TC programs.
    pub tc: TcWay,
    /// Where its XDP program.
    pub xdp: XdpWay,
    /// What was wanted and not to be had, each a sentence for the log.
    pub degraded: Vec<String>,
    /// The programs of an earlier agent were replaced in place.
    pub inherited: bool,
}

/// Sums over CPUs of one endpoint's traffic.
pub use probe_ebpf::abi::EndpointCounters;

/// The datapath as the agent's core sees it.
pub trait Steering {
    /// Makes listeners, services and endpoints in the kernel equal to `plan`: all
    /// of it, so what is not in the plan is removed. Selections of services that
    /// stay are not touched; a new service has none until [`Steering::select`].
    fn apply(&mut self, plan: &[ServicePlan]) -> Result<Vec<AppliedService>, Error>;

    /// Is there room for `plan` beside what may not go yet? Asked before a running agent
    /// applies another one; changes nothing.
    fn fits(&self, plan: &[ServicePlan]) -> Result<(), Error>;

    /// Gives an endpoint of a service new addresses (DNS said so), hence a new id.
    /// The old id's flows go on; the selection is not touched. The caller selects
    /// the new id if the old one was selected.
    fn readdress(
        &mut self,
        service: ServiceId,
        old: EndpointId,
        endpoint: &EndpointPlan,
    ) -> Result<EndpointId, Error>;

    /// The switch, and every change within a tier: one word.
    fn select(&mut self, service: ServiceId, choice: Choice) -> Result<(), Error>;

    /// An endpoint takes no new connections, not even those that others refuse, or again those of
    /// its tier. Its flows go on. What is selected takes them all the same.
    fn rest(
        &mut self,
        service: ServiceId,
        endpoint: EndpointId,
        tier: Option<u8>,
    ) -> Result<(), Error>;

    /// An id for flows of an endpoint that somebody ends: it has the endpoint's addresses, and whoever
    /// is given to it ([`Flows::bury`]) is reset and told. Nothing where that cannot be.
    fn grave(&mut self, endpoint: EndpointId) -> Result<Option<EndpointId>, Error>;

    /// Flows were given to such ids: their clients are told.
    fn buried(&mut self);

    /// What an endpoint weighs in rings that are built from now on.
    fn weigh(&mut self, endpoint: EndpointId, weight: u16);

    /// Endpoints that have left clients' SYNs unanswered for so long, all of them. Asked again and
    /// again: the first time says nothing.
    fn silent(&self, at_least: Duration) -> Result<Vec<Silent>, Error>;

    /// An endpoint answers, or does not matter: SYNs from before do not count.
    fn heard(&self, endpoint: EndpointId);

    /// Packets that an endpoint has sent to clients, if that can be read.
    fn packets_from(&self, endpoint: EndpointId) -> Option<u64>;

    /// Decides over the existing flows of an endpoint.
    fn mark(&mut self, endpoint: EndpointId, mark: Mark) -> Result<(), Error>;
}

/// What can go wrong between the agent and the kernel. Each message says what was
/// done to what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not use BPF.
    #[error(
        "{what}: {source}; probe needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and \
         CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)"
    )]
    Privilege {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel's verifier refuses a program.
    #[error(
        "{what}: this kernel's verifier refuses it: {reason}; without CAP_PERFMON it allows less, \
         else this is a fault of probe's: please report it with what `uname -r` says"
    )]
    Refused {
        /// What was tried.
        what: String,
        /// What the verifier said last.
        reason: String,
    },
    /// No BPF file system where pins should go.
    #[error(
        "{path} is not a BPF file system; mount one with `mount -t bpf bpf {path}`, or name \
         another place in datapath.bpffs"
    )]
    NoBpffs {
        /// The path of the configuration.
        path: String,
    },
    /// Another agent has the pins.
    #[error("another agent is running: it holds the lock on {path}")]
    Locked {
        /// The folder of the pins.
        path: String,
    },
    /// Another version of the ABI is in the kernel.
    #[error(
        "{path} holds the state of another version (this agent's is v{version}); remove it with \
         `probe detach` (this ends steering until the next start)",
        version = probe_ebpf::abi::ABI_VERSION
    )]
    OtherVersion {
        /// The other version's folder.
        path: String,
    },
    /// A pinned map has another shape than this version's.
    #[error(
        "pinned map {path} has {found}, this agent needs {wanted}; keep the setting it was made \
         with, or remove the old state with `probe detach` (this ends steering until the next start)"
    )]
    Shape {
        /// The pin.
        path: String,
        /// What the kernel says of it.
        found: String,
        /// What is wanted.
        wanted: String,
    },
    /// The interface carries somebody else's XDP program, and no other way than XDP was
    /// allowed.
    #[error(
        "{interface} already carries {program}, and the kernel takes no second one; remove it, or \
         set datapath.xdp: auto to steer this uplink by TC while it is there (off: always)"
    )]
    ForeignXdp {
        /// The interface's name.
        interface: String,
        /// What is there.
        program: ForeignXdp,
    },
    /// A table has no room.
    #[error("no room for {what}: at most {most} fit")]
    Full {
        /// What did not fit.
        what: String,
        /// The table's size.
        most: u32,
    },
    /// Anything else.
    #[error("{what}: {source}")]
    Failed {
        /// Operation and object.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// No room for `what` in a table of this size.
    fn full(what: String, most: u32) -> Self {
        Self::Full { what, most }
    }

    /// A failure of `what`, told apart from missing privilege.
    fn failed(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let (what, source) = (what.into(), source.into());
        if let Some(ProgramError::LoadError { verifier_log, .. }) = source.downcast_ref()
            && let Some(reason) = last_word(&verifier_log.to_string())
        {
            return Self::Refused { what, reason };
        }
        match io_error(source.as_ref()) {
            Some(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let source =
                    std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EPERM));
                Self::Privilege { what, source }
            }
            _ => Self::Failed { what, source },
        }
    }
}

/// The I/O error at the bottom of a chain of causes, if there is one.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref().or_else(|| transparent_io_error(error)) {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// aya wraps some I/O errors transparently: such a variant shows its content's
/// message but skips its content in the chain of sources.
fn transparent_io_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a std::io::Error> {
    use aya::{maps::MapError, programs::tc::TcError};
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::IOError(io) | ProgramError::TcError(TcError::IoError(io))) => {
            return Some(io);
        }
        Some(ProgramError::MapError(MapError::IoError(io))) => return Some(io),
        _ => {}
    }
    if let Some(TcError::IoError(io)) = error.downcast_ref::<TcError>() {
        return Some(io);
    }
    match error.downcast_ref::<MapError>() {
        Some(MapError::IoError(io)) => Some(io),
        _ => None,
    }
}

/// What a verifier's log says at its end, before its statistics, if the verifier came to speak.
fn last_word(log: &str) -> Option<String> {
    let statistics = ["verification time ", "stack depth ", "processed "];
    let mut lines = log.lines().map(str::trim);
    let last = lines.rfind(|line| {
        let is_statistics = statistics.iter().any(|begin| line.starts_with(begin));
        !line.is_empty() && !is_statistics
    })?;
    Some(last.to_owned())
}

/// The first line of an error: a verifier's log is long.
fn first_line(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// A type of the ABI as aya's maps want it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Image<T>(pub T);

// SAFETY: `Plain` promises what `Pod` wants: no padding, no pointers, every bit pattern valid.
unsafe impl<T: probe_ebpf::abi::Plain + Copy> aya::Pod for Image<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::programs::tc::TcError;
    use std::io::{Error as IoError, ErrorKind};

    /// Found by the first attach on a real interface: the filter that was not there
    /// stood in a transparent variant, and its absence was taken for a failure.
    #[test]
    fn io_errors_are_found_behind_transparent_variants() {
        let absent = || TcError::IoError(IoError::from(ErrorKind::NotFound));
        let kind = |error: &(dyn std::error::Error + 'static)| io_error(error).map(IoError::kind);
        assert_eq!(kind(&absent()), Some(ErrorKind::NotFound));
        assert_eq!(
            kind(&ProgramError::TcError(absent())),
            Some(ErrorKind::NotFound)
        );
        assert_eq!(kind(&TcError::AlreadyAttached), None);
    }

    #[test]
    fn missing_privilege_is_told_apart() {
        let denied = || IoError::from_raw_os_error(libc::EPERM);
        assert!(matches!(
            Error::failed("x", denied()),
            Error::Privilege { .. }
        ));
        let wrapped = aya::maps::MapError::IoError(denied());
        assert!(matches!(
            Error::failed("x", wrapped),
            Error::Privilege { .. }
        ));
        let other = IoError::from_raw_os_error(libc::ENOENT);
        assert!(matches!(Error::failed("x", other), Error::Failed { .. }));
    }

    /// As Linux 6.18 says it, and with nothing said where it did not come so far.
    #[test]
    fn the_verifiers_reason_is_found() {
        let log = "0: R1=ctx() R10=fp0\n; match self { @ option.rs:662\n8210: (67) r2 <<= 32\n\
                   R2 !read_ok\nverification time 287297 usec\nstack depth 8+0+136\n\
                   processed 46016 insns (limit 1000000) max_states_per_insn 16\n";
        assert_eq!(last_word(log).as_deref(), Some("R2 !read_ok"));
        assert_eq!(last_word(""), None);
        assert_eq!(last_word("processed 0 insns (limit 1000000)\n"), None);
    }
}
