//! The configuration as the agent uses it: every value is possible, and no two
//! values contradict each other.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    address::Address,
    agent::AgentCheck,
    check::{Check, MOST_IN_A_ROW},
    conflicts,
    error::Fault,
    raw,
    scalar::{self, duration, number, word},
};
use crate::{
    datapath::{Forward, Limits, LogLevel, OwnMode, TcMode, Vip, XdpMode, XdpSend},
    interfaces::Pattern,
};

/// HAProxy's `error-limit`.
const DEFAULT_ERROR_LIMIT: u32 = 10;
const DEFAULT_HOLD: Duration = Duration::from_secs(5);
/// Unless `hold` is longer.
const DEFAULT_MAX_HOLD: Duration = Duration::from_secs(300);
/// Kubernetes' `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);
/// HAProxy's bounds and default.
const WEIGHTS: std::ops::RangeInclusive<u16> = 0..=256;
const DEFAULT_WEIGHT: u16 = 1;
const LAST_TIER: u8 = probe_ebpf::abi::NO_TIER - 1;
const DEFAULT_LEARN: Duration = Duration::from_secs(120);
const DEFAULT_RESOLVE: Duration = Duration::from_secs(10);
/// Where `probe status` looks for an agent unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/probe/probe.sock";
/// Where the kernel's pins stand unless configured otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Where systemd mounts cgroups of version 2.
const DEFAULT_CGROUP: &str = "/sys/fs/cgroup";
const DEFAULT_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9377);

/// A whole valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    edge: Vec<Pattern>,
    uplink: Vec<Pattern>,
    node: OwnMode,
    datapath: Datapath,
    socket: PathBuf,
    group: Option<String>,
    state: Option<PathBuf>,
    metrics: Option<SocketAddr>,
    services: Vec<Service>,
    suspect_self: bool,
    realtime: Realtime,
    per_second: Option<u32>,
    at_once: Option<u32>,
    resolve_every: Duration,
    holds: Holds,
    page: Option<SocketAddr>,
}

/// How long endpoints keep their last addresses when their names do not resolve; nothing is for
/// ever. HAProxy's `hold nx`, and its `hold timeout`, `refused` and `other` in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Holds {
    /// DNS says that there is no address.
    pub nx: Option<Duration>,
    /// No name server says anything.
    pub failure: Option<Duration>,
}

/// Real-time priority and locked memory for checks and decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Realtime {
    /// Where permitted.
    Auto,
    /// Or the agent does not start.
    On,
    /// No.
    Off,
}

/// How the kernel side is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Datapath {
    bpffs: PathBuf,
    tc: TcMode,
    xdp: XdpMode,
    flows: u32,
    log: LogLevel,
    learn: Duration,
    timeouts: Limits,
    source_v4: Option<Ipv4Addr>,
    source_v6: Option<Ipv6Addr>,
    xdp_send: XdpSend,
    cgroup: PathBuf,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    name: String,
    listeners: Vec<Vip>,
    endpoints: Vec<Endpoint>,
    check: Check,
    failback: Failback,
    all_down: AllDown,
    on_marked_down: Connections,
    on_failback: Connections,
    single_writer: bool,
    forward: Forward,
    affinity: Option<Duration>,
    sentinel: bool,
    observe: Observe,
    life_signs: bool,
    mode: Mode,
}

/// Does a service steer?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Yes.
    Active,
    /// It decides and tells, and no packet is touched.
    Shadow,
}

impl Mode {
    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Shadow => "shadow",
        }
    }
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    name: String,
    address: Address,
    tier: u8,
    weight: u16,
    listeners: Vec<Vip>,
    slow_start: Duration,
    agent: Option<AgentCheck>,
}

/// When a service goes back to an endpoint of a lower tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failback {
    /// After it has been up for this long without a break.
    Auto {
        /// How long.
        hold: Duration,
        /// How long at most, when it was down again soon after a fail-back; no less.
        max_hold: Duration,
    },
    /// When somebody orders it.
    Manual,
}

/// What a service does while all its endpoints are down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// Its selection stays.
    Keep,
    /// Clients get a RST.
    Refuse,
}

