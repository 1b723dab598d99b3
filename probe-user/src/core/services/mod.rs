//! The services: from verdicts to map writes.

mod cut;
mod doubt;
mod explain;
mod names;
pub mod orders;
mod reload;
mod said;
mod signals;
mod telling;
mod weights;

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use super::{
    CheckKey, CheckPlan, Named, Observer, Running, StartChecks,
    journal::{Journal, What},
    order::{Given, Kept, Standing as StandingOrders},
    status,
};
use crate::{
    config::{self, Config, Connections, Holds, Observe},
    datapath::{
        self, AppliedService, Choice, EndpointId, EndpointPlan, Mark, ServiceId, ServicePlan,
        Steering, Swept, Vip,
    },
    failover::{
        Failover, Member, Reason, Switch, Target,
        cut::{Cut, Ways},
        damping::Damped,
        distrust::{self, Distrust},
        drain::{Before, Drains, Limits},
        orders::{Mode, Promotion},
        slow_start::SlowStart,
    },
    health::{
        RiseFall, State, Verdict,
        agent::{self, Wishes},
        lateness::Lateness,
        probe::Recipe,
        scheduler::{Intervals, Report, Rhythm, Standing, Trigger},
        signal::{Counts, ErrorLimit},
        silence::{Silence, Watch},
        window::Window,
    },
    resolve::{Families, Resolved, choose},
};
use explain::History;
use names::Lost;
pub use names::failed;
use orders::{Ordered, Restored};

type Result<T = ()> = std::result::Result<T, datapath::Error>;

use reload::{Leaving, Withdrawn};
pub use reload::{Reloaded, Slots};

struct Service {
    /// What checks and lookups know it by, whatever its place; never used again.
    slot: usize,
    /// Where the endpoints are, by their slots.
    places: Vec<Option<usize>>,
    /// A shadow that steered a short time ago.
    withdrawn: Option<Withdrawn>,
    config: config::Service,
    /// The way to its endpoints is gone, or was when some of them went down.
    cut: Option<Cut>,
    /// Shared by all that check its endpoints.
    check: Arc<config::Check>,
    id: ServiceId,
    failover: Failover,
    /// What was told of its damping.
    damped: Vec<Damped>,
    /// The keeper was not told of that yet.
    damped_anew: bool,
    drains: Drains,
    reason: Reason,
    since: SystemTime,
    switches: u64,
    /// Changes within the selected tier, which are no switches.
    members_changed: u64,
    slow_start: SlowStart,
    endpoints: Vec<Endpoint>,
    /// What operators said of each endpoint last.
    ordered: Vec<Ordered>,
    promoted_by: Option<Given>,
    /// What the journal and the keeper of the orders know.
    promoted_told: Option<Promotion>,
    frozen_by: Option<Given>,
    journal: Arc<Journal>,
}

struct Endpoint {
    /// As [`Service::slot`], within the service.
    slot: usize,
    id: EndpointId,
    at: Resolved,
    families: Families,
    health: RiseFall,
    /// What it says of itself.
    wishes: Wishes,
    /// When it went down after it had been up.
    fell: Option<Instant>,
    /// When the first of the failures in a row began, checks' and counted clients'.
    failing: Option<Instant>,
    /// It is down, and the failover was not told.
    withheld: bool,
    since: SystemTime,
    /// What the kernel holds.
    mark: Mark,
    /// The kernel sends no new connections here, whoever refuses them elsewhere.
    resting: bool,
    history: History,
    /// What the datapath takes its weight for.
    weight: u16,
    verdict: Option<Verdict>,
    /// Since when verdicts are of its kind.
    verdict_since: SystemTime,
    durations: Window,
    /// A check has judged it since the agent started.
    judged: bool,
    checks: u64,
    failures: u64,
    /// Checks whose verdict did not count.
    excused: u64,
    generation: u32,
    running: Option<Running>,
    /// Makes checks at once, while they run.
    trigger: Option<Trigger>,
    signals: Counts,
    /// Where clients' failed connections count.
    errors: Option<ErrorLimit>,
    /// Towards clients that connect.
    silence: Silence,
    /// When a good check ended last.
    heard: Option<Instant>,
    /// Its name does not resolve, and that was said.
    unresolved: Option<Lost>,
}

