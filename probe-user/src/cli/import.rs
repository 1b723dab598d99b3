//! `probe import`.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::Context as _;

use super::{
    Failure,
    args::{self, Format},
    print,
};
use crate::import::{self, Imported, Options, Source};

pub fn run(args: &args::Import) -> Result<(), Failure> {
    let text = read(&args.file).map_err(Failure::Config)?;
    let source = match args.source {
        args::Source::Haproxy => Source::Haproxy,
        args::Source::Keepalived => Source::Keepalived,
    };
    let options = Options {
        backend: args.backend.clone(),
        vips: args.vip.clone(),
    };
    let name = args.file.display().to_string();
    let environment = |name: &str| std::env::var(name).ok();
    let Imported { yaml, report } = import::import(source, &name, &text, &options, &environment)
        .map_err(|problem| Failure::Config(anyhow::anyhow!("{name}: {problem}")))?;
    let report_text = match args.format {
        Format::Human => report.human(&name),
        Format::Json => report.json(&name).context("write the report as JSON")? + "\n",
    };
    match &args.output {
        Some(file) => {
            write_new(file, &yaml)?;
            print(&report_text)?;
        }
        None => {
            print(&yaml)?;
            eprint!("{report_text}");
        }
    }
    if report.complete() {
        Ok(())
    } else {
        Err(Failure::Incomplete)
    }
}

/// Bytes that are no UTF-8 are shown as such; they stand in comments and log formats.
fn read(file: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
    }
    .with_context(|| format!("{}: cannot be read", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// For its owner alone: checks may have brought passwords along.
fn write_new(file: &Path, yaml: &str) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut out| out.write_all(yaml.as_bytes()))
        .with_context(|| format!("{}: cannot be written", file.display()))
}
