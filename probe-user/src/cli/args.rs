//! The command line's shape, all of it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::config::{DEFAULT_BPFFS, DEFAULT_SOCKET};

/// Steers connections to the endpoint that is fit, packet by packet.
#[derive(Debug, Parser)]
#[command(
    name = "probe",
    version,
    about,
    after_help = "Exit codes: 0 good, 1 runtime error, 2 usage or configuration error."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs, a file each.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the agent
    Run(Run),
    /// Judge a configuration; touches neither kernel nor, without --resolve, network
    CheckConfig(CheckConfig),
    /// Show what the running agent knows
    Status(Status),
    /// Order a service with failback mode manual back to its lowest tier that is up
    Failback(Failback),
    /// Remove everything that probe has put into the kernel, without config or agent
    Detach(Detach),
}

/// `probe run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration, YAML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// At the end, remove the steering instead of leaving it in place
    #[arg(long)]
    pub detach: bool,
}

/// `probe check-config`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub struct CheckConfig {
    /// The configuration, YAML
    #[arg(value_name = "FILE", group = "which")]
    pub file: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "FILE", group = "which")]
    pub config: Option<PathBuf>,
    /// Also look up the endpoints' names
    #[arg(long)]
    pub resolve: bool,
}

/// `probe status`.
#[derive(Debug, Args)]
pub struct Status {
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// How something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    Human,
    /// One JSON object.
    Json,
}

/// `probe failback`.
#[derive(Debug, Args)]
pub struct Failback {
    /// The service's name
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// `probe detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// Mount point of the BPF file system
    #[arg(long, value_name = "PATH", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}