/// What becomes of the connections of an endpoint that new ones do not go to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// They are reset at once, those that say nothing too.
    Reset,
    /// They go on with their endpoint for so long; what is left then is reset.
    Drain(Duration),
    /// They go on with their endpoint.
    Keep,
}

/// What connections of clients that fail do to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observe {
    /// Nothing.
    Off,
    /// Each makes checks at once.
    Trigger,
    /// They count as failures.
    MarkDown {
        /// So many in a row take the endpoint down.
        error_limit: u32,
    },
}

impl Config {
    /// Interfaces behind which clients are.
    pub fn edge(&self) -> &[Pattern] {
        &self.edge
    }
    /// Interfaces to outside clients.
    pub fn uplink(&self) -> &[Pattern] {
        &self.uplink
    }
    /// Are processes of the node itself clients too?
    pub fn node(&self) -> OwnMode {
        self.node
    }
    /// How the kernel side is loaded.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }
    /// Where the control API listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A group whose members may use the local API, by name or number.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The folder of what is kept over restarts, if one is named.
    pub fn state(&self) -> Option<&Path> {
        self.state.as_deref()
    }
    /// Where metrics are served, if they are.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }
    /// Where the status page is served, if it is.
    pub fn page(&self) -> Option<SocketAddr> {
        self.page
    }
    /// The services, at least one.
    pub fn services(&self) -> &[Service] {
        &self.services
    }
    /// Does the agent doubt itself when endpoints of all hosts fall silent together?
    pub fn suspect_self(&self) -> bool {
        self.suspect_self
    }
    /// Do checks and decisions run at real-time priority?
    pub fn realtime(&self) -> Realtime {
        self.realtime
    }
    /// Checks a second of all endpoints, if that is bounded.
    pub fn checks_per_second(&self) -> Option<u32> {
        self.per_second
    }
    /// Checks at one time of all endpoints, if that is bounded.
    pub fn checks_at_once(&self) -> Option<u32> {
        self.at_once
    }
    /// Time between two resolutions of a name.
    pub fn resolve_every(&self) -> Duration {
        self.resolve_every
    }
    /// How long names that do not resolve keep their last addresses.
    pub fn resolve_holds(&self) -> Holds {
        self.holds
    }

    pub(super) fn parse(raw: &raw::File) -> Result<Self, Fault> {
        let node = word(
            "interfaces.node",
            raw.interfaces.node.as_deref().unwrap_or("auto"),
            &[
                ("auto", OwnMode::Auto),
                ("on", OwnMode::On),
                ("off", OwnMode::Off),
            ],
        )?;
        let (edge, uplink) = interfaces(&raw.interfaces, node)?;
        let datapath = Datapath::parse(&raw.datapath)?;
        let socket = path("control.socket", &raw.control.socket, DEFAULT_SOCKET)?;
        // sockaddr_un holds 108 bytes with the closing zero; the agent adds a suffix while it binds.
        if socket.as_os_str().len() > 90 {
            return Err(Fault::new(
                "control.socket",
                socket.display(),
                "too long for a socket's path",
                "an absolute path of at most 90 bytes",
            ));
        }
        let group = raw.control.group.clone();
        if group.as_ref().is_some_and(String::is_empty) {
            return Err(Fault::new(
                "control.group",
                "",
                "names nobody",
                "a group's name or number",
            ));
        }
        let state = match &raw.control.state {
            Some(_) => Some(path("control.state", &raw.control.state, "/var/lib/probe")?),
            None => None,
        };
        let metrics = match &raw.metrics.listen {
            None => Some(DEFAULT_METRICS),
            Some(text) => listen("metrics.listen", text, "127.0.0.1:9377 or [::]:9377")?,
        };
        let page = match &raw.page.listen {
            None => None,
            Some(text) => listen("page.listen", text, "127.0.0.1:9378 or [::1]:9378")?,
        };
        if raw.services.is_empty() {
            return Err(Fault::absent(
                "services",
                "there is nothing to steer",
                "at least one service",
            ));
        }
        let services = raw
            .services
            .iter()
            .enumerate()
            .map(|(i, service)| Service::parse(&format!("services[{i}]"), service))
            .collect::<Result<Vec<_>, _>>()?;
        let resolve_every = match &raw.resolve.every {
            Some(text) => duration("resolve.every", text, Duration::from_millis(100))?,
            None => DEFAULT_RESOLVE,
        };
        conflicts::check(&services)?;
        conflicts::sources(&services, datapath.source_v4, datapath.source_v6)?;
        conflicts::server_return(&services)?;
        Ok(Self {
            edge,
            uplink,
            node,
            datapath,
            socket,
            group,
            state,
            metrics,
            services,
            suspect_self: word(
                "suspect_self",
                raw.suspect_self.as_deref().unwrap_or("on"),
                &[("on", true), ("off", false)],
            )?,
            realtime: word(
                "checking.realtime",
                raw.checking.realtime.as_deref().unwrap_or("auto"),
                &[
                    ("auto", Realtime::Auto),
                    ("on", Realtime::On),
                    ("off", Realtime::Off),
                ],
            )?,
            per_second: bound("checking.per_second", &raw.checking.per_second)?,
            at_once: bound("checking.at_once", &raw.checking.at_once)?,
            resolve_every,
            holds: Holds {
                nx: hold("resolve.hold_nx", raw.resolve.hold_nx.as_deref())?,
                failure: hold("resolve.hold_failure", raw.resolve.hold_failure.as_deref())?,
            },
            page,
        })
    }
}

