//! An endpoint of the tests' own, in memory, that does as it is told.

use std::time::Duration;

use tokio::{
    io::{AsyncWriteExt as _, DuplexStream, duplex},
    time::{sleep, timeout},
};

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use super::{
    failure::{Failure, Outcome, Reason},
    inbox::readable,
};
use crate::health::verdict::{Finding, Verdict};

/// Far more than anything takes that works; on paused time nobody waits for it.
pub const LONG: Duration = Duration::from_secs(60);

/// What an endpoint does, one after the other.
#[derive(Clone, Debug)]
pub enum Act {
    /// Waits for exactly these bytes.
    Hears(Vec<u8>),
    /// Waits for so many bytes, whatever they are.
    HearsSome(usize),
    Says(Vec<u8>),
    /// Says it byte by byte, each after a while.
    Drips(Vec<u8>),
    /// Says it for ever.
    Repeats(Vec<u8>),
    Pauses,
    /// Keeps the connection open and is silent.
    Waits,
}

pub fn hears(bytes: impl AsRef<[u8]>) -> Act {
    Act::Hears(bytes.as_ref().to_vec())
}

pub fn says(bytes: impl AsRef<[u8]>) -> Act {
    Act::Says(bytes.as_ref().to_vec())
}

pub fn drips(bytes: impl AsRef<[u8]>) -> Act {
    Act::Drips(bytes.as_ref().to_vec())
}

pub fn repeats(bytes: impl AsRef<[u8]>) -> Act {
    Act::Repeats(bytes.as_ref().to_vec())
}

/// Does it, then closes. What it hears must be what it should.
pub async fn act(mut stream: DuplexStream, acts: Vec<Act>) {
    for act in acts {
        let gone = match act {
            Act::Hears(bytes) => {
                let mut heard = vec![0; bytes.len()];
                let end = stream.read_exact(&mut heard).await;
                if end.is_ok() {
                    assert_eq!(
                        heard,
                        bytes,
                        "{} for {}",
                        heard.escape_ascii(),
                        bytes.escape_ascii()
                    );
                }
                end.is_err()
            }
            Act::HearsSome(count) => stream.read_exact(&mut vec![0; count]).await.is_err(),
            Act::Says(bytes) => stream.write_all(&bytes).await.is_err(),
            Act::Drips(bytes) => {
                let mut gone = false;
                for byte in bytes {
                    sleep(Duration::from_millis(10)).await;
                    gone |= stream.write_all(&[byte]).await.is_err();
                }
                gone
            }
            Act::Repeats(bytes) => {
                while stream.write_all(&bytes).await.is_ok() {}
                true
            }
            Act::Pauses => {
                sleep(Duration::from_millis(10)).await;
                false
            }
            Act::Waits => {
                // Until the other end goes.
                while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
                true
            }
        };
        if gone {
            return;
        }
    }
}

/// Holds a conversation with such an endpoint. `None`: it has not ended within [`LONG`].
pub async fn with<T>(
    acts: impl Into<Vec<Act>>,
    hold: impl AsyncFnOnce(&mut DuplexStream, &mut BytesMut) -> T,
) -> Option<T> {
    let (mut stream, endpoint) = duplex(1 << 16);
    let endpoint = tokio::spawn(act(endpoint, acts.into()));
    let mut scratch = BytesMut::new();
    let outcome = timeout(LONG, hold(&mut stream, &mut scratch)).await.ok();
    drop(stream);
    endpoint.await.expect("the endpoint heard what it should");
    assert!(
        scratch.capacity() <= 1 << 18,
        "{} bytes",
        scratch.capacity()
    );
    outcome
}

/// The reason of a mismatch, else nothing.
pub fn reason(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Err(Failure::Mismatch(mismatch)) => Some(mismatch.reason),
        _ => None,
    }
}

/// What a failure tells people.
pub fn told(outcome: Outcome) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(failure) => {
            let verdict: Verdict = Finding::from(failure).after(Duration::ZERO);
            let detail = verdict.detail();
            let detail = detail.trim_end_matches(" after 0.0 ms");
            format!("{}: {detail}", verdict.kind.label())
        }
    }
}

#[test]
fn a_text_for_the_log_is_one_line() {
    assert_eq!(
        readable(b" one\r\ntwo\x1b[31m\xff "),
        "one  two [31m\u{fffd}"
    );
    assert_eq!(readable(&[b'x'; 300]).len(), 203);
}
