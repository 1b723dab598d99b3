//! `fuzz`: bad input for the packet code, or for what reads servers' answers or talks to them,
//! guided by coverage, for a bounded time.
//!
//! The targets are in `tests/fuzz`; libFuzzer runs one, begun from `tests/cases`. What it
//! finds worth keeping goes to `found` beside it, reduced to what brings coverage
//! that nothing else there brings. The compiler flags are those of cargo-fuzz, set
//! here: the pinned compiler can do all of it, and no second toolchain is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    cargo::{cargo, executables, root, tool},
    run::{checked, output},
    toolchain::{self, Program},
};

/// The address sanitizer sees every access beyond a frame. 0x1f separates flags in
/// CARGO_ENCODED_RUSTFLAGS.
const FLAGS: &str = "-Zsanitizer=address\x1f--cfg=fuzzing";
/// What libFuzzer needs to see which ways the code went and what it compared.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Frames and heads are short; the longest made by hand says what must be reachable.
const MAX_LEN: usize = 1024;
/// One input takes microseconds. Past this it hangs.
const INPUT_SECONDS: u32 = 10;
/// What is kept besides the hand-made cases.
const KEEP_FILES: usize = 160;
const KEEP_BYTES: u64 = 100_000;

/// What is fuzzed.
#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// The packet code.
    Packets,
    /// What reads the answers to checks by HTTP.
    Answers,
    /// What holds the conversations of other checks.
    Talks,
}

impl Target {
    fn binary(self) -> &'static str {
        match self {
            Self::Packets => "fuzz-packets",
            Self::Answers => "fuzz-answers",
            Self::Talks => "fuzz-talks",
        }
    }

    /// Where its cases are, and below `target` what it works with.
    fn folders(self) -> (PathBuf, PathBuf) {
        let (cases, home) = (root().join("tests/cases"), root().join("target/fuzz"));
        match self {
            Self::Packets => (cases, home),
            Self::Answers => (cases.join("answers"), home.join("answers")),
            Self::Talks => (cases.join("talks"), home.join("talks")),
        }
    }

    /// The file that names its findings.
    fn made(self) -> &'static str {
        match self {
            Self::Packets => "tests/fuzz/src/made.rs",
            Self::Answers => "tests/fuzz/src/answers.rs",
            Self::Talks => "tests/fuzz/src/talks.rs",
        }
    }

    /// What it is built of.
    fn features(self) -> &'static str {
        match self {
            Self::Packets | Self::Answers => "libfuzzer",
            Self::Talks => "libfuzzer,talks",
        }
    }

    /// Whose ways matter. Those of the second opinion, or of a runtime, would only fill the corpus.
    /// The agent's own package has a build script, which would get the flags too; but its
    /// conversations are generic over the stream, so they are compiled with the target's.
    fn covered(self) -> &'static [&'static str] {
        match self {
            Self::Packets | Self::Answers => &["probe-ebpf", "probe-fuzz"],
            Self::Talks => &["probe-fuzz", "postgres-protocol", "h2"],
        }
    }
}