/// A time, or none where it is unlimited.
fn hold(field: &str, raw: Option<&str>) -> Result<Option<Duration>, Fault> {
    match raw {
        None | Some("unlimited") => Ok(None),
        Some(text) => duration(field, text, Duration::ZERO)
            .map(Some)
            .map_err(|fault| Fault {
                accepted: format!("unlimited, or {}", fault.accepted),
                ..fault
            }),
    }
}

fn bound(field: &str, raw: &Option<String>) -> Result<Option<u32>, Fault> {
    let number = |text: &String| number(field, text, 1..=u32::MAX);
    raw.as_ref().map(number).transpose()
}

/// Where to listen, or nothing.
fn listen(field: &str, text: &str, samples: &str) -> Result<Option<SocketAddr>, Fault> {
    if text == "off" {
        return Ok(None);
    }
    let address = text.parse::<SocketAddr>().ok();
    let address = address.filter(|address| address.port() != 0);
    address.map(Some).ok_or_else(|| {
        Fault::new(
            field,
            text,
            "not an address with a port",
            format!("ADDRESS:PORT as {samples}, or off"),
        )
    })
}

fn interfaces(raw: &raw::Interfaces, node: OwnMode) -> Result<(Vec<Pattern>, Vec<Pattern>), Fault> {
    let list = |key: &str, list: &[String]| {
        list.iter()
            .enumerate()
            .map(|(i, text)| {
                Pattern::new(text).map_err(|problem| {
                    Fault::new(
                        format!("interfaces.{key}[{i}]"),
                        text,
                        problem,
                        "an interface name of 1 to 15 bytes; * stands for any text, ? for one character",
                    )
                })
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let (edge, uplink) = (list("edge", &raw.edge)?, list("uplink", &raw.uplink)?);
    if edge.is_empty() && uplink.is_empty() && node != OwnMode::On {
        return Err(Fault::absent(
            "interfaces",
            "no interface is named, so nothing would be steered",
            "edge: [PATTERN, ...] for pods' links, uplink: [NAME, ...] for outside clients, node: on for \
             processes of the node itself",
        ));
    }
    if let Some((i, both)) = uplink.iter().enumerate().find(|(_, p)| edge.contains(p)) {
        return Err(Fault::new(
            format!("interfaces.uplink[{i}]"),
            both,
            "is an edge too",
            "each interface either as edge or as uplink",
        ));
    }
    Ok((edge, uplink))
}

fn path(field: &str, text: &Option<String>, default: &str) -> Result<PathBuf, Fault> {
    let text = text.as_deref().unwrap_or(default);
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        return Err(Fault::new(
            field,
            text,
            "not an absolute path",
            format!("an absolute path as {default}"),
        ));
    }
    Ok(text.into())
}

impl Datapath {
    /// Mount point of the BPF file system.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }
    /// How TC programs are attached.
    pub fn tc(&self) -> TcMode {
        self.tc
    }
    /// How XDP programs are attached.
    pub fn xdp(&self) -> XdpMode {
        self.xdp
    }
    /// Flows that the table of one address family holds.
    pub fn flows(&self) -> u32 {
        self.flows
    }
    /// How long flows from before the first start are looked for.
    pub fn learn(&self) -> Duration {
        self.learn
    }
    /// How long flows may be idle.
    pub fn timeouts(&self) -> Limits {
        self.timeouts
    }
    /// The source of full NAT in IPv4.
    pub fn source_v4(&self) -> Option<Ipv4Addr> {
        self.source_v4
    }
    /// The source of full NAT in IPv6.
    pub fn source_v6(&self) -> Option<Ipv6Addr> {
        self.source_v6
    }
    /// May XDP programs send?
    pub fn xdp_send(&self) -> XdpSend {
        self.xdp_send
    }
    /// The cgroup of processes of the node itself.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
    /// Which messages of the datapath are logged.
    pub fn log(&self) -> LogLevel {
        self.log
    }

    fn parse(raw: &raw::Datapath) -> Result<Self, Fault> {
        let tc = [
            ("auto", TcMode::Auto),
            ("tcx", TcMode::Tcx),
            ("clsact", TcMode::Clsact),
        ];
        let xdp = [
            ("auto", XdpMode::Auto),
            ("native", XdpMode::Native),
            ("generic", XdpMode::Generic),
            ("off", XdpMode::Off),
        ];
        let log = [
            ("off", LogLevel::Off),
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
        ];
        let (source_v4, source_v6) = sources(&raw.source)?;
        Ok(Self {
            bpffs: path("datapath.bpffs", &raw.bpffs, DEFAULT_BPFFS)?,
            tc: word("datapath.tc", raw.tc.as_deref().unwrap_or("auto"), &tc)?,
            xdp: word("datapath.xdp", raw.xdp.as_deref().unwrap_or("auto"), &xdp)?,
            flows: match &raw.flows {
                // 16 million flows of one family take about 2 GiB.
                Some(text) => number("datapath.flows", text, 1024..=16_777_216)?,
                None => probe_ebpf::abi::DEFAULT_FLOWS,
            },
            source_v4,
            source_v6,
            cgroup: path("datapath.cgroup", &raw.cgroup, DEFAULT_CGROUP)?,
            xdp_send: word(
                "datapath.xdp_send",
                raw.xdp_send.as_deref().unwrap_or("auto"),
                &[
                    ("auto", XdpSend::Auto),
                    ("on", XdpSend::On),
                    ("off", XdpSend::Off),
                ],
            )?,
            learn: match &raw.learn {
                Some(text) => duration("datapath.learn", text, Duration::ZERO)?,
                None => DEFAULT_LEARN,
            },
            timeouts: timeouts(&raw.timeouts)?,
            log: word("datapath.log", raw.log.as_deref().unwrap_or("warn"), &log)?,
        })
    }
}

/// `datapath.timeouts`: what is absent keeps its default.
fn timeouts(raw: &raw::Timeouts) -> Result<Limits, Fault> {
    let limit = |key: &str, text: &Option<String>, default: Duration| match text {
        // The datapath's clock ticks about once a second.
        Some(text) => duration(
            &format!("datapath.timeouts.{key}"),
            text,
            Duration::from_secs(1),
        ),
        None => Ok(default),
    };
    let default = Limits::default();
    Ok(Limits {
        opening: limit("opening", &raw.opening, default.opening)?,
        established: limit("established", &raw.established, default.established)?,
        closing: limit("closing", &raw.closing, default.closing)?,
        datagrams: limit("datagrams", &raw.datagrams, default.datagrams)?,
        datagrams_answered: limit(
            "datagrams_answered",
            &raw.datagrams_answered,
            default.datagrams_answered,
        )?,
        unconfirmed: default.unconfirmed,
    })
}

/// At most one address of each family.
fn sources(raw: &Option<raw::OneOrMany>) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Fault> {
    let list = match raw {
        None => &[][..],
        Some(raw::OneOrMany::One(one)) => std::slice::from_ref(one),
        Some(raw::OneOrMany::Many(many)) => many,
    };
    let accepted =
        "at most one IPv4 and one IPv6 address of this node that nothing else on it uses";
    let (mut v4, mut v6) = (None, None);
    for (i, text) in list.iter().enumerate() {
        let fault = |problem| {
            let field = format!("datapath.source[{i}]");
            Err(Fault::new(field, text, problem, accepted))
        };
        let twice = match text.parse() {
            Ok(ip) if IpAddr::is_unspecified(&ip) || ip.is_multicast() || ip.is_loopback() => {
                return fault("not an address that packets can come back to");
            }
            Ok(IpAddr::V4(ip)) => v4.replace(ip).is_some(),
            Ok(IpAddr::V6(ip)) => v6.replace(ip).is_some(),
            Err(_) => return fault("not an IP address"),
        };
        if twice {
            return fault("a second address of this family");
        }
    }
    Ok((v4, v6))
}

impl Service {
    /// Unique among services.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// VIP:port pairs that follow the selection, at least one.
    pub fn listeners(&self) -> &[Vip] {
        &self.listeners
    }
    /// At least one, in the file's order.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
    /// How their health is probed.
    pub fn check(&self) -> &Check {
        &self.check
    }
    /// When it goes back.
    pub fn failback(&self) -> Failback {
        self.failback
    }
    /// What it does without a healthy endpoint.
    pub fn all_down(&self) -> AllDown {
        self.all_down
    }
    /// How connections reach the endpoints.
    pub fn forward(&self) -> Forward {
        self.forward
    }
    /// What becomes of connections of an endpoint that goes down.
    pub fn on_marked_down(&self) -> Connections {
        self.on_marked_down
    }
    /// Only the selected endpoint may serve, whatever it refuses.
    pub fn single_writer(&self) -> bool {
        self.single_writer
    }
    /// What becomes of connections of an endpoint that is up and was left for a better one.
    pub fn on_failback(&self) -> Connections {
        self.on_failback
    }
    /// While several endpoints share the new connections: for how long a client's stay
    /// with one, counted from its last.
    pub fn affinity(&self) -> Option<Duration> {
        self.affinity
    }
    /// Is a connection kept open to each endpoint?
    pub fn sentinel(&self) -> bool {
        self.sentinel
    }
    /// Do packets of an endpoint to its clients excuse its timeouts?
    pub fn life_signs(&self) -> bool {
        self.life_signs
    }
    /// What connections of clients that fail do.
    pub fn observe(&self) -> Observe {
        self.observe
    }
    /// Does it steer, or only decide?
    pub fn mode(&self) -> Mode {
        self.mode
    }

    fn parse(field: &str, raw: &raw::Service) -> Result<Self, Fault> {
        let name = scalar::name(&format!("{field}.name"), &raw.name)?;
        let listeners = listeners(field, &raw.listeners)?;
        if listeners.is_empty() {
            return Err(Fault::absent(
                format!("{field}.listeners"),
                "nobody could reach the service",
                "at least one VIP:port",
            ));
        }
        if raw.endpoints.is_empty() {
            return Err(Fault::absent(
                format!("{field}.endpoints"),
                "nobody could serve the service",
                "at least one endpoint",
            ));
        }
        let slow_start = match &raw.slow_start {
            Some(text) => duration(&format!("{field}.slow_start"), text, Duration::ZERO)?,
            None => Duration::ZERO,
        };
        let agent = raw.agent_check.as_ref();
        let agent = agent.map(|raw| AgentCheck::parse(field, raw)).transpose()?;
        let endpoints = raw
            .endpoints
            .iter()
            .enumerate()
            .map(|(i, endpoint)| {
                let field = format!("{field}.endpoints[{i}]");
                Endpoint::parse(&field, i, endpoint, slow_start, agent.as_ref())
            })
            .collect::<Result<Vec<_>, _>>()?;
        let forward = [
            ("nat", Forward::Nat),
            ("full-nat", Forward::FullNat),
            ("dsr", Forward::Dsr),
        ];
        let check = Check::parse(field, raw)?;
        let all_down = [("keep", AllDown::Keep), ("refuse", AllDown::Refuse)];
        Ok(Self {
            name,
            listeners,
            endpoints,
            failback: Failback::parse(&format!("{field}.failback"), &raw.failback)?,
            all_down: word(
                &format!("{field}.all_down"),
                raw.all_down.as_deref().unwrap_or("keep"),
                &all_down,
            )?,
            forward: word(
                &format!("{field}.forward"),
                raw.forward.as_deref().unwrap_or("nat"),
                &forward,
            )?,
            on_marked_down: match &raw.on_marked_down {
                None => Connections::Reset,
                Some(raw) => Connections::parse(&format!("{field}.on_marked_down"), raw)?,
            },
            on_failback: Connections::on_failback(field, raw)?,
            affinity: match &raw.affinity.client_ip {
                None => None,
                Some(None) => Some(DEFAULT_AFFINITY),
                Some(Some(text)) => Some(duration(
                    &format!("{field}.affinity.client_ip"),
                    text,
                    Duration::from_secs(1),
                )?),
            },
            sentinel: match &raw.sentinel {
                Some(text) => word(
                    &format!("{field}.sentinel"),
                    text,
                    &[("on", true), ("off", false)],
                )?,
                None => check.bears_sentinel(),
            },
            check,
            observe: Observe::parse(field, raw)?,
            mode: word(
                &format!("{field}.mode"),
                raw.mode.as_deref().unwrap_or("active"),
                &[("active", Mode::Active), ("shadow", Mode::Shadow)],
            )?,
            life_signs: word(
                &format!("{field}.life_signs"),
                raw.life_signs.as_deref().unwrap_or("off"),
                &[("on", true), ("off", false)],
            )?,
            single_writer: word(
                &format!("{field}.single_writer"),
                raw.single_writer.as_deref().unwrap_or("false"),
                &[("true", true), ("false", false)],
            )?,
        })
    }
}

impl Connections {
    fn parse(field: &str, raw: &raw::Connections) -> Result<Self, Fault> {
        match raw {
            raw::Connections::Word(text) => match text.as_str() {
                "reset" => Ok(Self::Reset),
                "keep" => Ok(Self::Keep),
                _ => Err(Fault::new(
                    field,
                    text,
                    "not known",
                    "reset, keep, {drain: TIME}",
                )),
            },
            raw::Connections::Drain(text) => {
                duration(&format!("{field}.drain"), text, Duration::ZERO).map(Self::drain)
            }
        }
    }

    /// No time at all is a reset.
    fn drain(time: Duration) -> Self {
        if time.is_zero() {
            Self::Reset
        } else {
            Self::Drain(time)
        }
    }

    /// `on_failback`, or `drain`, its older spelling; keep if neither is there, as in HAProxy.
    /// `field` is the service's.
    fn on_failback(field: &str, raw: &raw::Service) -> Result<Self, Fault> {
        match (&raw.on_failback, raw.drain.as_deref()) {
            (Some(raw), None) => Self::parse(&format!("{field}.on_failback"), raw),
            (None, None | Some("unlimited")) => Ok(Self::Keep),
            (None, Some(text)) => duration(&format!("{field}.drain"), text, Duration::ZERO)
                .map(Self::drain)
                .map_err(|fault| Fault {
                    accepted: format!("unlimited, or {}", fault.accepted),
                    ..fault
                }),
            (Some(_), Some(text)) => Err(Fault::new(
                format!("{field}.drain"),
                text,
                "says the same as `on_failback`, which is there too",
                "no `drain`",
            )),
        }
    }
}

fn listeners(field: &str, raw: &[String]) -> Result<Vec<Vip>, Fault> {
    raw.iter()
        .enumerate()
        .map(|(i, text)| scalar::listener(&format!("{field}.listeners[{i}]"), text))
        .collect()
}

impl Observe {
    /// `field` is the service's.
    fn parse(field: &str, raw: &raw::Service) -> Result<Self, Fault> {
        let limit_field = format!("{field}.error_limit");
        let error_limit = match &raw.error_limit {
            Some(text) => Some(number(&limit_field, text, 1..=MOST_IN_A_ROW)?),
            None => None,
        };
        let policies = [
            ("off", Self::Off),
            ("trigger", Self::Trigger),
            (
                "mark-down",
                Self::MarkDown {
                    error_limit: error_limit.unwrap_or(DEFAULT_ERROR_LIMIT),
                },
            ),
        ];
        let word_of = raw.observe.as_deref().unwrap_or("trigger");
        let observe = word(&format!("{field}.observe"), word_of, &policies)?;
        match (observe, error_limit) {
            (Self::Off | Self::Trigger, Some(limit)) => Err(Fault::new(
                limit_field,
                limit,
                format!("observe: {word_of} counts no errors"),
                "no `error_limit`, or observe: mark-down",
            )),
            _ => Ok(observe),
        }
    }
}

impl Failback {
    fn parse(field: &str, raw: &raw::Failback) -> Result<Self, Fault> {
        let time = |key: &str, text: &Option<String>| match text {
            Some(text) => duration(&format!("{field}.{key}"), text, Duration::ZERO).map(Some),
            None => Ok(None),
        };
        let (hold, max_hold) = (time("hold", &raw.hold)?, time("max_hold", &raw.max_hold)?);
        let modes = [("auto", true), ("manual", false)];
        let auto = word(
            &format!("{field}.mode"),
            raw.mode.as_deref().unwrap_or("auto"),
            &modes,
        )?;
        if auto {
            return Self::auto(field, hold.unwrap_or(DEFAULT_HOLD), max_hold);
        }
        for (key, time) in [("hold", hold), ("max_hold", max_hold)] {
            if let Some(time) = time {
                return Err(Fault::new(
                    format!("{field}.{key}"),
                    scalar::show(time),
                    "a manual fail-back has no hold time",
                    format!("no `{key}`, or mode: auto"),
                ));
            }
        }
        Ok(Self::Manual)
    }

    fn auto(field: &str, hold: Duration, max_hold: Option<Duration>) -> Result<Self, Fault> {
        match max_hold {
            Some(max_hold) if max_hold < hold => Err(Fault::new(
                format!("{field}.max_hold"),
                scalar::show(max_hold),
                format!("less than `hold`, which is {}", scalar::show(hold)),
                "at least as long as `hold`; as long as it, fail-backs never wait longer",
            )),
            _ => Ok(Self::Auto {
                hold,
                max_hold: max_hold.unwrap_or(DEFAULT_MAX_HOLD.max(hold)),
            }),
        }
    }
}

impl Endpoint {
    /// Unique within the service.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
    /// 0 is the master's.
    pub fn tier(&self) -> u8 {
        self.tier
    }
    /// Its share of the tier's new connections, in proportion to the others'; zero for
    /// none.
    pub fn weight(&self) -> u16 {
        self.weight
    }
    /// VIP:port pairs that always reach it.
    pub fn listeners(&self) -> &[Vip] {
        &self.listeners
    }
    /// Its own agent, which is asked how it wants to be treated.
    pub fn agent(&self) -> Option<&AgentCheck> {
        self.agent.as_ref()
    }
    /// Over how long its share grows to all of it after it was down; zero for at once.
    pub fn slow_start(&self) -> Duration {
        self.slow_start
    }

    /// `slow_start` and `agent` are the service's, for endpoints without their own.
    fn parse(
        field: &str,
        position: usize,
        raw: &raw::Endpoint,
        slow_start: Duration,
        agent: Option<&AgentCheck>,
    ) -> Result<Self, Fault> {
        let tier = match &raw.tier {
            Some(text) => number(&format!("{field}.tier"), text, 0..=LAST_TIER)?,
            None => u8::try_from(position)
                .ok()
                .filter(|tier| *tier <= LAST_TIER)
                .ok_or_else(|| {
                    let problem = "too many endpoints without a `tier`, so each in one of its own";
                    let accepted = format!("at most {} tiers", u32::from(LAST_TIER) + 1);
                    Fault::new(field, &raw.name, problem, accepted)
                })?,
        };
        let weight = match &raw.weight {
            Some(text) => number(&format!("{field}.weight"), text, WEIGHTS)?,
            None => DEFAULT_WEIGHT,
        };
        Ok(Self {
            name: scalar::name(&format!("{field}.name"), &raw.name)?,
            address: Address::parse(&format!("{field}.address"), &raw.address)?,
            tier,
            weight,
            listeners: listeners(field, &raw.listeners)?,
            slow_start: match &raw.slow_start {
                Some(text) => duration(&format!("{field}.slow_start"), text, Duration::ZERO)?,
                None => slow_start,
            },
            agent: match &raw.agent_check {
                Some(raw) => Some(AgentCheck::parse(field, raw)?),
                None => agent.cloned(),
            },
        })
    }
}
