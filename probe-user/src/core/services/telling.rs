//! What a service says of itself: log lines, metrics, status.

use std::time::SystemTime;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Endpoint, Journal, Observer, Service, What, status};
use crate::{
    config::{Address, Failback, Mode},
    failover::{Reason, Switch, Target, damping::Damped},
    health::{Signal, State, Verdict, scheduler::Standing},
};

impl Service {
    pub(super) fn record(
        &mut self,
        e: usize,
        verdict: Verdict,
        skipped: u64,
        standing: Standing,
        changed: Option<State>,
        observer: &dyn Observer,
    ) {
        let (service, name) = (self.config.name(), self.config.endpoints()[e].name());
        let endpoint = &mut self.endpoints[e];
        endpoint.checks += 1;
        if standing != Standing::Counts {
            endpoint.excused += 1;
            observer.excused(service, name, standing);
            debug!(
                service,
                endpoint = name,
                reason = standing.label(),
                "a check does not count: {}",
                verdict.detail()
            );
        } else if verdict.kind.success().is_some() {
            endpoint.judged = true;
            endpoint.durations.note(verdict.latency);
        }
        if standing == Standing::Counts && verdict.kind.success() == Some(false) {
            endpoint.failures += 1;
            debug!(
                service,
                endpoint = name,
                verdict = verdict.kind.label(),
                "{}",
                verdict.detail()
            );
        } else if verdict.kind.success().is_none()
            && endpoint
                .verdict
                .as_ref()
                .is_none_or(|v| v.kind != verdict.kind)
        {
            warn!(
                service,
                endpoint = name,
                "the agent itself could not check, which counts neither way: {}",
                verdict.detail()
            );
        }
        observer.checked(service, name, &verdict, skipped);
        if let Some(state) = changed {
            endpoint.since = SystemTime::now();
            tell_state(&self.journal, observer, (service, name), state, &verdict);
        }
        endpoint.conclude(verdict);
    }

    /// Says what is so at the start.
    pub(super) fn tell(&self, observer: &dyn Observer) {
        let service = self.config.name();
        for (endpoint, config) in self.endpoints.iter().zip(self.config.endpoints()) {
            observer.identified(service, config.name(), endpoint.id);
            observer.placed(service, config.name(), config.tier(), config.weight());
            observer.state(service, config.name(), endpoint.state());
            if matches!(config.address(), Address::Name { .. }) {
                let unresolved = endpoint.unresolved.is_some();
                observer.unresolved(service, config.name(), unresolved);
            }
        }
        observer.served(service, self.id);
        observer.cut_off(service, None);
        self.tell_orders(observer);
        self.tell_mode(observer);
        self.tell_hold(observer);
        self.tell_selection(observer);
        let to = self.target_name(self.failover.selected());
        let reason = self.reason.label();
        match self.config.mode() {
            Mode::Active => info!(service, reason, "new connections go to {to}"),
            Mode::Shadow => info!(
                service,
                reason, "as a shadow: new connections would go to {to}"
            ),
        }
    }

    /// Says whether it steers.
    pub(super) fn tell_mode(&self, observer: &dyn Observer) {
        observer.service_mode(self.config.name(), self.config.mode());
    }

    /// Says which orders are in effect.
    pub(super) fn tell_orders(&self, observer: &dyn Observer) {
        let service = self.config.name();
        for (e, config) in self.config.endpoints().iter().enumerate() {
            observer.mode(service, config.name(), self.failover.mode(e));
        }
        observer.frozen(service, self.failover.frozen());
    }

    /// Says that the selection changed, if it did.
    pub(super) fn tell_switch(&self, switch: Option<Switch>, observer: &dyn Observer) {
        let Some(switch) = switch else { return };
        let service = self.config.name();
        let written = Instant::now();
        observer.switched(service, switch.reason);
        if switch.reason == Reason::MasterDown
            && let Some(began) = self.failing(&switch.from)
        {
            observer.failed_over(service, written.saturating_duration_since(began));
        }
        self.tell_selection(observer);
        self.tell_drains(observer);
        let (from, to) = (self.target_name(&switch.from), self.target_name(&switch.to));
        let reason = switch.reason.label();
        if self.config.mode() == Mode::Shadow {
            info!(service, from, to, reason, "would switch, as a shadow");
        } else if switch.reason == Reason::MembersChanged {
            warn!(
                service,
                from, to, reason, "the tier's serving endpoints changed"
            );
        } else {
            warn!(service, from, to, reason, "switched");
        }
        self.journal.tell(What::Switch {
            service: service.to_owned(),
            from: texts(&self.names(&switch.from)),
            to: texts(&self.names(&switch.to)),
            reason: reason.to_owned(),
            would: self.config.mode() == Mode::Shadow,
        });
    }

