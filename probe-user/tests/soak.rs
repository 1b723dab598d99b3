//! Many checks of every kind, of good servers and bad ones: no descriptor stays open, no process
//! is left, and memory does not grow. `PROBE_SOAK` says how many; a few thousand unless said.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener},
    thread,
};

use probe_user::{
    config,
    health::{Kind, Probe},
};
use socket2::{Domain, Socket, Type};

/// Kinds of check; commands and timeouts are a tenth as many.
const KINDS: usize = 27;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nversion";
const GZIP: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\0";
const CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nver\r\n4\r\nsion\r\n0\r\n\r\n";
const ELSEWHERE: &[u8] = b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n";
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nver";

/// What a server does when it has answered.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It waits for another question.
    Waits,
    /// It closes its side, and listens on.
    Ends,
    /// It goes on for ever with this byte.
    Repeats(u8),
}

/// Answers whoever connects, one after the other.
fn server(answer: &'static [u8]) -> SocketAddr {
    that(answer, Then::Waits)
}

fn that(answer: &'static [u8], then: Then) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4096];
            while stream.read(&mut request).is_ok_and(|read| read > 0) {
                if answer.is_empty() || stream.write_all(answer).is_err() {
                    break;
                }
                match then {
                    Then::Waits => {}
                    Then::Ends => _ = stream.shutdown(Shutdown::Write),
                    Then::Repeats(byte) => while stream.write_all(&[byte; 4096]).is_ok() {},
                }
            }
        }
    });
    target
}

/// Open descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// Resident memory in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|n| n.parse().ok()).expect("a number")
}

/// Processes that were started with this argument.
fn processes(argument: &str) -> usize {
    let all = fs::read_dir("/proc").expect("procfs");
    // Who has just ended has nothing to show.
    let lines = all.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let has = |line: &Vec<u8>| {
        line.split(|byte| *byte == 0)
            .any(|of| of == argument.as_bytes())
    };
    lines.filter(has).count()
}

#[test]
fn nothing_leaks() {
    let each: usize = match std::env::var("PROBE_SOAK") {
        Ok(text) => text.parse::<usize>().expect("PROBE_SOAK: a number") / KINDS,
        Err(_) => 500,
    };
    // Bound and not listening: nobody else can take the port meanwhile.
    let refused = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    refused.bind(&any.into()).expect("a port");
    let gone = refused.local_addr().ok().and_then(|at| at.as_socket());
    let gone = gone.expect("an address");
    let kinds = [
        ("http: {connection: fresh}", server(OK), Kind::Ok),
        ("http: {connection: reuse}", server(OK), Kind::Ok),
        ("http: {connection: mixed}", server(OK), Kind::Ok),
        ("tcp: {}", server(b""), Kind::Ok),
        ("http: {expect: {status: 201}}", server(OK), Kind::BadStatus),
        ("http: {}", server(b"SSH-2.0\r\n\r\n"), Kind::Protocol),
        ("http: {version: 2}", server(OK), Kind::Protocol),
        ("tcp: {tls: {verify: false}}", server(OK), Kind::Tls),
        ("http: {connection: mixed}", gone, Kind::Refused),
        ("redis: {connection: fresh}", server(b"+PONG\r\n"), Kind::Ok),
        ("redis: {connection: mixed}", server(b"+PONG\r\n"), Kind::Ok),
        (
            "script: {steps: [{send: a}, {expect: ON}]}",
            server(b"+PONG\r\n"),
            Kind::Ok,
        ),
        // It asks for a password.
        ("postgres: {}", server(b"R\0\0\0\x08\0\0\0\x03"), Kind::Ok),
        ("grpc: {}", server(OK), Kind::Protocol),
        ("udp: {send: a}", gone, Kind::Refused),
        ("exec: {command: [/bin/true]}", gone, Kind::Ok),
        (
            "exec: {command: [/bin/sh, -c, 'sleep LONG & exit 1']}",
            gone,
            Kind::Exec,
        ),
        (
            "exec: {command: [/bin/sh, -c, 'sleep LONG & sleep LONG']}, timeout: 4ms",
            gone,
            Kind::ResponseTimeout,
        ),
        // A head and a body without end, and one that drips.
        (
            "http: {}",
            that(b"HTTP/1.1 200 OK\r\nA: ", Then::Repeats(b'x')),
            Kind::Protocol,
        ),
        (
            "http: {expect: {body: {contains: version}}}",
            that(
                b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n",
                Then::Repeats(b'x'),
            ),
            Kind::BodyMismatch,
        ),
        (
            "http: {}, timeout: 2ms",
            server(b"HTTP/1.1 200"),
            Kind::ResponseTimeout,
        ),
        (
            "http: {expect: {body: {contains: version}}}",
            server(CHUNKED),
            Kind::Ok,
        ),
        (
            "http: {expect: {body: {contains: version}}}",
            server(GZIP),
            Kind::Protocol,
        ),
        ("http: {redirects: 3}", server(ELSEWHERE), Kind::BadStatus),
        (
            "http: {expect: {body: {contains: version}}}",
            that(HALF, Then::Ends),
            Kind::Protocol,
        ),
        (
            "http: {expect: {body: {hex: '00fffe'}}}",
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\0\xff\xfe"),
            Kind::Ok,
        ),
        (
            "redis: {}",
            that(b"$1000000\r\n", Then::Repeats(b'x')),
            Kind::Protocol,
        ),
    ];
    // Nobody else's: a process of an earlier run would count.
    let long = format!("{}", 1_000_000 + std::process::id());
    assert_eq!(kinds.len(), KINDS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for (check, target, kind) in kinds {
        let check = check.replace("LONG", &long);
        let timeout = if check.contains("timeout") {
            ""
        } else {
            ", timeout: 20s"
        };
        let config = config::parse(&format!(
            "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: ['10.0.0.1:80'], \
             endpoints: [{{name: b, address: '10.0.0.2:80'}}], check: {{{check}{timeout}}}}}]"
        ))
        .expect("a configuration");
        let slow = check.starts_with("exec") || timeout.is_empty();
        let tenth = if slow { 10 } else { 1 };
        let many = async |count: usize| {
            let mut probe = Probe::new(config.services()[0].check(), target, "a");
            for _ in 0..count / tenth {
                let verdict = probe.run().await;
                assert_eq!(verdict.kind, kind, "{check}: {verdict:?}");
            }
        };
        runtime.block_on(many(100));
        // The server closes its end a moment after the check did.
        let settled = || {
            let mut now = descriptors();
            for _ in 0..2000 {
                thread::sleep(std::time::Duration::from_millis(1));
                let next = descriptors();
                if next == now {
                    break;
                }
                now = next;
            }
            now
        };
        let (open, before) = (settled(), memory());
        runtime.block_on(many(each));
        let (left, after) = (settled(), memory());
        println!("{check}: {each} checks, {open} to {left} descriptors, {before} to {after} KiB");
        assert!(left <= open + 1, "{check}: {open} descriptors, then {left}");
        assert!(after < before + 4096, "{check}: {before} KiB, then {after}");
        assert_eq!(processes(&long), 0, "{check}");
    }
}
