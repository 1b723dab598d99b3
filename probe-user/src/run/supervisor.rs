//! Tells the service manager how the agent is, by systemd's protocol (sd_notify(3)).
//!
//! `READY=1` comes when every endpoint has had its first verdict: what is ordered after the
//! agent finds a selection that is somebody's judgement. That is `/healthz`'s question too.
//! `WATCHDOG=1` is sent, where the manager wants it, only after the core answered: an agent whose
//! core hangs is ended and started again, while steering stays in place.
//!
//! A manager that cannot be told is no reason to end; it will do what it thinks fit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::core::{Ask, Sources};

/// How often endpoints without a verdict are asked for.
const POLL: Duration = Duration::from_millis(20);

/// Tells it until the agent ends.
pub async fn run(sources: Sources, ready: Arc<AtomicBool>) -> anyhow::Result<()> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waits_for = 0;
    loop {
        polls.tick().await;
        let pending = sources.ask(Ask::Pending).await?.len();
        if pending == 0 {
            break;
        }
        if std::mem::replace(&mut waits_for, pending) != pending {
            tell(format!(
                "STATUS=steers; waits for the first verdict on {pending} endpoints"
            ))
            .await;
        }
    }
    ready.store(true, Ordering::Relaxed);
    tell(format!("{}\nSTATUS=steers", NotifyState::Ready)).await;
    info!("every endpoint has its first verdict; the service manager was told");
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())
    else {
        return std::future::pending().await;
    };
    // A third: one that is late costs nothing.
    let mut ticks = interval(patience / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(patience / 3, sources.ask(Ask::Pending)).await {
            Ok(answer) => {
                answer?;
                tell(NotifyState::Watchdog.to_string()).await;
            }
            Err(_) => warn!("the core does not answer, and the service manager is not told"),
        }
    }
}

/// Tells it that the configuration is loaded again. Before the agent was ready there is nothing
/// to tell: whoever waits, waits for the first verdicts.
pub async fn reloading(ready: &AtomicBool) {
    if ready.load(Ordering::Relaxed) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(format!("{}\n{now}", NotifyState::Reloading)).await,
            Err(error) => warn!("no time to tell the service manager: {error}"),
        }
    }
}

/// Tells it that this is over, whatever became of it.
pub async fn reloaded(ready: &AtomicBool) {
    if ready.load(Ordering::Relaxed) {
        tell(NotifyState::Ready.to_string()).await;
    }
}

/// Tells it that the agent ends.
pub async fn stopping() {
    tell(NotifyState::Stopping.to_string()).await;
}

async fn tell(state: String) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // A manager that does not read blocks whoever tells it.
    let told =
        tokio::task::spawn_blocking(move || sd_notify::notify(&[NotifyState::Custom(&state)]));
    let result = told.await.unwrap_or_else(|error| Err(error.into()));
    if let Err(error) = result {
        warn!("the service manager at NOTIFY_SOCKET cannot be told: {error}");
    }
}
