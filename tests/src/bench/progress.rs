//! Progress, on standard error: standard output is for the result.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// Says on a terminal what is going on; elsewhere a line every few seconds.
pub fn teller() -> impl FnMut(&str) + Send {
    let terminal = std::io::stderr().is_terminal();
    let mut last: Option<Instant> = None;
    move |what| {
        // A closed standard error is no reason to stop.
        if terminal {
            write!(std::io::stderr(), "\r\x1b[Kbench: {what}").ok();
            std::io::stderr().flush().ok();
        } else if last.is_none_or(|last| last.elapsed() > Duration::from_secs(5)) {
            last = Some(Instant::now());
            writeln!(std::io::stderr(), "bench: {what}").ok();
        }
    }
}
