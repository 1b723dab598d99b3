//! Reading one HTTP/1 answer, byte by byte as it comes (RFC 9112).
//!
//! [`Decoder`] is pure: bytes go in, progress comes out. It is used by the health
//! check, whose peers may send anything, so memory is bounded by [`Limits`] and
//! time by the caller; and by the command line's questions to the agent.

use bytes::{Buf as _, BytesMut};

/// More headers than any server sends.
const MAX_HEADERS: usize = 128;
/// Longest line of a chunk's size with its extensions, or of one trailer.
const MAX_CHUNK_LINE: usize = 4096;

/// How much of an answer is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all heads, interim answers included.
    pub head: usize,
    /// Bytes of the body.
    pub body: usize,
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The head is not complete.
    Head,
    /// The head is complete, the body is not.
    Body,
    /// The body is longer than its limit; what is kept is its beginning.
    Full,
    /// All of it has come.
    Done,
}

/// The answer is not HTTP/1, or breaks off. The text says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

fn malformed<T>(text: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(text.into()))
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Head,
    /// Exactly so many bytes follow.
    Counted(u64),
    /// Everything up to the end of the connection.
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    /// The line end after a chunk's data.
    ChunkEnd,
    Trailers,
    Done,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// Answers to HEAD have no body, whatever their head says (RFC 9112 section 6.3).
    no_body: bool,
    phase: Phase,
    status: u16,
    /// Bytes of heads and trailers so far.
    head_bytes: usize,
    /// The head is parsed again only when there are so many bytes, so that a peer
    /// that sends it byte by byte costs no quadratic time.
    parse_at: usize,
    /// Bytes in which the end of the head has been looked for.
    searched: usize,
    /// The final head, as it came.
    head: BytesMut,
    /// Another request may follow on the connection.
    persistent: bool,
    /// Some header tells how the answer is coded ([`tells_coding`]).
    coded: bool,
    body: BytesMut,
}

/// Room that is kept for the next answer.
const KEPT: usize = 16 * 1024;

impl Decoder {
    /// For the answer to a request, HEAD or another.
    pub fn new(limits: Limits, head_request: bool) -> Self {
        Self {
            limits,
            no_body: head_request,
            phase: Phase::Head,
            status: 0,
            head_bytes: 0,
            parse_at: 0,
            searched: 0,
            head: BytesMut::new(),
            persistent: false,
            coded: false,
            body: BytesMut::new(),
        }
    }

    /// Begins anew, for the next answer, with the room that it has.
    pub fn restart(&mut self) {
        let spare = |mut room: BytesMut| {
            room.clear();
            if room.capacity() > KEPT {
                room = BytesMut::new();
            }
            room
        };
        *self = Self {
            head: spare(std::mem::take(&mut self.head)),
            body: spare(std::mem::take(&mut self.body)),
            ..Self::new(self.limits, self.no_body)
        };
    }

    /// Is all of the answer here, and may another request follow on the connection
    /// (RFC 9112 section 9.3)?
    pub fn may_go_on(&self) -> bool {
        self.persistent && matches!(self.phase, Phase::Done)
    }

