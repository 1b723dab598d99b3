//! The command line's shape, all of it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    config::{DEFAULT_BPFFS, DEFAULT_SOCKET},
    import::Vip,
    log::LogFormat,
};

/// Steers connections to the endpoint that is fit, packet by packet.
#[derive(Debug, Parser)]
#[command(
    name = "probe",
    version,
    after_help = HELP
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const HELP: &str = "\
Examples:
  probe check-config /etc/probe/probe.yaml
  probe run --config /etc/probe/probe.yaml
  probe status
  probe help status
      more about a verb

Exit codes: 0 good, 1 runtime error, 2 usage or configuration error, 3 imported and not complete.";

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
    /// Show what happened: switches, states, orders; or follow it
    Events(Events),
    /// Show services and endpoints live: states, latency, flows, rates
    #[command(visible_alias = "top")]
    Watch(Watch),
    /// List or count the connections in the kernel's tables
    Flows(Flows),
    /// Say why a service's connections go where they go
    Explain(Explain),
    /// Take new connections from an endpoint; its checks go on
    #[command(after_help = DRAIN_HELP)]
    Drain(Drain),
    /// Put an endpoint back into service, from drain or maint
    #[command(after_help = READY_HELP)]
    Ready(OfEndpoint),
    /// Take an endpoint out of service, and do not check it
    #[command(after_help = MAINT_HELP)]
    Maint(OfEndpoint),
    /// Move a service's new connections to an endpoint, until that is down or `probe failback`
    #[command(after_help = PROMOTE_HELP)]
    Promote(Promote),
    /// Order a service back to its lowest tier that is up, at once whatever its failback says
    #[command(after_help = FAILBACK_HELP)]
    Failback(OfService),
    /// Let nothing but orders change a service's selection
    #[command(after_help = FREEZE_HELP)]
    Freeze(OfService),
    /// Let checks decide again
    #[command(after_help = UNFREEZE_HELP)]
    Unfreeze(OfService),
    /// Remove everything that probe has put into the kernel, without config or agent
    Detach(Detach),
    /// Print the JSON schema of the configuration, for editors
    #[command(after_help = SCHEMA_HELP)]
    Schema,
    /// Print a shell's completions of this command line
    Completions(Completions),
    /// Print a manual page, or write all of them
    Man(Man),
}

/// `probe run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub struct Run {
    /// The configuration, YAML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// At the end, remove the steering instead of leaving it in place
    #[arg(long)]
    pub detach: bool,
    /// How the log is written, on the standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

const RUN_HELP: &str = "\
Examples:
  probe run --config /etc/probe/probe.yaml
      until SIGTERM or Ctrl-C; steering stays in place, and the next start takes it over
  probe run --config probe.yaml --detach
      to try it out: at the end nothing is left in the kernel
  probe run --config probe.yaml --log-format json 2>&1 | jq 'select(.level == \"WARN\")'
  RUST_LOG=debug probe run --config probe.yaml
      with every failed check and every event of the datapath

Exit codes: 0 ended by a signal; 1 runtime error, also one after the start; 2 configuration error.";

/// `probe check-config`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true), after_help = CHECK_CONFIG_HELP)]
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

const CHECK_CONFIG_HELP: &str = "\
Examples:
  probe check-config probe.yaml
      as any user; certificates and keys of checks are read
  probe check-config --resolve probe.yaml
      also asks DNS for each endpoint that has a name

Exit codes: 0 good; 2 not, with one line that names file, field, value and what is accepted.";

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
#[command(after_help = STATUS_HELP)]
pub struct Status {
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

const STATUS_HELP: &str = "\
Examples:
  probe status
  NO_COLOR=1 probe status
      states are coloured on a terminal only, and not with this
  probe status --format json | jq -r '.services[] | [.name, .selection.endpoint, .selection.reason] | @tsv'
      who serves, since which event
  probe status --format json | jq '.services[].endpoints[] | select(.state == \"down\") | {name, verdict, detail, saw}'
      what is wrong with those that are down

Exit codes: 0 shown; 1 no agent answers at the socket.";

/// How something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    Human,
    /// One JSON object.
    Json,
}

