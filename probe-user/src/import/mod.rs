//! Configurations of other programs, as one of probe's.
//!
//! In three steps: a faithful parser of the source into words with line numbers; a
//! translation into a [`plan`] that is independent of the source and of what this version can
//! do; and an emitter that writes what the configuration knows. Each step adds to the
//! [`report`], in which every line of the source that says something stands once. What was
//! written is then judged by the configuration's own parser.
//!
//! Pure: text in, text and report out. Nothing is read, looked up or touched.

mod emit;
mod features;
pub mod haproxy;
mod keepalived;
mod plan;
mod report;
#[cfg(test)]
mod tests;
mod vips;

pub use report::{Counts, Entry, Note, Outcome, Report};
pub use vips::Vip;

use crate::config;

/// What there is to import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// haproxy.cfg.
    Haproxy,
    /// keepalived.conf.
    Keepalived,
}

/// What to import, and what the source does not tell.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only this one.
    pub backend: Option<String>,
    /// Where clients will connect to.
    pub vips: Vec<Vip>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The configuration.
    pub yaml: String,
    /// What became of each line.
    pub report: Report,
}

/// Why nothing came out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An option names what is not there.
    #[error("{0}")]
    Usage(String),
    /// There is nothing in the source that connections could be steered to.
    #[error("{0}")]
    Nothing(String),
}

/// Imports a text. `environment` is asked for the variables that it names; `file` is what the
/// result calls it.
pub fn import(
    source: Source,
    file: &str,
    text: &str,
    options: &Options,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Imported, Problem> {
    let mut report = Report::default();
    let plan = match source {
        Source::Haproxy => haproxy::translate(text, options, environment, &mut report)?,
        Source::Keepalived => keepalived::translate(text, options, &mut report)?,
    };
    if plan.services.is_empty() {
        return Err(Problem::Nothing(
            "there are no servers in it that connections could be steered to".to_owned(),
        ));
    }
    let yaml = emit::yaml(source, file, &plan, &mut report);
    let fault = config::parse(&yaml).err().map(|fault| fault.to_string());
    report.finish(fault);
    Ok(Imported { yaml, report })
}
