//! What endpoints say of themselves, beside what their checks say.
//!
//! As in HAProxy an endpoint is up while neither its checks nor its agent say otherwise: an agent
//! that said `down` must say `up`, and checks must be good too. `maint` is down as well, but
//! checks go on, so its state is known when it is over. Who wants no new clients (`drain`, or
//! `0%`) is left as one that is up: `on_failback` says what becomes of its connections. When
//! nobody else is there the service does as when all are down.
//!
//! What an agent says is its own matter: orders of operators are kept elsewhere, and neither
//! replaces the other.

use std::time::SystemTime;

use tokio::time::Instant;
use tracing::info;

use super::{Endpoint, Result, Service, Services, telling};
use crate::{
    core::{AgentSaid, Observer},
    datapath::Steering,
    failover::Switch,
    health::{Kind, Saw, State, Verdict},
};

impl Services {
    /// An endpoint's agent answered.
    pub fn agent_said<D: Steering>(
        &mut self,
        answer: &AgentSaid,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let (key, said) = (answer.key, &answer.said);
        // Of one that has left the configuration.
        let Some((s, e)) = self.place(key.service, key.endpoint) else {
            return Ok(());
        };
        let service = &mut self.all[s];
        let endpoint = &mut service.endpoints[e];
        let before = endpoint.state();
        // Of the address before the endpoint moved, or nothing new.
        if endpoint.generation != key.generation || !endpoint.wishes.hear(said) {
            return Ok(());
        }
        let state = endpoint.state();
        let weighs = service.weighs(e);
        let mut switches: Vec<Switch> = Vec::new();
        if state != before {
            match state {
                State::Up => service.slow_start.up(e, now),
                State::Down => service.slow_start.down(e),
                State::Unknown => {}
            }
            // Whether it is fit for all that clients wait for is not withheld.
            let switch = service.failover.observe(e, state, now);
            service.carry_out(switch.as_ref(), now, datapath)?;
            switches.extend(switch);
        }
        let switch = service.failover.weigh(e, weighs, now);
        service.carry_out(switch.as_ref(), now, datapath)?;
        switches.extend(switch);
        // Its share may be another one, too.
        service.write_shares(datapath)?;
        // The kernel knows; now people may.
        service.tell_said(e, state != before, observer);
        for switch in switches {
            service.tell_switch(Some(switch), observer);
        }
        service.tell_damping(observer);
        self.reckon();
        Ok(())
    }
}

impl Service {
    fn tell_said(&mut self, e: usize, changed: bool, observer: &dyn Observer) {
        let endpoint = &mut self.endpoints[e];
        let (service, name) = (self.config.name(), self.config.endpoints()[e].name());
        let state = endpoint.state();
        let said = endpoint.wishes.to_string();
        if !changed {
            info!(service, endpoint = name, "its agent says: {said}");
            return;
        }
        endpoint.since = SystemTime::now();
        let verdict = Verdict {
            kind: Kind::AgentSaid,
            status: None,
            latency: std::time::Duration::ZERO,
            note: format!("its agent says: {said}").into(),
            saw: Saw::NOTHING,
        };
        telling::tell_state(&self.journal, observer, (service, name), state, &verdict);
        endpoint.conclude(verdict);
    }
}

impl Endpoint {
    /// What its checks, its agent and its name say together.
    pub(super) fn state(&self) -> State {
        if self.wishes.down() || self.is_nowhere() {
            State::Down
        } else {
            self.health.state()
        }
    }
}
