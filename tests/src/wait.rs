//! Waiting for a condition, with a deadline generous enough for a busy machine.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Far more than anything in the lab takes when it works.
pub const GENEROUS: Duration = Duration::from_secs(20);

/// How many times slower this machine is than a real one: an emulated one is told so
/// by `LAB_SLOWNESS`. Without patience, checks take healthy endpoints down there.
pub fn slowness() -> u32 {
    env::var("LAB_SLOWNESS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|times| *times > 0)
        .unwrap_or(1)
}

/// Asks until the answer is there. The last refusal is the error.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > GENEROUS => {
                bail!("waited {GENEROUS:?} for {what}: {error:#}")
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
