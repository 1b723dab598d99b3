//! Whole, broken, endless and cut answers.

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
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\na", 200, b"a"),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\r\na", 200, b"a"),
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

#[test]
fn a_decoder_begins_anew_and_knows_whether_the_connection_goes_on() {
    let mut decoder = Decoder::new(LIMITS, false);
    for (bytes, goes_on) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nA: x\r\n\r\na"[..],
            true,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", false),
        (
            b"HTTP/1.1 200 OK\r\nConnection: a, Close\r\nContent-Length: 0\r\n\r\n",
            false,
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
        (
            b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n",
            true,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", false),
        (
            b"HTTP/1.1 100 Continue\r\nB: y\r\n\r\nHTTP/1.1 204 OK\r\nA: z\r\n\r\n",
            true,
        ),
        (b"HTTP/1.1 101 Switching\r\n\r\n", false),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            true,
        ),
    ] {
        decoder.restart();
        assert_eq!((decoder.status(), decoder.body()), (0, &b""[..]));
        assert!(!decoder.any_header("a", |_| true));
        decoder.push(&mut BytesMut::from(bytes)).unwrap();
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(decoder.may_go_on(), goes_on, "{text}");
        assert_eq!(
            decoder.any_header("A", |_| true),
            text.contains("\nA:"),
            "{text}"
        );
        assert!(!decoder.any_header("b", |_| true), "of an interim answer");
    }
}
