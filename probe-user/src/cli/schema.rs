//! `probe schema`.

use anyhow::Context as _;

use super::{Failure, print};
use crate::config::schema;

pub fn run() -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(&schema::schema()).context("write the schema")?;
    print(&(text + "\n"))
}