/// Time between the first checks of two endpoints: two of a service are soon known, and ten
/// thousand do not begin at one moment.
const FIRST_APART: Duration = Duration::from_micros(100);

/// When an endpoint's checks begin.
#[derive(Clone, Copy)]
struct Begin {
    /// The first one, from now.
    offset: Duration,
    /// From then to the second.
    phase: Duration,
}

/// All of them.
pub struct Services {
    all: Vec<Service>,
    /// Where services are, by their slots.
    places: Vec<Option<usize>>,
    /// Services that left the configuration, until their clients were told.
    leaving: Vec<Leaving>,
    /// Where in their intervals this agent's checks are, so that nodes that start together do
    /// not check together.
    turn: u64,
    distrust: Distrust,
    /// Nothing where nobody can be asked.
    ways: Option<Box<dyn Ways>>,
    /// How long names that do not resolve keep their addresses.
    holds: Holds,
    lateness: Lateness,
    /// Looks for silent endpoints, where that leads to anything.
    watch: Option<Watch>,
    start_checks: Option<StartChecks>,
    /// The earliest fail-back, end of its damping, end of a drain or of a doubt that will be
    /// due; kept, because it is asked for at every message.
    due: Option<Instant>,
    journal: Arc<Journal>,
    /// Orders for who is not in the configuration.
    unclaimed: StandingOrders,
    published: watch::Sender<Kept>,
}

impl Services {
    /// Puts them into the kernel: plan, then selection and marks.
    pub fn new<D: Steering>(
        config: &Config,
        resolved: Vec<Vec<Resolved>>,
        standing: StandingOrders,
        journal: Arc<Journal>,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let plan: Vec<_> = config
            .services()
            .iter()
            .zip(&resolved)
            .map(|(service, at)| service_plan(service, at))
            .collect();
        let applied = datapath.apply(&plan)?;
        let published = watch::Sender::new(orders::first_version(&standing));
        let mut unclaimed = standing;
        let all = config
            .services()
            .iter()
            .zip(resolved)
            .zip(applied)
            .enumerate()
            .map(|(slot, ((config, at), applied))| {
                let restored = Restored::take(config, &mut unclaimed);
                let log = journal.clone();
                Service::new(slot, config, at, applied, restored, log, Instant::now())
            })
            .collect::<Vec<_>>();
        let orders = unclaimed.services.iter().filter(|(_, of)| of.has_orders());
        for (service, _) in orders {
            if !config.services().iter().any(|s| s.name() == service) {
                warn!(
                    service,
                    "there are orders for a service that is not in the configuration; they are \
                     kept for its return"
                );
            }
        }
        let mut services = Self {
            places: (0..all.len()).map(Some).collect(),
            leaving: Vec::new(),
            journal,
            unclaimed,
            published,
            all,
            turn: RandomState::new().hash_one(0),
            distrust: Distrust::new(config.suspect_self()),
            ways: None,
            holds: config.resolve_holds(),
            lateness: Lateness::new(Instant::now()),
            watch: None,
            start_checks: None,
            due: None,
        };
        for service in &mut services.all {
            service.promoted_told = service.failover.promoted();
            service.write_selection(datapath)?;
            service.write_marks(datapath)?;
            service.tell(observer);
            service.tell_drains(observer);
            service.tell_damping(observer);
        }
        services.watch(Instant::now());
        services.reckon();
        Ok(services)
    }

    /// Begins every endpoint's checks: the first ones soon, since everybody waits for them,
    /// the others spread over their interval, and other nodes' elsewhere.
    pub fn begin_checks(&mut self, mut start: StartChecks) {
        let count = u32::try_from(self.all.iter().map(|s| s.endpoints.len()).sum::<usize>());
        let count = count.unwrap_or(u32::MAX);
        let mut position = 0u32;
        for service in &mut self.all {
            let inter = service.config.check().inter();
            for e in 0..service.endpoints.len() {
                let begin = Begin {
                    offset: (FIRST_APART * position).min(inter),
                    phase: phase(inter, position, count, self.turn),
                };
                service.start_check(e, begin, &mut start);
                position = position.saturating_add(1);
            }
        }
        self.start_checks = Some(start);
    }