    /// Says which tiers' fail-backs wait longer now, or no longer, if that changed.
    pub(super) fn tell_damping(&mut self, observer: &dyn Observer) {
        let damped = self.failover.damped();
        if damped == self.damped {
            return;
        }
        let service = self.config.name();
        for of in &damped {
            if !self.damped.contains(of) {
                warn!(
                    service,
                    tier = of.tier,
                    relapses = of.relapses,
                    hold_ms = millis(of.hold),
                    "down again soon after a fail-back: the next one to this tier waits longer"
                );
                self.journal.tell(What::Damping {
                    service: service.to_owned(),
                    tier: of.tier,
                    hold_ms: Some(millis(of.hold)),
                    relapses: of.relapses,
                });
            }
        }
        for before in &self.damped {
            if !damped.iter().any(|of| of.tier == before.tier) {
                info!(
                    service,
                    tier = before.tier,
                    "steady since the last fail-back: the next one waits as configured"
                );
                self.journal.tell(What::Damping {
                    service: service.to_owned(),
                    tier: before.tier,
                    hold_ms: None,
                    relapses: 0,
                });
            }
        }
        self.damped = damped;
        self.damped_anew = true;
        self.tell_hold(observer);
    }

    /// Says how long fail-backs wait at most, where they come by themselves.
    fn tell_hold(&self, observer: &dyn Observer) {
        if let Failback::Auto { hold, .. } = self.config.failback() {
            let longest = self.damped.iter().map(|of| of.hold).max();
            observer.holds(self.config.name(), longest.unwrap_or(hold));
        }
    }

    /// Says which endpoints have flows from before they were left.
    pub(super) fn tell_drains(&self, observer: &dyn Observer) {
        for (e, config) in self.config.endpoints().iter().enumerate() {
            let draining = self.drains.draining(e).is_some();
            observer.draining(self.config.name(), config.name(), draining);
        }
    }

    /// Says for whom the time to drain is over, if there is somebody to lose.
    pub(super) fn tell_drained(&self, over: &[usize]) {
        for e in over {
            if let Some(draining) = self.drains.draining(*e) {
                warn!(
                    service = self.config.name(),
                    endpoint = self.config.endpoints()[*e].name(),
                    flows = draining.flows,
                    "drained: flows that are left are reset"
                );
                self.journal.tell(What::Drained {
                    service: self.config.name().to_owned(),
                    endpoint: self.config.endpoints()[*e].name().to_owned(),
                    flows: draining.flows,
                });
            }
        }
    }

    /// When the failures began that a target was left for.
    fn failing(&self, target: &Target) -> Option<Instant> {
        let Target::Endpoints(left) = target else {
            return None;
        };
        left.iter().filter_map(|i| self.endpoints[*i].failing).min()
    }

    pub(super) fn tell_selection(&self, observer: &dyn Observer) {
        observer.selected(self.config.name(), &self.serving());
    }

    /// Names of the endpoints that new connections go to.
    pub(super) fn serving(&self) -> Vec<&str> {
        self.names(self.failover.selected())
    }

    pub(super) fn names(&self, target: &Target) -> Vec<&str> {
        match target {
            Target::Endpoints(serving) => {
                let endpoints = self.config.endpoints();
                serving.iter().map(|i| endpoints[*i].name()).collect()
            }
            Target::Refuse => Vec::new(),
        }
    }

    /// A target's name in sentences.
    pub(super) fn target_name(&self, target: &Target) -> String {
        match self.names(target).as_slice() {
            [] => "nobody (refused)".to_owned(),
            names => names.join(", "),
        }
    }

