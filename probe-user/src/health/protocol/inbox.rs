//! What comes from an endpoint.

use std::io;

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::failure::Failure;

/// Bytes that are read at once.
pub const SIP: usize = 4096;

/// What comes from an endpoint, within a bound for all of it.
pub struct Inbox<'a> {
    pub bytes: &'a mut BytesMut,
    /// Bytes that may still come.
    room: usize,
}

impl<'a> Inbox<'a> {
    /// Nothing has come yet.
    pub fn new(bytes: &'a mut BytesMut, room: usize) -> Self {
        bytes.clear();
        Self { bytes, room }
    }

    /// Waits for more of an answer that is not complete. Says so if there is no room.
    pub async fn rest<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<(), Failure> {
        if self.room == 0 {
            return Err(Failure::endless());
        }
        match more(stream, self.bytes, self.room.min(SIP)).await? {
            0 => Err(Failure::broken_off(self.bytes)),
            came => {
                self.room -= came;
                Ok(())
            }
        }
    }
}

/// Waits for more, but not for more than that; how much came, zero if there will be no more. Loses
/// nothing if it is dropped.
pub async fn more<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut BytesMut,
    most: usize,
) -> io::Result<usize> {
    bytes.reserve(most);
    stream.read_buf(&mut bytes.limit(most)).await
}

/// The beginning of a text of the endpoint's, fit for a line of a log.
pub fn readable(text: &[u8]) -> String {
    const LONGEST: usize = 200;
    let shown = &text[..text.len().min(LONGEST)];
    let shown: String = String::from_utf8_lossy(shown)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let more = if text.len() > LONGEST { "..." } else { "" };
    format!("{}{more}", shown.trim())
}
