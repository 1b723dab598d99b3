//! What the status page remembers, so that who opens it sees what was before.
//!
//! Bounded for each service and endpoint: the last changes, and the durations of checks of
//! the last minutes. The core sends changes when they happen ([`Feed`]) and never waits for the
//! page: what finds no room is not remembered. States and durations come with each status.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    core::status::{self, Status, unix_ms},
    failover::Reason,
    health::State,
};

/// Changes of a service that are remembered.
const CHANGES: usize = 64;
/// Durations of an endpoint that are remembered: three minutes of seconds.
const SAMPLES: usize = 180;
/// Changes that wait for the page.
const WAITING: usize = 1024;

/// Something happened to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    at_unix_ms: u64,
    service: String,
    what: News,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    State { endpoint: String, state: State },
    Switched(Reason),
    Selected(Vec<String>),
}

/// Where the core's changes go; nowhere before somebody subscribes.
#[derive(Clone, Debug, Default)]
pub struct Feed(Arc<OnceLock<mpsc::Sender<Happened>>>);

impl Feed {
    /// All changes from now on. Only the first who asks gets them.
    pub fn subscribe(&self) -> Option<mpsc::Receiver<Happened>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.0.set(sender).ok().map(|()| receiver)
    }

    /// An endpoint is in another state.
    pub fn state(&self, service: &str, endpoint: &str, state: State) {
        self.tell(service, || News::State {
            endpoint: endpoint.to_owned(),
            state,
        });
    }

    /// The selection changed; to what comes next.
    pub fn switched(&self, service: &str, reason: Reason) {
        self.tell(service, || News::Switched(reason));
    }

    /// New connections go there.
    pub fn selected(&self, service: &str, endpoints: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        self.tell(service, || News::Selected(owned(endpoints)));
    }

    fn tell(&self, service: &str, what: impl FnOnce() -> News) {
        let Some(sender) = self.0.get() else { return };
        // Full: nobody reads. Closed: the agent ends.
        let _ = sender.try_send(Happened {
            at_unix_ms: unix_ms(SystemTime::now()),
            service: service.to_owned(),
            what: what(),
        });
    }
}

/// A change, as the page is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub at_unix_ms: u64,
    pub service: String,
    #[serde(flatten)]
    pub what: What,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    State {
        endpoint: String,
        from: Option<String>,
        to: String,
        /// What the last check said.
        detail: Option<String>,
    },
    Switch {
        from: Vec<String>,
        to: Vec<String>,
        reason: &'static str,
    },
}

/// When a status was taken, and the median and 99th percentile of an endpoint's last checks, in
/// microseconds.
type Sample = (u64, u32, u32);

/// All that is remembered.
#[derive(Debug, Default)]
pub struct History {
    services: BTreeMap<String, Service>,
}

#[derive(Debug, Default)]
struct Service {
    changes: VecDeque<Change>,
    selected: Vec<String>,
    /// A switch whose target has not come yet.
    pending: Option<(u64, Reason)>,
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Default)]
struct Endpoint {
    state: Option<String>,
    samples: VecDeque<Sample>,
}

/// What a newcomer is told of the past.
#[derive(Serialize)]
pub struct Past<'a> {
    changes: Vec<&'a Change>,
    samples: BTreeMap<&'a str, BTreeMap<&'a str, &'a VecDeque<Sample>>>,
}

impl History {
    /// Takes in what happened; gives back what there is to tell of it.
    pub fn happened(&mut self, news: Happened, status: &Status) -> Option<Change> {
        let service = self.services.entry(news.service.clone()).or_default();
        let mut at_unix_ms = news.at_unix_ms;
        let what = match news.what {
            News::Switched(reason) => {
                service.pending = Some((at_unix_ms, reason));
                return None;
            }
            News::Selected(to) => {
                let from = std::mem::replace(&mut service.selected, to.clone());
                let (at, reason) = service.pending.take()?;
                at_unix_ms = at;
                let reason = reason.label();
                What::Switch { from, to, reason }
            }
            News::State { endpoint, state } => {
                let to = state.label().to_owned();
                let known = service.endpoints.entry(endpoint.clone()).or_default();
                let from = known.state.replace(to.clone());
                let now = find(status, &news.service, &endpoint);
                // Only if it is about that state still.
                let detail = now.filter(|now| now.state == to);
                What::State {
                    detail: detail.and_then(|now| now.detail.clone()),
                    endpoint,
                    from,
                    to,
                }
            }
        };
        let change = Change {
            at_unix_ms,
            service: news.service,
            what,
        };
        if service.changes.len() == CHANGES {
            service.changes.pop_front();
        }
        service.changes.push_back(change.clone());
        Some(change)
    }

    /// Takes in a status: what is so now, and how long checks took.
    pub fn sample(&mut self, status: &Status, now_unix_ms: u64) {
        self.services
            .retain(|name, _| status.services.iter().any(|s| s.name == *name));
        for of in &status.services {
            let service = self.services.entry(of.name.clone()).or_default();
            service.selected.clone_from(&of.selection.endpoints);
            let there = |name: &String| of.endpoints.iter().any(|e| e.name == *name);
            service.endpoints.retain(|name, _| there(name));
            for of in &of.endpoints {
                let endpoint = service.endpoints.entry(of.name.clone()).or_default();
                endpoint.state = Some(of.state.clone());
                if let Some(durations) = of.durations {
                    if endpoint.samples.len() == SAMPLES {
                        endpoint.samples.pop_front();
                    }
                    let sample = (now_unix_ms, durations.p50_us, durations.p99_us);
                    endpoint.samples.push_back(sample);
                }
            }
        }
    }

    /// For a newcomer.
    pub fn past(&self) -> Past<'_> {
        let mut changes: Vec<_> = self.services.values().flat_map(|s| &s.changes).collect();
        changes.sort_by_key(|change| change.at_unix_ms);
        let samples = self.services.iter().map(|(name, service)| {
            let endpoints = service.endpoints.iter();
            let samples = endpoints.map(|(name, e)| (name.as_str(), &e.samples));
            (name.as_str(), samples.collect())
        });
        Past {
            samples: samples.collect(),
            changes,
        }
    }
}

fn find<'a>(status: &'a Status, service: &str, endpoint: &str) -> Option<&'a status::Endpoint> {
    let service = status.services.iter().find(|s| s.name == service)?;
    service.endpoints.iter().find(|e| e.name == endpoint)
}
