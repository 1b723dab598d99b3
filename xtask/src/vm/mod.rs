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
mod report;
mod run;

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::{
    kernels::{Image, KERNELS, Kernel},
    report::Outcome,
    run::{Request, Suite},
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
    /// Kernels that run at once [default: one a processor]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// A summary to read, or one JSON object with every test
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// Show everything that the tests print, on standard error
    #[arg(short, long)]
    verbose: bool,
    /// Show the kernels instead of booting them
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
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

    // Fetched one by one, before anything boots: apt shares its folders with nobody.
    let mut images = Vec::new();
    for &kernel in &wanted {
        images.push((kernel, kernel.image(options.fresh)));
    }
    qemu::catch_signals();
    let outcomes = attend(options, &request, images)?;
    let [passed, failed, skipped] = report::sums(&outcomes);
    match options.format {
        Format::Human => println!("{passed} passed, {failed} failed, {skipped} skipped"),
        Format::Json => println!("{:#}", report::json(&outcomes)),
    }
    if failed == 0 && passed + skipped == 0 {
        bail!("no test ran: no name contains the filter");
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the kernels, some at once: a VM keeps one processor busy. Outcomes are in the
/// order of the kernels, and shown as they come.
fn attend(
    options: &Options,
    request: &Request<'_>,
    images: Vec<(&Kernel, Result<Image>)>,
) -> Result<Vec<Outcome>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.map_or(processors, usize::from);
    let count = images.len();
    let queue = Mutex::new(images.into_iter().enumerate());
    let outcomes = Mutex::new(Vec::new());
    let locked = || outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, (kernel, image))) = next else {
                return Ok(());
            };
            let outcome = match image {
                Ok(image) => {
                    eprintln!("xtask: booting Linux {}", image.release);
                    request.run(kernel, &image)?
                }
                Err(error) => Outcome::untested(kernel.version, format!("{error:#}")),
            };
            // Shown while the lock is held, so that no two are mixed.
            let mut outcomes = locked();
            match options.format {
                Format::Human => print!("{}", outcome.text()),
                Format::Json => eprint!("{}", outcome.text()),
            }
            outcomes.push((at, outcome));
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(count)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|p| std::panic::resume_unwind(p))
        })
    })?;
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(at, _)| *at);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
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
        for feature in kernel.lacks() {
            let (major, minor) = feature.since;
            println!(
                "      lacks {} (Linux {major}.{minor}): {} instead",
                feature.name, feature.instead
            );
        }
    }
}
