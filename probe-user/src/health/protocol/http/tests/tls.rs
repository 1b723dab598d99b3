//! TLS and HTTP/2, by real handshakes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA with a server and a client, as files.
struct Pki {
    folder: tempfile::TempDir,
    server: ServerConfig,
}

impl Pki {
    fn new(wants_client: bool, protocols: &[&[u8]]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let made = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(names).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (client, client_key) = made(&["probe"]);
        fs::write(folder.path().join("client.pem"), client.pem()).unwrap();
        fs::write(folder.path().join("client.key"), client_key.serialize_pem()).unwrap();
        let (server, server_key) = made(&["a.example", "127.0.0.1"]);
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .unwrap(),
            )
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(server_key.serialize_pem().as_bytes()).unwrap();
        let mut server = builder
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        server.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Self { folder, server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ca(&self) -> String {
        format!("ca: {}", show(&self.file("ca.pem")))
    }

    /// A server that answers in the version that was agreed on; how many connections it had.
    async fn serve(&self) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(self.server.clone()));
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        return serve_two(stream).await;
                    }
                    let mut seen = Vec::new();
                    loop {
                        match stream.read_u8().await {
                            Ok(byte) => seen.push(byte),
                            Err(_) => return,
                        }
                        if seen.ends_with(b"\r\n\r\n") {
                            stream.write_all(OK).await.unwrap();
                            stream.flush().await.unwrap();
                            seen.clear();
                        }
                    }
                });
            }
        });
        (target, count)
    }
}

/// Answers `/status` with a version, `/big` with a lot, `/moved` with a redirect; others with
/// 503.
async fn serve_two(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        assert_eq!(request.headers()["accept"], "*/*");
        let (status, body): (u16, &[u8]) = match path.as_str() {
            "/status" => (200, b"{version:2}"),
            "/big" => (200, &[b'x'; 60_000]),
            "/huge" => (200, &[b'x'; 300_000]),
            "/moved" => (302, b""),
            _ => (503, b"no"),
        };
        let mut response = http::Response::builder().status(status);
        if path == "/moved" {
            response = response.header("location", "/status");
        }
        let response = response.header("x-path", path).body(()).unwrap();
        let Ok(mut send) = respond.send_response(response, false) else {
            continue;
        };
        let _ = send.send_data(Bytes::from_static(body), true);
    }
}

fn show(file: &Path) -> String {
    format!("'{}'", file.display())
}

async fn over_tls(target: SocketAddr, tls: &str, more: &str) -> Verdict {
    let check = check_by(&format!("{{path: /status, tls: {{{tls}}}{more}}}"));
    Probe::new(&check, target, &target.to_string()).run().await
}

#[tokio::test]
async fn certificates_are_verified_unless_told_otherwise() {
    let pki = Pki::new(false, &[]);
    let (target, _) = pki.serve().await;
    let ca = pki.ca();
    // By address, which the certificate is for too.
    let verdict = over_tls(target, &ca, "").await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    // By name: the host's, or the one that is asked for.
    let verdict = over_tls(target, &ca, ", host: 'a.example:8443'").await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    let verdict = over_tls(target, &format!("{ca}, sni: a.example"), ", host: b").await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");

    let other = over_tls(target, &ca, ", host: b.example").await;
    assert_eq!(other.kind, Kind::Tls, "{other:?}");
    let stranger = Pki::new(false, &[]);
    let unknown = over_tls(target, &stranger.ca(), "").await;
    assert_eq!(unknown.kind, Kind::Tls, "{unknown:?}");
    assert!(
        unknown.note.contains("invalid peer certificate"),
        "{unknown:?}"
    );
    let anybody = over_tls(target, "verify: false", ", host: b.example").await;
    assert_eq!(anybody.kind, Kind::Ok, "{anybody:?}");
}

#[tokio::test]
async fn clients_show_their_certificate() {
    let pki = Pki::new(true, &[]);
    let (target, _) = pki.serve().await;
    let (chain, key) = (show(&pki.file("client.pem")), show(&pki.file("client.key")));
    let mine = format!("{}, certificate: {chain}, key: {key}", pki.ca());
    let verdict = over_tls(target, &mine, "").await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    let none = over_tls(target, &pki.ca(), "").await;
    assert_eq!(none.kind, Kind::Tls, "{none:?}");
}

