//! The bench of failover: what clients see of an outage, by probe and side by side by
//! HAProxy and a plain rule. `tests/BENCH-failover.md` tells how and why.
//!
//! Bars that are missed are said, and do not fail: this measures, tests judge.

mod faults;
mod figures;
mod flows;
mod human;
mod judge;
mod plot;
mod round;
mod ways;

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use lab::bench::{Machine, teller};

use crate::{
    faults::Fault,
    figures::{Facts, Figures, Run, Setting, Way, ms, sum_up},
    plot::Trace,
    ways::{FALL, HOLD, INTER, Path, RISE, Rig, TIMEOUT},
};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    worker: Option<flows::Worker>,
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// One round of the fast ways, fewer flows
    #[arg(long)]
    quick: bool,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Write the latency around each fault into this file, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Faults,
    Flows,
}

/// How often a run is played again in which the machine stood still for longer than this
/// around the fault, or whose quiet part ended wrong.
const AGAIN: usize = 3;
const STOOD_STILL: Duration = Duration::from_millis(4);

/// How much is measured.
struct Scale {
    rounds: usize,
    /// Rounds in which those ways run that take long, or whose outcome is known.
    default: &'static [usize],
    shortened: &'static [usize],
    rule: &'static [usize],
    /// Past it only what has not run at all, or is fast, runs.
    limit: Duration,
    flows: usize,
}

const FULL: Scale = Scale {
    rounds: 5,
    default: &[2],
    shortened: &[0, 3],
    rule: &[0, 2, 4],
    limit: Duration::from_secs(480),
    flows: 100_000,
};
const QUICK: Scale = Scale {
    rounds: 1,
    default: &[],
    shortened: &[],
    rule: &[0],
    limit: Duration::from_secs(90),
    flows: 10_000,
};

