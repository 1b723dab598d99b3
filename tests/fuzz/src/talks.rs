//! Bad input: what must hold for any bytes that an endpoint says in a conversation of Redis,
//! PostgreSQL, gRPC or a script, or that its own agent says.
//!
//! [`check`] takes one byte string: which conversation, how it is cut into pieces, then all that
//! the endpoint says before it closes. A [`TURN`] in it waits until something was said to the
//! endpoint, unless nothing will be. However it is cut the verdict is of the same kind, what is
//! kept is bounded, what is said to the endpoint too, and nobody is well by an answer that is
//! not one.
//!
//! It is the agent's own code over a stream that is no connection.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use probe_user::{
    config::{self, Config},
    health::{
        Kind,
        agent::{Said, Wishes},
        protocol::heard::heard,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
};

/// Conversations, by the first byte; the one after the last is an agent's line.
const TALKS: [&str; 8] = [
    "redis: {}",
    "redis: {role: master, user: probe, password: secret}",
    "postgres: {}",
    "postgres: {user: probe, password: secret, role: primary}",
    "grpc: {}",
    "grpc: {service: a.b.C}",
    "script: {steps: [{send: a}, {expect: ON}, {expect_hex: '00ff'}, {expect_regex: '[0-9]+x'}]}",
    "script: {steps: [{expect: '+'}, {send: b}, {expect: ERR, not: true, min_recv: 4}, {send: c}, {expect: d}]}",
];
/// These forget what was said before they asked, so the cut tells.
const BY_CUT: [usize; 2] = [3, 7];
/// No protocol's own, and not in UTF-8 either.
const TURN: u8 = 0xfc;
/// More than this nobody says to an endpoint.
const MOST_SAID: usize = 64 * 1024;
/// Room for the longest answer that is read, twice.
const MOST_KEPT: usize = 256 * 1024;

/// What an endpoint says, in pieces; what is said to it is counted.
struct Endpoint<'a> {
    rest: &'a [u8],
    cut: usize,
    heard: usize,
    /// Something was said to it since it spoke last.
    asked: bool,
}

