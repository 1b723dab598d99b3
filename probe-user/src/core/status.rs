//! What the agent tells of itself: `GET /v1/status`, and what the command line reads.
//!
//! The field names are an interface: tools parse them. Times are Unix
//! milliseconds, durations carry their unit in the name.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::order::{Given, Who};
use crate::{
    datapath::{EndpointId, OwnState, TellState},
    health::lateness,
};

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// The process.
    pub agent: Agent,
    /// In the configuration's order.
    pub services: Vec<Service>,
    /// Those that are managed, by index.
    pub interfaces: Vec<Interface>,
    /// The kernel side.
    pub datapath: Datapath,
    /// What it runs by.
    #[serde(default)]
    pub config: Configuration,
}

/// The configuration that is in force, and what became of the last attempt to load another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The file.
    pub file: String,
    /// Of its text, as it is in force; see [`crate::config::diff::hash`].
    pub hash: String,
    /// When that was read.
    pub loaded_unix_ms: u64,
    /// The last attempt to load the file again.
    pub last_reload: Option<LastReload>,
    /// Fields that say something else than what is in force, until the next start.
    pub restart_needed: Vec<String>,
}

/// An attempt to load the file again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// When.
    pub unix_ms: u64,
    /// One of [`crate::reload::Outcome`]'s words.
    pub result: String,
    /// Why it was not applied, if it was not.
    pub error: Option<String>,
}

/// The process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Agent {
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_unix_ms: u64,
    /// Since when it doubts itself rather than its endpoints, and holds all selections.
    #[serde(default)]
    pub distrust_since_unix_ms: Option<u64>,
    /// How late checks began, once there was one.
    #[serde(default)]
    pub lateness: Option<Lateness>,
    /// Whether checks and decisions run at real-time priority.
    #[serde(default)]
    pub realtime: Realtime,
    /// What the budget of checks multiplies all intervals by; 1 is as configured.
    #[serde(default)]
    pub stretch: Option<f64>,
}

/// What the agent had of real-time priority and locked memory when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Had {
    /// Real-time priority, or why not.
    pub priority: Result<(), String>,
    /// Locked memory, or why not.
    pub memory: Result<(), String>,
}

/// What of real-time priority and locked memory was to be had.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Realtime {
    /// Checks and decisions have the priority.
    pub priority: bool,
    /// The agent's memory is locked.
    pub memory: bool,
    /// What is missing, and why.
    pub missing: Vec<String>,
}

impl Realtime {
    /// As it was had.
    pub fn of(had: &Had) -> Self {
        let missing = [&had.priority, &had.memory];
        Self {
            priority: had.priority.is_ok(),
            memory: had.memory.is_ok(),
            missing: missing
                .into_iter()
                .filter_map(|had| had.clone().err())
                .collect(),
        }
    }
}

/// How late the agent itself is: from the time that a check was due to its beginning.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lateness {
    /// Checks that it is about.
    pub checks: u64,
    /// Upper ends of what they are counted by, as all of these but the largest; nothing beyond
    /// the last.
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    /// The largest of the last one to two minutes.
    pub max_us: u64,
}

impl Lateness {
    /// As it was measured.
    pub fn of(lateness: &lateness::Lateness) -> Option<Self> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        (lateness.checks() > 0).then(|| Self {
            checks: lateness.checks(),
            p50_us: lateness.percentile(50).map(micros),
            p99_us: lateness.percentile(99).map(micros),
            max_us: micros(lateness.largest()),
        })
    }
}

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// `active`, or `shadow`: what is told of the selection would be so.
    #[serde(default)]
    pub mode: String,
    /// VIP:port pairs that follow the selection.
    pub listeners: Vec<String>,
    pub selection: Selection,
    pub failback: Failback,
    /// Its endpoints cannot be reached from this node, so the selection is held.
    #[serde(default)]
    pub cut_off: Option<CutOff>,
    /// While several share the new connections, for how long a client's stay with one.
    pub affinity_ms: Option<u64>,
    /// The endpoint that an operator chose, while that holds.
    #[serde(default)]
    pub promoted: Option<Ordered>,
    /// Nothing but an order changes the selection.
    #[serde(default)]
    pub frozen: Option<Ordered>,
    pub endpoints: Vec<Endpoint>,
}

