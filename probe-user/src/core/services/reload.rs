//! Another configuration, while services are served.
//!
//! What is the same in both is left alone: a service that says what it said keeps everything,
//! and of one that changed every endpoint with the same name and address keeps its state,
//! counters, id, sentinel and, unless the check itself changed, the task that checks it. So
//! checks and lookups know whom they are about by a *slot*, which outlives places in a list.
//!
//! The order of writes, since packets flow meanwhile:
//!
//! 1. Who begins to steer gets its ids, its selection and its marks, without a listener.
//! 2. The tables are made equal to the plan: new listeners appear, each in front of a slot that
//!    is decided; those of somebody else change hands; what is gone loses its listeners first.
//! 3. Changed services select. An endpoint that left goes on until then.
//!
//! A service that leaves, or becomes a shadow, is *withdrawn*, unless another service takes one
//! of its addresses: for [`TELLING`] its listeners stay, new connections are refused, and
//! whoever is connected is told; then packets to it are nobody's of ours. An endpoint that leaves
//! keeps its connections; the kernel knows it until they are over.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Begin, Endpoint, FIRST_APART, Families, Result, Service, Services, What, error_limit, limits,
    orders::Restored, service_plan,
};
use crate::{
    config::{self, Address, Config, Mode},
    core::Observer,
    datapath::{self, AppliedService, Choice, EndpointId, Mark, ServicePlan, Steering, Swept, Vip},
    failover::{Member, Reason},
    health::{State, agent::Wishes},
    resolve::Resolved,
};

/// How long clients of a service that is not ours any more are told: as long as the agent
/// challenges those that are idle.
const TELLING: Duration = Duration::from_secs(10);

/// What a reload did to services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// They were not there.
    pub added: Vec<String>,
    /// They are not there any more.
    pub removed: Vec<String>,
    /// Something of them changed.
    pub changed: Vec<String>,
    /// So many did not.
    pub unchanged: usize,
    /// Under which slots the configuration's services and endpoints are known.
    pub slots: Slots,
}

/// For each service of the configuration, in its order, its slot and those of its endpoints.
pub type Slots = Vec<(usize, Vec<usize>)>;

/// A service that left the configuration.
#[derive(Debug)]
pub struct Leaving {
    plan: ServicePlan,
    endpoints: Vec<EndpointId>,
    since: Instant,
    until: Instant,
}

/// A service that is a shadow, and steered a short time ago.
#[derive(Debug)]
pub(super) struct Withdrawn {
    until: Instant,
    /// What is still there, to refuse.
    listeners: HashSet<Vip>,
}

/// Where a service of the new configuration comes from.
enum Origin {
    /// It says what it said.
    Same(Service),
    /// There was one of its name.
    Changed(Service),
    New,
}

impl Services {
    /// The place of a service and an endpoint with these slots, if they still are there.
    pub(super) fn place(&self, service: usize, endpoint: usize) -> Option<(usize, usize)> {
        let s = (*self.places.get(service)?)?;
        let e = (*self.all.get(s)?.places.get(endpoint)?)?;
        Some((s, e))
    }

