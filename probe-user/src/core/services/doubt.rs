//! What becomes of endpoints that go down while the agent doubts itself.
//!
//! Their state is said as it is, and withheld from the failover, the drains and the kernel: for
//! them the endpoint still is up, so selections stay and no connection is reset. When the doubt
//! is over each is checked at once, and told of if that fails; who comes up meanwhile was never
//! down.

use std::net::IpAddr;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Endpoint, Result, Service, Services, What};
use crate::{
    core::Observer,
    datapath::Steering,
    failover::distrust::{self, Witness},
    health::{Kind, State},
};

impl Services {
    /// An endpoint has gone down by this verdict. Shall the failover not be told?
    pub(super) fn withholds(
        &mut self,
        s: usize,
        e: usize,
        kind: Kind,
        now: Instant,
        observer: &dyn Observer,
    ) -> bool {
        let before = self.distrust.since();
        let all = self.all.iter().enumerate();
        let witnesses = all.flat_map(|(s, service)| {
            let endpoints = service.endpoints.iter().enumerate();
            endpoints.filter_map(move |(e, endpoint)| {
                let silent = service.silence(endpoint, now)?;
                Some((s, e, service.witness(endpoint, silent)))
            })
        });
        let itself = self.all[s].witness(&self.all[s].endpoints[e], true);
        let others = witnesses.filter(|(of, at, _)| (*of, *at) != (s, e));
        let witnesses = others.map(|(.., witness)| witness);
        let doubts = self.distrust.doubts(kind, witnesses.chain([itself]), now);
        if doubts && before.is_none() {
            observer.distrusts(true);
            self.journal.tell(What::Distrust { doubts: true });
            warn!(
                longest_ms = u64::try_from(distrust::LONGEST.as_millis()).unwrap_or(u64::MAX),
                "endpoints of all hosts have fallen silent together: perhaps it is this node; \
                 selections are held until any of them says a word"
            );
        }
        // Even so: it may tell why.
        let cut_off = self.is_cut_off(s, e, kind, now, observer);
        doubts || cut_off
    }

    /// Has anybody on another host been heard since then, or is there nobody, or no doubt to be had?
    /// Else the silence of one endpoint is perhaps this node's.
    pub(super) fn witnessed(&self, s: usize, e: usize, since: Instant) -> bool {
        let host = |s: usize, e: usize| {
            let service = &self.all[s];
            service.witness(&service.endpoints[e], true).host
        };
        let own = host(s, e);
        let mut others = self.all.iter().enumerate().flat_map(|(s, service)| {
            let endpoints = service.endpoints.iter().enumerate();
            let up = endpoints.filter(|(_, endpoint)| endpoint.health.state() == State::Up);
            up.filter(move |(e, _)| host(s, *e) != own)
                .map(|(_, endpoint)| endpoint.heard >= Some(since))
        });
        let first = others.next();
        !self.distrust.is_on() || first.is_none_or(|heard| heard || others.any(|heard| heard))
    }

    /// Somebody said a word: the others are asked.
    pub(super) fn ask_again(&self, observer: &dyn Observer) {
        observer.distrusts(false);
        self.journal.tell(What::Distrust { doubts: false });
        info!("an endpoint says a word: it is not this node; all are judged by their next check");
        self.all.iter().for_each(Service::ask_withheld);
    }

    /// The time of doubt is over: what was withheld is so.
    pub(super) fn believe<D: Steering>(
        &mut self,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let reached = |service: &&mut Service| service.cut.as_ref().is_none_or(|cut| !cut.holds());
        for service in self.all.iter_mut().filter(reached) {
            service.believe(now, datapath, observer)?;
        }
        self.reckon();
        Ok(())
    }
}

impl Service {
    /// The host that an endpoint's checks go to.
    pub(super) fn host(&self, endpoint: &Endpoint) -> Option<IpAddr> {
        let mut each = self.config.check().each().iter();
        let reach = each.find_map(|each| each.kind().reach());
        let at = endpoint.at.addresses().next()?;
        let target = reach.map_or(at, |reach| reach.target(at));
        Some(target.ip())
    }

    /// Where an endpoint's checks go, and what it says.
    fn witness(&self, endpoint: &Endpoint, silent: bool) -> Witness {
        let host = self.host(endpoint);
        Witness { host, silent }
    }

    /// Is an endpoint silent that is up, or was a short time ago? Nothing of others.
    pub(super) fn silence(&self, endpoint: &Endpoint, now: Instant) -> Option<bool> {
        let last = endpoint.verdict.as_ref();
        let silent = last.is_some_and(|verdict| distrust::is_silence(verdict.kind));
        match endpoint.health.state() {
            State::Unknown => None,
            State::Up => Some(silent && endpoint.health.undecided()),
            State::Down => {
                let together = distrust::TOGETHER.max(self.config.check().inter() * 2);
                let ago = now.saturating_duration_since(endpoint.fell?);
                (ago <= together).then_some(silent)
            }
        }
    }

    fn believe<D: Steering>(
        &mut self,
        now: Instant,
        datapath: &mut D,
        observer: &dyn Observer,
    ) -> Result {
        let mut withheld: Vec<_> = (0..self.endpoints.len())
            .filter(|e| std::mem::take(&mut self.endpoints[*e].withheld))
            .collect();
        // Backups first: the master is not left for one that is down too.
        let tier = |e: &usize| self.config.endpoints()[*e].tier();
        withheld.sort_by_key(|e| std::cmp::Reverse(tier(e)));
        if !withheld.is_empty() {
            let service = self.config.name();
            warn!(
                service,
                "no word for so long: its endpoints are believed to be down"
            );
        }
        for e in withheld {
            let state = self.endpoints[e].health.state();
            let switch = self.failover.observe(e, state, now);
            self.carry_out(switch.as_ref(), now, datapath)?;
            self.tell_switch(switch, observer);
            self.tell_damping(observer);
        }
        Ok(())
    }
}

impl Endpoint {
    /// Is it down, as far as that is believed?
    pub(super) fn is_down(&self) -> bool {
        self.wishes.down()
            || self.is_nowhere()
            || self.health.state() == State::Down && !self.withheld
    }
}
