//! `bench`: builds what the lab's bench needs, in release, and becomes it.

use std::{
    os::unix::process::CommandExt,
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

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Programs,
    Throughput,
    Switch,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let What::Datapath(options) = &options.what;
    if !toolchain::is_root() {
        bail!("the bench makes network namespaces and loads BPF programs: run it as root");
    }
    toolchain::need_programs(toolchain::BENCH)?;
    build_ebpf::build()?;
    let floors = build_ebpf::build_floors()?;
    eprintln!("xtask: building in release");
    let [bench, probe] = build_release(["lab-bench", "probe"])?;
    let mut command = Command::new(&bench);
    command.arg("--floors").arg(floors).args([
        "--format",
        match options.format {
            Format::Human => "human",
            Format::Json => "json",
        },
    ]);
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
    // Replacing this process hands Ctrl-C and the exit code straight to the bench.
    let error = command.current_dir(root()).env("PROBE_BIN", probe).exec();
    Err(error).with_context(|| format!("cannot run {}", bench.display()))
}
