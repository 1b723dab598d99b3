//! `demo`: builds what the lab's demo needs and becomes it.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{build_ebpf, cargo::build_binaries, toolchain};

#[derive(Args)]
pub struct Options {
    /// A timeline to read, or one JSON object
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    if !toolchain::is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    toolchain::need_programs(toolchain::DEMO)?;
    build_ebpf::build()?;
    let [demo, server, probe] = build_binaries(["lab-demo", "lab-server", "probe"])?;
    let format = match options.format {
        Format::Human => "human",
        Format::Json => "json",
    };
    // Replacing this process hands Ctrl-C and the exit code straight to the demo.
    let error = Command::new(&demo)
        .args(["--format", format])
        .env("PROBE_BIN", probe)
        .env("LAB_SERVER", server)
        .exec();
    Err(error).with_context(|| format!("cannot run {}", demo.display()))
}