/// What is gone that the ways to all endpoints of a service need.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CutOff {
    /// `link`, `gateway` or `route`.
    pub what: String,
    /// For people.
    pub reason: String,
    pub since_unix_ms: u64,
}

/// Where new connections go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Selection {
    /// `endpoint`, `spread` over several of one tier, or `refuse`.
    pub kind: String,
    /// The endpoint's name, if it is one.
    pub endpoint: Option<String>,
    /// The names of all that new connections go to.
    pub endpoints: Vec<String>,
    /// Their tier.
    pub tier: Option<u8>,
    pub since_unix_ms: u64,
    /// One of [`crate::failover::Reason`]'s words.
    pub reason: String,
    /// Changes since the agent started, of the tier or to and from refusing.
    pub switches: u64,
    /// Changes of who serves within the selected tier; `since`, `reason` and `switches` are
    /// not about those.
    pub members_changed: u64,
}

/// What an operator ordered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ordered {
    /// The endpoint, or what it is told to be.
    pub what: String,
    pub since_unix_ms: u64,
    pub by: Who,
}

/// How the service goes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failback {
    /// `auto` or `manual`.
    pub mode: String,
    /// Of mode auto.
    pub hold_ms: Option<u64>,
    /// Of mode auto: the longest that [`Damped::hold_ms`] can be.
    #[serde(default)]
    pub max_hold_ms: Option<u64>,
    /// When it will, if nothing happens before.
    pub due_unix_ms: Option<u64>,
    /// Tiers that went down soon after a fail-back, and wait longer before the next.
    #[serde(default)]
    pub damped: Vec<Damped>,
}

/// A tier that comes and goes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Damped {
    pub tier: u8,
    /// The hold time in effect for it.
    pub hold_ms: u64,
    /// How often it went down soon after a fail-back, since it was steady last.
    pub relapses: u32,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub name: String,
    pub tier: u8,
    /// Its share within the tier, in proportion to the others'.
    pub weight: u16,
    /// How many percent of its weight it has, while that grows after it was down.
    #[serde(default)]
    pub slow_start: Option<u16>,
    /// New connections go to it, or their share of them.
    pub serving: bool,
    /// As configured.
    pub address: String,
    /// Where that is now; nothing while its name has no address.
    pub resolved: Vec<String>,
    /// Its name does not resolve: what is told above is where it was last.
    #[serde(default)]
    pub unresolved: Option<Unresolved>,
    /// `unknown`, `up` or `down`.
    pub state: String,
    /// What operators say of it, in HAProxy's words: `ready`, `drain` or `maint`.
    #[serde(default)]
    pub mode: String,
    /// Since when and by whom, unless it is ready.
    #[serde(default)]
    pub ordered: Option<Ordered>,
    /// Checks in a row that have spoken against the state.
    #[serde(default)]
    pub against: u32,
    /// How many of them change it: `fall` while it is up, `rise` while it is down.
    #[serde(default)]
    pub needed: u32,
    /// The last check's verdict, one of [`crate::health::Kind`]'s words; `observed` if it
    /// was no check that took the endpoint down.
    pub verdict: Option<String>,
    /// The same for people.
    pub detail: Option<String>,
    /// Since when each check's verdict was of that kind.
    #[serde(default)]
    pub verdict_since_unix_ms: Option<u64>,
    /// The first bytes of what did not match, if something did not; what is not visible is
    /// escaped.
    #[serde(default)]
    pub saw: Option<String>,
    /// What its own agent said, if it has one: `up` or `down`, then `ready`, `drain` or
    /// `maint`, then its share of its weight.
    #[serde(default)]
    pub agent_said: Option<String>,
    /// Since when it is in this state.
    pub since_unix_ms: u64,
    pub checks: u64,
    pub failures: u64,
    /// Checks whose verdict did not count, since the agent itself was late.
    #[serde(default)]
    pub excused: u64,
    /// The last check's duration.
    pub latency_us: Option<u64>,
    /// Durations of the last checks, once there was one.
    #[serde(default)]
    pub durations: Option<Durations>,
    /// Signs of failure beside the checks, by kind: [`crate::health::Signal`]'s words.
    #[serde(default)]
    pub signals: BTreeMap<String, u64>,
    /// VIP:port pairs that always reach it.
    pub listeners: Vec<String>,
    pub traffic: Traffic,
    /// Its flows from before the selection left it, while there are any.
    pub drain: Option<Drain>,
    /// For looking up its traffic.
    #[serde(skip)]
    pub id: Option<EndpointId>,
}

