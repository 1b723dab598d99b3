//! What answers may hold, and where else they may send a check.

use super::*;

/// The verdict of a check by HTTP on this answer.
async fn judged(http: &str, answer: &[u8]) -> Verdict {
    let answer = answer.to_vec();
    let (target, task) = server(|mut stream| async move {
        read_request(&mut stream).await;
        // The check may know enough before all of it is written.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let verdict = Probe::new(&check_by(http), target, "b:80").run().await;
    task.await.unwrap();
    verdict
}

#[tokio::test]
async fn headers_are_expected() {
    let answer = b"HTTP/1.1 200 OK\r\nX-Role:  primary \r\nX-Role: b\r\nContent-Length: 0\r\n\r\n";
    for (expect, kind) in [
        ("headers: [{name: x-role}]", Kind::Ok),
        ("headers: [{name: X-Role, equals: primary}]", Kind::Ok),
        ("headers: [{name: X-Role, equals: b}]", Kind::Ok),
        (
            "headers: [{name: X-Role, equals: prim}]",
            Kind::HeaderMismatch,
        ),
        ("headers: [{name: X-Role, contains: prim}]", Kind::Ok),
        ("headers: [{name: X-Role, regex: '^p.*y$'}]", Kind::Ok),
        (
            "headers: [{name: X-Role, regex: '^x'}]",
            Kind::HeaderMismatch,
        ),
        ("headers: [{name: X-None}]", Kind::HeaderMismatch),
        (
            "headers: [{name: X-Role}, {name: X-None}]",
            Kind::HeaderMismatch,
        ),
        ("not: {headers: [{name: X-None}]}", Kind::Ok),
        ("not: {headers: [{name: X-Role}]}", Kind::HeaderMismatch),
        (
            "not: {headers: [{name: X-Role, equals: b}]}",
            Kind::HeaderMismatch,
        ),
        ("not: {headers: [{name: X-Role, equals: c}]}", Kind::Ok),
        ("status: '201,200'", Kind::Ok),
        ("not: {status: 404}", Kind::Ok),
        ("status: 200-299, not: {status: 200}", Kind::BadStatus),
    ] {
        let verdict = judged(&format!("{{expect: {{{expect}}}}}"), answer).await;
        assert_eq!(verdict.kind, kind, "{expect}: {verdict:?}");
    }
    let not = judged("{expect: {not: {status: [200, 404]}}}", answer).await;
    assert_eq!(not.note, "expected none of 200, 404");
    let verdict = judged("{expect: {headers: [{name: X-Role, equals: x}]}}", answer).await;
    let detail = verdict.detail();
    assert!(
        detail.starts_with("200, no header x-role: `x`, it begins `primary`, in "),
        "{detail}"
    );
}

#[tokio::test]
async fn bodies_must_not_hold_what_is_not_wanted() {
    let answer = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let both = "{expect: {body: {contains: up}, not: {body: {contains: error}}}}";
    for (body, kind) in [
        ("up", Kind::Ok),
        ("up, error", Kind::BodyMismatch),
        ("error", Kind::BodyMismatch),
        ("nothing", Kind::BodyMismatch),
        ("", Kind::BodyMismatch),
    ] {
        let verdict = judged(both, answer(body).as_bytes()).await;
        assert_eq!(verdict.kind, kind, "{body}: {verdict:?}");
    }
    let not = "{expect: {not: {body: {regex: '^err'}}}}";
    assert_eq!(judged(not, answer("").as_bytes()).await.kind, Kind::Ok);
    let bad = judged(not, answer("error").as_bytes()).await;
    assert_eq!(bad.kind, Kind::BodyMismatch);
    assert_eq!(bad.note, "regex `^err` is in the body");
    assert_eq!(bad.saw.to_string(), "error");
}

/// HAProxy's `http-check expect string`, for who wants it.
#[tokio::test]
async fn a_body_may_replace_the_status() {
    let answer = b"HTTP/1.1 503 No\r\nContent-Length: 7\r\n\r\nversion";
    let replaces = "{expect: {body: {contains: version}, body_replaces_status: on}}";
    assert_eq!(judged(replaces, answer).await.kind, Kind::Ok);
    let both = "{expect: {body: {contains: version}}}";
    assert_eq!(judged(both, answer).await.kind, Kind::BadStatus);
}

#[tokio::test]
async fn expected_bytes_need_not_be_text() {
    let answer = b"HTTP/1.1 200 OK\r\n\r\na\0b\xff\xfec";
    for (body, kind) in [
        (r#"{contains: "a\0b"}"#, Kind::Ok),
        (r#"{contains: "a\0c"}"#, Kind::BodyMismatch),
        ("{hex: 00 62 ff}", Kind::Ok),
        ("{hex: FFFE63}", Kind::Ok),
        ("{hex: ff00}", Kind::BodyMismatch),
        (r"{regex: '(?-u:\xff\xfe)c$'}", Kind::Ok),
        (r"{regex: 'a\x00b'}", Kind::Ok),
    ] {
        let verdict = judged(&format!("{{expect: {{body: {body}}}}}"), answer).await;
        assert_eq!(verdict.kind, kind, "{body}: {verdict:?}");
    }
    let bad = judged("{expect: {body: {contains: x}}}", answer).await;
    assert_eq!(bad.saw.to_string(), r"a\0b\xff\xfec");
}

/// Nothing can be looked for in it, and least of all that something is not there.
#[tokio::test]
async fn a_compressed_body_is_refused() {
    let gzip = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b";
    for expect in ["body: {contains: up}", "not: {body: {contains: error}}"] {
        let verdict = judged(&format!("{{expect: {{{expect}}}}}"), gzip).await;
        assert_eq!(verdict.kind, Kind::Protocol, "{expect}");
        assert_eq!(
            verdict.note,
            "the body is compressed, which was not asked for"
        );
        assert_eq!(verdict.saw.to_string(), "gzip");
    }
    assert_eq!(
        judged("{}", gzip).await.kind,
        Kind::Ok,
        "nobody looks at it"
    );
    let plain = b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\n\r\nup";
    let verdict = judged("{expect: {body: {contains: up}}}", plain).await;
    assert_eq!(verdict.kind, Kind::Ok);
}

#[tokio::test]
async fn a_hundred_megabytes_are_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let mut sent = 0;
        while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {
            sent += 64 * 1024;
        }
        sent
    });
    let mut probe = Probe::new(
        &check_by("{connection: reuse, expect: {body: {contains: y}}}"),
        target,
        "b",
    );
    let verdict = probe.run().await;
    assert_eq!(verdict.kind, Kind::BodyMismatch);
    assert_eq!(verdict.note, "no `y` in the body in the first 65536 bytes");
    // The connection is no good, which the next check finds out.
    drop(probe);
    let sent = task.await.unwrap();
    assert!(sent < 50 << 20, "{sent} bytes: what the sockets hold");
}

#[tokio::test]
async fn requests_say_what_is_configured() {
    let http = "{method: POST, path: /rpc, host: h, headers: {X-Token: a b, User-Agent: me}, body: \
                '{\"id\":1}', expect: {status: 200}}";
    let (target, task) = server(|mut stream| async move {
        let mut request = read_request(&mut stream).await.into_bytes();
        request.resize(request.len() + 8, 0);
        let end = request.len() - 8;
        stream.read_exact(&mut request[end..]).await.unwrap();
        stream.write_all(OK).await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
        String::from_utf8(request).unwrap();
    })
    .await;
    let verdict = Probe::new(&check_by(http), target, "b").run().await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    task.await.unwrap();
    let probe = Http::new(
        match check_by(http).each()[0].kind() {
            crate::config::Kind::Http(http) => http,
            other => panic!("by {other}"),
        },
        target,
        "b",
    );
    let request = String::from_utf8(probe.request.to_vec()).unwrap();
    assert_eq!(
        request,
        "POST /rpc HTTP/1.1\r\nHost: h\r\nAccept: */*\r\nuser-agent: me\r\nx-token: a \
         b\r\nConnection: close\r\nContent-Length: 8\r\n\r\n{\"id\":1}"
    );
}

/// A server that answers each path, as long as somebody connects; tells what was asked for.
async fn site(pages: &'static [(&'static str, &'static str)]) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let asked = Asked::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A check that only connects, or is broken off, asks for nothing.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = pages.iter().find(|(of, _)| *of == path);
            let answer = answer.map_or("404 No\r\n", |(_, answer)| answer);
            let answer = format!("HTTP/1.1 {answer}Content-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            let method = request.split(' ').next().unwrap_or_default();
            seen.0.lock().unwrap().push(format!("{method} {path}"));
            let _ = stream.read(&mut [0; 1]).await;
        }
    });
    (target, asked)
}

