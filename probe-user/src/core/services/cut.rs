//! Services whose endpoints cannot be reached because of this node's link or gateway.
//!
//! What goes down meanwhile is withheld as it is while the agent doubts itself
//! ([`super::doubt`]); why, [`crate::failover::cut`] has decided.

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Service, Services, What, status, telling};
use crate::{
    core::Observer,
    failover::{
        cut::{Cut, Gone, News, Seen, Ways, together},
        distrust,
        orders::Mode,
    },
    health::{Kind, State},
};

impl Services {
    /// Who is asked for the ways to endpoints.
    pub fn look_by(&mut self, ways: Box<dyn Ways>) {
        self.ways = Some(ways);
    }

    /// An endpoint has gone down without a word. Is it the way?
    pub(super) fn is_cut_off(
        &mut self,
        s: usize,
        e: usize,
        kind: Kind,
        now: Instant,
        observer: &dyn Observer,
    ) -> bool {
        let Some(ways) = &mut self.ways else {
            return false;
        };
        if !self.distrust.is_on() || !distrust::is_silence(kind) {
            return false;
        }
        let service = &mut self.all[s];
        if service.cut.as_ref().is_some_and(Cut::holds) {
            return true;
        }
        let mut seen = service.look(e, ways.as_mut());
        if matches!(seen, Seen::Well | Seen::Forgotten) && service.is_silent(e, now) {
            // Perhaps nobody has noticed yet.
            if let Some(host) = service.host(&service.endpoints[e]) {
                ways.prove(host);
                seen = service.look(e, ways.as_mut());
            }
        }
        let gone = match seen {
            Seen::Gone(gone) => Some(gone),
            Seen::Asked if service.is_silent(e, now) => None,
            Seen::Asked | Seen::Forgotten | Seen::Well => return false,
        };
        if let Some(gone) = &gone {
            service.tell_cut(gone, observer);
        }
        service.cut = Some(Cut::new(gone, now));
        true
    }

    /// An endpoint of a service said a word, so the way is there.
    pub(super) fn reached(&mut self, s: usize, now: Instant, observer: &dyn Observer) {
        let service = &mut self.all[s];
        let Some(cut) = &mut service.cut else { return };
        let proven = cut.gone().is_some();
        if cut.heard(now) {
            service.tell_uncut(proven, observer);
            service.ask_withheld();
        }
    }

    /// Looks again at the ways that are gone.
    pub(super) fn look_again(&mut self, now: Instant, observer: &dyn Observer) {
        let on = self.distrust.is_on();
        let Some(ways) = &mut self.ways else { return };
        for service in &mut self.all {
            let due = service.cut.as_ref().and_then(Cut::due);
            if due.is_none_or(|due| due > now) {
                continue;
            }
            let seen = if on {
                service.look(0, ways.as_mut())
            } else {
                Seen::Well
            };
            let Some(cut) = &mut service.cut else {
                continue;
            };
            let proven = cut.gone().is_some();
            match cut.look(seen, now) {
                None => {}
                Some(News::Proven(gone)) => service.tell_cut(&gone, observer),
                Some(News::Back) => service.ask_withheld(),
                Some(News::Over) => {
                    service.tell_uncut(proven, observer);
                    service.ask_withheld();
                }
            }
        }
    }
}

impl Service {
    /// The ways to all endpoints that may serve, that of one of them first; no more are looked at
    /// than it takes to know.
    fn look(&self, first: usize, ways: &mut dyn Ways) -> Seen {
        let others = (0..self.endpoints.len()).filter(|e| *e != first);
        let mut seen = Vec::new();
        for e in std::iter::once(first).chain(others) {
            let endpoint = &self.endpoints[e];
            if self.failover.mode(e) == Mode::Maint || endpoint.is_nowhere() {
                continue;
            }
            // Of one that nobody knows a way to nobody can say that it is gone.
            let Some(way) = self.host(endpoint).and_then(|host| ways.way(host)) else {
                return Seen::Well;
            };
            let same = seen.first().is_none_or(|first| way.shares(first));
            if !same || way.is_well() {
                return Seen::Well;
            }
            seen.push(way);
        }
        together(&seen)
    }

    /// Are all its endpoints silent that are up or were a short time ago? This one is.
    fn is_silent(&self, e: usize, now: Instant) -> bool {
        let others = self.endpoints.iter().enumerate().filter(|(i, _)| *i != e);
        let mut all = others.filter_map(|(_, endpoint)| self.silence(endpoint, now));
        all.all(|silent| silent)
    }

    /// Makes checks of whoever was doubted.
    pub(super) fn ask_withheld(&self) {
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.withheld) {
            if let Some(trigger) = &endpoint.trigger {
                trigger.pull();
            }
        }
    }

    /// Forgets what is over, once everybody was judged.
    pub(super) fn settle_cut(&mut self) {
        let judged = |of: &super::Endpoint| !of.withheld || of.health.state() != State::Down;
        if self.cut.as_ref().is_some_and(|cut| !cut.holds()) && self.endpoints.iter().all(judged) {
            self.cut = None;
        }
    }

    fn tell_cut(&self, gone: &Gone, observer: &dyn Observer) {
        let service = self.config.name();
        warn!(
            service,
            what = gone.label(),
            "its endpoints cannot be reached from this node: {gone}; the selection is held"
        );
        observer.cut_off(service, Some(gone));
        self.journal.tell(What::CutOff {
            service: service.to_owned(),
            what: Some(gone.label().to_owned()),
            reason: Some(gone.to_string()),
        });
    }

    fn tell_uncut(&self, proven: bool, observer: &dyn Observer) {
        if !proven {
            return;
        }
        let service = self.config.name();
        info!(
            service,
            "its endpoints can be reached again: all are judged by their next check"
        );
        observer.cut_off(service, None);
        self.journal.tell(What::CutOff {
            service: service.to_owned(),
            what: None,
            reason: None,
        });
    }

    /// For people and programs.
    pub(super) fn cut_status(&self, now: Instant) -> Option<status::CutOff> {
        let (gone, since) = self.cut.as_ref()?.gone()?;
        Some(status::CutOff {
            what: gone.label().to_owned(),
            reason: gone.to_string(),
            since_unix_ms: status::unix_ms(telling::wall_clock(since, now)),
        })
    }
}