    pub(super) fn status(&self, now: Instant) -> status::Service {
        let serving = self.serving();
        let (kind, only) = match serving.as_slice() {
            [] => ("refuse", None),
            [only] => ("endpoint", Some(*only)),
            _ => ("spread", None),
        };
        let (mode, holds) = match self.config.failback() {
            Failback::Auto { hold, max_hold } => ("auto", Some((millis(hold), millis(max_hold)))),
            Failback::Manual => ("manual", None),
        };
        let due = self.failover.due().map(|due| wall_clock(due, now));
        let endpoints = self.endpoints.iter().zip(self.config.endpoints());
        status::Service {
            name: self.config.name().to_owned(),
            mode: self.config.mode().label().to_owned(),
            listeners: texts(self.config.listeners()),
            selection: status::Selection {
                kind: kind.to_owned(),
                endpoint: only.map(str::to_owned),
                endpoints: texts(&serving),
                tier: self.failover.tier(),
                since_unix_ms: status::unix_ms(self.since),
                reason: self.reason.label().to_owned(),
                switches: self.switches,
                members_changed: self.members_changed,
            },
            failback: status::Failback {
                mode: mode.to_owned(),
                hold_ms: holds.map(|(hold, _)| hold),
                max_hold_ms: holds.map(|(_, longest)| longest),
                due_unix_ms: due.map(status::unix_ms),
                damped: self.damped.iter().map(status_of_damped).collect(),
            },
            cut_off: self.cut_status(now),
            affinity_ms: self.config.affinity().map(millis),
            promoted: self.failover.promoted().map(|promoted| {
                let name = self.config.endpoints()[promoted.endpoint].name();
                status::ordered(name, self.promoted_by.as_ref())
            }),
            frozen: self
                .failover
                .frozen()
                .then(|| status::ordered("frozen", self.frozen_by.as_ref())),
            endpoints: endpoints
                .enumerate()
                .map(|(i, (endpoint, config))| {
                    let verdict = endpoint.verdict.as_ref();
                    status::Endpoint {
                        name: config.name().to_owned(),
                        tier: config.tier(),
                        weight: config.weight(),
                        slow_start: self.percent(i),
                        serving: self.failover.serves(i),
                        address: config.address().to_string(),
                        resolved: texts(&endpoint.at.addresses().collect::<Vec<_>>()),
                        unresolved: endpoint.unresolved.as_ref().map(|of| of.status(now)),
                        state: endpoint.state().label().to_owned(),
                        agent_said: config.agent().map(|_| endpoint.wishes.to_string()),
                        mode: self.failover.mode(i).label().to_owned(),
                        ordered: self
                            .ordered_by(i)
                            .map(|given| status::ordered(&self.mode_text(i), Some(given))),
                        against: endpoint.health.against(),
                        needed: endpoint.health.needed(),
                        verdict: verdict.map(|v| v.kind.label().to_owned()),
                        detail: verdict.map(Verdict::detail),
                        verdict_since_unix_ms: verdict
                            .map(|_| status::unix_ms(endpoint.verdict_since)),
                        saw: verdict
                            .filter(|v| !v.saw.is_empty())
                            .map(|v| v.saw.to_string()),
                        since_unix_ms: status::unix_ms(endpoint.since),
                        checks: endpoint.checks,
                        failures: endpoint.failures,
                        excused: endpoint.excused,
                        latency_us: verdict
                            .filter(|v| v.kind.is_of_check())
                            .map(|v| u64::try_from(v.latency.as_micros()).unwrap_or(u64::MAX)),
                        durations: endpoint
                            .durations
                            .percentiles()
                            .map(|of| status::Durations {
                                checks: of.checks,
                                p50_us: of.p50,
                                p95_us: of.p95,
                                p99_us: of.p99,
                                max_us: of.max,
                            }),
                        signals: Signal::ALL
                            .iter()
                            .map(|signal| (signal.label().to_owned(), endpoint.signals.of(*signal)))
                            .collect(),
                        listeners: texts(config.listeners()),
                        traffic: status::Traffic::default(),
                        drain: self.drains.draining(i).map(|draining| status::Drain {
                            since_unix_ms: status::unix_ms(wall_clock(draining.since, now)),
                            until_unix_ms: draining
                                .until
                                .map(|until| status::unix_ms(wall_clock(until, now))),
                            flows: draining.flows,
                        }),
                        id: Some(endpoint.id),
                    }
                })
                .collect(),
        }
    }
}

/// Says that a service's endpoint is in another state, by this verdict.
pub(super) fn tell_state(
    journal: &Journal,
    observer: &dyn Observer,
    (service, endpoint): (&str, &str),
    state: State,
    verdict: &Verdict,
) {
    observer.state(service, endpoint, state);
    info!(
        service,
        endpoint,
        state = state.label(),
        verdict = verdict.kind.label(),
        "endpoint is {}: {}",
        state.label(),
        verdict.detail()
    );
    journal.tell(What::State {
        service: service.to_owned(),
        endpoint: endpoint.to_owned(),
        state: state.label().to_owned(),
        verdict: verdict.kind.label().to_owned(),
        detail: verdict.detail(),
        saw: (!verdict.saw.is_empty()).then(|| verdict.saw.to_string()),
    });
}

impl Endpoint {
    /// Keeps what a check concluded.
    pub(super) fn conclude(&mut self, verdict: Verdict) {
        self.history.note(verdict.kind);
        let before = self.verdict.as_ref().map(|before| before.kind);
        if before != Some(verdict.kind) {
            self.verdict_since = SystemTime::now();
        }
        self.verdict = Some(verdict);
    }
}

/// A time of the agent's clock on the wall clock.
pub(super) fn wall_clock(at: Instant, now: Instant) -> SystemTime {
    SystemTime::now() + at.saturating_duration_since(now) - now.saturating_duration_since(at)
}

fn status_of_damped(of: &Damped) -> status::Damped {
    status::Damped {
        tier: of.tier,
        hold_ms: millis(of.hold),
        relapses: of.relapses,
    }
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
