//! Orders of operators, carried out.
//!
//! The failover decides what an order does, on a copy first: so an order that is refused or only
//! tried has changed nothing. Then the same is done for real, in the order of any other switch.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Begin, Result, Service, Services, phase};
use crate::{
    config,
    core::{
        Observer,
        journal::What,
        order::{
            Done, Given, Kept, ModeWord, OfEndpoint, OfLeft, OfService, OfTier, Order, Promoted,
            Refused, Standing, Wish,
        },
        status,
    },
    datapath::Steering,
    failover::{
        Failover, Switch, Target,
        damping::Damped,
        orders::{Mode, Promotion},
    },
    health::{RiseFall, State},
};

/// By whom and since when an endpoint is not simply ready.
#[derive(Clone, Debug, Default)]
pub(super) struct Ordered {
    given: Given,
    /// In drain: for how long its connections go on.
    left: Option<Duration>,
}

impl Services {
    /// An operator orders something. What was done, and with which version it is kept.
    pub fn order<D: Steering>(
        &mut self,
        order: &Order,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result<std::result::Result<(Done, u64), Refused>> {
        let version = self.published.borrow().version;
        let (s, e) = match self.find_named(&order.service, order.what.endpoint()) {
            Ok(found) => found,
            Err(refused) => return Ok(Err(refused)),
        };
        let service = &self.all[s];
        let mut after = service.failover.clone();
        let switch = match service.try_order(&mut after, order, e, now) {
            Ok(switch) => switch,
            Err(refused) => return Ok(Err(refused)),
        };
        let done = service.done(order, e, &after);
        if order.dry_run || !done.changed {
            return Ok(Ok((done, version)));
        }
        self.carry_out_order(s, e, order, after, switch, now, datapath, observer)?;
        self.all[s].tell_orders(observer);
        self.journal.tell(What::Order {
            service: done.service.clone(),
            endpoint: done.endpoint.clone(),
            order: done.order.clone(),
            before: done.before.clone(),
            after: done.after.clone(),
            by: order.by.clone(),
        });
        info!(
            service = done.service,
            endpoint = done.endpoint,
            by = %order.by,
            "{}: {} -> {}",
            done.order,
            done.before,
            done.after
        );
        self.reckon();
        self.publish();
        Ok(Ok((done, self.published.borrow().version)))
    }

    fn find_named(
        &self,
        service: &str,
        endpoint: Option<&str>,
    ) -> std::result::Result<(usize, Option<usize>), Refused> {
        let found = self.all.iter().position(|s| s.config.name() == service);
        let s = found.ok_or_else(|| Refused::NoService(service.to_owned()))?;
        let Some(endpoint) = endpoint else {
            return Ok((s, None));
        };
        let endpoints = self.all[s].config.endpoints();
        match endpoints.iter().position(|e| e.name() == endpoint) {
            Some(e) => Ok((s, Some(e))),
            None => Err(Refused::NoEndpoint {
                service: service.to_owned(),
                endpoint: endpoint.to_owned(),
                known: endpoints.iter().map(|e| e.name().to_owned()).collect(),
            }),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one order, and what it needs to be done"
    )]
    fn carry_out_order<D: Steering>(
        &mut self,
        s: usize,
        e: Option<usize>,
        order: &Order,
        after: Failover,
        switch: Option<Switch>,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let given = Given {
            by: order.by.clone(),
            since_unix_ms: status::unix_ms(SystemTime::now()),
        };
        let service = &mut self.all[s];
        let mode_before = e.map(|e| service.failover.mode(e));
        match (&order.what, e) {
            (Wish::Mode { mode, left, .. }, Some(e)) => {
                service.set_mode(e, *mode, *left, given, now)
            }
            (Wish::Promote { left, .. }, Some(e)) => {
                service.promoted_by = Some(given);
                for i in (0..service.endpoints.len()).filter(|i| *i != e) {
                    if service.failover.serves(i) {
                        service.drains.allow(i, *left, now);
                    }
                }
            }
            (Wish::Freeze(frozen), _) => service.frozen_by = frozen.then_some(given),
            _ => {}
        }
        service.failover = after;
        // An order ends a promotion without more to say.
        service.promoted_told = service.failover.promoted();
        if service.promoted_told.is_none() {
            service.promoted_by = None;
        }
        let switch = switch.filter(|switch| switch.from != switch.to);
        service.carry_out(switch.as_ref(), now, datapath)?;
        service.tell_switch(switch, observer);
        service.tell_damping(observer);
        if let (Some(e), Some(before)) = (e, mode_before) {
            self.follow_mode(s, e, before, observer);
        }
        Ok(())
    }

    /// Ends or begins an endpoint's checks.
    fn follow_mode(&mut self, s: usize, e: usize, before: Mode, observer: &dyn Observer) {
        let service = &mut self.all[s];
        let after = service.failover.mode(e);
        if before == after || (before != Mode::Maint && after != Mode::Maint) {
            return;
        }
        let check = service.config.check();
        let inter = check.inter();
        let endpoint = &mut service.endpoints[e];
        // What is on its way of the old checks is nobody's.
        endpoint.generation += 1;
        endpoint.running = None;
        endpoint.trigger = None;
        endpoint.health = RiseFall::new(check.rise(), check.fall(), State::Unknown);
        (endpoint.fell, endpoint.withheld) = (None, false);
        endpoint.verdict = None;
        endpoint.since = SystemTime::now();
        let name = service.config.endpoints()[e].name();
        observer.state(service.config.name(), name, State::Unknown);
        if after != Mode::Maint
            && let Some(start) = &mut self.start_checks
        {
            let begin = Begin {
                offset: Duration::ZERO,
                phase: phase(inter, 0, 1, self.turn),
            };
            service.start_check(e, begin, start);
        }
    }

    /// Tells who keeps the orders what they are now.
    pub(super) fn publish(&mut self) {
        let standing = self.all_standing();
        self.published.send_if_modified(|kept| {
            let changed = *kept.standing != standing;
            if changed {
                kept.version += 1;
                kept.standing = Arc::new(standing);
            }
            changed
        });
    }

    /// All orders in effect, and those for who is not in the configuration.
    pub(super) fn all_standing(&self) -> Standing {
        let mut standing = self.unclaimed.clone();
        for service in &self.all {
            let of = service.standing();
            if let Some(before) = standing.services.get_mut(service.config.name()) {
                before.merge(of);
            } else if !of.is_empty() {
                standing
                    .services
                    .insert(service.config.name().to_owned(), of);
            }
        }
        standing
    }

    /// A promotion may have ended by itself, or a tier have come and gone.
    pub(super) fn settle_promotions(&mut self) {
        let mut changed = false;
        for service in &mut self.all {
            let promoted = service.failover.promoted();
            changed |= promoted != service.promoted_told;
            changed |= std::mem::take(&mut service.damped_anew);
            let before = std::mem::replace(&mut service.promoted_told, promoted);
            if let (Some(before), None) = (before, promoted) {
                service.promoted_by = None;
                let of = service.config.name().to_owned();
                let endpoint = service.config.endpoints()[before.endpoint]
                    .name()
                    .to_owned();
                warn!(service = of, endpoint, "no longer promoted");
                self.journal.tell(What::PromotionOver {
                    service: of,
                    endpoint,
                });
            }
        }
        if changed {
            self.publish();
        }
    }
}

impl Service {
    /// Gives an order to a copy of the failover. Nothing where nothing is to be done.
    fn try_order(
        &self,
        failover: &mut Failover,
        order: &Order,
        e: Option<usize>,
        now: Instant,
    ) -> std::result::Result<Option<Switch>, Refused> {
        match (&order.what, e) {
            (Wish::Mode { mode, .. }, Some(e)) if failover.mode(e) != *mode => {
                Ok(failover.order_mode(e, *mode, now))
            }
            (Wish::Promote { force, .. }, Some(e)) => {
                let ordered = failover.order_promotion(e, *force, now);
                ordered.map_err(|reason| Refused::NotPromoted {
                    service: self.config.name().to_owned(),
                    endpoint: self.config.endpoints()[e].name().to_owned(),
                    reason,
                })
            }
            (Wish::Failback, _) => {
                let ordered = failover.order_failback(now);
                ordered.map(Some).map_err(|reason| Refused::No {
                    service: self.config.name().to_owned(),
                    reason,
                })
            }
            (Wish::Freeze(frozen), _) if failover.frozen() != *frozen => {
                Ok(failover.order_freeze(*frozen, now))
            }
            (Wish::Mode { .. } | Wish::Promote { .. } | Wish::Freeze(_), _) => Ok(None),
        }
    }