/// Of every order.
#[derive(Debug, Args)]
pub struct Order {
    /// Only say what it would do
    #[arg(long)]
    pub dry_run: bool,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// An order about a service.
#[derive(Debug, Args)]
pub struct OfService {
    /// The service's name
    #[arg(value_name = "SERVICE")]
    pub service: String,
    #[command(flatten)]
    pub order: Order,
}

/// An order about an endpoint.
#[derive(Debug, Args)]
pub struct OfEndpoint {
    /// The service's name
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// The endpoint's name
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: String,
    #[command(flatten)]
    pub order: Order,
}

/// `probe drain`.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    pub of: OfEndpoint,
    /// Reset what is left of its connections after this time; else they go on as they like
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<String>,
}

/// `probe promote`.
#[derive(Debug, Args)]
pub struct Promote {
    #[command(flatten)]
    pub of: OfEndpoint,
    /// How long connections of who is left may go on, or unlimited; else as on_failback says
    #[arg(long, value_name = "TIME")]
    pub drain: Option<String>,
    /// Also if it is not up
    #[arg(long)]
    pub force: bool,
}

const DRAIN_HELP: &str = "\
Examples:
  probe drain sense sen2 --dry-run
      who would serve instead
  probe drain sense sen2 --deadline 10m
      its connections have ten minutes to end by themselves, then they are reset
  probe ready sense sen2
      the end of it

As HAProxy's `set server sense/sen2 state drain`. It survives restarts of the agent.

Exit codes: 0 done, or so already; 1 no agent answers, or there is no such endpoint.";

const READY_HELP: &str = "\
Examples:
  probe ready sense sen2
      from drain: it may serve at once; from maint: its first check decides

Going back to it is a fail-back, by itself after the hold time or by `probe failback sense`.

Exit codes: 0 done, or so already; 1 no agent answers, or there is no such endpoint.";

const MAINT_HELP: &str = "\
Examples:
  probe maint sense sen2
      before it is taken down on purpose: no check fails, and its connections are ended as
      on_marked_down says
  probe drain sense sen2 --deadline 1m; sleep 60; probe maint sense sen2
      the same, and they have a minute

As HAProxy's `set server sense/sen2 state maint`. It survives restarts of the agent.

Exit codes: 0 done, or so already; 1 no agent answers, or there is no such endpoint.";

const PROMOTE_HELP: &str = "\
Examples:
  probe promote sense sen1 --drain 5m
      new connections go to sen1 from now on, those of the others have five minutes
  probe failback sense
      the end of it: back to the master

It stays selected until it is down, in drain or in maint, or there is another order; nothing fails
back by itself meanwhile. An endpoint that is not up is refused, unless --force.

Exit codes: 0 done; 1 no agent answers, there is no such endpoint, or it is not up.";

const FAILBACK_HELP: &str = "\
Examples:
  probe failback sense
      new connections go to the best tier that is up; what becomes of the others is said by on_failback

Exit codes: 0 it went back; 1 no agent answers, there is no such service, or it is where it belongs.";

const FREEZE_HELP: &str = "\
Examples:
  probe freeze sense
      neither failover nor fail-back, whatever the checks say; orders are carried out

Exit codes: 0 done, or so already; 1 no agent answers, or there is no such service.";

const UNFREEZE_HELP: &str = "\
Examples:
  probe unfreeze sense --dry-run
      where connections would go at once

Exit codes: 0 done, or so already; 1 no agent answers, or there is no such service.";

