//! `probe run`.

use super::{Failure, args};

pub fn run(args: &args::Run) -> Result<(), Failure> {
    crate::run::agent(
        &args.config,
        args.detach,
        args.watch_config,
        args.log_format,
    )
}
