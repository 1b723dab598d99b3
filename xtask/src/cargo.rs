//! Nested calls of cargo, as if typed in the workspace's root.
//!
//! `cargo xtask` runs under cargo and rustup, which leave their variables in the
//! environment: a RUSTUP_TOOLCHAIN that outranks rust-toolchain.toml, flags meant
//! for the outer build. Nested calls start without them.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::shown;

/// The workspace's root: the parent of this package.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
        .to_path_buf()
}

/// Cargo's folder of installed binaries.
pub fn bin_dir() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .map(|home| home.join("bin"))
}

/// The search path with cargo's installed binaries in it: rustc finds bpf-linker there.
fn search_path() -> OsString {
    let old = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&old).collect();
    if let Some(bin) = bin_dir().filter(|bin| !folders.contains(bin)) {
        folders.push(bin);
    }
    env::join_paths(folders).unwrap_or(old)
}

/// A tool of the toolchain (cargo, rustc, rustup, bpf-linker) at the workspace's root.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root()).env("PATH", search_path());
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        let leaks = name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || matches!(
                &*name,
                "CARGO"
                    | "CARGO_ENCODED_RUSTFLAGS"
                    | "RUSTFLAGS"
                    | "RUSTC_BOOTSTRAP"
                    | "RUSTUP_TOOLCHAIN"
                    | "RUST_RECURSION_COUNT"
            );
        if leaks {
            command.env_remove(&key);
        }
    }
    command
}

/// `cargo VERB` at the workspace's root.
pub fn cargo(verb: &str) -> Command {
    let mut command = tool("cargo");
    command.arg(verb);
    command
}

/// A binary or test executable that cargo built.
pub struct Executable {
    /// Name of the target.
    pub name: String,
    /// `lib`, `bin`, `test`.
    pub kind: String,
    /// Folder of its package.
    pub package: PathBuf,
    pub path: PathBuf,
    /// Built as a test harness.
    pub is_test: bool,
}

/// Runs a build (`command` without a message format) and tells what it made.
pub fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", shown(command), output.status);
    }
    let mut made = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let Some(path) = message["executable"].as_str() else {
            continue;
        };
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        made.push(Executable {
            name: text(&message["target"]["name"]),
            kind: text(&message["target"]["kind"][0]),
            package: manifest.parent().unwrap_or(manifest).to_path_buf(),
            path: PathBuf::from(path),
            is_test: message["profile"]["test"].as_bool().unwrap_or(false),
        });
    }
    Ok(made)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Builds the agent and the lab's programs; returns the paths of the named binaries.
pub fn build_binaries<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N]> {
    let mut command = cargo("build");
    command.args([
        "--package",
        "probe-user",
        "--package",
        "probe-tests",
        "--bins",
    ]);
    named(&mut command, names)
}

/// Builds only the named binaries, optimized; returns their paths.
pub fn build_release<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N]> {
    build_profile("release", names)
}

/// Builds only the named binaries by a profile of Cargo.toml; returns their paths.
pub fn build_profile<const N: usize>(profile: &str, names: [&str; N]) -> Result<[PathBuf; N]> {
    let mut command = cargo("build");
    command.args(["--profile", profile, "--package", "probe-user"]);
    command.args(["--package", "probe-tests"]);
    for name in names {
        command.args(["--bin", name]);
    }
    named(&mut command, names)
}

fn named<const N: usize>(command: &mut Command, names: [&str; N]) -> Result<[PathBuf; N]> {
    let made = executables(command)?;
    let mut paths = [const { PathBuf::new() }; N];
    for (path, name) in paths.iter_mut().zip(names) {
        path.clone_from(
            &made
                .iter()
                .find(|built| built.name == name && built.kind == "bin")
                .with_context(|| format!("the build made no binary `{name}`"))?
                .path,
        );
    }
    Ok(paths)
}
