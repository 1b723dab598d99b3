//! The configuration: YAML in, valid types out, one clear error otherwise.
//!
//! [`load`] reads a file; nothing in the kernel or on the network is touched
//! before the whole of it is valid. `raw` is the file's shape, `valid`, `check` and
//! `address` what the agent works with, `conflicts` what values must not do to each
//! other.

mod address;
mod agent;
mod check;
mod conflicts;
pub mod diff;
mod error;
mod raw;
mod scalar;
pub mod schema;
#[cfg(test)]
mod tests;
mod valid;

use std::path::Path;

pub use address::Address;
pub use agent::AgentCheck;
pub use check::{
    BodyMatch, Check, Combine, Each, ExecCheck, Expect, GrpcCheck, HeaderMatch, HttpCheck,
    HttpVersion, Keep, Kind, LONGEST_PASSWORD, Looked, Method, PostgresCheck, PostgresLogin,
    PostgresRole, ProxyVersion, Reach, RedisCheck, RedisLogin, RedisRole, ScriptCheck, Secret,
    StatusSet, Step, TcpCheck, Tls, UdpCheck, ValueMatch,
};
pub use error::{Error, Fault};
pub use scalar::unsteerable;
pub(crate) use scalar::{duration, is_host_name, show};
pub use valid::{
    AllDown, Config, Connections, DEFAULT_BPFFS, DEFAULT_SOCKET, Datapath, Endpoint, Failback,
    Holds, Mode, Observe, Realtime, Service,
};

/// Reads and judges a configuration file.
pub fn load(file: &Path) -> Result<Config, Error> {
    judge(file, &read(file)?)
}

/// Reads a configuration file's text.
pub fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|source| Error::Read {
        file: file.to_owned(),
        source,
    })
}

/// Judges a configuration's text, which stands in a file.
pub fn judge(file: &Path, text: &str) -> Result<Config, Error> {
    parse(text).map_err(|fault| Error::Invalid {
        file: file.to_owned(),
        fault,
    })
}

/// Judges a configuration's text.
pub fn parse(text: &str) -> Result<Config, Fault> {
    let mut field = String::new();
    let raw = serde_saphyr::with_deserializer_from_str(text, |de| {
        serde_path_to_error::deserialize::<_, raw::File>(de).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    });
    Config::parse(&raw.map_err(|error| yaml_fault(text, &field, &error))?)
}

/// A YAML or shape error, with the line that it is about.
fn yaml_fault(text: &str, field: &str, error: &serde_saphyr::Error) -> Fault {
    let message = error.without_snippet().to_string();
    let line = error.location().and_then(|at| {
        let number = usize::try_from(at.line()).ok()?.checked_sub(1)?;
        text.lines().nth(number)
    });
    // Unknown fields and variants: the parser lists what it knows.
    let (problem, accepted) = match message.split_once(", expected one of ") {
        Some((problem, rest)) => {
            let (known, at) = rest.rsplit_once(" at line ").unwrap_or((rest, ""));
            let at = if at.is_empty() {
                String::new()
            } else {
                format!(" at line {at}")
            };
            (format!("{problem}{at}"), known.to_owned())
        }
        None => (message, String::new()),
    };
    Fault {
        // Names that serde_path_to_error gives to the root and to what it did not see.
        field: match field {
            "." | "?" => String::new(),
            field => field.to_owned(),
        },
        value: line
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty()),
        problem,
        accepted,
    }
}
