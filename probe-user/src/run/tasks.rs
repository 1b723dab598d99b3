//! The agent's small tasks. None of them ends but by an error or with the agent.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use probe_ebpf::abi::EventKind;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use super::Names;
use crate::{
    core::{
        Lookup, Signalled, Whose,
        journal::{Journal, What},
    },
    datapath::{
        Ended, Ender, EndpointId, Events, Look, Node, ServiceId, Sweeper, Swept, TICK, Teller,
    },
    health::{Signal, budget::Budget},
    log::HeldBack,
    observe::Recorder,
    resolve,
};

/// Between two sweeps of the flow tables.
const SWEEP: Duration = Duration::from_secs(5);
/// Least time between two sweeps that full tables ask for.
const SWEEP_GAP: Duration = Duration::from_millis(200);
/// Between two lines that say how many were held back.
const HELD_BACK: Duration = Duration::from_secs(10);

/// Looks all names up, again and again; which ones, and how often, may change.
pub async fn resolve(
    mut names: watch::Receiver<Names>,
    lookups: mpsc::Sender<Lookup>,
) -> anyhow::Result<()> {
    // The first round was made at the start, or when the configuration was loaded again; what it
    // found is known.
    let mut last = Instant::now();
    let mut new = true;
    loop {
        let changed = std::mem::take(&mut new) || names.has_changed().unwrap_or_default();
        let (every, failed) = {
            let names = names.borrow_and_update();
            let failed = if changed {
                names.failed.clone()
            } else {
                Vec::new()
            };
            (names.every, failed)
        };
        for ((service, endpoint), lost) in failed {
            let lookup = Lookup {
                service,
                endpoint,
                answer: Err(lost),
            };
            if lookups.send(lookup).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = sleep_until((last + every).into()) => {}
            changed = names.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                new = true;
                continue;
            }
        }
        let these = names.borrow().names.clone();
        let mut answers = pin!(resolve::lookups(these));
        while let Some((whose, answer)) = answers.next().await {
            for (service, endpoint) in whose {
                let lookup = Lookup {
                    service,
                    endpoint,
                    answer: answer.clone(),
                };
                if lookups.send(lookup).await.is_err() {
                    return Ok(());
                }
            }
        }
        last = Instant::now();
    }
}

/// Says how far the budget of checks stretches intervals.
pub async fn budget(budget: Arc<Budget>, recorder: Recorder) -> anyhow::Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = 1.0;
    loop {
        ticks.tick().await;
        let waited = budget.look();
        let stretch = budget.stretch();
        recorder.stretched(stretch);
        if stretch > 1.0 && told == 1.0 {
            warn!(
                stretch,
                waited,
                "more checks are wanted than `checking` allows: all intervals are stretched"
            );
        } else if stretch == 1.0 && told > 1.0 {
            info!("checks are made as often as configured again");
        }
        told = stretch;
    }
}

/// Tells the programs what time it is.
pub async fn clock(node: Node) -> anyhow::Result<()> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        node.tick()?;
    }
}

/// Says how many lines the log held back.
pub async fn held_back(held_back: HeldBack) -> anyhow::Result<()> {
    let mut ticks = interval(HELD_BACK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let lines = held_back.take();
        if lines > 0 {
            warn!(lines, "the log held back lines that repeat too often");
        }
    }
}

/// Removes idle flows; at once when the tables are full.
pub async fn sweep(
    mut sweeper: Sweeper,
    sweeps: mpsc::Sender<Swept>,
    pressure: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = pressure.notified() => {
                sweeper.press();
                // Under a flood it is told again and again.
                tokio::time::sleep(SWEEP_GAP).await;
            }
        }
        let (back, swept) = tokio::task::spawn_blocking(move || {
            let swept = sweeper.sweep();
            (sweeper, swept)
        })
        .await?;
        sweeper = back;
        match swept {
            Ok(swept) => {
                if swept.removed > 0 {
                    debug!(removed = swept.removed, "idle flows removed");
                }
                if sweeps.send(swept).await.is_err() {
                    return Ok(());
                }
            }
            // The next one may do better; flows only stay longer than they must.
            Err(error) => warn!("sweeping the flow tables: {error}"),
        }
    }
}

/// After an endpoint was marked, when to look for its sockets: at once, and again, since a
/// `connect` that was decided just before makes its socket known to the kernel just after.
const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

