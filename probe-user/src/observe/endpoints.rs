//! What is counted by endpoint: plain numbers, of which each scrape makes series.
//!
//! An endpoint has some sixty series. As objects of a registry, each with labels of its own, they
//! took more memory than all else that the agent knows of an endpoint; here they take less than
//! half a KiB. Names and labels are written when somebody asks.
//!
//! Counters are there, at zero, from the time that the endpoint is known, because a rate needs the
//! value before the first increment. A gauge is there once it was said.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{
    datapath::EndpointId,
    failover::orders::Mode,
    health::{Kind, Signal, State, Verdict, scheduler::Standing},
};

/// From a local answer to the longest sensible timeout, in seconds.
const BUCKETS: [f64; 15] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

/// Who gets challenges.
pub const CHALLENGED: [&str; 2] = ["client", "endpoint"];

/// Every state.
const STATES: [State; 3] = [State::Unknown, State::Up, State::Down];

/// What is counted of one.
#[derive(Clone, Debug)]
pub struct Figures {
    /// As the kernel knows it.
    pub id: EndpointId,
    /// In the order of [`Kind::ALL`].
    checks: [u64; Kind::ALL.len()],
    skipped: u64,
    /// In the order of [`Standing::EXCUSES`].
    excused: [u64; Standing::EXCUSES.len()],
    /// In the order of [`Signal::ALL`].
    signals: [u64; Signal::ALL.len()],
    /// By [`BUCKETS`], and those beyond.
    durations: [u64; BUCKETS.len() + 1],
    seconds: f64,
    /// In the order of [`CHALLENGED`].
    pub challenges: [u64; CHALLENGED.len()],
    /// SYNs that were sent on.
    pub released: u64,
    /// Connections that were told of their end.
    pub told: u64,
    /// Those that were not.
    pub not_told: u64,
    /// What its checks say.
    pub state: Option<State>,
    /// What operators say.
    pub mode: Option<Mode>,
    /// Do new connections go there?
    pub selected: Option<bool>,
    /// Does it have flows from before it was left?
    pub draining: Option<bool>,
    /// Has its name no address?
    pub unresolved: Option<bool>,
    /// Tier and weight.
    pub place: Option<(u8, u16)>,
}

impl Figures {
    fn new(id: EndpointId) -> Self {
        Self {
            id,
            checks: [0; Kind::ALL.len()],
            skipped: 0,
            excused: [0; Standing::EXCUSES.len()],
            signals: [0; Signal::ALL.len()],
            durations: [0; BUCKETS.len() + 1],
            seconds: 0.0,
            challenges: [0; CHALLENGED.len()],
            released: 0,
            told: 0,
            not_told: 0,
            state: None,
            mode: None,
            selected: None,
            draining: None,
            unresolved: None,
            place: None,
        }
    }

    /// A check was made, after so many that were left out.
    pub fn checked(&mut self, verdict: &Verdict, skipped: u64) {
        self.skipped += skipped;
        // Of the kinds that no check concludes there is no counter.
        if let Some(count) = self.checks.get_mut(verdict.kind as usize) {
            *count += 1;
        }
        let seconds = verdict.latency.as_secs_f64();
        let bucket = BUCKETS.iter().position(|end| seconds <= *end);
        self.durations[bucket.unwrap_or(BUCKETS.len())] += 1;
        self.seconds += seconds;
    }

    /// One whose verdict does not count.
    pub fn excused(&mut self, standing: Standing) {
        let place = Standing::EXCUSES.iter().position(|of| *of == standing);
        if let Some(place) = place {
            self.excused[place] += 1;
        }
    }

    /// There was a sign of failure.
    pub fn signalled(&mut self, signal: Signal) {
        let place = Signal::ALL.iter().position(|of| *of == signal);
        if let Some(place) = place {
            self.signals[place] += 1;
        }
    }
}

type OfService = BTreeMap<Arc<str>, Box<Figures>>;

/// Of all endpoints, by service and name; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(Arc<Mutex<BTreeMap<Arc<str>, OfService>>>);

