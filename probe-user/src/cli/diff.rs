//! `probe diff`: what another configuration would change.

use std::fmt::Write as _;

use anyhow::Context as _;

use super::{
    Failure,
    args::{self, Format},
    print,
};
use crate::{
    config::{self, diff},
    control::client,
    reload::{self, Outcome, Report},
};

pub fn run(args: &args::Diff) -> Result<(), Failure> {
    let report = match &args.new {
        Some(new) => of_files(&args.file, new)?,
        None => {
            let text = judged(&args.file)?.0;
            client::diff(&args.socket, &text)?
        }
    };
    print(&shown(&report, args.format)?)?;
    match report.outcome {
        Outcome::Unchanged => Ok(()),
        Outcome::Applied | Outcome::Refused => Err(Failure::Differs),
        // The agent sees other files than we do, or is of another version.
        Outcome::Invalid => Err(Failure::Config(anyhow::anyhow!(
            "the agent: {}: {}",
            args.file.display(),
            report.error.unwrap_or_default()
        ))),
    }
}

fn judged(file: &std::path::Path) -> Result<(String, config::Config), Failure> {
    let read = || -> Result<_, config::Error> {
        let text = config::read(file)?;
        let config = config::judge(file, &text)?;
        Ok((text, config))
    };
    read().map_err(|error| Failure::Config(error.into()))
}

/// As an agent that runs by the first would say it.
fn of_files(old: &std::path::Path, new: &std::path::Path) -> Result<Report, Failure> {
    let ((old, boot), (new, other)) = (judged(old)?, judged(new)?);
    let changes = diff::diff(&diff::tree(&old), &diff::tree(&new));
    Ok(reload::compared(changes, &boot, &other))
}

/// A report for people, or for programs.
pub fn shown(report: &Report, format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => {
            let text = serde_json::to_string(report).context("write the report as JSON")?;
            Ok(text + "\n")
        }
        Format::Human => Ok(human(report)),
    }
}

fn human(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for change in &report.changes {
        let _ = writeln!(text, "{change}");
    }
    for field in &report.restart_needed {
        let _ = writeln!(text, "! {field}: a restart brings it");
    }
    if report.outcome == Outcome::Refused
        && let Some(error) = &report.error
    {
        let _ = writeln!(text, "! {error}");
    }
    if report.outcome == Outcome::Unchanged {
        let _ = writeln!(text, "nothing changes");
    }
    for (what, names) in [
        ("added", &report.added),
        ("removed", &report.removed),
        ("changed", &report.changed),
    ] {
        if !names.is_empty() {
            let _ = writeln!(text, "{what}: {}", names.join(", "));
        }
    }
    if report.outcome == Outcome::Applied && report.unchanged > 0 {
        let _ = writeln!(text, "left alone: {}", report.unchanged);
    }
    text
}
