//! `image`: the static binary and a container image FROM scratch around it.
//!
//! Whichever of docker, podman and buildah answers builds it; all read the same
//! deploy/Dockerfile. The image is also written as an archive, so that a cluster
//! without a registry can import it.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    cargo::{cargo, executables, root},
    run::{checked, succeeds},
    toolchain::{self, Program, find_program},
};

#[derive(Args)]
pub struct Options {
    /// Name and tag of the image
    #[arg(long, default_value = concat!("probe:", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Machine architecture of the image
    #[arg(long, default_value = env::consts::ARCH, value_parser = ["x86_64", "aarch64"])]
    arch: String,
    /// Build the static binary only
    #[arg(long)]
    binary_only: bool,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    build_ebpf::build()?;
    let context = root().join("target/image");
    fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    let binary = context.join("probe");
    static_binary(&options.arch, &binary)?;
    eprintln!("xtask: {} is static", binary.display());
    if options.binary_only {
        println!("{}", binary.display());
        return Ok(ExitCode::SUCCESS);
    }
    let archive = context.join(format!("{}.tar", options.tag.replace([':', '/'], "-")));
    build_image(&options.tag, &options.arch, &context, &archive)?;
    println!("{} {}", options.tag, archive.display());
    Ok(ExitCode::SUCCESS)
}

fn static_binary(arch: &str, to: &Path) -> Result<()> {
    let target = format!("{arch}-unknown-linux-musl");
    toolchain::need_target(&target)?;
    // Only crates with C code need musl's C side; Rust brings its own otherwise.
    let compiles_c = succeeds(
        cargo("tree")
            .args(["--package", "probe-user", "--edges", "normal,build"])
            .args(["--target", &target, "--invert", "cc"]),
    );
    let mut build = cargo("build");
    build
        .args(["--package", "probe-user", "--bin", "probe", "--release"])
        .args(["--target", &target]);
    if arch != env::consts::ARCH {
        // Rust's own linker knows every architecture; the system's cc only one.
        let variable = format!(
            "CARGO_TARGET_{}_LINKER",
            target.to_uppercase().replace('-', "_")
        );
        build.env(variable, "rust-lld");
        if compiles_c {
            // Of glibc, but what is compiled (ring) asks the C library for next to nothing.
            let compiler = cross_compiler(arch)?;
            build.env(format!("CC_{}", target.replace('-', "_")), compiler.name);
            toolchain::need_programs(&[compiler])?;
        }
    } else if compiles_c {
        toolchain::need_programs(&[Program {
            name: "musl-gcc",
            package: "musl-tools",
        }])?;
    }
    let built = executables(&mut build)?;
    let binary = built
        .iter()
        .find(|built| built.name == "probe")
        .context("the build made no binary `probe`")?;
    refuse_dynamic(&binary.path)?;
    fs::copy(&binary.path, to)
        .with_context(|| format!("cannot copy {} to {}", binary.path.display(), to.display()))?;
    Ok(())
}

/// A C compiler for another architecture.
fn cross_compiler(arch: &str) -> Result<Program> {
    match arch {
        "aarch64" => Ok(Program {
            name: "aarch64-linux-gnu-gcc",
            package: "crossbuild-essential-arm64",
        }),
        "x86_64" => Ok(Program {
            name: "x86_64-linux-gnu-gcc",
            package: "crossbuild-essential-amd64",
        }),
        other => bail!("no C compiler is known for {other}"),
    }
}

/// An image FROM scratch has no dynamic linker: the ELF file must not ask for one.
fn refuse_dynamic(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match asks_for_interpreter(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!(
            "{} is not static: it asks for a dynamic linker",
            path.display()
        ),
        None => bail!("{} is not a 64-bit little-endian ELF file", path.display()),
    }
}

/// Whether an ELF64 file has a PT_INTERP program header (System V gABI, chapter 5).
fn asks_for_interpreter(file: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let word16 = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    let offset = usize::try_from(u64::from_le_bytes(file.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(word16(54)?), usize::from(word16(56)?));
    for header in 0..count {
        let at = offset.checked_add(header * size)?;
        let kind = u32::from_le_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

enum Engine {
    Docker,
    Podman,
    Buildah,
}

/// The first that answers; a docker without its daemon does not.
fn engine() -> Result<Engine> {
    if succeeds(Command::new("docker").arg("info")) {
        return Ok(Engine::Docker);
    }
    if succeeds(Command::new("podman").arg("info")) {
        return Ok(Engine::Podman);
    }
    if find_program("buildah").is_none() {
        toolchain::need_programs(&[Program {
            name: "buildah",
            package: "buildah",
        }])
        .context("docker, podman or buildah is needed to build an image")?;
    }
    Ok(Engine::Buildah)
}

fn build_image(tag: &str, arch: &str, context: &Path, archive: &Path) -> Result<()> {
    let dockerfile = root().join("deploy/Dockerfile");
    let platform = if arch == "aarch64" {
        "linux/arm64"
    } else {
        "linux/amd64"
    };
    if archive.exists() {
        fs::remove_file(archive)
            .with_context(|| format!("cannot replace {}", archive.display()))?;
    }
    let build = |command: &mut Command| {
        checked(
            command
                .args(["--platform", platform, "--tag", tag, "--file"])
                .arg(&dockerfile)
                .arg(context),
        )
    };
    let destination = format!("docker-archive:{}:{tag}", archive.display());
    match engine()? {
        Engine::Docker => {
            build(Command::new("docker").arg("build"))?;
            checked(
                Command::new("docker")
                    .args(["save", "--output"])
                    .arg(archive)
                    .arg(tag),
            )
        }
        Engine::Podman => {
            build(Command::new("podman").arg("build"))?;
            checked(
                Command::new("podman")
                    .args(["save", "--output"])
                    .arg(archive)
                    .arg(tag),
            )
        }
        Engine::Buildah => {
            // vfs and chroot work where overlay mounts and namespaces do not; the
            // image has one layer and no RUN, so they cost nothing.
            let buildah = || {
                let mut command = Command::new("buildah");
                command.args(["--storage-driver", "vfs"]);
                command
            };
            build(buildah().args(["bud", "--isolation", "chroot"]))?;
            checked(buildah().args(["push", "--quiet", tag, &destination]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::asks_for_interpreter;

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&(kinds.len() as u16).to_le_bytes());
        for kind in kinds {
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(&[0; 52]);
        }
        file
    }

    #[test]
    fn an_interpreter_is_found_among_the_headers() {
        assert_eq!(asks_for_interpreter(&elf(&[1, 1, 2])), Some(false));
        assert_eq!(asks_for_interpreter(&elf(&[6, 3, 1])), Some(true));
    }

    #[test]
    fn what_is_not_elf_or_cut_short_is_told() {
        assert_eq!(asks_for_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(asks_for_interpreter(&elf(&[1, 2])[..100]), None);
    }
}