impl Scale {
    fn has(&self, path: Path, round: usize) -> bool {
        match path {
            Path::HaproxyDefault => self.default.contains(&round),
            Path::HaproxyShortened => self.shortened.contains(&round),
            Path::NftDnat => self.rule.contains(&round),
            Path::Probe | Path::HaproxyTuned | Path::HaproxyFloor => true,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.worker {
        Some(worker) => flows::work(worker),
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
    // All processes inherit it: what else runs on the machine disturbs less.
    // SAFETY: only numbers are passed; without the right to it nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
    let scale = if args.quick { &QUICK } else { &FULL };
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let begun = Instant::now();
    let mut tell = teller();
    let mut figures = Figures {
        machine: Machine::here()?,
        haproxy: haproxy_version()?,
        setting: setting(),
        ways: Vec::new(),
        cells: Vec::new(),
        flows: None,
        bars: Vec::new(),
        took_s: 0.0,
    };
    let mut traces = Vec::new();
    if wanted(Part::Faults) {
        let all = play_all(scale, &mut tell)?;
        for (path, fault, runs, trace) in all {
            figures.cells.extend(sum_up(path, fault, &runs));
            traces.extend(trace);
        }
        figures.ways = Path::ALL
            .into_iter()
            .filter(|path| figures.cells.iter().any(|cell| cell.way == *path))
            .map(|path| Way {
                way: path,
                name: path.shown(),
                described: path.described(),
                config: ways::haproxy_config(path),
            })
            .collect();
    }
    if wanted(Part::Flows) {
        figures.flows = Some(flows::measure(scale.flows, &mut tell)?);
    }
    figures.bars = judge::judge(&figures);
    figures.took_s = ms(begun.elapsed()) / 1e3;
    tell("done");
    if let Some(file) = &args.plot {
        fs::write(file, plot::svg(&figures, &traces))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    match args.format {
        Format::Human => print!("{}", human::tables(&figures)),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&figures).context("the figures are JSON")?
        ),
    }
    Ok(())
}

type Played = (Path, Fault, Vec<Run>, Option<Trace>);

/// Plays every fault on every way, in rounds that begin elsewhere each.
fn play_all(scale: &Scale, mut tell: impl FnMut(&str)) -> Result<Vec<Played>> {
    let begun = Instant::now();
    let mut rigs = Vec::new();
    for path in Path::ALL {
        if (0..scale.rounds).any(|round| scale.has(path, round)) {
            tell(&format!("making the lab of {}", path.shown()));
            rigs.push(Rig::new(path)?);
        }
    }
    let mut runs: Vec<(Path, Fault, Run, Trace)> = Vec::new();
    for round in 0..scale.rounds {
        rigs.rotate_left(usize::from(round > 0));
        let mut faults = Fault::ALL;
        faults.rotate_left(round % Fault::ALL.len());
        for rig in &mut rigs {
            let path = rig.path;
            let late = begun.elapsed() > scale.limit;
            let known = runs.iter().any(|(known, ..)| *known == path);
            if !scale.has(path, round) || (late && known && (path.is_slow() || round > 4)) {
                continue;
            }
            rig.start()?;
            for fault in faults {
                tell(&format!(
                    "round {} of {}, {}: {}",
                    round + 1,
                    scale.rounds,
                    path.shown(),
                    fault.shown()
                ));
                let again = if path.is_fast() && !late { AGAIN } else { 0 };
                let (facts, run) = play_undisturbed(rig, fault, again)
                    .with_context(|| format!("{}: {}", path.shown(), fault.shown()))?;
                runs.push((path, fault, run, Trace::of(&facts)));
            }
            rig.stop()?;
        }
    }
    let mut all = Vec::new();
    for path in Path::ALL {
        for fault in Fault::ALL {
            let (mut mine, mut traces) = (Vec::new(), Vec::new());
            for (_, _, run, trace) in runs.iter().filter(|run| (run.0, run.1) == (path, fault)) {
                mine.push(run.clone());
                traces.push(trace.clone());
            }
            let trace = plot::typical(&mine, &traces);
            all.push((path, fault, mine, trace));
        }
    }
    Ok(all)
}

/// Plays a fault, again if the machine stood still around it, or if a false switch had come
/// before it; of runs that were all disturbed the least is taken. What came after the
/// fault has no say in it, and quiet parts count whatever becomes of their runs.
fn play_undisturbed(rig: &mut Rig, fault: Fault, again: usize) -> Result<(Facts, Run)> {
    let rank = |facts: &Facts| (facts.begun_wrong(), facts.stood_still());
    let mut facts = round::play(rig, fault)?;
    let mut run = figures::tell(&facts);
    for _ in 0..again {
        if rank(&facts) <= (false, STOOD_STILL) {
            break;
        }
        let mut other_facts = round::play(rig, fault)?;
        let mut other = figures::tell(&other_facts);
        if rank(&other_facts) < rank(&facts) {
            std::mem::swap(&mut facts, &mut other_facts);
            std::mem::swap(&mut run, &mut other);
            run.repeated = other.repeated;
        }
        run.inherit(&other);
    }
    Ok((facts, run))
}

fn setting() -> Setting {
    let period = round::PERIOD;
    Setting {
        connections_per_second: (1.0 / period.as_secs_f64()).round() as u32,
        idle_connections: round::IDLE,
        active_connections: round::ACTIVE,
        active_every_ms: ms(period) * round::SPEAK as f64,
        quiet_ms: ms(round::QUIET),
        patience_ms: ms(round::PATIENCE),
        slow_above_ms: ms(figures::SLOW),
        inter_ms: ms(INTER),
        timeout_ms: ms(TIMEOUT),
        fall: FALL,
        rise: RISE,
        hold_ms: ms(HOLD),
    }
}

fn haproxy_version() -> Result<String> {
    let output = Command::new("haproxy")
        .arg("-v")
        .output()
        .context("cannot run haproxy")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    let words: Vec<&str> = first.split(' ').take(3).collect();
    Ok(words.join(" ").replace(" version", ""))
}
