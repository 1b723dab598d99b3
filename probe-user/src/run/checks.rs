//! Who checks an endpoint: the lane of a thread where its check is plain, else a task of its own; and
//! beside it its sentinel and its agent-check.

use std::{io, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use crate::{
    core::{AgentSaid, CheckKey, CheckPlan, Running, Signalled, Whose},
    datapath::Reader,
    health::{
        agent,
        budget::Budget,
        lane::{Asks, Door, Lane},
        lateness::Pulse,
        scheduler::{self, Replies, Reports, Shared},
        sentinel,
        shares::Shares,
    },
};

/// How the core hears of endpoints. Once it has ended nobody listens, and who speaks ends with it.
pub struct Voices {
    /// Checks.
    pub reports: Reports<CheckKey>,
    /// Sentinels.
    pub signals: mpsc::Sender<Signalled>,
    /// Agent-checks.
    pub said: mpsc::Sender<AgentSaid>,
}

/// A thread that checks.
struct Desk {
    handle: Handle,
    door: Arc<Door<CheckKey>>,
    shared: Shared,
}

/// Begins the checks of endpoints.
pub struct Checks {
    desks: Vec<Desk>,
    shares: Shares,
    voices: Voices,
    counters: Arc<Reader>,
    budget: Arc<Budget>,
    /// For sentinels.
    room: Arc<Semaphore>,
}

impl Checks {
    /// With no thread yet. `room`: how many sentinels there may be.
    pub fn new(voices: Voices, counters: Arc<Reader>, budget: Arc<Budget>, room: usize) -> Self {
        Self {
            desks: Vec::new(),
            shares: Shares::new(0),
            voices,
            counters,
            budget,
            room: Arc::new(Semaphore::new(room)),
        }
    }

    /// Gives it another thread to check on, which has this pulse; its lane shall run there.
    pub fn add(&mut self, handle: &Handle, pulse: Arc<Pulse>) -> io::Result<Lane<CheckKey>> {
        let shared = Shared {
            pulse,
            budget: self.budget.clone(),
        };
        let lane = Lane::new(shared.clone(), self.voices.reports.clone())?;
        self.desks.push(Desk {
            handle: handle.clone(),
            door: lane.door(),
            shared,
        });
        self.shares = Shares::new(self.desks.len());
        Ok(lane)
    }

    /// Begins those of an endpoint. They end with what it returns.
    pub fn start(&self, key: CheckKey, plan: CheckPlan) -> Running {
        let (recipe, mut rhythm) = (plan.recipe, plan.rhythm);
        let (inter, triggered) = (rhythm.intervals.inter, plan.triggered);
        // A check that may have to wait for a place waits in a task of its own.
        let plain = (!self.budget.has_places())
            .then(|| Asks::of(&recipe))
            .flatten();
        let fresh = plain.as_ref().is_none_or(Asks::is_fresh);
        let (turn, share) = self.shares.take(inter, fresh);
        let Desk {
            handle,
            door,
            shared,
        } = &self.desks[turn];
        rhythm.life_signs = plan.life_signs.map(|id| {
            let counters = self.counters.clone();
            let sent = move || Some(counters.endpoint_counters(id).ok()?.reverse_packets);
            Replies(Arc::new(sent))
        });
        let mut tasks = Vec::new();
        let seat = match plain {
            Some(asks) => Some(door.sit(key, asks, &rhythm, triggered, shared)),
            None => {
                let (shared, reports) = (shared.clone(), self.voices.reports.clone());
                let make = move || recipe.make();
                let checks = scheduler::run(key, make, rhythm, triggered, shared, reports);
                tasks.push(handle.spawn(checks).abort_handle());
                None
            }
        };
        if plan.sentinel {
            let signals = self.voices.signals.clone();
            let tell = move |signal| {
                let (whose, signals) = (Whose::Checked(key), signals.clone());
                async move {
                    let _ = signals.send(Signalled { whose, signal }).await;
                }
            };
            let watches = sentinel::run(plan.target, inter, self.room.clone(), tell);
            tasks.push(handle.spawn(watches).abort_handle());
        }
        if let Some(plan) = plan.agent {
            let answers = self.voices.said.clone();
            let tell = move |said| {
                let answers = answers.clone();
                async move {
                    let _ = answers.send(AgentSaid { key, said }).await;
                }
            };
            tasks.push(handle.spawn(agent::run(plan, tell)).abort_handle());
        }
        Running {
            tasks,
            seat,
            share: Some(share),
        }
    }
}