/// `probe events`.
#[derive(Debug, Args)]
#[command(after_help = EVENTS_HELP)]
pub struct Events {
    /// From when on: 10m (ago), 2026-11-21T15:04:05Z or Unix seconds; else the last hundred
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Go on until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Of this service only
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Lines for people, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

const EVENTS_HELP: &str = "\
Examples:
  probe events --follow
  probe events --since 1h --service sense
  probe events --since 24h --format json | jq -c 'select(.kind == \"order\") | [.service, .endpoint, .order, .by.user]'
      who ordered what

The agent remembers the last 4096, until it ends.

Exit codes: 0 shown; 1 no agent answers at the socket; 2 --since is no time.";

/// `probe watch`.
#[derive(Debug, Args)]
#[command(after_help = WATCH_HELP)]
pub struct Watch {
    /// Time between two looks, from 100ms
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub every: String,
    /// End after so many looks; where the output is no terminal, one is made
    #[arg(long, value_name = "COUNT")]
    pub count: Option<u64>,
    /// Of this service only
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

const WATCH_HELP: &str = "\
Examples:
  probe top
      until Ctrl-C or q
  probe watch sense --every 200ms
  probe watch --count 10 >> probe.log
      ten looks, one below the other, without colours

Rates are those since the look before; a column of the graph is the last check's duration at a
look, and x where it had failed.

Exit codes: 0 ended; 1 no agent answers at first, or there is no such service; 2 --every is no time.";

/// `probe flows`.
#[derive(Debug, Args)]
#[command(after_help = FLOWS_HELP)]
pub struct Flows {
    /// Of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// To this endpoint
    #[arg(long, value_name = "NAME")]
    pub endpoint: Option<String>,
    /// Of clients there
    #[arg(long, value_name = "ADDRESS[/PREFIX|:PORT]")]
    pub client: Option<String>,
    /// To this listener, or an endpoint's own address
    #[arg(long, value_name = "ADDRESS:PORT[/udp]")]
    pub vip: Option<String>,
    /// How far they are: opening, established or closing
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Show so many at most; 1000
    #[arg(long, value_name = "COUNT", conflicts_with = "count")]
    pub limit: Option<usize>,
    /// Only count them, by endpoint
    #[arg(long)]
    pub count: bool,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

const FLOWS_HELP: &str = "\
Examples:
  probe flows --service sense --client 10.0.0.0/24
  probe flows --endpoint sen1 --count
      who is still there before it is taken down
  probe flows --format json | jq -r '.flows[] | select(.idle_ms > 3600000) | .client'

Exit codes: 0 shown; 1 no agent answers, or there is no such service or endpoint.";

/// `probe explain`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true), after_help = EXPLAIN_HELP)]
pub struct Explain {
    /// The service's name
    #[arg(value_name = "SERVICE", group = "what")]
    pub service: Option<String>,
    /// Say what the datapath does with a client's first packet, by trying one
    #[arg(long, num_args = 2, value_names = ["SRC", "DST"], group = "what")]
    pub packet: Option<Vec<String>>,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

const EXPLAIN_HELP: &str = "\
Examples:
  probe explain sense
      who serves and why nobody better: orders, verdicts, thresholds, timers
  probe explain sense --format json | jq -r '.because[]'
  probe explain --packet 10.0.0.9:40000 10.96.0.10:8079
      runs the loaded programs on a SYN, with the tables as they are; nothing is sent
  probe explain --packet 10.0.0.9:40000 10.96.0.10:53/udp

Exit codes: 0 said; 1 no agent answers, there is no such service, or no such address.";

/// `probe detach`.
#[derive(Debug, Args)]
#[command(after_help = DETACH_HELP)]
pub struct Detach {
    /// Mount point of the BPF file system
    #[arg(long, value_name = "PATH", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

const DETACH_HELP: &str = "\
Examples:
  systemctl stop probe && probe detach
      a running agent steers nothing any more, but would attach to interfaces that appear
  probe detach --bpffs /run/bpf

Exit codes: 0 nothing is left, also if nothing was there; 1 something could not be removed.";

const SCHEMA_HELP: &str = "\
Examples:
  probe schema > /etc/probe/probe.schema.json
      and as the first line of /etc/probe/probe.yaml, for yaml-language-server:
      # yaml-language-server: $schema=probe.schema.json

The schema sees a field at a time; `probe check-config` judges the whole.";

/// `probe completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct Completions {
    /// Whose
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

const COMPLETIONS_HELP: &str = "\
Examples:
  probe completions bash > /usr/share/bash-completion/completions/probe
  probe completions zsh > /usr/share/zsh/site-functions/_probe
  probe completions fish > /usr/share/fish/vendor_completions.d/probe.fish
  source <(probe completions bash)
      for this shell only";

/// `probe man`.
#[derive(Debug, Args)]
#[command(after_help = MAN_HELP)]
pub struct Man {
    /// Of this verb
    #[arg(value_name = "VERB", conflicts_with = "output")]
    pub verb: Option<String>,
    /// Write probe.1 and a page for each verb into this folder
    #[arg(short, long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
}

const MAN_HELP: &str = "\
Examples:
  probe man status | man -l -
  probe man --output /usr/share/man/man1";
