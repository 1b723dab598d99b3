//! `test`: the rings that need no other kernel: unit and property tests, packet
//! tables, network namespaces.
//!
//! Everything is built first and then run from here, so that the last line is one
//! sum over all of it. Tests that need root say so and are counted as skipped by
//! the line they print; when CI is set they fail instead.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    cargo::{Executable, build_binaries, cargo, executables},
    lint,
    tally::Tally,
    toolchain,
};

/// No test program takes a fraction of this: past it, it hangs.
const HANG: Duration = Duration::from_secs(15 * 60);

#[derive(Args)]
pub struct Options {
    /// Run only tests whose name contains this, without linting first
    filter: Option<String>,
    /// Name the tests instead of running them
    #[arg(long)]
    list: bool,
    /// Do not run rustfmt and clippy first
    #[arg(long)]
    no_lint: bool,
}

#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
    broken: Vec<String>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    if toolchain::is_root() {
        toolchain::need_programs(toolchain::LAB)?;
    }
    build_ebpf::build()?;
    if !options.list && !options.no_lint && options.filter.is_none() {
        eprintln!("xtask: rustfmt and clippy");
        lint::lint()?;
    }
    eprintln!("xtask: building");
    let [server, probe] = build_binaries(["lab-server", "probe"])?;
    let mut suites = executables(cargo("test").args(["--workspace", "--no-run"]))?;
    suites.retain(|built| built.is_test);
    // The quick ones first: what fails in them explains what fails later.
    suites.sort_by_key(|suite| (suite.kind == "test", suite.name.clone()));

    let mut sum = Sum::default();
    for suite in &suites {
        let mut command = Command::new(&suite.path);
        command
            .current_dir(&suite.package)
            .env("CARGO_MANIFEST_DIR", &suite.package)
            .env("LAB_SERVER", &server)
            .env("PROBE_BIN", &probe)
            .args(&options.filter);
        if options.list {
            list(suite, &mut command)?;
            continue;
        }
        // Timing is part of what the lab tests: one at a time.
        if suite.kind == "test" && suite.package.ends_with("tests") {
            command.arg("--test-threads=1");
        }
        supervise(&title(suite), &mut command, &mut sum)?;
    }
    if options.list {
        return Ok(ExitCode::SUCCESS);
    }
    if options.filter.is_none() {
        let mut docs = cargo("test");
        docs.args(["--workspace", "--doc", "--quiet"]);
        supervise("documentation", &mut docs, &mut sum)?;
    }
    finish(&sum)
}

fn title(suite: &Executable) -> String {
    let package = suite
        .package
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    format!("{package} {} {}", suite.kind, suite.name)
}

fn list(suite: &Executable, command: &mut Command) -> Result<()> {
    let names = crate::run::output(command.args(["--list", "--format", "terse"]))?;
    for name in names.lines().filter_map(|line| line.strip_suffix(": test")) {
        println!("{}: {name}", title(suite));
    }
    Ok(())
}

/// Runs one test program, shows what it prints and adds up what it says.
fn supervise(title: &str, command: &mut Command, sum: &mut Sum) -> Result<()> {
    println!("== {title}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", Path::new(command.get_program()).display()))?;
    let output = child.stdout.take().expect("stdout is piped");

    let (done, over) = mpsc::channel::<()>();
    let pid = child.id();
    let watchdog = thread::spawn(move || {
        if over.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("xtask: a test program hangs since {HANG:?}: killing it");
            // SAFETY: the child is reaped only after this thread was told, so the
            // process id is still its own.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        }
    });

    let mut tally = Tally::default();
    let mut screen = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read a test program's output")?;
        let text = String::from_utf8_lossy(&line);
        writeln!(screen, "{text}").context("cannot write to standard output")?;
        tally.read(&text);
    }
    drop(done);
    // It only waits for the word that was just given, or for the kill.
    watchdog.join().ok();
    let status = child.wait().context("cannot wait for a test program")?;
    if tally.passed < tally.skipped {
        bail!(
            "{title} skipped {} tests but passed {}",
            tally.skipped,
            tally.passed
        );
    }
    sum.passed += tally.passed - tally.skipped;
    sum.failed += tally.failed;
    sum.skipped += tally.skipped;
    if tally.failed > 0 {
        sum.broken.push(title.to_owned());
    } else if !status.success() || !tally.told {
        sum.failed += 1;
        sum.broken.push(format!("{title} ({status})"));
    }
    Ok(())
}

fn finish(sum: &Sum) -> Result<ExitCode> {
    for broken in &sum.broken {
        println!("FAILED: {broken}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        sum.passed, sum.failed, sum.skipped
    );
    if sum.failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    if sum.passed + sum.skipped == 0 {
        bail!("no test ran: no name contains the filter");
    }
    Ok(ExitCode::SUCCESS)
}
