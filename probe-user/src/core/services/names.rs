//! Endpoints whose name has no address.
//!
//! One of which no address is known is *nowhere*: it is down with the verdict `dns`, weighs
//! nothing, so nobody can select it, and has no checks. Its first address makes it one of which
//! nothing is known, and its first check decides, as at a start.
//!
//! One whose name stops resolving keeps its last address, which is said once. Where the
//! configuration gives that an end ([`config::Holds`]) it goes down then, with the same verdict,
//! and is not checked: the address may be another's by now. What becomes of its connections
//! `on_marked_down` says. It still weighs something, since it has an address: with
//! `all_down: keep` it stays selected as the last one that was.
//!
//! While the agent doubts itself nobody goes down because no name server answered.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Endpoint, Result, Service, Services, status, telling};
use crate::{
    config::Holds,
    core::{Lookup, Observer, journal::What},
    datapath::Steering,
    failover::{Switch, cut::Cut},
    health::{Kind, RiseFall, Saw, State, Verdict},
    resolve::{Answer, Unresolved, Why},
};

/// A name without an address.
#[derive(Debug)]
pub(super) struct Lost {
    since: Instant,
    what: Unresolved,
    /// For too long: its last address does not count any more.
    pub over: bool,
}

impl Lost {
    /// For people and programs.
    pub fn status(&self, now: Instant) -> status::Unresolved {
        status::Unresolved {
            since_unix_ms: status::unix_ms(telling::wall_clock(self.since, now)),
            why: self.what.why.label().to_owned(),
            reason: self.what.reason.clone(),
            down: self.over,
        }
    }
}

impl Services {
    /// DNS answered, or did not.
    pub fn looked_up<D: Steering>(
        &mut self,
        lookup: Lookup,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let Some((s, e)) = self.place(lookup.service, lookup.endpoint) else {
            return Ok(());
        };
        let holds = self.holds;
        let cut = self.all[s].cut.as_ref();
        let doubts = self.distrust.since().is_some() || cut.is_some_and(Cut::holds);
        let service = &mut self.all[s];
        let known = service.endpoints[e].is_nowhere();
        let moved = match &lookup.answer {
            Ok(answers) => service.move_to(e, answers, datapath, observer)?,
            Err(_) => false,
        };
        let lost = match lookup.answer {
            Err(lost) => Some(lost),
            Ok(_) if service.endpoints[e].at.is_empty() => Some(Unresolved::families()),
            Ok(_) => None,
        };
        match lost {
            Some(lost) => {
                service.lose(e, lost, now, observer);
                if service.is_over(e, holds, doubts, now) {
                    service.give_up(e, now, datapath, observer)?;
                }
            }
            None => service.find(e, known, now, datapath, observer)?,
        }
        if (moved || known && !service.endpoints[e].is_nowhere())
            && let Some(start) = &mut self.start_checks
        {
            service.start_check(e, service.begin_now(), start);
        }
        self.reckon();
        Ok(())
    }
}

impl Service {
    /// Says once that a name does not resolve.
    fn lose(&mut self, e: usize, what: Unresolved, now: Instant, observer: &dyn Observer) {
        let endpoint = &mut self.endpoints[e];
        if let Some(lost) = &mut endpoint.unresolved {
            lost.what = what;
            return;
        }
        let config = &self.config.endpoints()[e];
        let (service, name) = (self.config.name(), config.name());
        let kept: Vec<_> = endpoint.at.addresses().map(|at| at.to_string()).collect();
        let address = config.address();
        match kept.as_slice() {
            [] => warn!(
                service,
                endpoint = name,
                why = what.why.label(),
                "{address} does not resolve, and is down until it does: {}",
                what.reason
            ),
            _ => warn!(
                service,
                endpoint = name,
                why = what.why.label(),
                "{address} does not resolve and keeps its last address: {}",
                what.reason
            ),
        }
        self.journal.tell(What::Name {
            service: service.to_owned(),
            endpoint: name.to_owned(),
            resolves: false,
            why: Some(what.why.label().to_owned()),
            reason: Some(what.reason.clone()),
            kept,
        });
        observer.unresolved(service, name, true);
        endpoint.unresolved = Some(Lost {
            since: now,
            what,
            over: false,
        });
    }