#[derive(Args)]
pub struct Options {
    /// What to fuzz
    #[arg(long, value_enum, default_value_t = Target::Packets)]
    target: Target,
    /// How long to look for failures
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Leave tests/cases as it is
    #[arg(long)]
    keep_nothing: bool,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let target = build(options.target)?;
    let (cases, home) = options.target.folders();
    let (made, found) = (cases.join("made"), cases.join("found"));
    // Findings of an earlier run would be taken for this one's.
    let begun = SystemTime::UNIX_EPOCH
        .elapsed()
        .context("the clock is before 1970")?;
    let findings = home.join(format!("findings-{}", begun.as_millis()));
    let corpus = home.join("corpus");
    for folder in [&findings, &corpus, &found] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }

    eprintln!("xtask: fuzzing for {} s", options.seconds);
    let mut fuzzer = Command::new(&target);
    fuzzer
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-max_len={MAX_LEN}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args([&corpus, &made, &found]);
    let status = fuzzer
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run {}", target.display()))?;
    let crashes = files(&findings)?;
    for (path, _) in &crashes {
        println!("FAILED: {}", path.display());
        eprintln!("xtask: once mended, name it in {}", options.target.made());
    }
    if !crashes.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    fs::remove_dir(&findings).with_context(|| format!("cannot remove {}", findings.display()))?;
    if !status.success() {
        bail!("the fuzzer broke off without a finding: {status}");
    }
    if !options.keep_nothing {
        let (kept, bytes) = keep(&target, &made, &found, &corpus, &home)?;
        let found = found.display();
        eprintln!("xtask: {kept} cases of {bytes} bytes are in {found}");
    }
    eprintln!("xtask: nothing found");
    Ok(ExitCode::SUCCESS)
}

fn build(target: Target) -> Result<PathBuf> {
    // libFuzzer itself is C++.
    toolchain::need_programs(&[Program {
        name: "c++",
        package: "g++",
    }])?;
    let version = output(tool("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    eprintln!("xtask: building the fuzz target");
    let mut command = cargo("build");
    command
        .args(["--release", "--package", "probe-fuzz"])
        .args(["--no-default-features", "--features", target.features()])
        .args(["--bin", target.binary()])
        // With a target, build scripts and macros are built without the flags.
        .args(["--target", host, "--target-dir"])
        .arg(root().join("target/fuzz"))
        .args(["-Z", "profile-rustflags"])
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        // Unstable flags of a stable compiler and its cargo.
        .env("RUSTC_BOOTSTRAP", "1");
    for package in target.covered() {
        let flags = format!("profile.release.package.{package}.rustflags={COVERAGE:?}");
        command.args(["--config", &flags]);
    }
    let made = executables(&mut command)?;
    let built = made.into_iter().find(|built| built.name == target.binary());
    Ok(built.context("the build made no fuzz target")?.path)
}

/// Replaces `found` by the smallest inputs that together reach what is reached beyond
/// the hand-made cases; tells how many and how large they are.
fn keep(
    target: &Path,
    made: &Path,
    found: &Path,
    corpus: &Path,
    home: &Path,
) -> Result<(usize, u64)> {
    let merged = home.join("merged");
    if merged.exists() {
        fs::remove_dir_all(&merged)
            .with_context(|| format!("cannot empty {}", merged.display()))?;
    }
    fs::create_dir_all(&merged).with_context(|| format!("cannot make {}", merged.display()))?;
    // What is in the first folder is there to stay: the hand-made cases.
    for (path, _) in files(made)? {
        let name = path.file_name().context("a file has a name")?;
        fs::copy(&path, merged.join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    let mut merge = Command::new(target);
    merge
        // As few inputs as reach everything, and no more of them to reach it more often.
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-max_len={MAX_LEN}"))
        .args([&merged, &found.to_path_buf(), &corpus.to_path_buf()]);
    checked(&mut merge)?;

    let mut new = Vec::new();
    for (path, bytes) in files(&merged)? {
        let name = path.file_name().context("a file has a name")?;
        if !made.join(name).exists() {
            new.push((bytes, path));
        }
    }
    new.sort();
    let mut sum = 0;
    new.retain(|(bytes, _)| {
        sum += bytes;
        sum <= KEEP_BYTES
    });
    new.truncate(KEEP_FILES);
    for (path, _) in files(found)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    for (_, path) in &new {
        let name = path.file_name().context("a file has a name")?;
        fs::copy(path, found.join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok((new.len(), new.iter().map(|(bytes, _)| bytes).sum()))
}

/// The files of a folder and their sizes.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let read = || -> std::io::Result<_> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            all.push((entry.path(), entry.metadata()?.len()));
        }
        Ok(all)
    };
    read().with_context(|| format!("cannot read {}", folder.display()))
}
