//! Why a service's new connections go where they go, in sentences.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{Service, Services, telling};
use crate::{
    config::{self, AllDown, Connections, Failback, Observe},
    core::{explain, order::Refused, status},
    failover::{Target, orders::Mode},
    health::{Kind, State},
};

/// So many runs of verdicts of one kind are remembered.
const RUNS: usize = 16;

/// What an endpoint's checks said: a bounded run-length code.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Run>);

#[derive(Clone, Copy, Debug)]
struct Run {
    kind: Kind,
    checks: u64,
    since: SystemTime,
}

impl History {
    /// One more.
    pub fn note(&mut self, kind: Kind) {
        match self.0.back_mut() {
            Some(run) if run.kind == kind => run.checks += 1,
            _ => {
                if self.0.len() >= RUNS {
                    self.0.pop_front();
                }
                self.0.push_back(Run {
                    kind,
                    checks: 1,
                    since: SystemTime::now(),
                });
            }
        }
    }

    fn told(&self) -> Vec<explain::Run> {
        let run = |run: &Run| explain::Run {
            verdict: run.kind.label().to_owned(),
            checks: run.checks,
            since_unix_ms: status::unix_ms(run.since),
        };
        self.0.iter().map(run).collect()
    }
}

impl Services {
    /// Why a service's connections go where they go.
    pub fn explain(&self, service: &str, now: Instant) -> Result<explain::Service, Refused> {
        let found = self.all.iter().find(|s| s.config.name() == service);
        let found = found.ok_or_else(|| Refused::NoService(service.to_owned()))?;
        let mut explained = found.explain(now);
        if let Some(since) = self.distrust.since() {
            let ago = span(now.saturating_duration_since(since));
            explained.because.insert(
                0,
                format!(
                    "all hosts are silent for {ago}, perhaps it is this node: selections are held"
                ),
            );
        }
        if let Some((gone, since)) = found.cut.as_ref().and_then(|cut| cut.gone()) {
            let ago = span(now.saturating_duration_since(since));
            let because = format!(
                "its endpoints cannot be reached from this node for {ago}, {gone}: the selection is held"
            );
            explained.because.insert(0, because);
        }
        Ok(explained)
    }
}

impl Service {
    fn explain(&self, now: Instant) -> explain::Service {
        let check = self.config.check();
        let endpoints = self.endpoints.iter().zip(self.config.endpoints());
        explain::Service {
            because: self.because(now),
            rules: explain::Rules {
                rise: check.rise(),
                fall: check.fall(),
                inter_ms: telling::millis(check.inter()),
                fastinter_ms: telling::millis(check.fastinter()),
                downinter_ms: telling::millis(check.downinter()),
                all_down: match self.config.all_down() {
                    AllDown::Keep => "keep",
                    AllDown::Refuse => "refuse",
                }
                .to_owned(),
                on_marked_down: policy(self.config.on_marked_down()),
                on_failback: policy(self.config.on_failback()),
                observe: match self.config.observe() {
                    Observe::Off => "off".to_owned(),
                    Observe::Trigger => "trigger".to_owned(),
                    Observe::MarkDown { error_limit } => {
                        format!("mark-down after {error_limit} in a row")
                    }
                },
                sentinel: self.config.sentinel(),
                single_writer: self.config.single_writer(),
            },
            endpoints: endpoints
                .map(|(endpoint, config)| {
                    let up = self.failover.up_since(config.tier());
                    explain::Endpoint {
                        name: config.name().to_owned(),
                        against: endpoint.health.against(),
                        needed: endpoint.health.needed(),
                        tier_up_since_unix_ms: up
                            .map(|at| status::unix_ms(telling::wall_clock(at, now))),
                        history: endpoint.history.told(),
                    }
                })
                .collect(),
            status: self.status(now),
        }
    }

    /// The most important first: orders, who serves, and why nobody better does.
    fn because(&self, now: Instant) -> Vec<String> {
        let mut because = Vec::new();
        let ago = |unix_ms: u64| {
            let now = status::unix_ms(SystemTime::now());
            span(Duration::from_millis(now.saturating_sub(unix_ms)))
        };
        if let (true, Some(given)) = (self.failover.frozen(), &self.frozen_by) {
            because.push(format!(
                "frozen by {} for {}: nothing but an order changes the selection",
                given.by,
                ago(given.since_unix_ms)
            ));
        }
        if let (Some(promoted), Some(given)) = (self.failover.promoted(), &self.promoted_by) {
            let forced = if promoted.forced {
                ", although it is not up"
            } else {
                ""
            };
            because.push(format!(
                "{} was promoted by {} {} ago{forced}: it serves until it is down, or `probe failback`",
                self.config.endpoints()[promoted.endpoint].name(),
                given.by,
                ago(given.since_unix_ms),
            ));
        }
        let Target::Endpoints(serving) = self.failover.selected() else {
            because.push(
                "no endpoint is up, and all_down: refuse answers clients with a RST".to_owned(),
            );
            because.extend((0..self.endpoints.len()).map(|e| self.sentence(e, now)));
            return because;
        };
        if serving.iter().all(|e| self.fit(*e) == State::Down) {
            because.push(
                "no endpoint is up, and all_down: keep leaves connections where they are"
                    .to_owned(),
            );
        }
        let tier = self.failover.tier().unwrap_or(0);
        because.push(format!(
            "tier {tier} is selected for {}: {}",
            ago(status::unix_ms(self.since)),
            self.reason.label()
        ));
        because.extend(serving.iter().map(|e| self.sentence(*e, now)));
        let of = |e: &usize| self.config.endpoints()[*e].tier();
        let mut others: Vec<_> = (0..self.endpoints.len())
            .filter(|e| !serving.contains(e))
            .collect();
        others.sort_by_key(of);
        because.extend(others.iter().map(|e| self.sentence(*e, now)));
        because.extend(self.way_back(tier, now));
        because
    }

