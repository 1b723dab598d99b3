//! Runs test programs, shows what they print while they run, and adds up what they say.
//!
//! A program that says nothing for a long time hangs and is killed; one that goes on saying something
//! may take as long as it has tests. What took longest is told at the end.
//!
//! Tests of the lab have real servers, real timers and two cores that others use too. One of them that
//! fails is run a second time, by itself. If it passes then, it counts as passed and is named in the last
//! lines, for it is a test to be looked at; if not, it has failed.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::tally::{Tally, test_line};

/// No single test takes a fraction of this: a program that prints nothing for so long hangs.
const SILENCE: Duration = Duration::from_mins(6);
/// How many of the slowest tests are named.
const SLOWEST: usize = 10;
/// Past this many failures something is wrong with all of them, and a second run tells nothing new.
const MOST_AGAIN: usize = 5;

/// What all test programs said.
#[derive(Default)]
pub struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
    broken: Vec<String>,
    again: Vec<String>,
    times: Vec<(Duration, String)>,
}

/// What one run of a test program came to.
struct Outcome {
    tally: Tally,
    failed: Vec<String>,
    times: Vec<(Duration, String)>,
    status: ExitStatus,
}

impl Sum {
    /// Runs a test program. `again` makes the same program anew, for a second run of what failed.
    pub fn supervise(
        &mut self,
        title: &str,
        mut command: Command,
        again: Option<&dyn Fn() -> Command>,
    ) -> Result<()> {
        println!("== {title}");
        let mut outcome = run(&mut command)?;
        let tally = &outcome.tally;
        if tally.passed < tally.skipped {
            bail!(
                "{title} skipped {} tests but passed {}",
                tally.skipped,
                tally.passed
            );
        }
        self.passed += tally.passed - tally.skipped;
        self.skipped += tally.skipped;
        self.times.append(&mut outcome.times);
        if !tally.told || (tally.failed == 0 && !outcome.status.success()) {
            self.failed += 1;
            self.broken.push(format!("{title} ({})", outcome.status));
        }
        if tally.failed == 0 {
            return Ok(());
        }
        let mut failed = tally.failed;
        if let Some(again) = again
            && outcome.failed.len() <= MOST_AGAIN
        {
            for name in outcome.failed {
                println!("== {title}: {name}, a second time");
                let second = run(again().args(["--exact", &name]))?.tally;
                if second.passed == 1 && second.failed == 0 {
                    self.passed += 1;
                    self.again.push(format!("{title}: {name}"));
                    failed -= 1;
                }
            }
        }
        self.failed += failed;
        if failed > 0 {
            self.broken.push(title.to_owned());
        }
        Ok(())
    }

    /// The last lines, and what the whole is worth.
    pub fn finish(mut self) -> Result<ExitCode> {
        self.times.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        self.times.truncate(SLOWEST);
        for (time, name) in &self.times {
            println!("slow: {:5.1} s {name}", time.as_secs_f64());
        }
        for name in &self.again {
            println!("PASSED ONLY WHEN RUN AGAIN: {name}");
        }
        for broken in &self.broken {
            println!("FAILED: {broken}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
        if self.failed > 0 {
            return Ok(ExitCode::FAILURE);
        }
        if self.passed + self.skipped == 0 {
            bail!("no test ran: no name contains the filter");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn run(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", Path::new(command.get_program()).display()))?;
    let output = child.stdout.take().expect("stdout is piped");

    let (alive, heard) = mpsc::channel::<()>();
    let pid = child.id();
    let watchdog = thread::spawn(move || {
        loop {
            match heard.recv_timeout(SILENCE) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("xtask: a test says nothing since {SILENCE:?}: killing its program");
                    // SAFETY: the child is reaped only after this thread has ended, so the
                    // process id is still its own.
                    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
                    return;
                }
            }
        }
    });

    let (mut tally, mut failed, mut times) = (Tally::default(), Vec::new(), Vec::new());
    let mut screen = std::io::stdout();
    let mut last = Instant::now();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read a test program's output")?;
        // It has given up only after the kill, when nothing is left to be watched.
        alive.send(()).ok();
        let text = String::from_utf8_lossy(&line);
        writeln!(screen, "{text}").context("cannot write to standard output")?;
        tally.read(&text);
        if let Some((name, passed)) = test_line(&text) {
            times.push((last.elapsed(), name.to_owned()));
            last = Instant::now();
            if !passed {
                failed.push(name.to_owned());
            }
        }
    }
    drop(alive);
    // It only waits for the end that was just told, or for the kill.
    watchdog.join().ok();
    let status = child.wait().context("cannot wait for a test program")?;
    Ok(Outcome {
        tally,
        failed,
        times,
        status,
    })
}