    /// Is there a header of this name, in any case, whose value passes? Before the head
    /// is complete there is none.
    pub fn any_header(&self, name: &str, mut passes: impl FnMut(&[u8]) -> bool) -> bool {
        // Asked of every answer whose body is looked at, and few have one.
        if !self.coded && tells_coding(name) {
            return false;
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        // It was parsed before.
        let parsed = response.parse(&self.head).is_ok();
        parsed
            && response
                .headers
                .iter()
                .any(|header| header.name.eq_ignore_ascii_case(name) && passes(header.value))
    }

    /// The final status, once the head is complete.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body as far as it has come, decoded from chunks.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Consumes what has come.
    pub fn push(&mut self, input: &mut BytesMut) -> Result<Progress, Malformed> {
        loop {
            let before = input.len();
            match self.phase {
                Phase::Head => {
                    if !self.head(input)? {
                        return Ok(Progress::Head);
                    }
                    continue;
                }
                Phase::Counted(left) => {
                    let take = before.min(usize::try_from(left).unwrap_or(usize::MAX));
                    if !self.keep(input, take) {
                        return Ok(Progress::Full);
                    }
                    let left = left - take as u64;
                    self.phase = if left == 0 {
                        Phase::Done
                    } else {
                        Phase::Counted(left)
                    };
                }
                Phase::UntilClose => {
                    if !self.keep(input, before) {
                        return Ok(Progress::Full);
                    }
                }
                Phase::ChunkSize => {
                    let Some(line) = line(input)? else {
                        return Ok(Progress::Body);
                    };
                    let size = chunk_size(&input[..line.text])?;
                    input.advance(line.whole);
                    self.phase = if size == 0 {
                        Phase::Trailers
                    } else {
                        Phase::ChunkData(size)
                    };
                    continue;
                }
                Phase::ChunkData(left) => {
                    let take = before.min(usize::try_from(left).unwrap_or(usize::MAX));
                    if !self.keep(input, take) {
                        return Ok(Progress::Full);
                    }
                    let left = left - take as u64;
                    self.phase = if left == 0 {
                        Phase::ChunkEnd
                    } else {
                        Phase::ChunkData(left)
                    };
                }
                Phase::ChunkEnd => {
                    let Some(line) = line(input)? else {
                        return Ok(Progress::Body);
                    };
                    if line.text > 0 {
                        return malformed("a chunk is longer than its size says");
                    }
                    input.advance(line.whole);
                    self.phase = Phase::ChunkSize;
                    continue;
                }
                Phase::Trailers => {
                    let Some(line) = line(input)? else {
                        return Ok(Progress::Body);
                    };
                    input.advance(line.whole);
                    self.head_bytes += line.text + 2;
                    if self.head_bytes > self.limits.head {
                        return malformed(format!("trailers beyond {} bytes", self.limits.head));
                    }
                    if line.text == 0 {
                        self.phase = Phase::Done;
                    }
                    continue;
                }
                Phase::Done => return Ok(Progress::Done),
            }
            if input.is_empty() && !matches!(self.phase, Phase::Done) {
                return Ok(Progress::Body);
            }
        }
    }

    /// The peer closed its side: is the answer complete?
    pub fn close(&mut self, rest: &BytesMut) -> Result<Progress, Malformed> {
        match self.phase {
            Phase::Done | Phase::UntilClose => {
                self.phase = Phase::Done;
                Ok(Progress::Done)
            }
            Phase::Head if rest.is_empty() && self.head_bytes == 0 => {
                malformed("closed without an answer")
            }
            Phase::Head => malformed("closed within the head"),
            Phase::Counted(left) => malformed(format!("closed {left} bytes before the end")),
            _ => malformed("closed within a chunked body"),
        }
    }

    /// Consumes a head, that of an interim answer too; false while it is incomplete.
    fn head(&mut self, input: &mut BytesMut) -> Result<bool, Malformed> {
        let searched = self.searched.saturating_sub(3).min(input.len());
        let ends = ends_a_head(&input[searched..]);
        self.searched = input.len();
        if input.is_empty() || (input.len() < self.parse_at && !ends) {
            return self.within_head_limit(input.len()).map(|()| false);
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(input) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                self.parse_at = input.len() * 2;
                return self.within_head_limit(input.len()).map(|()| false);
            }
            Err(httparse::Error::TooManyHeaders) => {
                return malformed(format!("more than {MAX_HEADERS} headers"));
            }
            Err(error) => return malformed(format!("not an HTTP/1 head: {error}")),
        };
        self.within_head_limit(length)?;
        let status = response.code.unwrap_or_default();
        let framing = framing(response.headers)?;
        let persistent = is_persistent(response.version, response.headers);
        self.coded = response.headers.iter().any(|h| tells_coding(h.name));
        if status >= 200 || status == 101 {
            self.head.extend_from_slice(&input[..length]);
        }
        input.advance(length);
        self.head_bytes += length;
        self.parse_at = 0;
        self.searched = 0;
        match status {
            // Interim answers come before the final one (RFC 9110 section 15.2); 101 is final.
            100 | 102..=199 => return Ok(true),
            0..=99 => return malformed(format!("status {status}")),
            _ => {}
        }
        self.status = status;
        self.persistent = persistent && status != 101;
        self.phase = match framing {
            _ if self.no_body || matches!(status, 101 | 204 | 304) => Phase::Done,
            Framing::Counted(0) => Phase::Done,
            Framing::Counted(length) => Phase::Counted(length),
            Framing::Chunked => Phase::ChunkSize,
            Framing::UntilClose => {
                self.persistent = false;
                Phase::UntilClose
            }
        };
        Ok(true)
    }

