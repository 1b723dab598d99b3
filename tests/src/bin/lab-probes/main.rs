//! The bench of checks: what they cost, whether they come when they should, whether they
//! are right, by probe and side by side by HAProxy. `tests/BENCH-probes.md` tells how and
//! why.
//!
//! Bars that are missed are said, and do not fail: this measures, tests judge.

mod figures;
mod gaps;
mod human;
mod judge;
mod parts;
mod rig;
mod serve;
mod ways;

use std::{
    hint, net::SocketAddrV4, process::Command, process::ExitCode, thread, time::Duration,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use lab::bench::{Machine, teller};

use crate::figures::Figures;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    worker: Option<Worker>,
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// Fewer and shorter runs
    #[arg(long)]
    quick: bool,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// What this program does beside.
#[derive(Subcommand)]
enum Worker {
    /// Be checked
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        listen: SocketAddrV4,
        /// At this port and as many less one that follow
        #[arg(long)]
        threads: u16,
        #[arg(long)]
        realtime: bool,
    },
    /// Keep CPUs busy
    #[command(hide = true)]
    Burn {
        #[arg(long)]
        threads: usize,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Costs,
    Periods,
    Detection,
    Saturated,
}

/// How much is measured.
pub struct Scale {
    /// Rounds of costs, and how long a run of them is.
    pub rounds: usize,
    pub cost: Duration,
    /// How long a run of periods is, at intervals below 1 s and from there on.
    pub period: Duration,
    pub long_period: Duration,
    pub periods: Grid,
    /// Past it, from their begin, no further combination of periods begins.
    pub periods_limit: Duration,
    /// Kills, and stops, of each way.
    pub detections: usize,
    /// Turns of each way with other work, and how long they are.
    pub turns: usize,
    pub turn: Duration,
}

/// Numbers of endpoints and intervals in milliseconds.
pub type Grid = &'static [(usize, u64)];

const FULL: Scale = Scale {
    rounds: 3,
    cost: Duration::from_secs(2),
    period: Duration::from_secs(4),
    long_period: Duration::from_secs(6),
    periods: &[
        // Those that bars and memory need go first.
        (1000, 10),
        (100, 1000),
        (10_000, 1000),
        (100, 10),
        (100, 100),
        (1000, 100),
        (1000, 1000),
        (10_000, 100),
        // A million a second: nobody keeps that.
        (10_000, 10),
    ],
    periods_limit: Duration::from_secs(230),
    // The agent says no more than twenty lines of a kind about an endpoint at once.
    detections: 8,
    turns: 2,
    turn: Duration::from_secs(30),
};
const QUICK: Scale = Scale {
    rounds: 1,
    cost: Duration::from_millis(1500),
    period: Duration::from_secs(3),
    long_period: Duration::from_secs(4),
    periods: &[(100, 1000), (1000, 10), (10_000, 1000)],
    periods_limit: Duration::from_secs(60),
    detections: 3,
    turns: 1,
    turn: Duration::from_secs(10),
};

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.worker {
        Some(Worker::Serve {
            listen,
            threads,
            realtime,
        }) => serve::serve(*listen, *threads, *realtime),
        Some(Worker::Burn { threads }) => burn(*threads),
        None => run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if args.worker.is_none() {
                eprintln!("{}", lab::journal::text());
            }
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if let Some(reason) = lab::privilege::missing() {
        bail!("{reason}: the bench loads BPF programs and makes network namespaces");
    }
    // All processes inherit it, the other work too: what else runs on the machine disturbs less.
    // SAFETY: only numbers are passed; without the right to it nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
    let scale = if args.quick { &QUICK } else { &FULL };
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let begun = Instant::now();
    let mut tell = teller();
    let mut figures = Figures {
        machine: Machine::here()?,
        haproxy: haproxy_version()?,
        load_before: load()?,
        load_after: Vec::new(),
        costs: Vec::new(),
        periods: Vec::new(),
        skipped: Vec::new(),
        memory: Vec::new(),
        detections: Vec::new(),
        saturated: Vec::new(),
        bars: Vec::new(),
        took_s: 0.0,
    };
    if wanted(Part::Costs) {
        figures.costs = parts::costs(scale, &mut tell)?;
    }
    if wanted(Part::Periods) {
        (figures.periods, figures.skipped) = parts::periods(scale, &mut tell)?;
        figures.memory = figures::memory(&figures.periods);
    }
    if wanted(Part::Detection) {
        figures.detections = parts::detections(scale, &mut tell)?;
    }
    if wanted(Part::Saturated) {
        figures.saturated = parts::saturated(scale, figures.machine.cpus, &mut tell)?;
    }
    figures.bars = judge::judge(&figures);
    figures.load_after = load()?;
    figures.took_s = begun.elapsed().as_secs_f64();
    tell("done");
    match args.format {
        Format::Human => print!("{}", human::tables(&figures)),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&figures).context("the figures are JSON")?
        ),
    }
    Ok(())
}

/// Tasks that wanted to run in the last 1, 5 and 15 minutes.
fn load() -> Result<Vec<f64>> {
    let text = std::fs::read_to_string("/proc/loadavg").context("the load")?;
    let words = text.split_whitespace().take(3);
    words.map(|w| w.parse().context("the load")).collect()
}

fn burn(threads: usize) -> Result<()> {
    let spin = || -> () {
        loop {
            hint::spin_loop();
        }
    };
    for _ in 1..threads {
        thread::spawn(spin);
    }
    spin();
    Ok(())
}

/// This thread goes before all that has no real-time priority, if that is allowed.
fn realtime() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call, which changes this thread alone.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

fn haproxy_version() -> Result<String> {
    let output = Command::new("haproxy").arg("-v").output();
    let output = output.context("cannot run haproxy")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    let words: Vec<&str> = first.split(' ').take(3).collect();
    Ok(words.join(" ").replace(" version", ""))
}
