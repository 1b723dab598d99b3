//! Waiting for a condition, with a deadline generous enough for a busy machine.

use std::{
    env,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Far more than anything in the lab takes when it works.
pub fn generous() -> Duration {
    patience(Duration::from_secs(20))
}

/// How many times slower this machine is than a real one: `LAB_SLOWNESS` tells, which
/// `cargo xtask vm` sets for emulated ones; else 1. Deadlines and intervals are for a
/// real machine and go through [`patience`]; nothing else reads the variable.
pub fn slowness() -> u32 {
    static TOLD: OnceLock<u32> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let Ok(text) = env::var("LAB_SLOWNESS") else {
            return 1;
        };
        text.parse()
            .ok()
            .filter(|times| *times > 0)
            .unwrap_or_else(|| panic!("LAB_SLOWNESS={text}: a whole number from 1 on is accepted"))
    })
}

/// What takes this long on a real machine takes so long here.
pub fn patience(real: Duration) -> Duration {
    real * slowness()
}

/// Asks until the answer is there. The last refusal is the error.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > generous() => {
                bail!("waited {:?} for {what}: {error:#}", generous())
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Asks until the condition holds.
pub fn until_true(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    until(what, || {
        if holds() {
            Ok(())
        } else {
            bail!("it is not so")
        }
    })
}
