//! `probe completions`.

use clap::CommandFactory as _;

use super::{Cli, Failure, args, print_bytes};

pub fn run(args: &args::Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "probe", &mut script);
    print_bytes(&script)
}