#[derive(Clone, Default)]
struct Asked(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl Asked {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn redirects_are_followed_within_the_endpoint_if_asked() {
    let (target, asked) = site(&[
        ("/", "302 Found\r\nLocation: /a\r\n"),
        ("/a", "307 Moved\r\nLocation: http://h/b?c\r\n"),
        ("/b?c", "200 OK\r\n"),
        ("/away", "301 Moved\r\nLocation: http://elsewhere/\r\n"),
        ("/round", "302 Found\r\nLocation: round\r\n"),
        ("/none", "302 Found\r\n"),
    ])
    .await;
    let run = async |http: &str| Probe::new(&check_by(http), target, "h").run().await;
    let ok = run("{redirects: 2, expect: {status: 200}}").await;
    assert_eq!((ok.kind, ok.status), (Kind::Ok, Some(200)));
    assert_eq!(asked.take(), ["GET /", "GET /a", "GET /b?c"]);
    let ok = run("{redirects: 2, method: POST, expect: {status: 200}}").await;
    assert_eq!(ok.kind, Kind::Ok);
    assert_eq!(asked.take(), ["POST /", "GET /a", "GET /b?c"]);

    let few = run("{redirects: 1, expect: {status: 200}}").await;
    assert_eq!((few.kind, few.status), (Kind::BadStatus, Some(307)));
    assert_eq!(few.note, "more than 1 redirects");
    let not = run("{expect: {status: 200}}").await;
    assert_eq!((not.kind, not.status), (Kind::BadStatus, Some(302)));
    let away = run("{redirects: 9, path: /away}").await;
    assert_eq!(away.kind, Kind::BadStatus);
    assert_eq!(away.note, "a redirect to elsewhere");
    assert_eq!(away.saw.to_string(), "http://elsewhere/");
    asked.take();
    let round = run("{redirects: 9, path: /round}").await;
    assert_eq!(round.note, "more than 9 redirects");
    assert_eq!(asked.take().len(), 10);
    let none = run("{redirects: 9, path: /none}").await;
    assert_eq!((none.kind, none.status), (Kind::Ok, Some(302)), "200-399");
}

#[tokio::test]
async fn a_proxy_header_comes_first() {
    for (version, length) in [("v1", 0), ("v2", 16)] {
        let (target, task) = server(move |mut stream| async move {
            let peer = stream.peer_addr().unwrap();
            let me = stream.local_addr().unwrap();
            if length == 0 {
                let expected = format!(
                    "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
                    peer.port(),
                    me.port()
                );
                let mut line = vec![0; expected.len()];
                stream.read_exact(&mut line).await.unwrap();
                assert_eq!(String::from_utf8(line).unwrap(), expected);
            } else {
                let mut header = vec![0; length];
                stream.read_exact(&mut header).await.unwrap();
                assert_eq!(header, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
            }
            assert!(read_request(&mut stream).await.starts_with("GET / "));
            stream.write_all(OK).await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
        })
        .await;
        let check = check_by(&format!("{{send_proxy: {version}}}"));
        assert_eq!(Probe::new(&check, target, "b").run().await.kind, Kind::Ok);
        task.await.unwrap();
    }
}

#[tokio::test]
async fn several_checks_make_one_verdict() {
    let good = site(&[("/", "200 OK\r\n")]).await.0;
    let refused = TcpSocket::new_v4().unwrap();
    refused.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = refused.local_addr().unwrap().port();
    let port = good.port();
    let run = async |checks: &str| {
        let check = checked(&format!("checks: {{{checks}, timeout: 500ms}}"));
        let mut probe = Probe::new(&check, good, "b");
        let first = probe.run().await;
        // Broken off or not, the next time is the same.
        assert_eq!(probe.run().await.kind, first.kind);
        first
    };
    let (up, down) = (
        format!("{{http: {{port: {port}}}}}"),
        format!("{{tcp: {{port: {refused}}}}}"),
    );
    assert_eq!(run(&format!("all: [{up}, {{tcp: }}]")).await.kind, Kind::Ok);
    assert_eq!(run(&format!("any: [{down}, {up}]")).await.kind, Kind::Ok);
    let one = run(&format!("all: [{up}, {down}]")).await;
    assert_eq!(one.kind, Kind::Refused);
    assert_eq!(one.note, "check 2 of 2 (TCP): Connection refused");
    let none = run(&format!("any: [{down}, {down}]")).await;
    assert_eq!(none.kind, Kind::Refused);
    assert_eq!(none.note, "check 1 of 2 (TCP): Connection refused");
    // The slow one is not waited for.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slow = format!(
        "{{http: {{port: {}}}, timeout: 1h}}",
        silent.local_addr().unwrap().port()
    );
    assert_eq!(
        run(&format!("all: [{slow}, {down}]")).await.kind,
        Kind::Refused
    );
    assert_eq!(run(&format!("any: [{slow}, {up}]")).await.kind, Kind::Ok);
}
