//! The UDP check: what is said, and what must come back.

use std::{fmt, net::SocketAddr};

use bytes::Bytes;

use super::{
    Reach,
    script::{Looked, said},
};
use crate::config::{error::Fault, raw};

/// Bytes of a datagram that fits everywhere.
const MOST_SENT: usize = 1200;

/// A datagram, and what its answer must be.
#[derive(Clone, Debug, PartialEq)]
pub struct UdpCheck {
    // Of a way by TCP the address alone.
    reach: Reach,
    send: Bytes,
    expect: Option<Looked>,
}

impl UdpCheck {
    /// Where it goes, for an endpoint at an address.
    pub fn target(&self, endpoint: SocketAddr) -> SocketAddr {
        self.reach.target(endpoint)
    }
    /// The datagram.
    pub fn send(&self) -> &Bytes {
        &self.send
    }
    /// What the answer must hold, or must not; else any will do.
    pub fn expect(&self) -> Option<&Looked> {
        self.expect.as_ref()
    }

    pub(super) fn parse(field: &str, raw: &raw::Udp) -> Result<Self, Fault> {
        let Some(send) = said(field, &raw.send, &raw.send_hex)? else {
            return Err(Fault::absent(
                field,
                "nothing is sent",
                "`send` or `send_hex`, which the endpoint answers",
            ));
        };
        if send.len() > MOST_SENT {
            return Err(Fault::new(
                field,
                format!("{} bytes", send.len()),
                "too long for a datagram",
                format!("at most {MOST_SENT} bytes"),
            ));
        }
        let raw::Udp {
            expect,
            expect_hex,
            expect_regex,
            not,
            ..
        } = raw;
        let looked = Looked::parse(field, expect, expect_hex, expect_regex, not)?;
        if let (None, Some(not)) = (&looked, not) {
            let accepted = "what is not to come beside it";
            return Err(Fault::new(
                format!("{field}.not"),
                not,
                "of nothing",
                accepted,
            ));
        }
        Ok(Self {
            reach: Reach::parse(field, &raw.port, &raw.address, &None, &None)?,
            send,
            expect: looked,
        })
    }
}

impl fmt::Display for UdpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UDP{} `{}`", self.reach, self.send.escape_ascii())?;
        match &self.expect {
            Some(looked) => write!(f, ", expects {looked}"),
            None => Ok(()),
        }
    }
}
