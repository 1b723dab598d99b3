//! The demo: a master is killed under load, its clients get the backup, the master
//! comes back and so do they.
//!
//! It runs in the lab, so interrupting it leaves nothing behind.

mod figures;
mod human;
mod progress;
mod story;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

fn main() -> ExitCode {
    match tell(Args::parse().format) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", lab::journal::text());
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs and shows it; says whether every bar was met.
fn tell(format: Format) -> Result<bool> {
    if let Some(reason) = lab::privilege::missing() {
        bail!("{reason}: the demo makes network namespaces and loads BPF programs");
    }
    let facts = story::play()?;
    let figures = figures::from(&facts)?;
    match format {
        Format::Human => print!("{}", human::timeline(&figures)),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&figures).context("the figures are JSON")?
        ),
    }
    Ok(figures.bars.iter().all(|bar| bar.met))
}
