//! Conversations that one connection is enough for, again and again.
//!
//! A connection is kept as [`Keep`] says, and only while both sides agree where they are in
//! it: an answer that was not read to its end, or not understood, ends it. A server may
//! close a kept one at any time; one that ends before a byte of the answer came is no failure, and
//! the check is made on a fresh one, once, within the same timeout.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{task::AbortHandle, time::timeout};

use super::failure::Outcome;
use crate::{
    config::{Keep, Reach},
    health::{
        transport::{Stage, Transport},
        verdict::Finding,
    },
};

/// Room for answers that is kept from one check to the next.
const KEPT_ROOM: usize = 16 * 1024;
/// Time for taking leave, which no verdict waits for.
const LEAVE: Duration = Duration::from_secs(1);

/// A kind of conversation.
pub trait Speak {
    /// What it is held over.
    type Connection: Send + 'static;

    /// Makes a connection.
    fn connect(
        &self,
        transport: &Transport,
        stage: &mut Stage,
    ) -> impl Future<Output = Result<Self::Connection, Finding>> + Send;

    /// Asks, on a connection that is new or has been asked on.
    fn ask(
        &self,
        connection: &mut Self::Connection,
        fresh: bool,
        scratch: &mut BytesMut,
    ) -> impl Future<Output = Outcome> + Send;

    /// Can one be asked on again?
    fn can_keep(&self) -> bool {
        true
    }

    /// Ends a connection in the way that the protocol wants, if there is one.
    fn leave(
        &self,
        _connection: Self::Connection,
    ) -> Option<impl Future<Output = ()> + Send + use<Self> + 'static> {
        None::<std::future::Ready<()>>
    }
}

/// Conversations of a kind with one endpoint.
#[derive(Debug)]
pub struct Kept<T: Speak> {
    speaks: T,
    transport: Transport,
    keep: Keep,
    connection: Option<T::Connection>,
    /// Checks that the connection was used for.
    used: u32,
    scratch: BytesMut,
    /// The connection before is being ended.
    leaving: Option<AbortHandle>,
}

impl<T: Speak> Kept<T> {
    /// With an endpoint that is called `authority`.
    pub fn new(
        speaks: T,
        reach: &Reach,
        keep: Keep,
        endpoint: SocketAddr,
        authority: &str,
    ) -> Self {
        Self {
            keep: if speaks.can_keep() { keep } else { Keep::Fresh },
            speaks,
            transport: Transport::new(reach, endpoint, authority),
            connection: None,
            used: 0,
            scratch: BytesMut::new(),
            leaving: None,
        }
    }

    /// Makes the check.
    pub async fn run(&mut self, stage: &mut Stage) -> Finding {
        if let Some(mut kept) = self.usable() {
            let outcome = self.ask(&mut kept, false, stage).await;
            match outcome {
                Err(failure) if failure.is_end() => {}
                outcome => return self.conclude(kept, outcome),
            }
        }
        let mut fresh = match self.speaks.connect(&self.transport, stage).await {
            Ok(connection) => connection,
            Err(finding) => return finding,
        };
        self.used = 0;
        let outcome = self.ask(&mut fresh, true, stage).await;
        self.conclude(fresh, outcome)
    }

    async fn ask(
        &mut self,
        connection: &mut T::Connection,
        fresh: bool,
        stage: &mut Stage,
    ) -> Outcome {
        *stage = Stage::waiting("no complete answer");
        self.speaks.ask(connection, fresh, &mut self.scratch).await
    }

    /// The kept connection, if it shall be used again.
    fn usable(&mut self) -> Option<T::Connection> {
        let kept = self.connection.take()?;
        match self.keep {
            Keep::Mixed { fresh_every } if self.used >= fresh_every => {
                self.leave(kept);
                None
            }
            _ => Some(kept),
        }
    }

    fn conclude(&mut self, connection: T::Connection, outcome: Outcome) -> Finding {
        if self.scratch.capacity() > KEPT_ROOM {
            self.scratch = BytesMut::new();
        }
        self.used = self.used.saturating_add(1);
        match &outcome {
            Err(failure) if !failure.is_in_step() => drop(connection),
            _ if self.keep == Keep::Fresh => self.leave(connection),
            _ => self.connection = Some(connection),
        }
        outcome.err().map_or(Finding::OK, Finding::from)
    }

