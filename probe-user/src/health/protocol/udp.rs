//! UDP: one datagram there, one back.
//!
//! A connected socket, so only the endpoint's answers arrive and an ICMP error that nobody
//! listens is the verdict `refused`. Each check has a socket and thus a port of its own: no
//! late answer to the one before can be taken for its own. Silence is a timeout: a server that
//! answers nothing cannot be told from none. The first datagram decides; what is
//! longer than [`LIMIT`] is judged by its beginning.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::{Bytes, BytesMut};
use tokio::net::UdpSocket;

use super::failure::{Failure, Outcome, Reason};
use crate::{
    config::{Looked, UdpCheck},
    health::{
        transport::Stage,
        verdict::Finding,
        wire::{datagram, stamp_datagrams},
    },
};

/// Bytes of a datagram that are looked at.
pub const LIMIT: usize = 16 * 1024;

/// The UDP check of one endpoint.
#[derive(Debug)]
pub struct Udp {
    target: SocketAddr,
    send: Bytes,
    expect: Option<Looked>,
    scratch: BytesMut,
}

impl Udp {
    /// Of an endpoint.
    pub fn new(check: &UdpCheck, endpoint: SocketAddr) -> Self {
        Self {
            target: check.target(endpoint),
            send: check.send().clone(),
            expect: check.expect().cloned(),
            scratch: BytesMut::new(),
        }
    }

    /// Makes the check.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        *stage = Stage::waiting("no answer");
        let socket = match connect(self.target).await {
            Ok(socket) => socket,
            Err(error) => return Finding::of_io(&error, true),
        };
        let outcome = self.hold(&socket).await;
        outcome.err().map_or(Finding::OK, Finding::from)
    }

    async fn hold(&mut self, socket: &UdpSocket) -> Outcome {
        self.scratch.resize(LIMIT, 0);
        socket.send(&self.send).await?;
        let length = datagram(socket, &mut self.scratch).await?;
        self.scratch.truncate(length);
        match &self.expect {
            Some(looked) if !looked.is_met(&self.scratch) => {
                let note = format!("expects {looked}");
                Err(Failure::mismatch(Reason::Answer, note, &self.scratch))
            }
            _ => Ok(()),
        }
    }
}

/// A socket that speaks with the endpoint alone.
pub async fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let here: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    towards(UdpSocket::bind(here).await?, target).await
}

/// Where nobody has the endpoint's port of this host, the socket itself may have been given it,
/// and would answer itself.
async fn towards(socket: UdpSocket, target: SocketAddr) -> io::Result<UdpSocket> {
    stamp_datagrams(&socket);
    socket.connect(target).await?;
    if socket.local_addr()? == target {
        return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::{
        config::BodyMatch,
        health::{protocol::tests::told, verdict::Kind},
    };

    const LONG: Duration = Duration::from_secs(20);

    /// Answers one datagram with this.
    async fn server(answer: &'static [u8]) -> SocketAddr {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut heard = [0; 64];
            let (count, from) = server.recv_from(&mut heard).await.unwrap();
            assert_eq!(&heard[..count], b"ping");
            server.send_to(answer, from).await.unwrap();
        });
        at
    }

    fn ping(target: SocketAddr, expect: Option<(&[u8], bool)>) -> Udp {
        let looked = |(bytes, negated)| Looked {
            pattern: BodyMatch::contains(bytes),
            negated,
        };
        Udp {
            target,
            send: Bytes::from_static(b"ping"),
            expect: expect.map(looked),
            scratch: BytesMut::new(),
        }
    }

    async fn ask(mut udp: Udp) -> Outcome {
        let socket = connect(udp.target).await.unwrap();
        timeout(LONG, udp.hold(&socket)).await.unwrap()
    }

    #[tokio::test]
    async fn the_answer_must_hold_what_is_expected() {
        ask(ping(server(b"").await, None)).await.unwrap();
        let pong = Some((&b"pong"[..], false));
        ask(ping(server(b"a pong").await, pong)).await.unwrap();
        let outcome = ask(ping(server(b"pang\0").await, pong)).await;
        assert_eq!(
            told(outcome),
            r"body-mismatch: unexpected answer: expects `pong`, it begins `pang\0`"
        );
        let not = Some((&b"pong"[..], true));
        ask(ping(server(b"pang").await, not)).await.unwrap();
        ask(ping(server(b"pong").await, not)).await.unwrap_err();
    }

    #[tokio::test]
    async fn nobody_there_is_refused() {
        let at = {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.local_addr().unwrap()
        };
        let finding = ping(at, None).run(&mut Stage::waiting("")).await;
        assert_eq!(finding.kind, Kind::Refused);
    }

    #[tokio::test]
    async fn it_does_not_speak_with_itself() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let refused = towards(socket, at).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// The socket is deaf to others.
    #[tokio::test]
    async fn only_the_endpoint_is_heard() {
        let endpoint = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = connect(endpoint.local_addr().unwrap()).await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let me = socket.local_addr().unwrap();
        stranger.send_to(b"pong", me).await.unwrap();
        let mut udp = ping(endpoint.local_addr().unwrap(), None);
        let early = timeout(Duration::from_millis(100), udp.hold(&socket)).await;
        assert!(early.is_err(), "it waits for the endpoint");
        endpoint.send_to(b"pong", me).await.unwrap();
        timeout(LONG, udp.hold(&socket)).await.unwrap().unwrap();
    }
}
