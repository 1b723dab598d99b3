//! Passwords: never shown.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::config::error::Fault;

/// Longest password; a larger file is not one.
pub const LONGEST_PASSWORD: usize = 4096;

/// A password, or where it stands.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// As written in the configuration.
    Text(String),
    /// In a file, which may be replaced while the agent runs.
    File(PathBuf),
}

impl Secret {
    /// `password` and `password_file` of a check.
    pub(super) fn parse(
        field: &str,
        password: &Option<String>,
        file: &Option<String>,
    ) -> Result<Option<Self>, Fault> {
        const ONE: &str = "either `password` or `password_file`";
        match (password, file) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(Fault::absent(field, "two passwords are given", ONE)),
            (Some(text), None)
                if text.is_empty() || text.len() > LONGEST_PASSWORD || text.contains('\0') =>
            {
                // Its value is nobody's to read.
                Err(Fault::absent(
                    format!("{field}.password"),
                    "empty, too long, or with a NUL",
                    format!("1 to {LONGEST_PASSWORD} bytes without NUL"),
                ))
            }
            (Some(text), None) => Ok(Some(Self::Text(text.clone()))),
            (None, Some(file)) if Path::new(file).is_absolute() => {
                Ok(Some(Self::File(file.into())))
            }
            (None, Some(file)) => Err(Fault::new(
                format!("{field}.password_file"),
                file,
                "not an absolute path",
                "an absolute path as /etc/probe/password",
            )),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(a password)"),
            Self::File(path) => write!(f, "(the password in {})", path.display()),
        }
    }
}