    /// Ends them.
    pub fn end_checks(&mut self) {
        for endpoint in self.all.iter_mut().flat_map(|s| &mut s.endpoints) {
            endpoint.running = None;
        }
    }

    /// When [`Services::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A check was made.
    pub fn verdict<D: Steering>(
        &mut self,
        report: Report<CheckKey>,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        if let Some(late) = report.late {
            self.lateness.note(late, now);
            observer.late(late, self.lateness.largest());
        }
        let success = report.judged();
        let Report {
            key,
            verdict,
            skipped,
            standing,
            late: _,
        } = report;
        let Some((s, e)) = self.place(key.service, key.endpoint) else {
            return Ok(());
        };
        let endpoint = &mut self.all[s].endpoints[e];
        if endpoint.generation != key.generation {
            return Ok(());
        }
        if success == Some(true) {
            datapath.heard(endpoint.id);
            endpoint.heard = Some(now);
            if let Some(errors) = &mut endpoint.errors {
                errors.good_check();
            }
        }
        let begun = now.checked_sub(verdict.latency).unwrap_or(now);
        match success {
            Some(true) => endpoint.failing = None,
            Some(false) => _ = endpoint.failing.get_or_insert(begun),
            None => {}
        }
        let (kind, before) = (verdict.kind, endpoint.health.state());
        let changed = success.and_then(|success| endpoint.health.observe(success));
        if changed.is_some() {
            let fell = (before == State::Up).then_some(now);
            endpoint.fell = fell;
            let withheld = fell.is_some() && self.withholds(s, e, kind, now, observer);
            self.all[s].endpoints[e].withheld = withheld;
        }
        let failed = success == Some(false);
        let service = &mut self.all[s];
        let cut = service.cut.as_ref();
        let reachable = cut.is_none_or(|cut| cut.believes(begun));
        let believed = failed && reachable && self.distrust.believes(begun);
        let endpoint = &mut service.endpoints[e];
        let told = believed && std::mem::take(&mut endpoint.withheld);
        // What its own agent said comes first.
        let state = changed.map(|_| endpoint.state());
        let changed = changed.filter(|_| !endpoint.wishes.down());
        let tells = state.filter(|_| !endpoint.withheld);
        let mut switch = None;
        if let Some(state) = tells.or(told.then_some(State::Down)) {
            match state {
                State::Up if before == State::Down => service.slow_start.up(e, now),
                State::Down => service.slow_start.down(e),
                State::Up | State::Unknown => {}
            }
            switch = service.failover.observe(e, state, now);
            service.carry_out(switch.as_ref(), now, datapath)?;
        }
        // The kernel knows; now people may.
        service.record(e, verdict, skipped, standing, changed, observer);
        service.tell_switch(switch, observer);
        if changed.is_some() || told {
            service.tell_damping(observer);
            self.reckon();
        }
        // Silence that was ours says nothing of them.
        if standing == Standing::Counts && self.distrust.heard(kind, now) {
            self.ask_again(observer);
        }
        if standing == Standing::Counts && self.all[s].cut.is_some() {
            if distrust::is_word(kind) {
                self.reached(s, now, observer);
            }
            self.reckon();
        }
        Ok(())
    }

    /// Time passed.
    pub fn tick<D: Steering>(
        &mut self,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        for service in &mut self.all {
            let due = [service.failover.due(), service.failover.steady_due()];
            if due.into_iter().flatten().any(|due| due <= now) {
                let switch = service.failover.tick(now);
                service.carry_out(switch.as_ref(), now, datapath)?;
                service.tell_switch(switch, observer);
                service.tell_damping(observer);
            }
            service.grow(now, datapath)?;
            if service.drains.due().is_some_and(|due| due <= now) {
                let over = service.drains.tick(now);
                service.write_marks(datapath)?;
                service.tell_drained(&over);
            }
        }
        self.withdraw_due(now, datapath)?;
        self.look_again(now, observer);
        let doubted = self.distrust.since().is_some();
        if self.distrust.tick(now) {
            if doubted {
                observer.distrusts(false);
                self.journal.tell(What::Distrust { doubts: false });
            }
            self.believe(now, datapath, observer)?;
        }
        self.reckon();
        Ok(())
    }

