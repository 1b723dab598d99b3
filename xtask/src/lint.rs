//! `lint`: formatting and clippy, warnings denied, for the host and for the kernel side.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{
    build_ebpf,
    cargo::{cargo, root},
    run::checked,
    toolchain,
};

pub fn run() -> Result<ExitCode> {
    build_ebpf::build()?;
    lint()?;
    eprintln!("xtask: no complaint from rustfmt and clippy");
    Ok(ExitCode::SUCCESS)
}

/// Expects the kernel side to be built.
pub fn lint() -> Result<()> {
    toolchain::need_subcommand("fmt", "rustfmt")?;
    toolchain::need_subcommand("clippy", "clippy")?;
    checked(cargo("fmt").args(["--all", "--check"]))
        .context("the code is not formatted: run `cargo fmt --all`")?;
    checked(cargo("clippy").args([
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-Dwarnings",
    ]))?;
    let mut kernel = cargo("clippy");
    kernel
        .args(["--quiet", "--package", "probe-ebpf", "--bins"])
        .args(["--features", "kernel", "--target", build_ebpf::TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(root().join("target/ebpf"))
        .args(["--", "-Dwarnings"])
        .env("CARGO_ENCODED_RUSTFLAGS", build_ebpf::FLAGS)
        .env("RUSTC_BOOTSTRAP", "1");
    checked(&mut kernel)
}
