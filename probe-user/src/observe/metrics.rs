//! The agent's metrics, by Prometheus' conventions: base units, `_total` counters,
//! states as gauges of 0 and 1 with the state as a label.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use probe_ebpf::abi::EventKind;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text},
    metrics::{
        MetricType, counter::ConstCounter, counter::Counter, family::Family, gauge::ConstGauge,
        gauge::Gauge, histogram::Histogram, info::Info,
    },
    registry::Registry,
};

use super::{
    exposition::{self, Format},
    page::Feed,
    process::Process,
};
use crate::{
    config,
    core::{Counters, Observer},
    datapath::{Ended, EndpointId, OwnState, Role, ServiceId, TcWay, TellState, Told, XdpWay},
    failover::{Reason, cut::Gone, orders::Mode},
    health::{Kind, Signal, State, Verdict, lateness::BOUNDS_US, scheduler::Standing},
    reload::Outcome,
};

/// From a local answer to the longest sensible timeout.
const BUCKETS: [f64; 15] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

/// From a burst of checks to `fall` timeouts of a slow rhythm.
const FAILOVER_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfEndpoint {
    service: String,
    endpoint: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    service: String,
    endpoint: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfMode {
    service: String,
    endpoint: String,
    mode: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfVerdict {
    service: String,
    endpoint: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfExcuse {
    service: String,
    endpoint: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReason {
    service: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSignal {
    service: String,
    endpoint: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfWay {
    role: &'static str,
    tc: &'static str,
    xdp: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfChallenge {
    service: String,
    endpoint: String,
    to: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTellState {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOwnState {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
}

/// Ids by service and endpoint name, for reading the kernel's counters.
type Ids = Arc<Mutex<BTreeMap<(String, String), EndpointId>>>;

/// Ids by service name, for the same.
type ServiceIds = Arc<Mutex<BTreeMap<String, ServiceId>>>;

/// What checks of an endpoint are counted by, found without making labels: checks are many,
/// and none of them should allocate.
#[derive(Clone)]
struct Meter {
    /// In the order of [`Kind::ALL`].
    checks: [Counter; Kind::ALL.len()],
    skipped: Counter,
    duration: Histogram,
}

/// Meters by service and endpoint name.
type Meters = Arc<Mutex<BTreeMap<String, BTreeMap<String, Meter>>>>;

/// All of them.
pub struct Metrics {
    registry: Registry,
    /// What is not named after this program.
    process: Registry,
    recorder: Recorder,
}

/// The part that is written to; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    checks: Family<OfVerdict, Counter>,
    skipped: Family<OfEndpoint, Counter>,
    excused: Family<OfExcuse, Counter>,
    lateness: Histogram,
    latest: Gauge<f64, AtomicU64>,
    realtime: Family<OfKind, Gauge>,
    stretch: Gauge<f64, AtomicU64>,
    duration: Family<OfEndpoint, Histogram, fn() -> Histogram>,
    state: Family<OfState, Gauge>,
    selected: Family<OfEndpoint, Gauge>,
    draining: Family<OfEndpoint, Gauge>,
    holds: Family<OfService, Gauge<f64, AtomicU64>>,
    distrust: Gauge,
    refusing: Family<OfService, Gauge>,
    switches: Family<OfReason, Counter>,
    members_changed: Family<OfService, Counter>,
    interfaces: Family<OfWay, Gauge>,
    events: Family<OfKind, Counter>,
    signals: Family<OfSignal, Counter>,
    own: Family<OfOwnState, Gauge>,
    own_ended: Family<OfOutcome, Counter>,
    telling: Family<OfTellState, Gauge>,
    challenges: Family<OfChallenge, Counter>,
    released: Family<OfEndpoint, Counter>,
    told: Family<OfEndpoint, Counter>,
    not_told: Family<OfEndpoint, Counter>,
    shadow: Family<OfService, Gauge>,
    reloads: Family<OfResult, Counter>,
    reload_succeeded: Gauge,
    reloaded_at: Gauge<f64, AtomicU64>,
    failovers: Family<OfService, Histogram, fn() -> Histogram>,
    tiers: Family<OfEndpoint, Gauge>,
    weights: Family<OfEndpoint, Gauge>,
    flows_max: Gauge,
    modes: Family<OfMode, Gauge>,
    frozen: Family<OfService, Gauge>,
    unresolved: Family<OfEndpoint, Gauge>,
    cut_off: Family<OfReason, Gauge>,
    meters: Meters,
    ids: Ids,
    services: ServiceIds,
    feed: Feed,
}

impl Metrics {
    /// Registers everything.
    pub fn new(counters: Arc<dyn Counters>) -> Self {
        let recorder = Recorder {
            checks: Family::default(),
            skipped: Family::default(),
            excused: Family::default(),
            lateness: Histogram::new(BOUNDS_US.iter().map(|us| *us as f64 / 1e6)),
            latest: Gauge::default(),
            realtime: Family::default(),
            stretch: Gauge::default(),
            duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            state: Family::default(),
            selected: Family::default(),
            draining: Family::default(),
            holds: Family::default(),
            distrust: Gauge::default(),
            refusing: Family::default(),
            switches: Family::default(),
            members_changed: Family::default(),
            interfaces: Family::default(),
            events: Family::default(),
            signals: Family::default(),
            own: Family::default(),
            own_ended: Family::default(),
            telling: Family::default(),
            challenges: Family::default(),
            released: Family::default(),
            told: Family::default(),
            not_told: Family::default(),
            shadow: Family::default(),
            reloads: Family::default(),
            reload_succeeded: Gauge::default(),
            reloaded_at: Gauge::default(),
            failovers: Family::new_with_constructor(|| Histogram::new(FAILOVER_BUCKETS)),
            tiers: Family::default(),
            weights: Family::default(),
            flows_max: Gauge::default(),
            modes: Family::default(),
            frozen: Family::default(),
            unresolved: Family::default(),
            cut_off: Family::default(),
            meters: Meters::default(),
            ids: Ids::default(),
            services: ServiceIds::default(),
            feed: Feed::default(),
        };
        for kind in EventKind::ALL {
            drop(
                recorder
                    .events
                    .get_or_create(&OfKind { kind: kind.label() }),
            );
        }
        for outcome in OUTCOMES {
            drop(recorder.own_ended.get_or_create(&OfOutcome { outcome }));
        }
        for outcome in Outcome::ALL {
            let result = outcome.label();
            drop(recorder.reloads.get_or_create(&OfResult { result }));
        }
        let mut registry = Registry::with_prefix("probe");
        let r = &recorder;
        registry.register("checks", "Health checks by verdict", r.checks.clone());
        registry.register(
            "checks_skipped",
            "Health checks left out because the one before took longer than the interval",
            r.skipped.clone(),
        );
        registry.register(
            "checks_excused",
            "Health checks whose verdict does not count, by reason: the agent itself was stalled",
            r.excused.clone(),
        );
        registry.register(
            "check_lateness_seconds",
            "How late the agent itself is: from the time that a health check was due to its beginning",
            r.lateness.clone(),
        );
        registry.register(
            "check_lateness_max_seconds",
            "The largest of these in the last one to two minutes",
            r.latest.clone(),
        );
        registry.register(
            "check_stretch_ratio",
            "What the budget of checks multiplies all intervals by; 1 is as configured",
            r.stretch.clone(),
        );
        registry.register(
            "realtime",
            "1 where checks and decisions have it: real-time priority, locked memory",
            r.realtime.clone(),
        );
        registry.register(
            "check_duration_seconds",
            "Time from the beginning of a health check to its verdict",
            r.duration.clone(),
        );
        registry.register(
            "endpoint_state",
            "1 for the state that the endpoint is in",
            r.state.clone(),
        );
        registry.register(
            "endpoint_unresolved",
            "1 while the endpoint's name has no address: it keeps its last one, or is down with the \
             verdict dns",
            r.unresolved.clone(),
        );
        registry.register(
            "endpoint_selected",
            "1 for each endpoint that new connections of the service go to",
            r.selected.clone(),
        );
        registry.register(
            "endpoint_draining",
            "1 while the endpoint, left for another one, has flows from before",
            r.draining.clone(),
        );
        registry.register(
            "failback_hold_seconds",
            "What the service's next automatic fail-back waits at most, more than configured while \
             a tier comes and goes",
            r.holds.clone(),
        );
        registry.register(
            "self_distrust",
            "1 while endpoints of all hosts are silent together, so that the agent doubts itself and \
             holds all selections",
            r.distrust.clone(),
        );
        registry.register(
            "service_cut_off",
            "1 while the service's endpoints cannot be reached from this node, by what is gone, so that \
             its selection is held",
            r.cut_off.clone(),
        );
        registry.register(
            "service_refusing",
            "1 while the service refuses new connections because no endpoint is up",
            r.refusing.clone(),
        );
        registry.register(
            "switches",
            "Changes of selection by reason",
            r.switches.clone(),
        );
        registry.register(
            "members_changed",
            "Changes of which endpoints of the selected tier serve",
            r.members_changed.clone(),
        );
        registry.register(
            "interfaces",
            "Interfaces that are attached, by role and by the way TC and XDP are",
            r.interfaces.clone(),
        );
        registry.register(
            "events",
            "Rare events of the datapath by kind, those held back included",
            r.events.clone(),
        );
        registry.register(
            "endpoint_signals",
            "Signs that the endpoint may have failed, beside its checks, by kind",
            r.signals.clone(),
        );
        registry.register(
            "node_processes",
            "1 for whether processes of the node itself are steered",
            r.own.clone(),
        );
        registry.register(
            "node_sockets_ended",
            "Sockets of the node's own processes whose endpoint was lost, by what the kernel did",
            r.own_ended.clone(),
        );
        registry.register(
            "telling",
            "1 for whether idle connections of lost endpoints are told at once",
            r.telling.clone(),
        );
        registry.register(
            "flow_challenges",
            "SYNs sent on open connections of lost endpoints, by whom they went to",
            r.challenges.clone(),
        );
        registry.register(
            "syns_released",
            "SYNs that waited for an endpoint when it went down, and were sent on at once",
            r.released.clone(),
        );
        registry.register(
            "flows_told",
            "Open connections of lost endpoints that ended after their client was challenged",
            r.told.clone(),
        );
        registry.register(
            "flows_not_told",
            "Open connections of lost endpoints that were left to their next packet",
            r.not_told.clone(),
        );
        registry.register(
            "service_shadow",
            "1 for a service that decides and steers nothing",
            r.shadow.clone(),
        );
        registry.register(
            "config_reloads",
            "Attempts to load the configuration again, by result",
            r.reloads.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "1 if the configuration was good when it was last loaded, at the start or later",
            r.reload_succeeded.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When a good configuration was last loaded, at the start or later",
            r.reloaded_at.clone(),
        );
        registry.register(
            "failover_duration_seconds",
            "Time from the beginning of the first failed check to the switch away from the endpoint",
            r.failovers.clone(),
        );
        registry.register(
            "endpoint_tier",
            "The endpoint's place: 0 is the master, 1 and up are backups",
            r.tiers.clone(),
        );
        registry.register(
            "endpoint_weight",
            "The endpoint's share of its tier's connections, in proportion to the others'",
            r.weights.clone(),
        );
        registry.register(
            "endpoint_mode",
            "1 for what operators say of the endpoint",
            r.modes.clone(),
        );
        registry.register(
            "service_frozen",
            "1 while nothing but an order changes the service's selection",
            r.frozen.clone(),
        );
        registry.register(
            "datapath_flows_max",
            "Connections that the flow table of one address family holds",
            r.flows_max.clone(),
        );
        registry.register(
            "build",
            "The agent's version and the version of its kernel ABI",
            Info::new(vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("abi", probe_ebpf::abi::ABI_VERSION.to_string()),
            ]),
        );
        registry.register_collector(Box::new(Datapath {
            counters,
            ids: recorder.ids.clone(),
            services: recorder.services.clone(),
        }));
        let mut process = Registry::default();
        process.register_collector(Box::new(Process::new()));
        Self {
            registry,
            process,
            recorder,
        }
    }

    /// The part that is written to.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// What happens, for the status page.
    pub fn feed(&self) -> Feed {
        self.recorder.feed.clone()
    }

    /// Everything.
    pub fn render(&self, format: Format) -> Result<String, fmt::Error> {
        let mut open = String::with_capacity(16 * 1024);
        text::encode_registry(&mut open, &self.process)?;
        text::encode(&mut open, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => open,
            Format::Text => exposition::text(&open),
        })
    }
}

impl Recorder {
    /// Whether processes of the node itself are steered.
    pub fn own(&self, own: &OwnState) {
        for state in OwnState::LABELS {
            self.own
                .get_or_create(&OfOwnState { state })
                .set((state == own.label()).into());
        }
    }

    /// Sockets of theirs were ended, or not.
    pub fn own_ended(&self, ended: Ended) {
        for (outcome, count) in OUTCOMES.into_iter().zip([ended.ended, ended.refused]) {
            self.own_ended
                .get_or_create(&OfOutcome { outcome })
                .inc_by(count);
        }
    }

    /// Whether idle connections of lost endpoints are told.
    pub fn telling(&self, telling: &TellState) {
        for state in TellState::LABELS {
            self.telling
                .get_or_create(&OfTellState { state })
                .set((state == telling.label()).into());
        }
    }

    /// What the budget of checks multiplies intervals by.
    pub fn stretched(&self, ratio: f64) {
        self.stretch.set(ratio);
    }

    /// Whether checks and decisions have real-time priority, and the agent locked memory.
    pub fn realtime(&self, priority: bool, memory: bool) {
        for (kind, had) in [("priority", priority), ("memory", memory)] {
            self.realtime
                .get_or_create(&OfKind { kind })
                .set(had.into());
        }
    }

    /// Some of them were.
    pub fn told(&self, told: &Told) {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        for ((service, endpoint), id) in ids.iter() {
            let Some(counts) = told.counts.get(id) else {
                continue;
            };
            let of = of_endpoint(service, endpoint);
            for (to, count) in CHALLENGED
                .into_iter()
                .zip([counts.clients, counts.endpoints])
            {
                self.challenges
                    .get_or_create(&of_challenge(&of, to))
                    .inc_by(count);
            }
            self.released.get_or_create(&of).inc_by(counts.released);
            self.told.get_or_create(&of).inc_by(counts.told);
            self.not_told.get_or_create(&of).inc_by(counts.given_up);
        }
    }

    /// A configuration was loaded at the start.
    pub fn loaded(&self) {
        self.reload_succeeded.set(1);
        self.reloaded_at.set(unix_seconds());
    }

    /// It was loaded again, or not.
    pub fn reloaded(&self, outcome: Outcome) {
        let result = outcome.label();
        self.reloads.get_or_create(&OfResult { result }).inc();
        if outcome.is_good() {
            self.loaded();
        } else {
            self.reload_succeeded.set(0);
        }
    }

    /// So many connections fit into a flow table.
    pub fn flows_max(&self, flows: u32) {
        self.flows_max.set(flows.into());
    }

    /// The datapath told of an event, and of some that it held back.
    pub fn event(&self, kind: EventKind, held_back: u32) {
        self.events
            .get_or_create(&OfKind { kind: kind.label() })
            .inc_by(1 + u64::from(held_back));
    }
}

fn unix_seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock before 1970 is not set at all.
    now.map_or(0.0, |since| since.as_secs_f64())
}

/// What left the configuration is told of no more: a rate of nothing would go on.
impl Recorder {
    fn forget_endpoint(&self, service: &str, endpoint: &str) {
        let of = of_endpoint(service, endpoint);
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.remove(&(of.service.clone(), of.endpoint.clone()));
        drop(ids);
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meters) = meters.get_mut(service) {
            meters.remove(endpoint);
        }
        drop(meters);
        for kind in Kind::ALL {
            self.checks.remove(&OfVerdict {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                verdict: kind.label(),
            });
        }
        for state in [State::Unknown, State::Up, State::Down] {
            self.state.remove(&OfState {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                state: state.label(),
            });
        }
        for signal in Signal::ALL {
            self.signals.remove(&OfSignal {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                kind: signal.label(),
            });
        }
        for standing in Standing::EXCUSES {
            self.excused.remove(&OfExcuse {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                reason: standing.label(),
            });
        }
        for to in CHALLENGED {
            self.challenges.remove(&of_challenge(&of, to));
        }
        for counters in [&self.skipped, &self.released, &self.told, &self.not_told] {
            counters.remove(&of);
        }
        for mode in Mode::ALL {
            self.modes.remove(&OfMode {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                mode: mode.label(),
            });
        }
        for gauges in [
            &self.selected,
            &self.draining,
            &self.tiers,
            &self.weights,
            &self.unresolved,
        ] {
            gauges.remove(&of);
        }
        self.duration.remove(&of);
    }

    fn forget_service(&self, service: &str) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.remove(service);
        drop(services);
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters.remove(service);
        drop(meters);
        let of = OfService {
            service: service.to_owned(),
        };
        self.holds.remove(&of);
        self.failovers.remove(&of);
        self.members_changed.remove(&of);
        self.refusing.remove(&of);
        self.shadow.remove(&of);
        self.frozen.remove(&of);
        for reason in Gone::WORDS {
            self.cut_off.remove(&OfReason {
                service: of.service.clone(),
                reason,
            });
        }
        for reason in Reason::ALL {
            self.switches.remove(&OfReason {
                service: of.service.clone(),
                reason: reason.label(),
            });
        }
    }
}

/// Of [`Ended`].
const OUTCOMES: [&str; 2] = ["ended", "refused"];

/// Who gets challenges.
const CHALLENGED: [&str; 2] = ["client", "endpoint"];

fn of_challenge(of: &OfEndpoint, to: &'static str) -> OfChallenge {
    OfChallenge {
        service: of.service.clone(),
        endpoint: of.endpoint.clone(),
        to,
    }
}

fn of_endpoint(service: &str, endpoint: &str) -> OfEndpoint {
    OfEndpoint {
        service: service.to_owned(),
        endpoint: endpoint.to_owned(),
    }
}

impl Observer for Recorder {
    fn checked(&self, service: &str, endpoint: &str, verdict: &Verdict, skipped: u64) {
        let meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is checked was identified before.
        let Some(meter) = meters.get(service).and_then(|of| of.get(endpoint)) else {
            return;
        };
        meter.duration.observe(verdict.latency.as_secs_f64());
        if skipped > 0 {
            meter.skipped.inc_by(skipped);
        }
        // Of the one kind that no check concludes there is none.
        if let Some(counter) = meter.checks.get(verdict.kind as usize) {
            counter.inc();
        }
    }

    fn excused(&self, service: &str, endpoint: &str, standing: Standing) {
        self.excused
            .get_or_create(&OfExcuse {
                service: service.to_owned(),
                endpoint: endpoint.to_owned(),
                reason: standing.label(),
            })
            .inc();
    }

    fn late(&self, late: Duration, largest: Duration) {
        self.lateness.observe(late.as_secs_f64());
        self.latest.set(largest.as_secs_f64());
    }

    fn signalled(&self, service: &str, endpoint: &str, signal: Signal) {
        let of = of_endpoint(service, endpoint);
        self.signals
            .get_or_create(&OfSignal {
                service: of.service,
                endpoint: of.endpoint,
                kind: signal.label(),
            })
            .inc();
    }

    fn state(&self, service: &str, endpoint: &str, state: State) {
        self.feed.state(service, endpoint, state);
        for each in [State::Unknown, State::Up, State::Down] {
            self.state
                .get_or_create(&OfState {
                    service: service.to_owned(),
                    endpoint: endpoint.to_owned(),
                    state: each.label(),
                })
                .set((each == state).into());
        }
    }

    fn selected(&self, service: &str, selected: &[&str]) {
        self.feed.selected(service, selected);
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        for (of, endpoint) in ids.keys().filter(|(of, _)| of == service) {
            self.selected
                .get_or_create(&of_endpoint(of, endpoint))
                .set(selected.contains(&endpoint.as_str()).into());
        }
        self.refusing
            .get_or_create(&OfService {
                service: service.to_owned(),
            })
            .set(selected.is_empty().into());
    }

    fn switched(&self, service: &str, reason: Reason) {
        self.feed.switched(service, reason);
        if reason == Reason::MembersChanged {
            self.members_changed
                .get_or_create(&OfService {
                    service: service.to_owned(),
                })
                .inc();
            return;
        }
        self.switches
            .get_or_create(&OfReason {
                service: service.to_owned(),
                reason: reason.label(),
            })
            .inc();
    }

    fn holds(&self, service: &str, hold: Duration) {
        self.holds
            .get_or_create(&OfService {
                service: service.to_owned(),
            })
            .set(hold.as_secs_f64());
    }

    fn distrusts(&self, doubts: bool) {
        self.distrust.set(doubts.into());
    }

    fn cut_off(&self, service: &str, gone: Option<&Gone>) {
        for reason in Gone::WORDS {
            self.cut_off
                .get_or_create(&OfReason {
                    service: service.to_owned(),
                    reason,
                })
                .set(gone.is_some_and(|gone| gone.label() == reason).into());
        }
    }

    fn draining(&self, service: &str, endpoint: &str, draining: bool) {
        self.draining
            .get_or_create(&of_endpoint(service, endpoint))
            .set(draining.into());
    }

    fn served(&self, service: &str, id: ServiceId) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.insert(service.to_owned(), id);
    }

    fn identified(&self, service: &str, endpoint: &str, id: EndpointId) {
        // Created at zero: rates need the value before the first increment.
        let of = of_endpoint(service, endpoint);
        drop(self.released.get_or_create(&of));
        drop(self.told.get_or_create(&of));
        drop(self.not_told.get_or_create(&of));
        for to in CHALLENGED {
            drop(self.challenges.get_or_create(&of_challenge(&of, to)));
        }
        let checks = Kind::ALL.map(|kind| {
            let of = OfVerdict {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                verdict: kind.label(),
            };
            self.checks.get_or_create(&of).clone()
        });
        let meter = Meter {
            checks,
            skipped: self.skipped.get_or_create(&of).clone(),
            duration: self.duration.get_or_create(&of).clone(),
        };
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let of_service = meters.entry(of.service.clone()).or_default();
        of_service.insert(of.endpoint.clone(), meter);
        drop(meters);
        for standing in Standing::EXCUSES {
            drop(self.excused.get_or_create(&OfExcuse {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                reason: standing.label(),
            }));
        }
        for signal in Signal::ALL {
            drop(self.signals.get_or_create(&OfSignal {
                service: of.service.clone(),
                endpoint: of.endpoint.clone(),
                kind: signal.label(),
            }));
        }
        for reason in Reason::ALL {
            // Those that are no switches.
            if !matches!(
                reason,
                Reason::Initial | Reason::Inherited | Reason::MembersChanged
            ) {
                drop(self.switches.get_or_create(&OfReason {
                    service: of.service.clone(),
                    reason: reason.label(),
                }));
            }
        }
        let of_service = OfService {
            service: of.service.clone(),
        };
        drop(self.members_changed.get_or_create(&of_service));
        drop(self.failovers.get_or_create(&of_service));
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.insert((of.service, of.endpoint), id);
    }

    fn service_mode(&self, service: &str, mode: config::Mode) {
        self.shadow
            .get_or_create(&OfService {
                service: service.to_owned(),
            })
            .set((mode == config::Mode::Shadow).into());
    }

    fn gone(&self, service: &str, endpoint: Option<&str>) {
        match endpoint {
            Some(endpoint) => self.forget_endpoint(service, endpoint),
            None => self.forget_service(service),
        }
    }

    fn interfaces(&self, role: Role, tc: TcWay, xdp: XdpWay, attached: usize) {
        let role = match role {
            Role::Edge => "edge",
            Role::Uplink => "uplink",
        };
        self.interfaces
            .get_or_create(&OfWay {
                role,
                tc: tc.label(),
                xdp: xdp.label(),
            })
            .set(i64::try_from(attached).unwrap_or(i64::MAX));
    }

    fn failed_over(&self, service: &str, took: Duration) {
        self.failovers
            .get_or_create(&OfService {
                service: service.to_owned(),
            })
            .observe(took.as_secs_f64());
    }

    fn placed(&self, service: &str, endpoint: &str, tier: u8, weight: u16) {
        let of = of_endpoint(service, endpoint);
        self.tiers.get_or_create(&of).set(tier.into());
        self.weights.get_or_create(&of).set(weight.into());
    }

    fn mode(&self, service: &str, endpoint: &str, mode: Mode) {
        for each in Mode::ALL {
            self.modes
                .get_or_create(&OfMode {
                    service: service.to_owned(),
                    endpoint: endpoint.to_owned(),
                    mode: each.label(),
                })
                .set((each == mode).into());
        }
    }

    fn unresolved(&self, service: &str, endpoint: &str, unresolved: bool) {
        self.unresolved
            .get_or_create(&of_endpoint(service, endpoint))
            .set(unresolved.into());
    }

    fn frozen(&self, service: &str, frozen: bool) {
        self.frozen
            .get_or_create(&OfService {
                service: service.to_owned(),
            })
            .set(frozen.into());
    }
}

/// What the kernel counts, read at each scrape.
struct Datapath {
    counters: Arc<dyn Counters>,
    ids: Ids,
    services: ServiceIds,
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Datapath")
    }
}

impl Collector for Datapath {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ids = self
            .ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // A counter that cannot be read is left out: an absent metric is seen, a zero is believed.
        let counted: Vec<_> = ids
            .iter()
            .filter_map(|(of, id)| Some((of, self.counters.endpoint(*id).ok()?)))
            .collect();
        let counter = MetricType::Counter;
        let mut family =
            encoder.encode_descriptor("datapath_packets", "Steered packets", None, counter)?;
        for ((service, endpoint), c) in &counted {
            for (direction, value) in [
                ("forward", c.forward_packets),
                ("reverse", c.reverse_packets),
            ] {
                let labels = [
                    ("service", service.as_str()),
                    ("endpoint", endpoint),
                    ("direction", direction),
                ];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Steered bytes, link header included";
        let mut family = encoder.encode_descriptor("datapath_bytes", help, None, counter)?;
        for ((service, endpoint), c) in &counted {
            for (direction, value) in [("forward", c.forward_bytes), ("reverse", c.reverse_bytes)] {
                let labels = [
                    ("service", service.as_str()),
                    ("endpoint", endpoint),
                    ("direction", direction),
                ];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Connections that began";
        let mut family = encoder.encode_descriptor("datapath_flows_opened", help, None, counter)?;
        for ((service, endpoint), c) in &counted {
            let labels = [("service", service.as_str()), ("endpoint", endpoint)];
            ConstCounter::new(c.flows_opened).encode(family.encode_family(&labels)?)?;
        }
        let help = "Connections seen to end";
        let mut family = encoder.encode_descriptor("datapath_flows_closed", help, None, counter)?;
        for ((service, endpoint), c) in &counted {
            let labels = [("service", service.as_str()), ("endpoint", endpoint)];
            ConstCounter::new(c.flows_closed).encode(family.encode_family(&labels)?)?;
        }
        let help = "Packets that were passed unchanged, reset, dropped or steered in an odd way, by reason";
        let mut family = encoder.encode_descriptor("datapath_reasons", help, None, counter)?;
        for (reason, value) in self.counters.reasons().unwrap_or_default() {
            let labels = [("verdict", reason.verdict()), ("reason", reason.label())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        let help = "1 while segments in mid-connection need no look at the flow tables";
        let mut family =
            encoder.encode_descriptor("service_slot_alone", help, None, MetricType::Gauge)?;
        let services = self
            .services
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (service, id) in services {
            if let Ok(alone) = self.counters.slot_alone(id) {
                let labels = [("service", service.as_str())];
                ConstGauge::new(i64::from(alone)).encode(family.encode_family(&labels)?)?;
            }
        }
        let flows = self.counters.flows();
        let help = "Connections in the flow tables at the last sweep";
        let mut family =
            encoder.encode_descriptor("datapath_flows", help, None, MetricType::Gauge)?;
        for (name, value) in [("ipv4", flows.v4), ("ipv6", flows.v6)] {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&[("family", name)])?)?;
        }
        let help = "Connected sockets of the node's own processes at the last sweep";
        let family = encoder.encode_descriptor("node_sockets", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(flows.own).unwrap_or(i64::MAX)).encode(family)?;
        Ok(())
    }
}
