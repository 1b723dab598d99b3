//! An open-loop load: requests begin at their time, whatever became of earlier ones,
//! each on a new connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::request::{Failure, request, runtime};
use crate::{
    Namespace, until,
    wait::{patience, slowness},
};

/// What is asked, how often, how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub to: SocketAddr,
    /// Requests per second.
    pub rate: u32,
    pub patience: Duration,
}

impl Plan {
    /// 200 new connections a second with the patience of a person.
    pub fn steady(to: SocketAddr) -> Self {
        Self {
            to,
            rate: 200,
            patience: patience(Duration::from_secs(3)),
        }
    }
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Sample {
    pub begun: Instant,
    pub ended: Instant,
    /// The name of the server that answered with 200.
    pub outcome: std::result::Result<String, Failure>,
}

impl Sample {
    pub fn took(&self) -> Duration {
        self.ended - self.begun
    }

    pub fn answered_by(&self, name: &str) -> bool {
        self.outcome.as_deref() == Ok(name)
    }
}

/// A running load.
pub struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts it.
    pub fn start(from: &Arc<Namespace>, plan: Plan) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (samples, stop) = (Arc::clone(&samples), Arc::clone(&stop));
            from.thread(move || {
                runtime()?.block_on(generate(plan, &samples, &stop));
                Ok(())
            })
        };
        Self {
            samples,
            stop,
            thread: Some(thread),
        }
    }

    /// What ended so far, in the order of ending.
    pub fn samples(&self) -> Vec<Sample> {
        self.locked().clone()
    }

    /// The samples past the first `seen`.
    pub fn since(&self, seen: usize) -> Vec<Sample> {
        self.locked().get(seen..).unwrap_or_default().to_vec()
    }

    /// How many requests ended.
    pub fn count(&self) -> usize {
        self.locked().len()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `count` more requests have ended.
    pub fn run_for(&self, count: usize) -> Result<()> {
        let goal = self.count() + count;
        until("the load to go on", || {
            (self.count() >= goal)
                .then_some(())
                .context("too few requests ended")
        })
    }

    /// Waits for a request that began after now and was answered by this server.
    pub fn wait_for(&self, name: &str) -> Result<Sample> {
        let (now, seen) = (Instant::now(), self.count());
        until(&format!("an answer from {name}"), || {
            self.since(seen)
                .into_iter()
                .find(|sample| sample.begun >= now && sample.answered_by(name))
                .context("none yet")
        })
    }

    /// Begins no request any more, waits for the pending ones, returns all, in the
    /// order of beginning.
    pub fn stop(mut self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let mut samples = self.samples();
        samples.sort_by_key(|sample| sample.begun);
        Ok(samples)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its namespace must not outlive the lab; its panic was or will be told.
            thread.join().ok();
        }
    }
}

async fn generate(plan: Plan, samples: &Arc<Mutex<Vec<Sample>>>, stop: &AtomicBool) {
    // Enough of a load for a slow machine, and not all that it can do.
    let rate = plan.rate / slowness().isqrt();
    let mut beat = interval(Duration::from_secs(1) / rate.max(1));
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut pending = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        beat.tick().await;
        while pending.try_join_next().is_some() {}
        let samples = Arc::clone(samples);
        pending.spawn(async move {
            let begun = Instant::now();
            let outcome = request(plan.to, "/", plan.patience).await;
            let ended = Instant::now();
            let outcome = outcome.and_then(|answer| match answer.status {
                200 => Ok(answer.body),
                status => Err(Failure::Other(format!("status {status}"))),
            });
            samples
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Sample {
                    begun,
                    ended,
                    outcome,
                });
        });
    }
    while pending.join_next().await.is_some() {}
}
