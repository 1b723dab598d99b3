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

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::UdpSocket;

use super::{Failure, Outcome, Reason, script::Pattern};

/// Bytes of a datagram that are looked at.
pub const LIMIT: usize = 16 * 1024;

/// What is said, and what must come back.
#[derive(Clone, Debug)]
pub struct Udp {
    send: Bytes,
    expect: Option<(Pattern, bool)>,
}

impl Udp {
    /// Sends this and expects anything, or what is said with [`Udp::expecting`].
    pub fn new(send: Bytes) -> Self {
        Self { send, expect: None }
    }

    /// The answer must hold the pattern, or must not.
    #[must_use]
    pub fn expecting(self, pattern: Pattern, negated: bool) -> Self {
        let expect = Some((pattern, negated));
        Self { expect, ..self }
    }

    /// Holds the conversation. `scratch` is worth keeping.
    pub async fn hold(&self, socket: &UdpSocket, scratch: &mut BytesMut) -> Outcome {
        scratch.clear();
        scratch.reserve(LIMIT);
        socket.send(&self.send).await?;
        socket.recv_buf(&mut (&mut *scratch).limit(LIMIT)).await?;
        match &self.expect {
            Some((pattern, negated)) if pattern.is_in(scratch) == *negated => {
                let not = if *negated { "not " } else { "" };
                let note = format!("expects {not}{pattern}");
                Err(Failure::mismatch(Reason::Answer, note, scratch))
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
    let socket = UdpSocket::bind(here).await?;
    socket.connect(target).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::health::{protocol::script::unescape, verdict::Kind};

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

    async fn ask(udp: &Udp, at: SocketAddr) -> Outcome {
        let socket = connect(at).await.unwrap();
        let mut scratch = BytesMut::new();
        timeout(LONG, udp.hold(&socket, &mut scratch))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_answer_must_hold_what_is_expected() {
        let ping = Udp::new(Bytes::from_static(b"ping"));
        ask(&ping, server(b"").await).await.unwrap();
        let pong = Pattern::Bytes(unescape(r"po\x6eg").unwrap());
        let expects = ping.clone().expecting(pong.clone(), false);
        ask(&expects, server(b"a pong").await).await.unwrap();
        let failure = ask(&expects, server(b"pang\0").await).await.unwrap_err();
        assert_eq!(failure.kind(), Kind::BodyMismatch);
        assert_eq!(
            failure.to_string(),
            r"unexpected answer: expects `pong`, the answer begins `pang\x00`"
        );
        let not = ping.expecting(pong, true);
        ask(&not, server(b"pang").await).await.unwrap();
        ask(&not, server(b"pong").await).await.unwrap_err();
    }

    #[tokio::test]
    async fn nobody_there_is_refused() {
        let at = {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.local_addr().unwrap()
        };
        let failure = ask(&Udp::new(Bytes::from_static(b"ping")), at)
            .await
            .unwrap_err();
        assert_eq!(failure.kind(), Kind::Refused);
    }

    /// The socket is deaf to others.
    #[tokio::test]
    async fn only_the_endpoint_is_heard() {
        let endpoint = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = connect(endpoint.local_addr().unwrap()).await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let me = socket.local_addr().unwrap();
        stranger.send_to(b"pong", me).await.unwrap();
        let mut scratch = BytesMut::new();
        let udp = Udp::new(Bytes::from_static(b"ping"));
        let hold = udp.hold(&socket, &mut scratch);
        timeout(Duration::from_millis(100), hold).await.unwrap_err();
        endpoint.send_to(b"pong", me).await.unwrap();
        timeout(LONG, udp.hold(&socket, &mut scratch))
            .await
            .unwrap()
            .unwrap();
    }
}
