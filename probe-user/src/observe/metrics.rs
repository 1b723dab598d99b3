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
    endpoints::Endpoints,
    exposition::{self, Format},
    page::Feed,
    process::Process,
};
use crate::{
    config,
    core::{Counters, Observer},
    datapath::{Ended, EndpointId, OwnState, Role, ServiceId, TcWay, TellState, Told, XdpWay},
    failover::{Reason, cut::Gone, orders::Mode},
    health::{Signal, State, Verdict, lateness::BOUNDS_US, scheduler::Standing},
    reload::Outcome,
};

/// From a burst of checks to `fall` timeouts of a slow rhythm.
const FAILOVER_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

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
struct OfWay {
    role: &'static str,
    tc: &'static str,
    xdp: &'static str,
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

/// Ids by service name, for reading the kernel's counters.
type ServiceIds = Arc<Mutex<BTreeMap<String, ServiceId>>>;

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
    endpoints: Endpoints,
    lateness: Histogram,
    latest: Gauge<f64, AtomicU64>,
    realtime: Family<OfKind, Gauge>,
    stretch: Gauge<f64, AtomicU64>,
    holds: Family<OfService, Gauge<f64, AtomicU64>>,
    distrust: Gauge,
    refusing: Family<OfService, Gauge>,
    switches: Family<OfReason, Counter>,
    members_changed: Family<OfService, Counter>,
    interfaces: Family<OfWay, Gauge>,
    events: Family<OfKind, Counter>,
    own: Family<OfOwnState, Gauge>,
    own_ended: Family<OfOutcome, Counter>,
    telling: Family<OfTellState, Gauge>,
    shadow: Family<OfService, Gauge>,
    reloads: Family<OfResult, Counter>,
    reload_succeeded: Gauge,
    reloaded_at: Gauge<f64, AtomicU64>,
    failovers: Family<OfService, Histogram, fn() -> Histogram>,
    flows_max: Gauge,
    frozen: Family<OfService, Gauge>,
    cut_off: Family<OfReason, Gauge>,
    services: ServiceIds,
    feed: Feed,
}

