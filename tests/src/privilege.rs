//! Tests that need root: a visible skip without it, a failure when CI demands it.

use std::{
    env,
    io::Write,
    panic::{self, AssertUnwindSafe},
    process,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{journal, kernel::tcx, wait::patience};

/// No namespace test takes a fraction of this; past it, it hangs.
const HANG: Duration = Duration::from_mins(4);

/// One at a time: they measure time on few cores.
static TURN: Mutex<()> = Mutex::new(());

/// Why namespaces cannot be made here, if so.
pub fn missing() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("needs root")
}

/// [`privileged`] for a test that orders TCX, which Linux has from 6.6 on
/// (e420bed02507). The kernel itself is asked. CI may skip it: another kernel has it,
/// or the agent's `auto` does without.
pub fn with_tcx(test: impl FnOnce() -> Result<()>) {
    if missing().is_none()
        && let Err(error) = tcx()
    {
        skip(&format!("needs TCX (Linux 6.6): {error}"));
        return;
    }
    privileged(test);
}

/// Says that this test does not run, past libtest's capture, which shows nothing of a
/// test that passes.
fn skip(reason: &str) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let line = format!("SKIPPED: {name} {reason}\n");
    std::io::stdout().write_all(line.as_bytes()).ok();
}

/// Runs a test that needs root. Its failure shows the journal.
pub fn privileged(test: impl FnOnce() -> Result<()>) {
    if let Some(reason) = missing() {
        assert!(
            env::var_os("CI").is_none(),
            "{reason}, and CI allows no skip"
        );
        skip(reason);
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    journal::begin();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let (done, over) = mpsc::channel::<()>();
    thread::spawn(move || {
        if over.recv_timeout(patience(HANG)) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Not by `eprintln!`: libtest captures that, and what is captured is lost here.
            let told = format!(
                "{name} hangs since {:?}\n{}\n",
                patience(HANG),
                journal::text()
            );
            std::io::stderr().write_all(told.as_bytes()).ok();
            // Nothing is left behind: see the crate's first rule.
            process::abort();
        }
    });
    let outcome = panic::catch_unwind(AssertUnwindSafe(test));
    drop(done);
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            println!("{}", journal::text());
            panic!("{error:#}");
        }
        Err(payload) => {
            println!("{}", journal::text());
            panic::resume_unwind(payload);
        }
    }
}