    /// Since when the agent has doubted itself, if it does.
    pub fn distrust_since_unix_ms(&self, now: Instant) -> Option<u64> {
        let since = self.distrust.since()?;
        Some(status::unix_ms(telling::wall_clock(since, now)))
    }

    /// Orders in effect, as they change.
    pub fn kept(&self) -> watch::Receiver<Kept> {
        self.published.subscribe()
    }

    /// The flow tables were swept.
    pub fn swept<D: Steering>(
        &mut self,
        swept: &Swept,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        for service in &mut self.all {
            service.swept(swept);
            service.write_marks(datapath)?;
            service.tell_drains(observer);
        }
        self.hurry(swept);
        self.reckon();
        Ok(())
    }

    /// How late checks began.
    pub fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// Endpoints that no check has judged since the agent started.
    pub fn pending(&self) -> Vec<String> {
        let mut pending = Vec::new();
        for service in &self.all {
            let endpoints = service.endpoints.iter().zip(service.config.endpoints());
            for (e, (endpoint, config)) in endpoints.enumerate() {
                if !endpoint.judged && service.failover.mode(e) != Mode::Maint {
                    pending.push(format!("{}/{}", service.config.name(), config.name()));
                }
            }
        }
        pending
    }

    /// Services and endpoints as the kernel knows them.
    pub fn names(&self) -> Vec<Named> {
        let named = |service: &Service| Named {
            id: service.id,
            name: service.config.name().to_owned(),
            endpoints: service
                .endpoints
                .iter()
                .zip(service.config.endpoints())
                .map(|(endpoint, config)| (endpoint.id, config.name().to_owned()))
                .collect(),
            listeners: service.config.listeners().to_vec(),
        };
        self.all.iter().map(named).collect()
    }

    /// For people and programs.
    pub fn status(&self, now: Instant) -> Vec<status::Service> {
        self.all.iter().map(|s| s.status(now)).collect()
    }

    fn reckon(&mut self) {
        self.settle_promotions();
        self.all.iter_mut().for_each(Service::settle_cut);
        let due = |s: &Service| {
            let failover = [s.failover.due(), s.failover.steady_due()];
            failover
                .into_iter()
                .chain([s.drains.due(), s.slow_start.due()])
                .chain([s.cut.as_ref().and_then(Cut::due)])
        };
        let due = self.all.iter().flat_map(due).flatten();
        let withdrawn = self.withdrawn_due();
        self.due = due.chain(self.distrust.due()).chain(withdrawn).min();
    }
}

