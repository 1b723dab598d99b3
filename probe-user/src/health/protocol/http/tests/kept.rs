//! Connections that are kept from one check to the next, and servers that end them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::*;

/// A server that handles each connection, and how many there were.
async fn servers<F, S>(serve: S) -> (SocketAddr, Arc<AtomicUsize>)
where
    S: Fn(usize, TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let nth = counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(nth, stream));
        }
    });
    (address, count)
}

/// Reads a request, if one comes.
async fn asked(stream: &mut TcpStream) -> bool {
    let mut last = [0; 4];
    loop {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => {}
            _ => return false,
        }
        last.rotate_left(1);
        last[3] = byte[0];
        if last == *b"\r\n\r\n" {
            return true;
        }
    }
}

async fn answer_all(mut stream: TcpStream, answer: &[u8]) {
    while asked(&mut stream).await && stream.write_all(answer).await.is_ok() {}
}

fn probe(http: &str, target: SocketAddr) -> Probe {
    Probe::new(&check_by(http), target, "b")
}

async fn all_good(probe: &mut Probe, times: usize) {
    for i in 0..times {
        let verdict = probe.run().await;
        assert_eq!(verdict.kind, Kind::Ok, "check {i}: {verdict:?}");
        // As between two checks: the server's part comes in.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const BODY: &str = "expect: {body: {contains: version}}";

#[tokio::test]
async fn a_connection_is_used_as_often_as_configured() {
    for (keep, connections) in [
        ("connection: fresh", 20),
        ("connection: reuse", 1),
        ("connection: mixed", 2),
        ("connection: mixed, fresh_every: 5", 4),
        ("fresh_every: 2", 10),
    ] {
        let (target, count) = servers(|_, stream| answer_all(stream, OK)).await;
        let mut probe = probe(&format!("{{{keep}, {BODY}}}"), target);
        all_good(&mut probe, 20).await;
        assert_eq!(count.load(Ordering::SeqCst), connections, "{keep}");
    }
}

#[test]
fn fast_checks_are_mixed_and_slow_ones_fresh() {
    let keep = |inter: &str| {
        let check = checked(&format!("check: {{http: {{}}, inter: {inter}}}"));
        match check.each()[0].kind() {
            crate::config::Kind::Http(http) => http.keep(),
            other => panic!("by {other}"),
        }
    };
    assert_eq!(keep("999ms"), Keep::Mixed { fresh_every: 10 });
    assert_eq!(keep("1s"), Keep::Fresh);
}

/// The server closes after each answer, without a word of it.
#[tokio::test]
async fn a_connection_that_was_closed_between_two_checks_is_no_failure() {
    for reset in [false, true] {
        let (target, count) = servers(move |_, mut stream| async move {
            assert!(asked(&mut stream).await);
            stream.write_all(OK).await.unwrap();
            if reset {
                // After the answer was read: a RST would take it back.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let socket = socket2::SockRef::from(&stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
        })
        .await;
        let mut probe = probe(&format!("{{connection: reuse, {BODY}}}"), target);
        for _ in 0..10 {
            let verdict = probe.run().await;
            assert_eq!(verdict.kind, Kind::Ok, "reset {reset}: {verdict:?}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 10);
    }
}

/// The server closes in the moment of the request: once more, and once only.
#[tokio::test]
async fn a_connection_that_closes_on_the_request_is_tried_again_once() {
    for reset in [false, true] {
        let (target, count) = servers(move |_, mut stream| async move {
            assert!(asked(&mut stream).await);
            stream.write_all(OK).await.unwrap();
            // Until the next request is here, unanswered.
            stream.readable().await.unwrap();
            if reset {
                let socket = socket2::SockRef::from(&stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            } else {
                asked(&mut stream).await;
            }
        })
        .await;
        let mut probe = probe(&format!("{{connection: reuse, {BODY}}}"), target);
        all_good(&mut probe, 10).await;
        assert_eq!(count.load(Ordering::SeqCst), 10, "reset {reset}");
    }
    // A fresh connection that ends so is a failure.
    let (target, count) = servers(|_, mut stream| async move {
        asked(&mut stream).await;
    })
    .await;
    let verdict = probe("{connection: reuse}", target).run().await;
    assert_eq!(verdict.kind, Kind::Protocol);
    assert_eq!(verdict.note, "closed without an answer");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

/// A kept connection that answers badly, or not at all, is no stale one.
#[tokio::test]
async fn failures_on_a_kept_connection_are_failures() {
    let (target, count) = servers(|_, mut stream| async move {
        assert!(asked(&mut stream).await);
        stream.write_all(OK).await.unwrap();
        assert!(asked(&mut stream).await);
        stream.write_all(b"HTTP/1.1 2").await.unwrap();
    })
    .await;
    let mut cut = probe("{connection: reuse}", target);
    assert_eq!(cut.run().await.kind, Kind::Ok);
    let verdict = cut.run().await;
    assert_eq!(verdict.kind, Kind::Protocol, "{verdict:?}");
    assert_eq!(verdict.note, "closed within the head");
    assert_eq!(count.load(Ordering::SeqCst), 1);

    let (target, count) = servers(|_, mut stream| async move {
        assert!(asked(&mut stream).await);
        stream.write_all(OK).await.unwrap();
        asked(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut hangs = probe("{connection: reuse}", target);
    assert_eq!(hangs.run().await.kind, Kind::Ok);
    assert_eq!(hangs.run().await.kind, Kind::ResponseTimeout);
    // The next one does not wait on the same connection.
    assert_eq!(hangs.run().await.kind, Kind::Ok);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

/// With mixed connections no failure is confirmed on a connection that failed before.
#[tokio::test]
async fn mixed_connections_end_with_a_failure() {
    let bad: &[u8] = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    for (keep, connections) in [("mixed", 5), ("reuse", 1)] {
        let (target, count) = servers(move |_, stream| answer_all(stream, bad)).await;
        let mut probe = probe(&format!("{{connection: {keep}}}"), target);
        for _ in 0..5 {
            assert_eq!(probe.run().await.kind, Kind::BadStatus);
        }
        assert_eq!(count.load(Ordering::SeqCst), connections, "{keep}");
    }
}

#[tokio::test]
async fn connections_that_cannot_be_used_again_are_not() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 7\r\n\r\nversion"[..],
        b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nversion",
        // More than the answer.
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nversionHTTP/1.1 408 Timeout\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\nversion",
    ] {
        let (target, count) = servers(move |_, stream| answer_all(stream, answer)).await;
        let mut probe = probe("{connection: reuse, expect: {status: [101, 200]}}", target);
        all_good(&mut probe, 3).await;
        let text = String::from_utf8_lossy(answer);
        assert_eq!(count.load(Ordering::SeqCst), 3, "{text}");
    }
    for answer in [
        &b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 7\r\n\r\nversion"[..],
        b"HTTP/1.1 204 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nversion\r\n0\r\n\r\n",
    ] {
        let (target, count) = servers(move |_, stream| answer_all(stream, answer)).await;
        let mut probe = probe("{connection: reuse}", target);
        all_good(&mut probe, 3).await;
        let text = String::from_utf8_lossy(answer);
        assert_eq!(count.load(Ordering::SeqCst), 1, "{text}");
    }
}

/// What comes of an answer after its verdict is certain is read before the next check.
#[tokio::test]
async fn a_rest_that_comes_later_does_not_cost_the_connection() {
    for (rest, connections) in [(30_000, 1), (200_000, 3)] {
        let (target, count) = servers(move |_, mut stream| async move {
            while asked(&mut stream).await {
                let length = rest + 7;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nversion");
                if stream.write_all(head.as_bytes()).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                if stream.write_all(&vec![b'x'; rest]).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let mut probe = probe(&format!("{{connection: reuse, {BODY}}}"), target);
        for _ in 0..3 {
            assert_eq!(probe.run().await.kind, Kind::Ok);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(count.load(Ordering::SeqCst), connections, "{rest}");
    }
}
