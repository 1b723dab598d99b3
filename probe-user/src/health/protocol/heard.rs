//! What a conversation makes of anything that is said to it, without an endpoint.
//!
//! Bad input is tried on the very code that checks, over a stream that is no connection:
//! `tests/fuzz` calls this, with what hand and fuzzer made.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    dialogue::{self, Dialogue},
    failure::Outcome,
    grpc, postgres, redis,
};
use crate::{config::Kind, health::verdict::Finding};

/// Holds the conversation of a check over a stream, as on a new connection; nothing for kinds
/// that need more than one. `scratch` is what it keeps in between.
pub async fn heard<S: AsyncRead + AsyncWrite + Unpin>(
    kind: &Kind,
    stream: &mut S,
    scratch: &mut BytesMut,
) -> Option<Finding> {
    let outcome = match kind {
        Kind::Script(check) => {
            dialogue::hold(Dialogue::Script(check.steps()), stream, scratch).await
        }
        Kind::Redis(check) => {
            let redis = redis::Redis::new(check.login().cloned(), check.role());
            redis.hold(stream, true, scratch).await
        }
        Kind::Postgres(check) => {
            let postgres = postgres::Postgres::new(check.login().cloned(), check.role());
            postgres.hold(stream, scratch).await
        }
        Kind::Grpc(check) => {
            let grpc = grpc::Grpc::new(check.service(), "endpoint", false);
            call(&grpc, stream).await
        }
        Kind::Tcp(_) | Kind::Http(_) | Kind::Udp(_) | Kind::Exec(_) => return None,
    };
    Some(outcome.err().map_or(Finding::OK, Finding::from))
}

async fn call<S: AsyncRead + AsyncWrite + Unpin>(grpc: &grpc::Grpc, stream: &mut S) -> Outcome {
    grpc::Session::new(stream).await?.ask(grpc).await
}
