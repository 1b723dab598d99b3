//! Where an endpoint is: fixed addresses, or a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{error::Fault, raw, scalar};

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At fixed addresses, at least one.
    Literal {
        /// In IPv4.
        v4: Option<Ipv4Addr>,
        /// In IPv6.
        v6: Option<Ipv6Addr>,
        /// Port in both.
        port: u16,
    },
    /// Where DNS says.
    Name {
        /// The name, as configured.
        host: String,
        /// Port.
        port: u16,
    },
}

const ENDPOINT: &str = "ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one \
                        IPv4 and one IPv6 address with equal ports";

impl Address {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Literal { port, .. } | Self::Name { port, .. } => *port,
        }
    }

    pub(super) fn parse(field: &str, raw: &raw::OneOrMany) -> Result<Self, Fault> {
        let list = match raw {
            raw::OneOrMany::One(text) => return Self::parse_one(field, text),
            raw::OneOrMany::Many(list) => list,
        };
        let (mut v4, mut v6, mut ports) = (None, None, Vec::new());
        for (i, text) in list.iter().enumerate() {
            let field = format!("{field}[{i}]");
            let Self::Literal { v4: a, v6: b, port } = Self::parse_one(&field, text)? else {
                return Err(Fault::new(
                    field,
                    text,
                    "a DNS name in a list: a name brings both families by itself",
                    ENDPOINT,
                ));
            };
            if (v4.is_some() && a.is_some()) || (v6.is_some() && b.is_some()) {
                return Err(Fault::new(
                    field,
                    text,
                    "a second address of the same family",
                    ENDPOINT,
                ));
            }
            if ports.first().is_some_and(|first| *first != port) {
                return Err(Fault::new(
                    field,
                    text,
                    "the addresses' ports differ",
                    ENDPOINT,
                ));
            }
            v4 = v4.or(a);
            v6 = v6.or(b);
            ports.push(port);
        }
        match ports.first() {
            Some(&port) => Ok(Self::Literal { v4, v6, port }),
            None => Err(Fault::absent(field, "an empty list", ENDPOINT)),
        }
    }

    fn parse_one(field: &str, text: &str) -> Result<Self, Fault> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            scalar::steerable(field, text, address)?;
            let port = address.port();
            return Ok(match address.ip() {
                IpAddr::V4(ip) => Self::Literal {
                    v4: Some(ip),
                    v6: None,
                    port,
                },
                IpAddr::V6(ip) => Self::Literal {
                    v4: None,
                    v6: Some(ip),
                    port,
                },
            });
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() || scalar::is_host_name(text) {
            return Err(Fault::new(
                field,
                text,
                "an endpoint needs a port",
                ENDPOINT,
            ));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(Fault::new(field, text, "not an address", ENDPOINT));
        };
        let port = match port.parse::<u16>() {
            Ok(0) => return Err(Fault::new(field, text, "port 0", ENDPOINT)),
            Ok(port) if port.to_string() == text[host.len() + 1..] => port,
            _ => return Err(Fault::new(field, text, "not a port", ENDPOINT)),
        };
        if !scalar::is_host_name(host) {
            return Err(Fault::new(
                field,
                text,
                "neither an address nor a DNS name",
                ENDPOINT,
            ));
        }
        Ok(Self::Name {
            host: host.to_owned(),
            port,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Literal { v4, v6, port } => {
                let v4 = v4.map(|ip| SocketAddr::from((ip, *port)).to_string());
                let v6 = v6.map(|ip| SocketAddr::from((ip, *port)).to_string());
                let both: Vec<_> = v4.into_iter().chain(v6).collect();
                f.write_str(&both.join(", "))
            }
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