    /// What an order does, if this is the failover after it.
    fn done(&self, order: &Order, e: Option<usize>, after: &Failover) -> Done {
        let owned = |target: &Target| self.names(target).iter().map(|&n| n.to_owned()).collect();
        let (from, to): (Vec<_>, Vec<_>) =
            (owned(self.failover.selected()), owned(after.selected()));
        let (before_word, after_word, changed) = match (&order.what, e) {
            (Wish::Mode { mode, left, .. }, Some(e)) => {
                let before = self.mode_text(e);
                let (was, limit) = (self.failover.mode(e), self.ordered[e].left);
                let same = was == *mode && (*mode != Mode::Drain || limit == *left);
                (before, mode_text(*mode, *left), !same)
            }
            (Wish::Freeze(frozen), _) => (
                freeze_word(self.failover.frozen()),
                freeze_word(*frozen),
                self.failover.frozen() != *frozen,
            ),
            _ => {
                let promoted = self.failover.promoted() != after.promoted();
                let shown = |of: &Failover| {
                    let held = if of.promoted().is_some() {
                        " (promoted)"
                    } else {
                        ""
                    };
                    format!("{}{held}", self.target_name(of.selected()))
                };
                (shown(&self.failover), shown(after), promoted || from != to)
            }
        };
        Done {
            service: self.config.name().to_owned(),
            endpoint: e.map(|e| self.config.endpoints()[e].name().to_owned()),
            order: order.what.verb().to_owned(),
            dry_run: order.dry_run,
            changed,
            before: before_word,
            after: after_word,
            notes: self.notes(order, e, after),
            from,
            to,
        }
    }

