//! What comes from an endpoint.

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::failure::Failure;

/// Bytes that are read at once.
const SIP: usize = 4096;

/// What comes from an endpoint, within a bound for all of it.
pub struct Inbox<'a> {
    pub bytes: &'a mut BytesMut,
    /// Bytes that may still come.
    pub room: usize,
}

impl<'a> Inbox<'a> {
    /// Nothing has come yet.
    pub fn new(bytes: &'a mut BytesMut, room: usize) -> Self {
        bytes.clear();
        Self { bytes, room }
    }

    /// Waits for more; how much came, zero if there will be no more. Says so if there is
    /// no room, and loses nothing if it is dropped.
    pub async fn more<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<usize, Failure> {
        if self.room == 0 {
            return Err(Failure::protocol("the answer never ends"));
        }
        let sip = self.room.min(SIP);
        self.bytes.reserve(sip);
        let mut to = (&mut *self.bytes).limit(sip);
        let came = stream.read_buf(&mut to).await?;
        self.room -= came;
        Ok(came)
    }

    /// Waits for more of an answer that is not complete.
    pub async fn rest<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<(), Failure> {
        match self.more(stream).await? {
            0 if self.bytes.is_empty() => Err(Failure::Closed),
            0 => Err(Failure::garbage("the answer breaks off", self.bytes)),
            _ => Ok(()),
        }
    }
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
