//! Threads of their own for what must not wait: one that decides, and those that check.
//!
//! Everything else (lookups, sweeps, the local API) runs on the common runtime and may take its
//! time. Each of these threads has a runtime that runs on it alone, so tasks on it wake each
//! other without the kernel, and what is done to the thread is done to all of them.

use std::{
    io,
    sync::mpsc,
    thread::{Builder, JoinHandle},
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

#[cfg(test)]
mod tests {
    use super::*;

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