    /// What an operator may not expect.
    fn notes(&self, order: &Order, e: Option<usize>, after: &Failover) -> Vec<String> {
        let mut notes = Vec::new();
        match (&order.what, e) {
            (Wish::Mode { mode, .. }, Some(e)) if *mode != Mode::Ready && after.serves(e) => {
                notes.push(
                    "no other endpoint is up, and all_down: keep leaves new connections where \
                     they are"
                        .to_owned(),
                );
            }
            (Wish::Mode { mode, .. }, _)
                if *mode == Mode::Ready && after.due().is_none() && after.promoted().is_some() =>
            {
                notes.push("another endpoint stays promoted until `probe failback`".to_owned());
            }
            (Wish::Freeze(true), _) => notes.push(
                "clients that the selected endpoint refuses are still sent on to the next one"
                    .to_owned(),
            ),
            _ => {}
        }
        if after.frozen() && !matches!(order.what, Wish::Freeze(_)) {
            notes.push(
                "the service is frozen: nothing but an order changes its selection".to_owned(),
            );
        }
        notes
    }

    fn set_mode(
        &mut self,
        e: usize,
        mode: Mode,
        left: Option<Duration>,
        given: Given,
        now: Instant,
    ) {
        // Who is ready again keeps the connections that it still has.
        let (left, allowed) = match mode {
            Mode::Drain => (left, Some(left)),
            Mode::Ready => (None, Some(None)),
            Mode::Maint => (None, None),
        };
        self.drains.allow(e, allowed, now);
        self.ordered[e] = Ordered { given, left };
    }

    /// Who is in drain is left as ordered, also if it is selected in the meantime because
    /// nobody else is there.
    pub(super) fn follow_drains(&mut self, now: Instant) {
        for e in 0..self.endpoints.len() {
            if self.failover.mode(e) == Mode::Drain {
                self.drains.allow(e, Some(self.ordered[e].left), now);
            }
        }
    }

    pub(super) fn mode_text(&self, e: usize) -> String {
        mode_text(self.failover.mode(e), self.ordered[e].left)
    }

    /// Orders in effect.
    pub(super) fn standing(&self) -> OfService {
        let name = |e: usize| self.config.endpoints()[e].name().to_owned();
        let promoted = self.failover.promoted().map(|promoted| Promoted {
            endpoint: name(promoted.endpoint),
            forced: promoted.forced,
            given: self.promoted_by.clone().unwrap_or_default(),
        });
        let mut of = OfService {
            frozen: self
                .failover
                .frozen()
                .then(|| self.frozen_by.clone().unwrap_or_default()),
            promoted,
            damped: self.failover.damped().into_iter().map(kept).collect(),
            ..OfService::default()
        };
        for e in 0..self.endpoints.len() {
            let mode = match self.failover.mode(e) {
                Mode::Ready => {
                    if let Some(left) = self.drains.allowed(e) {
                        let deadline_ms = left.map(super::telling::millis);
                        of.left.insert(name(e), OfLeft { deadline_ms });
                    }
                    continue;
                }
                Mode::Drain => ModeWord::Drain,
                Mode::Maint => ModeWord::Maint,
            };
            let ordered = &self.ordered[e];
            of.endpoints.insert(
                name(e),
                OfEndpoint {
                    mode,
                    deadline_ms: ordered.left.map(super::telling::millis),
                    given: ordered.given.clone(),
                },
            );
        }
        of
    }