impl AsyncRead for Endpoint<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let [TURN, rest @ ..] = self.rest {
            if !std::mem::take(&mut self.asked) {
                // Whoever asks for more without a word must not wait for ever.
                self.asked = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.rest = rest;
        }
        let turn = self.rest.iter().position(|byte| *byte == TURN);
        let turn = turn.unwrap_or(self.rest.len());
        let count = self.cut.min(to.remaining()).min(turn);
        let (piece, rest) = self.rest.split_at(count);
        to.put_slice(piece);
        self.rest = rest;
        self.asked &= count == 0;
        if count > 0 || self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        // One turn after the other.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncWrite for Endpoint<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        said: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.heard += said.len();
        self.asked = true;
        assert!(self.heard <= MOST_SAID, "{} bytes said", self.heard);
        Poll::Ready(Ok(said.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Bench {
    runtime: Runtime,
    checks: Vec<Config>,
}

impl Bench {
    fn new() -> Self {
        let each = TALKS.iter().map(|check| {
            let text = format!(
                "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: ['10.0.0.1:80'], \
                 endpoints: [{{name: b, address: '10.0.0.2:80'}}], check: {{{check}}}}}]"
            );
            config::parse(&text).expect("a good configuration")
        });
        Self {
            runtime: Builder::new_current_thread().build().expect("a runtime"),
            checks: each.collect(),
        }
    }

    fn verdict(&self, talk: usize, said: &[u8], cut: usize) -> Kind {
        let kind = self.checks[talk].services()[0].check().each()[0].kind();
        let mut endpoint = Endpoint {
            rest: said,
            cut,
            heard: 0,
            asked: false,
        };
        let mut scratch = BytesMut::new();
        let found = self
            .runtime
            .block_on(heard(kind, &mut endpoint, &mut scratch));
        let kept = scratch.capacity();
        assert!(kept <= MOST_KEPT, "{kept} bytes kept");
        let found = found.expect("one that is held over a stream");
        assert!(found.note.len() <= MOST_KEPT, "a note without end");
        found.kind
    }
}

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

/// Panics where something does not hold.
pub fn check(data: &[u8]) {
    let Some(([talk, cut], said)) = data.split_first_chunk::<2>() else {
        return;
    };
    let talk = usize::from(*talk) % (TALKS.len() + 1);
    if talk == TALKS.len() {
        return agent(said);
    }
    BENCH.with_borrow_mut(|bench| {
        let bench = bench.get_or_insert_with(Bench::new);
        let whole = bench.verdict(talk, said, said.len().max(1));
        let pieces = bench.verdict(talk, said, 1 + usize::from(*cut));
        if !BY_CUT.contains(&talk) {
            assert_eq!(whole, pieces, "{} in pieces", TALKS[talk]);
        }
        assert!(matches!(
            whole,
            Kind::Ok | Kind::BadStatus | Kind::BodyMismatch | Kind::Protocol
        ));
        let holds = |part: &[u8]| said.windows(part.len()).any(|at| at == part);
        if whole == Kind::Ok {
            let needed: &[&[u8]] = match talk {
                0 => &[b"+PONG\r\n"],
                1 => &[b"+OK\r\n", b"+PONG\r\n", b"master"],
                2 => &[],
                3 => &[b"\0\x01f"],
                4 | 5 => &[b"grpc"],
                6 => &[b"ON", b"\0\xff", b"x"],
                _ => &[b"+"],
            };
            assert!(needed.iter().all(|part| holds(part)), "{}", TALKS[talk]);
        }
    });
}

/// The verdict on a case, all of it in one piece; nothing of an agent's line.
pub fn verdict(data: &[u8]) -> Option<Kind> {
    let ([talk, _], said) = data.split_first_chunk::<2>()?;
    let talk = usize::from(*talk);
    (talk < TALKS.len()).then(|| Bench::new().verdict(talk, said, said.len().max(1)))
}

/// A line of an endpoint's own agent: whatever it is, what is kept of it is a few words.
fn agent(said: &[u8]) {
    let mut wishes = Wishes::default();
    let read = Said::parse(said);
    wishes.hear(&read);
    assert!(wishes.to_string().len() <= 512, "{wishes}");
    // The same again changes nothing.
    assert!(!wishes.hear(&read), "{wishes}");
}

/// Hand-made cases and their names.
pub fn made() -> Vec<(&'static str, Vec<u8>)> {
    let case = |decides: [u8; 2], parts: &[&[u8]]| {
        let mut data = decides.to_vec();
        parts.iter().for_each(|part| data.extend_from_slice(part));
        data
    };
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        let mut frame = vec![0, (body.len() >> 8) as u8, body.len() as u8];
        frame.extend([kind, flags, 0, 0, 0, stream]);
        frame.extend(body);
        frame
    };
    let settings = frame(4, 0, 0, b"");
    let head = frame(1, 4, 1, b"\x88\x5f\x10application/grpc");
    let serving = frame(0, 0, 1, b"\0\0\0\0\x02\x08\x01");
    let padded = frame(0, 8, 1, b"\xff\0");
    let trailers = frame(1, 5, 1, b"\x40\x0bgrpc-status\x010");
    let unknown = frame(
        1,
        5,
        1,
        b"\x88\x5f\x10application/grpc\x40\x0bgrpc-status\x015",
    );
    let ready: &[u8] = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x0aa\0bcd\0Z\0\0\0\x05I";
    let described: &[u8] = b"T\0\0\0\x06\0\0";
    vec![
        ("redis-pong", case([0, 2], &[b"+PONG\r\n"])),
        (
            "redis-loading",
            case([0, 2], &[b"-LOADING Redis is loading the dataset\r\n"]),
        ),
        (
            "redis-master",
            case(
                [1, 4],
                &[b"+OK\r\n+PONG\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"],
            ),
        ),
        (
            "redis-replica",
            case(
                [1, 4],
                &[b"+OK\r\n+PONG\r\n*2\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n"],
            ),
        ),
        (
            "redis-role-by-info",
            case(
                [1, 9],
                &[b"+OK\r\n+PONG\r\n-ERR unknown command\r\n\xfc$13\r\nrole:master\r\n\r\n"],
            ),
        ),
        (
            "redis-array-in-arrays",
            case([1, 0], &[b"+OK\r\n+PONG\r\n", &b"*1\r\n".repeat(200)]),
        ),
        (
            "redis-string-of-a-megabyte",
            case([1, 0], &[b"+OK\r\n+PONG\r\n$1048576\r\nmaster"]),
        ),
        ("redis-string-of-minus-two", case([0, 0], &[b"$-2\r\n"])),
        (
            "redis-line-without-end",
            case([0, 200], &[b"+", &[b'P'; 500]]),
        ),
        (
            "redis-is-http",
            case([0, 7], &[b"HTTP/1.1 400 Bad Request\r\n\r\n"]),
        ),
        (
            "postgres-asks-for-a-password",
            case([2, 0], &[b"R\0\0\0\x08\0\0\0\x03"]),
        ),
        (
            "postgres-starts",
            case([2, 3], &[b"E\0\0\0\x20SFATAL\0C57P03\0Mstarting up\0\0\0"]),
        ),
        (
            "postgres-message-of-no-length",
            case([2, 0], &[b"R\0\0\0\0"]),
        ),
        (
            "postgres-message-of-two-gigabytes",
            case([2, 0], &[b"R\x7f\xff\xff\xff"]),
        ),
        (
            "postgres-md5",
            case([3, 5], &[b"R\0\0\0\x0c\0\0\0\x05salt\xfc", ready]),
        ),
        (
            "postgres-scram",
            case([3, 5], &[b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"]),
        ),
        (
            "postgres-primary",
            case(
                [3, 6],
                &[
                    ready,
                    b"\xfc",
                    described,
                    b"D\0\0\0\x0b\0\x01\0\0\0\x01fC\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
                ],
            ),
        ),
        (
            "postgres-standby",
            case(
                [3, 6],
                &[
                    ready,
                    b"\xfc",
                    described,
                    b"D\0\0\0\x0b\0\x01\0\0\0\x01tC\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
                ],
            ),
        ),
        (
            "postgres-column-longer-than-its-row",
            case([3, 1], &[ready, b"\xfcD\0\0\0\x0b\0\x01\0\0\xff\xfff"]),
        ),
        (
            "grpc-serving",
            case([4, 3], &[&settings, b"\xfc", &head, &serving, &trailers]),
        ),
        (
            "grpc-unknown-service",
            case([5, 8], &[&settings, b"\xfc", &unknown]),
        ),
        (
            "grpc-padding-beyond-its-frame",
            case([4, 0], &[&settings, b"\xfc", &head, &padded]),
        ),
        (
            "grpc-trailers-without-end",
            case(
                [4, 90],
                &[&settings, b"\xfc", &head, &trailers[..trailers.len() - 3]],
            ),
        ),
        (
            "grpc-is-http-1",
            case(
                [4, 1],
                &[b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"],
            ),
        ),
        (
            "grpc-goes-away",
            case([4, 1], &[&settings, &frame(7, 0, 0, b"\0\0\0\0\0\0\0\0")]),
        ),
        ("script-all-of-it", case([6, 1], &[b"ON\0\xff12x"])),
        ("script-not-utf-8", case([6, 0], &[b"O\xc3N\0\xfe1x"])),
        ("script-steps", case([7, 1], &[b"+\xfcokay\xfcd"])),
        (
            "agent-words",
            case([8, 0], &[b"up 75% ready # all is well\n"]),
        ),
        (
            "agent-parts-beyond",
            case([8, 0], &[b"99999999999999999999% -5% maxconn:30 drain\r\n"]),
        ),
        ("agent-not-utf-8", case([8, 0], &[b"\xff\xfe up\0down\n"])),
        ("nothing", case([0, 0], &[])),
    ]
}
