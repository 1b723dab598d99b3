//! `probe failback`.

use super::{Failure, args, print};
use crate::control::client;

pub fn run(args: &args::Failback) -> Result<(), Failure> {
    let endpoint = client::failback(&args.socket, &args.service)?;
    print(&format!(
        "{}: new connections go to {endpoint}\n",
        args.service
    ))
}