    /// Shall an endpoint go down because its name does not resolve?
    fn is_over(&self, e: usize, holds: Holds, doubts: bool, now: Instant) -> bool {
        let endpoint = &self.endpoints[e];
        let Some(lost) = endpoint.unresolved.as_ref().filter(|lost| !lost.over) else {
            return false;
        };
        let hold = match lost.what.why {
            Why::Nx => holds.nx,
            Why::Failure if doubts => None,
            Why::Failure => holds.failure,
        };
        let past = |hold: Duration| now.saturating_duration_since(lost.since) >= hold;
        endpoint.at.is_empty() || hold.is_some_and(past)
    }

    fn give_up<D: Steering>(
        &mut self,
        e: usize,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let check = self.config.check();
        let health = RiseFall::new(check.rise(), check.fall(), State::Unknown);
        let endpoint = &mut self.endpoints[e];
        let Some(lost) = &mut endpoint.unresolved else {
            return Ok(());
        };
        lost.over = true;
        let note = format!(
            "{} does not resolve: {}",
            self.config.endpoints()[e].address(),
            lost.what.reason
        );
        // What is on its way of its checks is nobody's.
        endpoint.generation += 1;
        (endpoint.running, endpoint.trigger) = (None, None);
        endpoint.health = health;
        (endpoint.fell, endpoint.failing, endpoint.withheld) = (None, None, false);
        endpoint.judged = true;
        self.slow_start.down(e);
        let switch = self.failover.observe(e, State::Down, now);
        self.carry_out(switch.as_ref(), now, datapath)?;
        // The kernel knows; now people may.
        self.tell_name(e, note, observer);
        self.tell_switch(switch, observer);
        self.tell_damping(observer);
        Ok(())
    }

    /// A name has an address. `was_nowhere` says that none was in effect.
    fn find<D: Steering>(
        &mut self,
        e: usize,
        was_nowhere: bool,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let endpoint = &mut self.endpoints[e];
        let lost = endpoint.unresolved.take();
        let (config, service) = (&self.config.endpoints()[e], self.config.name());
        let at: Vec<_> = endpoint.at.addresses().map(|at| at.to_string()).collect();
        if lost.is_some() {
            let (name, address) = (config.name(), config.address());
            info!(service, endpoint = name, "{address} resolves again");
            self.journal.tell(What::Name {
                service: service.to_owned(),
                endpoint: name.to_owned(),
                resolves: true,
                why: None,
                reason: None,
                kept: at.clone(),
            });
            observer.unresolved(service, name, false);
        }
        if !was_nowhere {
            return Ok(());
        }
        let note = format!("{} is at {}", config.address(), at.join(", "));
        let mut switches: Vec<Switch> = Vec::new();
        let (weighs, state) = (self.weighs(e), self.endpoints[e].state());
        switches.extend(self.failover.weigh(e, weighs, now));
        switches.extend(self.failover.observe(e, state, now));
        self.carry_out(switches.last(), now, datapath)?;
        self.tell_name(e, note, observer);
        for switch in switches {
            self.tell_switch(Some(switch), observer);
        }
        self.tell_damping(observer);
        Ok(())
    }

    /// May an endpoint have new connections, as far as it and its configuration say? One without
    /// an address may not.
    pub(super) fn weighs(&self, e: usize) -> bool {
        let endpoint = &self.endpoints[e];
        let weight = self.config.endpoints()[e].weight();
        weight > 0 && endpoint.wishes.serves() && !endpoint.at.is_empty()
    }

    /// Says in which state an endpoint is by its name.
    fn tell_name(&mut self, e: usize, note: String, observer: &dyn Observer) {
        let endpoint = &mut self.endpoints[e];
        endpoint.since = SystemTime::now();
        let verdict = Verdict {
            kind: Kind::Dns,
            status: None,
            latency: Duration::ZERO,
            note: note.into(),
            saw: Saw::NOTHING,
        };
        let (service, name) = (self.config.name(), self.config.endpoints()[e].name());
        let state = endpoint.state();
        telling::tell_state(&self.journal, observer, (service, name), state, &verdict);
        if state == State::Down {
            endpoint.conclude(verdict);
        } else {
            // Nobody has judged it where it is now.
            endpoint.verdict = None;
        }
    }
}

impl Endpoint {
    /// Is there no address in effect?
    pub(super) fn is_nowhere(&self) -> bool {
        self.at.is_empty() || self.unresolved.as_ref().is_some_and(|lost| lost.over)
    }
}

/// What a first round of lookups did not find.
pub fn failed(service: usize, endpoint: usize, lost: Unresolved) -> Lookup {
    let answer: Answer = Err(lost);
    Lookup {
        service,
        endpoint,
        answer,
    }
}
