//! Whether endpoints say themselves how they want to be treated, and where they are asked.

use std::{net::IpAddr, time::Duration};

use super::{
    check::unescape,
    error::Fault,
    raw,
    scalar::{duration, number},
};

/// HAProxy's default.
const DEFAULT_INTER: Duration = Duration::from_secs(2);
/// Each answer may make a new ring.
const LEAST_INTER: Duration = Duration::from_millis(100);

/// `agent_check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCheck {
    port: u16,
    address: Option<IpAddr>,
    inter: Duration,
    send: Vec<u8>,
}

impl AgentCheck {
    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
    /// At another address than the endpoint's.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }
    /// Time between two questions.
    pub fn inter(&self) -> Duration {
        self.inter
    }
    /// What it is sent first, if anything.
    pub fn send(&self) -> &[u8] {
        &self.send
    }

    /// `field` is whose it is.
    pub fn parse(field: &str, raw: &raw::AgentCheck) -> Result<Self, Fault> {
        let field = format!("{field}.agent_check");
        Ok(Self {
            port: number(&format!("{field}.port"), &raw.port, 1..=u16::MAX)?,
            address: raw
                .address
                .as_ref()
                .map(|text| {
                    text.parse().map_err(|_| {
                        let field = format!("{field}.address");
                        Fault::new(field, text, "not an IP address", "an IPv4 or IPv6 address")
                    })
                })
                .transpose()?,
            inter: match &raw.inter {
                Some(text) => duration(&format!("{field}.inter"), text, LEAST_INTER)?,
                None => DEFAULT_INTER,
            },
            send: raw.send.as_ref().map_or(Ok(Vec::new()), |text| {
                unescape(text).map_err(|problem| {
                    let field = format!("{field}.send");
                    let accepted = r"text with \r \n \t \0 \\ and \x00 to \xff";
                    Fault::new(field, text, problem, accepted)
                })
            })?,
        })
    }
}