/// A name without an address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unresolved {
    pub since_unix_ms: u64,
    /// `nx`, as DNS says there is none, or `failure`, as nobody says anything.
    pub why: String,
    /// For people.
    pub reason: String,
    /// The endpoint is down for that.
    pub down: bool,
}

/// How long an endpoint's last checks took, good and bad ones.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Durations {
    /// How many they are of; [`crate::health::window::LENGTH`] at most.
    pub checks: usize,
    pub p50_us: u32,
    pub p95_us: u32,
    pub p99_us: u32,
    pub max_us: u32,
}

/// An endpoint that was left with flows that may go on, and those it still has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// When it was left.
    pub since_unix_ms: u64,
    /// When its flows are reset; nothing if never. It may be over.
    pub until_unix_ms: Option<u64>,
    /// Flows at the last sweep of the tables; nothing if there was none since.
    pub flows: Option<u64>,
}

/// What was steered to and from an endpoint.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    pub forward_packets: u64,
    pub forward_bytes: u64,
    pub reverse_packets: u64,
    pub reverse_bytes: u64,
    pub flows_opened: u64,
    pub flows_closed: u64,
}

/// A managed interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub ifindex: u32,
    /// `edge` or `uplink`.
    pub role: String,
    /// `tcx` or `clsact`; nothing while it is not attached.
    pub tc: Option<String>,
    /// `native`, `generic`, or `none` on an edge and on an uplink that TC steers at its
    /// ingress; nothing while it is not attached.
    pub xdp: Option<String>,
    /// What was wanted and not to be had.
    pub degraded: Vec<String>,
}

/// The kernel side.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Datapath {
    /// Version of the layout of its maps.
    pub abi: u32,
    /// Where its maps and links are pinned.
    pub pins: String,
    /// Whether processes of the node itself are steered.
    pub processes: Processes,
    /// Whether idle connections of lost endpoints are told at once.
    #[serde(default)]
    pub telling: Telling,
    /// Packets that were passed, reset or dropped, by reason.
    pub reasons: BTreeMap<String, u64>,
}

/// Processes of the node itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Processes {
    /// `off`, `attached` or `missing`.
    pub state: String,
    /// At which cgroup, if they are attached.
    pub cgroup: Option<String>,
    /// Is that one the root? Else only processes below it are steered.
    pub is_root: Option<bool>,
    /// What is missing, if it is.
    pub reason: Option<String>,
}

impl Processes {
    /// As the datapath tells it.
    pub fn of(state: &OwnState) -> Self {
        let mut out = Self {
            state: state.label().to_owned(),
            ..Self::default()
        };
        match state {
            OwnState::Off => {}
            OwnState::Attached {
                cgroup, is_root, ..
            } => {
                out.cgroup = Some(cgroup.display().to_string());
                out.is_root = Some(*is_root);
            }
            OwnState::Missing(reason) => out.reason = Some(reason.clone()),
        }
        out
    }
}

/// Whether clients of lost endpoints are told at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Telling {
    /// `ready` or `missing`: those that are idle learn at their next packet then.
    pub state: String,
    /// What is missing, if it is.
    pub reason: Option<String>,
}

impl Telling {
    /// As the datapath tells it.
    pub fn of(state: &TellState) -> Self {
        Self {
            state: state.label().to_owned(),
            reason: match state {
                TellState::Ready => None,
                TellState::Missing(reason) => Some(reason.clone()),
            },
        }
    }
}

/// An order as it is told.
pub fn ordered(what: &str, given: Option<&Given>) -> Ordered {
    let given = given.cloned().unwrap_or_default();
    Ordered {
        what: what.to_owned(),
        since_unix_ms: given.since_unix_ms,
        by: given.by,
    }
}

/// A time as it is told.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
        // A clock before 1970 is not set at all.
        .unwrap_or_default()
}
