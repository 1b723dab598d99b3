//! The bench of the datapath: programs against floors, throughput against other
//! ways, the cost of a switch. `tests/BENCH-datapath.md` tells how and why.
//!
//! Bars that are missed are said, and do not fail: this measures, tests judge.

mod bars;
mod harness;
mod human;
#[path = "../../../../probe-ebpf/src/floors/job.rs"]
mod job;
mod packets;
mod programs;
mod switch;
mod throughput;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use lab::{
    Namespace,
    bench::{Bar, Machine, teller},
};
use probe_user::datapath::OBJECT;
use serde::Serialize;

use crate::programs::{Bench, seconds};

#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// The object with floors and drivers
    #[arg(long)]
    floors: PathBuf,
    /// Measure the programs of this object instead of the embedded ones; its maps must
    /// have the same shapes
    #[arg(long)]
    object: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Programs,
    Throughput,
    Switch,
}

/// How much is measured.
pub struct Scale {
    /// Rounds of programs; one more is run before.
    pub rounds: u32,
    /// Packets of a run.
    pub packets: u32,
    /// Past it no further round of programs begins.
    pub programs_limit: Duration,
    /// Rounds of load.
    pub loads: u32,
    pub load_seconds: u32,
    /// Past it no further round of load begins.
    pub loads_limit: Duration,
    /// Batches of stores; twice as many single switches.
    pub switches: u32,
}

const FULL: Scale = Scale {
    rounds: 50,
    packets: 100_000,
    programs_limit: seconds(240),
    loads: 21,
    load_seconds: 1,
    loads_limit: seconds(220),
    switches: 500,
};
const QUICK: Scale = Scale {
    rounds: 12,
    packets: 50_000,
    programs_limit: seconds(40),
    loads: 5,
    load_seconds: 1,
    loads_limit: seconds(40),
    switches: 100,
};

/// What was measured, on what.
#[derive(Serialize)]
pub struct Figures {
    pub machine: Machine,
    pub programs: Option<programs::Programs>,
    pub throughput: Option<throughput::Throughput>,
    pub switches: Vec<switch::Switch>,
    pub bars: Vec<Bar>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", lab::journal::text());
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if let Some(reason) = lab::privilege::missing() {
        bail!("{reason}: the bench loads BPF programs and makes network namespaces");
    }
    let scale = if args.quick { &QUICK } else { &FULL };
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let mut figures = Figures {
        machine: Machine::here()?,
        programs: None,
        throughput: None,
        switches: Vec::new(),
        bars: Vec::new(),
    };
    let mut tell = teller();
    if wanted(Part::Programs) || wanted(Part::Switch) {
        // For its own BPF file system: pins vanish with it.
        let bench = Namespace::new("bench")?;
        bench.run(|| {
            harness::stay_on(figures.machine.cpus - 1)?;
            let other = args
                .object
                .as_ref()
                .map(|path| {
                    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
                })
                .transpose()?;
            let object = other.as_deref().unwrap_or(OBJECT);
            let mut bench = Bench::open(&args.floors, object)?;
            if wanted(Part::Switch) && figures.machine.cpus > 1 {
                tell("switch, empty tables");
                let switch = switch::measure(&mut bench.full, 1, scale)?;
                figures.switches.push(switch);
            }
            tell("programs: establishing flows");
            bench.fill()?;
            if wanted(Part::Switch) && figures.machine.cpus > 1 {
                tell("switch, full tables");
                let switch = switch::measure(&mut bench.full, programs::FLOWS[2], scale)?;
                figures.switches.push(switch);
            }
            if wanted(Part::Programs) {
                figures.programs = Some(bench.measure(scale, &mut tell)?);
            }
            Ok(())
        })?;
    }
    if wanted(Part::Throughput) {
        // Client and servers inherit it: what else runs on the machine disturbs less.
        // SAFETY: only numbers are passed; without the right to it nothing changes.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
        figures.throughput = Some(throughput::measure(scale, &mut tell)?);
    }
    figures.bars = bars::judge(&figures)?;
    match args.format {
        Format::Human => print!("{}", human::tables(&figures)),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&figures).context("the figures are JSON")?
        ),
    }
    Ok(())
}