    /// Takes another configuration; an error that is no error of the kernel's says why not,
    /// and nothing was changed.
    pub fn reload<D: Steering>(
        &mut self,
        config: &Config,
        resolved: Vec<Vec<Resolved>>,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result<std::result::Result<Reloaded, datapath::Error>> {
        let at = self.settle_addresses(config, resolved);
        let each = config.services().iter().zip(&at);
        let mut plan: Vec<_> = each.map(|(of, at)| service_plan(of, at)).collect();
        self.let_rest(&mut plan);
        if let Err(error) = datapath.fits(&plan) {
            return Ok(Err(error));
        }
        let taken: HashSet<Vip> = plan.iter().flat_map(listeners_of).collect();
        self.begin_to_steer(&plan, datapath)?;
        let mut reloaded = Reloaded::default();
        let mut unclaimed = self.all_standing();
        let restored: Vec<_> = config
            .services()
            .iter()
            .map(|of| Restored::take(of, &mut unclaimed))
            .collect();
        let (mut origins, gone) = self.origins(config);
        let nothing = gone.is_empty() && origins.iter().all(|of| matches!(of, Origin::Same(_)));
        self.leaving
            .retain(|leaving| plan.iter().all(|of| of.name != leaving.plan.name));
        for leaving in &mut self.leaving {
            leaving.plan = without(&leaving.plan, |at| !taken.contains(at));
        }
        for service in gone {
            reloaded.removed.push(service.config.name().to_owned());
            service.forget(observer);
            self.places[service.slot] = None;
            let leaving = service.leave(&taken, now, datapath)?;
            self.leaving.extend(leaving);
        }
        for (origin, plan) in origins.iter_mut().zip(&mut plan) {
            if let Origin::Same(service) = origin {
                *plan = service.steering_plan();
            }
            if let Origin::Same(service) | Origin::Changed(service) = origin {
                service.withdraw_or_not(plan, &taken, now, datapath)?;
            }
        }
        plan.extend(self.leaving.iter().map(|of| of.plan.clone()));
        let applied = if nothing {
            Vec::new()
        } else {
            datapath.apply(&plan)?
        };
        let mut applied = applied.into_iter();
        self.unclaimed = unclaimed;
        let each = origins.into_iter().zip(at).zip(restored);
        for (i, ((origin, at), restored)) in each.enumerate() {
            let of = &config.services()[i];
            let name = of.name().to_owned();
            let service = match (origin, applied.next()) {
                (Origin::Same(same), _) => {
                    reloaded.unchanged += 1;
                    same
                }
                (Origin::Changed(mut service), Some(applied)) => {
                    reloaded.changed.push(name);
                    service.reform(
                        of,
                        at,
                        &applied.endpoints,
                        restored,
                        now,
                        datapath,
                        observer,
                    )?;
                    service
                }
                (Origin::New, Some(applied)) => {
                    reloaded.added.push(name);
                    let slot = self.places.len();
                    self.places.push(None);
                    // What stands in its slot nobody has judged.
                    let applied = AppliedService {
                        inherited: None,
                        ..applied
                    };
                    let log = self.journal.clone();
                    let mut service = Service::new(slot, of, at, applied, restored, log, now);
                    service.promoted_told = service.failover.promoted();
                    service.write_selection(datapath)?;
                    service.write_marks(datapath)?;
                    service.tell(observer);
                    service.tell_drains(observer);
                    service
                }
                (Origin::Changed(_) | Origin::New, None) => {
                    unreachable!("the datapath answers for each service of a plan")
                }
            };
            self.places[service.slot] = Some(i);
            self.all.push(service);
        }
        self.check_all();
        self.distrust.set(config.suspect_self());
        self.watch(now);
        self.holds = config.resolve_holds();
        self.reckon();
        self.publish();
        reloaded.slots = self.slots();
        Ok(Ok(reloaded))
    }

    /// Slots of all that is there, in its order.
    pub fn slots(&self) -> Slots {
        let slots = |service: &Service| {
            let endpoints = service.endpoints.iter().map(|endpoint| endpoint.slot);
            (service.slot, endpoints.collect())
        };
        self.all.iter().map(slots).collect()
    }

    /// Where the new configuration's endpoints are: a name that was there before is where it
    /// was, since DNS may have moved it after it was asked for the new configuration.
    fn settle_addresses(
        &self,
        config: &Config,
        mut resolved: Vec<Vec<Resolved>>,
    ) -> Vec<Vec<Resolved>> {
        let by_name: HashMap<_, _> = self.all.iter().map(|s| (s.config.name(), s)).collect();
        for (service, at) in config.services().iter().zip(&mut resolved) {
            let Some(old) = by_name.get(service.name()) else {
                continue;
            };
            for (endpoint, at) in service.endpoints().iter().zip(at) {
                if let Some(e) = old.position(endpoint, at)
                    && matches!(endpoint.address(), Address::Name { .. })
                    && !old.endpoints[e].at.is_empty()
                    && old.endpoints[e].families == Families::of(service, endpoint)
                {
                    *at = old.endpoints[e].at;
                }
            }
        }
        resolved
    }

    /// Who was taken out of its tier stays so.
    fn let_rest(&self, plan: &mut [ServicePlan]) {
        let by_name: HashMap<_, _> = self.all.iter().map(|s| (s.config.name(), s)).collect();
        for plan in plan {
            if let Some(old) = by_name.get(plan.name.as_str()) {
                for endpoint in &mut plan.endpoints {
                    let mut known = old.config.endpoints().iter().zip(&old.endpoints);
                    endpoint.resting =
                        known.any(|(of, known)| of.name() == endpoint.name && known.resting);
                }
            }
        }
    }

    /// What the datapath was told last.
    fn plan(&self) -> Vec<ServicePlan> {
        let all = self.all.iter().map(Service::plan);
        all.chain(self.leaving.iter().map(|of| of.plan.clone()))
            .collect()
    }

    /// Lets the services that begin to steer decide, before a listener names them: what is
    /// there stays as it is. They are asked again when all is applied.
    fn begin_to_steer<D: Steering>(&self, plan: &[ServicePlan], datapath: &mut D) -> Result {
        let before = self.plan();
        let steered: HashSet<&str> = before
            .iter()
            .filter(|of| !of.shadow)
            .map(|of| of.name.as_str())
            .collect();
        let begins: Vec<_> = plan
            .iter()
            .filter(|of| !of.shadow && !steered.contains(of.name.as_str()))
            .cloned()
            .map(|of| ServicePlan { shadow: true, ..of })
            .collect();
        if begins.is_empty() {
            return Ok(());
        }
        let names: HashSet<&str> = begins.iter().map(|of| of.name.as_str()).collect();
        let stays = before.iter().filter(|of| !names.contains(of.name.as_str()));
        let first: Vec<_> = begins.iter().chain(stays).cloned().collect();
        let applied = datapath.apply(&first)?;
        for (plan, applied) in begins.iter().zip(applied) {
            let old = self.all.iter().find(|s| s.config.name() == plan.name);
            datapath.select(applied.id, first_choice(plan, &applied, old))?;
        }
        Ok(())
    }

    /// Takes all services apart: where those of the new configuration come from, and which are
    /// not in it.
    fn origins(&mut self, config: &Config) -> (Vec<Origin>, Vec<Service>) {
        let mut by_name: HashMap<String, Service> = std::mem::take(&mut self.all)
            .into_iter()
            .map(|service| (service.config.name().to_owned(), service))
            .collect();
        let origin = |of: &config::Service| match by_name.remove(of.name()) {
            Some(same) if same.config == *of => Origin::Same(same),
            Some(changed) => Origin::Changed(changed),
            None => Origin::New,
        };
        let origins = config.services().iter().map(origin).collect();
        let mut gone: Vec<_> = by_name.into_values().collect();
        gone.sort_by_key(|service| service.slot);
        (origins, gone)
    }

    /// Begins the checks of whoever has none.
    fn check_all(&mut self) {
        let Some(start) = &mut self.start_checks else {
            return;
        };
        let mut position = 0u32;
        for service in &mut self.all {
            for e in 0..service.endpoints.len() {
                if service.endpoints[e].running.is_none() {
                    let now = service.begin_now();
                    let offset = FIRST_APART * position;
                    let offset = offset.min(service.config.check().inter());
                    service.start_check(e, Begin { offset, ..now }, start);
                    position = position.saturating_add(1);
                }
            }
        }
    }

    /// When a withdrawal is over.
    pub(super) fn withdrawn_due(&self) -> Option<Instant> {
        let withdrawn = |service: &Service| service.withdrawn.as_ref().map(|of| of.until);
        let all = self.all.iter().filter_map(withdrawn);
        all.chain(self.leaving.iter().map(|of| of.until)).min()
    }

    /// A sweep that found none of its flows shortens a withdrawal.
    pub(super) fn hurry(&mut self, swept: &Swept) {
        for leaving in &mut self.leaving {
            let began = Instant::from(swept.began);
            let flows: u64 = leaving
                .endpoints
                .iter()
                .map(|id| swept.connections_of(*id))
                .sum();
            if began > leaving.since && flows == 0 {
                leaving.until = leaving.until.min(began);
            }
        }
    }

    /// Takes the listeners away of whose time is over.
    pub(super) fn withdraw_due<D: Steering>(&mut self, now: Instant, datapath: &mut D) -> Result {
        if self.withdrawn_due().is_none_or(|due| due > now) {
            return Ok(());
        }
        for over in self.leaving.iter().filter(|of| of.until <= now) {
            info!(service = over.plan.name, "no packet of it is touched now");
        }
        self.leaving.retain(|of| of.until > now);
        let mut over = Vec::new();
        for (s, service) in self.all.iter_mut().enumerate() {
            if service.withdrawn.as_ref().is_some_and(|of| of.until <= now) {
                service.withdrawn = None;
                over.push(s);
            }
        }
        let plan = self.plan();
        datapath.apply(&plan)?;
        for s in over {
            let service = &mut self.all[s];
            info!(
                service = service.config.name(),
                "no packet of it is touched now"
            );
            // Whoever lets it steer again finds its endpoints as if they were new.
            for endpoint in &mut service.endpoints {
                datapath.mark(endpoint.id, Mark::Up)?;
                endpoint.mark = Mark::Up;
            }
        }
        Ok(())
    }
}

/// What a service that begins to steer does until it is asked: as a shadow it knows whom it
/// would choose; another one chooses the first of the lowest tier, as at a start.
fn first_choice(plan: &ServicePlan, applied: &AppliedService, old: Option<&Service>) -> Choice {
    let named = |name: &str| {
        let mut endpoints = plan.endpoints.iter().zip(&applied.endpoints);
        let found = endpoints.find(|(of, _)| of.name == name && of.weight > 0);
        found.map(|(_, id)| *id)
    };
    let known = old.and_then(|old| old.serving().into_iter().find_map(named));
    let weighs = plan.endpoints.iter().zip(&applied.endpoints);
    let lowest = weighs
        .filter(|(of, _)| of.weight > 0)
        .min_by_key(|(of, _)| of.tier);
    match (known, old, lowest) {
        (Some(id), ..) => Choice::Endpoint(id),
        (None, Some(old), _) if old.serving().is_empty() => Choice::Refuse,
        (None, _, Some((_, id))) => Choice::Endpoint(*id),
        (None, _, None) => Choice::Refuse,
    }
}

/// What the kernel will look at for a service's sake.
fn listeners_of(plan: &ServicePlan) -> impl Iterator<Item = Vip> + '_ {
    let direct = plan.endpoints.iter().flat_map(|of| &of.listeners);
    let all = plan.listeners.iter().chain(direct).copied();
    all.filter(|_| !plan.shadow)
}

