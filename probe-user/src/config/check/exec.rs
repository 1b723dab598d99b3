//! The check by a command.

use std::{fmt, path::Path};

use crate::config::{error::Fault, raw};

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecCheck {
    program: String,
    args: Vec<String>,
}

impl ExecCheck {
    /// Its absolute path.
    pub fn program(&self) -> &str {
        &self.program
    }
    /// As they are written; no shell looks at them.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    pub(super) fn parse(field: &str, raw: &raw::Exec) -> Result<Self, Fault> {
        let field = format!("{field}.command");
        const COMMAND: &str = "a list of the program's absolute path and its arguments";
        let Some((program, args)) = raw.command.split_first() else {
            return Err(Fault::absent(field, "no command is given", COMMAND));
        };
        if !Path::new(program).is_absolute() {
            return Err(Fault::new(field, program, "not an absolute path", COMMAND));
        }
        if raw.command.iter().any(|word| word.contains('\0')) {
            return Err(Fault::absent(field, "a NUL byte in it", COMMAND));
        }
        Ok(Self {
            program: program.clone(),
            args: args.to_vec(),
        })
    }
}

impl fmt::Display for ExecCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments may hold a password.
        write!(f, "command {}", self.program)
    }
}
