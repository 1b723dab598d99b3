//! Services, endpoints and listeners in the kernel, kept equal to the plan.
//! Endpoints' own addresses stand among the listeners, see [`LISTENER_OWN`].
//!
//! The order of writes matters, because packets flow meanwhile: an endpoint is
//! complete before anything names it, a listener appears after its service, and
//! what is removed loses its listeners first. Ids are never reused while a flow may
//! still name them: an endpoint that leaves the plan is retired (its name is
//! erased, its address stays) and freed once a sweep found no flow of it.

use std::{
    collections::{BTreeMap, HashMap as Map, HashSet},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use probe_ebpf::{
    abi::{
        Action, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, ENDPOINT_FREE, ENDPOINT_UP, Endpoint,
        EndpointCounters, FAMILY_V4, FAMILY_V6, FORWARD_DSR, FORWARD_FULL_NAT, FORWARD_NAT,
        KEEP_FLOWS_OF_DOWN, LISTENER_MAIN, LISTENER_OWN, Listener, MAX_ENDPOINTS, MAX_POOLS,
        MAX_SERVICES, NO_ENDPOINT, NO_REDISPATCH, NO_TIER, Name, SLOT_ALONE, SLOT_ALONE_DIRECT,
        Straight, V4, V6, seen,
    },
    names,
};

use super::{
    AppliedService, Choice, EndpointId, EndpointPlan, Error, Forward, Image, Mark, ServiceId,
    ServicePlan, Swept, Vip,
    listeners::{Listeners, listener, own},
    mapping::{take, take_mapped},
    ports::Ports,
    ring::{self, Member},
    rings::Rings,
    selections::{Selections, Stamp},
};

/// After a switch clients may wait so long for the endpoint before to answer their SYN; by then they
/// have repeated it (after a second, RFC 6298 section 2.1), and its note was given up. While segments
/// go by the slot alone, repeated SYNs give up nothing.
const ANSWERED: Duration = Duration::from_secs(3);
/// How long an id waits for flows that are to end; then it is free when it has none.
const GRAVE_TIME: Duration = Duration::from_secs(10);

/// An endpoint id in use.
#[derive(Clone, Debug)]
struct Known {
    /// Empty once retired.
    name: String,
    value: Endpoint,
    /// Of an endpoint of the plan.
    weight: u16,
    retired: Option<Instant>,
}

/// The tables that the agent fills, and what it knows to be in them.
pub struct Tables {
    selections: Selections,
    rings: Rings,
    listeners: Listeners,
    endpoint_map: Array<MapData, Image<Endpoint>>,
    endpoint_names: Array<MapData, Image<Name>>,
    service_names: Array<MapData, Image<Name>>,
    counters: PerCpuArray<MapData, Image<EndpointCounters>>,
    qdiscs: HashMap<MapData, u32, u32>,
    services: BTreeMap<ServiceId, String>,
    endpoints: BTreeMap<EndpointId, Known>,
    settings: Map<ServiceId, Setting>,
    ports: Ports,
    forwards: Map<ServiceId, Forward>,
    /// From when on every flow is known that anybody still uses.
    learned: Instant,
}

/// What the tables know of a service beside its ids.
#[derive(Clone, Debug)]
struct Setting {
    /// [`KEEP_FLOWS_OF_DOWN`] and [`NO_REDISPATCH`], or nothing.
    flags: u8,
    /// What follows the selection, in the plan's order.
    listeners: Vec<Vip>,
    /// What always goes to one endpoint.
    direct: Vec<(Vip, EndpointId)>,
    /// Nothing is steered.
    shadow: bool,
    choice: Option<Choice>,
    /// Of a choice of several, the ring that says which.
    ring: u32,
    /// When the selection last moved, and what it left behind was answered or given up: a sweep from
    /// before may not have found flows that go elsewhere.
    moved: Instant,
    /// [`SLOT_ALONE`] and [`SLOT_ALONE_DIRECT`], as far as they are given now.
    alone: u8,
}

impl Tables {
    /// Takes the maps and reads what an earlier agent left in them. Before `learned` a
    /// flow may be unknown that somebody uses.
    pub fn take(ebpf: &mut Ebpf, learned: Instant) -> Result<Self, Error> {
        let mut tables = Self {
            selections: take_mapped(ebpf, names::MAP_SELECTIONS, |fd| Selections::map(fd))?,
            rings: take_mapped(ebpf, names::MAP_RINGS, |fd| Rings::map(fd))?,
            listeners: Listeners::take(ebpf)?,
            endpoint_map: take(ebpf, names::MAP_ENDPOINTS)?,
            endpoint_names: take(ebpf, names::MAP_ENDPOINT_NAMES)?,
            service_names: take(ebpf, names::MAP_SERVICE_NAMES)?,
            counters: take(ebpf, names::MAP_ENDPOINT_COUNTERS)?,
            qdiscs: take(ebpf, names::MAP_QDISCS)?,
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            settings: Map::new(),
            forwards: Map::new(),
            ports: take_mapped(ebpf, names::MAP_PORTS, |fd| Ports::map(fd))?,
            learned,
        };
        tables.read()?;
        for known in tables.endpoints.values() {
            tables.listeners.admit(&known.value);
        }
        Ok(tables)
    }

    fn read(&mut self) -> Result<(), Error> {
        let failed = |e| Error::failed("reading the pinned tables", e);
        for id in 0..MAX_SERVICES {
            let Image(name) = self.service_names.get(&id, 0).map_err(failed)?;
            if name != Name::EMPTY {
                self.services
                    .insert(ServiceId(id), name.as_str().to_owned());
                let decision = self.selections.get(ServiceId(id)).decision;
                if decision.action == Action::Spread {
                    self.rings.inherit(ServiceId(id), decision.target);
                }
            }
        }
        for id in 0..MAX_ENDPOINTS {
            let Image(value) = self.endpoint_map.get(&id, 0).map_err(failed)?;
            if value.state == ENDPOINT_FREE {
                continue;
            }
            let Image(name) = self.endpoint_names.get(&id, 0).map_err(failed)?;
            let known = Known {
                name: name.as_str().to_owned(),
                value,
                weight: 0,
                retired: (name == Name::EMPTY).then(Instant::now),
            };
            self.endpoints.insert(EndpointId(id), known);
        }
        Ok(())
    }

    /// Makes the tables equal to the plan, see [`super::Steering::apply`].
    pub fn apply(&mut self, plan: &[ServicePlan]) -> Result<Vec<AppliedService>, Error> {
        let mut applied = Vec::with_capacity(plan.len());
        let mut wanted = Map::new();
        let known = self.by_name();
        for service in plan {
            let id = self.service_id(&service.name)?;
            self.forwards.insert(id, service.forward);
            let mut endpoints = Vec::with_capacity(service.endpoints.len());
            let mut moved = Map::new();
            let mut direct = Vec::new();
            for endpoint in &service.endpoints {
                let before = known.get(&(id, endpoint.name.clone())).copied();
                let (now, before) = self.endpoint_id(id, endpoint, before)?;
                moved.extend(before.map(|before| (before, now)));
                direct.extend(endpoint.listeners.iter().map(|address| (*address, now)));
                endpoints.push(now);
            }
            let mut setting = self.setting(id, service, direct);
            if setting.shadow {
                setting.listeners.clear();
                setting.direct.clear();
            }
            for (address, endpoint) in &setting.direct {
                wanted.insert(*address, listener(id, Some(*endpoint)));
            }
            for address in &setting.listeners {
                wanted.insert(*address, listener(id, None));
            }
            self.selections
                .set_affinity(id, service.affinity.map_or(0, units));
            self.withdraw_way_alone(id, &setting);
            self.settings.insert(id, setting);
            applied.push(self.applied(id, endpoints, &moved));
        }
        for (address, listener) in self.main_listeners() {
            wanted.insert(address, listener);
        }
        // Retired endpoints too: they still have flows.
        for (id, known) in &self.endpoints {
            for (address, listener) in self.own_of(*id, &known.value) {
                // A listener of the plan has precedence over a retired endpoint's address.
                wanted.entry(address).or_insert(listener);
            }
        }
        let endpoints = self.endpoints.values().map(|known| &known.value);
        self.listeners.make(&wanted, endpoints)?;
        self.retire_all_but(&applied)?;
        self.link_all()?;
        Ok(applied)
    }

    /// Names of endpoints that are not retired.
    fn by_name(&self) -> Map<(ServiceId, String), EndpointId> {
        let named = self.endpoints.iter().filter(|(_, of)| of.retired.is_none());
        named
            .map(|(id, of)| ((ServiceId(of.value.service), of.name.clone()), *id))
            .collect()
    }

    /// What will be known of a service of the plan.
    fn setting(
        &self,
        id: ServiceId,
        service: &ServicePlan,
        direct: Vec<(Vip, EndpointId)>,
    ) -> Setting {
        let mut flags = 0;
        if service.keep_flows_of_down {
            flags |= KEEP_FLOWS_OF_DOWN;
        }
        if service.single_writer {
            flags |= NO_REDISPATCH;
        }
        let before = self.settings.get(&id);
        // Flows by an address that is new here may be with somebody else.
        let same_ways = |before: &&Setting| {
            let known = |address: &Vip| before.listeners.contains(address);
            let same = |way: &(Vip, EndpointId)| before.direct.contains(way);
            service.listeners.iter().all(known) && direct.iter().all(same)
        };
        let same = before.filter(same_ways).filter(|_| !service.shadow);
        Setting {
            flags,
            listeners: service.listeners.clone(),
            shadow: service.shadow,
            choice: before.and_then(|setting| setting.choice.clone()),
            ring: before.map_or(0, |setting| setting.ring),
            moved: same.map_or_else(Instant::now, |setting| setting.moved),
            alone: same.map_or(0, |setting| setting.alone),
            direct,
        }
    }

    /// Takes the way by the slot alone from a service that will not have it any more, before
    /// a packet of a flow that goes elsewhere can see the slot.
    fn withdraw_way_alone(&self, id: ServiceId, setting: &Setting) {
        let before = self.settings.get(&id);
        if before.is_some_and(|before| before.alone & !setting.alone != 0)
            && let Some(choice) = &setting.choice
        {
            self.decide(id, choice, setting.ring, setting.flags | setting.alone);
        }
    }

    /// See [`super::Steering::fits`].
    pub fn fits(&self, plan: &[ServicePlan]) -> Result<(), Error> {
        let known = self.by_name();
        let ids: Map<&str, ServiceId> = self
            .services
            .iter()
            .map(|(id, name)| (name.as_str(), *id))
            .collect();
        let (mut services, mut endpoints, mut pools) = (self.services.len(), 0, 0);
        for service in plan {
            let id = ids.get(service.name.as_str());
            services += usize::from(id.is_none());
            for endpoint in &service.endpoints {
                let stays = id
                    .and_then(|id| known.get(&(*id, endpoint.name.clone())))
                    .is_some_and(|known| {
                        let value = &self.endpoints[known].value;
                        same_addresses(value, endpoint) && value.forward == number(service.forward)
                    });
                if !stays {
                    endpoints += 1;
                    pools += usize::from(service.forward == Forward::FullNat);
                }
            }
        }
        // What leaves frees its place later: its flows may still name it.
        let room = |what: &str, wanted: usize, most: u32| {
            if wanted > most as usize {
                return Err(Error::full(
                    format!("{what} before old ones are gone"),
                    most,
                ));
            }
            Ok(())
        };
        room("so many services", services, MAX_SERVICES)?;
        let taken = self.endpoints.len() + endpoints;
        room("so many endpoints", taken, MAX_ENDPOINTS)?;
        let taken = self.endpoints.values().filter_map(pool).count() + pools;
        room("so many endpoints of full NAT", taken, MAX_POOLS)
    }

    /// [`Tables::link`] for every service.
    fn link_all(&mut self) -> Result<(), Error> {
        let mut of: BTreeMap<ServiceId, Vec<EndpointId>> = BTreeMap::new();
        for (id, known) in &self.endpoints {
            let service = ServiceId(known.value.service);
            of.entry(service).or_default().push(*id);
        }
        for ids in of.into_values() {
            self.link_these(&ids)?;
        }
        Ok(())
    }

    /// Tells each endpoint of a service who is asked after it when it refuses, see
    /// [`Endpoint::next`].
    fn link(&mut self, service: ServiceId) -> Result<(), Error> {
        let of = self.endpoints.iter();
        let of = of.filter(|(_, known)| known.value.service == service.0);
        let ids: Vec<_> = of.map(|(id, _)| *id).collect();
        self.link_these(&ids)
    }

    /// [`Tables::link`], with all endpoints of a service.
    fn link_these(&mut self, ids: &[EndpointId]) -> Result<(), Error> {
        let mut tiers: BTreeMap<u8, Vec<EndpointId>> = BTreeMap::new();
        for id in ids {
            let tier = self.endpoints[id].value.tier;
            if tier != NO_TIER {
                tiers.entry(tier).or_default().push(*id);
            }
        }
        let tiers: Vec<_> = tiers.into_values().collect();
        let mut links: Map<EndpointId, [u32; 3]> = Map::new();
        for (t, tier) in tiers.iter().enumerate() {
            let below = &tiers[(t + 1) % tiers.len()];
            let below = if tiers.len() > 1 {
                below[0].0
            } else {
                NO_ENDPOINT
            };
            for (i, id) in tier.iter().enumerate() {
                let next = tier[(i + 1) % tier.len()];
                links.insert(*id, [next.0, tier[0].0, below]);
            }
        }
        for id in ids {
            let [next, head, below] = links.get(id).copied().unwrap_or([NO_ENDPOINT; 3]);
            let before = self.endpoints[id].value;
            let value = Endpoint {
                next,
                head,
                below,
                ..before
            };
            if value != before {
                self.write_endpoint(*id, value)?;
            }
        }
        Ok(())
    }

    /// What an earlier agent left for a service of the plan.
    fn applied(
        &self,
        id: ServiceId,
        endpoints: Vec<EndpointId>,
        moved: &Map<EndpointId, EndpointId>,
    ) -> AppliedService {
        let decision = self.selections.get(id).decision;
        let still = |old: u32| {
            let old = EndpointId(old);
            let now = moved.get(&old).copied().unwrap_or(old);
            endpoints.contains(&now).then_some(now)
        };
        let inherited = match decision.action {
            Action::Pass => None,
            Action::Refuse => Some(Choice::Refuse),
            Action::Steer => still(decision.target).map(Choice::Endpoint),
            Action::Spread => {
                let ring = self.rings.endpoints(decision.target);
                let still: Vec<_> = ring.into_iter().filter_map(still).collect();
                (!still.is_empty()).then_some(Choice::Spread(still))
            }
        };
        let inherited_marks = endpoints
            .iter()
            .map(|id| self.endpoints.get(id).map_or(0, |known| known.value.state))
            .map(|state| match state {
                ENDPOINT_DOWN => Mark::Down,
                ENDPOINT_DRAINED => Mark::Drained,
                _ => Mark::Up,
            })
            .collect();
        let changed = Duration::from_nanos(self.selections.get(id).changed_unix_ns);
        AppliedService {
            id,
            endpoints,
            inherited,
            inherited_marks,
            inherited_at: UNIX_EPOCH + changed,
        }
    }

    /// The id of a service, new or known.
    fn service_id(&mut self, name: &str) -> Result<ServiceId, Error> {
        if let Some((id, _)) = self.services.iter().find(|(_, known)| *known == name) {
            return Ok(*id);
        }
        let id = (0..MAX_SERVICES)
            .map(ServiceId)
            .find(|id| !self.services.contains_key(id))
            .ok_or_else(|| Error::full(format!("service {name}"), MAX_SERVICES))?;
        self.selections.clear(id);
        self.service_names
            .set(id.0, Image(valid_name(name)?), 0)
            .map_err(|e| Error::failed(format!("naming service {name}"), e))?;
        self.services.insert(id, name.to_owned());
        Ok(id)
    }

    /// The id of an endpoint, new or known (`before`, if its name is), and the id that it
    /// replaces because its address changed.
    fn endpoint_id(
        &mut self,
        service: ServiceId,
        plan: &EndpointPlan,
        before: Option<EndpointId>,
    ) -> Result<(EndpointId, Option<EndpointId>), Error> {
        let before = before.and_then(|id| Some((id, self.endpoints.get(&id)?.value)));
        if let Some((id, mut value)) = before
            && same_addresses(&value, plan)
            && value.forward == self.forward(service)
        {
            if value.tier != tier(plan) {
                value.tier = tier(plan);
                self.write_endpoint(id, value)?;
            }
            if let Some(known) = self.endpoints.get_mut(&id) {
                known.weight = plan.weight;
            }
            return Ok((id, None));
        }
        let id = self.add_endpoint(service, plan)?;
        if let Some((old, _)) = before {
            self.retire(old)?;
        }
        Ok((id, before.map(|(old, _)| old)))
    }

    /// Takes an endpoint out of its tier or puts it back, see [`super::Steering::rest`].
    pub fn rest(
        &mut self,
        service: ServiceId,
        id: EndpointId,
        tier: Option<u8>,
    ) -> Result<(), Error> {
        let Some(known) = self.endpoints.get(&id) else {
            return Ok(());
        };
        let tier = tier.filter(|_| known.weight > 0).unwrap_or(NO_TIER);
        if known.value.tier != tier {
            let value = Endpoint {
                tier,
                ..known.value
            };
            self.write_endpoint(id, value)?;
            self.link(service)?;
        }
        Ok(())
    }

    /// Gives an endpoint a new id with new addresses.
    pub fn readdress(
        &mut self,
        service: ServiceId,
        old: EndpointId,
        plan: &EndpointPlan,
    ) -> Result<EndpointId, Error> {
        let down = self
            .endpoints
            .get(&old)
            .is_some_and(|known| known.value.state == ENDPOINT_DOWN);
        let id = self.add_endpoint(service, plan)?;
        if down {
            self.mark(id, Mark::Down)?;
        }
        let setting = self.settings.get_mut(&service);
        if let Some(setting) = setting.filter(|setting| !setting.shadow) {
            setting.direct.retain(|(_, of)| *of != old);
            let direct = plan.listeners.iter().map(|address| (*address, id));
            setting.direct.extend(direct);
            for address in &plan.listeners {
                self.listeners
                    .write(*address, listener(service, Some(id)))?;
            }
        }
        if let Some(known) = self.endpoints.get(&id) {
            let value = known.value;
            for (address, listener) in self.own_of(id, &value).collect::<Vec<_>>() {
                if self
                    .listeners
                    .kind(address)
                    .is_none_or(|kind| kind == LISTENER_OWN)
                {
                    self.listeners.write(address, listener)?;
                }
            }
        }
        // The new address may be one that another service has too.
        for (address, listener) in self.main_listeners() {
            self.listeners.write(address, listener)?;
        }
        self.retire(old)?;
        self.link(service)?;
        Ok(id)
    }

    /// An id with an endpoint's addresses whose flows are over: who is given to it is reset and told as
    /// the flows of any endpoint whose time is over, see [`super::Steering::grave`].
    pub fn grave(&mut self, of: EndpointId) -> Result<Option<EndpointId>, Error> {
        let until = Instant::now() + GRAVE_TIME;
        let Some(known) = self.endpoints.get(&of) else {
            return Ok(None);
        };
        // A source port belongs to its endpoint's pool, which two cannot have.
        if known.value.forward == FORWARD_FULL_NAT {
            return Ok(None);
        }
        let value = Endpoint {
            state: ENDPOINT_DRAINED,
            tier: NO_TIER,
            next: NO_ENDPOINT,
            head: NO_ENDPOINT,
            below: NO_ENDPOINT,
            ..known.value
        };
        let service = ServiceId(value.service);
        let mut all = self.endpoints.iter_mut();
        let found = all.find(|(_, known)| known.retired.is_some() && known.value == value);
        let id = if let Some((id, known)) = found {
            known.retired = Some(until);
            *id
        } else {
            let id = (0..MAX_ENDPOINTS)
                .map(EndpointId)
                .find(|id| !self.endpoints.contains_key(id))
                .ok_or_else(|| Error::full("flows that are to end".to_owned(), MAX_ENDPOINTS))?;
            // Without a name it is retired after a restart, too.
            self.endpoint_names
                .set(id.0, Image(Name::EMPTY), 0)
                .map_err(|e| Error::failed(format!("naming endpoint {}", id.0), e))?;
            self.write_endpoint(id, value)?;
            let grave = Known {
                name: String::new(),
                value,
                weight: 0,
                retired: Some(until),
            };
            self.endpoints.insert(id, grave);
            id
        };
        // From now on the entries are looked at, until a sweep finds that nobody is there.
        if let Some(setting) = self.settings.get_mut(&service)
            && let Some(choice) = setting.choice.clone()
        {
            setting.moved = until;
            setting.alone &= !SLOT_ALONE;
            let (ring, flags) = (setting.ring, setting.flags | setting.alone);
            self.decide(service, &choice, ring, flags);
        }
        Ok(Some(id))
    }

    /// All ids are below this one.
    pub fn ids(&self) -> u32 {
        self.endpoints
            .last_key_value()
            .map_or(0, |(id, _)| id.0 + 1)
    }

    /// Packets that an endpoint has sent to clients, if that can be read.
    pub fn packets_from(&self, id: EndpointId) -> Option<u64> {
        let values = self.counters.get(&id.0, 0).ok()?;
        Some(values.iter().map(|Image(cpu)| cpu.reverse_packets).sum())
    }

    fn add_endpoint(
        &mut self,
        service: ServiceId,
        plan: &EndpointPlan,
    ) -> Result<EndpointId, Error> {
        let id = (0..MAX_ENDPOINTS)
            .map(EndpointId)
            .find(|id| !self.endpoints.contains_key(id))
            .ok_or_else(|| Error::full(format!("endpoint {}", plan.name), MAX_ENDPOINTS))?;
        let forward = self.forward(service);
        let pool = if forward == FORWARD_FULL_NAT {
            let taken: HashSet<_> = self.endpoints.values().filter_map(pool).collect();
            let free = (0..MAX_POOLS).find(|pool| !taken.contains(pool));
            free.ok_or_else(|| {
                Error::full(format!("endpoint {} of full NAT", plan.name), MAX_POOLS)
            })?
        } else {
            0
        };
        let failed = |e| Error::failed(format!("adding endpoint {}", plan.name), e);
        let cpus = nr_cpus().map_err(|(what, e)| Error::failed(what, e))?;
        let zeros = PerCpuValues::try_from(vec![Image(EndpointCounters::default()); cpus])
            .map_err(|e| Error::failed("counting CPUs", e))?;
        self.counters.set(id.0, zeros, 0).map_err(failed)?;
        self.endpoint_names
            .set(id.0, Image(valid_name(&plan.name)?), 0)
            .map_err(failed)?;
        let value = Endpoint {
            v6_be: plan
                .v6
                .map_or_else(V6::default, |a| V6::from_bytes(a.octets())),
            v4_be: plan
                .v4
                .map_or_else(V4::default, |a| V4::from_bytes(a.octets())),
            port_be: plan.port.to_be(),
            families: families(plan),
            tier: tier(plan),
            service: service.0,
            state: ENDPOINT_UP,
            forward,
            pool,
            next: NO_ENDPOINT,
            head: NO_ENDPOINT,
            below: NO_ENDPOINT,
        };
        self.write_endpoint(id, value)?;
        self.endpoints.insert(
            id,
            Known {
                name: plan.name.clone(),
                value,
                weight: plan.weight,
                retired: None,
            },
        );
        Ok(id)
    }

    /// [`Endpoint::forward`] of a service's endpoints.
    fn forward(&self, service: ServiceId) -> u32 {
        let forward = self.forwards.get(&service).copied();
        number(forward.unwrap_or_default())
    }

    /// An endpoint's own addresses, unless nothing is steered for its service.
    fn own_of(
        &self,
        id: EndpointId,
        value: &Endpoint,
    ) -> impl Iterator<Item = (Vip, Listener)> + use<> {
        let setting = self.settings.get(&ServiceId(value.service));
        let shadow = setting.is_some_and(|setting| setting.shadow);
        own(id, value).filter(move |_| !shadow)
    }

    /// Is anything sent on from here instead of being left to the kernel's forwarding?
    pub fn relays(&self) -> bool {
        let mut all = self.endpoints.values();
        all.any(|known| known.value.forward != FORWARD_NAT)
    }

    fn write_endpoint(&mut self, id: EndpointId, value: Endpoint) -> Result<(), Error> {
        // Before anybody is sent to it: what it answers must be looked at.
        self.listeners.admit(&value);
        self.endpoint_map
            .set(id.0, Image(value), 0)
            .map_err(|e| Error::failed(format!("writing endpoint {}", id.0), e))?;
        if let Some(known) = self.endpoints.get_mut(&id) {
            known.value = value;
        }
        Ok(())
    }

    /// Says what becomes of an endpoint's flows.
    pub fn mark(&mut self, id: EndpointId, mark: Mark) -> Result<(), Error> {
        let Some(known) = self.endpoints.get(&id) else {
            return Ok(());
        };
        let state = match mark {
            Mark::Up => ENDPOINT_UP,
            Mark::Down => ENDPOINT_DOWN,
            Mark::Drained => ENDPOINT_DRAINED,
        };
        if known.value.state == state {
            return Ok(());
        }
        let value = Endpoint {
            state,
            ..known.value
        };
        self.write_endpoint(id, value)
    }

    /// What an endpoint weighs in the rings that are built from now on.
    pub fn weigh(&mut self, id: EndpointId, weight: u16) {
        if let Some(known) = self.endpoints.get_mut(&id) {
            known.weight = weight;
        }
    }

    /// The switch. A ring is complete before the decision names it.
    pub fn select(&mut self, service: ServiceId, choice: Choice) -> Result<(), Error> {
        let ring = match &choice {
            Choice::Spread(endpoints) => self.fill_ring(service, endpoints)?,
            Choice::Endpoint(_) | Choice::Refuse => 0,
        };
        if let Some(setting) = self.settings.get_mut(&service) {
            if setting.choice.as_ref() != Some(&choice) {
                let waits = setting.choice.is_some();
                setting.moved = Instant::now() + if waits { ANSWERED } else { Duration::ZERO };
                setting.choice = Some(choice.clone());
                setting.alone &= !SLOT_ALONE;
            }
            setting.ring = ring;
            let flags = setting.flags | setting.alone;
            self.decide(service, &choice, ring, flags);
        }
        Ok(())
    }

    /// The number of a ring that spreads over these endpoints by their weights.
    fn fill_ring(&mut self, service: ServiceId, endpoints: &[EndpointId]) -> Result<u32, Error> {
        let named = self.selections.get(service).decision;
        let named = (named.action == Action::Spread).then_some(named.target);
        let members: Vec<_> = endpoints
            .iter()
            .filter_map(|id| {
                let known = self.endpoints.get(id)?;
                Some(Member {
                    name: &known.name,
                    weight: known.weight,
                    id: u16::try_from(id.0).ok()?,
                })
            })
            .collect();
        let name = self.services.get(&service).map_or("", String::as_str);
        let content = ring::build(name, &members).ok_or_else(|| {
            Error::failed(
                format!("spreading service {name}"),
                "no endpoint has any weight",
            )
        })?;
        self.rings.put(service, named, &content)
    }

    fn decide(&self, service: ServiceId, choice: &Choice, ring: u32, flags: u8) {
        let of = |id: Option<&EndpointId>| {
            let known = id.and_then(|id| self.endpoints.get(id));
            known.map_or(0, |known| known.value.tier)
        };
        let (action, tier, target) = match choice {
            Choice::Endpoint(id) => (Action::Steer, of(Some(id)), id.0),
            Choice::Spread(ids) => (Action::Spread, of(ids.first()), ring),
            Choice::Refuse => (Action::Refuse, 0, 0),
        };
        let decision = Decision {
            action,
            flags,
            tier,
            target,
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        self.selections.set(service, decision, now);
        if flags & SLOT_ALONE != 0
            && let Choice::Endpoint(id) = choice
            && let Some(known) = self.endpoints.get(id)
            && known.value.families & FAMILY_V4 != 0
        {
            let straight = Straight {
                addr_be: known.value.v4_be.0,
                port_be: known.value.port_be,
                endpoint: id.0,
            };
            self.selections.set_straight(service, Some(straight));
        }
    }

    /// Erases the name: the endpoint takes no new flows, old ones go on.
    fn retire(&mut self, id: EndpointId) -> Result<(), Error> {
        if let Some(known) = self.endpoints.get_mut(&id)
            && known.retired.is_none()
        {
            known.name.clear();
            known.retired = Some(Instant::now());
            let value = Endpoint {
                tier: NO_TIER,
                ..known.value
            };
            self.endpoint_names
                .set(id.0, Image(Name::EMPTY), 0)
                .map_err(|e| Error::failed(format!("retiring endpoint {}", id.0), e))?;
            self.write_endpoint(id, value)?;
        }
        Ok(())
    }

    /// Retires endpoints and removes services that are not in the plan.
    fn retire_all_but(&mut self, applied: &[AppliedService]) -> Result<(), Error> {
        let endpoints: HashSet<_> = applied.iter().flat_map(|a| &a.endpoints).copied().collect();
        let services: HashSet<_> = applied.iter().map(|a| a.id).collect();
        let leaving: Vec<_> = self
            .endpoints
            .keys()
            .filter(|id| !endpoints.contains(id))
            .copied()
            .collect();
        for id in leaving {
            self.retire(id)?;
        }
        let leaving: Vec<_> = self
            .services
            .keys()
            .filter(|id| !services.contains(id))
            .copied()
            .collect();
        for id in leaving {
            self.selections.clear(id);
            self.rings.release(id);
            self.service_names
                .set(id.0, Image(Name::EMPTY), 0)
                .map_err(|e| Error::failed(format!("removing service {}", id.0), e))?;
            self.services.remove(&id);
            self.settings.remove(&id);
        }
        Ok(())
    }

    /// Lets segments of services go by their slot alone where a sweep has shown that no
    /// flow of theirs goes elsewhere, and clears stamps of what is over.
    pub fn settle(&mut self, swept: &Swept) {
        // A flow that a stamp is about may have had no entry yet when the sweep began.
        let limit = swept.settled;
        for (id, known) in &self.endpoints {
            if let Some(pool) = pool(known) {
                self.ports.settle(pool, swept.source_ports.get(&id.0));
            }
        }
        let ids: Vec<_> = self.settings.keys().copied().collect();
        for service in ids {
            // Before a stamp is cleared that kept flows with other endpoints from the slot alone.
            let alone = self.alone(service, swept);
            if let Some(setting) = self.settings.get_mut(&service)
                && setting.alone != alone
                && let Some(choice) = setting.choice.clone()
            {
                setting.alone = alone;
                let (ring, flags) = (setting.ring, setting.flags | alone);
                self.decide(service, &choice, ring, flags);
            }
            if !swept.exceptions.contains(&service.0) {
                let stamp = Stamp::Exceptions;
                self.selections.clear_stamp(service, stamp, limit);
            }
            if !swept.side.contains(&service.0) {
                self.selections.clear_stamp(service, Stamp::Side, limit);
            }
        }
    }

    fn alone(&self, service: ServiceId, swept: &Swept) -> u8 {
        let Some(setting) = self.settings.get(&service) else {
            return 0;
        };
        // Flows that are sent on from here are found by their entries only.
        if swept.began < self.learned || self.forward(service) != FORWARD_NAT {
            return 0;
        }
        // Where several share, each flow goes its own way.
        let Some(Choice::Endpoint(selected)) = setting.choice else {
            return SLOT_ALONE_DIRECT;
        };
        let elsewhere = self
            .endpoints
            .iter()
            .filter(|(id, known)| known.value.service == service.0 && **id != selected)
            .any(|(id, _)| {
                let by = |vip: &Vip| swept.flows_by(*vip, *id) > 0;
                setting.listeners.iter().any(by)
            });
        if elsewhere || swept.began < setting.moved {
            SLOT_ALONE_DIRECT
        } else {
            SLOT_ALONE_DIRECT | SLOT_ALONE
        }
    }

    /// For each service and family and protocol the first listener that follows the
    /// selection, unless an endpoint is another service's too: see
    /// [`LISTENER_MAIN`].
    fn main_listeners(&self) -> Vec<(Vip, Listener)> {
        let mut services_at: Map<SocketAddr, HashSet<u32>> = Map::new();
        for known in self.endpoints.values() {
            for (address, _) in self.own_of(EndpointId(0), &known.value) {
                let services = services_at.entry(address.address).or_default();
                services.insert(known.value.service);
            }
        }
        let shared: HashSet<u32> = services_at
            .into_values()
            .filter(|services| services.len() > 1)
            .flatten()
            .collect();
        let mut main = Vec::new();
        for (id, setting) in &self.settings {
            let mut taken = HashSet::new();
            for address in &setting.listeners {
                let first = taken.insert((address.address.is_ipv4(), address.protocol));
                let flags = if first && !shared.contains(&id.0) {
                    LISTENER_MAIN
                } else {
                    0
                };
                let listener = Listener {
                    flags,
                    ..listener(*id, None)
                };
                main.push((*address, listener));
            }
        }
        main
    }

    /// Frees retired ids that have had no flow at a sweep that began after they
    /// were retired.
    pub fn release_retired(&mut self, swept: &Swept) -> Result<(), Error> {
        let free: Vec<_> = self
            .endpoints
            .iter()
            .filter(|(id, known)| {
                known.retired.is_some_and(|at| swept.began > at) && swept.connections_of(**id) == 0
            })
            .map(|(id, _)| *id)
            .collect();
        for id in free {
            if let Some(known) = self.endpoints.remove(&id) {
                self.remove_own(&known.value)?;
            }
            self.write_endpoint(id, Endpoint::default())?;
        }
        Ok(())
    }

    /// Forgets an endpoint's own addresses, unless another endpoint or a listener
    /// has them.
    fn remove_own(&mut self, value: &Endpoint) -> Result<(), Error> {
        for (address, listener) in own(EndpointId(0), value) {
            let heir = self
                .endpoints
                .iter()
                .flat_map(|(id, known)| self.own_of(*id, &known.value))
                .find(|(other, _)| *other == address);
            match (heir, self.listeners.kind(address)) {
                (Some((address, heir)), Some(LISTENER_OWN)) => {
                    self.listeners.write(address, heir)?
                }
                (None, Some(kind)) if kind == listener.kind => self.listeners.remove(address)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes that we added clsact to an interface.
    pub fn remember_qdisc(&mut self, ifindex: u32) -> Result<(), Error> {
        self.qdiscs
            .insert(ifindex, 1, 0)
            .map_err(|e| Error::failed(format!("noting the qdisc of interface {ifindex}"), e))
    }

    /// Did we add clsact to this interface?
    pub fn owns_qdisc(&self, ifindex: u32) -> bool {
        self.qdiscs.get(&ifindex, 0).is_ok()
    }

    /// The qdisc went with its interface, or was removed.
    pub fn forget_qdisc(&mut self, ifindex: u32) {
        // Mostly it is not there: TCX needs none.
        let _ = self.qdiscs.remove(&ifindex);
    }
}

/// [`Endpoint::forward`].
fn number(forward: Forward) -> u32 {
    match forward {
        Forward::FullNat => FORWARD_FULL_NAT,
        Forward::Dsr => FORWARD_DSR,
        Forward::Nat => FORWARD_NAT,
    }
}

/// The pool of an endpoint's source ports, if it has one.
fn pool(known: &Known) -> Option<u32> {
    (known.value.forward == FORWARD_FULL_NAT).then_some(known.value.pool)
}

/// What the programs know of its tier.
fn tier(plan: &EndpointPlan) -> u8 {
    if plan.weight == 0 || plan.resting {
        NO_TIER
    } else {
        plan.tier
    }
}

/// At least this long, in the unit of [`seen`].
fn units(span: Duration) -> u32 {
    seen(span.as_nanos() as u64) + 1
}

fn valid_name(name: &str) -> Result<Name, Error> {
    Name::new(name).ok_or_else(|| {
        Error::failed(
            format!("naming {name:?}"),
            "a name has 1 to 63 bytes and no zero byte",
        )
    })
}

fn families(plan: &EndpointPlan) -> u8 {
    let v4 = if plan.v4.is_some() { FAMILY_V4 } else { 0 };
    let v6 = if plan.v6.is_some() { FAMILY_V6 } else { 0 };
    v4 | v6
}

fn same_addresses(value: &Endpoint, plan: &EndpointPlan) -> bool {
    value.families == families(plan)
        && value.port_be == plan.port.to_be()
        && plan
            .v4
            .is_none_or(|a| value.v4_be == V4::from_bytes(a.octets()))
        && plan
            .v6
            .is_none_or(|a| value.v6_be == V6::from_bytes(a.octets()))
}