    /// By whom, for the status.
    pub(super) fn ordered_by(&self, e: usize) -> Option<&Given> {
        (self.failover.mode(e) != Mode::Ready).then(|| &self.ordered[e].given)
    }
}

/// The orders that an earlier agent left, for one service.
#[derive(Default)]
pub(super) struct Restored {
    pub modes: Vec<Mode>,
    pub ordered: Vec<Ordered>,
    pub allowed: Vec<Option<Option<Duration>>>,
    pub promoted: Option<Promotion>,
    pub promoted_by: Option<Given>,
    pub frozen: bool,
    pub frozen_by: Option<Given>,
    pub damped: Vec<Damped>,
}

impl Restored {
    /// Takes what is about this service, and leaves what names nobody.
    pub fn take(service: &config::Service, standing: &mut Standing) -> Self {
        let count = service.endpoints().len();
        let mut out = Self {
            modes: vec![Mode::Ready; count],
            ordered: vec![Ordered::default(); count],
            allowed: vec![None; count],
            ..Self::default()
        };
        let Some(mut of) = standing.services.remove(service.name()) else {
            return out;
        };
        for (e, endpoint) in service.endpoints().iter().enumerate() {
            if let Some(left) = of.left.remove(endpoint.name()) {
                out.allowed[e] = Some(left.deadline_ms.map(Duration::from_millis));
            }
            if let Some(found) = of.endpoints.remove(endpoint.name()) {
                out.modes[e] = found.mode.mode();
                let left = found.deadline_ms.map(Duration::from_millis);
                if out.modes[e] == Mode::Drain {
                    out.allowed[e] = Some(left);
                }
                out.ordered[e] = Ordered {
                    given: found.given,
                    left,
                };
            }
            if let Some(promoted) = of.promoted.take_if(|of| of.endpoint == endpoint.name()) {
                out.promoted = Some(Promotion {
                    endpoint: e,
                    forced: promoted.forced,
                });
                out.promoted_by = Some(promoted.given);
            }
        }
        out.frozen_by = of.frozen.take();
        out.frozen = out.frozen_by.is_some();
        of.left.clear();
        out.damped = std::mem::take(&mut of.damped)
            .into_iter()
            .map(known)
            .collect();
        if !of.is_empty() {
            let names: Vec<_> = of.endpoints.keys().map(String::as_str).collect();
            warn!(
                service = service.name(),
                endpoints = names.join(", "),
                "there are orders for endpoints that it does not have; they are kept for their return"
            );
            standing.services.insert(service.name().to_owned(), of);
        }
        out
    }
}

/// As it is kept.
fn kept(of: Damped) -> (u8, OfTier) {
    let (hold_ms, relapses) = (super::telling::millis(of.hold), of.relapses);
    (of.tier, OfTier { hold_ms, relapses })
}

/// As it was.
fn known((tier, of): (u8, OfTier)) -> Damped {
    Damped {
        tier,
        hold: Duration::from_millis(of.hold_ms),
        relapses: of.relapses,
    }
}

fn mode_text(mode: Mode, left: Option<Duration>) -> String {
    match left {
        Some(left) if mode == Mode::Drain => format!("drain for {}", config::show(left)),
        _ => mode.label().to_owned(),
    }
}

fn freeze_word(frozen: bool) -> String {
    if frozen { "frozen" } else { "unfrozen" }.to_owned()
}

/// The version of orders that nobody has changed.
pub fn first_version(standing: &Standing) -> Kept {
    Kept {
        version: 0,
        standing: Arc::new(standing.clone()),
    }
}

#[cfg(test)]
pub(crate) fn somebody() -> crate::core::order::Who {
    crate::core::order::Who {
        uid: 0,
        user: Some("root".to_owned()),
        pid: Some(7),
    }
}