impl Service {
    fn new(
        slot: usize,
        config: &config::Service,
        at: Vec<Resolved>,
        applied: AppliedService,
        restored: Restored,
        journal: Arc<Journal>,
        now: Instant,
    ) -> Self {
        // Of endpoints that are none of ours the choice says nothing.
        let position = |id: &EndpointId| applied.endpoints.iter().position(|e| e == id);
        let inherited = applied.inherited.map(|choice| match choice {
            Choice::Refuse => Target::Refuse,
            Choice::Endpoint(id) => Target::Endpoints(position(&id).into_iter().collect()),
            Choice::Spread(ids) => Target::Endpoints(ids.iter().filter_map(position).collect()),
        });
        let mark = |i: usize| applied.inherited_marks.get(i).copied().unwrap_or(Mark::Up);
        let state = |i: usize| match &inherited {
            _ if at[i].is_empty() => State::Down,
            _ if restored.modes[i] == Mode::Maint => State::Unknown,
            _ if mark(i) == Mark::Down => State::Down,
            // It was in use: it takes `fall` failures to leave it.
            Some(Target::Endpoints(serving)) if serving.contains(&i) => State::Up,
            _ => State::Unknown,
        };
        let members: Vec<_> = config
            .endpoints()
            .iter()
            .enumerate()
            .map(|(i, endpoint)| Member {
                tier: endpoint.tier(),
                weighs: endpoint.weight() > 0 && !at[i].is_empty(),
                state: state(i),
                mode: restored.modes[i],
            })
            .collect();
        let failover = Failover::new(
            config.failback(),
            config.all_down(),
            &members,
            inherited.clone(),
            now,
        )
        .with_orders(restored.promoted, restored.frozen, now)
        .with_damped(restored.damped);
        let goes_on = match (&inherited, failover.selected()) {
            (Some(Target::Endpoints(before)), Target::Endpoints(now)) => {
                now.iter().all(|i| before.contains(i))
            }
            (before, now) => before.as_ref() == Some(now),
        };
        let reason = if goes_on {
            Reason::Inherited
        } else {
            Reason::Initial
        };
        let mut drains = Drains::new(limits(config), members.len());
        for (i, left) in restored.allowed.iter().enumerate() {
            drains.allow(i, *left, now);
        }
        if inherited.is_some() {
            // Which of the others served before nobody knows; a sweep will tell who has flows.
            let ago = SystemTime::now().duration_since(applied.inherited_at);
            let ago = ago.unwrap_or_default();
            for i in 0..members.len() {
                let before = match mark(i) {
                    Mark::Up => Before::Up,
                    Mark::Down => Before::Down,
                    Mark::Drained => Before::Drained,
                };
                drains.inherit(i, ago, before, now);
            }
        }
        let check = config.check();
        let endpoints = at
            .into_iter()
            .zip(&applied.endpoints)
            .zip(config.endpoints())
            .enumerate()
            .map(|(i, ((at, id), endpoint))| {
                // Of who is nowhere no check has said anything.
                let state = Some(members[i].state).filter(|_| !at.is_empty());
                let state = state.unwrap_or(State::Unknown);
                Endpoint {
                    mark: mark(i),
                    health: RiseFall::new(check.rise(), check.fall(), state),
                    ..Endpoint::new(i, *id, at, config, endpoint)
                }
            })
            .collect::<Vec<_>>();
        let mut service = Self {
            slot,
            places: (0..endpoints.len()).map(Some).collect(),
            withdrawn: None,
            config: config.clone(),
            cut: None,
            check: Arc::new(config.check().clone()),
            id: applied.id,
            failover,
            damped: Vec::new(),
            damped_anew: false,
            drains,
            reason,
            since: SystemTime::now(),
            switches: 0,
            members_changed: 0,
            slow_start: SlowStart::new(config.endpoints().iter().map(|e| e.slow_start())),
            endpoints,
            ordered: restored.ordered,
            promoted_by: restored.promoted_by,
            promoted_told: None,
            frozen_by: restored.frozen_by,
            journal,
        };
        service.follow(now);
        service
    }

    /// Is an endpoint down for its connections: by its checks, as far as they are believed, or
    /// by order?
    fn is_down(&self, e: usize) -> bool {
        self.failover.mode(e) == Mode::Maint || self.endpoints[e].is_down()
    }

    /// Tells the drains who is selected and who is down.
    fn follow(&mut self, now: Instant) {
        let down: Vec<_> = (0..self.endpoints.len()).map(|i| self.is_down(i)).collect();
        self.drains
            .follow(|i| self.failover.serves(i), |i| down[i], now);
        self.follow_drains(now);
    }

