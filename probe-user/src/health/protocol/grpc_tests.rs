use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::timeout,
};

use super::*;
use crate::health::protocol::tests::{Act, LONG, reason, repeats, says, told};

/// How a server answers a call.
#[derive(Clone, Default)]
struct Manner {
    http: u16,
    kind: &'static str,
    /// In the head, as an answer without a message has it.
    head: Vec<(&'static str, &'static str)>,
    message: Option<Bytes>,
    repeat: bool,
    trailers: Option<Vec<(&'static str, &'static str)>>,
}

fn good() -> Manner {
    Manner {
        http: 200,
        kind: "application/grpc+proto",
        message: Some(status(&[8, 1])),
        trailers: Some(vec![("grpc-status", "0")]),
        ..Manner::default()
    }
}

/// A message in its frame.
fn status(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(message);
    framed.freeze()
}

fn headers(from: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (name.parse().unwrap(), HeaderValue::from_static(value))
    };
    from.iter().map(pair).collect::<HeaderMap>()
}

/// Answers each call in this manner; what it was asked for comes back.
async fn serve(stream: DuplexStream, manner: Manner) -> Vec<Bytes> {
    let mut asked = Vec::new();
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri().path(), PATH);
        assert_eq!(request.uri().authority().unwrap(), "sense.example.com");
        assert_eq!(request.headers()["te"], "trailers");
        let mut body = request.into_body();
        let mut message = BytesMut::new();
        while let Some(data) = body.data().await {
            message.put(data.unwrap());
        }
        asked.push(message.freeze());
        let mut response = Response::builder().status(manner.http);
        response
            .headers_mut()
            .unwrap()
            .extend(headers(&manner.head));
        if !manner.kind.is_empty() {
            response = response.header("content-type", manner.kind);
        }
        let response = response.body(()).unwrap();
        let Some(message) = manner.message.clone() else {
            respond.send_response(response, true).unwrap();
            continue;
        };
        let mut body = respond.send_response(response, false).unwrap();
        let manner = manner.clone();
        tokio::spawn(async move {
            while manner.repeat && body.send_data(message.clone(), false).is_ok() {
                tokio::task::yield_now().await;
            }
            if manner.repeat {
                return;
            }
            body.send_data(message, manner.trailers.is_none()).unwrap();
            if let Some(trailers) = &manner.trailers {
                body.send_trailers(headers(trailers)).unwrap();
            }
        });
    }
    asked
}

async fn ask(manner: Manner, service: &str) -> String {
    let (stream, server) = duplex(1 << 16);
    let server = tokio::spawn(serve(server, manner));
    let grpc = Grpc::new(service, "sense.example.com", false);
    let outcome = timeout(LONG, async {
        let mut session = Session::new(stream).await?;
        session.ask(&grpc).await
    });
    let outcome = told(outcome.await.expect("it ends"));
    server.abort();
    outcome
}

#[tokio::test]
async fn only_serving_is_good() {
    assert_eq!(ask(good(), "").await, "ok");
    for (message, end) in [
        (&[8, 2][..], "body-mismatch: not serving: NOT_SERVING"),
        (&[8, 3], "body-mismatch: not serving: SERVICE_UNKNOWN"),
        (&[8, 9], "body-mismatch: not serving: status 9"),
        (&[], "body-mismatch: not serving: UNKNOWN"),
        // Unknown fields of every kind before it.
        (
            &[
                0x10, 0x85, 1, 0x1a, 2, 7, 7, 0x25, 1, 2, 3, 4, 0x29, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1,
            ],
            "ok",
        ),
    ] {
        let message = Some(status(message));
        assert_eq!(ask(Manner { message, ..good() }, "a").await, end);
    }
}

#[tokio::test]
async fn statuses_are_told_apart() {
    for (code, text, end) in [
        ("12", "", "bad-status: not implemented: UNIMPLEMENTED"),
        (
            "5",
            "unknown service",
            "body-mismatch: not serving: NOT_FOUND unknown service",
        ),
        ("14", "", "bad-status: not ready: UNAVAILABLE"),
        ("16", "", "bad-status: not permitted: UNAUTHENTICATED"),
        ("13", "", "bad-status: error: INTERNAL"),
        (
            "99",
            "",
            "bad-status: error: a status that gRPC does not have",
        ),
    ] {
        let said = vec![("grpc-status", code), ("grpc-message", text)];
        // Trailers alone, and trailers behind a message.
        let alone = Manner {
            head: said.clone(),
            message: None,
            ..good()
        };
        assert_eq!(ask(alone, "a").await, end);
        let trailers = Some(said);
        assert_eq!(ask(Manner { trailers, ..good() }, "a").await, end);
    }
}

#[tokio::test]
async fn what_is_no_answer_of_grpc() {
    for (manner, end) in [
        (
            Manner {
                http: 503,
                ..good()
            },
            "bad-status: error: HTTP status 503",
        ),
        (
            Manner {
                kind: "text/html",
                ..good()
            },
            "protocol: an answer of HTTP/2, not of gRPC",
        ),
        (
            Manner { kind: "", ..good() },
            "protocol: an answer of HTTP/2, not of gRPC",
        ),
        (
            Manner {
                trailers: None,
                ..good()
            },
            "protocol: an answer of gRPC without its status",
        ),
        (
            Manner {
                trailers: Some(vec![("grpc-status", "x")]),
                ..good()
            },
            "protocol: an answer of gRPC without its status",
        ),
        (
            Manner {
                message: Some(Bytes::from_static(b"\x01\0\0\0\0")),
                ..good()
            },
            r"protocol: not an answer of the health service, it begins `\u{1}\0\0\0\0`",
        ),
        (
            Manner {
                message: Some(vec![b'x'; 1000].into()),
                repeat: true,
                ..good()
            },
            "protocol: an answer that is too long",
        ),
    ] {
        assert_eq!(ask(manner, "").await, end);
    }
}