impl Metrics {
    /// Registers everything.
    pub fn new(counters: Arc<dyn Counters>) -> Self {
        let recorder = Recorder {
            endpoints: Endpoints::default(),
            lateness: Histogram::new(BOUNDS_US.iter().map(|us| *us as f64 / 1e6)),
            latest: Gauge::default(),
            realtime: Family::default(),
            stretch: Gauge::default(),
            holds: Family::default(),
            distrust: Gauge::default(),
            refusing: Family::default(),
            switches: Family::default(),
            members_changed: Family::default(),
            interfaces: Family::default(),
            events: Family::default(),
            own: Family::default(),
            own_ended: Family::default(),
            telling: Family::default(),
            shadow: Family::default(),
            reloads: Family::default(),
            reload_succeeded: Gauge::default(),
            reloaded_at: Gauge::default(),
            failovers: Family::new_with_constructor(|| Histogram::new(FAILOVER_BUCKETS)),
            flows_max: Gauge::default(),
            frozen: Family::default(),
            cut_off: Family::default(),
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
            endpoints: recorder.endpoints.clone(),
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
        self.endpoints.every(|figures| {
            let Some(counts) = told.counts.get(&figures.id) else {
                return;
            };
            let sent = [counts.clients, counts.endpoints];
            for (challenges, sent) in figures.challenges.iter_mut().zip(sent) {
                *challenges += sent;
            }
            figures.released += counts.released;
            figures.told += counts.told;
            figures.not_told += counts.given_up;
        });
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
    fn forget_service(&self, service: &str) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.remove(service);
        drop(services);
        self.endpoints.forget_service(service);
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

impl Observer for Recorder {
    fn checked(&self, service: &str, endpoint: &str, verdict: &Verdict, skipped: u64) {
        self.endpoints.change(service, endpoint, |figures| {
            figures.checked(verdict, skipped);
        });
    }

    fn excused(&self, service: &str, endpoint: &str, standing: Standing) {
        self.endpoints.change(service, endpoint, |figures| {
            figures.excused(standing);
        });
    }

    fn late(&self, late: Duration, largest: Duration) {
        self.lateness.observe(late.as_secs_f64());
        self.latest.set(largest.as_secs_f64());
    }

    fn signalled(&self, service: &str, endpoint: &str, signal: Signal) {
        self.endpoints.change(service, endpoint, |figures| {
            figures.signalled(signal);
        });
    }

    fn state(&self, service: &str, endpoint: &str, state: State) {
        self.feed.state(service, endpoint, state);
        self.endpoints.change(service, endpoint, |figures| {
            figures.state = Some(state);
        });
    }

    fn selected(&self, service: &str, selected: &[&str]) {
        self.feed.selected(service, selected);
        self.endpoints.each(service, |endpoint, figures| {
            figures.selected = Some(selected.contains(&endpoint));
        });
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
        self.endpoints.change(service, endpoint, |figures| {
            figures.draining = Some(draining);
        });
    }

    fn served(&self, service: &str, id: ServiceId) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.insert(service.to_owned(), id);
    }

    fn identified(&self, service: &str, endpoint: &str, id: EndpointId) {
        self.endpoints.identified(service, endpoint, id);
        // Created at zero: rates need the value before the first increment.
        for reason in Reason::ALL {
            // Those that are no switches.
            if !matches!(
                reason,
                Reason::Initial | Reason::Inherited | Reason::MembersChanged
            ) {
                drop(self.switches.get_or_create(&OfReason {
                    service: service.to_owned(),
                    reason: reason.label(),
                }));
            }
        }
        let of_service = OfService {
            service: service.to_owned(),
        };
        drop(self.members_changed.get_or_create(&of_service));
        drop(self.failovers.get_or_create(&of_service));
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
            Some(endpoint) => self.endpoints.forget(service, endpoint),
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
        self.endpoints.change(service, endpoint, |figures| {
            figures.place = Some((tier, weight));
        });
    }

    fn mode(&self, service: &str, endpoint: &str, mode: Mode) {
        self.endpoints.change(service, endpoint, |figures| {
            figures.mode = Some(mode);
        });
    }

    fn unresolved(&self, service: &str, endpoint: &str, unresolved: bool) {
        self.endpoints.change(service, endpoint, |figures| {
            figures.unresolved = Some(unresolved);
        });
    }

    fn frozen(&self, service: &str, frozen: bool) {
        self.frozen
            .get_or_create(&OfService {
                service: service.to_owned(),
            })
            .set(frozen.into());
    }
}

/// What the kernel counts, read at each scrape, and what is counted by endpoint.
struct Datapath {
    counters: Arc<dyn Counters>,
    endpoints: Endpoints,
    services: ServiceIds,
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Datapath")
    }
}

impl Collector for Datapath {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seen = self.endpoints.seen();
        seen.encode(&mut encoder)?;
        // A counter that cannot be read is left out: an absent metric is seen, a zero is believed.
        let counted: Vec<_> = seen
            .ids()
            .filter_map(|(service, endpoint, id)| {
                let counters = self.counters.endpoint(id).ok()?;
                Some((service, endpoint, counters))
            })
            .collect();
        let counter = MetricType::Counter;
        let mut family =
            encoder.encode_descriptor("datapath_packets", "Steered packets", None, counter)?;
        for (service, endpoint, c) in &counted {
            for (direction, value) in [
                ("forward", c.forward_packets),
                ("reverse", c.reverse_packets),
            ] {
                let labels = [
                    ("service", *service),
                    ("endpoint", *endpoint),
                    ("direction", direction),
                ];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Steered bytes, link header included";
        let mut family = encoder.encode_descriptor("datapath_bytes", help, None, counter)?;
        for (service, endpoint, c) in &counted {
            for (direction, value) in [("forward", c.forward_bytes), ("reverse", c.reverse_bytes)] {
                let labels = [
                    ("service", *service),
                    ("endpoint", *endpoint),
                    ("direction", direction),
                ];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Connections that began";
        let mut family = encoder.encode_descriptor("datapath_flows_opened", help, None, counter)?;
        for (service, endpoint, c) in &counted {
            let labels = [("service", *service), ("endpoint", *endpoint)];
            ConstCounter::new(c.flows_opened).encode(family.encode_family(&labels)?)?;
        }
        let help = "Connections seen to end";
        let mut family = encoder.encode_descriptor("datapath_flows_closed", help, None, counter)?;
        for (service, endpoint, c) in &counted {
            let labels = [("service", *service), ("endpoint", *endpoint)];
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
