//! The only door: what CI runs is what a person types.
//!
//! Every verb builds the kernel side first, because the agent embeds it, and
//! installs or names what it misses. Nothing but a verb's own result goes to
//! standard output, so that `cargo xtask demo --format json` can be piped.

mod bench;
mod build_ebpf;
mod cargo;
mod demo;
mod fuzz;
mod image;
mod lint;
mod run;
mod supervise;
mod tally;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Build, test, lint, demo, bench and image of probe"
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the kernel side into target/ebpf/probe-ebpf.o
    BuildEbpf,
    /// Lint, then unit and property tests, packet tables and network namespaces
    Test(test::Options),
    /// Packet tables and network namespaces on other kernels, in QEMU
    Vm(vm::Options),
    /// Formatting and clippy, for the host and for the kernel side
    Lint,
    /// Kill a master under load in network namespaces and tell what its clients saw
    Demo(demo::Options),
    /// Measure what steering costs, or what clients see of an outage, against other ways
    Bench(bench::Options),
    /// Look for bad input that breaks the packet code, guided by coverage
    Fuzz(fuzz::Options),
    /// Build the static binary and a container image FROM scratch around it
    Image(image::Options),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().verb {
        Verb::BuildEbpf => build_ebpf::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Vm(options) => vm::run(&options),
        Verb::Lint => lint::run(),
        Verb::Demo(options) => demo::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Image(options) => image::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