#[tokio::test]
async fn a_connection_is_asked_again_and_the_service_named() {
    let (stream, server) = duplex(1 << 16);
    let server = tokio::spawn(serve(server, good()));
    let long = "x".repeat(300);
    let mut session = Session::new(stream).await.unwrap();
    for service in ["", "chat", &long] {
        let grpc = Grpc::new(service, "sense.example.com", true);
        for _ in 0..2 {
            let asked = timeout(LONG, session.ask(&grpc)).await;
            asked.expect("it ends").unwrap();
        }
    }
    drop(session);
    let asked = timeout(LONG, server).await.unwrap().unwrap();
    let with_length: Vec<_> = [&[0x0a, 0xac, 0x02][..], long.as_bytes()].concat();
    let messages: [&[u8]; 3] = [b"", b"\x0a\x04chat", &with_length];
    assert_eq!(asked.len(), 6);
    for (pair, message) in asked.chunks(2).zip(messages) {
        assert_eq!(pair, [status(message), status(message)]);
    }
}

/// Closed between two checks: that is told apart, since nothing was answered.
#[tokio::test]
async fn a_kept_connection_that_has_ended_is_known_as_such() {
    let (stream, server) = duplex(1 << 16);
    let server = tokio::spawn(serve(server, good()));
    let grpc = Grpc::new("", "sense.example.com", false);
    let mut session = Session::new(stream).await.unwrap();
    timeout(LONG, session.ask(&grpc)).await.unwrap().unwrap();
    server.abort();
    server.await.unwrap_err();
    for _ in 0..2 {
        let failure = timeout(LONG, session.ask(&grpc))
            .await
            .unwrap()
            .unwrap_err();
        assert!(failure.is_end(), "{failure:?}");
    }
}

/// What is no HTTP/2 at all.
#[tokio::test(start_paused = true)]
async fn other_protocols() {
    let cases: [(Vec<Act>, Option<&str>); 5] = [
        (vec![], Some("")),
        (vec![Act::Waits], None),
        (
            vec![says("HTTP/1.1 400 Bad Request\r\n\r\n")],
            Some("protocol: "),
        ),
        (vec![says([0, 0, 0, 4, 0, 0, 0, 0, 0]), Act::Waits], None),
        (vec![repeats([0xff; 64])], Some("protocol: ")),
    ];
    for (acts, end) in cases {
        let (stream, endpoint) = duplex(1 << 16);
        let endpoint = tokio::spawn(crate::health::protocol::tests::act(endpoint, acts));
        let grpc = Grpc::new("", "a", false);
        let asked = timeout(LONG, async {
            let mut session = Session::new(stream).await?;
            session.ask(&grpc).await
        });
        match (asked.await, end) {
            (Ok(outcome), Some(end)) => {
                assert!(outcome.is_err() && reason(&outcome).is_none());
                let told = told(outcome);
                assert!(told.starts_with(end), "{told}");
            }
            (Err(_), None) => {}
            (outcome, _) => panic!("{outcome:?}"),
        }
        endpoint.await.unwrap();
    }
}

/// The window is no larger than an answer may be: who says more than is read stands still.
#[tokio::test]
async fn an_endless_answer_is_held_back() {
    let (stream, mut server) = duplex(1 << 16);
    let server = tokio::spawn(async move {
        let mut heard = vec![0; 1024];
        let mut all = Vec::new();
        while !all.windows(2).any(|window| window == [0x00, 0x04]) || all.len() < 60 {
            let count = server.read(&mut heard).await.unwrap();
            all.extend_from_slice(&heard[..count]);
        }
        // SETTINGS and the acknowledgment of the client's.
        server
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        server
            .write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0])
            .await
            .unwrap();
        // DATA on the first stream without end, no head before it.
        let frame = [&[0, 0x03, 0xe8, 0, 0, 0, 0, 0, 1][..], &[b'x'; 1000]].concat();
        while server.write_all(&frame).await.is_ok() {}
    });
    let grpc = Grpc::new("", "a", false);
    let asked = timeout(Duration::from_secs(20), async {
        let mut session = Session::new(stream).await?;
        session.ask(&grpc).await
    });
    let told = told(asked.await.expect("it ends"));
    assert!(told.starts_with("protocol: "), "{told}");
    server.await.unwrap();
}

proptest! {
    #[test]
    fn an_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        serving(&bytes);
        serving(&status(&bytes));
    }

    #[test]
    fn a_status_is_found_among_unknown_fields(
        value in any::<u64>(),
        before in prop::collection::vec((2u64..1000, any::<u64>()), 0..4),
        behind in prop::collection::vec((2u64..1000, prop::collection::vec(any::<u8>(), 0..9)), 0..4),
    ) {
        let mut message = Vec::new();
        let varint = |mut value: u64, to: &mut Vec<u8>| {
            while value >= 0x80 {
                to.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
                value >>= 7;
            }
            to.push(u8::try_from(value).unwrap());
        };
        for (field, value) in before {
            varint(field << 3, &mut message);
            varint(value, &mut message);
        }
        varint(1 << 3, &mut message);
        varint(value, &mut message);
        for (field, bytes) in behind {
            varint(field << 3 | 2, &mut message);
            varint(bytes.len() as u64, &mut message);
            message.extend(bytes);
        }
        prop_assert_eq!(serving(&status(&message)), Some(value));
        // Cut off in its frame it is no message; but between two fields.
        prop_assert_eq!(serving(&status(&message)[..message.len() + 4]), None);
    }
}
