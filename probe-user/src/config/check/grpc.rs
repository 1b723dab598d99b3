//! The gRPC check: which service is asked for.

use std::{fmt, time::Duration};

use super::{Keep, Reach};
use crate::config::{error::Fault, raw};

/// Longest name of a service.
const LONGEST_NAME: usize = 1024;

/// A question to the health service.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcCheck {
    reach: Reach,
    keep: Keep,
    service: String,
    host: Option<String>,
}

impl GrpcCheck {
    /// How it connects.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
    /// How long connections are kept.
    pub fn keep(&self) -> Keep {
        self.keep
    }
    /// The service as the server registered it; empty for the server as a whole.
    pub fn service(&self) -> &str {
        &self.service
    }
    /// `:authority`, unless it is the endpoint's address.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    pub(super) fn parse(field: &str, raw: &raw::Grpc, inter: Duration) -> Result<Self, Fault> {
        let service = raw.service.clone().unwrap_or_default();
        if service.len() > LONGEST_NAME {
            return Err(Fault::new(
                format!("{field}.service"),
                format!("{} bytes", service.len()),
                "too long for a service's name",
                format!("at most {LONGEST_NAME} bytes"),
            ));
        }
        if let Some(host) = &raw.host
            && host.parse::<http::uri::Authority>().is_err()
        {
            return Err(Fault::new(
                format!("{field}.host"),
                host,
                "not an authority",
                "a host name or address, with a port if need be",
            ));
        }
        let mut reach = Reach::parse(field, &raw.port, &raw.address, &raw.send_proxy, &raw.tls)?;
        if let Some(tls) = reach.tls_mut() {
            tls.offer(&[b"h2"]);
        }
        Ok(Self {
            reach,
            keep: Keep::parse(field, &raw.connection, &raw.fresh_every, inter)?,
            service,
            host: raw.host.clone(),
        })
    }
}

impl fmt::Display for GrpcCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC{}", self.reach)?;
        if !self.service.is_empty() {
            write!(f, ", service {}", self.service)?;
        }
        self.keep.fmt(f)
    }
}
