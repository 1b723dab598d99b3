//! Passwords: never shown, and read anew where they stand in a file.

use std::{fmt, io, path::PathBuf};

use tokio::io::AsyncReadExt as _;

use super::Failure;

/// Longest password; a larger file is not one.
pub const LONGEST: usize = 4096;

/// A password, or where it stands.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// As written in the configuration.
    Text(String),
    /// In a file, which may be replaced while the agent runs: it is read for each new
    /// connection. A line end behind it is not part of it.
    File(PathBuf),
}

impl Secret {
    /// The password now.
    pub async fn read(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::File(path) => from_file(path).await.map_err(|error| {
                Failure::Local(format!("cannot read {}: {error}", path.display()).into())
            }),
        }
    }
}

async fn from_file(path: &PathBuf) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut password = Vec::new();
    // One more byte than fits tells that it does not.
    let most = LONGEST as u64 + 1;
    file.take(most).read_to_end(&mut password).await?;
    while matches!(password.last(), Some(b'\n' | b'\r')) {
        password.pop();
    }
    if password.len() > LONGEST {
        return Err(io::Error::other(format!("longer than {LONGEST} bytes")));
    }
    if password.is_empty() || password.contains(&0) {
        return Err(io::Error::other("not a password: empty, or with NUL bytes"));
    }
    Ok(password)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(a password)"),
            Self::File(path) => write!(f, "(the password in {})", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_anew_and_its_line_end_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let secret = Secret::File(path.clone());
        let absent = secret.read().await.unwrap_err();
        assert!(
            matches!(&absent, Failure::Local(note) if note.contains("password")),
            "{absent}"
        );
        for (text, password) in [("one", "one"), (" two \r\n", " two "), ("a\nb\n", "a\nb")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(secret.read().await.unwrap(), password.as_bytes());
        }
        for wrong in ["", "\n", "a\0b", &"x".repeat(LONGEST + 1)] {
            std::fs::write(&path, wrong).unwrap();
            secret.read().await.unwrap_err();
        }
    }

    #[test]
    fn it_is_not_shown() {
        let shown = format!("{:?}", Secret::Text("hunter2".to_owned()));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
