//! `bench`: builds what the lab's bench needs, in release, and becomes it.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    build_ebpf,
    cargo::{build_release, root},
    toolchain,
};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Programs against floors, throughput against other ways, the cost of a switch
    Datapath(Datapath),
    /// What clients see of an outage, by probe, HAProxy and a plain rule
    Failover(Failover),
    /// What checks cost and when they come, by probe and HAProxy
    Probes(Probes),
}

#[derive(Args)]
struct Datapath {
    /// Tables to read, or one JSON object
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// Fewer and shorter rounds: under two minutes instead of ten
    #[arg(long)]
    quick: bool,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Args)]
struct Failover {
    /// Tables to read, or one JSON object
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// One round of the ways that are fast, fewer flows: two minutes instead of ten
    #[arg(long)]
    quick: bool,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Outage>,
    /// Write the latency around each fault into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Args)]
struct Probes {
    /// Tables to read, or one JSON object
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// Fewer and shorter runs: a minute and a half instead of eight
    #[arg(long)]
    quick: bool,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Checks>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

impl Format {
    const fn word(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Outage {
    /// Every fault on every way
    Faults,
    /// Very many idle connections
    Flows,
}

#[derive(Clone, Copy, ValueEnum)]
enum Checks {
    /// CPU per check, by kind
    Costs,
    /// Achieved period, lateness, memory
    Periods,
    /// From a fault to the verdict
    Detection,
    /// False alarms beside other work
    Saturated,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Programs,
    Throughput,
    Switch,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    if !toolchain::is_root() {
        bail!("the bench makes network namespaces and loads BPF programs: run it as root");
    }
    match &options.what {
        What::Datapath(options) => datapath(options),
        What::Failover(options) => failover(options),
        What::Probes(options) => probes(options),
    }
}

fn datapath(options: &Datapath) -> Result<ExitCode> {
    toolchain::need_programs(toolchain::BENCH)?;
    build_ebpf::build()?;
    let floors = build_ebpf::build_floors()?;
    eprintln!("xtask: building in release");
    let [bench, probe] = build_release(["lab-bench", "probe"])?;
    let mut command = Command::new(&bench);
    command.arg("--floors").arg(floors);
    command.args(["--format", options.format.word()]);
    if options.quick {
        command.arg("--quick");
    }
    if let Some(part) = options.only {
        command.args([
            "--only",
            match part {
                Part::Programs => "programs",
                Part::Throughput => "throughput",
                Part::Switch => "switch",
            },
        ]);
    }
    command.env("PROBE_BIN", probe);
    become_it(command, &bench)
}

fn failover(options: &Failover) -> Result<ExitCode> {
    toolchain::need_programs(toolchain::OUTAGE)?;
    build_ebpf::build()?;
    eprintln!("xtask: building in release");
    let [bench, server, probe] = build_release(["lab-outage", "lab-server", "probe"])?;
    let mut command = Command::new(&bench);
    command.args(["--format", options.format.word()]);
    if options.quick {
        command.arg("--quick");
    }
    if let Some(part) = options.only {
        command.args([
            "--only",
            match part {
                Outage::Faults => "faults",
                Outage::Flows => "flows",
            },
        ]);
    }
    if let Some(file) = &options.plot {
        // As the shell that we were called from means it.
        let here = env::current_dir().context("cannot tell the working directory")?;
        command.args([OsStr::new("--plot"), here.join(file).as_os_str()]);
    }
    command.env("PROBE_BIN", probe).env("LAB_SERVER", server);
    become_it(command, &bench)
}

fn probes(options: &Probes) -> Result<ExitCode> {
    toolchain::need_programs(toolchain::PROBES)?;
    build_ebpf::build()?;
    eprintln!("xtask: building in release");
    let [bench, probe] = build_release(["lab-probes", "probe"])?;
    let mut command = Command::new(&bench);
    command.args(["--format", options.format.word()]);
    if options.quick {
        command.arg("--quick");
    }
    if let Some(part) = options.only {
        command.args([
            "--only",
            match part {
                Checks::Costs => "costs",
                Checks::Periods => "periods",
                Checks::Detection => "detection",
                Checks::Saturated => "saturated",
            },
        ]);
    }
    command.env("PROBE_BIN", probe);
    become_it(command, &bench)
}

/// Replacing this process hands Ctrl-C and the exit code straight to the bench.
fn become_it(mut command: Command, bench: &Path) -> Result<ExitCode> {
    let error = command.current_dir(root()).exec();
    Err(error).with_context(|| format!("cannot run {}", bench.display()))
}
