//! `probe run`.

use super::{Failure, args};

pub fn run(args: &args::Run) -> Result<(), Failure> {
    crate::run::agent(&args.config, args.detach, args.log_format)
}
