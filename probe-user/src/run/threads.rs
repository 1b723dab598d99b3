//! Threads of their own for what must not wait: one that decides, and those that check.
//!
//! Everything else (lookups, sweeps, the local API) runs on the common runtime and may take its
//! time. Each of these threads has a runtime that runs on it alone, so tasks on it wake each
//! other without the kernel, and what is done to the thread is done to all of them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

use super::realtime;
use crate::config::Realtime;

/// More than these check for one agent only on machines with many processors.
const MOST_CHECKING: usize = 4;

/// A thread with a runtime; both end with this.
#[derive(Debug)]
pub struct Thread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Begins one, and says whether it has real-time priority or why not. A name has 15 bytes at
    /// most.
    pub fn start(name: &str, realtime: Realtime) -> io::Result<(Self, Result<(), String>)> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::sync_channel(1);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let entered = realtime::enter(realtime);
            if entered.is_ok() {
                runtime.spawn(realtime::govern());
            }
            // Whoever started it waits for that.
            let _ = tell.send(entered);
            // An error is the end of whoever held the other side.
            drop(runtime.block_on(stopped));
        })?;
        let entered = told.recv().map_err(io::Error::other)?;
        let started = Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((started, entered))
    }

    /// For tasks on it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended the process.
            drop(thread.join());
        }
    }
}

/// How many threads check, at most: as many as can run at one time, for whoever has many endpoints.
/// They are only used as they are needed, see [`Shares`].
pub fn checking() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.clamp(1, MOST_CHECKING)
}

/// What checks are reckoned to cost, in microseconds of a processor.
const FRESH_COSTS: u64 = 50;
const KEPT_COSTS: u64 = 12;
/// What a thread gets before another one does, in microseconds a second: three eighths of a
/// processor. Fewer threads wake less often; but at real-time priority one that has much to do keeps whoever
/// else runs on its processor waiting, the answering endpoint too where that is on the same machine.
const ENOUGH: u64 = 375_000;

/// What each thread that checks has to do.
#[derive(Debug)]
pub struct Shares(Vec<Arc<AtomicU64>>);

/// An endpoint's part of it. It ends with this.
#[derive(Debug)]
pub struct Share {
    of: Arc<AtomicU64>,
    costs: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.costs, Ordering::Relaxed);
    }
}

impl Shares {
    /// Of so many threads, at least one.
    pub fn new(threads: usize) -> Self {
        Self((0..threads.max(1)).map(|_| Arc::default()).collect())
    }

    /// A thread for an endpoint that is checked so often: the first that has not enough to do, or
    /// else the one with least.
    pub fn take(&self, inter: Duration, fresh: bool) -> (usize, Share) {
        let each = if fresh { FRESH_COSTS } else { KEPT_COSTS };
        let micros = inter.as_micros().max(1);
        let costs = u64::try_from(u128::from(each) * 1_000_000 / micros).unwrap_or(u64::MAX);
        let has = |share: &Arc<AtomicU64>| share.load(Ordering::Relaxed);
        let fits = |share: &Arc<AtomicU64>| has(share).saturating_add(costs) <= ENOUGH;
        let first = self.0.iter().position(fits);
        let turn = first.unwrap_or_else(|| {
            let least = self
                .0
                .iter()
                .enumerate()
                .min_by_key(|(_, share)| has(share));
            least.map_or(0, |(turn, _)| turn)
        });
        let of = self.0[turn].clone();
        of.fetch_add(costs, Ordering::Relaxed);
        (turn, Share { of, costs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_fill_one_after_the_other_and_then_alike() {
        let shares = Shares::new(2);
        let ms = Duration::from_millis;
        let mut taken: Vec<_> = (0..75).map(|_| shares.take(ms(10), true)).collect();
        assert!(taken.iter().all(|(turn, _)| *turn == 0), "it has room");
        assert_eq!(shares.take(ms(10), false).0, 1);
        taken.extend((0..325).map(|_| shares.take(ms(10), true)));
        let on = |turn: usize| taken.iter().filter(|(of, _)| *of == turn).count();
        assert_eq!((on(0), on(1)), (200, 200));
        drop(taken);
        assert_eq!(shares.take(ms(1), true).0, 0);
        // Nothing costs too much to count.
        assert_eq!(shares.take(ms(3_600_000), true).0, 0);
        assert_eq!(shares.take(Duration::ZERO, true).0, 0);
    }

    #[test]
    fn tasks_run_on_the_thread_and_end_with_it() {
        struct Ends(mpsc::Sender<&'static str>);
        impl Drop for Ends {
            fn drop(&mut self) {
                let _ = self.0.send("dropped");
            }
        }
        let (tx, rx) = mpsc::channel();
        let (thread, entered) = Thread::start("probe-test", Realtime::Off).unwrap();
        assert!(entered.is_err());
        thread.handle().spawn(async move {
            let name = std::thread::current().name().map(str::to_owned);
            assert_eq!(name.as_deref(), Some("probe-test"));
            let ends = Ends(tx);
            ends.0.send("runs").unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(rx.recv().unwrap(), "runs");
        drop(thread);
        assert_eq!(rx.recv().unwrap(), "dropped");
    }
}
