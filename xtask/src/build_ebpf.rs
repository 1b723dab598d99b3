//! `build-ebpf`: the kernel side, by the pinned stable compiler with a `core`
//! built from source, as the Linux kernel builds its Rust code.
//!
//! The object always lands at one fixed place, whatever target folder cargo was
//! told to use, because the agent's build script looks for it there.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};

use crate::{
    cargo::{cargo, root},
    run::checked,
    toolchain,
};

pub const TARGET: &str = "bpfel-unknown-none";

/// Debug information becomes BTF, which `#[btf_map]` and the kernel's tools read.
/// 0x1f separates flags in CARGO_ENCODED_RUSTFLAGS.
pub const FLAGS: &str = "-Cdebuginfo=2\x1f-Clink-arg=--btf";

pub fn run() -> Result<ExitCode> {
    build()?;
    eprintln!("xtask: target/ebpf/probe-ebpf.o is built");
    Ok(ExitCode::SUCCESS)
}

/// Builds what is not fresh.
pub fn build() -> Result<()> {
    binary("probe-ebpf").map(drop)
}

/// Builds the programs that the bench compares with.
pub fn build_floors() -> Result<PathBuf> {
    binary("probe-floors")
}

fn binary(name: &str) -> Result<PathBuf> {
    toolchain::need_rust_src()?;
    toolchain::need_bpf_linker()?;
    let target_dir = root().join("target/ebpf");
    let mut command = cargo("build");
    command
        .args(["--quiet", "--package", "probe-ebpf", "--bin", name])
        .args([
            "--features",
            "kernel",
            "--profile",
            "ebpf",
            "--target",
            TARGET,
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS)
        // build-std is an unstable flag of a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1");
    checked(&mut command).with_context(|| format!("{name} does not build"))?;

    let built = target_dir.join(TARGET).join("ebpf").join(name);
    let object = target_dir.join(format!("{name}.o"));
    let new = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // An unchanged object keeps its time, so the agent is not rebuilt for nothing.
    if fs::read(&object).ok().as_deref() != Some(&new) {
        fs::write(&object, new).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}