    /// An endpoint, and what has to happen for it to change.
    fn sentence(&self, e: usize, now: Instant) -> String {
        let config = &self.config.endpoints()[e];
        let endpoint = &self.endpoints[e];
        let name = format!("{} (tier {})", config.name(), config.tier());
        if let Some(given) = self.ordered_by(e) {
            return format!(
                "{name} is in {} by order of {}",
                self.mode_text(e),
                given.by
            );
        }
        if config.weight() == 0 {
            return format!("{name} has weight 0: no new connections");
        }
        if endpoint.wishes.down() || !endpoint.wishes.serves() {
            return format!("{name}: its agent says: {}", endpoint.wishes);
        }
        let (state, against) = (endpoint.health.state(), endpoint.health.against());
        let since = SystemTime::now()
            .duration_since(endpoint.since)
            .unwrap_or_default();
        let mut text = format!("{name} is {} for {}", state.label(), span(since));
        if let Some(verdict) = &endpoint.verdict {
            text += &format!(
                ", last check {}: {}",
                verdict.kind.label(),
                verdict.detail()
            );
        }
        match state {
            State::Unknown => text += "; its first check decides",
            State::Up if against > 0 => {
                text += &format!(
                    "; {against} of {} failed checks in a row that take it down",
                    endpoint.health.needed()
                );
            }
            State::Up => {}
            State::Down => {
                text += &format!(
                    "; {against} of {} good checks in a row that bring it up",
                    endpoint.health.needed()
                );
            }
        }
        if endpoint.withheld {
            text += "; not believed yet, since all hosts are silent";
        }
        if let Some(draining) = self.drains.draining(e) {
            let flows = draining.flows.map_or_else(String::new, |n| format!("{n} "));
            text += &match draining.until {
                Some(until) => {
                    let left = until.saturating_duration_since(now);
                    format!("; its {flows}connections have {} left", span(left))
                }
                None => format!("; its {flows}connections go on"),
            };
        }
        text
    }

    /// What a fail-back waits for.
    fn way_back(&self, tier: u8, now: Instant) -> Option<String> {
        if self.failover.frozen() || self.failover.promoted().is_some() {
            return None;
        }
        let better = self.failover.better_up();
        if better.is_empty() {
            return (tier > 0).then(|| "no lower tier is up to go back to".to_owned());
        }
        Some(match (self.config.failback(), self.failover.due()) {
            (Failback::Manual, _) => {
                format!(
                    "tier {} is up, and failback: manual waits for `probe failback`",
                    better[0]
                )
            }
            (Failback::Auto { .. }, Some(due)) => format!(
                "tier {} is up, and is gone back to in {}",
                better[0],
                span(due.saturating_duration_since(now))
            ),
            (Failback::Auto { .. }, None) => return None,
        })
    }

    fn fit(&self, e: usize) -> State {
        match self.failover.mode(e) {
            Mode::Ready if !self.endpoints[e].wishes.serves() => State::Down,
            Mode::Ready => self.endpoints[e].state(),
            Mode::Drain | Mode::Maint => State::Down,
        }
    }
}

fn policy(of: Connections) -> String {
    match of {
        Connections::Reset => "reset".to_owned(),
        Connections::Drain(time) => format!("drain for {}", config::show(time)),
        Connections::Keep => "keep".to_owned(),
    }
}

/// A duration in its first two units at most.
fn span(time: Duration) -> String {
    explain::span(telling::millis(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded() {
        let mut history = History::default();
        for _ in 0..1000 {
            history.note(Kind::Ok);
        }
        history.note(Kind::Refused);
        assert_eq!(history.told().len(), 2);
        assert_eq!(history.told()[0].checks, 1000);
        for i in 0..100 {
            history.note(if i % 2 == 0 { Kind::Ok } else { Kind::Reset });
        }
        assert_eq!(history.told().len(), RUNS);
        assert_eq!(history.told()[RUNS - 1].verdict, "reset");
    }
}
