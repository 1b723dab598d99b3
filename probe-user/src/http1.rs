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
    body: BytesMut,
}

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
            body: BytesMut::new(),
        }
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
                    let Some(line) = self.line(input)? else {
                        return Ok(Progress::Body);
                    };
                    let size = chunk_size(&line)?;
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
                    let Some(line) = self.line(input)? else {
                        return Ok(Progress::Body);
                    };
                    if !line.is_empty() {
                        return malformed("a chunk is longer than its size says");
                    }
                    self.phase = Phase::ChunkSize;
                    continue;
                }
                Phase::Trailers => {
                    let Some(line) = self.line(input)? else {
                        return Ok(Progress::Body);
                    };
                    self.head_bytes += line.len() + 2;
                    if self.head_bytes > self.limits.head {
                        return malformed(format!("trailers beyond {} bytes", self.limits.head));
                    }
                    if line.is_empty() {
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
        self.phase = match framing {
            _ if self.no_body || matches!(status, 101 | 204 | 304) => Phase::Done,
            Framing::Counted(0) => Phase::Done,
            Framing::Counted(length) => Phase::Counted(length),
            Framing::Chunked => Phase::ChunkSize,
            Framing::UntilClose => Phase::UntilClose,
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

    /// A line of the chunked coding, without its end.
    fn line(&self, input: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
        let searched = &input[..input.len().min(MAX_CHUNK_LINE)];
        let Some(end) = searched.iter().position(|b| *b == b'\n') else {
            if input.len() >= MAX_CHUNK_LINE {
                return malformed("a chunk's line without an end");
            }
            return Ok(None);
        };
        let mut line = input.split_to(end + 1);
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        }
        Ok(Some(line))
    }
}

/// Is there the empty line that ends a head?
fn ends_a_head(input: &[u8]) -> bool {
    input.windows(4).any(|w| w == b"\r\n\r\n") || input.windows(2).any(|w| w == b"\n\n")
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        head: 1024,
        body: 64,
    };

    /// Feeds pieces, then the end of the connection.
    fn read(pieces: &[&[u8]]) -> Result<(u16, Vec<u8>, Progress), Malformed> {
        let mut decoder = Decoder::new(LIMITS, false);
        let mut input = BytesMut::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            let progress = decoder.push(&mut input)?;
            if matches!(progress, Progress::Done | Progress::Full) {
                return Ok((decoder.status(), decoder.body().to_vec(), progress));
            }
        }
        let progress = decoder.close(&input)?;
        Ok((decoder.status(), decoder.body().to_vec(), progress))
    }

    #[test]
    fn whole_answers() {
        let rows: &[(&[u8], u16, &[u8])] = &[
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", 200, b"abc"),
            (b"HTTP/1.0 200 OK\r\n\r\nto the end", 200, b"to the end"),
            (b"HTTP/1.1 200\r\n\r\n", 200, b""),
            (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 503 No\r\n\r\nx", 503, b"x"),
            (b"HTTP/1.1 101 Switching\r\n\r\n\x81\x00", 101, b""),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nver\r\n4;a=b\r\nsion\r\n0\r\nT: x\r\n\r\n", 200, b"version"),
            // RFC 9112 section 6.3: Transfer-Encoding wins.
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, b"ab"),
            (b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", 200, b"a"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 200, b"ab"),
        ];
        for (bytes, status, body) in rows {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(
                read(&[bytes]),
                Ok((*status, body.to_vec(), Progress::Done)),
                "{text:?}"
            );
            // The same, byte by byte.
            let single: Vec<_> = bytes.chunks(1).collect();
            assert_eq!(
                read(&single),
                Ok((*status, body.to_vec(), Progress::Done)),
                "{text:?}"
            );
        }
    }

    #[test]
    fn broken_answers() {
        let rows: &[(&[u8], &str)] = &[
            (b"", "closed without an answer"),
            (b"HTTP/1.1 2", "closed within the head"),
            (
                b"SSH-2.0-OpenSSH_9.2\r\n",
                "not an HTTP/1 head: invalid HTTP version",
            ),
            (
                b"HTTP/2 200\r\n\r\n",
                "not an HTTP/1 head: invalid HTTP version",
            ),
            (
                b"HTTP/1.1 2x0 OK\r\n\r\n",
                "not an HTTP/1 head: invalid response status",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
                "closed 2 bytes before the end",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
                "Content-Length `+5`",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                "two Content-Lengths that differ",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                "chunk size `xyz`",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
                "chunk size ``",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
                "chunk size `ffffffffffffffffffff`",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
                "a chunk is longer than its size says",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
                "closed within a chunked body",
            ),
        ];
        for (bytes, message) in rows {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(read(&[bytes]).unwrap_err().0, *message, "{text:?}");
        }
    }

    #[test]
    fn endless_things_are_bounded() {
        let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"A: b\r\n".repeat(20)].concat();
        let pieces: Vec<&[u8]> = std::iter::once(endless.as_slice())
            .chain(std::iter::repeat_n(b"C: d\r\n".as_slice(), 1000))
            .collect();
        assert!(
            read(&pieces)
                .unwrap_err()
                .0
                .contains("head beyond 1024 bytes")
        );
        let many = [
            b"HTTP/1.1 200 OK\r\n".as_slice(),
            &b"A:b\r\n".repeat(150),
            b"\r\n",
        ]
        .concat();
        assert_eq!(read(&[&many]).unwrap_err().0, "more than 128 headers");
        // Interim answers without end, also many in one piece.
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(50);
        assert_eq!(read(&[&interim]).unwrap_err().0, "head beyond 1024 bytes");
        let mut roomy = Decoder::new(
            Limits {
                head: 1 << 20,
                body: 0,
            },
            false,
        );
        let mut input = BytesMut::from(&*b"HTTP/1.1 100 C\r\n\r\n".repeat(50_000));
        assert_eq!(roomy.push(&mut input), Ok(Progress::Head));
        // A body without end is cut, not refused.
        let body = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[b'x'; 100]].concat();
        assert_eq!(read(&[&body]), Ok((200, vec![b'x'; 64], Progress::Full)));
        let chunk = [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
            &[b'0'; 5000],
        ]
        .concat();
        assert_eq!(
            read(&[&chunk]).unwrap_err().0,
            "a chunk's line without an end"
        );
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let mut decoder = Decoder::new(LIMITS, true);
        let mut input = BytesMut::from(&b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n"[..]);
        assert_eq!(decoder.push(&mut input), Ok(Progress::Done));
    }

    proptest! {
        #[test]
        fn any_cut_of_an_answer_reads_the_same(cuts in prop::collection::vec(1usize..20, 1..40)) {
            let whole = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nversio\r\n1\r\nn\r\n0\r\n\r\n";
            let (mut rest, mut pieces) = (&whole[..], Vec::new());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(read(&pieces), Ok((200, b"version".to_vec(), Progress::Done)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let prefix = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let cut = cut.min(bytes.len());
            let plain = read(&[&bytes[..cut], &bytes[cut..]]);
            let chunked = read(&[prefix, &bytes[..cut], &bytes[cut..]]);
            for answer in [plain, chunked].into_iter().flatten() {
                prop_assert!(answer.1.len() <= LIMITS.body);
            }
        }
    }
}
