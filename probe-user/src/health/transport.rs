//! The connection that a check talks over: TCP, what is said of it before, and TLS.
//!
//! It is closed with a RST, as HAProxy does: at a hundred checks a second the states of
//! TIME_WAIT would else use up the local ports in minutes.
//!
//! A PROXY header tells the truth: version 1 names the check's own address and port as
//! the client's, since not every server takes `UNKNOWN`; version 2 has the command
//! LOCAL, which is meant for health checks (section 2.2 of its specification).

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    verdict::{Finding, Kind},
    wire::Wire,
};
use crate::config::{ProxyVersion, Reach};

/// Signature, version 2 and LOCAL, no address family, no bytes that follow.
const PROXY_V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// What a check concludes if its time is over now. Whoever talks keeps it true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its kind.
    pub kind: Kind,
    /// What is missing.
    pub note: &'static str,
    /// The answer's status, if it came.
    pub status: Option<u16>,
}

impl Stage {
    /// Of a check that has just begun.
    pub const CONNECTING: Self = Self {
        kind: Kind::ConnectTimeout,
        note: "no connection",
        status: None,
    };

    /// There is a connection, and this is waited for.
    pub const fn waiting(note: &'static str) -> Self {
        Self {
            kind: Kind::ResponseTimeout,
            note,
            status: None,
        }
    }

    /// The conclusion.
    pub fn over(self) -> Finding {
        Finding::new(self.kind, self.note).with_status(self.status)
    }
}

/// How connections to an endpoint are made.
#[derive(Clone)]
pub struct Transport {
    target: SocketAddr,
    send_proxy: Option<ProxyVersion>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The first word is ours.
    speaks: bool,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.tls.as_ref().map(|(_, name)| name);
        f.debug_struct("Transport")
            .field("target", &self.target)
            .field("send_proxy", &self.send_proxy)
            .field("tls", &name)
            .finish()
    }
}

impl Transport {
    /// `endpoint` is where clients go; `host` is the name, or address, that a certificate
    /// must be for unless the configuration names another. It may have a port.
    pub fn new(reach: &Reach, endpoint: SocketAddr, host: &str) -> Self {
        let target = reach.target(endpoint);
        let tls = reach.tls().map(|tls| {
            let named = || ServerName::try_from(without_port(host)).map(|name| name.to_owned());
            let name = match tls.sni() {
                Some(name) => name.clone(),
                None => named().unwrap_or_else(|_| ServerName::from(target.ip())),
            };
            (TlsConnector::from(Arc::clone(tls.client())), name)
        });
        Self {
            target,
            send_proxy: reach.send_proxy(),
            tls,
            speaks: true,
        }
    }

    /// The same, where the server may speak first.
    #[must_use]
    pub fn that_hears_first(mut self, hears: bool) -> Self {
        self.speaks = !hears || self.tls.is_some() || self.send_proxy.is_some();
        self
    }

    /// Where they go.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Are they encrypted?
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Makes one.
    pub async fn connect(&self, stage: &mut Stage) -> Result<Stream, Finding> {
        let tcp = self.open(stage).await?;
        self.encrypt(tcp, stage).await
    }

    /// Makes one, before TLS: some protocols speak in clear first.
    pub async fn open(&self, stage: &mut Stage) -> Result<Wire, Finding> {
        *stage = Stage::CONNECTING;
        let mut tcp = plain(self.target, self.speaks)
            .await
            .map_err(|error| Finding::of_io(&error, true))?;
        if let Some(version) = self.send_proxy {
            *stage = Stage::waiting("the PROXY header could not be sent");
            send_proxy(&mut tcp, version)
                .await
                .map_err(|error| Finding::of_io(&error, false))?;
        }
        Ok(tcp)
    }

    /// Begins TLS, if that is configured.
    pub async fn encrypt(&self, tcp: Wire, stage: &mut Stage) -> Result<Stream, Finding> {
        let Some((connector, name)) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        *stage = Stage::waiting("no complete TLS handshake");
        // Those without TLS need no room for it.
        let stream = Box::pin(connector.connect(name.clone(), tcp)).await;
        let stream = stream.map_err(|error| handshake_failed(&error))?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// The host of `host:port`, `[v6]:port` or a host alone.
fn without_port(host: &str) -> &str {
    if let Some(v6) = host.strip_prefix('[') {
        return v6.split(']').next().unwrap_or(v6);
    }
    match host.split_once(':') {
        // A bare IPv6 address has more colons.
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

async fn plain(target: SocketAddr, speaks: bool) -> io::Result<Wire> {
    let wire = Wire::connect(target, speaks).await?;
    with_another(wire.local_addr()?, target)?;
    Ok(wire)
}

/// Where nobody listens at an endpoint's port of this host, a socket may be given that very
/// port, and is then connected to itself (RFC 9293 section 3.5, simultaneous open).
fn with_another(local: SocketAddr, target: SocketAddr) -> io::Result<()> {
    if local == target {
        return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    Ok(())
}

async fn send_proxy(stream: &mut Wire, version: ProxyVersion) -> io::Result<()> {
    match version {
        ProxyVersion::V1 => {
            let line = proxy_line(stream.local_addr()?, stream.peer_addr()?);
            stream.write_all(line.as_bytes()).await
        }
        ProxyVersion::V2 => stream.write_all(PROXY_V2_LOCAL).await,
    }
}

fn proxy_line(from: SocketAddr, to: SocketAddr) -> String {
    let family = if to.is_ipv4() { "TCP4" } else { "TCP6" };
    let (source, destination) = (from.ip(), to.ip());
    let (source_port, port) = (from.port(), to.port());
    format!("PROXY {family} {source} {destination} {source_port} {port}\r\n")
}

/// What a failed handshake says. A connection that breaks in it is TLS' matter too, unless
/// the network says more.
fn handshake_failed(error: &io::Error) -> Finding {
    if error.raw_os_error().is_some() {
        return Finding::of_io(error, false);
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Finding::new(Kind::Tls, "closed within the TLS handshake");
    }
    Finding::new(Kind::Tls, error.to_string())
}

/// What an error of an established connection says.
pub fn broken(error: &io::Error) -> Finding {
    let is_tls = error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>());
    if is_tls {
        return Finding::new(Kind::Tls, error.to_string());
    }
    Finding::of_io(error, false)
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(Wire),
    /// Encrypted.
    Tls(Box<TlsStream<Wire>>),
}

impl Stream {
    /// The protocol that the handshake agreed on.
    pub fn agreed(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buf) {
                // An end without TLS' own end. Whether the answer is whole its own framing
                // tells, and where it has none a check need not know.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                other => other,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_to_itself_is_none() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = socket.local_addr().unwrap();
        let stream = socket.connect(at).await.unwrap();
        let refused = with_another(stream.local_addr().unwrap(), at).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn hosts_lose_their_port() {
        for (host, name) in [
            ("a.example:80", "a.example"),
            ("a.example", "a.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[fd00::1]:80", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(without_port(host), name, "{host}");
        }
    }

    #[test]
    fn a_proxy_line_tells_the_truth() {
        let line = |from: &str, to: &str| proxy_line(from.parse().unwrap(), to.parse().unwrap());
        assert_eq!(
            line("10.0.0.1:4000", "10.0.0.2:80"),
            "PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n"
        );
        assert_eq!(
            line("[fd00::1]:4000", "[fd00::2]:80"),
            "PROXY TCP6 fd00::1 fd00::2 4000 80\r\n"
        );
        assert_eq!(PROXY_V2_LOCAL.len(), 16);
    }
}