    /// Counts what is left of flows that follow the selection.
    fn swept(&mut self, swept: &Swept) {
        let listeners = self.config.listeners();
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let by = |vip: &Vip| swept.connections_by(*vip, endpoint.id);
            let flows = listeners.iter().map(by).sum();
            self.drains.swept(i, flows, swept.began.into());
        }
    }

    fn choice(&self) -> Choice {
        let Target::Endpoints(serving) = self.failover.selected() else {
            return Choice::Refuse;
        };
        match serving.as_slice() {
            // The fast way. Where clients keep their endpoint one that serves alone may do so
            // for a while only, and who comes meanwhile shall stay.
            [only] if self.config.affinity().is_none() || self.alone_in_tier(*only) => {
                Choice::Endpoint(self.endpoints[*only].id)
            }
            serving => Choice::Spread(serving.iter().map(|i| self.endpoints[*i].id).collect()),
        }
    }

    /// Is no other endpoint in its tier that may have new connections?
    fn alone_in_tier(&self, only: usize) -> bool {
        let endpoints = self.config.endpoints();
        let tier = endpoints[only].tier();
        let mut others = endpoints.iter().enumerate().filter(|(i, _)| *i != only);
        !others.any(|(_, other)| other.tier() == tier && other.weight() > 0)
    }

    /// Makes the kernel follow: the selection first, then the marks.
    fn carry_out<D: Steering>(
        &mut self,
        switch: Option<&Switch>,
        now: Instant,
        datapath: &mut D,
    ) -> Result {
        self.follow(now);
        if let Some(switch) = switch {
            self.write_selection(datapath)?;
            self.count(switch.reason);
        }
        self.write_marks(datapath)
    }

    fn count(&mut self, reason: Reason) {
        if reason == Reason::MembersChanged {
            self.members_changed += 1;
        } else {
            self.reason = reason;
            self.since = SystemTime::now();
            self.switches += 1;
        }
    }

    /// Does what it decides reach the kernel?
    fn steers(&self) -> bool {
        self.config.mode() == config::Mode::Active && self.withdrawn.is_none()
    }

    fn write_selection<D: Steering>(&mut self, datapath: &mut D) -> Result {
        if !self.steers() {
            return Ok(());
        }
        if let Target::Endpoints(serving) = self.failover.selected() {
            for i in serving {
                let endpoint = &mut self.endpoints[*i];
                if endpoint.mark != Mark::Up {
                    datapath.mark(endpoint.id, Mark::Up)?;
                    endpoint.mark = Mark::Up;
                }
                if std::mem::take(&mut endpoint.resting) {
                    let tier = self.config.endpoints()[*i].tier();
                    datapath.rest(self.id, endpoint.id, Some(tier))?;
                }
            }
        }
        let choice = self.choice();
        if matches!(choice, Choice::Spread(_)) {
            self.write_weights(datapath);
        }
        datapath.select(self.id, choice)
    }

    fn write_marks<D: Steering>(&mut self, datapath: &mut D) -> Result {
        if !self.steers() {
            return Ok(());
        }
        for i in 0..self.endpoints.len() {
            let serves = self.failover.serves(i);
            let mark = if serves {
                Mark::Up
            } else if self.drains.is_drained(i) {
                Mark::Drained
            } else if self.is_down(i) {
                Mark::Down
            } else {
                Mark::Up
            };
            // By an operator's order, or by the word of its own agent.
            let rests = !self.endpoints[i].wishes.serves();
            let resting = !serves && (rests || self.failover.mode(i) != Mode::Ready);
            let endpoint = &mut self.endpoints[i];
            if resting != endpoint.resting {
                let tier = self.config.endpoints()[i].tier();
                datapath.rest(self.id, endpoint.id, (!resting).then_some(tier))?;
                endpoint.resting = resting;
            }
            if mark != endpoint.mark {
                datapath.mark(endpoint.id, mark)?;
                endpoint.mark = mark;
            }
        }
        Ok(())
    }

    /// Moves an endpoint to where DNS says it is; true if that is elsewhere.
    fn move_to<D: Steering>(
        &mut self,
        e: usize,
        answers: &[IpAddr],
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result<bool> {
        let config = &self.config.endpoints()[e];
        let (service, name) = (self.config.name(), config.name());
        let endpoint = &mut self.endpoints[e];
        let at = choose(endpoint.at, endpoint.families, answers);
        if at == endpoint.at {
            return Ok(false);
        }
        let plan = endpoint_plan(config, &at);
        let id = match datapath.readdress(self.id, endpoint.id, &plan) {
            Ok(id) => id,
            // A full table is no reason to end: the old address goes on.
            Err(error) => {
                error!(
                    service,
                    endpoint = name,
                    "cannot move to its new address: {error}"
                );
                return Ok(false);
            }
        };
        let was: Vec<_> = endpoint.at.addresses().collect();
        let now: Vec<_> = at.addresses().collect();
        endpoint.at = at;
        if let Some(lost) = &mut endpoint.unresolved {
            lost.over = false;
        }
        endpoint.id = id;
        endpoint.generation += 1;
        // A new id begins unmarked, but for one that was down.
        if endpoint.mark == Mark::Down && !endpoint.is_down() {
            datapath.mark(id, Mark::Up)?;
        }
        (endpoint.mark, endpoint.resting) = (Mark::Up, false);
        endpoint.weight = plan.weight;
        let selected = self.failover.serves(e);
        let reason = match self.choice() {
            Choice::Spread(_) => Reason::MembersChanged,
            Choice::Endpoint(_) | Choice::Refuse => Reason::AddressChanged,
        };
        if selected {
            self.write_selection(datapath)?;
            self.count(reason);
        }
        self.write_marks(datapath)?;
        info!(
            service = self.config.name(),
            endpoint = self.config.endpoints()[e].name(),
            selected,
            "endpoint moved from {was:?} to {now:?}"
        );
        self.journal.tell(What::Moved {
            service: self.config.name().to_owned(),
            endpoint: self.config.endpoints()[e].name().to_owned(),
            from: was.iter().map(ToString::to_string).collect(),
            to: now.iter().map(ToString::to_string).collect(),
        });
        observer.identified(self.config.name(), self.config.endpoints()[e].name(), id);
        if selected {
            observer.switched(self.config.name(), reason);
        }
        Ok(true)
    }

    /// For checks that begin while the agent runs.
    fn begin_now(&self) -> Begin {
        let turn = RandomState::new().hash_one(0);
        Begin {
            offset: Duration::ZERO,
            phase: phase(self.config.check().inter(), 0, 1, turn),
        }
    }

    fn start_check(&mut self, e: usize, begin: Begin, start: &mut StartChecks) {
        let check = self.config.check();
        let config = &self.config.endpoints()[e];
        let endpoint = &mut self.endpoints[e];
        // Before others begin, sentinel connections included.
        endpoint.running = None;
        if self.failover.mode(e) == Mode::Maint || endpoint.is_nowhere() {
            return;
        }
        let key = CheckKey {
            service: self.slot,
            endpoint: endpoint.slot,
            generation: endpoint.generation,
        };
        // One check an endpoint: of its IPv4 address, if it has one.
        let Some(at) = endpoint.at.addresses().next() else {
            return;
        };
        let authority = match config.address() {
            config::Address::Literal { .. } => at.to_string(),
            name @ config::Address::Name { .. } => name.to_string(),
        };
        let (trigger, triggered) = Trigger::new();
        let recipe = Recipe {
            check: self.check.clone(),
            endpoint: at,
            authority,
            service: self.config.name().to_owned(),
            name: config.name().to_owned(),
        };
        let plan = CheckPlan {
            target: check.target(at),
            life_signs: self.config.life_signs().then_some(endpoint.id),
            recipe,
            rhythm: Rhythm {
                intervals: Intervals {
                    inter: check.inter(),
                    fastinter: check.fastinter(),
                    downinter: check.downinter(),
                },
                offset: begin.offset,
                phase: begin.phase,
                spread: check.spread(),
                timeout: check.timeout(),
                in_flight: check.in_flight(),
                life_signs: None,
                health: endpoint.health.clone(),
            },
            triggered,
            sentinel: self.config.sentinel(),
            agent: config.agent().map(|agent| agent::Plan {
                target: (agent.address().unwrap_or(at.ip()), agent.port()).into(),
                inter: agent.inter(),
                timeout: check.timeout(),
                send: agent.send().to_owned(),
            }),
        };
        endpoint.trigger = Some(trigger);
        endpoint.running = Some(start(key, plan));
    }
}

