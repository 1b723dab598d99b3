//! The command line: arguments in one file, a file a verb, and the exit codes.

mod args;
mod check_config;
mod completions;
mod detach;
mod events;
mod explain;
mod flows;
mod import;
mod man;
mod order;
mod run;
mod schema;
mod status;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

pub use args::{Cli, Verb};

use crate::{failure::Failure, log::LogFormat};

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    let as_json = matches!(&verb, Verb::Run(args) if args.log_format == LogFormat::Json);
    let outcome = match verb {
        Verb::Run(args) => run::run(&args),
        Verb::CheckConfig(args) => check_config::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Events(args) => events::run(&args),
        Verb::Watch(args) => watch::run(&args),
        Verb::Flows(args) => flows::run(&args),
        Verb::Explain(args) => explain::run(&args),
        Verb::Drain(args) => order::drain(&args),
        Verb::Ready(args) => order::ready(&args),
        Verb::Maint(args) => order::maint(&args),
        Verb::Promote(args) => order::promote(&args),
        Verb::Failback(args) => order::of_service(&args, "failback"),
        Verb::Freeze(args) => order::of_service(&args, "freeze"),
        Verb::Unfreeze(args) => order::of_service(&args, "unfreeze"),
        Verb::Detach(args) => detach::run(&args),
        Verb::Schema => schema::run(),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
    };
    let (error, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Runtime(error)) => (error, 1),
        Err(Failure::Config(error)) => (error, 2),
        Err(Failure::Incomplete) => return ExitCode::from(3),
    };
    let line = one_line(&error);
    if as_json {
        // Whoever reads the log reads JSON to the end.
        tracing::error!(code, "{line}");
    } else {
        eprintln!("probe: {line}");
    }
    ExitCode::from(code)
}

/// An error with its causes. Some errors already say their cause; it is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut line, cause| {
        let cause = cause.to_string();
        if !line.contains(&cause) {
            if !line.is_empty() {
                line += ": ";
            }
            line += &cause;
        }
        line
    })
}

/// Prints to stdout. A reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Has whoever read the standard output gone away?
fn reader_is_gone() -> bool {
    READER_IS_GONE.load(std::sync::atomic::Ordering::Relaxed)
}

static READER_IS_GONE: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write as _};
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            READER_IS_GONE.store(true, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        }
        Err(error) => Err(Failure::Runtime(
            anyhow::Error::new(error).context("write the output"),
        )),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = || std::io::Error::other("no room");
        let twice = crate::config::Error::Read {
            file: "a".into(),
            source: inner(),
        };
        assert_eq!(
            one_line(&twice.into()),
            "a: cannot read the configuration: no room"
        );
        let once = anyhow::Error::new(inner()).context("make b");
        assert_eq!(one_line(&once), "make b: no room");
    }

    #[test]
    fn usage_errors_exit_with_2() {
        for bad in [
            vec!["probe"],
            vec!["probe", "run"],
            vec!["probe", "check-config"],
            vec!["probe", "check-config", "a", "--config", "b"],
            vec!["probe", "status", "--format", "xml"],
            vec!["probe", "failback"],
            vec!["probe", "import", "nginx", "a"],
            vec!["probe", "import", "haproxy"],
            vec!["probe", "import", "haproxy", "a", "--vip", "b"],
        ] {
            let error = Cli::try_parse_from(&bad).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
        for good in [
            vec!["probe", "check-config", "a"],
            vec!["probe", "check-config", "--config", "a", "--resolve"],
            vec!["probe", "run", "--config", "a", "--detach"],
            vec!["probe", "detach", "--bpffs", "/x"],
            vec!["probe", "import", "haproxy", "a", "--vip", "b=10.0.0.1"],
        ] {
            Cli::try_parse_from(&good).unwrap();
        }
    }
}
