//! `probe reload`.

use anyhow::anyhow;

use super::{Failure, args, diff, print};
use crate::{control::client, reload::Outcome};

pub fn run(args: &args::Reload) -> Result<(), Failure> {
    let report = client::reload(&args.socket)?;
    print(&diff::shown(&report, args.format)?)?;
    let error = || anyhow!("{}", report.error.as_deref().unwrap_or("not loaded"));
    match report.outcome {
        Outcome::Applied | Outcome::Unchanged => Ok(()),
        Outcome::Invalid => Err(Failure::Config(error())),
        Outcome::Refused => Err(Failure::Runtime(error())),
    }
}