/// The plan with those listeners only.
fn without(plan: &ServicePlan, stays: impl Fn(&Vip) -> bool) -> ServicePlan {
    let mut plan = plan.clone();
    plan.listeners.retain(&stays);
    for endpoint in &mut plan.endpoints {
        endpoint.listeners.retain(&stays);
    }
    plan
}

impl Withdrawn {
    /// What is there of the plan of a shadow meanwhile.
    fn plan(&self, shadow: &ServicePlan) -> ServicePlan {
        let plan = without(shadow, |address| self.listeners.contains(address));
        ServicePlan {
            shadow: false,
            ..plan
        }
    }
}

impl Service {
    /// What the kernel is told of it, or would be if it were not withdrawn.
    fn steering_plan(&self) -> ServicePlan {
        let at: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.at).collect();
        let mut plan = service_plan(&self.config, &at);
        for (plan, endpoint) in plan.endpoints.iter_mut().zip(&self.endpoints) {
            (plan.resting, plan.weight) = (endpoint.resting, endpoint.weight);
        }
        plan
    }

    fn plan(&self) -> ServicePlan {
        let plan = self.steering_plan();
        match &self.withdrawn {
            Some(withdrawn) => withdrawn.plan(&plan),
            None => plan,
        }
    }

    /// The position of an endpoint of the new configuration that is the same in the old one:
    /// of that name, and as configured or in fact at the same address.
    fn position(&self, endpoint: &config::Endpoint, at: &Resolved) -> Option<usize> {
        let mut endpoints = self.config.endpoints().iter().zip(&self.endpoints);
        endpoints.position(|(of, known)| {
            of.name() == endpoint.name() && (of.address() == endpoint.address() || known.at == *at)
        })
    }

    /// Refuses new connections and has everybody told.
    fn withdraw<D: Steering>(&mut self, datapath: &mut D) -> Result {
        datapath.select(self.id, Choice::Refuse)?;
        for endpoint in &mut self.endpoints {
            datapath.mark(endpoint.id, Mark::Drained)?;
            endpoint.mark = Mark::Drained;
        }
        Ok(())
    }

    /// It has no place in the configuration any more. Where somebody else has one of its
    /// addresses the connections go on with their endpoints: it may be the same service under
    /// another name.
    fn leave<D: Steering>(
        mut self,
        taken: &HashSet<Vip>,
        now: Instant,
        datapath: &mut D,
    ) -> Result<Option<Leaving>> {
        let name = self.config.name();
        let plan = self.plan();
        if plan.shadow || listeners_of(&plan).any(|address| taken.contains(&address)) {
            info!(
                service = name,
                "it left the configuration; its connections go on as far as their address is \
                 another service's"
            );
            return Ok(None);
        }
        warn!(
            service = name,
            "it left the configuration: its connections are reset, new ones are refused, and \
             soon no packet of it is touched"
        );
        self.withdraw(datapath)?;
        Ok(Some(Leaving {
            plan,
            endpoints: self.endpoints.iter().map(|endpoint| endpoint.id).collect(),
            since: now,
            until: now + TELLING,
        }))
    }

    /// What steers now, and is a shadow in the new plan, is withdrawn, unless somebody else takes
    /// one of its addresses. The plan says what is to be there meanwhile.
    fn withdraw_or_not<D: Steering>(
        &mut self,
        plan: &mut ServicePlan,
        taken: &HashSet<Vip>,
        now: Instant,
        datapath: &mut D,
    ) -> Result {
        let before = self.plan();
        let listeners: HashSet<Vip> = listeners_of(&before).collect();
        if !plan.shadow || !listeners.is_disjoint(taken) {
            self.withdrawn = None;
            return Ok(());
        }
        if self.steers() {
            warn!(
                service = self.config.name(),
                "it is a shadow now: its connections are reset, new ones are refused, and soon no \
                 packet of it is touched"
            );
            self.withdraw(datapath)?;
            let until = now + TELLING;
            self.withdrawn = Some(Withdrawn { until, listeners });
        }
        if let Some(withdrawn) = &self.withdrawn {
            *plan = withdrawn.plan(plan);
        }
        Ok(())
    }

    /// Nobody shall think that it is still there.
    fn forget(&self, observer: &dyn Observer) {
        for endpoint in self.config.endpoints() {
            observer.gone(self.config.name(), Some(endpoint.name()));
        }
        observer.gone(self.config.name(), None);
    }

    /// Becomes what the configuration says now. `ids` are those of its endpoints, `restored` the
    /// orders for them.
    #[expect(
        clippy::too_many_arguments,
        reason = "what it becomes, and what is needed to be it"
    )]
    fn reform<D: Steering>(
        &mut self,
        config: &config::Service,
        at: Vec<Resolved>,
        ids: &[EndpointId],
        restored: Restored,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let served: Vec<_> = self.serving().into_iter().map(str::to_owned).collect();
        let steered = self.config.mode() == Mode::Active;
        let from: Vec<_> = config
            .endpoints()
            .iter()
            .zip(&at)
            .map(|(of, at)| self.position(of, at))
            .collect();
        let asked_anew = self.forget_agents(config, &from);
        let members: Vec<_> = config
            .endpoints()
            .iter()
            .zip(&from)
            .zip(&restored.modes)
            .enumerate()
            .map(|(i, ((of, from), mode))| Member {
                mode: *mode,
                tier: of.tier(),
                weighs: of.weight() > 0
                    && !at[i].is_empty()
                    && from.is_none_or(|old| self.endpoints[old].wishes.serves()),
                state: match from.map(|old| (old, &self.endpoints[old])) {
                    _ if at[i].is_empty() => State::Down,
                    None => State::Unknown,
                    // It has an address now.
                    Some((_, known)) if known.at.is_empty() => State::Unknown,
                    Some((_, known)) if asked_anew[i] => known.state(),
                    Some((old, _)) => self.failover.state(old).unwrap_or(State::Unknown),
                },
            })
            .collect();
        let (failback, all_down) = (config.failback(), config.all_down());
        self.failover
            .reform(failback, all_down, &members, &from, restored.promoted, now);
        self.drains.reform(limits(config), &from);
        let times = config.endpoints().iter().map(config::Endpoint::slow_start);
        self.slow_start.reform(times, &from);
        for (i, left) in restored.allowed.iter().enumerate() {
            if from[i].is_none() {
                self.drains.allow(i, *left, now);
            }
        }
        self.promoted_told = self.failover.promoted();
        self.promoted_by = restored.promoted_by;
        self.ordered = restored.ordered;
        self.reform_endpoints(config, at, &from, ids, observer);
        self.config = config.clone();
        self.check = Arc::new(config.check().clone());
        self.follow(now);
        self.write_selection(datapath)?;
        self.write_marks(datapath)?;
        for (endpoint, config) in self.endpoints.iter().zip(self.config.endpoints()) {
            observer.identified(self.config.name(), config.name(), endpoint.id);
            observer.placed(
                self.config.name(),
                config.name(),
                config.tier(),
                config.weight(),
            );
            observer.state(self.config.name(), config.name(), endpoint.state());
            let unresolved = endpoint.unresolved.is_some();
            if matches!(config.address(), Address::Name { .. }) {
                observer.unresolved(self.config.name(), config.name(), unresolved);
            }
        }
        self.tell_mode(observer);
        self.tell_damping(observer);
        self.tell_reload(&served, steered, observer);
        self.tell_drains(observer);
        Ok(())
    }

    /// What an agent said that is asked no more, or otherwise, is not valid any more. Answers
    /// for each endpoint of the new configuration whether that is so.
    fn forget_agents(&mut self, config: &config::Service, from: &[Option<usize>]) -> Vec<bool> {
        let of = |(of, old): (&config::Endpoint, &Option<usize>)| {
            let Some(old) = *old else { return false };
            let endpoint = &mut self.endpoints[old];
            if self.config.endpoints()[old].agent() == of.agent() {
                return false;
            }
            endpoint.wishes = Wishes::default();
            // Whoever asked it asks no more.
            endpoint.generation += 1;
            endpoint.running = None;
            true
        };
        config.endpoints().iter().zip(from).map(of).collect()
    }

    fn reform_endpoints(
        &mut self,
        config: &config::Service,
        at: Vec<Resolved>,
        from: &[Option<usize>],
        ids: &[EndpointId],
        observer: &dyn Observer,
    ) {
        let (check, before) = (config.check().clone(), self.config.clone());
        let rechecked = check != *before.check()
            || config.sentinel() != before.sentinel()
            || config.life_signs() != before.life_signs();
        let resting: Vec<_> = self.endpoints.iter().map(|of| of.resting).collect();
        let mut old: Vec<_> = std::mem::take(&mut self.endpoints)
            .into_iter()
            .map(Some)
            .collect();
        self.places.iter_mut().for_each(|place| *place = None);
        for (i, (of, at)) in config.endpoints().iter().zip(at).enumerate() {
            let known = from[i].and_then(|old_at| old[old_at].take());
            let mut endpoint = known.unwrap_or_else(|| {
                let slot = self.places.len();
                self.places.push(None);
                let named = before
                    .endpoints()
                    .iter()
                    .position(|old| old.name() == of.name());
                Endpoint {
                    // As the plan had it.
                    resting: named.is_some_and(|old_at| resting[old_at]),
                    ..Endpoint::new(slot, ids[i], at, config, of)
                }
            });
            let mut moved = endpoint.at != at;
            if endpoint.at.is_empty() && moved {
                endpoint.unresolved = None;
                (endpoint.verdict, endpoint.since) = (None, SystemTime::now());
            }
            if endpoint.id != ids[i] {
                endpoint.id = ids[i];
                endpoint.mark = Mark::Up;
                // Its replies are counted elsewhere.
                moved |= config.life_signs();
            }
            endpoint.at = at;
            // As the plan had it.
            endpoint.weight = of.weight();
            endpoint.families = Families::of(config, of);
            endpoint.health.reform(check.rise(), check.fall());
            if config.observe() != before.observe() {
                endpoint.errors = error_limit(config);
            }
            if rechecked || moved {
                // What the task before still says is nobody's.
                endpoint.generation += 1;
                endpoint.running = None;
            }
            self.places[endpoint.slot] = Some(i);
            self.endpoints.push(endpoint);
        }
        let stays = |name: &str| config.endpoints().iter().any(|of| of.name() == name);
        for gone in before.endpoints().iter().filter(|of| !stays(of.name())) {
            observer.gone(before.name(), Some(gone.name()));
        }
    }

    /// Says whom the reload has chosen, if that are others.
    fn tell_reload(&mut self, served: &[String], steered: bool, observer: &dyn Observer) {
        let steers = self.config.mode() == Mode::Active;
        let to = self.target_name(self.failover.selected());
        if self.serving() != *served {
            self.count(Reason::Reload);
            observer.switched(self.config.name(), Reason::Reload);
            self.journal.tell(What::Switch {
                service: self.config.name().to_owned(),
                from: served.to_vec(),
                to: self.serving().into_iter().map(str::to_owned).collect(),
                reason: Reason::Reload.label().to_owned(),
                would: !steers,
            });
            let from = match served {
                [] => "nobody (refused)".to_owned(),
                names => names.join(", "),
            };
            warn!(
                service = self.config.name(),
                from,
                to,
                reason = Reason::Reload.label(),
                "{}",
                if steers {
                    "switched"
                } else {
                    "would switch, as a shadow"
                }
            );
        } else if steers && !steered {
            info!(
                service = self.config.name(),
                "it steers now: new connections go to {to}"
            );
        }
        self.tell_selection(observer);
    }
}
