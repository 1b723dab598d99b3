//! The live line, on standard error: standard output is for the result.

use std::{
    io::{IsTerminal, Write, stderr},
    thread,
    time::{Duration, Instant},
};

use lab::client::Load;

pub struct Progress {
    begun: Instant,
    phase: String,
    /// A line that is written over, else one line a phase.
    live: bool,
}

impl Progress {
    pub fn begin() -> Self {
        Self {
            begun: Instant::now(),
            phase: String::new(),
            live: stderr().is_terminal(),
        }
    }

    /// What happens from now on.
    pub fn phase(&mut self, phase: &str) {
        phase.clone_into(&mut self.phase);
        self.show("");
    }

    /// Lets the load run and shows how it goes.
    pub fn watch(&self, load: &Load, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
            if self.live {
                let samples = load.samples();
                let failed = samples.iter().filter(|s| s.outcome.is_err()).count();
                let by = samples
                    .last()
                    .and_then(|sample| sample.outcome.clone().ok())
                    .unwrap_or_else(|| "nobody".to_owned());
                self.show(&format!(
                    "{} requests, {failed} failed, answers from {by}",
                    samples.len()
                ));
            }
        }
    }

    fn show(&self, what: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let line = format!("{seconds:5.1} s  {:<40} {what}", self.phase);
        // A closed standard error is no reason to stop.
        if self.live {
            write!(stderr(), "\r\x1b[K{line}").ok();
        } else {
            writeln!(stderr(), "{}", line.trim_end()).ok();
        }
        stderr().flush().ok();
    }

    pub fn end(&self) {
        if self.live {
            write!(stderr(), "\r\x1b[K").ok();
        }
    }
}
