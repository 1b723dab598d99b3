//! Signs beside the checks: which of them make checks, and which count as failures.
//!
//! An endpoint that is down is left to the grid of its checks: a sign of failure says
//! nothing new of it, and it shall come up as slowly as it always does.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::debug;

use super::{Result, Service, Services, telling};
use crate::{
    config::Observe,
    core::{Observer, Signalled, Whose},
    datapath::{EndpointId, Forward, Steering},
    failover::orders::Mode,
    health::{
        Kind, Saw, Signal, State, Verdict,
        scheduler::Trigger,
        silence::{Thought, Watch, doubted_after},
    },
};

/// More than the unit in which silence is told.
const GRAIN: Duration = Duration::from_micros(100);

impl Services {
    /// There was a sign that an endpoint may have failed.
    pub fn signalled<D: Steering>(
        &mut self,
        signalled: Signalled,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let Signalled { whose, signal } = signalled;
        let Some((s, e)) = self.find(whose) else {
            debug!(?whose, signal = signal.label(), "about nobody of ours");
            return Ok(());
        };
        let service = &mut self.all[s];
        service.count_signal(e, signal, observer);
        if service.failover.mode(e) == Mode::Maint {
            return Ok(());
        }
        if service.endpoints[e].health.state() == State::Down {
            return Ok(());
        }
        // Who answers others has lost one client's SYN.
        let id = service.endpoints[e].id;
        let counts = signal != Signal::Unanswered || {
            let timeout = service.config.check().timeout();
            let silent = datapath.silent(doubted_after(timeout))?;
            silent.iter().any(|silent| silent.endpoint == id)
        };
        let errors = match service.config.observe() {
            Observe::Off if signal.is_of_client() => return Ok(()),
            Observe::MarkDown { .. } if signal.is_of_client() && counts => {
                let endpoint = &mut service.endpoints[e];
                endpoint.failing.get_or_insert(now);
                let errors = &mut endpoint.errors;
                let Some(errors) = errors.as_mut().and_then(|errors| errors.failed()) else {
                    return Ok(());
                };
                errors
            }
            Observe::Off | Observe::Trigger | Observe::MarkDown { .. } => {
                if let Some(trigger) = &service.endpoints[e].trigger {
                    trigger.pull();
                }
                return Ok(());
            }
        };
        let Some(state) = service.endpoints[e].health.take_down() else {
            return Ok(());
        };
        let switch = service.failover.observe(e, state, now);
        service.carry_out(switch.as_ref(), now, datapath)?;
        // The kernel knows; now people may.
        service.tell_observed(e, signal, errors, observer);
        service.tell_switch(switch, observer);
        service.tell_damping(observer);
        self.reckon();
        Ok(())
    }

    /// Watches for silence wherever it leads to anything.
    pub(super) fn watch(&mut self, now: Instant) {
        let observed = self.all.iter().filter(|service| service.is_listened_to());
        let shortest = observed
            .map(|service| service.config.check().timeout())
            .min();
        self.watch = shortest.map(|shortest| Watch::new(shortest, now));
    }

    /// When [`Services::look`] has something to do.
    pub fn look_due(&self) -> Option<Instant> {
        self.watch.map(|watch| watch.due())
    }

    /// Looks for endpoints that are silent towards clients that connect. Tells whether there may
    /// be one: see [`Services::judge_silence`].
    pub fn look<D: Steering>(&mut self, now: Instant, datapath: &D) -> Result<bool> {
        let Some(watch) = &mut self.watch else {
            return Ok(false);
        };
        watch.look(now);
        Ok(!datapath.silent(watch.least())?.is_empty())
    }

    /// Judges them.
    pub fn judge_silence<D: Steering>(
        &mut self,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let Some(watch) = self.watch else {
            return Ok(());
        };
        for silent in datapath.silent(watch.least())? {
            let id = silent.endpoint;
            let Some((s, e)) = self.steered(id) else {
                datapath.heard(id);
                continue;
            };
            let service = &mut self.all[s];
            let endpoint = &mut service.endpoints[e];
            if endpoint.health.state() == State::Down {
                datapath.heard(id);
                continue;
            }
            let watched = watch.watched(silent.lasts, now);
            let since = now.checked_sub(silent.lasts).unwrap_or(now);
            let timeout = service.config.check().timeout();
            if let Some(watch) = &mut self.watch {
                watch.expect(since + timeout + GRAIN);
            }
            let packets = || datapath.packets_from(id);
            match endpoint
                .silence
                .judge(silent.since, watched, timeout, packets)
            {
                Thought::Nothing => {}
                // The others too, who may show that it is not this node.
                Thought::Doubt if service.is_listened_to() => {
                    let triggers = service.endpoints.iter().filter_map(|e| e.trigger.as_ref());
                    triggers.for_each(Trigger::pull);
                }
                Thought::Doubt => {}
                Thought::Silent if !self.witnessed(s, e, since) => {}
                Thought::Silent => {
                    datapath.heard(id);
                    let signalled = Signalled {
                        whose: Whose::Steered(self.all[s].id, id),
                        signal: Signal::Silent,
                    };
                    self.signalled(signalled, now, datapath, observer)?;
                }
            }
        }
        Ok(())
    }

    fn steered(&self, id: EndpointId) -> Option<(usize, usize)> {
        let mut services = self.all.iter().enumerate();
        services.find_map(|(s, service)| {
            let e = service.endpoints.iter().position(|e| e.id == id)?;
            Some((s, e))
        })
    }

    /// The endpoint that a sign is about. Of a check before the endpoint moved, and of an
    /// id that is retired, there is none.
    fn find(&self, whose: Whose) -> Option<(usize, usize)> {
        match whose {
            Whose::Checked(key) => {
                let (s, e) = self.place(key.service, key.endpoint)?;
                let current = self.all[s].endpoints[e].generation == key.generation;
                current.then_some((s, e))
            }
            Whose::Steered(service, endpoint) => {
                let s = self.all.iter().position(|s| s.id == service)?;
                let mut endpoints = self.all[s].endpoints.iter();
                let e = endpoints.position(|e| e.id == endpoint)?;
                Some((s, e))
            }
        }
    }
}

impl Service {
    /// Does what its clients notice lead to anything, and are they seen?
    fn is_listened_to(&self) -> bool {
        self.config.observe() != Observe::Off && self.config.forward() != Forward::Dsr
    }

    fn count_signal(&mut self, e: usize, signal: Signal, observer: &dyn Observer) {
        self.endpoints[e].signals.count(signal);
        let (service, endpoint) = (self.config.name(), self.config.endpoints()[e].name());
        debug!(service, endpoint, signal = signal.label(), "signal");
        observer.signalled(service, endpoint, signal);
    }

    /// Clients' failed connections took the endpoint down.
    fn tell_observed(&mut self, e: usize, last: Signal, errors: u32, observer: &dyn Observer) {
        let endpoint = &mut self.endpoints[e];
        endpoint.since = SystemTime::now();
        let verdict = Verdict {
            kind: Kind::Observed,
            status: None,
            latency: Duration::ZERO,
            note: format!(
                "{errors} connections of clients failed in a row, the last: {}",
                last.label()
            )
            .into(),
            saw: Saw::NOTHING,
        };
        let (service, name) = (self.config.name(), self.config.endpoints()[e].name());
        let state = endpoint.health.state();
        telling::tell_state(&self.journal, observer, (service, name), state, &verdict);
        endpoint.conclude(verdict);
    }
}
