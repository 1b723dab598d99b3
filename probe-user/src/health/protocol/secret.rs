//! Passwords are read when they are needed: one in a file may have been replaced.

use std::{io, path::Path};

use tokio::io::AsyncReadExt as _;

use super::failure::Failure;
use crate::config::{LONGEST_PASSWORD, Secret};

/// The password now. A line end behind one in a file is not part of it.
pub async fn password(secret: &Secret) -> Result<Vec<u8>, Failure> {
    match secret {
        Secret::Text(text) => Ok(text.clone().into_bytes()),
        Secret::File(path) => from_file(path).await.map_err(|error| {
            Failure::Local(format!("cannot read {}: {error}", path.display()).into())
        }),
    }
}

async fn from_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut password = Vec::new();
    // One more byte than fits tells that it does not.
    let most = LONGEST_PASSWORD as u64 + 1;
    file.take(most).read_to_end(&mut password).await?;
    while matches!(password.last(), Some(b'\n' | b'\r')) {
        password.pop();
    }
    if password.len() > LONGEST_PASSWORD {
        let longest = format!("longer than {LONGEST_PASSWORD} bytes");
        return Err(io::Error::other(longest));
    }
    if password.is_empty() || password.contains(&0) {
        return Err(io::Error::other("not a password: empty, or with NUL bytes"));
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_anew_and_its_line_end_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let secret = Secret::File(path.clone());
        let absent = password(&secret).await.unwrap_err();
        assert!(
            matches!(&absent, Failure::Local(note) if note.contains("password")),
            "{absent}"
        );
        for (text, wanted) in [("one", "one"), (" two \r\n", " two "), ("a\nb\n", "a\nb")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(password(&secret).await.unwrap(), wanted.as_bytes());
        }
        for wrong in ["", "\n", "a\0b", &"x".repeat(LONGEST_PASSWORD + 1)] {
            std::fs::write(&path, wrong).unwrap();
            password(&secret).await.unwrap_err();
        }
    }

    #[test]
    fn it_is_not_shown() {
        let shown = format!("{:?}", Secret::Text("hunter2".to_owned()));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
