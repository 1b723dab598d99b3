//! Addresses of `bind` and `server` lines.

use std::net::IpAddr;

use crate::{config, import::plan::Address};

/// An address of `bind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// An address and its ports.
    At(IpAddr, Vec<u16>),
    /// Every address of the machine, or one that only it has.
    Any(Vec<u16>),
    /// Not an address that packets come to.
    Other(&'static str),
}

/// Most ports of one range that become listeners.
const MOST_PORTS: u16 = 64;

/// Reads an address of `bind`.
pub fn bound(text: &str) -> Bound {
    if text.starts_with('/') || text.starts_with("unix@") || text.starts_with("abns") {
        return Bound::Other("a Unix socket: packets do not come there");
    }
    if text.starts_with("quic") {
        return Bound::Other("QUIC ends at the proxy: a layer-7 proxy");
    }
    let text = text
        .strip_prefix("ipv4@")
        .or_else(|| text.strip_prefix("ipv6@"))
        .unwrap_or(text);
    if text.contains('@') {
        return Bound::Other("a socket from elsewhere: packets do not come there");
    }
    let Some((host, ports)) = text.rsplit_once(':') else {
        return Bound::Other("no port");
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let ports = match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(0), _) | (Err(_), _) | (_, Err(_)) => return Bound::Other("not a port"),
        (Ok(first), Ok(last)) if last < first => return Bound::Other("not a range of ports"),
        (Ok(first), Ok(last)) if last - first >= MOST_PORTS => {
            return Bound::Other("more ports than a listener each makes sense for");
        }
        (Ok(first), Ok(last)) => (first..=last).collect(),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) if config::unsteerable(ip).is_none() => Bound::At(ip, ports),
        Ok(_) => Bound::Any(ports),
        Err(_) if host.is_empty() || host == "*" => Bound::Any(ports),
        // A name that the machine resolves to one of its own addresses.
        Err(_) => Bound::Any(ports),
    }
}

/// Reads the address of a server. `port` is that of the service's only listener, which a server
/// without one shares.
pub fn server(text: &str, port: Option<u16>) -> Address {
    let needs = |place: &str, why: &str| Address::Needs(place.to_owned(), why.to_owned());
    if text.starts_with('/') || text.starts_with("unix@") || text.starts_with("abns") {
        return needs(
            "<ADDRESS>:PORT",
            "a Unix socket: let the server listen at an address of its node",
        );
    }
    let bare = text
        .strip_prefix("ipv4@")
        .or_else(|| text.strip_prefix("ipv6@"))
        .unwrap_or(text);
    if bare.contains('@') {
        return needs("<ADDRESS>:PORT", "not an address that packets can go to");
    }
    let (host, own_port) = match bare.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None if bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
            // HAProxy takes what follows the last colon for a port.
            match bare.rsplit_once(':') {
                Some((host, port)) if host.parse::<IpAddr>().is_ok() => (host, Some(port)),
                _ => (bare, None),
            }
        }
        None => match bare.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (bare, None),
        },
    };
    let shown = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let port = match own_port {
        None | Some("" | "0") => match port {
            Some(port) => port,
            None => {
                return needs(
                    &format!("{shown}:PORT"),
                    "without a port it took the one that the client had connected to",
                );
            }
        },
        Some(text) => match text.parse::<u16>() {
            Ok(port) if !text.starts_with(['+', '-']) => port,
            _ => {
                return needs(
                    &format!("{shown}:PORT"),
                    "a port relative to the client's: one service for each port",
                );
            }
        },
    };
    match host.parse::<IpAddr>() {
        Ok(ip) => match config::unsteerable(ip) {
            Some(_) if ip.is_loopback() => needs(
                &format!("<NODE>:{port}"),
                "loopback packets never cross an interface: write the node's own address, and let \
                 the server listen there",
            ),
            Some(why) => needs(&format!("<ADDRESS>:{port}"), why),
            None => Address::At(format!("{shown}:{port}")),
        },
        Err(_) if host.eq_ignore_ascii_case("localhost") => needs(
            &format!("<NODE>:{port}"),
            "loopback packets never cross an interface: write the node's own address, and let the \
             server listen there",
        ),
        Err(_) if config::is_host_name(host) => Address::At(format!("{host}:{port}")),
        Err(_) => needs(&format!("<ADDRESS>:{port}"), "not an address"),
    }
}

/// The port of an address that was found good.
pub fn port(address: &Address) -> Option<u16> {
    let (Address::At(text) | Address::Needs(text, _)) = address;
    text.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds() {
        let at =
            |ip: &str, ports: &[u16]| Bound::At(ip.parse().expect("an address"), ports.to_vec());
        for (text, expected) in [
            ("*:80", Bound::Any(vec![80])),
            (":80", Bound::Any(vec![80])),
            ("0.0.0.0:80", Bound::Any(vec![80])),
            (":::80", Bound::Any(vec![80])),
            ("[::]:80", Bound::Any(vec![80])),
            ("127.0.0.1:80", Bound::Any(vec![80])),
            ("ipv4@10.0.0.1:80-82", at("10.0.0.1", &[80, 81, 82])),
            ("fd00::1:80", at("fd00::1", &[80])),
            ("[fd00::1]:80", at("fd00::1", &[80])),
        ] {
            assert_eq!(bound(text), expected, "{text}");
        }
        for text in [
            "/run/x",
            "abns@x",
            "fd@3",
            "quic4@:443",
            ":0",
            ":1-9999",
            ":9-1",
            "x",
            "",
        ] {
            assert!(matches!(bound(text), Bound::Other(_)), "{text}");
        }
    }

    #[test]
    fn servers() {
        let at = |text: &str| Address::At(text.to_owned());
        for (text, expected) in [
            ("10.0.0.1:80", at("10.0.0.1:80")),
            ("10.0.0.1", at("10.0.0.1:9")),
            ("web.example.com:80", at("web.example.com:80")),
            ("fd00::1:80", at("[fd00::1]:80")),
            ("[fd00::1]:80", at("[fd00::1]:80")),
            ("ipv6@[fd00::1]", at("[fd00::1]:9")),
        ] {
            assert_eq!(server(text, Some(9)), expected, "{text}");
            assert!(port(&expected).is_some());
        }
        for (text, place) in [
            ("127.0.0.1:80", "<NODE>:80"),
            ("localhost:80", "<NODE>:80"),
            ("10.0.0.1:+1", "10.0.0.1:PORT"),
            ("/run/x", "<ADDRESS>:PORT"),
            ("*:80", "<ADDRESS>:80"),
            ("", "<ADDRESS>:9"),
        ] {
            match server(text, Some(9)) {
                Address::Needs(found, _) => assert_eq!(found, place, "{text}"),
                found @ Address::At(_) => panic!("{text}: {found:?}"),
            }
        }
    }
}
