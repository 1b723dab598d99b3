//! How a verb fails, which is its exit code.

/// How a verb fails.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Runtime(anyhow::Error),
    /// Exit code 2, as clap's own.
    Config(anyhow::Error),
    /// Exit code 3: something was imported, and not all that matters; the report says what.
    Incomplete,
    /// Exit code 3: two configurations differ, as was asked.
    Differs,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(error)
    }
}