    /// One at a time: a server that does not let go holds up one connection, not many.
    fn leave(&mut self, connection: T::Connection) {
        if let Some(before) = self.leaving.take() {
            before.abort();
        }
        if let Some(leave) = self.speaks.leave(connection) {
            let task = tokio::spawn(async move { drop(timeout(LEAVE, leave).await) });
            self.leaving = Some(task.abort_handle());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        config::{Check, Kind as Checked},
        health::{protocol::Conversation, verdict::Kind},
    };

    const LONG: Duration = Duration::from_secs(20);
    const MASTER: &[u8] = b"+PONG\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    const REPLICA: &[u8] = b"+PONG\r\n*5\r\n$5\r\nslave\r\n$1\r\na\r\n:1\r\n$4\r\nsync\r\n:0\r\n";
    const ERROR: &[u8] = b"+PONG\r\n-ERR internal\r\n";

    /// Answers each question so, on each connection so many, and closes then.
    async fn serve(mut stream: TcpStream, answer: &'static [u8], answers: usize) {
        let question = b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nROLE\r\n";
        let mut heard = vec![0; question.len()];
        for _ in 0..answers {
            if stream.read_exact(&mut heard).await.is_err() {
                return;
            }
            assert_eq!(heard, question);
            stream.write_all(answer).await.unwrap();
        }
    }

    /// Makes so many checks; what they concluded, and over how many connections.
    async fn made(
        config: &str,
        answer: &'static [u8],
        answers: usize,
        checks: usize,
    ) -> (Vec<Kind>, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answer, answers));
            }
        });
        let check = check(config);
        let mut conversation = Conversation::new(check.each()[0].kind(), at, "a");
        let mut kinds = Vec::new();
        for _ in 0..checks {
            let mut stage = Stage::CONNECTING;
            let finding = timeout(LONG, conversation.run(&mut stage)).await;
            kinds.push(finding.expect("it ends").kind);
        }
        server.abort();
        (kinds, accepted.load(Ordering::Relaxed))
    }

    fn check(config: &str) -> Check {
        let config = crate::config::parse(&format!(
            "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: ['10.0.0.1:80'], \
             endpoints: [{{name: b, address: '10.0.0.2:80'}}], check: {{redis: {config}}}}}]",
        ));
        let config = config.unwrap();
        let check = config.services()[0].check().clone();
        assert!(matches!(check.each()[0].kind(), Checked::Redis(_)));
        check
    }

    #[tokio::test]
    async fn connections_live_as_long_as_configured() {
        for (config, connections) in [
            ("{role: master, connection: fresh}", 6),
            ("{role: master, connection: reuse}", 1),
            ("{role: master, connection: mixed, fresh_every: 3}", 2),
        ] {
            let outcome = made(config, MASTER, usize::MAX, 6).await;
            assert_eq!(outcome, (vec![Kind::Ok; 6], connections), "{config}");
        }
    }

    #[tokio::test]
    async fn one_that_was_closed_meanwhile_is_no_failure() {
        let config = "{role: master, connection: reuse}";
        let outcome = made(config, MASTER, 2, 6).await;
        assert_eq!(outcome, (vec![Kind::Ok; 6], 3));
        // But one that closes each time fails each time, and is not asked for ever.
        let outcome = made(config, MASTER, 0, 3).await;
        assert_eq!(outcome.1, 3);
        assert!(!outcome.0.contains(&Kind::Ok));
    }

    #[tokio::test]
    async fn a_replica_keeps_its_connection_and_one_in_trouble_does_not() {
        let config = "{role: master, connection: reuse}";
        let outcome = made(config, REPLICA, usize::MAX, 4).await;
        assert_eq!(outcome, (vec![Kind::BodyMismatch; 4], 1));
        let outcome = made(config, ERROR, usize::MAX, 4).await;
        assert_eq!(outcome, (vec![Kind::BadStatus; 4], 4));
    }
}