/// Ends sockets of the node's own processes whose endpoint is lost.
pub async fn end_sockets(
    mut ender: Ender,
    lost: Arc<Notify>,
    recorder: Recorder,
) -> anyhow::Result<()> {
    let mut told = false;
    loop {
        lost.notified().await;
        let mut looks = LOOKS.into_iter();
        while let Some(pause) = looks.next() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Another one: all over again.
                () = lost.notified() => looks = LOOKS.into_iter(),
            }
            let (back, passed) = tokio::task::spawn_blocking(move || {
                let passed = ender.pass();
                (ender, passed)
            })
            .await?;
            ender = back;
            match passed {
                Ok(Ended {
                    ended: 0,
                    refused: 0,
                }) => {}
                Ok(ended) => {
                    recorder.own_ended(ended);
                    debug!(
                        ended.ended,
                        ended.refused, "sockets of lost endpoints ended"
                    );
                    if ended.refused > 0 && !std::mem::replace(&mut told, true) {
                        warn!(
                            "the kernel does not end sockets of the node's own processes \
                             (CONFIG_INET_DIAG_DESTROY): their applications learn by themselves \
                             that their endpoint is down"
                        );
                    }
                }
                // The next look may do better.
                Err(error) if !std::mem::replace(&mut told, true) => {
                    warn!("sockets of lost endpoints do not end: {error}");
                }
                Err(error) => debug!("sockets of lost endpoints do not end: {error}"),
            }
        }
    }
}

/// Tells clients of lost endpoints, and the endpoints, that their connection is over. What takes
/// long is done elsewhere, so that this may run on a thread with real-time priority.
pub async fn tell_flows(
    mut teller: Teller,
    marked: Arc<Notify>,
    recorder: Recorder,
    journal: Arc<Journal>,
) -> anyhow::Result<()> {
    let _halt = Halt(teller.halt());
    let mut told = false;
    loop {
        let due = teller.due().map(tokio::time::Instant::from);
        tokio::select! {
            () = marked.notified() => teller.switched(Instant::now()),
            () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {}
        }
        let passed = match teller.look() {
            Ok(Look::Many(found)) => {
                let (back, passed) = tokio::task::spawn_blocking(move || {
                    let passed = teller.tell(found);
                    (teller, passed)
                })
                .await?;
                teller = back;
                passed
            }
            Ok(Look::Done(passed)) => Ok(passed),
            Err(error) => Err(error),
        };
        match passed {
            Ok(passed) => {
                recorder.told(&passed);
                if let Some(over) = passed.finished {
                    info!(
                        told = over.told,
                        given_up = over.given_up,
                        took_ms = u64::try_from(over.took.as_millis()).unwrap_or(u64::MAX),
                        "clients of lost endpoints were told that their connection is over"
                    );
                    journal.tell(What::Told {
                        told: over.told,
                        not_told: over.given_up,
                    });
                }
                if let Some(error) = passed.sent.error
                    && !std::mem::replace(&mut told, true)
                {
                    let refused = passed.sent.refused;
                    warn!(
                        refused,
                        "the kernel does not send challenges, so clients or endpoints learn at \
                         their next packet that their connection is over: {error}"
                    );
                }
            }
            // The next pass may do better; whoever is left learns at its next packet.
            Err(error) if !std::mem::replace(&mut told, true) => {
                warn!("clients of lost endpoints are not told: {error}");
            }
            Err(error) => debug!("clients of lost endpoints are not told: {error}"),
        }
    }
}

/// Ends a pass that goes on when its task is ended.
struct Halt(Arc<AtomicBool>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts and logs the datapath's events, and hands on those about an endpoint's health.
///
/// What was held back of a kind counts with the kind only: the datapath does not say
/// which endpoints it was about.
pub async fn events(
    mut events: Events,
    recorder: Recorder,
    pressure: Arc<Notify>,
    signals: mpsc::Sender<Signalled>,
) -> anyhow::Result<()> {
    loop {
        let event = events.next().await?;
        // A kind of a newer kernel side cannot be: it is embedded in this binary.
        if let Some(kind) = EventKind::from_number(event.kind) {
            recorder.event(kind, event.held_back);
            if kind == EventKind::TableFull {
                pressure.notify_one();
            }
            if let Some(signal) = Signal::of_event(kind) {
                let ids = (ServiceId(event.service), EndpointId(event.endpoint));
                let whose = Whose::Steered(ids.0, ids.1);
                // Full: the core stands still, and pressure must not wait for it; clients go on
                // to fail. Closed: it ends.
                let _ = signals.try_send(Signalled { whose, signal });
            }
            debug!(
                kind = kind.label(),
                service = event.service,
                endpoint = event.endpoint,
                client = %std::net::Ipv6Addr::from(event.client).to_canonical(),
                port = u16::from_be(event.client_port_be),
                held_back = event.held_back,
                "datapath event"
            );
        }
    }
}