impl Endpoint {
    /// One of which nothing is known.
    fn new(
        slot: usize,
        id: EndpointId,
        at: Resolved,
        service: &config::Service,
        config: &config::Endpoint,
    ) -> Self {
        let check = service.check();
        Self {
            slot,
            id,
            at,
            families: Families::of(service, config),
            health: RiseFall::new(check.rise(), check.fall(), State::Unknown),
            wishes: Wishes::default(),
            fell: None,
            failing: None,
            withheld: false,
            since: SystemTime::now(),
            mark: Mark::Up,
            resting: false,
            history: History::default(),
            weight: config.weight(),
            verdict: None,
            verdict_since: SystemTime::now(),
            durations: Window::default(),
            judged: false,
            checks: 0,
            failures: 0,
            excused: 0,
            generation: 0,
            running: None,
            trigger: None,
            signals: Counts::default(),
            errors: error_limit(service),
            silence: Silence::default(),
            heard: None,
            unresolved: None,
        }
    }
}

/// Where clients' failed connections count, how many are too many.
fn error_limit(service: &config::Service) -> Option<ErrorLimit> {
    match service.observe() {
        Observe::Off | Observe::Trigger => None,
        Observe::MarkDown { error_limit } => Some(ErrorLimit::new(error_limit)),
    }
}