/// What they are at one time, by service.
pub struct Seen(Vec<(Arc<str>, OfService)>);

impl Endpoints {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, OfService>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoint is there, and the kernel knows it so.
    pub fn identified(&self, service: &str, endpoint: &str, id: EndpointId) {
        let mut all = self.all();
        if !all.contains_key(service) {
            all.insert(service.into(), OfService::new());
        }
        let Some(of) = all.get_mut(service) else {
            return;
        };
        match of.get_mut(endpoint) {
            Some(figures) => figures.id = id,
            None => _ = of.insert(endpoint.into(), Box::new(Figures::new(id))),
        }
    }

    /// Changes one, if it is there.
    pub fn change(&self, service: &str, endpoint: &str, change: impl FnOnce(&mut Figures)) {
        let mut all = self.all();
        let figures = all.get_mut(service).and_then(|of| of.get_mut(endpoint));
        if let Some(figures) = figures {
            change(figures);
        }
    }

    /// Changes all of a service.
    pub fn each(&self, service: &str, mut change: impl FnMut(&str, &mut Figures)) {
        if let Some(of) = self.all().get_mut(service) {
            of.iter_mut()
                .for_each(|(name, figures)| change(name, figures));
        }
    }

    /// Changes all.
    pub fn every(&self, mut change: impl FnMut(&mut Figures)) {
        let mut all = self.all();
        let figures = all.values_mut().flat_map(OfService::values_mut);
        figures.for_each(|figures| change(figures));
    }

    /// Nobody shall hear of it again.
    pub fn forget(&self, service: &str, endpoint: &str) {
        if let Some(of) = self.all().get_mut(service) {
            of.remove(endpoint);
        }
    }

    /// Nor of a whole service.
    pub fn forget_service(&self, service: &str) {
        self.all().remove(service);
    }

    /// A copy, a service after the other: whoever counts waits for one of them at most.
    pub fn seen(&self) -> Seen {
        let names: Vec<_> = self.all().keys().cloned().collect();
        let of = |name: Arc<str>| {
            let figures = self.all().get(&name).cloned()?;
            Some((name, figures))
        };
        Seen(names.into_iter().filter_map(of).collect())
    }
}

/// A label that a series has beside service and endpoint.
type More = Option<(&'static str, &'static str)>;

/// Takes the series of one endpoint.
type Put<'a> = &'a mut dyn FnMut(More, u64) -> fmt::Result;

impl Seen {
    /// Names and numbers of all.
    pub fn ids(&self) -> impl Iterator<Item = (&str, &str, EndpointId)> {
        self.iter()
            .map(|(service, name, of)| (service, name, of.id))
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str, &Figures)> {
        self.0.iter().flat_map(|(service, of)| {
            let one = move |(name, of)| -> (&str, &str, &Figures) { (service, name, of) };
            of.iter()
                .map(|(name, of)| (name.as_ref(), of.as_ref()))
                .map(one)
        })
    }

