//! `probe detach`: the kill switch. Needs neither configuration nor agent.

use super::{Failure, args, print};
use crate::datapath::detach;

pub fn run(args: &args::Detach) -> Result<(), Failure> {
    let removed = detach::everything(&args.bpffs).map_err(anyhow::Error::new)?;
    print(&format!("{removed}\n"))
}