/// The part of an interval at which one of so many endpoints has its turn: all of them are
/// spread over it evenly, from anywhere on. Never nothing.
fn phase(inter: Duration, position: u32, count: u32, turn: u64) -> Duration {
    let inter = inter.as_nanos().max(1);
    let share = inter * u128::from(position) / u128::from(count.max(1));
    let phase = (share + u128::from(turn) % inter) % inter;
    let phase = if phase == 0 { inter } else { phase };
    Duration::from_nanos(u64::try_from(phase).unwrap_or(u64::MAX))
}

/// How long flows may go on with an endpoint that was left.
fn limits(service: &config::Service) -> Limits {
    Limits {
        left: match service.on_failback() {
            Connections::Reset => Some(Duration::ZERO),
            Connections::Drain(time) => Some(time),
            Connections::Keep => None,
        },
        down: match service.on_marked_down() {
            Connections::Drain(time) => Some(time),
            // The kernel does it.
            Connections::Reset | Connections::Keep => None,
        },
    }
}

fn service_plan(service: &config::Service, at: &[Resolved]) -> ServicePlan {
    ServicePlan {
        name: service.name().to_owned(),
        listeners: service.listeners().to_vec(),
        endpoints: service
            .endpoints()
            .iter()
            .zip(at)
            .map(|(endpoint, at)| endpoint_plan(endpoint, at))
            .collect(),
        // Those with a deadline go on until then: that is a mark of its own.
        keep_flows_of_down: service.on_marked_down() != Connections::Reset,
        single_writer: service.single_writer(),
        forward: service.forward(),
        affinity: service.affinity(),
        shadow: service.mode() == config::Mode::Shadow,
    }
}

fn endpoint_plan(endpoint: &config::Endpoint, at: &Resolved) -> EndpointPlan {
    EndpointPlan {
        name: endpoint.name().to_owned(),
        tier: endpoint.tier(),
        weight: endpoint.weight(),
        v4: at.v4,
        v6: at.v6,
        port: at.port,
        listeners: endpoint.listeners().to_vec(),
        resting: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_spread_evenly_over_the_interval() {
        let inter = Duration::from_millis(10);
        for turn in [0, 3_333_333, u64::MAX] {
            let mut phases: Vec<_> = (0..1000).map(|i| phase(inter, i, 1000, turn)).collect();
            phases.sort();
            assert!(phases[0] > Duration::ZERO && phases[999] <= inter);
            for two in phases.windows(2) {
                assert_eq!(two[1] - two[0], inter / 1000);
            }
        }
        assert_eq!(phase(inter, 0, 1, 0), inter);
        let (day, most) = (Duration::from_secs(86_400), u32::MAX);
        assert!(phase(day, most - 1, most, u64::MAX) <= day);
    }
}
