//! The command line's shape, all of it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::{DEFAULT_BPFFS, DEFAULT_SOCKET},
    import::Vip,
};

/// Steers connections to the endpoint that is fit, packet by packet.
#[derive(Debug, Parser)]
#[command(
    name = "probe",
    version,
    about,
    after_help = "Exit codes: 0 good, 1 runtime error, 2 usage or configuration error, 3 imported and not complete."
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
    /// Make a configuration of another program's, and report what became of each of its lines
    Import(Import),
    /// Show what the running agent knows
    Status(Status),
    /// Order a service back to its lowest tier that is up, at once whatever its failback says
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

/// `probe import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_HELP)]
pub struct Import {
    /// Whose configuration it is
    #[arg(value_enum, value_name = "PROGRAM")]
    pub source: Source,
    /// Its configuration; - is the standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Only this backend or listen, with the frontends before it
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Where clients will connect to; NAME is a service, a frontend, a server or SERVICE/SERVER
    #[arg(long, value_name = "[NAME=]ADDRESS[:PORT]")]
    pub vip: Vec<Vip>,
    /// Write the configuration here, and the report to stdout; a file that exists is not touched
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How the report is written
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

const IMPORT_HELP: &str = "\
The configuration goes to stdout and the report to stderr, or with -o the report to stdout.

Examples:
  probe import haproxy /etc/haproxy/haproxy.cfg --vip 10.96.0.10 -o probe.yaml
      each `bind *:PORT` becomes a listener at 10.96.0.10:PORT
  probe import haproxy haproxy.cfg --backend 10_sense --vip 10.96.0.10:8079 \\
      --vip sen2=10.96.0.12:8079 --vip sen1=10.96.0.11:8079
      one backend; each server that use-server names has a listener of its own
  probe import haproxy haproxy.cfg --format json 2>&1 >/dev/null | jq '.lines[] | select(.outcome != \"carried\")'
      what differs
  probe import keepalived /etc/keepalived/keepalived.conf -o probe.yaml

Exit codes: 0 complete; 3 written, but something that health or the choice of a server depends
on was not carried over (marked ! in the report), or an address is to be filled in;
1 the output cannot be written; 2 usage, or a file without anything to import.";

/// Whose configuration is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// haproxy.cfg
    Haproxy,
    /// keepalived.conf: virtual_server and real_server
    Keepalived,
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
