//! Bad input: what must hold for any bytes that a server sends as an answer in HTTP/1.
//!
//! [`check`] takes one byte string: two bytes that decide, then the answer. However it is
//! cut into pieces it reads the same, nothing that is kept grows beyond its limit, and a
//! decoder that is used again knows nothing of what it read before.
//!
//! The decoder is the agent's own file, compiled here: the agent as a whole would make a
//! fuzz target that takes minutes to build and looks at much else.

use bytes::BytesMut;

#[path = "../../../probe-user/src/http1.rs"]
mod http1;

use http1::{Decoder, Limits, Progress};

/// Small, so that short inputs reach them.
const LIMITS: Limits = Limits {
    head: 512,
    body: 128,
};
/// The request was HEAD.
const HEAD: u8 = 1;

/// What was read of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    status: u16,
    body: Vec<u8>,
    progress: Progress,
    goes_on: bool,
    servers: Vec<Vec<u8>>,
}

/// Panics where something does not hold.
pub fn check(data: &[u8]) {
    let Some(([flags, step], answer)) = data.split_first_chunk::<2>() else {
        return;
    };
    let head = flags & HEAD != 0;
    let mut fresh = Decoder::new(LIMITS, head);
    let whole = read(&mut fresh, answer, answer.len());
    let cut = 1 + usize::from(*step);
    let pieces = read(&mut Decoder::new(LIMITS, head), answer, cut);
    assert_eq!(whole, pieces, "in pieces of {cut}");
    // The same decoder again, byte by byte.
    fresh.restart();
    let again = read(&mut fresh, answer, 1);
    assert_eq!(whole, again, "a second time, byte by byte");
}

/// Feeds an answer in pieces, then the end of the connection; nothing if it is malformed.
fn read(decoder: &mut Decoder, answer: &[u8], cut: usize) -> Option<Read> {
    let mut input = BytesMut::new();
    let mut progress = Progress::Head;
    for piece in answer.chunks(cut.max(1)) {
        input.extend_from_slice(piece);
        let before = progress;
        progress = decoder.push(&mut input).ok()?;
        assert!(decoder.body().len() <= LIMITS.body);
        assert!(
            progress != Progress::Head || input.len() <= LIMITS.head,
            "what is kept of a head is bounded"
        );
        assert!(
            before == Progress::Head || progress != Progress::Head,
            "a head that was there is gone"
        );
        assert_eq!(decoder.status() == 0, progress == Progress::Head);
        if matches!(progress, Progress::Done | Progress::Full) {
            break;
        }
    }
    let goes_on = decoder.may_go_on();
    assert!(!goes_on || progress == Progress::Done);
    if !matches!(progress, Progress::Done | Progress::Full) {
        progress = decoder.close(&input).ok()?;
        assert_eq!(progress, Progress::Done);
    }
    let mut servers = Vec::new();
    decoder.any_header("server", |value| {
        servers.push(value.to_vec());
        false
    });
    Some(Read {
        status: decoder.status(),
        body: decoder.body().to_vec(),
        progress,
        goes_on,
        servers,
    })
}

/// Hand-made cases and their names.
pub fn made() -> Vec<(&'static str, Vec<u8>)> {
    let case = |decides: [u8; 2], parts: &[&[u8]]| {
        let mut data = decides.to_vec();
        parts.iter().for_each(|part| data.extend_from_slice(part));
        data
    };
    let ok: &[u8] = b"HTTP/1.1 200 OK\r\n";
    vec![
        ("counted", case([0, 3], &[ok, b"Server: a\r\nContent-Length: 3\r\n\r\nabc"])),
        ("counted-too-long", case([0, 6], &[ok, b"Content-Length: 3\r\n\r\nabcdef"])),
        ("counted-too-short", case([0, 1], &[ok, b"Content-Length: 3\r\n\r\na"])),
        ("counted-twice", case([0, 8], &[ok, b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"])),
        ("counted-beyond-numbers", case([0, 8], &[ok, b"Content-Length: 99999999999999999999\r\n\r\n"])),
        ("until-the-end", case([0, 9], &[b"HTTP/1.0 200 OK\r\n\r\nto the end"])),
        ("longer-than-the-limit", case([0, 50], &[ok, b"\r\n", &[b'x'; 200]])),
        ("chunked", case([0, 2], &[ok, b"Transfer-Encoding: chunked\r\n\r\n3\r\nver\r\n4;a=b\r\nsion\r\n0\r\nT: x\r\n\r\n"])),
        ("chunk-longer-than-it-says", case([0, 4], &[ok, b"Transfer-Encoding: chunked\r\n\r\n3\r\nversion\r\n"])),
        ("chunk-of-no-size", case([0, 4], &[ok, b"Transfer-Encoding: chunked\r\n\r\n\r\n"])),
        ("chunk-of-a-petabyte", case([0, 4], &[ok, b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nx"])),
        ("interim-answers", case([0, 7], &[b"HTTP/1.1 100 Continue\r\nServer: x\r\n\r\n", ok, b"Content-Length: 0\r\n\r\n"])),
        ("to-head", case([HEAD, 5], &[ok, b"Content-Length: 3\r\n\r\n"])),
        ("bare-line-ends", case([0, 0], &[b"HTTP/1.1 200 OK\nContent-Length: 1\n\na"])),
        // Parsing by doubling waited for more where only one of the two was bare.
        ("mixed-line-ends", case([0, 0], &[b"HTTP/1.1 200 OK\nContent-Length: 1\n\r\na"])),
        ("lines-before-the-head", case([0, 0], &[b"\r\n\n\r\n", ok, b"Content-Length: 0\r\n\r\n"])),
        ("endless-head", case([0, 20], &[ok, b"A: ", &[b'x'; 600]])),
        ("another-protocol", case([0, 20], &[b"SSH-2.0-OpenSSH_9.2\r\n"])),
        ("tls-alert", case([0, 2], &[b"\x15\x03\x01\x00\x02\x02\x28"])),
        ("nothing", case([0, 0], &[])),
    ]
}
