//! The way to an endpoint that checks by TCP have in common.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::tls::Tls;
use crate::config::{
    error::Fault,
    raw,
    scalar::{number, word},
};

/// How a check connects.
#[derive(Clone, Debug, PartialEq)]
pub struct Reach {
    port: Option<u16>,
    address: Option<IpAddr>,
    send_proxy: Option<ProxyVersion>,
    tls: Option<Tls>,
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl Reach {
    /// Where it goes, for an endpoint at an address.
    pub fn target(&self, endpoint: SocketAddr) -> SocketAddr {
        SocketAddr::new(
            self.address.unwrap_or(endpoint.ip()),
            self.port.unwrap_or(endpoint.port()),
        )
    }
    /// The port that is probed, unless it is the endpoint's.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
    /// What is said of the connection before anything else.
    pub fn send_proxy(&self) -> Option<ProxyVersion> {
        self.send_proxy
    }
    /// How it is encrypted, if it is.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }
    pub(super) fn tls_mut(&mut self) -> Option<&mut Tls> {
        self.tls.as_mut()
    }

    pub(super) fn parse(
        field: &str,
        port: &Option<String>,
        address: &Option<String>,
        send_proxy: &Option<String>,
        tls: &Option<raw::Tls>,
    ) -> Result<Self, Fault> {
        Ok(Self {
            port: match port {
                Some(text) => Some(number(&format!("{field}.port"), text, 1..=u16::MAX)?),
                None => None,
            },
            address: match address {
                Some(text) => Some(unicast(&format!("{field}.address"), text)?),
                None => None,
            },
            send_proxy: match send_proxy {
                Some(text) => word(
                    &format!("{field}.send_proxy"),
                    text,
                    &[
                        ("off", None),
                        ("v1", Some(ProxyVersion::V1)),
                        ("v2", Some(ProxyVersion::V2)),
                    ],
                )?,
                None => None,
            },
            tls: match tls {
                Some(tls) => Some(Tls::parse(&format!("{field}.tls"), tls)?),
                None => None,
            },
        })
    }
}

fn unicast(field: &str, text: &str) -> Result<IpAddr, Fault> {
    text.parse()
        .ok()
        .filter(|ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast())
        .ok_or_else(|| {
            Fault::new(
                field,
                text,
                "not an address that one can connect to",
                "an IP address, without a port",
            )
        })
}

/// What is not as for clients.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, " at {address}")?;
        }
        if self.tls.is_some() {
            f.write_str(" over TLS")?;
        }
        Ok(())
    }
}
