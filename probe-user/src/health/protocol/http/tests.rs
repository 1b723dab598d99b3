//! Each kind of verdict, from a real TCP server.

mod answers;
mod kept;
mod tls;

use std::{future::Future, io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::{
    config::Check,
    health::{Probe, Verdict},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{version:1}";

fn check(expect: &str) -> Check {
    check_by(&format!("{{path: /status, expect: {expect}}}"))
}

/// A check by HTTP with these settings.
fn check_by(http: &str) -> Check {
    checked(&format!("check: {{http: {http}, timeout: 500ms}}"))
}

/// The check of a service with these settings.
fn checked(settings: &str) -> Check {
    let text = format!(
        "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: ['10.0.0.1:80'], endpoints: \
         [{{name: b, address: '10.0.0.2:80'}}], {settings}}}]"
    );
    crate::config::parse(&text).unwrap().services()[0]
        .check()
        .clone()
}

const VERSION: &str = "{status: 200, body: {contains: version}}";

/// A server that handles one connection.
async fn server<F, S>(serve: S) -> (SocketAddr, JoinHandle<()>)
where
    S: FnOnce(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream).await;
    });
    (address, task)
}

async fn verdict(expect: &str, target: SocketAddr) -> Verdict {
    Probe::new(&check(expect), target, "b:80").run().await
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

/// The verdict on a server that reads the request, sends these bytes and closes.
async fn answered(expect: &str, answer: &[u8]) -> Verdict {
    let answer = answer.to_vec();
    let (target, task) = server(|mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(&answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // The check ends with a RST, or by itself.
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let verdict = verdict(expect, target).await;
    task.await.unwrap();
    verdict
}

#[tokio::test]
async fn a_good_answer() {
    let verdict = answered(VERSION, OK).await;
    assert_eq!((verdict.kind, verdict.status), (Kind::Ok, Some(200)));
    assert!(
        verdict.detail().starts_with("200 in "),
        "{}",
        verdict.detail()
    );
}

#[tokio::test]
async fn the_request_is_well_formed() {
    let (target, task) = server(|mut stream| async move {
        let request = read_request(&mut stream).await;
        assert!(
            request.starts_with("GET /status HTTP/1.1\r\nHost: b:80\r\n"),
            "{request}"
        );
        assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
        stream.write_all(OK).await.unwrap();
        // The check closes with a RST, so that no TIME_WAIT stays on either side.
        let end = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(end.raw_os_error(), Some(libc::ECONNRESET));
    })
    .await;
    assert_eq!(verdict(VERSION, target).await.kind, Kind::Ok);
    task.await.unwrap();
}

#[tokio::test]
async fn refused() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // Bound and not listening: nobody else can take the port meanwhile.
    let verdict = verdict(VERSION, socket.local_addr().unwrap()).await;
    assert_eq!(verdict.kind, Kind::Refused);
    assert_eq!(verdict.kind.success(), Some(false));
    assert_eq!(verdict.note, "Connection refused");
}

/// A listener whose queue is full drops SYNs, as a blackhole does.
#[tokio::test]
async fn connect_timeout() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let target = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let verdict = loop {
        // The queue holds backlog + 1 connections; open ones until one hangs.
        let verdict = verdict(VERSION, target).await;
        if verdict.kind == Kind::ConnectTimeout {
            break verdict;
        }
        assert_eq!(verdict.kind, Kind::ResponseTimeout);
        waiting.push(TcpStream::connect(target).await.unwrap());
        assert!(waiting.len() < 10);
    };
    assert!(verdict.latency >= Duration::from_millis(500));
}

#[tokio::test]
async fn response_timeout() {
    let (target, task) = server(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let verdict = verdict(VERSION, target).await;
    assert_eq!(verdict.kind, Kind::ResponseTimeout);
    assert!(verdict.latency >= Duration::from_millis(500));
    task.await.unwrap();
}

#[tokio::test]
async fn reset() {
    let (target, task) = server(|mut stream| async move {
        read_request(&mut stream).await;
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    assert_eq!(verdict(VERSION, target).await.kind, Kind::Reset);
    task.await.unwrap();
}

#[test]
fn errors_of_the_network_and_of_ourselves_are_told_apart() {
    let kind = |errno, connecting| Kind::of_io(&io::Error::from_raw_os_error(errno), connecting);
    for (errno, expected) in [
        (libc::ECONNREFUSED, Kind::Refused),
        (libc::ETIMEDOUT, Kind::ConnectTimeout),
        (libc::EHOSTUNREACH, Kind::Unreachable),
        (libc::ENETUNREACH, Kind::Unreachable),
        // A local firewall's REJECT and DROP.
        (libc::EACCES, Kind::Unreachable),
        (libc::EPERM, Kind::Unreachable),
        (libc::ECONNRESET, Kind::Reset),
        (libc::EMFILE, Kind::Local),
        (libc::EADDRNOTAVAIL, Kind::Local),
    ] {
        assert_eq!(kind(errno, true), expected, "{errno}");
    }
    assert_eq!(kind(libc::ETIMEDOUT, false), Kind::ResponseTimeout);
    assert_eq!(kind(libc::EPIPE, false), Kind::Reset);
    assert_eq!(Kind::Local.success(), None);
}

#[tokio::test]
async fn bad_status() {
    let verdict = answered(VERSION, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!((verdict.kind, verdict.status), (Kind::BadStatus, Some(404)));
    assert_eq!(verdict.note, "expected 200");
}

/// HAProxy's trap: there the string alone would keep the server up.
#[tokio::test]
async fn a_503_with_the_right_body_is_down() {
    let answer = b"HTTP/1.1 503 Unavailable\r\nContent-Length: 11\r\n\r\n{version:1}";
    let verdict = answered(VERSION, answer).await;
    assert_eq!((verdict.kind, verdict.status), (Kind::BadStatus, Some(503)));
    assert_eq!(verdict.kind.success(), Some(false));
}

#[tokio::test]
async fn body_mismatch_quotes_what_came() {
    let verdict = answered(
        VERSION,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstart",
    )
    .await;
    assert_eq!(verdict.kind, Kind::BodyMismatch);
    assert_eq!(verdict.note, "no `version` in the body");
    let detail = verdict.detail();
    assert!(
        detail.starts_with("200, no `version` in the body, it begins `start`, in "),
        "{detail}"
    );
    let regex = "{status: 200, body: {regex: '^a+$'}}";
    let good = answered(regex, b"HTTP/1.1 200 OK\r\n\r\naaa").await;
    assert_eq!(good.kind, Kind::Ok);
    let bad = answered(regex, b"HTTP/1.1 200 OK\r\n\r\naab").await;
    assert_eq!(bad.kind, Kind::BodyMismatch);
}

/// A text that is cut by the boundaries of packets is found; so is one in chunks.
#[tokio::test]
async fn bodies_in_pieces() {
    let (target, task) = server(|mut stream| async move {
        read_request(&mut stream).await;
        stream.set_nodelay(true).unwrap();
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for piece in [
            &head[..],
            b"3\r\nver\r\n",
            b"2\r\nsi\r\n2\r\non",
            b"\r\n0\r\n\r\n",
        ] {
            // The check may close before the last piece: by then it has found its text.
            let _ = stream.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let verdict = verdict(VERSION, target).await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    task.await.unwrap();
}

#[tokio::test]
async fn garbage_is_a_protocol_error_at_once() {
    let (target, task) = server(|mut stream| async move {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let verdict = verdict(VERSION, target).await;
    assert_eq!(verdict.kind, Kind::Protocol);
    assert!(verdict.latency < Duration::from_millis(500));
    task.await.unwrap();
    let random: Vec<u8> = (0..200u8).map(|i| i.wrapping_mul(167)).collect();
    assert_eq!(answered(VERSION, &random).await.kind, Kind::Protocol);
}

#[tokio::test]
async fn early_close() {
    let silent = answered(VERSION, b"").await;
    assert_eq!(silent.kind, Kind::Protocol);
    assert_eq!(silent.note, "closed without an answer");
    let short = answered(VERSION, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nvers").await;
    assert_eq!(short.kind, Kind::Protocol);
    assert_eq!(short.note, "closed 5 bytes before the end");
    // What was wanted had come: the rest does not matter.
    let enough = answered(
        VERSION,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nversion",
    )
    .await;
    assert_eq!(enough.kind, Kind::Ok);
}

#[tokio::test]
async fn interim_answers_are_skipped_and_redirects_not_followed() {
    let interim = [b"HTTP/1.1 100 Continue\r\n\r\n".as_slice(), OK].concat();
    assert_eq!(answered(VERSION, &interim).await.kind, Kind::Ok);
    let moved = b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        answered("{}", moved).await.kind,
        Kind::Ok,
        "as HAProxy's httpchk"
    );
    assert_eq!(answered(VERSION, moved).await.kind, Kind::BadStatus);
}

/// The verdict on a server that sends `first`, then `again` for ever, `gap` apart.
async fn endless(first: &'static [u8], again: &'static [u8], gap: Duration) -> Verdict {
    let (target, task) = server(move |mut stream| async move {
        read_request(&mut stream).await;
        let mut sent = stream.write_all(first).await;
        while sent.is_ok() {
            if !gap.is_zero() {
                tokio::time::sleep(gap).await;
            }
            sent = stream.write_all(again).await;
        }
    })
    .await;
    let verdict = verdict(VERSION, target).await;
    // The server's loop ends only because the check closed the connection.
    task.await.unwrap();
    verdict
}

#[tokio::test]
async fn endless_headers() {
    let verdict = endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", Duration::ZERO).await;
    assert_eq!(verdict.kind, Kind::Protocol);
    let long = endless(
        b"HTTP/1.1 200 OK\r\nA: ",
        b"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        Duration::ZERO,
    )
    .await;
    assert_eq!(long.kind, Kind::Protocol);
    assert_eq!(long.note, format!("head beyond {HEAD_LIMIT} bytes"));
}

#[tokio::test]
async fn endless_body() {
    let verdict = endless(b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 4096], Duration::ZERO).await;
    assert_eq!(verdict.kind, Kind::BodyMismatch);
    assert!(
        verdict.note.contains("in the first 65536 bytes"),
        "{}",
        verdict.note
    );
}

#[tokio::test]
async fn slow_drip() {
    let gap = Duration::from_millis(20);
    let body = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x", gap).await;
    assert_eq!((body.kind, body.status), (Kind::ResponseTimeout, Some(200)));
    assert!(body.latency >= Duration::from_millis(500));
    assert!(body.latency < Duration::from_secs(2));
    let head = endless(b"HTTP/1.1 200 OK\r\nA: ", b"x", gap).await;
    assert_eq!((head.kind, head.status), (Kind::ResponseTimeout, None));
}

/// Nothing that a server sends makes the check fail otherwise than by a verdict, or
/// leaks descriptors.
#[tokio::test]
async fn many_checks_leak_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            stream.write_all(OK).await.unwrap();
        }
    });
    let mut probe = Probe::new(&check(VERSION), target, "b");
    for _ in 0..500 {
        let verdict = probe.run().await;
        assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    }
    // /proc/net/tcp names the states of this network namespace; 06 is TIME_WAIT.
    let port = format!("{:04X}", target.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waiting = table
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().is_some_and(|a| a.ends_with(&port));
            let remote = fields.next().is_some_and(|a| a.ends_with(&port));
            (local || remote) && fields.next() == Some("06")
        })
        .count();
    assert_eq!(waiting, 0, "a RST leaves no TIME_WAIT");
    task.abort();
}