    fn within_head_limit(&self, more: usize) -> Result<(), Malformed> {
        if self.head_bytes + more > self.limits.head {
            return malformed(format!("head beyond {} bytes", self.limits.head));
        }
        Ok(())
    }

    /// Moves bytes to the body. False when they are more than it may hold.
    fn keep(&mut self, input: &mut BytesMut, take: usize) -> bool {
        let room = self.limits.body - self.body.len();
        let kept = take.min(room);
        self.body.extend_from_slice(&input[..kept]);
        input.advance(take);
        kept == take
    }
}

/// Does a header of this name tell how the answer is coded, for its transfer or at all?
fn tells_coding(name: &str) -> bool {
    name.eq_ignore_ascii_case("content-encoding") || name.eq_ignore_ascii_case("transfer-encoding")
}

/// A line at the beginning of the input.
#[derive(Clone, Copy)]
struct Line {
    /// Its bytes without its end.
    text: usize,
    /// Its bytes.
    whole: usize,
}

/// A line of the chunked coding.
fn line(input: &[u8]) -> Result<Option<Line>, Malformed> {
    let searched = &input[..input.len().min(MAX_CHUNK_LINE)];
    let Some(end) = memchr::memchr(b'\n', searched) else {
        if input.len() >= MAX_CHUNK_LINE {
            return malformed("a chunk's line without an end");
        }
        return Ok(None);
    };
    let text = end - usize::from(input[..end].ends_with(b"\r"));
    Ok(Some(Line {
        text,
        whole: end + 1,
    }))
}

/// Is there the empty line that ends a head? Either line end may be a bare LF
/// (RFC 9112 section 2.2), also next to one that is not.
fn ends_a_head(input: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', input).any(|end| {
        let next = &input[end + 1..];
        next.starts_with(b"\n") || next.starts_with(b"\r\n")
    })
}

enum Framing {
    Counted(u64),
    Chunked,
    UntilClose,
}

/// How long the body is (RFC 9112 section 6.3).
fn framing(headers: &[httparse::Header<'_>]) -> Result<Framing, Malformed> {
    let mut coding: Option<&[u8]> = None;
    let mut length: Option<u64> = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            coding = Some(header.value);
        } else if header.name.eq_ignore_ascii_case("content-length") {
            let text = header.value.trim_ascii();
            let value = std::str::from_utf8(text)
                .ok()
                // `parse` would take a sign.
                .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|text| text.parse().ok());
            let Some(value) = value else {
                return malformed(format!(
                    "Content-Length `{}`",
                    String::from_utf8_lossy(text).escape_debug()
                ));
            };
            if length.is_some_and(|first| first != value) {
                return malformed("two Content-Lengths that differ");
            }
            length = Some(value);
        }
    }
    // A Transfer-Encoding overrides a Content-Length; without `chunked` as its last coding the
    // end of the connection ends the body.
    Ok(match (coding, length) {
        (Some(coding), _) => {
            let last = coding.rsplit(|b| *b == b',').next().unwrap_or_default();
            if last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                Framing::Chunked
            } else {
                Framing::UntilClose
            }
        }
        (None, Some(length)) => Framing::Counted(length),
        (None, None) => Framing::UntilClose,
    })
}

/// May another request follow, as far as the head says (RFC 9112 section 9.3)?
fn is_persistent(version: Option<u8>, headers: &[httparse::Header<'_>]) -> bool {
    let says = |word: &[u8]| {
        headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case("connection"))
            .flat_map(|header| header.value.split(|b| *b == b','))
            .any(|option| option.trim_ascii().eq_ignore_ascii_case(word))
    };
    match version {
        Some(1) => !says(b"close"),
        _ => says(b"keep-alive") && !says(b"close"),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii();
    // Fifteen hexadecimal digits cannot overflow, and are a petabyte.
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| (1..=15).contains(&text.len()))
        .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| {
            let text = String::from_utf8_lossy(&digits[..digits.len().min(32)]);
            Malformed(format!("chunk size `{}`", text.escape_debug()))
        })
}

#[cfg(test)]
#[path = "http1_tests.rs"]
mod tests;
