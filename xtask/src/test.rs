//! `test`: the rings that need no other kernel: unit and property tests, packet
//! tables, network namespaces.
//!
//! Everything is built first and then run from here, so that the last line is one
//! sum over all of it. Tests that need root say so and are counted as skipped by
//! the line they print; when CI is set they fail instead.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{
    build_ebpf,
    cargo::{Executable, build_binaries, cargo, executables},
    lint,
    supervise::Sum,
    toolchain,
};

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

pub fn run(options: &Options) -> Result<ExitCode> {
    if toolchain::is_root() {
        toolchain::need_programs(toolchain::LAB)?;
        toolchain::need_programs(toolchain::SECOND)?;
        if std::env::var_os("CI").is_some() {
            toolchain::need_programs(toolchain::BROWSER)?;
        }
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
        let plain = || {
            let mut command = Command::new(&suite.path);
            command
                .current_dir(&suite.package)
                .env("CARGO_MANIFEST_DIR", &suite.package)
                .env("LAB_SERVER", &server)
                .env("PROBE_BIN", &probe);
            command
        };
        let mut command = plain();
        command.args(&options.filter);
        if options.list {
            list(suite, &mut command)?;
            continue;
        }
        // Timing is part of what the lab tests: one at a time.
        let lab = suite.kind == "test" && suite.package.ends_with("tests");
        if lab {
            command.arg("--test-threads=1");
        }
        sum.supervise(
            &title(suite),
            command,
            lab.then_some(&plain as &dyn Fn() -> Command),
        )?;
    }
    if options.list {
        return Ok(ExitCode::SUCCESS);
    }
    if options.filter.is_none() {
        let mut docs = cargo("test");
        docs.args(["--workspace", "--doc", "--quiet"]);
        sum.supervise("documentation", docs, None)?;
    }
    sum.finish()
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