#[tokio::test]
async fn what_is_no_tls_is_no_tls() {
    // A server that speaks HTTP, one that speaks noise, one that closes, one that is silent.
    for (said, kind) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], Kind::Tls),
        (b"\x16\x03\x01\xff\xff\x00\x01\x02\x03", Kind::Tls),
        (b"\x15\x03\x01\x00\x02\x02\x28", Kind::Tls),
        (b"", Kind::ResponseTimeout),
    ] {
        let (target, task) = server(move |mut stream| async move {
            stream.write_all(said).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let verdict = over_tls(target, "verify: false", "").await;
        assert_eq!(verdict.kind, kind, "{verdict:?}");
        task.await.unwrap();
    }
    let (target, task) = server(|mut stream| async move {
        let _ = stream.read(&mut [0; 64]).await;
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let verdict = over_tls(target, "verify: false", "").await;
    assert_eq!(verdict.kind, Kind::Tls);
    assert_eq!(verdict.note, "closed within the TLS handshake");
    task.await.unwrap();
    // And TLS where it is not expected.
    let pki = Pki::new(false, &[]);
    let (target, _) = pki.serve().await;
    let verdict = Probe::new(&check_by("{}"), target, "b").run().await;
    assert_eq!(verdict.kind, Kind::Protocol, "{verdict:?}");
    // A handshake is all that a TCP check with TLS asks for.
    let tcp = |tls: &str| checked(&format!("check: {{tcp: {{tls: {{{tls}}}}}}}"));
    let mut probe = Probe::new(&tcp(&pki.ca()), target, &target.to_string());
    assert_eq!(probe.run().await.kind, Kind::Ok);
    let mut probe = Probe::new(&tcp(&format!("{}, sni: b", pki.ca())), target, "b");
    assert_eq!(probe.run().await.kind, Kind::Tls);
}

#[tokio::test]
async fn the_version_is_agreed_on() {
    let both = Pki::new(false, &[b"h2", b"http/1.1"]);
    let (target, count) = both.serve().await;
    let two = ", expect: {body: {contains: 'version:2'}}";
    let one = ", expect: {body: {contains: 'version:1'}}";
    for (more, expect) in [("", two), (", version: 2", two), (", version: 1", one)] {
        let verdict = over_tls(target, &both.ca(), &format!("{more}{expect}")).await;
        assert_eq!(verdict.kind, Kind::Ok, "{more}: {verdict:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let old = Pki::new(false, &[b"http/1.1"]);
    let (target, _) = old.serve().await;
    let verdict = over_tls(target, &old.ca(), one).await;
    assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
    let verdict = over_tls(target, &old.ca(), ", version: 2").await;
    assert_eq!(
        verdict.kind,
        Kind::Tls,
        "no protocol in common: {verdict:?}"
    );
    let none = Pki::new(false, &[]);
    let (target, _) = none.serve().await;
    let verdict = over_tls(target, &none.ca(), ", version: 2").await;
    assert_eq!(verdict.kind, Kind::Protocol);
    assert_eq!(verdict.note, "the endpoint does not offer HTTP/2");
}

#[tokio::test]
async fn http2_connections_are_reused_and_answers_judged() {
    let pki = Pki::new(false, &[b"h2"]);
    for (keep, connections) in [("fresh", 12), ("reuse", 1), ("mixed, fresh_every: 4", 3)] {
        let (target, count) = pki.serve().await;
        for (path, expect, kind) in [
            ("/status", "body: {contains: version}", Kind::Ok),
            ("/big", "not: {body: {contains: version}}", Kind::Ok),
        ] {
            let before = count.load(Ordering::SeqCst);
            let check = check_by(&format!(
                "{{path: {path}, connection: {keep}, tls: {{{}}}, expect: {{{expect}}}}}",
                pki.ca()
            ));
            let mut probe = Probe::new(&check, target, "a.example");
            for i in 0..12 {
                let verdict = probe.run().await;
                assert_eq!(verdict.kind, kind, "{path} {i}: {verdict:?}");
            }
            let made = count.load(Ordering::SeqCst) - before;
            assert_eq!(made, connections, "{path} {keep}");
        }
    }
    let (target, _) = pki.serve().await;
    for (http, kind, status) in [
        ("path: /", Kind::BadStatus, 503),
        (
            "path: /status, expect: {body: {contains: x}}",
            Kind::BodyMismatch,
            200,
        ),
        (
            "path: /huge, expect: {body: {contains: y}}",
            Kind::BodyMismatch,
            200,
        ),
        (
            "path: /moved, redirects: 1, expect: {status: 200}",
            Kind::Ok,
            200,
        ),
        (
            "path: /status, expect: {headers: [{name: X-Path, equals: /status}]}",
            Kind::Ok,
            200,
        ),
        (
            "path: /status, expect: {headers: [{name: X-None}]}",
            Kind::HeaderMismatch,
            200,
        ),
        ("path: /status, method: HEAD", Kind::Ok, 200),
    ] {
        let check = check_by(&format!(
            "{{{http}, connection: reuse, tls: {{{}}}}}",
            pki.ca()
        ));
        let mut probe = Probe::new(&check, target, "a.example");
        for _ in 0..5 {
            let verdict = probe.run().await;
            assert_eq!(
                (verdict.kind, verdict.status),
                (kind, Some(status)),
                "{verdict:?}"
            );
        }
    }
}

/// Without TLS only if asked: `version: 2` is prior knowledge.
#[tokio::test]
async fn http2_without_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            // Closed after one answer, as a server that goes away.
            let _ = tokio::time::timeout(Duration::from_millis(50), serve_two(stream)).await;
        }
    });
    let check = check_by("{version: 2, path: /status, connection: reuse}");
    let mut probe = Probe::new(&check, target, "b:80");
    assert_eq!(probe.run().await.kind, Kind::Ok);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let verdict = probe.run().await;
    assert_eq!(verdict.kind, Kind::Ok, "on a fresh connection: {verdict:?}");
    drop(probe);
    served.await.unwrap();
    // A server of HTTP/1.1, or of anything.
    for said in [&b"HTTP/1.1 400 Bad\r\n\r\n"[..], &[0xff; 4096]] {
        let (target, task) = server(move |mut stream| async move {
            stream.write_all(said).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let verdict = Probe::new(&check_by("{version: 2}"), target, "b")
            .run()
            .await;
        assert_eq!(verdict.kind, Kind::Protocol, "{verdict:?}");
        task.await.unwrap();
    }
}
