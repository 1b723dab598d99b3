//! `vm`: the packet tables and the namespace tests on other kernels.
//!
//! Debian's kernels boot in QEMU, emulated, so any x86-64 machine can do it and
//! none needs another kernel installed. Emulation tests function, not speed, and
//! one emulated processor has no races: those are tested on the host's own kernel.

mod apt;
mod emulator;
mod initramfs;
mod kernels;
mod qemu;
mod run;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use self::{
    kernels::{KERNELS, Kernel},
    run::{Outcome, Request, Suite},
};
use crate::{build_ebpf, toolchain};

#[derive(Args)]
pub struct Options {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Kernels to boot, as `--list` names them; may be repeated [default: all]
    #[arg(long, value_name = "VERSION", value_parser = known)]
    kernel: Vec<&'static str>,
    /// Test programs to run; may be repeated [default: all]
    #[arg(long, value_enum)]
    suite: Vec<Suite>,
    /// Fetch the kernels anew, as they are in Debian today
    #[arg(long)]
    fresh: bool,
    /// Show everything that the tests print
    #[arg(short, long)]
    verbose: bool,
    /// Show the kernels instead of booting them
    #[arg(long)]
    list: bool,
}

fn known(version: &str) -> Result<&'static str, String> {
    KERNELS
        .iter()
        .map(|kernel| kernel.version)
        .find(|known| *known == version)
        .ok_or_else(|| {
            let all: Vec<&str> = KERNELS.iter().map(|kernel| kernel.version).collect();
            format!("the kernels are {}", all.join(", "))
        })
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let wanted: Vec<&Kernel> = KERNELS
        .iter()
        .filter(|kernel| options.kernel.is_empty() || options.kernel.contains(&kernel.version))
        .collect();
    if options.list {
        list(&wanted);
        return Ok(ExitCode::SUCCESS);
    }
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels are for x86-64: the VM runs this machine's own programs");
    }
    if !toolchain::is_root() {
        bail!("only root may share this machine's root with a VM: run it with sudo");
    }
    let suites: Vec<Suite> = Suite::ALL
        .into_iter()
        .filter(|suite| options.suite.is_empty() || options.suite.contains(suite))
        .collect();
    let emulator = emulator::need()?;
    if suites.contains(&Suite::Net) {
        toolchain::need_programs(toolchain::LAB)?;
    }
    build_ebpf::build()?;
    eprintln!("xtask: building");
    let built = run::build(&suites)?;
    let request = Request {
        built: &built,
        emulator: &emulator,
        filter: options.filter.as_deref(),
        verbose: options.verbose,
    };

    let mut outcomes = Vec::new();
    for kernel in wanted {
        let image = match kernel.image(options.fresh) {
            Ok(image) => image,
            Err(error) => {
                println!("Linux {}: {error:#}", kernel.version);
                // Asked for and not tested is no success.
                outcomes.push(Outcome {
                    failed: 1,
                    ..Outcome::default()
                });
                continue;
            }
        };
        qemu::catch_signals();
        outcomes.push(request.run(&image)?);
    }
    Ok(if run::finish(&outcomes)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn list(kernels: &[&Kernel]) {
    for kernel in kernels {
        let state = match kernel.cached() {
            Some(image) => format!("fetched: {}", image.release),
            None => "not fetched yet".to_owned(),
        };
        println!(
            "{:<5} Debian {}; {state}",
            kernel.version,
            kernel.suites.join(" or ")
        );
    }
}
