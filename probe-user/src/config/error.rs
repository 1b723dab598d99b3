//! What is wrong with a configuration: file, field, value, and what is accepted.

use std::{fmt, path::PathBuf};

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field, as `services[0].check.inter`; empty for the whole file.
    pub field: String,
    /// The value as written, if there is one to quote.
    pub value: Option<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub accepted: String,
}

impl Fault {
    /// A fault of a field with a value.
    pub fn new(
        field: impl Into<String>,
        value: impl fmt::Display,
        problem: impl Into<String>,
        accepted: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: Some(value.to_string()),
            problem: problem.into(),
            accepted: accepted.into(),
        }
    }

    /// A fault of a field that is missing or has no value to quote.
    pub fn absent(
        field: impl Into<String>,
        problem: impl Into<String>,
        accepted: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: None,
            problem: problem.into(),
            accepted: accepted.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if let Some(value) = &self.value {
            write!(f, "`{value}`: ")?;
        }
        write!(f, "{}", self.problem)?;
        if !self.accepted.is_empty() {
            write!(f, "; accepted: {}", self.accepted)?;
        }
        Ok(())
    }
}

/// A configuration that cannot be used. The command line exits with 2 for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{file}: cannot read the configuration: {source}", file = .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file does not say something that can be done.
    #[error("{file}: {fault}", file = .file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The first thing wrong with it.
        fault: Fault,
    },
}