    fn family(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, kind): (&str, &str, MetricType),
        each: impl Fn(&Figures, Put<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (service, endpoint, figures) in self.iter() {
            each(figures, &mut |more, value| {
                let labels = [
                    ("service", service),
                    ("endpoint", endpoint),
                    more.unwrap_or_default(),
                ];
                let labels = &labels[..if more.is_some() { 3 } else { 2 }];
                let series = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(series),
                    _ => ConstGauge::new(value).encode(series),
                }
            })?;
        }
        Ok(())
    }

    /// Everything but what the kernel counts.
    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_checks(encoder)?;
        self.encode_durations(encoder)?;
        self.encode_told(encoder)?;
        self.encode_standing(encoder)
    }

    fn encode_checks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counter = MetricType::Counter;
        let about = ("checks", "Health checks by verdict", counter);
        self.family(encoder, about, |of, put| {
            let mut each = Kind::ALL.into_iter().zip(of.checks);
            each.try_for_each(|(kind, count)| put(Some(("verdict", kind.label())), count))
        })?;
        let help = "Health checks left out because the one before took longer than the interval";
        let about = ("checks_skipped", help, counter);
        self.family(encoder, about, |of, put| put(None, of.skipped))?;
        let help =
            "Health checks whose verdict does not count, by reason: the agent itself was stalled";
        self.family(encoder, ("checks_excused", help, counter), |of, put| {
            let mut each = Standing::EXCUSES.into_iter().zip(of.excused);
            each.try_for_each(|(why, count)| put(Some(("reason", why.label())), count))
        })?;
        let help = "Signs that the endpoint may have failed, beside its checks, by kind";
        self.family(encoder, ("endpoint_signals", help, counter), |of, put| {
            let mut each = Signal::ALL.into_iter().zip(of.signals);
            each.try_for_each(|(signal, count)| put(Some(("kind", signal.label())), count))
        })
    }

    fn encode_durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from the beginning of a health check to its verdict";
        let (name, kind) = ("check_duration_seconds", MetricType::Histogram);
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (service, endpoint, of) in self.iter() {
            let labels = [("service", service), ("endpoint", endpoint)];
            let ends = BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = ends.zip(of.durations).collect();
            let count = of.durations.iter().sum();
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(of.seconds, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_told(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counter = MetricType::Counter;
        let help = "SYNs sent on open connections of lost endpoints, by whom they went to";
        self.family(encoder, ("flow_challenges", help, counter), |of, put| {
            let mut each = CHALLENGED.into_iter().zip(of.challenges);
            each.try_for_each(|(to, count)| put(Some(("to", to)), count))
        })?;
        let help = "SYNs that waited for an endpoint when it went down, and were sent on at once";
        let about = ("syns_released", help, counter);
        self.family(encoder, about, |of, put| put(None, of.released))?;
        let help =
            "Open connections of lost endpoints that ended after their client was challenged";
        self.family(encoder, ("flows_told", help, counter), |of, put| {
            put(None, of.told)
        })?;
        let help = "Open connections of lost endpoints that were left to their next packet";
        let about = ("flows_not_told", help, counter);
        self.family(encoder, about, |of, put| put(None, of.not_told))
    }

    fn encode_standing(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = MetricType::Gauge;
        let help = "1 for the state that the endpoint is in";
        self.family(encoder, ("endpoint_state", help, gauge), |of, put| {
            let Some(state) = of.state else { return Ok(()) };
            let mut each = STATES.into_iter();
            each.try_for_each(|each| put(Some(("state", each.label())), (each == state).into()))
        })?;
        let help = "1 while the endpoint's name has no address: it keeps its last one, or is down with \
                    the verdict dns";
        self.family(encoder, ("endpoint_unresolved", help, gauge), |of, put| {
            of.unresolved.map_or(Ok(()), |is| put(None, is.into()))
        })?;
        let help = "1 for each endpoint that new connections of the service go to";
        self.family(encoder, ("endpoint_selected", help, gauge), |of, put| {
            of.selected.map_or(Ok(()), |is| put(None, is.into()))
        })?;
        let help = "1 while the endpoint, left for another one, has flows from before";
        self.family(encoder, ("endpoint_draining", help, gauge), |of, put| {
            of.draining.map_or(Ok(()), |is| put(None, is.into()))
        })?;
        let help = "The endpoint's place: 0 is the master, 1 and up are backups";
        self.family(encoder, ("endpoint_tier", help, gauge), |of, put| {
            of.place.map_or(Ok(()), |(tier, _)| put(None, tier.into()))
        })?;
        let help = "The endpoint's share of its tier's connections, in proportion to the others'";
        self.family(encoder, ("endpoint_weight", help, gauge), |of, put| {
            of.place
                .map_or(Ok(()), |(_, weight)| put(None, weight.into()))
        })?;
        let help = "1 for what operators say of the endpoint";
        self.family(encoder, ("endpoint_mode", help, gauge), |of, put| {
            let Some(mode) = of.mode else { return Ok(()) };
            let mut each = Mode::ALL.into_iter();
            each.try_for_each(|each| put(Some(("mode", each.label())), (each == mode).into()))
        })
    }
}
